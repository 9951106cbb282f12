"""Settled flows in, one Report out: which flow stands for all, which of its packets is drawn, what the verdict is.

Of many flows the report draws one: the first that failed for the reason at the top of the list, or the first of all
when nothing failed. The counts say how many others there were.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from k8snet.cluster.inventory import PROTOCOLS as SERVICE_PROTOCOLS
from k8snet.event import Address, FiveTuple
from k8snet.findings.case import Case, Death
from k8snet.findings.catalogue import FINDINGS
from k8snet.findings.diagnose import diagnose, merge
from k8snet.findings.words import label
from k8snet.flow.model import Direction, Flow, Packet
from k8snet.path import Surface, hops
from k8snet.report import Finding, FlowView, Party, Path, Report, Severity, Verdict

PROTOCOLS = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_SCTP: "sctp",
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_ICMPV6: "icmp",
}


def summarise(
    cases: Sequence[Case],
    surface: Surface,
    asked: FlowView,
    *,
    lost: Mapping[str, int],
    rule_naming: str,
    chains: Mapping[int, str],
    notes: Sequence[str] = (),
    silent: Case | None = None,
) -> Report:
    """The report on all flows of one trace. `asked`: what the user wanted; `chains`: NAT chains by id(packet).

    `silent`: the flow that should have been, for when there was none.
    """
    found = [(case, diagnose(case)) for case in cases]
    findings = merge(f for _, ff in found for f in ff)
    answered = sum(case.served for case in cases)
    if not cases:
        findings = diagnose(silent) if silent is not None else []
        unknown = Verdict.LOST_EVENTS if any(lost.values()) else Verdict.NOTHING_SEEN
        verdict = Verdict.REJECTED if findings else unknown  # by the client's own kernel: its socket was told so
        return Report(
            verdict, asked, lost=dict(lost), rule_naming=rule_naming, notes=tuple(notes), findings=tuple(findings)
        )
    case, own = _representative(found, findings)
    return Report(
        verdict=_verdict(case, own, lost),
        flow=flow_view(case, asked.protocol),
        paths=_paths(case, own, surface, chains),
        findings=tuple(findings),
        connections=len(cases),
        answered=answered,
        lost=dict(lost),
        rule_naming=rule_naming,
        notes=tuple(notes),
    )


def _representative(
    found: Sequence[tuple[Case, list[Finding]]], findings: Sequence[Finding]
) -> tuple[Case, list[Finding]]:
    if findings:
        top = findings[0].code
        return next((case, ff) for case, ff in found if any(f.code == top for f in ff))
    unanswered = [(case, ff) for case, ff in found if not case.served]
    return (unanswered or list(found))[0]


def _verdict(case: Case, findings: Sequence[Finding], lost: Mapping[str, int]) -> Verdict:
    if not any(f.severity in (Severity.FAIL, Severity.UNKNOWN) for f in findings) and case.served:
        return Verdict.DELIVERED
    deaths = case.deaths
    if case.refused_by is not None:
        return Verdict.REJECTED
    codes = {f.code for f in findings}
    said = next((entry.verdict for entry in FINDINGS if entry.code in codes and entry.verdict), None)
    if said is not None:
        return said
    if any(d.direction is Direction.REQUEST and not d.packet.is_icmp_error for d in deaths):
        return Verdict.DROPPED
    if deaths or case.flow.replies:
        return Verdict.REPLY_LOST
    return Verdict.LOST_EVENTS if any(lost.values()) else Verdict.NO_REPLY


def flow_view(case: Case, protocol: str) -> FlowView:
    """Who talks to whom; `protocol`: what was asked for, "icmp" has no ports."""
    flow = case.flow
    inventory = case.around.inventory
    backend = None
    if case.backend is not None:
        address, port = case.backend
        backend = party(case, address, port if protocol != "icmp" else None)
    client = party(case, flow.original.saddr, flow.original.sport if protocol != "icmp" else None)
    service = inventory.service_at(flow.original.daddr, flow.original.dport)
    if service is None and flow.original.protocol in SERVICE_PROTOCOLS:
        transport = SERVICE_PROTOCOLS[flow.original.protocol]
        service, _ = inventory.node_port_at(flow.original.daddr, flow.original.dport, transport) or (None, None)
    server = Party(
        ip=str(flow.original.daddr),
        port=flow.original.dport or None if protocol != "icmp" else None,
        pod=pod.key if (pod := inventory.pod_by_ip.get(flow.original.daddr)) else None,
        node=None,
        service=service.key if service else None,
    )
    same = None
    if backend is not None and client.node and backend.node:
        same = client.node == backend.node
    return FlowView(
        client=client,
        server=server,
        backend=backend if flow.dnat is not None else None,
        protocol=PROTOCOLS.get(flow.original.protocol, str(flow.original.protocol)),
        original=flow.ct_orig or flow.original,
        reply=flow.ct_reply,
        same_node=same,
    )


def party(case: Case, address: Address, port: int | None) -> Party:
    """An address with the names the inventory has for it."""
    pod = case.around.inventory.pod_by_ip.get(address)
    node = case.around.inventory.node_by_ip.get(address)
    return Party(
        ip=str(address),
        port=port or None,
        pod=pod.key if pod else None,
        node=pod.node if pod else (node.name if node else None),
    )


def _paths(case: Case, findings: Sequence[Finding], surface: Surface, chains: Mapping[int, str]) -> tuple[Path, ...]:
    paths = []
    for direction in Direction:
        chosen = _chosen(case, direction, findings)
        if chosen is None:
            continue
        death = next((d for d in case.deaths if d.packet is chosen), None)
        alike = [p for p in case.flow.packets if p.direction is direction and label(p) == label(chosen)]
        paths.append(
            Path(
                direction=direction.value,
                packet=label(chosen),
                number=next(i for i, p in enumerate(alike, 1) if p is chosen),
                total=len(alike),
                hops=hops(chosen, surface, death, chains.get(id(chosen)), own_header(case, chosen)),
                ended=_ended(case, chosen, death),
                never_reached=_never_reached(case, chosen, death),
            )
        )
    return tuple(paths)


def own_header(case: Case, packet: Packet) -> FiveTuple | None:
    """What the client's process asked for, when this packet begins in its netns or has come back to it."""
    end = packet.first if packet.direction is Direction.REQUEST else packet.last
    home = end.netns == case.around.client_netns and not packet.is_icmp_error
    return case.flow.original if home and (packet.direction is Direction.REQUEST or packet in case.answers) else None


def _chosen(case: Case, direction: Direction, findings: Sequence[Finding]) -> Packet | None:
    """The packet that shows best what happened: one that died and whose rule is known, else the handshake's."""
    flow: Flow = case.flow
    dead = [d for d in case.deaths if d.direction is direction and not d.packet.is_icmp_error]
    if dead and findings:
        named = [d for d in dead if d.rule is not None]
        # Where a later copy came through, the first loss is what the client waited for.
        return (named or dead)[0 if case.served else -1].packet
    if case.stalled and case.stalled[-1].direction is direction:
        return case.stalled[-1]
    packets = flow.directed(direction)
    if direction is Direction.REPLY:
        told = case.refused_by
        if told is not None and not case.answered:
            return told
        return next(iter(case.answers or packets), None)
    if case.answered and case.backend_netns is None:
        return next(iter(packets), None)  # it must have arrived, wherever that is
    whole = [p for p in packets if case.backend_netns is not None and p.received_in(case.backend_netns)]
    return next(iter(whole or packets[-1:]), None)


def _ended(case: Case, packet: Packet, death: Death | None) -> str:
    if death is not None:
        return "dropped"
    goal = case.around.client_netns if packet.direction is Direction.REPLY else case.backend_netns
    if goal is not None:
        return "delivered" if packet.received_in(goal) else "last seen"
    # The far end is not on this machine: an answer proves that it arrived.
    return "delivered" if case.answered and packet.direction is Direction.REQUEST else "last seen"


def _never_reached(case: Case, packet: Packet, death: Death | None) -> str | None:
    if case.around.lost:
        return None  # it may have been there unseen
    if packet.direction is Direction.REPLY:
        goal, address = case.around.client_netns, case.flow.original.saddr
    else:
        goal, address = case.backend_netns, case.backend[0] if case.backend else case.flow.original.daddr
    if death is None and (goal is None or packet.received_in(goal)):
        return None
    if goal is not None and packet.received_in(goal):
        return None
    pod = case.around.inventory.pod_by_ip.get(address)
    if pod is None and case.service is not None and packet.direction is Direction.REQUEST and case.backend is None:
        return None
    return pod.key if pod else str(address)
