"""DNS queries of a trace, as its report shows them: who was asked for what, who answered, how late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from k8snet.event import Address
from k8snet.findings.case import Surroundings
from k8snet.flow.dns import DnsExchange
from k8snet.report import DnsQuery, DnsResolver, DnsView, Party

MOST: Final = 200  # queries in one report; a guess


def view(queries: Sequence[DnsExchange], around: Surroundings) -> DnsView | None:
    """All that were asked, in order of time; None when there were none."""
    if not queries:
        return None
    first = min(queries, key=lambda q: q.tries[0])
    known = around.resolvers.get(first.netns)
    resolver = DnsResolver(known.nameservers, known.search, known.options) if known else None
    ordered = sorted(queries, key=lambda q: q.tries[0])
    return DnsView(tuple(_query(q, first.tries[0], around) for q in ordered[:MOST]), len(ordered), resolver)


def _query(query: DnsExchange, began_ns: int, around: Surroundings) -> DnsQuery:
    answer = query.answer or next(iter(query.answers), None)
    return DnsQuery(
        at=round((query.tries[0] - began_ns) / 1e9, 6),
        name=query.name or None,
        type=query.type or None,
        protocol=query.protocol,
        server=_party(around, query.server, query.server_port),
        rcode=query.rcode,
        seconds=round(query.seconds, 6) if query.seconds is not None else None,
        tries=len(query.tries),
        answered_by=_party(around, answer.sender, None) if answer is not None else None,
        truncated=answer is not None and answer.truncated,
    )


def _party(around: Surroundings, address: Address, port: int | None) -> Party:
    inventory = around.inventory
    pod = inventory.pod_by_ip.get(address)
    node = inventory.node_by_ip.get(address)
    service = inventory.service_at(address, port) if port is not None else None
    return Party(
        str(address),
        port,
        pod.key if pod else None,
        pod.node if pod else (node.name if node else None),
        service.key if service else None,
    )
