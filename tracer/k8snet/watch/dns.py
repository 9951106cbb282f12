"""DNS queries that went wrong, as anomalies: the catalogue's findings of one query, for a watch.

In: queries that are over (`DnsTable.due`). Out: at most one `Anomaly` for each. A query that a rule or the kernel
dropped, or that an ICMP error refused, is left to whoever judges the packet itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from k8snet.event import Address
from k8snet.findings import dns
from k8snet.findings.case import Surroundings
from k8snet.findings.catalogue import FINDINGS
from k8snet.findings.entry import Match
from k8snet.flow.dns import DnsExchange
from k8snet.report import Finding, FlowView, Party
from k8snet.watch.anomaly import Anomaly

# The most telling first. Codes are the catalogue's: what they say of a flow is said here of a query.
_EXPLAINS: Final[tuple[tuple[str, dns.Explain], ...]] = (
    ("DNS_CLASH_LOST", dns.clash_lost),
    ("DNS_LATE", dns.late),
    ("DNS_SERVFAIL", dns.servfail),
    ("DNS_REFUSED", dns.refused),
    ("DNS_PAIR_TIMEOUT", dns.pair_timeout),
    ("SLOW_CONNECT", dns.retried),
    ("DNS_SLOW", dns.slow),
    ("DNS_SEARCH_STORM", dns.search_storm),
    ("NO_REPLY", dns.no_reply),
    ("LEFT_NODE", dns.left_node),
    ("LAST_SEEN", dns.last_seen),
)
_SEVERITY: Final = {entry.code: entry.severity for entry in FINDINGS}
_BY_ABSENCE: Final = {"LAST_SEEN", *(entry.code for entry in FINDINGS if entry.by_absence)}


def anomalies(exchanges: Iterable[DnsExchange], around: Surroundings) -> list[Anomaly]:
    """What went wrong with these queries, in their order. `around`: owners, inventory, the kernel's names.

    While `around.lost` is set nothing rests on what was not seen.
    """
    return [found for q in exchanges if (found := _anomaly(dns.understood(q, around), around)) is not None]


def _anomaly(query: DnsExchange, around: Surroundings) -> Anomaly | None:
    if query.answer is None and (query.died or query.unreachable):
        return None
    for code, explain in _EXPLAINS:
        if code in _BY_ABSENCE and around.lost:
            continue
        match = explain(query, around)
        if match is not None:
            return Anomaly(
                query.seen_ns, _finding(code, match), _view(query, around), query.seconds, query.name or None
            )
    return None


def _finding(code: str, match: Match) -> Finding:
    return Finding(
        code=code,
        severity=_SEVERITY[code],
        title=match.title,
        where=match.where,
        why=match.why,
        evidence=match.evidence,
        fix=match.fix,
        direction=match.direction.value if match.direction else None,
        also=match.also,
    )


def _view(query: DnsExchange, around: Surroundings) -> FlowView:
    service = around.inventory.service_at(query.server, query.server_port)
    server = _party(query.server, query.server_port, around)
    backend = _party(query.backend, None, around) if query.backend not in (None, query.server) else None
    client = _party(query.client, query.port, around)
    return FlowView(
        client,
        Party(server.ip, server.port, server.pod, server.node, service.key if service else None),
        backend,
        query.protocol,
    )


def _party(address: Address | None, port: int | None, around: Surroundings) -> Party:
    pod = around.inventory.pod_by_ip.get(address) if address else None
    node = around.inventory.node_by_ip.get(address) if address else None
    return Party(str(address), port, pod.key if pod else None, pod.node if pod else (node.name if node else None))
