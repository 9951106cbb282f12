"""Packets and flows: the events that belong together.

A `Packet` is what one host sent once: the same bytes seen at many hops, under changing addresses (NAT) and in
changing skbs. A `Flow` is one connection (TCP), one query (DNS, ICMP echo) or one UDP conversation: its packets in
both directions. Nothing here says what is wrong; that is `k8snet.findings`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import StrEnum

from k8snet.event import Address, Encap, Event, FiveTuple, ProbeId, TcpFlag
from k8snet.kernel.ruletrace import RuleStep

SCTP_ABORT = 6  # RFC 9260, section 3.2: the type of a chunk

# Events that say an skb is at a device; everything else is about sockets, routes or neighbours.
AT_DEVICE = (ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB)


# Of one flow so many packets are kept: the handshake, the end, and between them those that something happened to.
# Guesses: a window of full size is some 40 GSO skbs, and a report draws one packet a direction.
KEEP_FIRST, KEEP_LAST, KEEP_MOST = 32, 256, 1024


class Direction(StrEnum):
    """Conntrack's two directions: who sent the first packet is the client."""

    REQUEST = "request"
    REPLY = "reply"

    @property
    def opposite(self) -> Direction:
        """The other direction."""
        return Direction.REPLY if self is Direction.REQUEST else Direction.REQUEST


@dataclass(frozen=True, slots=True)
class PacketKey:
    """What stays the same in one packet across NAT, veth, bridge and tunnel (and differs in a retransmission)."""

    direction: Direction
    icmp_error: bool
    ip_id: int
    seq: int
    payload_len: int
    tcp_flags: int
    icmp: tuple[int, int]  # type and code, 0 for other protocols

    @classmethod
    def of(cls, event: Event, direction: Direction) -> PacketKey:
        """The key of the packet that `event` saw."""
        error = event.encap is Encap.ICMP_ERROR
        # IPv6 numbers fragments only, and anew where conntrack has put them together on the way.
        numbered = event.packet is not None and event.packet.daddr.version == 4
        return cls(
            direction,
            error,
            event.ip_id if numbered else 0,
            event.seq,
            event.payload_len,
            event.tcp_flags,
            (event.icmp_type, event.icmp_code) if error else (0, 0),
        )


@dataclass(slots=True)
class Packet:
    """One packet and everything that saw it, in order."""

    direction: Direction
    key: PacketKey
    events: list[Event] = field(default_factory=list)
    rules: list[RuleStep] = field(default_factory=list)

    @property
    def first(self) -> Event:
        """The event where it was first seen."""
        return self.events[0]

    @property
    def last(self) -> Event:
        """The event where it was last seen."""
        return self.events[-1]

    @property
    def dropped(self) -> bool:
        """A kfree_skb belongs to it (which need not be a loss)."""
        return any(e.probe is ProbeId.KFREE_SKB for e in self.events)

    @property
    def is_icmp_error(self) -> bool:
        """It is an ICMP error about this flow, not a packet of it."""
        return self.key.icmp_error

    @property
    def is_ipv6(self) -> bool:
        """Of its two families, IPv6: ICMP's numbers mean other things there."""
        return self.first.packet is not None and self.first.packet.daddr.version == 6

    @property
    def is_unreachable(self) -> bool:
        """An ICMP error that says no; "fragmentation needed" only asks for smaller packets."""
        kind, code = self.key.icmp
        return self.is_icmp_error and (kind == 1 if self.is_ipv6 else kind == 3 and code != 4)

    def has(self, flags: TcpFlag, without: int = 0) -> bool:
        """It is a TCP packet of this flow with all of `flags` and none of `without`."""
        return (
            not self.is_icmp_error
            and self.first.packet is not None
            and self.first.packet.protocol == socket.IPPROTO_TCP
            and self.key.tcp_flags & flags == flags
            and not self.key.tcp_flags & without
        )

    @property
    def is_syn(self) -> bool:
        """The first packet of a TCP connection (or its retransmission)."""
        return self.has(TcpFlag.SYN, without=TcpFlag.ACK)

    @property
    def is_syn_ack(self) -> bool:
        """The server's answer to a SYN."""
        return self.has(TcpFlag.SYN | TcpFlag.ACK)

    @property
    def is_rst(self) -> bool:
        """A reset, or what SCTP calls an abort."""
        return self.has(TcpFlag.RST) or (self.is_sctp and self.first.icmp_type == SCTP_ABORT)

    @property
    def is_sctp(self) -> bool:
        """A packet of an SCTP association."""
        header = self.first.packet
        return not self.is_icmp_error and header is not None and header.protocol == socket.IPPROTO_SCTP

    def received_in(self, netns: int | None) -> bool:
        """It came in by a device of `netns`."""
        return any(e.probe is ProbeId.NETIF_RECEIVE_SKB and e.netns == netns for e in self.events)

    def sent_from(self, netns: int | None) -> bool:
        """Its way begins in `netns`."""
        return self.first.netns == netns

    def seen_at(self, event: Event) -> bool:
        """The probe of `event` has already seen this packet at that device: a second time is another packet."""
        return any(
            e.probe is event.probe and e.ifindex == event.ifindex and e.netns == event.netns for e in self.events
        )


@dataclass(slots=True)
class Flow:
    """One connection or query."""

    original: FiveTuple  # as the client sent it
    exchange: int = 0  # DNS transaction id, ICMP echo sequence: tells the queries of one socket apart
    packets: list[Packet] = field(default_factory=list)
    socket_events: list[Event] = field(default_factory=list)  # states, retransmissions, resets, buffers
    ct_orig: FiveTuple | None = None  # of the netns that translates (the node), else the first one seen
    ct_reply: FiveTuple | None = None
    ct_status: int = 0  # CtStatus bits
    forgotten: int = 0  # packets that came through and are no longer in `packets`
    by_key: dict[PacketKey, list[Packet]] = field(default_factory=dict, repr=False)

    def add(self, packet: Packet) -> None:
        """Take one more packet; of a long connection the middle is forgotten, as far as it was uneventful."""
        self.packets.append(packet)
        self.by_key.setdefault(packet.key, []).append(packet)
        if len(self.packets) >= KEEP_MOST:
            self._forget()

    def _forget(self) -> None:
        first, middle, last = self.packets[:KEEP_FIRST], self.packets[KEEP_FIRST:-KEEP_LAST], self.packets[-KEEP_LAST:]
        # What was dropped and came through the second time is no event any more.
        through = {(p.direction, p.key.seq) for p in (*middle, *last) if not p.dropped}
        eventful = [p for p in middle if p.is_icmp_error or (p.dropped and (p.direction, p.key.seq) not in through)]
        self.forgotten += len(middle) - len(eventful)
        self.packets = [*first, *eventful[-KEEP_LAST:], *last]
        self.by_key = {}
        for packet in self.packets:
            self.by_key.setdefault(packet.key, []).append(packet)

    def directed(self, direction: Direction) -> list[Packet]:
        """Its packets in one direction, without ICMP errors."""
        return [p for p in self.packets if p.direction is direction and not p.is_icmp_error]

    @property
    def requests(self) -> list[Packet]:
        """Packets from the client."""
        return self.directed(Direction.REQUEST)

    @property
    def replies(self) -> list[Packet]:
        """Packets from the server."""
        return self.directed(Direction.REPLY)

    @property
    def icmp_errors(self) -> list[Packet]:
        """ICMP errors that quote one of its packets."""
        return [p for p in self.packets if p.is_icmp_error]

    @property
    def started_ns(self) -> int:
        """When it was first seen, CLOCK_MONOTONIC."""
        return self.packets[0].first.ktime_ns if self.packets else self.socket_events[0].ktime_ns

    @property
    def dnat(self) -> tuple[Address, int] | None:
        """Where conntrack sends it instead of where the client sent it."""
        if self.ct_orig is None or self.ct_reply is None:
            return None
        backend = (self.ct_reply.saddr, self.ct_reply.sport)
        return None if backend == (self.ct_orig.daddr, self.ct_orig.dport) else backend

    @property
    def snat(self) -> tuple[Address, int] | None:
        """Whom the server sees instead of the client."""
        if self.ct_orig is None or self.ct_reply is None:
            return None
        source = (self.ct_reply.daddr, self.ct_reply.dport)
        return None if source[0] == self.ct_orig.saddr else source
