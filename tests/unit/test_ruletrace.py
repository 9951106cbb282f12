"""Decoding of what the kernel says about rules, and the script of our own table. Broken messages first."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.errors import K8snetError
from k8snet.event import FiveTuple
from k8snet.kernel.nfnetlink import NFGENMSG, attribute
from k8snet.kernel.ruletrace import Match, RuleStep, decode_legacy, decode_nft, parse_header, script

CLIENT, VIP, POD = ip_address("10.244.1.10"), ip_address("10.96.0.80"), ip_address("10.244.1.11")
SYN = FiveTuple(CLIENT, VIP, 50508, 80, socket.IPPROTO_TCP)


def ipv4(flow: FiveTuple, ip_id: int, fragment: int = 0, options: bytes = b"") -> bytes:
    head = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, 0, 60, ip_id, fragment, 64, flow.protocol, 0
    )  # the checksum is not looked at
    return head + flow.saddr.packed + flow.daddr.packed + options


def ipv6(flow: FiveTuple, protocol: int | None = None) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 40, flow.protocol if protocol is None else protocol, 64)
    return head + flow.saddr.packed + flow.daddr.packed


def tcp(flow: FiveTuple, seq: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", flow.sport, flow.dport, seq, 0, 0x50, flags, 0, 0, 0)


def be(number: int) -> bytes:
    return struct.pack("!I", number)


def nft(table: str, chain: str, *more: bytes, kind: int = 3, family: int = socket.AF_INET) -> bytes:
    names = attribute(1, table.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
    return NFGENMSG.pack(family, 0, 0) + names + attribute(4, be(kind)) + attribute(6, be(77)) + b"".join(more)


def step_of(body: bytes) -> RuleStep:
    step, _ = decode_nft(body, 1, 2)
    assert step is not None
    return step


def legacy(prefix: str, packet: bytes, *more: bytes, family: int = socket.AF_INET) -> bytes:
    body = attribute(1, struct.pack("!HBx", 0x800, 2)) + attribute(9, packet) + attribute(10, prefix.encode() + b"\0")
    return NFGENMSG.pack(family, 0, 0) + body + b"".join(more)


@given(st.binary(max_size=300))
def test_no_bytes_whatever_break_the_decoders(body: bytes) -> None:
    for message in (body, NFGENMSG.pack(2, 0, 0) + body, nft("t", "c", body), nft("t", "c", attribute(8, body))):
        decode_nft(message, 0, 0)
        decode_legacy(message, 0, 0)
    decode_legacy(legacy("TRACE: filter:FORWARD:rule:1 ", body), 0, 0)
    parse_header(body, None)
    parse_header(body, body)


def test_an_empty_message_is_no_step() -> None:
    assert decode_nft(b"", 0, 0) == (None, None)
    assert decode_legacy(b"", 0, 0) is None


def test_a_jump_names_chain_handle_and_target() -> None:
    verdict = attribute(5 | 0x8000, attribute(1, be(0xFFFFFFFD)) + attribute(2, b"KUBE-SVC-WEB\0"))
    step = step_of(nft("nat", "KUBE-SERVICES", attribute(3, struct.pack("!Q", 6)), verdict))
    assert (step.table, step.chain, step.handle) == ("nat", "KUBE-SERVICES", 6)
    assert (step.verdict, step.target, step.trace_id) == ("jump", "KUBE-SVC-WEB", 77)


def test_a_policy_is_its_own_verdict() -> None:
    step = step_of(nft("filter", "FORWARD", attribute(16, be(0)), kind=1))
    assert (step.kind, step.verdict) == ("policy", "drop")


@pytest.mark.parametrize("kind", [2, 3], ids=["5.10 and 6.1 say return", "6.12 and later say rule"])
def test_the_end_of_a_chain_is_a_return_on_every_kernel(kind: int) -> None:
    assert step_of(nft("nat", "KUBE-SERVICES", kind=kind)).kind == "return"


def test_the_first_message_of_a_traversal_carries_the_packet() -> None:
    body = nft(
        "filter", "FORWARD", attribute(8, ipv4(SYN, 5189)), attribute(9, tcp(SYN, 4711, 2)), attribute(10, be(3))
    )
    _, traversal = decode_nft(body, 0, 0)
    assert traversal is not None
    assert (traversal.packet, traversal.ip_id, traversal.seq, traversal.tcp_flags) == (SYN, 5189, 4711, 2)
    assert (traversal.base_chain, traversal.iif) == ("FORWARD", 3)


@pytest.mark.parametrize("options", [b"", b"\x01" * 8], ids=["plain", "with options"])
def test_a_logged_packet_is_one_piece(options: bytes) -> None:
    header = parse_header(ipv4(SYN, 1, options=options) + tcp(SYN, 9, 0x12), None)
    assert header is not None
    assert (header.packet, header.seq, header.tcp_flags) == (SYN, 9, 0x12)


def test_a_later_fragment_has_no_ports() -> None:
    header = parse_header(ipv4(SYN, 1, fragment=0x00B9) + b"\xff" * 20, None)
    assert header is not None
    assert header.packet == SYN._replace(sport=0, dport=0)


def test_ipv6_is_read_through_extension_headers() -> None:
    flow = FiveTuple(ip_address("fd00::1"), ip_address("fd00::2"), 4000, 53, socket.IPPROTO_UDP)
    udp = struct.pack("!HHHH", 4000, 53, 12, 0) + b"\x12\x34\x01\x00"
    hop_by_hop = bytes([socket.IPPROTO_UDP, 0]) + b"\x01\x04\0\0\0\0"
    for packet in (ipv6(flow) + udp, ipv6(flow, 0) + hop_by_hop + udp):
        header = parse_header(packet, None)
        assert header is not None
        assert (header.packet, header.ip_id, header.seq) == (flow, 0, 0x12340100)


def test_an_echo_has_its_id_as_source_port() -> None:
    flow = FiveTuple(CLIENT, POD, 0x4242, 0, socket.IPPROTO_ICMP)
    header = parse_header(ipv4(flow, 3) + struct.pack("!BBHHH", 0, 0, 0, 0x4242, 7), None)
    assert header is not None
    assert (header.packet, header.seq) == (flow, 7)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("TRACE: filter:FORWARD:rule:1 ", ("filter", "FORWARD", "rule", 1)),
        ("TRACE: nat:KUBE-SEP-WEB0:rule:2 ", ("nat", "KUBE-SEP-WEB0", "rule", 2)),
        ("TRACE: filter:FORWARD:policy:4 ", ("filter", "FORWARD", "policy", 4)),
        ("TRACE: filter:odd:name:return:12 ", ("filter", "odd:name", "return", 12)),
    ],
)
def test_a_legacy_line_is_taken_apart(prefix: str, expected: tuple[str, str, str, int]) -> None:
    step = decode_legacy(legacy(prefix, ipv4(SYN, 5) + tcp(SYN, 1, 2)), 1, 2)
    assert step is not None
    assert (step.table, step.chain, step.kind, step.number) == expected
    assert (step.packet, step.ip_id, step.hook, step.engine) == (SYN, 5, "forward", "legacy")


@pytest.mark.parametrize(
    "prefix", ["", "dropped: ", "TRACE: ", "TRACE: a:b:rule:x ", "TRACE: a:b:c:1 ", "TRACE: a:rule:1"]
)
def test_the_users_own_log_lines_are_not_ours(prefix: str) -> None:
    assert decode_legacy(legacy(prefix, ipv4(SYN, 5)), 0, 0) is None


def test_first_packets_of_both_directions_are_marked_and_few_of_the_later() -> None:
    lines = script("k8snet_trace", Match(6, (CLIENT,), ((VIP, 80),), ((POD, 8080),))).splitlines()
    assert lines[0] == "create table inet k8snet_trace { flags owner; }"
    wrapped = ("l4proto", "@th", "@again")  # in tunnels, in ICMP errors, and what died before
    rules = [line for line in lines if line.startswith("add rule") and not any(word in line for word in wrapped)]
    later = [rule for rule in rules if "tcp flags & (syn | rst) == 0 limit rate 5/second" in rule]
    rules = [rule for rule in rules if rule not in later]
    assert len(rules) == len(later) == 4  # two directions at two hooks
    assert all("tcp flags & (syn | rst) != 0 limit rate" in rule for rule in rules)
    assert "ip saddr { 10.244.1.10 } ip daddr . tcp dport { 10.96.0.80 . 80, 10.244.1.11 . 8080 }" in " ".join(
        sorted(rules)
    ).replace("10.244.1.11 . 8080, 10.96.0.80 . 80", "10.96.0.80 . 80, 10.244.1.11 . 8080")
    assert any("ip daddr { 10.244.1.10 } ip saddr . tcp sport" in rule for rule in rules)


def test_packets_in_tunnels_and_in_icmp_errors_are_marked_by_what_is_inside() -> None:
    lines = script("k8snet_trace", Match(6, (CLIENT,), ((VIP, 80),))).splitlines()
    # VXLAN: UDP, VXLAN and Ethernet are 30 bytes; 12 into the IP header stands the source, 13 into TCP the flags.
    syn = "udp dport { 4789, 8472 } @th,312,8 6 @th,336,32 0xaf4010a @th,504,8 & 6 != 0 limit rate"
    assert any(syn in line for line in lines)
    syn = "meta l4proto { 4, 41 } @th,72,8 6 @th,96,32 0xaf4010a @th,264,8 & 6 != 0 limit rate"
    assert any(syn in line for line in lines)
    # ICMP: its own header is 8 bytes.
    assert any("icmp type { destination-unreachable, time-exceeded } @th,160,32 0xaf4010a" in line for line in lines)
    assert script("t", Match(6, (), ((VIP, 80),))).count("@th") == 0, "a client that nobody knows is not looked for"


def test_an_icmp_error_is_known_by_what_it_quotes() -> None:
    """nf_tables shows 20 bytes of it: of the quoted packet no more than the id, and no address."""
    error = FiveTuple(ip_address("192.168.50.1"), CLIENT, 0, 0, socket.IPPROTO_ICMP)
    quoted = ipv4(SYN, 5189)
    for shown in (quoted[:12], quoted):
        header = parse_header(ipv4(error, 77), struct.pack("!BBHHH", 3, 4, 0, 0, 1450) + shown)
        assert header is not None
        assert (header.packet, header.ip_id) == (error, 5189)
    echo = parse_header(ipv4(error, 77), struct.pack("!BBHHH", 8, 0, 0, 1, 1) + quoted)
    assert echo is not None
    assert echo.ip_id == 77


def test_icmp_has_no_ports_and_any_protocol_means_three() -> None:
    icmp = script("t", Match(socket.IPPROTO_ICMP, (CLIENT,), ((POD, 80),)))
    assert "icmp type echo-request" in icmp
    assert "icmp type echo-reply" in icmp
    assert " . " not in icmp
    every = script("t", Match(0, (CLIENT,), ((POD, None),)))
    assert all(word in every for word in ("tcp flags", "meta l4proto 17", "icmp type echo"))


def test_families_do_not_mix() -> None:
    both = script("t", Match(6, (CLIENT, ip_address("fd00::1")), ((VIP, 80), (ip_address("fd00::2"), 80))))
    for rule in both.splitlines()[2:]:
        assert not ("fd00" in rule and "10." in rule), rule
    assert script("t", Match(6, (CLIENT,), ((VIP, 80), (ip_address("fd00::2"), 80)))).count("fd00") == 0


def test_nothing_known_is_not_everything() -> None:
    with pytest.raises(K8snetError):
        script("t", Match(6, (), ()))
