"""Findings about a device: what a bridge port, a queue or a program attached to it did to the packet."""

from __future__ import annotations

import shlex
from typing import Final

from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case, Death, Wire, pod_name
from k8snet.findings.entry import Match
from k8snet.flow.model import AT_DEVICE, Direction, Packet
from k8snet.kernel.rtnetlink import Link
from k8snet.report import Place


def hairpin_off(case: Case) -> Match | None:
    """A pod that reaches itself through its Service: the bridge will not send a frame back where it came from."""
    death = next((d for d in case.deaths if d.symbol.startswith(("br_", "__br_")) and d.reason in UNSPECIFIED), None)
    if death is None or death.event.packet is None or case.flow.dnat is None:
        return None
    if case.flow.dnat[0] != case.flow.original.saddr or death.event.packet.daddr != case.flow.original.saddr:
        return None
    event = death.event
    setting = f"bridge.{event.ifname}.hairpin_mode"
    mode = case.around.settings.get(event.netns, {}).get(setting)
    if mode == 1:
        return None
    return Match(
        title=f"DROPPED on {words.owner(case, words.place(case, death))} at {event.ifname}: hairpin mode is off",
        where=words.place(case, death),
        why="The Service sent the pod to itself, and the bridge does not send a frame back out of the port it came in "
        "by unless that port is in hairpin mode.",
        evidence=(*words.evidence(case, death), *((f"{setting} = {mode}",) if mode is not None else ())),
        fix=(
            f"{words.enter(case, event.netns)}bridge link set dev {shlex.quote(event.ifname)} hairpin on",
            "# To make it last: hairpinMode: true in the configuration of the CNI's bridge plug-in.",
        ),
        direction=death.direction,
    )


# How a packet ends that was to cross a link that is down; each happens for other reasons too.
_DEAD_END_REASONS: Final = frozenset(
    {"OTHERHOST", "QDISC_DROP", "NEIGH_FAILED", "NEIGH_QUEUEFULL", "IP_INNOROUTES", "IP_OUTNOROUTES", "DEV_READY"}
)
_DEAD_END_SYMBOLS: Final = frozenset(
    {"ip_error", "ip_rcv", "ip_rcv_core", "neigh_invalidate", "arp_error_report", "ndisc_error_report"}
    | {"__neigh_event_send", "__dev_queue_xmit", "kfree_skb_list", "kfree_skb_list_reason", "dev_hard_start_xmit"}
    | {"br_forward", "__br_forward", "br_flood", "br_handle_frame", "br_handle_frame_finish", "ip6_pkt_drop"}
)


def veth_down(case: Case) -> Match | None:
    """The link between a pod and its node is down, and the packet was to cross it."""
    if case.answered or any(not _dead_end(death) for death in case.deaths):
        return None
    client, backend = case.flow.original.saddr, case.backend[0] if case.backend else None
    wires = case.around.wires
    requests, replies = case.flow.requests, case.flow.replies
    for address, packets, outward in (
        (client, requests, True),
        (backend, requests, False),
        (backend, replies, True),
        (client, replies, False),
    ):
        wire = wires.get(address) if address is not None else None
        if wire is None or not _stopped_at(case, wire, packets, outward):
            continue
        down = _end_that_is_down(case, wire)
        if down is not None:
            return _down(case, wire, *down, packets)
    return None


def _dead_end(death: Death) -> bool:
    return death.reason in _DEAD_END_REASONS or (death.reason in UNSPECIFIED and death.symbol in _DEAD_END_SYMBOLS)


def _stopped_at(case: Case, wire: Wire, packets: list[Packet], outward: bool) -> bool:
    """The packets came as far as this link, and none has crossed it."""
    if not case.flow.packets:
        return outward and packets is not case.flow.replies and _refused_to_send(case, wire.netns)
    if outward:
        return bool(packets) and all(e.netns == wire.netns for p in packets for e in p.events)
    near = any(e.netns == wire.far_netns for p in packets for e in p.events)
    return near and not any(p.received_in(wire.netns) for p in packets)


def _refused_to_send(case: Case, netns: int) -> bool:
    rises = case.around.rises.get(netns, {})
    return bool(case.around.send_errors or rises.get("Ip.OutNoRoutes") or rises.get("Ip6OutNoRoutes"))


def _end_that_is_down(case: Case, wire: Wire) -> tuple[int, str] | None:
    """The end that is switched off; where that cannot be seen, the one that has lost its carrier."""
    links = [((netns, name), case.around.links.get(netns, {}).get(name)) for netns, name in _ends(wire)]
    off = next((end for end, link in links if link is not None and not link.up), None)
    return off or next((end for end, link in links if link is not None and not link.carrier), None)


def _ends(wire: Wire) -> list[tuple[int, str]]:
    ends = [(wire.netns, wire.device)]
    if wire.far_netns is not None and wire.far_device is not None:
        ends.append((wire.far_netns, wire.far_device))
    return ends


def _down(case: Case, wire: Wire, netns: int, device: str, packets: list[Packet]) -> Match:
    direction = packets[0].direction if packets else Direction.REQUEST
    death = next((d for d in case.deaths if d.direction is direction), None)
    where, pod = _spot(case, netns, device), _owner(case, wire.netns)
    whose = f"its device {device}" if netns == wire.netns else f"{device}, the link of {pod},"
    ended = words.ended(case, death) if packets else "NOT SENT"
    if direction is Direction.REPLY:
        ended = "REPLY LOST"
    states = []
    for inum, name in _ends(wire):
        link = case.around.links.get(inum, {}).get(name)
        if link is not None:
            states.append(f"link {name} of {_owner(case, inum)}: {_state(link)}")
    inside = words.enter(case, netns)
    return Match(
        title=f"{ended} {'by' if not packets else 'on'} {words.owner(case, where)}: {whose} is down",
        where=where,
        why=f"{wire.device} is the link between {pod} and its node, and one end of it is switched off.",
        evidence=(
            *states,
            *((words.seen(case, packets[-1].last),) if packets and death is None else ()),
            *((f"kfree_skb: {words.reason(death)}, {words.device(death.event)}",) if death else ()),
        ),
        fix=(
            f"{inside}ip link set {shlex.quote(device)} up",
            "# A device that was switched off has lost its routes: if that does not help, make the pod anew.",
        ),
        direction=direction,
    )


def link_down(case: Case) -> Match | None:
    """The device that it was to leave by is switched off, or nothing is at the other end."""
    for death in words.fatal(case):
        name, netns = death.event.ifname, death.event.netns
        state = case.around.links.get(netns, {}).get(name)
        refused = death.reason == "QDISC_DROP" or (death.reason in UNSPECIFIED and death.symbol in _NO_QUEUE)
        if not refused or state is None or (state.up and state.carrier):
            continue
        where, inside = words.place(case, death), words.enter(case, netns)
        what = "is switched off" if not state.up else "has no carrier"
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, where)}: {name} {what}",
            where=where,
            why=f"The way to the next hop leads out of {name}, and nothing can be sent there: the device {what}.",
            evidence=(*words.evidence(case, death), f"link {name}: {_state(state)}"),
            fix=(
                f"{inside}ip -s link show dev {shlex.quote(name)}",
                f"{inside}ip link set {shlex.quote(name)} up"
                if not state.up
                else "# Look at what it is connected to: the cable, the switch port, the other end of a virtual link.",
            ),
            direction=death.direction,
        )
    return None


# Where the queue of a device without carrier (noop_enqueue) gives a packet back.
_NO_QUEUE: Final = frozenset({"__dev_queue_xmit", "__dev_xmit_skb", "kfree_skb_list", "kfree_skb_list_reason"})


def _state(link: Link) -> str:
    if not link.up:
        return "switched off"
    return "up" if link.carrier else "up, no carrier"


def _spot(case: Case, netns: int, device: str | None = None) -> Place:
    owner = case.owner(netns)
    return Place(netns=netns, node=owner.node, pod=pod_name(owner, netns), device=device)


def _owner(case: Case, netns: int) -> str:
    return words.owner(case, _spot(case, netns))


_BRIDGE_NF: Final = {4: "net.bridge.bridge-nf-call-iptables", 6: "net.bridge.bridge-nf-call-ip6tables"}


def bridge_nf_off(case: Case) -> Match | None:
    """The reply crossed a bridge that does not show its frames to netfilter: the translation was not undone."""
    dnat, original = case.flow.dnat, case.flow.original
    if dnat is None or case.answered:
        return None
    setting = _BRIDGE_NF[original.daddr.version]
    for death in case.deaths:
        header = death.event.packet
        arrived = death.direction is Direction.REPLY and death.event.netns == case.around.client_netns
        if header is None or not arrived or not words.no_socket(death) or (header.saddr, header.sport) != dnat:
            continue
        for netns, ports in _bridged(case, death.packet).items():
            if case.around.settings.get(netns, {}).get(setting) != 0:
                continue
            where = _spot(case, netns, ports[-1])
            inside = words.enter(case, netns)
            return Match(
                title=f"REPLY LOST on {words.owner(case, where)}: {setting} is 0, the reply was not translated back",
                where=where,
                why=f"The client asked {original.daddr} and got an answer from {header.saddr}, which it knows nothing "
                "of. Both pods are ports of one bridge, and the bridge does not show the frames to netfilter, which "
                "has to put the Service's address back.",
                evidence=(
                    *words.evidence(case, death),
                    f"the reply crossed the bridge from {ports[0]} to {ports[-1]} with the pod's address",
                    f"sysctl {setting} = 0",
                ),
                fix=(
                    f"{inside}sysctl -w {setting}=1",
                    "# To make it last: echo br_netfilter > /etc/modules-load.d/kubernetes.conf",
                    f"# and: echo '{setting} = 1' > /etc/sysctl.d/99-kubernetes.conf",
                ),
                direction=Direction.REPLY,
            )
    return None


def _bridged(case: Case, packet: Packet) -> dict[int, list[str]]:
    """By netns: the ports by which the packet came in and went out of one bridge, with one and the same header."""
    found: dict[int, list[str]] = {}
    for netns in dict.fromkeys(e.netns for e in packet.events):
        links = case.around.links.get(netns, {})
        spots = [e for e in packet.events if e.netns == netns and e.probe in AT_DEVICE and e.ifname in links]
        masters = {links[e.ifname].master for e in spots}
        if len(spots) > 1 and len(masters) == 1 and None not in masters and len({e.packet for e in spots}) == 1:
            found[netns] = [e.ifname for e in spots]
    return found
