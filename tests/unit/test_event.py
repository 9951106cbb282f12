"""The decoder, broken records first: what the ring buffer hands over is an event or one counted error."""

from __future__ import annotations

import socket
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.event import LAYOUT, PAYLOAD_MAX, BadRecordError, Encap, Event, FiveTuple, ProbeId, TcpFlag

# Where fields stand, counted by hand from bpf/event.h: an error in LAYOUT must not move the test along.
HOOK, PROBE, ENCAP, PACKET, CT_ORIG, IFNAME, TABLE, SIZE = 86, 89, 90, 96, 176, 256, 272, 288
FAMILY = 37  # within a tuple


def record(**parts: tuple[int, bytes]) -> bytes:
    """A zero record of a known probe with some bytes put in: name=(offset, bytes)."""
    raw = bytearray(SIZE)
    raw[PROBE] = ProbeId.KFREE_SKB
    for offset, value in parts.values():
        raw[offset : offset + len(value)] = value
    return bytes(raw)


def packed(saddr: str, daddr: str, sport: int, dport: int, protocol: int, family: int) -> bytes:
    """`struct tuple`, written as the kernel side writes it."""
    source, destination = (socket.inet_pton(family, a).ljust(16, b"\0") for a in (saddr, daddr))
    ports = sport.to_bytes(2, sys.byteorder) + dport.to_bytes(2, sys.byteorder)
    return source + destination + ports + bytes((protocol, family, 0, 0))


def test_an_empty_record_is_refused() -> None:
    with pytest.raises(BadRecordError, match="0 bytes, expected 288"):
        Event.decode(b"")


def test_a_record_one_byte_short_is_refused() -> None:
    with pytest.raises(BadRecordError, match="287 bytes"):
        Event.decode(record()[:-1])


def test_a_record_one_byte_long_is_refused() -> None:
    with pytest.raises(BadRecordError, match="289 bytes"):
        Event.decode(record() + b"\0")


def dns_record(sport: int, dport: int, at: int = PACKET, protocol: int = 17) -> bytes:
    """A record of a UDP packet, or with such a tuple in another place."""
    return record(tuple=(at, packed("10.244.1.10", "10.96.0.10", sport, dport, protocol, socket.AF_INET)))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(dns_record(50508, 53), id="query"),
        pytest.param(dns_record(53, 50508), id="answer"),
        pytest.param(dns_record(50508, 53, protocol=6), id="tcp"),
        pytest.param(dns_record(50508, 53, at=CT_ORIG), id="behind-dnat"),
    ],
)
def test_what_follows_a_record_of_port_53_is_its_payload(head: bytes) -> None:
    assert Event.decode(head).payload == b""
    for size in (1, 12, PAYLOAD_MAX):
        assert Event.decode(head + b"q" * size).payload == b"q" * size


def test_a_payload_of_another_port_is_refused() -> None:
    with pytest.raises(BadRecordError, match="300 bytes, expected 288"):
        Event.decode(dns_record(50508, 54) + bytes(12))


def test_more_payload_than_the_kernel_copies_is_refused() -> None:
    with pytest.raises(BadRecordError, match="577 bytes"):
        Event.decode(dns_record(50508, 53) + bytes(PAYLOAD_MAX + 1))


@pytest.mark.parametrize("number", [0, 18, 31, 37, 64, 255])
def test_an_unknown_probe_is_refused_with_its_number(number: int) -> None:
    with pytest.raises(BadRecordError, match=rf"\b{number}\b"):
        Event.decode(record(probe=(PROBE, bytes([number]))))


def test_an_unknown_encapsulation_is_refused() -> None:
    with pytest.raises(BadRecordError, match="200"):
        Event.decode(record(encap=(ENCAP, b"\xc8")))


def test_an_unknown_address_family_is_refused() -> None:
    with pytest.raises(BadRecordError, match="unknown address family 7"):
        Event.decode(record(family=(PACKET + FAMILY, b"\7")))


def test_an_unknown_hook_is_kept_as_its_number() -> None:
    # A new hook in a future kernel must not cost the event that shows it.
    assert Event.decode(record(hook=(HOOK, b"\x2a"))).hook == 42


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        pytest.param(b"eth0", "eth0", id="plain"),
        pytest.param(b"veth0123456789ab", "veth0123456789ab", id="no-terminator"),
        pytest.param(b"a\0garbage", "a", id="garbage-behind-the-terminator"),
        pytest.param(b"\x1b[31mred", "\\x1b[31mred", id="terminal-escape"),
        pytest.param(b"\xff\xfe", "\\xff\\xfe", id="not-ascii"),
        pytest.param(b"a\nb", "a\\x0ab", id="newline"),
    ],
)
def test_a_name_from_the_kernel_is_made_printable(raw: bytes, shown: str) -> None:
    decoded = Event.decode(record(ifname=(IFNAME, raw), table=(TABLE, raw)))
    assert (decoded.ifname, decoded.table) == (shown, shown)
    assert decoded.ifname.isprintable()


def test_a_record_of_zeros_with_a_probe_is_an_event_without_tuples() -> None:
    decoded = Event.decode(record())
    assert decoded.probe is ProbeId.KFREE_SKB
    assert (decoded.packet, decoded.outer, decoded.ct_orig, decoded.ct_reply) == (None, None, None, None)
    assert decoded.encap is Encap.NONE


def test_an_ipv4_packet() -> None:
    raw = packed("10.244.1.10", "10.96.0.80", 50508, 80, 6, socket.AF_INET)
    expected = FiveTuple(IPv4Address("10.244.1.10"), IPv4Address("10.96.0.80"), 50508, 80, 6)
    assert Event.decode(record(packet=(PACKET, raw))).packet == expected


def test_an_ipv6_packet() -> None:
    raw = packed("fd00::1", "fd00:1::2", 50508, 53, 17, socket.AF_INET6)
    expected = FiveTuple(IPv6Address("fd00::1"), IPv6Address("fd00:1::2"), 50508, 53, 17)
    assert Event.decode(record(packet=(PACKET, raw))).packet == expected


def test_a_reversed_tuple_swaps_both_ends_but_an_echo_keeps_its_id() -> None:
    a, b = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    assert FiveTuple(a, b, 1000, 80, 6).reversed() == FiveTuple(b, a, 80, 1000, 6)
    assert FiveTuple(a, b, 1000, 0, 1).reversed() == FiveTuple(b, a, 1000, 0, 1)


def test_tcp_flags_stand_where_the_header_has_them() -> None:
    assert TcpFlag.SYN | TcpFlag.ACK == 0x12


@given(st.binary(max_size=LAYOUT.size + 8))
def test_any_bytes_are_an_event_or_a_bad_record(raw: bytes) -> None:
    try:
        decoded = Event.decode(raw)
    except BadRecordError:
        return
    assert decoded.ifname.isprintable() or not decoded.ifname


@given(
    st.binary(min_size=SIZE, max_size=SIZE),
    st.sampled_from(ProbeId),
    st.sampled_from(Encap),
    st.tuples(*[st.sampled_from([0, socket.AF_INET, socket.AF_INET6])] * 4),
)
def test_every_record_with_known_numbers_decodes(
    noise: bytes, probe: ProbeId, encap: Encap, families: tuple[int, int, int, int]
) -> None:
    raw = bytearray(noise)
    raw[PROBE], raw[ENCAP] = probe, encap
    for number, family in enumerate(families):
        raw[PACKET + 40 * number + FAMILY] = family
    decoded = Event.decode(bytes(raw))
    assert (decoded.probe, decoded.encap) == (probe, encap)
    assert [t is None for t in (decoded.packet, decoded.outer, decoded.ct_orig, decoded.ct_reply)] == [
        family == 0 for family in families
    ]


integers = {
    "Q": st.integers(0, 2**64 - 1),
    "I": st.integers(0, 2**32 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "H": st.integers(0, 2**16 - 1),
    "B": st.integers(0, 255),
}
PLAIN = "QQQIIIIIIIiIIIHHHHHHBBBBBBBBB"


@given(st.tuples(*[integers[code] for code in PLAIN]), st.sampled_from(ProbeId), st.sampled_from(Encap))
def test_numbers_come_back_as_they_were_packed(numbers: tuple[int, ...], probe: ProbeId, encap: Encap) -> None:
    decoded = Event.decode(LAYOUT.pack(*numbers, probe, encap, bytes(LAYOUT.size - PACKET)))
    assert tuple(decoded)[: len(PLAIN)] == numbers


addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)


@given(addresses, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255))
def test_a_tuple_comes_back_as_it_was_packed(
    ends: tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address], sport: int, dport: int, protocol: int
) -> None:
    saddr, daddr = ends
    family = socket.AF_INET if saddr.version == 4 else socket.AF_INET6
    raw = packed(str(saddr), str(daddr), sport, dport, protocol, family)
    assert Event.decode(record(packet=(PACKET, raw))).packet == FiveTuple(saddr, daddr, sport, dport, protocol)
