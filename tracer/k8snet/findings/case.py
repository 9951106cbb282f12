"""One flow with everything that is known about it: what the catalogue's predicates look at.

A `Case` is built once a flow is settled. It holds no opinion; it answers questions that many findings ask (did the
answer reach the client? where did a packet die, in which hook, by which rule? did the packet still carry the
Service's address there?). Everything comes in as values, so a test can build a case from a list of events.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from k8snet.cluster.allowance import Allowance, allowances
from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import PROTOCOLS, Inventory, Service, ServicePort
from k8snet.event import DNS_PORT, HOOK_NONE, Address, CtStatus, Encap, Event, FiveTuple, ProbeId, TcpFlag
from k8snet.flow.dns import DnsExchange
from k8snet.flow.model import AT_DEVICE, Direction, Flow, Packet
from k8snet.kernel.conntrack import Fill, Rivals
from k8snet.kernel.devices import Attached
from k8snet.kernel.resolver import Resolver
from k8snet.kernel.rtnetlink import InterfaceAddress, Link, Neighbour, Route, RouteQuestion
from k8snet.kernel.rules import NamedRule

# Ends of life that are no loss. Reason names are the running kernel's; symbols for kernels that have no reason.
NOISE_REASONS = frozenset(
    {
        "QUEUE_PURGE",
        "SKB_CONSUMED",
        "TCP_OLD_DATA",
        "TCP_OLD_SEQUENCE",
        "TCP_OLD_ACK",
        "TCP_ZEROWINDOW",
        "TCP_OVERWINDOW",
        "TCP_OFOMERGE",
        "TCP_PAWS",
        "TCP_RFC7323_PAWS",
        "TCP_RFC7323_PAWS_ACK",
        "TCP_ACK_UNSENT_DATA",
        "TCP_CLOSE",
        "TCP_ABORT_ON_DATA",  # the application has closed it, and is still sent to
        "TCP_FASTOPEN",
        "TCP_TOO_OLD_ACK",
        "TCP_INVALID_SYN",
        "TCP_FLAGS",
        "TCP_RESET",
        "SOCKET_CLOSE",
    }
)
NOISE_SYMBOLS = frozenset(
    {
        "skb_queue_purge",
        "skb_queue_purge_reason",
        "sk_stream_kill_queues",
        "skb_rbtree_purge",
        "inet_sock_destruct",
        "tcp_v4_rcv",
        "tcp_v6_rcv",
        "tcp_rcv_state_process",
        "tcp_v4_do_rcv",
        "tcp_v6_do_rcv",
        "tcp_ack",
        "tcp_rcv_established",
        "tcp_data_queue",
        "udp_destruct_common",  # a socket was closed before all of its datagrams were read
        "udp_destruct_sock",
        "unix_stream_read_generic",
        "packet_rcv",
        "tpacket_rcv",
        "inet_rtm_getroute",  # `ip route get ... iif`, and our own question, are answered by routing a packet made up
        "inet6_rtm_getroute",
        "nfqnl_enqueue_packet",  # a GSO skb has been cut, and its segments are in the queue
    }
)
# In these functions an unspecified reason is the kernel's bookkeeping; a *named* reason there is a loss.
UNSPECIFIED = frozenset({"", "NOT_SPECIFIED", "NOT_DROPPED_YET"})
NETFILTER_SYMBOLS = frozenset({"nf_hook_slow", "nft_do_chain", "nfqnl_reinject", "nf_reinject", "nf_hook_slow_list"})
# A guess: the second retransmission is then some half second old, and usually a third is under way.
STALLED_NS = 1_000_000_000
# Sooner than that no resolver gives up: resolv.conf(5) counts in whole seconds.
PROMPT_ANSWER_NS = 1_000_000_000
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def pod_name(owner: Owner, netns: int) -> str | None:
    """The pod that a netns belongs to: `namespace/name`, else its UID, else `netns:NAME`; None: it is no pod's."""
    if owner.pod is not None:
        return owner.pod.key
    return (owner.uid or f"netns:{owner.pin or netns}") if owner.role is Role.POD else None


class Kernel(Protocol):
    """Names of the running kernel's numbers (`k8snet.kernel.symbols`)."""

    def drop_reason(self, number: int) -> str:
        """Without the prefix; empty when the kernel has no reasons."""

    def symbol(self, address: int) -> str:
        """The function an address lies in, without compiler suffixes; empty when unknown."""


@dataclass(frozen=True, slots=True)
class Death:
    """One packet died here."""

    packet: Packet
    event: Event
    reason: str  # the kernel's name, empty on kernels without reasons
    symbol: str
    hook: str | None  # None: not in netfilter, or not known
    hook_sure: bool
    rule: NamedRule | None = None

    @property
    def direction(self) -> Direction:
        """Which way the packet went."""
        return self.packet.direction

    @property
    def netfilter(self) -> bool:
        """A netfilter hook dropped it."""
        return self.reason == "NETFILTER_DROP" or (self.reason in UNSPECIFIED and self.symbol in NETFILTER_SYMBOLS)


@dataclass(frozen=True, slots=True)
class Wire:
    """The device that carries a party's address, and the other end of that veth where it has one."""

    netns: int
    device: str
    far_netns: int | None = None
    far_device: str | None = None


@dataclass(frozen=True)
class Surroundings:
    """What does not differ between the flows of one trace."""

    inventory: Inventory
    owners: Mapping[int, Owner]  # netns inode -> whose it is
    kernel: Kernel
    client_netns: int | None
    backend_netns: Mapping[Address, int] = field(default_factory=dict)  # pod address -> netns, as far as local
    settings: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # netns -> sysctl-like name -> value
    rises: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # netns -> counter -> by how much
    listening: Mapping[tuple[int, str, int], int] = field(default_factory=dict)  # (netns, proto, port) -> Recv-Q
    # TCP: how many connections wait for accept(), and how many may.
    backlogs: Mapping[tuple[int, str, int], tuple[int, int]] = field(default_factory=dict)
    attached: Mapping[tuple[int, str], tuple[Attached, ...]] = field(default_factory=dict)  # (netns, device)
    rules: Mapping[int, NamedRule] = field(default_factory=dict)  # id(packet) -> the rule that dropped it
    # Netns -> "legacy" and "nft" -> the tables that have rules; only where both have.
    tables: Mapping[int, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    enter: Mapping[int, str] = field(default_factory=dict)  # netns -> "nsenter --net=/run/netns/x "; absent: here
    wires: Mapping[Address, Wire] = field(default_factory=dict)  # of client and backends, as far as local
    # Asked after the trace, for what came to nothing (`k8snet.kernel.lookups`): see `Case.questions`.
    routes: Mapping[RouteQuestion, Route] = field(default_factory=dict)
    neighbours: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)  # netns -> its table
    forwarding: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)  # netns -> of its tunnels
    links: Mapping[int, Mapping[str, Link]] = field(default_factory=dict)  # netns -> device -> how it is now
    addresses: Mapping[int, Mapping[str, tuple[InterfaceAddress, ...]]] = field(default_factory=dict)  # likewise
    send_errors: tuple[int, ...] = ()  # errno of each attempt of ours that the client's own kernel refused
    # Asked at the packet itself (`k8snet.kernel.conntrack`), because it does not last.
    rivals: Mapping[Event, Rivals] = field(default_factory=dict)  # who owns the tuples of its connection
    fills: Mapping[int, Fill] = field(default_factory=dict)  # netns -> its connection table at its fullest
    # Of DNS, all of the trace's: client's address and port, whether it was TCP -> in order of time.
    queries: Mapping[tuple[Address, int, bool], Sequence[DnsExchange]] = field(default_factory=dict)
    resolvers: Mapping[int, Resolver] = field(default_factory=dict)  # netns -> what its /etc/resolv.conf says
    # Netns -> from when to when it was seen whole, as `Event.ktime_ns`; those that are missing: all the time.
    watched: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    lost: int = 0


@dataclass(frozen=True)
class Case:
    """One settled flow."""

    flow: Flow
    around: Surroundings

    def owner(self, netns: int) -> Owner:
        """Whose netns it is; an owner without names when nobody knows."""
        return self.around.owners.get(netns, Owner())

    def was_watched(self, netns: int, ktime_ns: int) -> bool:
        """All that happened in that netns at that time was seen, unless events were lost."""
        begun, ended = self.around.watched.get(netns, (ktime_ns, ktime_ns))
        return begun <= ktime_ns <= ended

    def in_pod(self, netns: int) -> bool:
        """The netns is a pod's, whether or not its name is known."""
        return self.owner(netns).role is Role.POD

    @property
    def ipv6(self) -> bool:
        """The client uses IPv6."""
        return self.flow.original.daddr.version == 6

    @property
    def tcp(self) -> bool:
        """It is a TCP connection."""
        return self.flow.original.protocol == socket.IPPROTO_TCP

    @property
    def queries(self) -> list[DnsExchange]:
        """What it asked of DNS: over UDP it is one query, over TCP there may be many."""
        used = self.flow.original
        found = self.around.queries.get((used.saddr, used.sport, self.tcp), ())
        return [q for q in found if q.tcp or q.txid == self.flow.exchange]

    @cached_property
    def service(self) -> Service | None:
        """The Service whose address the client used."""
        return self.around.inventory.service_at(self.flow.original.daddr, self.flow.original.dport)

    @cached_property
    def service_port(self) -> ServicePort | None:
        """The port of that Service that the client used, with its endpoints of the client's IP family."""
        if self.service is None:
            return None
        used = self.flow.original
        name = PROTOCOLS.get(used.protocol)
        port = next((p for p in self.service.ports if p.port == used.dport and p.protocol == name), None)
        if port is None:
            return None
        # A dual-stack Service may have pods behind one of its addresses and nobody behind the other.
        return replace(port, endpoints=tuple(e for e in port.endpoints if e.ip.version == used.daddr.version))

    @cached_property
    def backend(self) -> tuple[Address, int] | None:
        """Who should answer: the endpoint that DNAT chose, or the address itself when it is no Service's."""
        if self.flow.dnat is not None:
            return self.flow.dnat
        if self.service is not None:
            return None
        return self.flow.original.daddr, self.flow.original.dport

    @cached_property
    def allowances(self) -> tuple[Allowance, ...]:
        """What NetworkPolicies say of a connection of these two."""
        if self.backend is None:
            return ()
        protocol = PROTOCOLS.get(self.flow.original.protocol, "icmp")
        return allowances(self.around.inventory, self.flow.original.saddr, *self.backend, protocol)

    @cached_property
    def backend_netns(self) -> int | None:
        """The netns of the pod that should answer, when it is on this machine."""
        return self.around.backend_netns.get(self.backend[0]) if self.backend else None

    @cached_property
    def answers(self) -> list[Packet]:
        """Packets of the server that reached the client and are an answer (no RST, no ICMP error)."""
        return [p for p in self.flow.replies if not p.is_rst and self._arrived(p)]

    def acknowledged(self, packet: Packet) -> bool:
        """The other end has said that it has all of this TCP packet's data."""
        upto = self._acknowledged.get(packet.direction)
        return upto is not None and not _is_before(upto, packet.key.seq + packet.key.payload_len)

    @cached_property
    def _acknowledged(self) -> dict[Direction, int]:
        """Up to which sequence number the data of each direction has arrived, as the other end says."""
        upto: dict[Direction, int] = {}
        dead = {id(d.packet) for d in self.deaths}
        for packet in self.flow.packets:
            way, ack = packet.direction.opposite, packet.first.ack
            if packet.has(TcpFlag.ACK) and id(packet) not in dead and (way not in upto or _is_before(upto[way], ack)):
                upto[way] = ack
        return upto

    @cached_property
    def unacknowledged(self) -> Packet | None:
        """The first packet with data, of either direction, that an open TCP connection still waits for."""
        if not self.tcp or any(p.is_rst for p in self.flow.packets):
            return None
        # The newest is acknowledged last: most connections are done with one look.
        for direction in Direction:
            data = [p for p in self.flow.directed(direction) if p.key.payload_len and not p.is_syn]
            if data and not self.acknowledged(data[-1]):
                return next(p for p in data if not self.acknowledged(p))
        return None

    @cached_property
    def stalled(self) -> tuple[Packet, ...]:
        """The same data, sent again and again over a connection that stands, and never acknowledged."""
        first = self.unacknowledged if self.answered else None
        if first is None:
            return ()
        tries = [p for p in self.flow.directed(first.direction) if p.key.seq == first.key.seq and p.key.payload_len]
        return tuple(tries) if tries[-1].first.ktime_ns - tries[0].first.ktime_ns >= STALLED_NS else ()

    @property
    def served(self) -> bool:
        """The client got its answer, and nothing that was sent afterwards got stuck."""
        return self.answered and not self.stalled

    @property
    def answered(self) -> bool:
        """The client got its answer (TCP: the handshake's)."""
        return bool(self.answers) and not self._answer_refused

    @cached_property
    def _answer_refused(self) -> bool:
        # A SYN-ACK from an address the client did not ask reaches its netns and finds no socket (un-NATed reply).
        return all(any(d.packet is p for d in self.deaths) for p in self.answers)

    @cached_property
    def refused_by(self) -> Packet | None:
        """The RST or ICMP error that told the client no."""
        for packet in self.flow.packets:
            says_no = packet.is_rst or packet.is_unreachable
            if packet.direction is Direction.REPLY and says_no and self._arrived(packet) and self._believed(packet):
                return packet
        return None

    @cached_property
    def unbelieved(self) -> Packet | None:
        """A RST or ICMP error that reached the client's netns with a header that no socket there knows."""
        return next(
            (
                p
                for p in self.flow.packets
                if p.direction is Direction.REPLY
                and (p.is_rst or p.is_unreachable)
                and self._arrived(p)
                and not self._believed(p)
            ),
            None,
        )

    def _believed(self, packet: Packet) -> bool:
        """A refusal counts only when it comes from, or quotes, what the client's netns has sent."""
        netns = self.around.client_netns
        sent = {e.packet for p in self.flow.requests for e in p.events if e.netns == netns} | {self.flow.original}
        told = [e.packet for e in packet.events if e.netns == netns and e.packet is not None]
        return not told or any((h if packet.is_icmp_error else h.reversed()) in sent for h in told)

    def _arrived(self, packet: Packet) -> bool:
        if self.around.client_netns is None:
            return not any(e.probe is ProbeId.KFREE_SKB for e in packet.events)
        return packet.received_in(self.around.client_netns)

    @cached_property
    def deaths(self) -> list[Death]:
        """Every packet of this flow that died, in order of time; the kernel's own bookkeeping is left out."""
        found = [d for p in self.flow.packets for d in [self._death(p)] if d is not None]
        return sorted(found, key=lambda d: d.event.ktime_ns)

    @cached_property
    def questions(self) -> frozenset[RouteQuestion]:
        """What to ask the kernel's routing, where a packet died or was last seen, or a socket sent none."""
        if not self.flow.packets:
            netns = self.around.client_netns
            return frozenset() if netns is None else frozenset({RouteQuestion(netns, self.flow.original.daddr)})
        ends = [packets[-1].last for packets in (self.flow.requests, self.flow.replies) if packets]
        if self.answered:
            ends = []
        asked: set[RouteQuestion] = set()
        for event in (*(d.event for d in self.deaths), *ends):
            header = event.outer or event.packet
            if header is not None and event.netns:
                asked |= {route_question(event, header), RouteQuestion(event.netns, header.daddr)}
                asked.add(RouteQuestion(event.netns, header.saddr))
        for event in ends:
            if event.packet is not None:
                asked.add(_way_back(event.netns, event.packet))
        for death in self.deaths:
            header = death.event.outer or death.event.packet
            if header is not None:  # where it had been before: routers may disagree
                asked |= {RouteQuestion(e.netns, header.daddr) for e in death.packet.events if e.netns}
        return frozenset(asked)

    def route(self, event: Event) -> Route | None:
        """How the kernel routes the packet of `event`, as it stood there; None when it was not asked."""
        header = event.outer or event.packet
        return self.around.routes.get(route_question(event, header)) if header is not None else None

    def route_to(self, netns: int, address: Address) -> Route | None:
        """How that netns reaches an address, from itself; None when it was not asked."""
        return self.around.routes.get(RouteQuestion(netns, address))

    def route_back(self, event: Event) -> Route | None:
        """How that netns would answer the packet, if the packet is for it; None when that was not asked."""
        return self.around.routes.get(_way_back(event.netns, event.packet)) if event.packet is not None else None

    def _death(self, packet: Packet) -> Death | None:
        drops = [e for e in packet.events if e.probe is ProbeId.KFREE_SKB and not self._is_noise(packet, e)]
        if not drops:
            return None
        # Flooded copies die in other pods; the packet lives on when it was seen again after a copy's death.
        event = drops[-1]
        if any(e.probe in AT_DEVICE and e.ktime_ns > event.ktime_ns and e.skb == event.skb for e in packet.events):
            return None
        around = self.around
        death = Death(
            packet, event, around.kernel.drop_reason(event.reason), around.kernel.symbol(event.location), None, False
        )
        hook, sure = self._hook(packet, event) if death.netfilter else (None, False)
        rule = around.rules.get(id(packet)) if death.netfilter else None
        if rule is not None and rule.hook and rule.by != "counters":
            hook, sure = rule.hook, True  # a REJECT's reset has been through NAT already, and shares the entry
        return Death(packet, event, death.reason, death.symbol, hook, sure, rule)

    def _is_noise(self, packet: Packet, event: Event) -> bool:
        reason = self.around.kernel.drop_reason(event.reason)
        symbol = self.around.kernel.symbol(event.location)
        if reason in NOISE_REASONS or self._hung_up(packet, event):
            return True
        if reason in ("NO_SOCKET", *UNSPECIFIED) and symbol in ("ping_rcv", "icmp_rcv", "icmpv6_rcv"):
            # Whoever sent the echo request by a raw socket has its copy of the reply; what is left finds no ping
            # socket. Which of the two functions frees it differs between kernels; and 6.1's icmpv6_rcv frees a request
            # that it has answered as if it were a loss.
            return packet.direction is Direction.REPLY or reason in UNSPECIFIED
        if reason == "NO_SOCKET":
            # Nobody waits for a RST, or for a late ACK after close.
            return packet.is_rst or self._after_close(packet)
        if reason == "OTHERHOST" or (event.pkt_type == _PACKET_OTHERHOST and symbol in _IP_RECEIVE):
            return self._is_flooded_copy(packet, event)
        if reason == "" and packet.is_syn_ack and symbol in ("tcp_v4_rcv", "tcp_v6_rcv"):
            # Without reasons it looks like bookkeeping; but nobody can have asked an address that is not the server's.
            return event.packet is None or event.packet.saddr == self.flow.original.daddr
        if reason in UNSPECIFIED and symbol in NOISE_SYMBOLS:
            # A kernel without reasons drops a SYN to a closed port here too: then no SYN-ACK is ever sent. With one, it
            # is the SYN that was sent again because the answer is lost, and the socket has it already.
            opens = reason == "" and packet.is_syn and symbol in ("tcp_v4_rcv", "tcp_v6_rcv")
            return not opens or any(p.is_syn_ack for p in self.flow.replies)
        return False

    def _is_flooded_copy(self, packet: Packet, event: Event) -> bool:
        """A bridge has flooded the frame, and this copy reached somebody it is not for.

        In the netns of a party, or where nothing is seen of the packet afterwards, it is no copy: the frame carried a
        wrong MAC address.
        """
        if event.netns in (self.around.client_netns, self.backend_netns):
            return False
        return self.in_pod(event.netns) or any(e.ktime_ns > event.ktime_ns for e in packet.events)

    def _hung_up(self, packet: Packet, event: Event) -> bool:
        """A DNS answer that came in good time, and its resolver had closed the socket.

        It has what it wanted: from the other server that it asked as well (musl asks all), or by the truncated answer
        to the other half of the look-up, after which glibc asks over TCP.
        """
        asked = self.flow.original
        if packet.direction is not Direction.REPLY or asked.dport != DNS_PORT or asked.protocol != socket.IPPROTO_UDP:
            return False
        at_home = event.netns == self.around.client_netns and packet.received_in(event.netns)
        prompt = packet.last.ktime_ns - self.flow.started_ns < PROMPT_ANSWER_NS
        return at_home and prompt and event.packet is not None and event.packet.saddr == asked.daddr

    def _after_close(self, packet: Packet) -> bool:
        closing = [p for p in self.flow.packets if p.has(TcpFlag.FIN) or p.is_rst]
        opening = packet.is_syn or packet.is_syn_ack  # a SYN-ACK that nobody asked for comes again after each RST
        return bool(closing) and not opening and packet.first.ktime_ns >= closing[0].first.ktime_ns

    def _hook(self, packet: Packet, event: Event) -> tuple[str | None, bool]:
        """Which netfilter hook dropped it; True when the kernel said so and it is not deduced."""
        if event.hook != HOOK_NONE and event.hook < len(HOOKS):
            return HOOKS[event.hook], True
        traced = next((s.hook for s in reversed(packet.rules) if s.netns == event.netns and s.hook), None)
        status = CtStatus(event.ct_status)
        behind_snat = CtStatus.SRC_NAT_DONE in status and CtStatus.CONFIRMED not in status
        # The rules of a look-alike (another connection of the same socket, behind NAT) may have been taken for its.
        if traced and not (behind_snat and traced in ("prerouting", "forward")):
            return traced, True
        if not event.ifname and event.ifindex == 0:
            return "output", False
        if self.in_pod(event.netns):
            return "input", False
        if behind_snat:
            return "postrouting", False
        if event.ct_orig is None:
            return None, False  # before conntrack, without it, or in a chain of a device: nothing tells them apart
        header = event.packet if event.encap in (Encap.NONE, Encap.ICMP_ERROR) else event.outer
        if header and header.daddr in self.around.inventory.node_by_ip:
            return "input", False
        return "forward", False


def _is_before(sequence: int, other: int) -> bool:
    # Sequence numbers go round (RFC 9293, section 3.4).
    return (sequence - other) & 0xFFFF_FFFF >= 1 << 31


def route_question(event: Event, header: FiveTuple) -> RouteQuestion:
    """What the packet asked of the routing when it stood there."""
    return RouteQuestion(event.netns, header.daddr, header.saddr, event.ifindex, event.skb_mark)


def _way_back(netns: int, header: FiveTuple) -> RouteQuestion:
    return RouteQuestion(netns, header.saddr, header.daddr)


def every_question(flow: Flow) -> set[RouteQuestion]:
    """All that `Case.questions` may turn out to be once the flow is known from end to end, wherever it died."""
    asked: set[RouteQuestion] = set()
    ends = [packets[-1] for packets in (flow.requests, flow.replies) if packets]
    for event in (e for p in (*ends, *(p for p in flow.packets if p.dropped)) for e in p.events if e.netns):
        header = event.outer or event.packet
        if header is not None:
            asked |= {route_question(event, header), RouteQuestion(event.netns, header.daddr)}
            asked.add(RouteQuestion(event.netns, header.saddr))
        if event.packet is not None:
            asked.add(_way_back(event.netns, event.packet))
    return asked


_PACKET_OTHERHOST = 3
_IP_RECEIVE = ("ip_rcv", "ip_rcv_core", "ipv6_rcv", "ip6_rcv_core")  # which of them depends on what was inlined
