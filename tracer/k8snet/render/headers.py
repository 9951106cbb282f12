"""The headers of a packet, rebuilt from the fields that an event has of them.

In: an `Event`. Out: the packet's first bytes from its IP header on, and how many there were in all; like a capture with
a small snapshot length, it ends where nothing more is known. What stands in between and was not seen is zero (all
checksums, the type of service, flow labels, a tunnel's network identifier and MAC addresses), but for two fields: a TCP
window of zero would mean that the receiver takes nothing, and UDP over IPv6 may not have a checksum of zero.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from k8snet.event import Encap, Event, FiveTuple, ProbeId
from k8snet.flow.model import AT_DEVICE

_NOT_ZERO: Final = 0xFFFF
_LARGEST: Final = 0xFFFF  # what a length field holds
_ETHERNET: Final = 14
_TCP: Final = 20  # without options
_MOST_TCP: Final = 60
_OFFSET, _MORE_6 = 0x1FFF, 0x2000  # of Event.frag_off
_ICMPS: Final = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)


class Rebuilt(NamedTuple):
    """The beginning of a packet."""

    data: bytes  # from the IP header's first byte
    length: int  # of the packet, in bytes from there; never less than there are
    unknown: tuple[str, ...]  # what stands in `data` as zero (or in no more than a guess), beside what always does


class Lengths(NamedTuple):
    """What only several events of one packet tell."""

    tcp_header: int | None  # bytes, with options
    whole: int | None  # bytes, of an ICMP error: how much it quotes is in no field of its event


def lengths(events: Iterable[Event]) -> Lengths:
    """From the lengths that the kernel has noted at devices. They may have an Ethernet header in them."""
    tcp_header = whole = None
    for event in events:
        if event.probe not in AT_DEVICE or event.packet is None:
            continue
        length = event.len
        if event.encap is Encap.ICMP_ERROR and event.outer is not None:
            sent = event.probe is ProbeId.NET_DEV_QUEUE
            whole = min(whole or _LARGEST, event.len - (_ETHERNET if sent else 0))
            length -= _fixed(event.outer) + 8
        if event.encap in (Encap.NONE, Encap.ICMP_ERROR) and event.packet.protocol == socket.IPPROTO_TCP:
            rest = length - _ip_length(event, event.packet) - event.payload_len
            # A TCP header is made of words, and Ethernet's is not: never do both fit.
            fit = [size for size in (rest, rest - _ETHERNET) if _TCP <= size <= _MOST_TCP and size % 4 == 0]
            tcp_header = fit[0] if fit else tcp_header
    return Lengths(tcp_header, whole)


def rebuilt(event: Event, known: Lengths) -> Rebuilt | None:
    """The packet that `event` saw; None when it has seen none."""
    if event.packet is None:
        return None
    unknown: list[str] = []
    inner, length = _packet(event, event.packet, known, unknown)
    outer = event.outer
    if outer is None or event.encap is Encap.NONE:
        return Rebuilt(inner, max(length, len(inner)), tuple(unknown))
    unknown.append("TTL and IP id of the outer header")
    between = b""
    if event.encap in (Encap.VXLAN, Encap.GENEVE):
        kind = 0x0800 if event.packet.daddr.version == 4 else 0x86DD
        # RFC 7348: "VNI is valid". RFC 8926: no options, and what follows is Ethernet (0x6558).
        tunnel = struct.pack("!II", 1 << 27, 0) if event.encap is Encap.VXLAN else struct.pack("!HHI", 0, 0x6558, 0)
        between = tunnel + bytes(12) + struct.pack("!H", kind)
        between = _udp(outer, 8 + len(between) + length) + between
        unknown.append("VNI and the inner MAC addresses")
        if event.encap is Encap.GENEVE:
            unknown.append("Geneve's options, which are left out")
    elif event.encap is Encap.ICMP_ERROR:
        between = struct.pack("!BBHI", event.icmp_type, event.icmp_code, 0, 0)
        unknown.append("the ICMP error's own data (such as the MTU of the next hop)")
        length = min(length, max((known.whole or 0) - _fixed(outer) - len(between), len(inner)))
    length += len(between)
    data = _ip(outer, length, ttl=0) + between + inner
    return Rebuilt(data, max(length + _fixed(outer), len(data)), tuple(unknown))


def _packet(event: Event, header: FiveTuple, known: Lengths, unknown: list[str]) -> tuple[bytes, int]:
    """The innermost IP header and what is known behind it; how long both and their payload were."""
    later = event.frag_off & _OFFSET
    transport, length = (b"", 0) if later else _transport(event, header, known, unknown)
    length += event.payload_len
    fragment = b""
    if _is_fragment_6(event, header):
        more = bool(event.frag_off & _MORE_6)
        fragment = struct.pack("!BBHI", header.protocol, 0, later << 3 | more, event.ip_id)
        unknown.append("the upper half of the fragment's identification")
    if event.frag_off & (_OFFSET | _MORE_6) and header.protocol == socket.IPPROTO_UDP and not later:
        unknown.append("the UDP length, which is the fragment's")
    first = _ip(
        header, len(fragment) + length, ttl=event.ttl, ip_id=event.ip_id, frag_off=event.frag_off, fragment=fragment
    )
    return first + transport, len(first) + length


def _transport(event: Event, header: FiveTuple, known: Lengths, unknown: list[str]) -> tuple[bytes, int]:
    """What is known of the transport header and of the payload; how long the header is."""
    quoted = event.encap is Encap.ICMP_ERROR
    payload = event.payload_len
    if header.protocol == socket.IPPROTO_TCP:
        size = known.tcp_header
        if size is None:
            size = _TCP
            unknown.append("how much of it are TCP options")
        data = struct.pack(
            "!HHIIBBHHH", header.sport, header.dport, event.seq, event.ack, size << 2, event.tcp_flags, _NOT_ZERO, 0, 0
        )
        if event.payload and not quoted:
            if size > _TCP:
                unknown.append("the TCP options")  # zero is "end of options" (RFC 9293, section 3.2)
            return data + bytes(size - _TCP) + event.payload[:payload], size
        # A TCP packet has a flag; where there is none, no more was quoted than RFC 792 asks for.
        return (data[:8] if quoted and not event.tcp_flags else data), size
    if header.protocol == socket.IPPROTO_UDP:
        # The event has the first four bytes of a payload as its `seq`; of a quoted one they may be missing.
        begin = struct.pack("!I", event.seq) if payload >= 4 and not quoted else b""
        return _udp(header, 8 + payload) + (event.payload[:payload] or begin), 8
    if header.protocol == socket.IPPROTO_SCTP:
        unknown.append("the SCTP verification tag")
        chunk = bytes([event.icmp_type]) if payload and not quoted else b""
        return struct.pack("!HHII", header.sport, header.dport, 0, 0) + chunk, 12
    if header.protocol in _ICMPS:
        kind, code = (event.icmp_type, event.icmp_code) if not quoted else _echo(header)
        return struct.pack("!BBHHH", kind, code, 0, header.sport, event.seq & 0xFFFF), 8
    return b"", 0


def _echo(header: FiveTuple) -> tuple[int, int]:
    """Of a quoted ICMP message the event has no type: errors are about requests."""
    return (8 if header.protocol == socket.IPPROTO_ICMP else 128), 0


def _udp(header: FiveTuple, length: int) -> bytes:
    checksum = 0 if header.daddr.version == 4 else _NOT_ZERO
    return struct.pack("!HHHH", header.sport, header.dport, min(length, _LARGEST), checksum)


def _ip(header: FiveTuple, length: int, *, ttl: int, ip_id: int = 0, frag_off: int = 0, fragment: bytes = b"") -> bytes:
    """An IP header in front of `length` bytes, and the fragment header that is among them."""
    if header.daddr.version == 4:
        size = min(20 + length, _LARGEST)
        first = struct.pack("!BBHHHBBH", 0x45, 0, size, ip_id, frag_off, ttl, header.protocol, 0)
    else:
        follows = socket.IPPROTO_FRAGMENT if fragment else header.protocol
        first = struct.pack("!IHBB", 6 << 28, min(length, _LARGEST), follows, ttl)
    return first + header.saddr.packed + header.daddr.packed + fragment


def _fixed(header: FiveTuple) -> int:
    return 20 if header.daddr.version == 4 else 40


def _is_fragment_6(event: Event, header: FiveTuple) -> bool:
    return header.daddr.version == 6 and bool(event.frag_off & (_OFFSET | _MORE_6))


def _ip_length(event: Event, header: FiveTuple) -> int:
    return _fixed(header) + (8 if _is_fragment_6(event, header) else 0)
