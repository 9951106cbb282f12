"""A packet's events as hops: the way that the report draws.

The kernel shows a packet at devices only. What happened between two devices (a translation, a drop in a hook) is put
in as a hop of its own, at the time of the event that showed it. Copies that a bridge floods to other pods are left
out: the way of a packet is the way of the copy that got furthest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from k8snet.cluster.interfaces import Owner, Role
from k8snet.event import Encap, Event, FiveTuple, ProbeId, end_of
from k8snet.findings.case import Death, pod_name
from k8snet.flow.model import AT_DEVICE, Direction, Packet
from k8snet.report import Hop


@dataclass(frozen=True, slots=True)
class Surface:
    """What the path needs to know of this machine."""

    owners: Mapping[int, Owner]
    parties: frozenset[int]  # netns of client and backend: other pods only see flooded copies


def hops(
    packet: Packet,
    surface: Surface,
    death: Death | None = None,
    chains: str | None = None,
    asked: FiveTuple | None = None,
) -> tuple[Hop, ...]:
    """The way of `packet`, as `sightings` has it, with its death where it was seen last."""
    way = [hop for _, hop in sightings(packet, surface, death, chains, asked)]
    if death is not None and len(way) > 1:
        here, end = way[-2:]
        # What dies at a device died coming in by it, or going out: where it was seen there last.
        if end.device and (here.netns, here.device) == (end.netns, end.device):
            way[-2:] = [replace(here, verdict=end.verdict, detail=end.detail)]
        elif (here.netns, here.direction, end.direction) == (end.netns, "out", "in"):
            way[-1] = replace(end, direction="out")  # from device to device, deeper down: a tunnel's, a bridge's port
    return tuple(way)


def sightings(
    packet: Packet,
    surface: Surface,
    death: Death | None = None,
    chains: str | None = None,
    asked: FiveTuple | None = None,
) -> list[tuple[Event, Hop]]:
    """Each hop of `packet` with the event that showed it; `chains`: what chose the backend, for the DNAT line.

    `asked`: what the client's process asked for, where the packet begins or ends in its netns: that netns may translate
    it before the first device or after the last.
    """
    way: list[tuple[Event, Hop]] = []
    start = packet.first.ktime_ns
    before = asked if packet.direction is Direction.REQUEST else None
    last: Event | None = None
    for event in _way(packet, surface):
        if event.packet is None:
            continue
        way += _translation(packet, before, event, start, surface, chains, local=not way)
        before, last = event.packet, event
        direction = "out" if event.probe is ProbeId.NET_DEV_QUEUE else "in"
        way.append((event, _hop(event, surface, _us(event, start), direction, event.packet, device=event.ifname)))
    if death is not None and death.event.packet is not None:
        way += _translation(packet, before, death.event, start, surface, chains, local=not way)
        way.append((death.event, _death_hop(death, surface, _us(death.event, start), death.event.packet)))
    elif asked is not None and last is not None and last.packet is not None and packet.direction is Direction.REPLY:
        nat = _nat(packet.direction, last.packet, asked.reversed())
        if nat is not None:
            way.append((last, _hop(last, surface, _us(last, start), "input", asked.reversed(), nat=nat)))
    return way


def _us(event: Event, start_ns: int) -> float:
    return (event.ktime_ns - start_ns) / 1000


def _translation(
    packet: Packet,
    before: FiveTuple | None,
    event: Event,
    start_ns: int,
    surface: Surface,
    chains: str | None,
    *,
    local: bool,
) -> list[tuple[Event, Hop]]:
    """A hop of its own for the NAT between two devices, at the time of the event that showed it.

    `local`: there was no device before.
    """
    header = event.packet
    if before is None or header is None or packet.is_icmp_error:
        return []
    nat = _nat(packet.direction, before, header)
    if nat is None:
        return []
    hook = "postrouting" if nat.startswith(("SNAT to", "DNAT undone")) else "output" if local else "prerouting"
    detail = chains if nat.startswith("DNAT to") else None
    return [(event, _hop(event, surface, _us(event, start_ns), hook, header, nat=nat, detail=detail))]


def _way(packet: Packet, surface: Surface) -> list[Event]:
    seen = [e for e in packet.events if e.probe in AT_DEVICE]
    # A copy flooded to a third pod: that pod's netns, and the same skb at the port towards it.
    strangers = {
        e.skb
        for e in seen
        if surface.parties and e.netns not in surface.parties and surface.owners.get(e.netns, Owner()).role is Role.POD
    }
    kept = [e for e in seen if e.skb not in strangers]
    return kept or seen


def _nat(direction: Direction, before: FiveTuple, now: FiveTuple) -> str | None:
    """What translated the header since the hop before, in words; None when nothing did."""
    steps = []
    if (before.daddr, before.dport) != (now.daddr, now.dport):
        to = end_of(now.daddr, now.dport)
        steps.append(f"DNAT to {to}" if direction is Direction.REQUEST else f"SNAT undone: to {to}")
    if (before.saddr, before.sport) != (now.saddr, now.sport):
        source = end_of(now.saddr, now.sport)
        steps.append(f"SNAT to {source}" if direction is Direction.REQUEST else f"DNAT undone: from {source}")
    return ", ".join(steps) or None


def _hop(
    event: Event,
    surface: Surface,
    us: float,
    direction: str,
    header: FiveTuple,
    *,
    device: str | None = None,
    nat: str | None = None,
    detail: str | None = None,
) -> Hop:
    owner = surface.owners.get(event.netns, Owner())
    encap = None
    if device and event.encap in (Encap.VXLAN, Encap.GENEVE, Encap.IPIP) and event.outer is not None:
        encap = f"{event.encap.name.lower()} {event.outer.saddr} > {event.outer.daddr}"
    return Hop(
        us=us,
        netns=event.netns,
        node=owner.node,
        pod=pod_name(owner, event.netns),
        device=device,
        direction=direction,
        header=header,
        nat=nat,
        encap=encap,
        detail=detail,
    )


def _death_hop(death: Death, surface: Surface, us: float, header: FiveTuple) -> Hop:
    event, rule = death.event, death.rule
    owner = surface.owners.get(event.netns, Owner())
    if rule is not None:
        policy = f"policy {rule.text.split()[-1].upper()}"
        verdict = policy if rule.policy else ("REJECT" if rule.rejects else "DROP")
        detail = f"table {rule.table} chain {rule.chain}"
    elif death.netfilter:
        verdict, detail = "DROP", f"table {event.table}" if event.table else ""
    else:
        verdict, detail = death.reason or "DROP", f"in {death.symbol}" if death.symbol else ""
    return Hop(
        us=us,
        netns=event.netns,
        node=owner.node,
        pod=pod_name(owner, event.netns),
        device=None if death.hook else (event.ifname or None),
        direction=death.hook or "in",
        header=header,
        verdict=verdict,
        detail=detail or None,
    )
