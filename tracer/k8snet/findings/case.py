"""One flow with everything that is known about it: what the catalogue's predicates look at.

A `Case` is built once a flow is settled. It holds no opinion; it answers questions that many findings ask (did the
answer reach the client? where did a packet die, in which hook, by which rule? did the packet still carry the
Service's address there?). Everything comes in as values, so a test can build a case from a list of events.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import Inventory, Service, ServicePort
from k8snet.event import HOOK_NONE, Address, CtStatus, Event, ProbeId, TcpFlag
from k8snet.flow.model import AT_DEVICE, Direction, Flow, Packet
from k8snet.kernel.rules import NamedRule

# Ends of life that are no loss. Reason names are the running kernel's; symbols for kernels that have no reason.
NOISE_REASONS = frozenset(
    {
        "QUEUE_PURGE",
        "OTHERHOST",
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
        "unix_stream_read_generic",
        "packet_rcv",
        "tpacket_rcv",
    }
)
# In these functions an unspecified reason is the kernel's bookkeeping; a *named* reason there is a loss.
UNSPECIFIED = frozenset({"", "NOT_SPECIFIED", "NOT_DROPPED_YET"})
NETFILTER_SYMBOLS = frozenset({"nf_hook_slow", "nft_do_chain", "nfqnl_reinject", "nf_reinject", "nf_hook_slow_list"})
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def pod_name(owner: Owner, netns: int) -> str | None:
    """The pod that a netns belongs to: `namespace/name`, else its UID, else the netns; None: it is no pod's."""
    if owner.pod is not None:
        return owner.pod.key
    return (owner.uid or f"netns:{netns}") if owner.role is Role.POD else None


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
    rules: Mapping[int, NamedRule] = field(default_factory=dict)  # id(packet) -> the rule that dropped it
    enter: Mapping[int, str] = field(default_factory=dict)  # netns -> "nsenter --net=/run/netns/x "; absent: here
    lost: int = 0


@dataclass(frozen=True)
class Case:
    """One settled flow."""

    flow: Flow
    around: Surroundings

    def owner(self, netns: int) -> Owner:
        """Whose netns it is; an owner without names when nobody knows."""
        return self.around.owners.get(netns, Owner())

    def in_pod(self, netns: int) -> bool:
        """The netns is a pod's, whether or not its name is known."""
        return self.owner(netns).role is Role.POD

    @property
    def tcp(self) -> bool:
        """It is a TCP connection."""
        return self.flow.original.protocol == socket.IPPROTO_TCP

    @cached_property
    def service(self) -> Service | None:
        """The Service whose address the client used."""
        return self.around.inventory.service_by_ip.get(self.flow.original.daddr)

    @cached_property
    def service_port(self) -> ServicePort | None:
        """The port of that Service that the client used."""
        if self.service is None:
            return None
        name = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP"}.get(self.flow.original.protocol)
        return next((p for p in self.service.ports if p.port == self.flow.original.dport and p.protocol == name), None)

    @cached_property
    def backend(self) -> tuple[Address, int] | None:
        """Who should answer: the endpoint that DNAT chose, or the address itself when it is no Service's."""
        if self.flow.dnat is not None:
            return self.flow.dnat
        if self.service is not None:
            return None
        return self.flow.original.daddr, self.flow.original.dport

    @cached_property
    def backend_netns(self) -> int | None:
        """The netns of the pod that should answer, when it is on this machine."""
        return self.around.backend_netns.get(self.backend[0]) if self.backend else None

    @cached_property
    def answers(self) -> list[Packet]:
        """Packets of the server that reached the client and are an answer (no RST, no ICMP error)."""
        return [p for p in self.flow.replies if not p.is_rst and self._arrived(p)]

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
            # Type 3 (ICMPv6: 1) is "unreachable"; code 4 of it only asks for smaller packets.
            unreachable = packet.is_icmp_error and packet.key.icmp[0] in (1, 3) and packet.key.icmp != (3, 4)
            if packet.direction is Direction.REPLY and (packet.is_rst or unreachable) and self._arrived(packet):
                return packet
        return None

    def _arrived(self, packet: Packet) -> bool:
        if self.around.client_netns is None:
            return not any(e.probe is ProbeId.KFREE_SKB for e in packet.events)
        return packet.received_in(self.around.client_netns)

    @cached_property
    def deaths(self) -> list[Death]:
        """Every packet of this flow that died, in order of time; the kernel's own bookkeeping is left out."""
        found = [d for p in self.flow.packets for d in [self._death(p)] if d is not None]
        return sorted(found, key=lambda d: d.event.ktime_ns)

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
        return Death(packet, event, death.reason, death.symbol, hook, sure, rule)

    def _is_noise(self, packet: Packet, event: Event) -> bool:
        reason = self.around.kernel.drop_reason(event.reason)
        symbol = self.around.kernel.symbol(event.location)
        if reason in NOISE_REASONS:
            return True
        if reason in ("NO_SOCKET", *UNSPECIFIED) and symbol in ("ping_rcv", "icmp_rcv", "icmpv6_rcv"):
            # Whoever sent the echo request by a raw socket has its copy of the reply; what is left finds no ping
            # socket. Which of the two functions frees it differs between kernels.
            return packet.direction is Direction.REPLY
        if reason == "NO_SOCKET":
            # Nobody waits for a RST, or for a late ACK after close.
            return packet.is_rst or self._after_close(packet)
        if reason in UNSPECIFIED and symbol in NOISE_SYMBOLS:
            # A kernel without reasons drops a SYN to a closed port here too. Then a RST follows.
            return not (reason == "" and packet.is_syn and symbol in ("tcp_v4_rcv", "tcp_v6_rcv"))
        return event.pkt_type == _PACKET_OTHERHOST

    def _after_close(self, packet: Packet) -> bool:
        closing = [p for p in self.flow.packets if p.has(TcpFlag.FIN) or p.is_rst]
        return bool(closing) and not packet.is_syn and packet.first.ktime_ns >= closing[0].first.ktime_ns

    def _hook(self, packet: Packet, event: Event) -> tuple[str | None, bool]:
        """Which netfilter hook dropped it; True when the kernel said so and it is not deduced."""
        if event.hook != HOOK_NONE and event.hook < len(HOOKS):
            return HOOKS[event.hook], True
        traced = next((s.hook for s in reversed(packet.rules) if s.netns == event.netns and s.hook), None)
        if traced:
            return traced, True
        status = CtStatus(event.ct_status)
        if not event.ifname and event.ifindex == 0:
            return "output", False
        if self.in_pod(event.netns):
            return "input", False
        if CtStatus.SRC_NAT_DONE in status and CtStatus.CONFIRMED not in status:
            return "postrouting", False
        if event.ct_orig is None and event.packet and event.packet == self.flow.original and self.flow.dnat is None:
            return "prerouting", False
        if event.packet and event.packet.daddr in self.around.inventory.node_by_ip:
            return "input", False
        return "forward", False


_PACKET_OTHERHOST = 3
