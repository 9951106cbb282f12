"""How far two nodes' clocks are apart, as the packets say that both have seen.

In: the events of both nodes, each with the monotonic clock of its own kernel (since boot: seconds or months apart).
Out: a `Shift`. As NTP does it (RFC 5905, section 8): a packet cannot come in before it has left, so each one that
crossed bounds the difference from one side, and request and reply together from both. One way only: an order, no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from k8snet.event import Encap, Event, FiveTuple, ProbeId

_STEP_NS: Final = 1_000  # no wire is faster: where only an order is known, so much is between leaving and coming in
# What stays the same in a packet on its way from one node to the other: behind all NAT, before or inside the tunnel.
_Key = tuple[FiveTuple, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Shift:
    """What to take from the other node's times to have this one's."""

    ns: int
    within_ns: int | None = None  # the truth is no further away; None: not known
    there: int = 0  # packets that crossed from this node to the other ...
    back: int = 0  # ... and from the other one to this

    @property
    def measured(self) -> bool:
        """Packets say so, in one direction at least."""
        return bool(self.there or self.back)

    def sentence(self, here: str, other: str) -> str:
        """For the reader: which clock is ahead, by how much, and how that is known."""
        ahead = f"{other}'s clock is {abs(self.ns) / 1e6:.3f} ms {'ahead of' if self.ns >= 0 else 'behind'} {here}'s"
        if not self.measured:
            return f"no packet was seen on both nodes: their times are compared by their wall clocks, {ahead}"
        if self.within_ns is None:
            way = f"{here} to {other}" if self.there else f"{other} to {here}"
            return (
                f"packets crossed from {way} only: of times on different nodes the order is known, not the difference"
            )
        return (
            f"{ahead}, ± {self.within_ns / 1e6:.3f} ms, by packets that crossed: {self.there} there, {self.back} back"
        )


def shift(here: Iterable[Event], other: Iterable[Event], wall_ns: int) -> Shift:
    """The difference between two nodes; `wall_ns`: what it is if their wall clocks are right, as the last resort."""
    ours, theirs = _ends(here), _ends(other)
    above, below = [], []
    for same in ours.keys() & theirs.keys():
        one, two = ours[same], theirs[same]
        if one is None or two is None:
            continue
        (first, last), (their_first, their_last) = one, two
        crossed = _leaves(last) and _comes_in(their_first)
        came_back = _leaves(their_last) and _comes_in(first)
        if crossed and not came_back:
            above.append(their_first.ktime_ns - last.ktime_ns)
        elif came_back and not crossed:
            below.append(their_last.ktime_ns - first.ktime_ns)
    there, back = len(above), len(below)
    if above and below:
        least, most = max(below), min(above)
        return Shift((least + most) // 2, (abs(most - least) + 1) // 2, there, back)
    if above:
        return Shift(min(above) - _STEP_NS, None, there, back)
    if below:
        return Shift(max(below) + _STEP_NS, None, there, back)
    return Shift(wall_ns)


def _ends(events: Iterable[Event]) -> dict[_Key, tuple[Event, Event] | None]:
    """Where each packet was seen first and last on one node; None for keys that several packets have."""
    seen: dict[_Key, list[Event]] = {}
    for event in events:
        if event.packet is not None and event.encap is not Encap.ICMP_ERROR and (_leaves(event) or _comes_in(event)):
            key = (event.packet, event.ip_id, event.seq, event.payload_len, event.tcp_flags, event.ack)
            seen.setdefault(key, []).append(event)
    found: dict[_Key, tuple[Event, Event] | None] = {}
    for key, alike in seen.items():
        alike.sort(key=lambda e: e.ktime_ns)
        several = len({(e.probe, e.netns, e.ifindex) for e in alike}) < len(alike)
        found[key] = None if several else (alike[0], alike[-1])
    return found


def _leaves(event: Event) -> bool:
    return event.probe is ProbeId.NET_DEV_QUEUE


def _comes_in(event: Event) -> bool:
    return event.probe is ProbeId.NETIF_RECEIVE_SKB
