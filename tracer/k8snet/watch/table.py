"""Records kept together until they are worth decoding: beginnings of connections, and packets that died.

A TCP handshake is known by the client's initial sequence number: no NAT changes it, and each packet of it has it (a
SYN-ACK and a refusal acknowledge it). What else dies is kept by its tuple. A healthy handshake is told by its records'
bytes alone, in a microsecond each; all others become a `Flow`. Numbers may meet (two of 5,000 open handshakes, once in
a year of 2,000 connections a second): the correlator then tells their packets apart by their addresses.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from k8snet.event import LAYOUT, BadRecordError, CtStatus, Encap, Event, ProbeId, TcpFlag
from k8snet.flow.correlate import Correlator
from k8snet.flow.model import Flow

DNS_PORT: Final = 53
KEPT: Final = 48  # records of one flow: five hops of a SYN that was sent four times, and the answers
_HASH: Final = 2654435761
_EPHEMERAL: Final = 32768  # net.ipv4.ip_local_port_range begins there

_TCP, _UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
_WITH_PORTS: Final = (_TCP, _UDP, int(socket.IPPROTO_SCTP))
_SYN, _RST, _ACK = int(TcpFlag.SYN), int(TcpFlag.RST), int(TcpFlag.ACK)
_ICMP_ERROR: Final = int(Encap.ICMP_ERROR)
_QUEUE, _RECEIVE = int(ProbeId.NET_DEV_QUEUE), int(ProbeId.NETIF_RECEIVE_SKB)
_KFREE, _ICMP_SEND = int(ProbeId.KFREE_SKB), int(ProbeId.ICMP_SEND)
_SEND_RESET, _RECEIVE_RESET = int(ProbeId.TCP_SEND_RESET), int(ProbeId.TCP_RECEIVE_RESET)
_RETRANSMIT: Final = int(ProbeId.TCP_RETRANSMIT_SKB)
_OPPOSITE: Final = {_QUEUE: _RECEIVE, _RECEIVE: _QUEUE}
_OF_CLASHES: Final = int(ProbeId.NF_CT_RESOLVE_CLASH)


class Glance(NamedTuple):
    """The few fields of a record that say where it belongs; names and meanings are those of `Event`."""

    ktime_ns: int
    netns: int
    ifindex: int
    code: int
    seq: int
    ack: int
    ct_status: int
    payload_len: int
    tcp_flags: int
    pkt_type: int
    probe: int
    encap: int
    saddr: bytes  # of the packet, and the ports in host order
    daddr: bytes
    sport: int
    dport: int
    protocol: int


# ktime; skb, location, cpu are left out; netns, ifindex; skb_iif, len, skb_mark, reason are; code, seq, ack, ct_status;
# ip_id, frag_off; payload_len; GSO, zone, ct_info, ttl; tcp_flags; icmp; pkt_type; hook to cloned; probe, encap; tuple.
_GLANCE: Final = struct.Struct("=Q 16x 4x II 16x i III 4x H 6x 2x B 2x B 3x BB 5x 16s16sHHB 3x")


_WITNESSED: Final = struct.Struct("=64x I 21x B")  # ct_status, probe
_LOST_CLASH: Final = int(CtStatus.CONFIRMED | CtStatus.NAT_CLASH)


def glance(record: bytes) -> Glance:
    """Raises BadRecordError when it is too short for a record."""
    if len(record) < LAYOUT.size:
        raise BadRecordError(f"{len(record)} bytes, expected {LAYOUT.size}")
    return Glance._make(_GLANCE.unpack_from(record))


def number_of(seen: Glance) -> int:
    """What all packets of a connection's beginning (or of a query) share; 0: nothing; see bpf/watch.h."""
    if seen.protocol == _UDP and DNS_PORT in (seen.sport, seen.dport):
        return seen.seq >> 16
    if seen.protocol != _TCP:
        return 0
    if seen.tcp_flags & _ACK:
        return (seen.ack - 1) & 0xFFFF_FFFF if seen.tcp_flags & (_SYN | _RST) else 0
    return seen.seq if seen.tcp_flags & _SYN or seen.encap == _ICMP_ERROR else 0


def is_kept(number: int, shift: int) -> bool:
    """One in 2**shift numbers is; 0, which is no number, always."""
    return not shift or not number or not (number * _HASH & 0xFFFF_FFFF) >> (32 - shift)


@dataclass(slots=True)
class Bag:
    """Records of one flow."""

    number: int  # of a handshake; 0: packets that died
    protocol: int
    place: tuple[int, int, int]  # where its first packet was first seen: probe, netns, ifindex
    started_ns: int
    last_ns: int
    records: list[bytes] = field(default_factory=list)
    answered_ns: int = 0  # when the SYN-ACK came by the same place
    eventful: bool = False  # more than a SYN and its answer
    deaths: int = 0
    refused: bool = False
    doubtful: bool = False  # events were lost since it began
    judged: bool = False
    patient: bool = False  # it waits for a SYN whose rules are traced
    flow: Flow | None = None  # of the records that there were when it was made

    def add(self, seen: Glance, record: bytes) -> None:
        """Take one more record; of very many the middle is forgotten."""
        self.last_ns = max(self.last_ns, seen.ktime_ns)
        self.records.append(record)
        self.flow = None
        if len(self.records) > KEPT:
            del self.records[KEPT // 2]

    @property
    def healthy(self) -> bool:
        """It was answered at once, and nothing else happened to it."""
        return bool(self.answered_ns) and not self.eventful

    def made(self) -> Flow | None:
        """The flow; None when its records tell of no flow."""
        if self.flow is None:
            self.flow = flow_of(self.records)
        return self.flow


_Key = int | tuple[bytes, bytes, int, int, int]  # a number, or the addresses, ports and protocol of what died


class Table:
    """Bags by the number of their handshake, or by the tuple of what died. Bounded: see `evicted`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.shift = 0
        self.evicted = 0
        self.answered = 0  # handshakes that were plainly healthy and are gone
        self._bags: dict[_Key, Bag] = {}

    def __len__(self) -> int:
        return len(self._bags)

    def __iter__(self) -> Iterator[Bag]:
        return iter(self._bags.values())

    def take(self, seen: Glance, record: bytes) -> bool:
        """Put a record where it belongs; False when it belongs nowhere."""
        if seen.protocol == _TCP:
            number = number_of(seen)
            if number and not is_kept(number, self.shift):
                return True
            if number and self._handshake(number, seen, record):
                return True
        if seen.probe not in (_KFREE, _ICMP_SEND) and seen.encap != _ICMP_ERROR:
            return False
        return self._death(seen, record)

    def _handshake(self, number: int, seen: Glance, record: bytes) -> bool:
        bag = self._bags.get(number)
        flags, place = seen.tcp_flags, (seen.probe, seen.netns, seen.ifindex)
        opens = flags & (_SYN | _ACK) == _SYN and seen.encap != _ICMP_ERROR
        if bag is None:
            # What answers something that was sent before we looked is left alone.
            if not opens or seen.probe not in (*_OPPOSITE, _KFREE):
                return False
            bag = self._new(number, Bag(number, _TCP, place, seen.ktime_ns, seen.ktime_ns))
            bag.eventful = seen.probe == _KFREE
            bag.deaths = int(bag.eventful)
        elif seen.probe in _OPPOSITE and not flags & _RST and seen.encap != _ICMP_ERROR:
            if opens:
                bag.eventful = bag.eventful or place == bag.place
            elif place[1:] == bag.place[1:] and _OPPOSITE[seen.probe] == bag.place[0]:
                bag.answered_ns = bag.answered_ns or seen.ktime_ns
        else:
            bag.eventful = True
            bag.deaths += seen.probe == _KFREE
            bag.refused = bag.refused or bool(flags & _RST) or seen.encap == _ICMP_ERROR
        bag.add(seen, record)
        return True

    def _death(self, seen: Glance, record: bytes) -> bool:
        # Neighbour discovery, multicast membership: only an echo has a number, in the place of the source port.
        if seen.protocol not in _WITH_PORTS and not seen.sport:
            return False
        # A reset or a bare acknowledgement that dies takes nothing with it.
        if seen.protocol == _TCP and seen.encap != _ICMP_ERROR and (not seen.payload_len or seen.tcp_flags & _RST):
            return False
        key = seen.saddr, seen.daddr, seen.sport, seen.dport, seen.protocol
        bag = self._bags.get(key)
        if bag is None:
            if seen.probe not in (_KFREE, _ICMP_SEND):
                return False  # an ICMP error from elsewhere, about nothing that died here
            place = seen.probe, seen.netns, seen.ifindex
            bag = self._new(key, Bag(0, seen.protocol, place, seen.ktime_ns, seen.ktime_ns, eventful=True))
        bag.deaths += seen.probe == _KFREE
        bag.add(seen, record)
        return True

    def _new(self, key: _Key, bag: Bag) -> Bag:
        if len(self._bags) >= self.most:
            self._evict()
        self._bags[key] = bag
        return bag

    def _evict(self) -> None:
        """A tenth at once: what was judged already, then the oldest."""
        wanted = max(1, self.most // 10)
        settled = [key for key, bag in self._bags.items() if bag.judged or bag.healthy][:wanted]
        for key in settled:
            self.answered += self._bags.pop(key).healthy
        for key in list(self._bags)[: wanted - len(settled)]:
            del self._bags[key]
            self.evicted += 1

    def drop(self, bags: Iterable[Bag]) -> None:
        """Forget these."""
        gone = {id(bag) for bag in bags}
        if gone:
            self._bags = {key: bag for key, bag in self._bags.items() if id(bag) not in gone}

    def doubt(self) -> None:
        """Events were lost: of what is under way something may be missing."""
        for bag in self:
            bag.doubtful = True

    def sample(self, shift: int) -> None:
        """From now on only these are taken; of the others no answer will be seen, so they are forgotten."""
        self.shift = shift
        self.drop([bag for bag in self if not is_kept(bag.number, shift)])


def events_of(records: Iterable[bytes]) -> list[Event]:
    """Decoded, in the order of time, without those that are no events."""
    events = []
    for record in records:
        try:
            events.append(Event.decode(record))
        except BadRecordError:
            continue
    return sorted(events, key=lambda event: event.ktime_ns)


def flow_of(records: Iterable[bytes]) -> Flow | None:
    """The flow that these records tell of."""
    events = events_of(records)
    first = next((e for e in events if e.encap is not Encap.ICMP_ERROR), next(iter(events), None))
    header = first.packet if first is not None else None
    if first is None or header is None:
        return None
    client = header.saddr
    # A packet that died, of a flow of which nothing else is known: by their ports it is rather an answer.
    if first.ct_orig is None and not first.tcp_flags & _SYN and header.sport < _EPHEMERAL <= header.dport:
        client = header.daddr
    if first.ct_orig is not None and first.encap in (Encap.NONE, Encap.ICMP_ERROR):
        client = first.ct_orig.saddr
    correlator = Correlator((client,))
    for event in events:
        correlator.feed(event)
    return correlator.flows[0] if correlator.flows else None


def is_for_witness(record: bytes) -> bool:
    """Something about the connection table may have to be asked at once (`k8snet.kernel.conntrack.Witness`)."""
    if len(record) < LAYOUT.size:
        return False
    status, probe = _WITNESSED.unpack_from(record)
    return probe in (_KFREE, _OF_CLASHES) or status & _LOST_CLASH == _LOST_CLASH
