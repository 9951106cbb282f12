"""From what was observed to the Report: which flows were asked for, what is wrong with them, which one is drawn.

In: an `Observation`, the values that a trace of this machine (`k8snet.trace`) or the streams of two nodes' agents
(`k8snet.agent.join`) end in. Out: a `Report`. Nothing here asks a kernel, or knows how many machines there were.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from k8snet.cluster.targets import Target
from k8snet.event import Address, FiveTuple
from k8snet.findings.case import Case, Surroundings
from k8snet.findings.dns import understood
from k8snet.flow.dns import DnsExchange, by_socket, exchanges
from k8snet.flow.model import Direction, Flow
from k8snet.kernel.rules import dnat_of
from k8snet.overlay import laid_over
from k8snet.path import Surface
from k8snet.queries import view
from k8snet.report import Expected, FlowView, Party, Report
from k8snet.summary import PROTOCOLS, summarise

if TYPE_CHECKING:
    from k8snet.trace import Request

NUMBERS: Final = {
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "sctp": socket.IPPROTO_SCTP,
    "icmp": socket.IPPROTO_ICMP,
}


@dataclass(frozen=True)
class Observation:
    """All that a report is made from."""

    request: Request
    flows: Sequence[Flow]  # those that were asked for
    around: Surroundings
    surface: Surface
    lost: Mapping[str, int]
    rule_naming: str
    boot_ns: int  # when the events' clock was zero, in nanoseconds since 1970
    ports: frozenset[int] | None = None  # of our own sockets, where we sent ourselves
    notes: tuple[str, ...] = ()
    expected: Expected | None = None  # from before the first packet


def judge(seen: Observation) -> Report:
    """What became of the flows that were asked for."""
    silent = None if seen.flows else silent_flow(seen.request)
    chains = {id(p): " > ".join(steps) for f in seen.flows for p in f.requests if (steps := dnat_of(p.rules))}
    queries, cases = cases_of(seen)
    report = summarise(
        cases,
        seen.surface,
        asked(seen.request),
        lost=seen.lost,
        rule_naming=seen.rule_naming,
        chains=chains,
        notes=seen.notes,
        silent=Case(silent, seen.around) if silent else None,
    )
    report = replace(report, dns=view(queries, seen.around))
    if seen.expected is None:
        return report
    return replace(report, expected=laid_over(seen.expected, report, seen.around.inventory))


def cases_of(seen: Observation) -> tuple[list[DnsExchange], list[Case]]:
    """What was asked of DNS, and each flow with all that is known about it, that included."""
    queries = [understood(query, seen.around) for query in exchanges(seen.flows)]
    around = replace(seen.around, queries=by_socket(queries))
    return queries, [Case(flow, around) for flow in seen.flows]


def servers_of(request: Request) -> frozenset[Address]:
    """Where the flows that were asked for go to; empty: anywhere."""
    return frozenset(request.server.addresses) | {address for address, _ in request.server.backends}


def is_asked_for(
    flow: Flow,
    request: Request,
    servers: Collection[Address],
    client_netns: int | None,
    ports: Collection[int] | None,
) -> bool:
    """Sent from the client's netns to one of `servers`; `ports`: of our own sockets, where we send ourselves."""
    original = flow.original
    if request.protocol not in (None, PROTOCOLS.get(original.protocol)):
        return False
    if servers and original.daddr not in servers:
        return False
    if request.server.outside and request.inventory.is_inside(original.daddr):
        return False
    if ports is not None and original.sport not in ports:
        return False
    if not any(p.direction is Direction.REQUEST and not p.is_icmp_error for p in flow.packets):
        return False
    return client_netns is None or any(e.netns == client_netns for p in flow.packets for e in p.events)


def silent_flow(request: Request) -> Flow | None:
    """The flow that was asked for and of which there was no packet."""
    client, server = request.client.addresses, request.server.addresses
    pair = next(((c, s) for s in server[:1] for c in client if c.version == s.version), None)
    if pair is None:
        return None
    protocol = NUMBERS[request.protocol] if request.protocol else 0
    if protocol == socket.IPPROTO_ICMP and pair[1].version == 6:
        protocol = socket.IPPROTO_ICMPV6
    return Flow(FiveTuple(*pair, 0, request.server.port or 0, protocol))


def asked(request: Request) -> FlowView:
    """What the user wanted to see, for when nothing was seen."""

    def side(target: Target) -> Party:
        return Party(
            ip=str(target.addresses[0]) if target.addresses else "any",
            port=target.port,
            pod=target.pod.key if target.pod else None,
            node=target.pod.node if target.pod else None,
            service=target.service.key if target.service else None,
        )

    server = request.server.addresses[:1]
    own = tuple(a for a in request.client.addresses if a.version in {s.version for s in server})
    client = replace(request.client, addresses=own) if own else request.client
    return FlowView(side(client), side(request.server), None, request.protocol or "any")
