"""Packets that fit no device, and data that nobody acknowledges: each story was seen in the lab, or looks like one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from k8snet.event import Encap, Event, FiveTuple
from k8snet.findings.case import Case, Wire
from k8snet.findings.diagnose import diagnose
from k8snet.kernel.rtnetlink import Link, Route, RouteQuestion
from k8snet.kernel.rules import NamedRule
from k8snet.report import Severity
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    NETFILTER_DROP,
    NODE,
    NOT_SPECIFIED,
    PKT_TOO_BIG,
    VIP,
    WEB,
    cases,
    codes,
    drop,
    findings,
    icmp_header,
    into,
    out,
    surroundings,
    syn_ack_to_client,
    syn_to_backend,
    told,
)

NATTED = f"{CLIENT} > {BACKEND}"
DATA = {"flags": 0x18, "seq": 1001, "payload": 1448, "len": 1500}
MS = 1_000_000
HANDSHAKE = (*syn_to_backend(), *syn_ack_to_client())
OUTER = FiveTuple(ip_address("192.168.50.1"), ip_address("192.168.50.2"), 55083, 8472, 17)


def link(name: str, mtu: int) -> Link:
    return Link(1, name, "veth", None, mtu, "up", None, None, None)


def question(netns: int, device: str, mark: int = 0) -> RouteQuestion:
    ends = ip_address("10.244.1.11"), ip_address("10.244.1.10")
    return RouteQuestion(netns, *ends, iif=sum(map(ord, device)), mark=mark)


# How the lab's node looks once pods have an MTU of 1500 and the next device one of 1450.
AROUND = {
    "routes": {question(NODE, "veth-cart"): Route(type="unicast", prefix="10.244.1.0/24", device="flannel.1")},
    "links": {
        NODE: {
            "flannel.1": link("flannel.1", 1450),
            "eth0": link("eth0", 1400),
            "veth-web-1": link("veth-web-1", 1500),
        },
        CART: {"eth0": link("eth0", 1500)},
        WEB: {"eth0": link("eth0", 1400)},
    },
    "wires": {
        ip_address("10.244.1.10"): Wire(CART, "eth0", NODE, "veth-cart"),
        ip_address("10.244.1.11"): Wire(WEB, "eth0", NODE, "veth-web-1"),
    },
}


def too_big(ip_id: int, ms: int, reason: int = PKT_TOO_BIG, symbol: str = "ip_forward", **other: object) -> list[Event]:
    """A data packet that dies on the node, `ms` after the handshake."""
    start = HANDSHAKE[-1].ktime_ns
    fields = {**DATA, "ip_id": ip_id, **other}
    events = [
        out(f"{CLIENT} > {VIP}", CART, "eth0", **{**fields, "len": 1514}),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart", **fields),
        drop(NATTED, NODE, "veth-cart", reason, symbol, **fields),
    ]
    return [e._replace(ktime_ns=start + ms * MS + i) for i, e in enumerate(events)]


def icmp_too_big(ip_id: int, ms: int, *, eaten: bool) -> list[Event]:
    """The node's ICMP error about it: dropped in the node's OUTPUT, or on its way to the client."""
    fields = {"encap": Encap.ICMP_ERROR, "outer": icmp_header("10.244.1.1", "10.244.1.10"), "icmp_type": 3}
    fields |= {"icmp_code": 4, "ip_id": ip_id, "seq": 1001, "payload": 1448, "flags": 0x18}
    start = HANDSHAKE[-1].ktime_ns + ms * MS
    if eaten:
        return [drop(NATTED, NODE, "", NETFILTER_DROP, "nft_do_chain", **fields, ifindex=0)._replace(ktime_ns=start)]
    return [
        out(NATTED, NODE, "veth-cart", **fields)._replace(ktime_ns=start),
        into(NATTED, CART, "eth0", **fields)._replace(ktime_ns=start + 1),
    ]


def retried(**other: object) -> list[Event]:
    """The same data three times over one and a half seconds."""
    return [e for i, ms in enumerate((1, 220, 640, 1480)) for e in too_big(6000 + i, ms, **other)]  # type: ignore[arg-type]  # passed on


def acknowledged(upto: int, ms: int) -> list[Event]:
    """The server's acknowledgement, on its way to the client."""
    start = HANDSHAKE[-1].ktime_ns + ms * MS
    fields = {"flags": 0x10, "ip_id": 77, "seq": 7001, "ack": upto}
    return [
        out(f"{BACKEND} > {CLIENT}", WEB, "eth0", **fields)._replace(ktime_ns=start),
        into(f"{VIP} > {CLIENT}", CART, "eth0", **fields)._replace(ktime_ns=start + 1),
    ]


def test_a_black_hole_names_the_mtu_and_the_rule_that_eats_the_icmp() -> None:
    story = [*HANDSHAKE, *retried(), *icmp_too_big(6000, 2, eaten=True), *icmp_too_big(6003, 1481, eaten=True)]
    flow = told(*story).flows[0]
    rule = NamedRule("nftrace", "ip filter", "OUTPUT", "-A OUTPUT -p icmp -j DROP", policy=False, engine="nft")
    eaten = {id(p): rule for p in flow.icmp_errors}
    (finding,) = diagnose(Case(flow, surroundings(rules=eaten, **AROUND)))
    assert finding.code == "MTU_BLACKHOLE"
    assert "1500 bytes do not fit flannel.1, whose MTU is 1450" in finding.title
    assert "dropped in OUTPUT" in finding.title
    assert finding.where.rule == rule.text
    assert any("iptables-nft -D OUTPUT -p icmp -j DROP" in line for line in finding.fix)
    assert any("ip link set dev eth0 mtu 1450" in line for line in finding.fix)
    assert "MTU of flannel.1 of node-1: 1450" in finding.evidence


def test_too_big_and_nobody_told_of_it() -> None:
    (finding,) = findings(*HANDSHAKE, *retried(), **AROUND)
    assert finding.code == "MTU_EXCEEDED"
    assert finding.title == "DROPPED on node-1: 1500 bytes do not fit flannel.1, whose MTU is 1450"
    assert "nobody told it" in finding.why


def test_who_was_told_sends_less_and_that_is_no_failure() -> None:
    story = [*HANDSHAKE, *too_big(6000, 1), *icmp_too_big(6000, 2, eaten=False), *acknowledged(1001 + 1448, 5)]
    (finding,) = findings(*story, **AROUND)
    assert finding.code == "PMTU_DISCOVERED"
    assert finding.severity is Severity.INFO
    assert cases(*story)[0].served


def test_data_that_came_through_in_other_pieces_is_not_lost() -> None:
    """The sender cuts anew, so none of its later packets need begin where the dead one began."""
    dead = too_big(6000, 1, seq=1001 + 700)
    assert codes(*HANDSHAKE, *dead, *acknowledged(1001 + 4000, 5), **AROUND) == []


def test_an_icmp_error_that_a_rule_dropped_did_not_hurt_a_served_connection() -> None:
    """The client found the size by itself (RFC 4821), or somebody else told it."""
    story = [*HANDSHAKE, *too_big(6000, 1), *icmp_too_big(6000, 2, eaten=True), *acknowledged(1001 + 1448, 500)]
    assert Severity.FAIL not in [f.severity for f in findings(*story, **AROUND)]


def test_an_outer_packet_with_df_is_measured_with_its_tunnel() -> None:
    wrapped = {"encap": Encap.VXLAN, "outer": OUTER}
    story = [e for i, ms in enumerate((1, 220, 640, 1480)) for e in too_big(6000 + i, ms)[:2]]
    story += [
        drop(NATTED, NODE, "eth0", NOT_SPECIFIED, "ip_fragment", **DATA, ip_id=6000 + i, **wrapped)._replace(
            ktime_ns=story[2 * i + 1].ktime_ns + 5
        )
        for i in range(4)
    ]
    (finding,) = findings(*HANDSHAKE, *sorted(story, key=lambda e: e.ktime_ns), **AROUND)
    assert finding.code == "MTU_EXCEEDED"
    assert "1500 bytes do not fit eth0, whose MTU is 1400" in finding.title
    assert any("tunnel's own headers take 50 bytes of the 1400: 1350" in line for line in finding.fix)
    assert not any("DNAT" in line for line in finding.evidence), "the entry is the tunnel's own"


def test_two_ends_of_a_veth_with_different_mtus() -> None:
    way = {"protocol": 17, "payload": 1450, "seq": 5, "ip_id": 9}
    story = [
        out(f"{CLIENT} > {BACKEND}", CART, "eth0", **way, len=1492),
        into(f"{CLIENT} > {BACKEND}", NODE, "veth-cart", **way, len=1478),
        out(f"{CLIENT} > {BACKEND}", NODE, "veth-web-1", **way, len=1492),
        drop(f"{CLIENT} > {BACKEND}", NODE, "veth-web-1", NOT_SPECIFIED, "__dev_forward_skb2", **way, len=1492),
    ]
    (finding,) = findings(*story, **AROUND)
    assert finding.code == "MTU_EXCEEDED"
    assert "1478 bytes do not fit eth0, whose MTU is 1400" in finding.title
    assert finding.fix[-1] == "ip link set dev eth0 mtu 1500"


@pytest.mark.parametrize("symbol", ["__dev_forward_skb2", "ip_forward", "br_nf_dev_queue_xmit"])
def test_an_unexplained_drop_of_what_fits_is_not_about_size(symbol: str) -> None:
    story = [
        *syn_to_backend()[:3],
        drop(NATTED, NODE, "veth-web-1", NOT_SPECIFIED, symbol, len=74),
    ]
    assert codes(*story, **AROUND) == ["KERNEL_DROP"]


def test_a_kernel_without_reasons_needs_the_numbers() -> None:
    nameless = {"reason": 0, "symbol": "ip_forward"}
    assert codes(*HANDSHAKE, *retried(**nameless), **AROUND) == ["MTU_EXCEEDED"]
    assert codes(*HANDSHAKE, *retried(**nameless)) == ["KERNEL_DROP"], "the next device's MTU is not known"


def quiet(times: tuple[int, ...]) -> list[Event]:
    """Data that leaves the node, again and again, and is not dropped there."""
    return [
        e._replace(ktime_ns=HANDSHAKE[-1].ktime_ns + ms * MS + j)
        for i, ms in enumerate(times)
        for j, e in enumerate(
            [
                out(f"{CLIENT} > {VIP}", CART, "eth0", **DATA, ip_id=7000 + i),
                into(f"{CLIENT} > {VIP}", NODE, "veth-cart", **DATA, ip_id=7000 + i),
                out(NATTED, NODE, "eth0", **DATA, ip_id=7000 + i),
            ]
        )
    ]


def test_data_that_is_never_acknowledged_is_not_delivered() -> None:
    story = [*HANDSHAKE, *quiet((1, 220, 640, 1480))]
    (finding,) = findings(*story)
    assert finding.code == "DATA_STALLED"
    assert "last seen on node-1 at eth0" in finding.title
    assert finding.evidence[0] == "1448 bytes were sent 4 times in 1.5 s and never acknowledged"
    assert cases(*story)[0].answered
    assert not cases(*story)[0].served
    assert codes(*story, lost=1) == [], "the acknowledgement may be among what was not seen"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(quiet((1,)), id="still-on-its-way"),
        pytest.param(quiet((1, 220)), id="sent-again-once"),
        pytest.param([*quiet((1, 220, 640, 1480)), *acknowledged(1001 + 1448, 1500)], id="acknowledged-late"),
        pytest.param([*quiet((1, 2, 3)), *acknowledged(1001 + 1448, 4)], id="acknowledged"),
    ],
)
def test_a_connection_that_makes_progress_is_not_stalled(more: list[Event]) -> None:
    assert codes(*HANDSHAKE, *more) == []


def test_sequence_numbers_go_round() -> None:
    story = [*HANDSHAKE, *[e._replace(seq=0xFFFF_FF00) for e in quiet((1, 220, 640, 1480))]]
    assert codes(*story, *acknowledged((0xFFFF_FF00 + 1448) & 0xFFFF_FFFF, 1500)) == []
    assert codes(*story, *acknowledged(0xFFFF_FF00, 1500)) == ["DATA_STALLED"]


def test_a_gso_packet_cut_for_a_queue_is_not_lost() -> None:
    cut = drop(f"{CLIENT} > {VIP}", NODE, "veth-cart", NOT_SPECIFIED, "nfqnl_enqueue_packet", **DATA, ip_id=7000)
    story = [*HANDSHAKE, *quiet((1,))[:2], cut]
    assert codes(*story) == []
