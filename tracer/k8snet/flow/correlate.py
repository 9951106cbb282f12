"""Events in, flows out: which packet an event saw, and which flow that packet belongs to.

An skb's address is no identity: it is reused within microseconds, and a retransmission often gets the same one. What
stays with a packet is in the packet (IP id, sequence, length, flags) and in conntrack: its entry holds the tuples
of both sides of the NAT, so one event behind the NAT teaches every header of the flow. Order matters only within
a packet's own path; events come in the order of their time, except that two CPUs may overlap by microseconds.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from k8snet.event import Address, CtStatus, Encap, Event, FiveTuple, ProbeId
from k8snet.flow.model import AT_DEVICE, Direction, Flow, Packet, PacketKey
from k8snet.kernel.ruletrace import RuleStep

IP_CT_IS_REPLY = 3  # enum ip_conntrack_info: 3 and 4 are the reply direction
DNS_PORT = 53

# A packet's events lie within milliseconds, even when a rule holds it for a while in a queue. After this
# time equal bytes are another packet (a resolver's retry has the same transaction id and no IP id).
SAME_PACKET_NS = 900_000_000
WAITED_NS = 5_000_000_000

_SOCKET_PROBES = frozenset(
    {
        ProbeId.INET_SOCK_SET_STATE,
        ProbeId.TCP_RETRANSMIT_SKB,
        ProbeId.TCP_RETRANSMIT_SYNACK,
        ProbeId.TCP_SEND_RESET,
        ProbeId.TCP_RECEIVE_RESET,
        ProbeId.UDP_FAIL_QUEUE_RCV_SKB,
        ProbeId.SKB_COPY_DATAGRAM_IOVEC,
        ProbeId.FIB_TABLE_LOOKUP,
        ProbeId.NEIGH_EVENT_SEND_DONE,
        ProbeId.NEIGH_TIMER_HANDLER,
        ProbeId.NEIGH_UPDATE,
    }
)


@dataclass(slots=True)
class _Conversation:
    """All flows between the same two sockets."""

    original: FiveTuple
    flows: list[Flow] = field(default_factory=list)
    taught: tuple[FiveTuple, FiveTuple] | None = None  # conntrack's last word, so as not to learn it from every event

    def flow(self, exchange: int | None) -> Flow | None:
        """The newest flow with this exchange; None asks for the newest of all."""
        return next((f for f in reversed(self.flows) if exchange is None or f.exchange == exchange), None)


class Correlator:
    """Sorts events into flows. `clients` are the addresses whose outgoing packets open a flow."""

    def __init__(self, clients: Iterable[Address]) -> None:
        self.flows: list[Flow] = []
        self.strays: list[Event] = []  # of no known flow: a drop on a device's behalf, a route that failed
        self._clients = frozenset(clients)
        self._tuples: dict[FiveTuple, tuple[_Conversation, Direction]] = {}
        self._unkept: dict[FiveTuple, tuple[_Conversation, Direction]] = {}  # see `_came_to_nothing`

    def feed(self, event: Event) -> Packet | None:
        """Take one event; the packet it belongs to, None when it is about no packet of a flow."""
        if event.packet is None:
            self.strays.append(event)
            return None
        conversation, direction = self._conversation(event, event.packet)
        if event.probe in _SOCKET_PROBES:
            flow = conversation.flow(None) if conversation else None
            if flow is None:
                self.strays.append(event)
            else:
                flow.socket_events.append(event)
            return None
        if conversation is None:
            self.strays.append(event)
            return None
        flow = self._flow(conversation, direction, event)
        self._learn(conversation, flow, event)
        return self._packet(flow, direction, event)

    def attach_rules(self, steps: Iterable[RuleStep]) -> None:
        """Give each packet the rules that were traced for it. Call once, at the end: rules arrive by another road."""
        wrapped = self._wrapped()
        for step in steps:
            owner = None
            known = self._tuples.get(step.packet) or self._unkept.get(step.packet) if step.packet else None
            if known is not None:
                conversation, direction = known
                owner = _packet_of(step, [p for f in conversation.flows for p in f.directed(direction)])
            elif step.packet in wrapped:
                owner = _packet_in(step, wrapped[step.packet])
            if owner is not None:
                owner.rules.append(step)

    def _wrapped(self) -> dict[FiveTuple, list[Packet]]:
        """Packets by the headers around them: those of tunnels, and of ICMP errors that quote a packet."""
        found: dict[FiveTuple, list[Packet]] = {}
        for packet in (p for flow in self.flows for p in flow.packets):
            for outer in {e.outer for e in packet.events if e.outer is not None}:
                found.setdefault(outer, []).append(packet)
        return found

    def _conversation(self, event: Event, header: FiveTuple) -> tuple[_Conversation | None, Direction]:
        # Two connections of one socket may look alike behind NAT, and then only one of them is in conntrack's table.
        sure = event.encap is Encap.NONE and event.ct_orig in self._tuples
        known = None if sure else self._tuples.get(header)
        if known is None and _ct_is_ours(event):
            known = self._by_conntrack(event)
        if known is None and event.probe not in _SOCKET_PROBES:
            if event.encap is Encap.NONE and event.ct_orig is not None and event.ct_orig.saddr in self._clients:
                # Its own netns has translated it already: a process on the node that calls a Service.
                back = event.ct_info >= IP_CT_IS_REPLY
                known = self._open(event.ct_orig), Direction.REPLY if back else Direction.REQUEST
            elif header.saddr in self._clients:
                known = self._open(header), Direction.REQUEST
            elif header.daddr in self._clients:
                # A reply to a request that was sent before we looked.
                known = self._open(header.reversed()), Direction.REPLY
        if known is None:
            return None, Direction.REQUEST
        conversation, direction = known
        if event.encap is Encap.ICMP_ERROR:
            # The error quotes a packet of one direction and travels in the other.
            direction = direction.opposite
        return conversation, direction

    def _by_conntrack(self, event: Event) -> tuple[_Conversation, Direction] | None:
        """The header is new, but one of its conntrack entry's tuples is not."""
        for entry, same_way in ((event.ct_orig, True), (event.ct_reply, False)):
            if entry is not None and entry in self._tuples:
                conversation, direction = self._tuples[entry]
                backwards = (event.ct_info >= IP_CT_IS_REPLY) == same_way
                return conversation, direction.opposite if backwards else direction
        return None

    def _open(self, original: FiveTuple) -> _Conversation:
        conversation = _Conversation(original)
        self._register(conversation, original, Direction.REQUEST)
        return conversation

    def _register(self, conversation: _Conversation, header: FiveTuple, direction: Direction) -> None:
        self._tuples.setdefault(header, (conversation, direction))
        self._tuples.setdefault(header.reversed(), (conversation, direction.opposite))

    def _flow(self, conversation: _Conversation, direction: Direction, event: Event) -> Flow:
        exchange = _exchange(conversation.original, event)
        flow = conversation.flow(exchange)
        if flow is not None and direction is Direction.REQUEST and _reopens(flow, event):
            flow = None
        if flow is None:
            flow = Flow(conversation.original, exchange or 0)
            conversation.flows.append(flow)
            self.flows.append(flow)
        return flow

    def _learn(self, conversation: _Conversation, flow: Flow, event: Event) -> None:
        if not _ct_is_ours(event) or event.ct_orig is None or event.ct_reply is None:
            return
        taught = event.ct_orig, event.ct_reply
        if conversation.taught != taught:
            self._register(conversation, event.ct_orig, Direction.REQUEST)
            if _came_to_nothing(event):
                self._unkept[event.ct_reply.reversed()] = conversation, Direction.REQUEST
            else:
                self._register(conversation, event.ct_reply, Direction.REPLY)
                conversation.taught = taught
        # Pods and other nodes may have conntrack too. The entry that translates is the one worth showing.
        if flow.ct_orig is None or (flow.dnat is None and flow.snat is None):
            flow.ct_orig, flow.ct_reply = event.ct_orig, event.ct_reply
        if flow.ct_orig == event.ct_orig:
            flow.ct_status |= event.ct_status

    def _packet(self, flow: Flow, direction: Direction, event: Event) -> Packet:
        key = PacketKey.of(event, direction)
        alike = reversed(flow.by_key.get(key, []))
        same = [p for p in alike if event.ktime_ns - p.last.ktime_ns <= SAME_PACKET_NS or _waited(p, event)]
        if event.probe in AT_DEVICE:
            # Equal bytes a second time at one device are another packet (UDP without an IP id).
            same = [p for p in same if not p.seen_at(event)]
        # The address is a hint, good enough to choose between packets that look alike.
        same.sort(key=lambda p: all(e.skb != event.skb for e in p.events))
        if same:
            same[0].events.append(event)
            return same[0]
        packet = Packet(direction, key, [event])
        flow.add(packet)
        return packet


def _waited(packet: Packet, event: Event) -> bool:
    """It died in the queue of an address that nobody answered for: the same skb, seconds later."""
    return (
        event.probe in (ProbeId.KFREE_SKB, ProbeId.ICMP_SEND)
        and event.skb == packet.last.skb
        and event.ktime_ns - packet.last.ktime_ns <= WAITED_NS
    )


def _ct_is_ours(event: Event) -> bool:
    """The skb's conntrack entry is the flow's (on a tunnel's outer packet it is the tunnel's own)."""
    return event.ct_orig is not None and event.encap in (Encap.NONE, Encap.ICMP_ERROR)


def _came_to_nothing(event: Event) -> bool:
    """Dropped behind source NAT, before its entry was in conntrack's table: its port may be another connection's."""
    if event.probe is not ProbeId.KFREE_SKB:
        return False
    status = CtStatus(event.ct_status)
    return CtStatus.SRC_NAT_DONE in status and CtStatus.CONFIRMED not in status


def _exchange(original: FiveTuple, event: Event) -> int | None:
    """What tells the queries of one socket apart; None when this event cannot say."""
    if original.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return event.seq
    if original.protocol == socket.IPPROTO_UDP and original.dport == DNS_PORT:
        # An ICMP error need not quote the payload.
        return event.seq >> 16 if event.payload_len >= 4 else None
    return 0


def _reopens(flow: Flow, event: Event) -> bool:
    """The client uses the same port for a new connection: a SYN with another initial sequence number."""
    if event.probe is ProbeId.KFREE_SKB or event.encap is Encap.ICMP_ERROR or event.tcp_flags & 0x12 != 0x02:
        return False
    return any(p.is_syn and p.key.seq != event.seq for p in flow.requests)


def _packet_in(step: RuleStep, packets: list[Packet]) -> Packet | None:
    """The packet inside the one that a traced rule saw: the latest that was in that netns before it."""
    for packet in reversed(packets):
        there = any(e.netns == step.netns and e.ktime_ns <= step.ktime_ns for e in packet.events)
        if there and (not packet.is_icmp_error or step.ip_id == packet.key.ip_id):
            return packet
    return None


def _packet_of(step: RuleStep, packets: list[Packet]) -> Packet | None:
    """The packet that a traced rule saw: by IP id where it has one, else by sequence number and time."""
    # Rules are stamped when they are read, after the packet was seen; a retransmission with the same bytes
    # comes a second later. So: the latest packet that is not younger than the rule.
    for packet in reversed(packets):
        if step.ip_id and packet.key.ip_id:
            if step.ip_id == packet.key.ip_id:
                return packet
        elif packet.first.ktime_ns <= step.ktime_ns and step.seq in (None, packet.key.seq):
            return packet
    return None
