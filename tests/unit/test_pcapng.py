"""Stories as capture files, read by tshark: each sighting a packet, each place an interface, each finding a comment."""

from __future__ import annotations

import random
import socket
import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.utils import RawPcapNgReader

from k8snet.cluster.interfaces import Owner, Role
from k8snet.event import Encap, Event, FiveTuple, ProbeId
from k8snet.kernel.rules import NamedRule
from k8snet.render.headers import lengths, rebuilt
from k8snet.render.pcapng import blocks
from tshark import ERROR, about, faults, fields, needs_tshark
from unit.observed import BOOT_NS, observation
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    DNAT_DONE,
    INVENTORY,
    NETFILTER_DROP,
    NODE,
    OWNERS,
    VIP,
    drop,
    event,
    icmp_header,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
    told,
)

pytestmark = needs_tshark
SIX = "[fd00:10:244:1::10]:50508 > [fd00:10:244:1::11]:8080"
RULE = NamedRule("nftrace", "filter", "FORWARD", "-A FORWARD -j DROP", policy=False, hook="forward")


def written(where: Path, *events: Event, **around: object) -> Path:
    """The story as a file."""
    path = where / "flow.pcapng"
    path.write_bytes(b"".join(blocks(observation(*events, **around))))  # type: ignore[arg-type]  # passed on
    return path


def dropped_syn(**fields_: object) -> list[Event]:
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": DNAT_DONE}
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0", len=74, **fields_),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart", len=60, **fields_),
        drop(f"{CLIENT} > {BACKEND}", NODE, "veth-cart", NETFILTER_DROP, "nft_do_chain", len=60, **fields_, **entry),
    ]


def only(where: Path, seen: Event, *names: str) -> list[str]:
    """These fields of a packet that was seen once, and in which nothing is wrong."""
    ((*values, malformed, severities),) = fields(written(where, seen), *names, "_ws.malformed", "_ws.expert.severity")
    assert not malformed
    assert ERROR not in severities.split("|")
    return values


# --- the file ---------------------------------------------------------------------------------------------------------


def test_each_sighting_is_a_packet_at_its_place(tmp_path: Path) -> None:
    capture = written(tmp_path, *syn_to_backend(), *syn_ack_to_client())
    assert fields(capture, "frame.interface_name", "frame.p2p_dir", "ip.src", "ip.dst", "tcp.dstport") == [
        ["shop/cart:eth0", "0", "10.244.1.10", "10.96.0.80", "80"],
        ["node-1:veth-cart", "1", "10.244.1.10", "10.96.0.80", "80"],
        ["node-1:veth-web-1", "0", "10.244.1.10", "10.244.1.11", "8080"],
        ["shop/web-1:eth0", "1", "10.244.1.10", "10.244.1.11", "8080"],
        ["shop/web-1:eth0", "0", "10.244.1.11", "10.244.1.10", "50508"],
        ["node-1:veth-web-1", "1", "10.244.1.11", "10.244.1.10", "50508"],
        ["node-1:veth-cart", "0", "10.96.0.80", "10.244.1.10", "50508"],
        ["shop/cart:eth0", "1", "10.96.0.80", "10.244.1.10", "50508"],
    ]
    assert not faults(capture)
    described = fields(capture, "frame.interface_description")
    assert described[0] == ["device eth0 of pod shop/cart on node-1, netns 10"]
    assert described[1] == ["device veth-cart of node node-1, netns 1"]


def test_a_packet_has_one_id_wherever_it_is_seen(tmp_path: Path) -> None:
    capture = written(tmp_path, *syn_to_backend(), *dropped_syn(ip_id=6))
    assert [number for (number,) in fields(capture, "frame.packet_id")] == ["1"] * 4 + ["2"] * 3


def test_times_are_those_of_the_day_to_the_nanosecond(tmp_path: Path) -> None:
    (seen, *_) = events = dropped_syn(us=5)
    capture = written(tmp_path, *events)
    assert fields(capture, "frame.time_epoch")[0] == [f"{(BOOT_NS + seen.ktime_ns) / 1e9:.0f}.123461789"]


def test_what_happened_is_said_where_it_happened(tmp_path: Path) -> None:
    events = dropped_syn()
    correlator = told(*events)
    (packet,) = correlator.flows[0].packets
    path = tmp_path / "flow.pcapng"
    path.write_bytes(b"".join(blocks(observation(correlator=correlator, rules={id(packet): RULE}))))
    first, second, (place, comments) = fields(path, "frame.interface_name", "frame.comment")
    assert (first[1], second[1], place) == ("", "", "node-1:forward")
    finding, nat, death = comments.split("|")
    assert finding.startswith("FAIL RULE_DROP: DROPPED on node-1 in FORWARD: a rule in FORWARD\\n")
    assert "iptables" in finding
    assert nat == "prerouting: DNAT to 10.244.1.11:8080"
    assert death == (
        "DROPPED here: DROP; table filter chain FORWARD; rule -A FORWARD -j DROP; "
        "kfree_skb: NETFILTER_DROP at nft_do_chain"
    )


def test_a_finding_without_a_death_stands_at_the_last_packet_of_its_direction(tmp_path: Path) -> None:
    capture = written(tmp_path, *syn_to_backend(), listening={})
    said = [comment for (comment,) in fields(capture, "frame.comment")]
    assert [bool("FAIL" in comment or "UNKNOWN" in comment) for comment in said] == [False, False, False, True]


def test_the_file_says_who_made_it_and_what_it_lacks(tmp_path: Path) -> None:
    said = about(written(tmp_path, *syn_to_backend()))
    assert "Capture application: k8snet" in said
    assert "there are no captured bytes" in said
    assert "nanoseconds (9)" in said


def test_addresses_have_the_names_of_the_cluster(tmp_path: Path) -> None:
    done = subprocess.run(
        ["tshark", "-N", "n", "-r", str(written(tmp_path, *syn_to_backend()))],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "pod/shop/cart → svc/shop/web" in done.stdout


def test_names_from_outside_are_harmless(tmp_path: Path) -> None:
    evil = replace(INVENTORY.pods[0], name="x\x1b[31m\n\u202e")
    owners = {**OWNERS, CART: Owner("no\nde", evil, role=Role.POD)}
    inventory = replace(INVENTORY, pods=(evil, *INVENTORY.pods[1:]))
    events = [out(f"{CLIENT} > {VIP}", CART, "e\x1b[2Jth", len=74)]
    capture = written(tmp_path, *events, owners=owners, inventory=inventory)
    data = capture.read_bytes()
    assert b"\x1b" not in data
    assert "\u202e".encode() not in data
    ((name, described),) = fields(capture, "frame.interface_name", "frame.interface_description")
    # tshark shows a backslash as two.
    assert name.replace("\\\\", "\\") == "shop/x\\x1b[31m\\n\\u202e:e\\x1b[2Jth"
    assert "no\\nde" in described.replace("\\\\", "\\")


def test_scapy_reads_it_too(tmp_path: Path) -> None:
    with RawPcapNgReader(str(written(tmp_path, *dropped_syn()))) as reader:
        packets = [IP(data) for data, _ in reader]
    assert [(p[IP].dst, p[TCP].dport, p[TCP].flags) for p in packets] == [
        ("10.96.0.80", 80, "S"), ("10.96.0.80", 80, "S"), ("10.244.1.11", 8080, "S")
    ]  # fmt: skip


def test_nothing_seen_is_a_file_without_packets(tmp_path: Path) -> None:
    capture = written(tmp_path)
    assert fields(capture, "frame.number") == []
    assert "Number of packets:   0" in about(capture)


# --- headers ----------------------------------------------------------------------------------------------------------


def test_a_tcp_header_with_its_options_cut_away(tmp_path: Path) -> None:
    seen = into(f"{CLIENT} > {VIP}", NODE, "veth-cart", flags=0x18, seq=77, ack=99, payload=1400, len=1452, ttl=63,
                ip_id=4711, frag_off=0x4000)  # fmt: skip
    names = ("tcp.seq_raw", "tcp.ack_raw", "tcp.flags", "tcp.hdr_len", "tcp.len", "ip.ttl", "ip.id", "ip.flags.df",
             "ip.len", "frame.len", "frame.cap_len")  # fmt: skip
    assert only(tmp_path, seen, *names) == [
        "77", "99", "0x0018", "32", "1400", "63", "0x1267", "1", "1452", "1452", "40"
    ]  # fmt: skip


@pytest.mark.parametrize(("probe", "length"), [(ProbeId.NET_DEV_QUEUE, 74), (ProbeId.NETIF_RECEIVE_SKB, 60)])
def test_ethernet_is_told_from_tcp_options(probe: ProbeId, length: int) -> None:
    seen = event(probe, f"{CLIENT} > {VIP}", NODE, "veth-cart", len=length)
    assert lengths([seen]).tcp_header == 40


def test_a_padded_frame_does_not_say_how_long_the_header_is() -> None:
    assert lengths([into(f"{CLIENT} > {VIP}", NODE, "eth0", len=46)]).tcp_header is None


def test_the_first_bytes_of_a_datagram(tmp_path: Path) -> None:
    seen = out("10.244.1.10:3000 > 10.96.0.10:53", CART, "eth0", protocol=socket.IPPROTO_UDP, seq=0xBEEF0100,
               payload=40, len=82)  # fmt: skip
    assert only(tmp_path, seen, "dns.id", "udp.length", "frame.len", "frame.cap_len") == ["0xbeef", "48", "68", "32"]


@pytest.mark.parametrize(("version", "kind"), [(4, 8), (6, 128)])
def test_an_echo_request(tmp_path: Path, version: int, kind: int) -> None:
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    way = "10.244.1.10 > 10.244.2.11" if version == 4 else "fd00:10:244:1::10 > fd00:10:244:2::11"
    seen = out(way, CART, "eth0", protocol=protocol, icmp_type=kind, seq=3, payload=56, len=98)
    assert seen.packet is not None
    seen = seen._replace(packet=seen.packet._replace(sport=77))
    name = "icmp" if version == 4 else "icmpv6"
    values = only(tmp_path, seen, f"{name}.type", *(
        ("icmp.ident", "icmp.seq") if version == 4 else ("icmpv6.echo.identifier", "icmpv6.echo.sequence_number")
    ))  # fmt: skip
    assert [int(v, 0) for v in values] == [kind, 77, 3]


def test_an_icmp_error_with_the_header_that_it_quotes(tmp_path: Path) -> None:
    quoted = into(f"{CLIENT} > {VIP}", CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=4, flags=0x10,
                  seq=7, payload=1448, len=576, outer=icmp_header("10.244.1.1", "10.244.1.10"))  # fmt: skip
    capture = written(tmp_path, *syn_to_backend(), quoted)
    assert not faults(capture)
    names = ("ip.src", "ip.proto", "icmp.code", "tcp.seq", "tcp.flags", "ip.len", "frame.len")
    assert fields(capture, *names, where="icmp") == [
        ["10.244.1.1|10.244.1.10", "1|6", "4", "7", "0x0010", "576|1488", "576"]
    ]
    ((said,),) = fields(capture, "frame.comment", where="icmp")
    assert "MTU" in said


def test_an_icmp_error_that_quotes_eight_bytes(tmp_path: Path) -> None:
    quoted = into(f"{CLIENT} > {VIP}", CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=1, flags=0, seq=7,
                  len=56, outer=icmp_header("10.244.1.1", "10.244.1.10"))  # fmt: skip
    capture = written(tmp_path, *syn_to_backend(), quoted)
    assert not faults(capture)
    assert fields(capture, "tcp.seq", "tcp.flags", "frame.cap_len", where="icmp") == [["7", "", "56"]]


@pytest.mark.parametrize(
    ("encap", "port", "layers"),
    [
        (Encap.VXLAN, 8472, "raw:ip:udp:vxlan:eth:ethertype:ip:tcp"),
        (Encap.GENEVE, 6081, "raw:ip:udp:geneve:eth:ethertype:ip:tcp"),
        (Encap.IPIP, 0, "raw:ip:ip:tcp"),
    ],
)
def test_a_tunnel_has_both_headers(tmp_path: Path, encap: Encap, port: int, layers: str) -> None:
    outer = FiveTuple(ip_address("192.168.50.1"), ip_address("192.168.50.2"), 4000 if port else 0, port,
                      socket.IPPROTO_UDP if port else socket.IPPROTO_IPIP)  # fmt: skip
    seen = out(f"{CLIENT} > 10.244.2.11:8080", NODE, "eth0", encap=encap, outer=outer)
    protocols, source, inner = only(tmp_path, seen, "frame.protocols", "ip.src", "tcp.dstport")
    assert (protocols, source, inner) == (layers, "192.168.50.1|10.244.1.10", "8080")


def test_ipv6_and_ipv6_in_ipv4(tmp_path: Path) -> None:
    seen = out(SIX, CART, "eth0", len=94)
    names = ("ipv6.src", "ipv6.plen", "tcp.dstport", "frame.len")
    assert only(tmp_path, seen, *names) == ["fd00:10:244:1::10", "40", "8080", "80"]
    outer = FiveTuple(ip_address("192.168.50.1"), ip_address("192.168.50.2"), 0, 0, socket.IPPROTO_IPV6)
    wrapped = seen._replace(encap=Encap.IPIP, outer=outer)
    assert only(tmp_path, wrapped, "frame.protocols") == ["raw:ip:ipv6:tcp"]


def test_udp_over_ipv6_has_a_checksum_that_is_allowed(tmp_path: Path) -> None:
    assert only(tmp_path, out(SIX, CART, "eth0", protocol=socket.IPPROTO_UDP, len=62), "udp.checksum") == ["0xffff"]


@pytest.mark.parametrize("way", [f"{CLIENT} > {VIP}", SIX])
def test_fragments(tmp_path: Path, way: str) -> None:
    first = {"protocol": socket.IPPROTO_UDP, "ip_id": 9, "payload": 1472, "seq": 5, "frag_off": 0x2000, "len": 1514}
    events = [out(way, CART, "eth0", **first), out(way, CART, "eth0", **{**first, "frag_off": 0x2000 | 185})]
    four = "." in way
    for seen, offset in zip(events, (0, 185), strict=True):
        assert only(tmp_path, seen, "frame.len") == [str((20 if four else 48) + (0 if offset else 8) + 1472)]
        ((data, _),) = RawPcapNgReader(str(tmp_path / "flow.pcapng"))
        part = IP(data) if four else IPv6(data)[IPv6ExtHdrFragment]
        assert (part.frag if four else part.offset, part.id) == (offset, 9)
        assert (part.flags.MF if four else part.m) == 1


def test_sctp(tmp_path: Path) -> None:
    seen = out(f"{CLIENT} > {VIP}", CART, "eth0", protocol=socket.IPPROTO_SCTP, icmp_type=1, payload=20, len=66)
    assert only(tmp_path, seen, "sctp.dstport", "frame.len", "frame.cap_len") == ["80", "52", "33"]
    ((said,),) = fields(tmp_path / "flow.pcapng", "frame.comment")
    assert said.split("|")[1:] == ["SCTP INIT", "not known: the SCTP verification tag"]


def test_an_event_without_a_packet_has_no_header() -> None:
    seen = out(f"{CLIENT} > {VIP}", CART, "eth0")._replace(packet=None)
    assert rebuilt(seen, lengths([seen])) is None


def test_no_event_makes_a_packet_that_tshark_finds_malformed(tmp_path: Path) -> None:
    """Four hundred events of any protocol, encapsulation and length; the same ones each time."""
    dice = random.Random(5)  # noqa: S311  # nothing secret
    protocols = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, socket.IPPROTO_ICMP)
    events = []
    for _ in range(400):
        six, encap, protocol = dice.random() < 0.4, dice.choice(list(Encap)), dice.choice(protocols)
        if six and protocol == socket.IPPROTO_ICMP:
            protocol = socket.IPPROTO_ICMPV6
        outer = None
        if encap is not Encap.NONE:
            over = {Encap.IPIP: socket.IPPROTO_IPV6 if six else socket.IPPROTO_IPIP, Encap.ICMP_ERROR: protocol}
            inner_icmp = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
            number = inner_icmp if encap is Encap.ICMP_ERROR else over.get(encap, socket.IPPROTO_UDP)
            pair = ("fd00::1", "fd00::2") if six and encap is Encap.ICMP_ERROR else ("192.0.2.1", "192.0.2.2")
            port = {Encap.VXLAN: 8472, Encap.GENEVE: 6081}.get(encap, 0)
            outer = FiveTuple(ip_address(pair[0]), ip_address(pair[1]), 4000 if port else 0, port, number)
        icmp = protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
        kind = (3 if not six else 1) if encap is Encap.ICMP_ERROR else (128 if six else 8) if icmp else 0
        way = ("fd00:10:244:1::10", "fd00::9") if six else ("10.244.1.10", "10.96.0.80")
        seen = out(f"{CLIENT} > {VIP}", CART, "eth0", len=dice.randrange(40, 70000), payload=dice.randrange(65536),
                   flags=dice.randrange(256), seq=dice.randrange(1 << 32), ack=dice.randrange(1 << 32),
                   frag_off=dice.choice((0, 0, 0x4000, 0x2000, 100)), ip_id=dice.randrange(65536), encap=encap,
                   outer=outer, icmp_type=kind, ttl=dice.randrange(1, 256))  # fmt: skip
        ports = (7, 0) if icmp else (dice.randrange(1, 65536), 8080)
        events.append(seen._replace(packet=FiveTuple(ip_address(way[0]), ip_address(way[1]), *ports, protocol)))
    capture = written(tmp_path, *events)
    assert len(fields(capture, "frame.number")) == 400
    assert not [fault for fault in faults(capture) if fault[2]]


def test_a_dns_message_is_in_the_file_as_far_as_it_was_kept(tmp_path: Path) -> None:
    query = bytes.fromhex("beef01000001000000000000") + b"\3web\4shop\0\0\1\0\1"
    way = "10.244.1.10:3000 > 10.96.0.10:53"
    seen = out(way, CART, "eth0", protocol=socket.IPPROTO_UDP, seq=0xBEEF0100, payload=len(query), len=64)
    assert only(tmp_path, seen._replace(payload=query), "dns.id", "dns.qry.name") == ["0xbeef", "web.shop"]
    over_tcp = out(way, CART, "eth0", flags=0x18, payload=len(query) + 2, len=14 + 20 + 32 + len(query) + 2)
    framed = len(query).to_bytes(2, "big") + query
    assert only(tmp_path, over_tcp._replace(payload=framed), "dns.id", "dns.qry.name") == ["0xbeef", "web.shop"]
