"""Tests are written in events: what the kernel reported, in order, and then what must be concluded.

The stage is the lab's: pod shop/cart (10.244.1.10, netns 10) and shop/web-1 (10.244.1.11, netns 11) on node-1
(netns 1), Service shop/web 10.96.0.80:80 → 8080. Every function returns one event with sane values.
"""

from __future__ import annotations

import itertools
import socket
from ipaddress import IPv4Address, ip_address
from typing import ClassVar

from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import Endpoint, Inventory, Node, Pod, Service, ServicePort
from k8snet.event import CT_INFO_NONE, HOOK_NONE, Address, CtStatus, Encap, Event, FiveTuple, ProbeId
from k8snet.findings.case import Case, Surroundings
from k8snet.findings.diagnose import diagnose
from k8snet.flow.correlate import Correlator
from k8snet.report import Finding

CART, WEB, NODE, ROUTER = 10, 11, 1, 9  # netns
CLIENT, BACKEND = "10.244.1.10:50508", "10.244.1.11:8080"
VIP, EMPTY = "10.96.0.80:80", "10.96.0.81:80"
NETFILTER_DROP, NO_SOCKET, IP_RPFILTER, IP_INADDRERRORS, NOT_SPECIFIED, QUEUE_PURGE = 12, 3, 16, 20, 2, 104
OTHERHOST, IP_INHDR, TCP_ABORT_ON_DATA = 14, 19, 31
PKT_TOO_BIG, NO_TX_TARGET, VXLAN_VNI_NOT_FOUND = 70, 71, 72
IP_INNOROUTES, NEIGH_FAILED, NEIGH_QUEUEFULL, IP_LOCAL_SOURCE = 88, 58, 59, 95
DNAT_DONE = CtStatus.DST_NAT | CtStatus.DST_NAT_DONE
CONFIRMED = DNAT_DONE | CtStatus.SRC_NAT_DONE | CtStatus.CONFIRMED


class Kernel:
    """Names as the 6.18 kernel has them; locations are small numbers here."""

    REASONS: ClassVar = {
        NETFILTER_DROP: "NETFILTER_DROP",
        NO_SOCKET: "NO_SOCKET",
        IP_RPFILTER: "IP_RPFILTER",
        IP_INADDRERRORS: "IP_INADDRERRORS",
        NOT_SPECIFIED: "NOT_SPECIFIED",
        QUEUE_PURGE: "QUEUE_PURGE",
        88: "IP_INNOROUTES",
        60: "TC_INGRESS",
        61: "TC_EGRESS",
        62: "QDISC_DROP",
        63: "XDP",
        64: "SOCKET_RCVBUFF",
        65: "PKT_TOO_SMALL",
        PKT_TOO_BIG: "PKT_TOO_BIG",
        NO_TX_TARGET: "NO_TX_TARGET",
        VXLAN_VNI_NOT_FOUND: "VXLAN_VNI_NOT_FOUND",
        OTHERHOST: "OTHERHOST",
        IP_INHDR: "IP_INHDR",
        TCP_ABORT_ON_DATA: "TCP_ABORT_ON_DATA",
        NEIGH_FAILED: "NEIGH_FAILED",
        NEIGH_QUEUEFULL: "NEIGH_QUEUEFULL",
        IP_LOCAL_SOURCE: "IP_LOCAL_SOURCE",
    }
    SYMBOLS = (
        "nft_do_chain", "nf_hook_slow", "tcp_v4_rcv", "__udp4_lib_rcv", "ip_error", "ip_rcv_finish_core",
        "br_handle_frame_finish", "skb_queue_purge", "__netif_receive_skb_core", "ping_rcv", "icmp_rcv",
        "nfqnl_reinject",
        "ip_rcv_core",
        "ip6_forward", "br_nf_pre_routing_finish_ipv6", "tcp_v6_rcv", "__udp6_lib_rcv",
        "do_xdp_generic", "veth_xdp_rcv_skb", "veth_poll", "__dev_queue_xmit", "udp_queue_rcv_one_skb",
        "nfqnl_reinject", "udp_destruct_common",
        "neigh_invalidate", "ip_forward",
        "ip_fragment", "__dev_forward_skb2", "br_nf_dev_queue_xmit", "vxlan_xmit", "vxlan_rcv", "nfqnl_enqueue_packet",
    )  # fmt: skip

    def drop_reason(self, number: int) -> str:
        return self.REASONS.get(number, "")

    def symbol(self, address: int) -> str:
        return self.SYMBOLS[address - 1] if 0 < address <= len(self.SYMBOLS) else ""


def at(symbol: str) -> int:
    """The location that `Kernel` resolves to this symbol."""
    return Kernel.SYMBOLS.index(symbol) + 1


_clock = itertools.count(1)


def _five(way: str, protocol: int) -> FiveTuple:
    ends = [end.strip().rsplit(":", 1) if "]:" in end or end.count(":") == 1 else [end.strip(), "0"]
            for end in way.split(">")]  # fmt: skip
    (saddr, sport), (daddr, dport) = ([ip.strip("[]"), port] for ip, port in ends)
    return FiveTuple(ip_address(saddr), ip_address(daddr), int(sport), int(dport), protocol)


def event(
    probe: ProbeId,
    way: str,
    netns: int,
    dev: str,
    *,
    protocol: int = socket.IPPROTO_TCP,
    flags: int = 0x02,
    ip_id: int = 5189,
    seq: int = 1000,
    payload: int = 0,
    orig: str | None = None,
    reply: str | None = None,
    status: CtStatus | int = 0,
    info: int | None = None,
    us: int | None = None,
    **other: object,
) -> Event:
    """One event; `way` is "10.0.0.1:1 > 10.0.0.2:2". Without `us` it comes 10 µs after the one made before."""
    fields: dict[str, object] = dict.fromkeys(Event._fields, 0)
    fields |= {
        "ktime_ns": (us if us is not None else next(_clock) * 10) * 1000,
        "skb": 0xFFFF_0000_0000_9DAE,
        "netns": netns,
        "ifindex": sum(map(ord, dev)),
        "ip_id": ip_id,
        "seq": seq,
        "payload_len": payload,
        "tcp_flags": flags if protocol == socket.IPPROTO_TCP else 0,
        "ttl": 64,
        "ct_info": CT_INFO_NONE if orig is None else (2 if info is None else info),
        "ct_status": int(status),
        "hook": HOOK_NONE,
        "probe": probe,
        "encap": Encap.NONE,
        "packet": _five(way, protocol),
        "outer": None,
        "ct_orig": _five(orig, protocol) if orig else None,
        "ct_reply": _five(reply, protocol) if reply else None,
        "ifname": dev,
        "table": "",
        "payload": b"",
    }
    return Event(**(fields | other))  # type: ignore[arg-type]  # a builder by field name; the names are checked


def out(way: str, netns: int, dev: str, **fields: object) -> Event:
    """net_dev_queue: it leaves by `dev`."""
    return event(ProbeId.NET_DEV_QUEUE, way, netns, dev, **fields)  # type: ignore[arg-type]  # passed on


def into(way: str, netns: int, dev: str, **fields: object) -> Event:
    """netif_receive_skb: it came in by `dev`."""
    return event(ProbeId.NETIF_RECEIVE_SKB, way, netns, dev, **fields)  # type: ignore[arg-type]  # passed on


def drop(way: str, netns: int, dev: str, reason: int, symbol: str, **fields: object) -> Event:
    """kfree_skb."""
    return event(
        ProbeId.KFREE_SKB,
        way,
        netns,
        dev,
        reason=reason,
        location=at(symbol),
        **fields,  # type: ignore[arg-type]
    )


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ip_address(t) for t in texts)


def icmp_header(source: str, target: str) -> FiveTuple:
    """The header of an ICMP error itself."""
    return FiveTuple(ip_address(source), ip_address(target), 0, 0, socket.IPPROTO_ICMP)


def _pod(name: str, ip: str, node: str = "node-1") -> Pod:
    namespace, short = name.split("/")
    return Pod(namespace, short, f"uid-{short}", node, addresses(ip), False, "Running")


INVENTORY = Inventory(
    pods=(
        _pod("shop/cart", "10.244.1.10"), _pod("shop/web-1", "10.244.1.11"),
        _pod("shop/web-3", "10.244.2.11", "node-2"),
    ),
    services=(
        Service("shop", "web", addresses("10.96.0.80"), (
            ServicePort("http", "TCP", 80, "8080", endpoints=(
                Endpoint(IPv4Address("10.244.1.11"), 8080, "shop/web-1", "node-1", ready=True),)),)),
        Service("shop", "empty", addresses("10.96.0.81"), (ServicePort("http", "TCP", 80, "8080"),)),
    ),
    nodes=(Node("node-1", addresses("192.168.50.1", "10.244.1.1")),),
    source="the tests' stage",
)  # fmt: skip

OWNERS = {
    CART: Owner("node-1", INVENTORY.pods[0], role=Role.POD),
    WEB: Owner("node-1", INVENTORY.pods[1], role=Role.POD),
    NODE: Owner("node-1", role=Role.NODE),
}


def surroundings(**other: object) -> Surroundings:
    """The stage as a case sees it."""
    fields: dict[str, object] = {
        "inventory": INVENTORY,
        "owners": OWNERS,
        "kernel": Kernel(),
        "client_netns": CART,
        "backend_netns": {IPv4Address("10.244.1.11"): WEB, IPv4Address("10.244.1.10"): CART},
    }
    return Surroundings(**(fields | other))  # type: ignore[arg-type]  # a builder by field name


def told(*events: Event) -> Correlator:
    """A correlator that has heard the story."""
    correlator = Correlator(addresses("10.244.1.10", "fd00:10:244:1::10"))
    for e in events:
        correlator.feed(e)
    return correlator


def cases(*events: Event, **other: object) -> list[Case]:
    """One case for each flow of the story."""
    return [Case(flow, surroundings(**other)) for flow in told(*events).flows]


def findings(*events: Event, **other: object) -> list[Finding]:
    """What the catalogue says of the story."""
    return [f for case in cases(*events, **other) for f in diagnose(case)]


def codes(*events: Event, **other: object) -> list[str]:
    """Their codes."""
    return [f.code for f in findings(*events, **other)]


def syn_to_backend(**ct: object) -> list[Event]:
    """A SYN on its way to the Service, up to the backend's netns."""
    natted = f"{CLIENT} > {BACKEND}"
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": CONFIRMED} | ct
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0"),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart"),
        out(natted, NODE, "veth-web-1", **entry),
        into(natted, WEB, "eth0"),
    ]


def syn_ack_to_client(flags: int = 0x12) -> list[Event]:
    """The server's answer (or with flags=0x14 its reset), all the way back."""
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": CONFIRMED | 2, "info": 3}
    fields = {"flags": flags, "ip_id": 0, "seq": 7000, "skb": 0xFFFF_0000_0000_6790}
    return [
        out(f"{BACKEND} > {CLIENT}", WEB, "eth0", **fields),
        into(f"{BACKEND} > {CLIENT}", NODE, "veth-web-1", **fields),
        out(f"{VIP} > {CLIENT}", NODE, "veth-cart", **fields, **entry),
        into(f"{VIP} > {CLIENT}", CART, "eth0", **fields),
    ]
