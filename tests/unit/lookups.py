"""Stories of DNS: what the kernel reports of a query and of its answer at each hop, with the messages they carry.

The stage is `story`'s, with pod kube-system/dns (10.244.1.13, netns 13) behind Service kube-system/kube-dns 10.96.0.10.
Times are seconds since the story began.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from typing import Any

from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import Endpoint, Pod, Service, ServicePort
from k8snet.event import CT_INFO_NONE, CtStatus, Encap, Event, ProbeId
from k8snet.findings.case import Surroundings
from k8snet.flow.dns import TYPES, DnsExchange, DnsTable
from unit import story

DNS = 13  # netns
CLIENT, SERVER, BACKEND = "10.244.1.10", "10.96.0.10", "10.244.1.13"
NXDOMAIN, SERVFAIL, REFUSED = 3, 2, 5
TRUNCATED = 0x0200
NUMBERS = {name: number for number, name in TYPES.items()}

POD = Pod("kube-system", "dns", "uid-dns", "node-1", story.addresses(BACKEND), False, "Running")
SERVICE = Service("kube-system", "kube-dns", story.addresses(SERVER), (
    ServicePort("dns", "UDP", 53, "53", endpoints=(
        Endpoint(story.addresses(BACKEND)[0], 53, "kube-system/dns", "node-1", ready=True),)),))  # fmt: skip


def surroundings(**other: object) -> Surroundings:
    """The stage as a finding sees it."""
    around = story.surroundings(**other)
    inventory = replace(
        story.INVENTORY, pods=(*story.INVENTORY.pods, POD), services=(*story.INVENTORY.services, SERVICE)
    )
    owners = {**story.OWNERS, DNS: Owner("node-1", POD, role=Role.POD)}
    netns = {**around.backend_netns, story.addresses(BACKEND)[0]: DNS}
    return replace(around, inventory=inventory, owners=owners, backend_netns=netns)


def message(name: str, kind: str, txid: int, flags: int = 0x0100) -> bytes:
    """A query, or with other flags an answer, as far as its question."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", txid, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", NUMBERS[kind], 1)


def seen(
    probe: ProbeId, at: float, way: str, netns: int, dev: str, raw: bytes, *, tcp: bool = False, **fields: object
) -> Event:
    """One hop of one message, at that second."""
    protocol = socket.IPPROTO_TCP if tcp else socket.IPPROTO_UDP
    carried = struct.pack("!H", len(raw)) + raw if tcp else raw
    made = story.event(
        probe, way, netns, dev, protocol=protocol, flags=0x18 if tcp else 0, ip_id=0,
        seq=1000 if tcp else int.from_bytes(raw[:4], "big"),
        **fields,  # type: ignore[arg-type]  # passed on
    )  # fmt: skip
    return made._replace(ktime_ns=round(at * 1e9) + 1_000_000, payload=carried, payload_len=len(carried))


def query(
    at: float,
    name: str = "web.shop",
    kind: str = "A",
    *,
    port: int = 40000,
    txid: int = 7,
    server: str = SERVER,
    client: str = CLIENT,
    tcp: bool = False,
    upto: int = 4,
    status: CtStatus | int = story.CONFIRMED,
) -> list[Event]:
    """A query on its way to the server's pod, or only its first `upto` hops."""
    raw = message(name, kind, txid)
    asked, natted = f"{client}:{port} > {server}:53", f"{client}:{port} > {BACKEND}:53"
    entry: dict[str, Any] = {"orig": asked, "reply": f"{BACKEND}:53 > {client}:{port}", "status": status}
    return [
        seen(ProbeId.NET_DEV_QUEUE, at, asked, story.CART, "eth0", raw, tcp=tcp),
        seen(ProbeId.NETIF_RECEIVE_SKB, at + 1e-5, asked, story.NODE, "veth-cart", raw, tcp=tcp),
        seen(ProbeId.NET_DEV_QUEUE, at + 2e-5, natted, story.NODE, "veth-dns", raw, tcp=tcp, **entry),
        seen(ProbeId.NETIF_RECEIVE_SKB, at + 3e-5, natted, DNS, "eth0", raw, tcp=tcp),
    ][:upto]


def answer(
    at: float,
    name: str = "web.shop",
    kind: str = "A",
    *,
    port: int = 40000,
    txid: int = 7,
    rcode: int = 0,
    flags: int = 0,
    server: str = SERVER,
    tcp: bool = False,
    upto: int = 4,
) -> list[Event]:
    """An answer on its way to the client, where it arrives at that second."""
    raw = message(name, kind, txid, 0x8180 | rcode | flags)
    sent, natted = f"{BACKEND}:53 > {CLIENT}:{port}", f"{server}:53 > {CLIENT}:{port}"
    entry: dict[str, Any] = {
        "orig": f"{CLIENT}:{port} > {server}:53",
        "reply": sent,
        "status": story.CONFIRMED | 2,
        "info": 3,
    }
    return [
        seen(ProbeId.NET_DEV_QUEUE, at - 3e-5, sent, DNS, "eth0", raw, tcp=tcp),
        seen(ProbeId.NETIF_RECEIVE_SKB, at - 2e-5, sent, story.NODE, "veth-dns", raw, tcp=tcp),
        seen(ProbeId.NET_DEV_QUEUE, at - 1e-5, natted, story.NODE, "veth-cart", raw, tcp=tcp, **entry),
        seen(ProbeId.NETIF_RECEIVE_SKB, at, natted, story.CART, "eth0", raw, tcp=tcp),
    ][:upto]


def turned_away(at: float, *, port: int = 40000, txid: int = 7, source: str = SERVER) -> list[Event]:
    """What the client's kernel does with an answer that no socket waits for."""
    raw = message("web.shop", "A", txid, 0x8180)
    way = f"{source}:53 > {CLIENT}:{port}"
    freed = seen(ProbeId.KFREE_SKB, at + 1e-6, way, story.CART, "eth0", raw, reason=story.NO_SOCKET,
                 location=story.at("__udp4_lib_rcv"))  # fmt: skip
    error = seen(ProbeId.NET_DEV_QUEUE, at + 2e-6, way, story.CART, "eth0", raw)
    return [freed, error._replace(encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, ct_info=CT_INFO_NONE, payload=b"")]


def exchanges(*events: list[Event]) -> list[DnsExchange]:
    """What becomes of the story."""
    table = DnsTable()
    for event in sorted((e for some in events for e in some), key=lambda e: e.ktime_ns):
        table.feed(event)
    return table.rest()
