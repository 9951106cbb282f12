"""The catalogue of probes: what is attached where, what it adds, and what the operator loses without it.

In: nothing. Out: `PROBES`, which the loader walks, `k8snet check` prints, and a test compares with the programs in the
object and with the files in probes/, both ways. What surprises: `default` is a matter of cost, not of worth. A probe
that runs for every forwarded packet costs about 0.07 us a run whatever it does, and the default set must not cost
more than `tcpdump -i any` does; see the comment at each one that is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from k8snet.event import ProbeId


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe: one or two programs that are attached together."""

    id: ProbeId
    name: str
    section: str  # where the first program attaches, as in the object
    tier: int  # 1: BTF tracepoints; 2: functions
    source: str  # the file under probes/ that holds it
    about: str  # what it adds
    loss: str  # what the operator loses without it
    default: bool = True
    module: str | None = None  # the module the function lives in where it is not built in
    reads: str = ""  # tier 2: the structure beside skb that its programs read
    exit_section: str | None = None  # tier 2: where the second program, `NAME_exit`, attaches

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of its programs in the object, in the order in which they are attached."""
        # The exit first: a note that is left by the entry must always be taken away again.
        return (f"{self.name}_exit", self.name) if self.exit_section else (self.name,)

    @property
    def fallback(self) -> tuple[str, ...]:
        """Those that do the same by kprobe, in FALLBACKS; empty when there are none."""
        return (f"{self.name}_kretprobe", f"{self.name}_kprobe") if self.exit_section else ()

    @property
    def target(self) -> str:
        """The tracepoint or function."""
        return self.section.partition("/")[2]

    @property
    def needs(self) -> str:
        """What the kernel must have, in words."""
        if self.tier == 1:
            return f"tracepoint {self.target}"
        return f"function {self.target}" + (f" (module {self.module})" if self.module else "")


def _tracepoint(id_: ProbeId, source: str, about: str, loss: str, default: bool = True) -> Probe:
    name = id_.name.lower()
    return Probe(id_, name, f"tp_btf/{name}", 1, source, about, loss, default)


def _function(id_: ProbeId, reads: str, about: str, loss: str, module: str | None = None) -> Probe:
    name = id_.name.lower()
    source = "netfilter.bpf.c"
    return Probe(id_, name, f"fentry/{name}", 2, source, about, loss, True, module, reads, f"fexit/{name}")


PROBES: Final[tuple[Probe, ...]] = (
    _tracepoint(
        ProbeId.NET_DEV_QUEUE,
        "device.bpf.c",
        "every packet that leaves by a device, with what NAT has made of it",
        "the path: no hop on the way out of a device is seen, and no NAT step",
    ),
    _tracepoint(
        ProbeId.NETIF_RECEIVE_SKB,
        "device.bpf.c",
        "every packet that comes in by a device",
        "the path: it cannot be said whether a packet reached the next namespace",
    ),
    _tracepoint(
        ProbeId.KFREE_SKB,
        "drop.bpf.c",
        "every drop, with its reason and the place in the kernel",
        "the drop: only 'last seen at' can be said, not where or why a packet died",
    ),
    # Off: it runs for every packet a real network card has sent (its completion frees the skb), and all it adds
    # is an overflowing accept queue, which the pod's own ListenOverflows counter shows too.
    _tracepoint(
        ProbeId.CONSUME_SKB,
        "drop.bpf.c",
        "the end of a SYN that the kernel took without calling it a drop",
        "a SYN lost to a full accept queue is only seen in counters",
        default=False,
    ),
    # Off: it runs once per device a packet is sent to. A veth whose peer refuses shows as a kfree_skb too.
    _tracepoint(
        ProbeId.NET_DEV_XMIT,
        "device.bpf.c",
        "a driver that refused a packet",
        "a refusal by a driver that frees nothing is not seen",
        default=False,
    ),
    # Off: it runs two or three times for every forwarded packet. The drop that follows a failed look-up names it
    # by its reason; what only this probe sees is a connect() that fails before there is a packet.
    _tracepoint(
        ProbeId.FIB_TABLE_LOOKUP,
        "route.bpf.c",
        "every routing decision, with its error",
        "a missing route is told from a blackhole by the drop alone; a pod without a route sends no packet to see",
        default=False,
    ),
    _tracepoint(
        ProbeId.NEIGH_EVENT_SEND_DONE,
        "neighbour.bpf.c",
        "an address that has to be resolved first (ARP, neighbour discovery)",
        "that a packet waits for ARP is only seen when it has failed",
    ),
    _tracepoint(
        ProbeId.NEIGH_TIMER_HANDLER,
        "neighbour.bpf.c",
        "address resolution asked again, or given up",
        "a failing ARP is only seen by the drop after three seconds",
    ),
    _tracepoint(
        ProbeId.NEIGH_UPDATE,
        "neighbour.bpf.c",
        "an address resolved, or changed",
        "that an address moved to another MAC is not seen",
    ),
    _tracepoint(
        ProbeId.INET_SOCK_SET_STATE,
        "socket.bpf.c",
        "TCP states on both ends: handshake, accepted, closed",
        "whether the server's kernel accepted is told by its packets alone",
    ),
    _tracepoint(
        ProbeId.TCP_RETRANSMIT_SKB,
        "socket.bpf.c",
        "a segment sent again",
        "a loss on another machine shows later, as packets seen twice",
    ),
    _tracepoint(
        ProbeId.TCP_RETRANSMIT_SYNACK,
        "socket.bpf.c",
        "a SYN-ACK sent again: the answer is lost on its way back",
        "a lost SYN-ACK shows later, as packets seen twice",
    ),
    _tracepoint(
        ProbeId.TCP_SEND_RESET,
        "socket.bpf.c",
        "who refuses a connection, and why",
        "a refusal is told by the RST packet alone, without the kernel's reason",
    ),
    _tracepoint(
        ProbeId.TCP_RECEIVE_RESET,
        "socket.bpf.c",
        "that the client took the refusal for its own",
        "whether a RST reached its socket is not known",
    ),
    _tracepoint(
        ProbeId.ICMP_SEND,
        "icmp.bpf.c",
        "the packet that an ICMP error refuses: REJECT, no route, too big",
        "a REJECT is told by the ICMP packet on its way back",
    ),
    # Off: the drop that follows says the same by its reason and place, and an overloaded receiver gets one a packet.
    _tracepoint(
        ProbeId.UDP_FAIL_QUEUE_RCV_SKB,
        "socket.bpf.c",
        "a datagram that found the receive buffer full",
        "a full receive buffer is told by the drop alone",
        default=False,
    ),
    # On: it never runs for a forwarded packet, and it is the only proof that an application has read.
    _tracepoint(
        ProbeId.SKB_COPY_DATAGRAM_IOVEC,
        "socket.bpf.c",
        "data that the application has read (TCP, large UDP)",
        "'arrived and not read' cannot be told from 'read and not answered'",
    ),
    _function(
        ProbeId.NF_HOOK_SLOW,
        "nf_hook_state",
        "the netfilter hook of a drop (PREROUTING, FORWARD, ...)",
        "the hook of a drop is deduced from its device and conntrack's status",
    ),
    _function(
        ProbeId.IPT_DO_TABLE,
        "xt_table",
        "the table of a drop by iptables-legacy (IPv4)",
        "the table of a drop is known only when its rule is named",
        module="ip_tables",
    ),
    _function(
        ProbeId.NFT_DO_CHAIN,
        "nft_chain",
        "the table of a drop by nftables and iptables-nft",
        "the table of a drop is known only when its rule is named",
        module="nf_tables",
    ),
    Probe(
        ProbeId.NF_CT_RESOLVE_CLASH,
        "nf_ct_resolve_clash",
        "fentry/nf_ct_resolve_clash",
        2,
        "conntrack.bpf.c",
        "both parties of a conntrack clash, when it is decided",
        "the other party of a clash is looked up in the connection table, some milliseconds later",
        module="nf_conntrack",
    ),
    _function(
        ProbeId.IP6T_DO_TABLE,
        "xt_table",
        "the table of a drop by iptables-legacy (IPv6)",
        "the table of a drop is known only when its rule is named",
        module="ip6_tables",
    ),
)

# The file under probes/ with the fallback of each function that has one.
FALLBACKS: Final = "kprobe.bpf.c"

# Without one of these there is no path and no end of it: nothing is traced then, rather than half of it.
ESSENTIAL: Final = frozenset({ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB, ProbeId.KFREE_SKB})

# Those of `k8snet watch`: what runs seldom, or has its filter first of all. States of sockets, routes, neighbours and
# what an application reads would be an event or more for each healthy connection, and explain nothing that a drop
# does not.
WATCHED: Final = frozenset(
    {
        ProbeId.NET_DEV_QUEUE,
        ProbeId.NETIF_RECEIVE_SKB,
        ProbeId.KFREE_SKB,
        ProbeId.TCP_RETRANSMIT_SKB,
        ProbeId.TCP_SEND_RESET,
        ProbeId.TCP_RECEIVE_RESET,
        ProbeId.ICMP_SEND,
        ProbeId.NF_HOOK_SLOW,
        ProbeId.IPT_DO_TABLE,
        ProbeId.IP6T_DO_TABLE,
        ProbeId.NFT_DO_CHAIN,
        ProbeId.NF_CT_RESOLVE_CLASH,
    }
)
