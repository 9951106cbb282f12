"""The record that a probe sends, and the only code that touches its bytes.

`Event` is `struct event` of bpf/event.h under the same field names. Addresses become `ipaddress` objects
here; numbers of the kernel (drop reasons, hooks) stay numbers, because their names differ between kernels
and are looked up in the running kernel's BTF (`k8snet.kernel.symbols`).

Decoding is the hot path of the program. Tuples and names repeat in nearly every record of one flow at one
hop, so they stand together at the record's end and are decoded through a cache that is keyed by their bytes.
"""

from __future__ import annotations

import functools
import socket
import struct
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

Address = IPv4Address | IPv6Address


class ProbeId(IntEnum):
    """Which probe saw it: `enum probe_id` of bpf/event.h."""

    NET_DEV_QUEUE = 1
    NETIF_RECEIVE_SKB = 2
    KFREE_SKB = 3
    CONSUME_SKB = 4
    NET_DEV_XMIT = 5
    FIB_TABLE_LOOKUP = 6
    NEIGH_EVENT_SEND_DONE = 7
    NEIGH_TIMER_HANDLER = 8
    NEIGH_UPDATE = 9
    INET_SOCK_SET_STATE = 10
    TCP_RETRANSMIT_SKB = 11
    TCP_RETRANSMIT_SYNACK = 12
    TCP_SEND_RESET = 13
    TCP_RECEIVE_RESET = 14
    ICMP_SEND = 15
    UDP_FAIL_QUEUE_RCV_SKB = 16
    SKB_COPY_DATAGRAM_IOVEC = 17
    NF_HOOK_SLOW = 32
    IPT_DO_TABLE = 33
    NFT_DO_CHAIN = 34
    NF_CT_RESOLVE_CLASH = 35  # conntrack tuples and status are those of the winner
    IP6T_DO_TABLE = 36


class Encap(IntEnum):
    """How the header in `Event.packet` was found: `enum encap` of bpf/event.h."""

    NONE = 0
    VXLAN = 1
    GENEVE = 2
    IPIP = 3
    ICMP_ERROR = 4


class TcpFlag(IntFlag):
    """RFC 9293, section 3.1."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10


class CtStatus(IntFlag):
    """`enum ip_conntrack_status` (UAPI, stable): how far conntrack and NAT have got with this entry."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    NAT_CLASH = 1 << 12


CT_INFO_NONE: Final = 0xFF
HOOK_NONE: Final = 0xFF


class FiveTuple(NamedTuple):
    """Conntrack's five-tuple. ICMP echo: `sport` is the echo id and `dport` is 0, in both directions."""

    saddr: Address
    daddr: Address
    sport: int
    dport: int
    protocol: int

    def reversed(self) -> FiveTuple:
        """The tuple of the opposite direction."""
        if self.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
            return FiveTuple(self.daddr, self.saddr, self.sport, self.dport, self.protocol)
        return FiveTuple(self.daddr, self.saddr, self.dport, self.sport, self.protocol)


def end_of(address: Address | str, port: int | None) -> str:
    """One end of a connection for people: `10.244.1.10:80`, `[fd00::1]:80`; without a port the address alone."""
    if not port:
        return str(address)
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def _tuple(raw: bytes) -> FiveTuple | None:
    saddr, daddr, sport, dport, protocol, family = _TUPLE.unpack(raw)
    if family == socket.AF_INET:
        return FiveTuple(IPv4Address(saddr[:4]), IPv4Address(daddr[:4]), sport, dport, protocol)
    if family == socket.AF_INET6:
        return FiveTuple(IPv6Address(saddr), IPv6Address(daddr), sport, dport, protocol)
    if family == 0:
        return None
    raise ValueError(f"unknown address family {family}")


def _name(raw: bytes) -> str:
    """A C string as text; what is not printable is escaped, never trusted."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


@functools.lru_cache(maxsize=16384)
def _tail(raw: bytes) -> tuple[FiveTuple | None, FiveTuple | None, FiveTuple | None, FiveTuple | None, str, str]:
    packet, outer, ct_orig, ct_reply, ifname, table = _TAIL.unpack(raw)
    return _tuple(packet), _tuple(outer), _tuple(ct_orig), _tuple(ct_reply), _name(ifname), _name(table)


# `struct event` in one format string. HEAD is what differs from record to record; TAIL, what repeats.
_HEAD: Final = "QQQ IIIIIII i III HHHHHH BBBBBBBBB BB 5x"
_TUPLE: Final = struct.Struct("=16s16sHHBBxx")
_TAIL: Final = struct.Struct("=" + "40s40s40s40s 16s16s")
LAYOUT: Final = struct.Struct(f"={_HEAD} {_TAIL.size}s")
PAYLOAD_MAX: Final = 288  # bytes of a DNS message that may follow
DNS_PORT: Final = 53
# The same field by field, for whoever has to say what a record is (`k8snet.record.layout`).
FORMAT: Final = f"{_HEAD} {_TAIL.format.removeprefix('=')}"


class BadRecordError(ValueError):
    """A record that is not an event: counted and named, never fatal."""


class Event(NamedTuple):
    """One probe saw one skb (or one socket, route, neighbour). Field meanings: bpf/event.h."""

    ktime_ns: int
    skb: int
    location: int
    cpu: int
    netns: int
    ifindex: int
    skb_iif: int
    len: int
    skb_mark: int
    reason: int
    code: int
    seq: int
    ack: int
    ct_status: int
    ip_id: int
    frag_off: int
    payload_len: int
    gso_size: int
    gso_segs: int
    ct_zone: int
    ct_info: int
    ttl: int
    tcp_flags: int
    icmp_type: int
    icmp_code: int
    pkt_type: int
    hook: int
    nf_trace: int
    cloned: int
    probe: ProbeId
    encap: Encap
    packet: FiveTuple | None
    outer: FiveTuple | None
    ct_orig: FiveTuple | None
    ct_reply: FiveTuple | None
    ifname: str
    table: str
    payload: bytes = b""  # of a packet of port 53: the DNS message, or its beginning (over TCP its length before it)

    @classmethod
    def decode(cls, record: bytes) -> Event:
        """The event in `record`; raises BadRecordError when it is none."""
        try:
            *plain, probe, encap, tail = LAYOUT.unpack_from(record)
            # tuple.__new__ in place of cls(...): a call with 38 arguments took twice the time of everything else.
            event = tuple.__new__(cls, (*plain, _PROBES[probe], _ENCAPS[encap], *_tail(tail), record[LAYOUT.size :]))
        except struct.error:
            raise BadRecordError(f"{len(record)} bytes, expected {LAYOUT.size}") from None
        except KeyError as unknown:
            raise BadRecordError(f"unknown probe or encapsulation {unknown}") from None
        except ValueError as bad:
            raise BadRecordError(str(bad)) from None
        if event.payload and not (event.is_dns and len(event.payload) <= PAYLOAD_MAX):
            raise BadRecordError(f"{len(record)} bytes, expected {LAYOUT.size}")
        return event

    @property
    def is_dns(self) -> bool:
        """Its packet belongs to port 53, though NAT may have given the server another one."""
        ports = (*(self.packet[2:4] if self.packet else ()), self.ct_orig.dport if self.ct_orig else 0)
        return DNS_PORT in ports


_PROBES: Final = {p.value: p for p in ProbeId}
_ENCAPS: Final = {e.value: e for e in Encap}
