"""Findings about size: packets that fit no device on their way, and connections that hang over it.

The handshake's packets are small, so such a connection always stands. What is too big is either cut (no DF bit), or
dies while an ICMP error tells its sender the size that fits. Where that error dies too, nobody learns anything.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from k8snet.event import Encap, Event
from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction, Packet

TOO_BIG: Final = ((3, 4), (2, 0))  # ICMP "fragmentation needed", ICMPv6 "packet too big"
_FORWARDS: Final = ("ip_forward", "ip6_forward")
_CUTS: Final = ("ip_fragment", "ip6_fragment")  # the device is the one that it was to leave by
_PEERS: Final = ("__dev_forward_skb2", "__dev_forward_skb", "veth_forward_skb", "veth_xmit")
_PORTS: Final = ("br_dev_queue_push_xmit", "br_nf_dev_queue_xmit", "__br_forward")
_ETHERNET: Final = 14
_OVERHEAD: Final = {Encap.VXLAN: 50, Encap.GENEVE: 50, Encap.IPIP: 20}  # with an IPv4 header outside


@dataclass(frozen=True, slots=True)
class Limit:
    """The device that the packet did not fit."""

    netns: int
    device: str
    mtu: int


def size(death: Death) -> int:
    """How many bytes of IP packet did not fit; of a GSO skb, one segment."""
    event = death.event
    at_ip = event.len - (_ETHERNET if death.symbol in _PEERS else 0)
    return at_ip - event.payload_len + event.gso_size if event.gso_size else at_ip


def limit(case: Case, death: Death) -> Limit | None:
    """The device that it was to leave by, or whose other end was to take it; None when that is not known."""
    event = death.event
    netns, device = event.netns, event.ifname
    if death.symbol in _FORWARDS:
        route = case.route(event)
        device = route.device if route is not None else ""
    elif death.symbol in _PEERS:
        netns, device = _other_end(case, event)
    link = case.around.links.get(netns, {}).get(device)
    return Limit(netns, device, link.mtu) if link is not None else None


def _other_end(case: Case, event: Event) -> tuple[int, str]:
    for wire in case.around.wires.values():
        if (event.netns, event.ifname) == (wire.netns, wire.device):
            return wire.far_netns or 0, wire.far_device or ""
        if (event.netns, event.ifname) == (wire.far_netns, wire.far_device):
            return wire.netns, wire.device
    return 0, ""


def _told(case: Case) -> list[Packet]:
    """The ICMP errors that say which size would fit."""
    return [p for p in case.flow.icmp_errors if p.key.icmp in TOO_BIG]


def _is_too_big(case: Case, death: Death) -> bool:
    if death.packet.is_icmp_error:
        return False
    if death.reason == "PKT_TOO_BIG":
        return True
    if death.reason not in UNSPECIFIED:
        return False
    if death.symbol in _CUTS:
        return True  # it fragments what may be fragmented, and drops the rest
    narrow = limit(case, death) if death.symbol in (*_FORWARDS, *_PEERS, *_PORTS) else None
    return narrow is not None and size(death) > narrow.mtu


def _too_big(case: Case) -> Death | None:
    """A packet that was too big, and whose data never arrived."""
    return next((d for d in reversed(words.fatal(case)) if _is_too_big(case, d)), None)


def _fits(narrow: Limit | None, death: Death) -> str:
    """What is too big for what, for a title."""
    if narrow is None:
        return f"{size(death)} bytes are more than the MTU of the next device"
    if size(death) <= narrow.mtu:
        return f"{size(death)} bytes do not fit a route by {narrow.device}, whose MTU is smaller than the device's"
    return f"{size(death)} bytes do not fit {narrow.device}, whose MTU is {narrow.mtu}"


def _measured(case: Case, death: Death, narrow: Limit | None) -> tuple[str, ...]:
    """The sizes on the way."""
    lines = []
    if narrow is not None:
        owner = words.owner(case, words.at(case, death.event._replace(netns=narrow.netns)))
        lines.append(f"MTU of {narrow.device} of {owner}: {narrow.mtu}")
    for side, address in (("client", case.flow.original.saddr), ("server", case.backend[0] if case.backend else None)):
        wire = case.around.wires.get(address) if address is not None else None
        link = case.around.links.get(wire.netns, {}).get(wire.device) if wire else None
        if wire and link and (narrow is None or (wire.netns, wire.device) != (narrow.netns, narrow.device)):
            lines.append(f"MTU of the {side}'s {wire.device}: {link.mtu}")
    return tuple(lines)


def _smaller(case: Case, death: Death, narrow: Limit | None) -> tuple[str, ...]:
    """Commands that make it fit."""
    event = death.event
    if narrow is None:
        return (f"{words.enter(case, event.netns)}ip link show",)
    inside = words.enter(case, narrow.netns)
    if death.symbol in (*_PEERS, *_PORTS):
        bridged = death.symbol in _PORTS
        came = next((e.ifname for e in death.packet.events if bridged and e.netns == event.netns), event.ifname)
        link = case.around.links.get(event.netns, {}).get(came)
        mtu = max(link.mtu if link is not None else 0, size(death))
        return (
            f"# {'All ports of a bridge' if bridged else 'Both ends of a veth pair'} need the same MTU:",
            f"{inside}ip link set dev {shlex.quote(narrow.device)} mtu {mtu}",
        )
    overhead = _OVERHEAD.get(event.encap, 0) + (20 if event.outer and event.outer.saddr.version == 6 else 0)
    room = narrow.mtu - overhead
    if not overhead:
        return (*_for_sender(case, death, room), *_clamp(case, inside))
    tunnel = next((e.ifname for e in reversed(death.packet.events) if e.netns == event.netns and not e.outer), "")
    return (
        f"# The tunnel's own headers take {overhead} bytes of the {narrow.mtu}: {room} are left inside.",
        *((f"{inside}ip link set dev {shlex.quote(tunnel)} mtu {room}",) if tunnel else ()),
        *_for_sender(case, death, room),
        *_clamp(case, inside),
    )


def _for_sender(case: Case, death: Death, room: int) -> tuple[str, ...]:
    request = death.direction is Direction.REQUEST
    sender = case.flow.original.saddr if request else (case.backend or (case.flow.original.daddr,))[0]
    wire = case.around.wires.get(sender)
    known = (f"{words.enter(case, wire.netns)}ip link set dev {shlex.quote(wire.device)} mtu {room}",) if wire else ()
    return (f"# Give pods an MTU of {room} in the CNI's configuration; new pods get it. For the sender of now:", *known)


def _clamp(case: Case, inside: str) -> tuple[str, ...]:
    if not case.tcp:
        return ()
    return (
        "# Until then, let the node lower what TCP agrees on in its handshake:",
        f"{inside}{words.iptables(case)} -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN "
        "-j TCPMSS --clamp-mss-to-pmtu",
    )


def mtu_blackhole(case: Case) -> Match | None:
    """A packet was too big, and the ICMP error that would have told its sender was dropped."""
    death = _too_big(case)
    told = {id(p) for p in _told(case)}
    eaten = next((d for d in reversed(case.deaths) if id(d.packet) in told), None)
    if death is None or eaten is None:
        return None
    narrow, where, rule = limit(case, death), words.place(case, eaten), eaten.rule
    by = f"in {rule.chain}" if rule else f"in {(eaten.hook or eaten.symbol or 'the kernel').upper()}"
    return Match(
        title=f"{_ended(death)} on {words.owner(case, words.at(case, death.event))}: {_fits(narrow, death)}; "
        f"the {words.label(eaten.packet)} that says so is dropped {by}",
        where=where,
        why="Small packets pass, so a connection stands. A big one is lost, and its sender never learns which size "
        "would fit: it sends the same again until it gives up.",
        evidence=(
            *words.evidence(case, death),
            *_measured(case, death, narrow),
            f"{words.label(eaten.packet)}: kfree_skb: {words.reason(eaten)}, {words.device(eaten.event)}",
            *((f"{rule.by}: {rule.table} {rule.chain}: {rule.text}",) if rule else ()),
        ),
        fix=(
            f"# Let {words.label(eaten.packet)} pass:",
            *words.mend_rule(case, eaten),
            *_smaller(case, death, narrow),
        ),
        direction=death.direction,
        named_by=rule.by if rule else None,
    )


def mtu_exceeded(case: Case) -> Match | None:
    """A packet was too big for a device, and its data never arrived."""
    death = _too_big(case)
    if death is None:
        return None
    narrow = limit(case, death)
    where = words.place(case, death)
    told = next(iter(_told(case)), None)
    return Match(
        title=f"{_ended(death)} on {words.owner(case, where)}: {_fits(narrow, death)}",
        where=where,
        why="The packet may not be cut in pieces there, and its sender goes on sending this size"
        + (", although it was told." if told else ": nobody told it which one fits."),
        evidence=(
            *words.evidence(case, death),
            *_measured(case, death, narrow),
            *((f"{words.label(told)} was last seen: {words.seen(case, told.last)}",) if told else ()),
        ),
        fix=_smaller(case, death, narrow),
        direction=death.direction,
    )


def pmtu_discovered(case: Case) -> Match | None:
    """A packet was too big, its sender was told, and its data came through in smaller ones."""
    death = next((d for d in case.deaths if _is_too_big(case, d)), None)
    if death is None or not case.tcp or not case.served or words.fatal(case) or not _told(case):
        return None
    narrow, where = limit(case, death), words.place(case, death)
    return Match(
        title=f"SLOWER on {words.owner(case, where)}: {_fits(narrow, death)}; its sender was told and sends less",
        where=where,
        why="Path MTU discovery did what it is for. It costs each new destination one lost packet, and it works only "
        "as long as nothing drops the ICMP error.",
        evidence=(*words.evidence(case, death), *_measured(case, death, narrow)),
        fix=_smaller(case, death, narrow),
        direction=death.direction,
    )


def data_stalled(case: Case) -> Match | None:
    """The connection stands, its data is sent again and again, and nobody acknowledges it."""
    tries = case.stalled
    if not tries:
        return None
    last = tries[-1].last
    where = words.at(case, last)
    took = (tries[-1].first.ktime_ns - tries[0].first.ktime_ns) / 1e9
    way = case.flow.directed(tries[0].direction)
    came = max((p.key.payload_len for p in way if p.key.payload_len and case.acknowledged(p)), default=0)
    client = words.enter(case, case.around.client_netns or 0)
    server = (case.backend or (case.flow.original.daddr,))[0]
    return Match(
        title=f"NO REPLY: the connection stands, its data is never acknowledged; last seen on "
        f"{words.owner(case, where)}" + (f" at {last.ifname}" if last.ifname else ""),
        where=where,
        why=f"The {tries[0].direction.value}'s data left again and again, and nothing on this node dropped it. Behind "
        "that device it was lost, or the other end could not take it.",
        evidence=(
            f"{tries[-1].key.payload_len} bytes were sent {len(tries)} times in {took:.1f} s and never acknowledged",
            words.seen(case, last),
            f"the most data that a packet brought through: {came} bytes"
            if came
            else "no packet with data came through",
        ),
        fix=(
            "# Does the size matter? Look which one still comes through with the DF bit set:",
            f"{client}ping -c 3 -M do -s 1472 {server}",
            f"{client}ping -c 3 -M do -s 1372 {server}",
            "# Run k8snet trace with the same --from and --to on the node of the other end.",
        ),
        direction=tries[0].direction,
        also=(
            "an MTU smaller than the devices of this node know, behind it, where ICMP errors are dropped",
            "a firewall between the nodes that forgot the connection",
        ),
    )


def _ended(death: Death) -> str:
    return "REPLY LOST" if death.direction is Direction.REPLY else "DROPPED"
