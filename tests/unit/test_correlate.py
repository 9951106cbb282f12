"""Which events are one packet, which packets are one flow."""

from __future__ import annotations

import dataclasses
import socket
from ipaddress import ip_address

from k8snet.event import Encap, Event, FiveTuple
from k8snet.flow.correlate import Correlator
from k8snet.flow.model import Direction
from k8snet.kernel.ruletrace import RuleStep
from k8snet.path import Surface, hops
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    DNAT_DONE,
    NETFILTER_DROP,
    NODE,
    VIP,
    WEB,
    addresses,
    drop,
    icmp_header,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
    told,
)  # fmt: skip

UDP = {"protocol": socket.IPPROTO_UDP}


def test_one_syn_through_dnat_is_one_packet() -> None:
    (flow,) = told(*syn_to_backend()).flows
    (packet,) = flow.packets
    assert packet.is_syn
    assert len(packet.events) == 4
    assert flow.dnat == (addresses("10.244.1.11")[0], 8080)
    assert flow.snat is None


def test_the_answer_belongs_to_the_request_and_goes_the_other_way() -> None:
    (flow,) = told(*syn_to_backend(), *syn_ack_to_client()).flows
    assert [p.direction for p in flow.packets] == [Direction.REQUEST, Direction.REPLY]
    assert flow.packets[1].is_syn_ack
    assert len(flow.packets[1].events) == 4


def step(packet: FiveTuple, after: Event, ip_id: int = 0, netns: int = NODE) -> RuleStep:
    """A rule that a packet with this header met, read just after `after`."""
    known = {"ktime_ns": after.ktime_ns + 1, "netns": netns, "packet": packet, "ip_id": ip_id, "chain": "INPUT"}
    fields: dict[str, object] = dict.fromkeys((f.name for f in dataclasses.fields(RuleStep)), None)
    return RuleStep(**(fields | known))  # type: ignore[arg-type]  # a builder by field name


def test_a_rule_that_met_the_outer_packet_belongs_to_the_packet_inside() -> None:
    outer = icmp_header("192.168.50.1", "192.168.50.2")._replace(sport=55083, dport=8472, protocol=socket.IPPROTO_UDP)
    syn = syn_to_backend()
    wrapped = out(f"{CLIENT} > {BACKEND}", NODE, "eth0", encap=Encap.VXLAN, outer=outer)
    story = told(*syn, wrapped)
    others = step(outer._replace(sport=1), wrapped), step(outer, wrapped, netns=5)
    story.attach_rules([step(outer, wrapped, 999), *others])
    (packet,) = story.flows[0].packets
    assert [(s.packet, s.netns) for s in packet.rules] == [(outer, NODE)]


def test_a_rule_that_met_an_icmp_error_belongs_to_that_error() -> None:
    syn, outer = syn_to_backend(), icmp_header("192.168.50.1", "10.244.1.10")
    way = f"{CLIENT} > {VIP}"
    fields = {"encap": Encap.ICMP_ERROR, "outer": outer, "icmp_type": 3, "icmp_code": 4}
    errors = [drop(way, NODE, "", NETFILTER_DROP, "nft_do_chain", ip_id=ip_id, **fields) for ip_id in (5189, 5190)]
    story = told(*syn, *errors)
    story.attach_rules([step(outer, errors[1], 5189)])
    first, second = story.flows[0].icmp_errors
    assert [len(p.rules) for p in (first, second, story.flows[0].requests[0])] == [1, 0, 0]


def test_a_retransmitted_syn_is_another_packet_of_the_same_flow() -> None:
    again = [e._replace(ip_id=5190, ktime_ns=e.ktime_ns + 10**9) for e in syn_to_backend()]
    (flow,) = told(*syn_to_backend(), *again).flows
    assert [p.is_syn for p in flow.packets] == [True, True]


def test_a_retransmitted_syn_ack_without_ip_id_is_another_packet() -> None:
    first = syn_ack_to_client()[:2]
    again = [e._replace(ktime_ns=e.ktime_ns + 10**9) for e in first]
    (flow,) = told(*syn_to_backend(), *first, *again).flows
    assert len(flow.replies) == 2


def test_the_same_port_with_another_initial_sequence_is_a_new_connection() -> None:
    again = [e._replace(ip_id=1, seq=99) for e in syn_to_backend()]
    assert len(told(*syn_to_backend(), *again).flows) == 2


def test_equal_datagrams_without_ip_id_are_told_apart_by_where_they_are() -> None:
    way = f"{CLIENT} > {BACKEND}"
    story = [out(way, CART, "eth0", ip_id=0, **UDP), into(way, NODE, "veth-cart", ip_id=0, **UDP)] * 2
    (flow,) = told(*story).flows
    assert [len(p.events) for p in flow.packets] == [2, 2]


def test_two_dns_queries_of_one_socket_are_two_flows() -> None:
    way = f"{CLIENT} > 10.96.0.10:53"
    queries = [out(way, CART, "eth0", seq=txid << 16 | 0x0100, payload=33, **UDP) for txid in (7, 8)]
    answer = into("10.96.0.10:53 > " + CLIENT, CART, "eth0", seq=8 << 16 | 0x8180, payload=49, **UDP)
    flows = told(*queries, answer).flows
    assert [len(f.packets) for f in flows] == [1, 2]


def test_each_echo_request_is_a_flow() -> None:
    way = "10.244.1.10:77 > 10.244.1.11"
    echo = {"protocol": socket.IPPROTO_ICMP}
    back = into("10.244.1.11:77 > 10.244.1.10", CART, "eth0", seq=2, **echo)
    flows = told(*(out(way, CART, "eth0", seq=n, **echo) for n in (1, 2)), back).flows
    assert [len(f.packets) for f in flows] == [1, 2]


def test_an_icmp_error_goes_against_the_packet_it_quotes() -> None:
    error = event_about(f"{CLIENT} > {VIP}")
    (flow,) = told(*syn_to_backend()[:2], error).flows
    (packet,) = flow.icmp_errors
    assert packet.direction is Direction.REPLY
    assert packet.key.icmp == (3, 3)


def event_about(way: str) -> Event:
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    return into(way, CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, outer=outer)


def test_a_drop_is_the_end_of_its_packet() -> None:
    story = syn_to_backend(status=DNAT_DONE)[:2]
    died = drop(f"{CLIENT} > {BACKEND}", NODE, "veth-web-1", NETFILTER_DROP, "nft_do_chain",
                orig=f"{CLIENT} > {VIP}", reply=f"{BACKEND} > {CLIENT}", status=DNAT_DONE)  # fmt: skip
    (flow,) = told(*story, died).flows
    assert flow.packets[0].last is died


def test_a_masqueraded_packet_is_known_behind_the_snat() -> None:
    story = syn_to_backend()[:2]
    outside = "10.244.1.1:61000 > " + BACKEND
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > 10.244.1.1:61000", "status": CONFIRMED}
    story += [out(outside, NODE, "veth-web-1", **entry), into(outside, WEB, "eth0")]
    story += [out(f"{BACKEND} > 10.244.1.1:61000", WEB, "eth0", flags=0x12, ip_id=0, seq=7)]
    (flow,) = told(*story).flows
    assert [len(p.events) for p in flow.packets] == [4, 1]
    assert flow.snat == (addresses("10.244.1.1")[0], 61000)


def test_a_process_on_the_node_is_translated_before_the_first_device() -> None:
    """A hostNetwork pod calls a Service: OUTPUT translates, POSTROUTING masquerades, and then comes a device."""
    asked, behind = "192.168.50.1:50508 > 10.96.0.80:80", f"10.244.1.1:24599 > {BACKEND}"
    entry = {"orig": asked, "reply": f"{BACKEND} > 10.244.1.1:24599", "status": CONFIRMED}
    back = {"flags": 0x12, "ip_id": 0, "seq": 7000, "skb": 78}
    correlator = Correlator(addresses("192.168.50.1"))
    for seen in (
        out(behind, NODE, "cni0", **entry),
        into(behind, WEB, "eth0"),
        out(f"{BACKEND} > 10.244.1.1:24599", WEB, "eth0", **back),
        into(f"{BACKEND} > 10.244.1.1:24599", NODE, "veth-web-1", **back),
        into(f"{BACKEND} > 192.168.50.1:50508", NODE, "cni0", **entry, info=3, **back),
    ):
        correlator.feed(seen)
    (flow,) = correlator.flows
    assert str(flow.original.daddr) == "10.96.0.80"
    (request,), (reply,) = flow.requests, flow.replies
    assert (len(request.events), len(reply.events)) == (2, 3)
    surface = Surface({}, frozenset())
    assert [h.nat for h in hops(request, surface, asked=flow.original) if h.nat] == [
        f"DNAT to {BACKEND}, SNAT to 10.244.1.1:24599"
    ]
    steps = [(h.direction, h.nat) for h in hops(reply, surface, asked=flow.original) if h.nat]
    assert steps == [
        ("prerouting", "SNAT undone: to 192.168.50.1:50508"),
        ("input", "DNAT undone: from 10.96.0.80:80"),
    ]


def test_a_tunnels_own_conntrack_entry_is_not_the_flows() -> None:
    outer = {"orig": "192.168.50.1:4000 > 192.168.50.2:8472", "reply": "192.168.50.2:8472 > 192.168.50.1:4000"}
    way = f"{CLIENT} > 10.244.2.11:8080"
    (flow,) = told(out(way, CART, "eth0"), out(way, NODE, "eth0", encap=Encap.VXLAN, **outer)).flows
    assert flow.ct_orig is None
    assert len(flow.packets) == 1


def test_traffic_of_somebody_else_opens_no_flow() -> None:
    correlator = told(out("10.244.1.99:1 > 10.244.1.11:8080", NODE, "veth-x"))
    assert correlator.flows == []
    assert len(correlator.strays) == 1


def test_a_reply_seen_first_still_finds_its_flow() -> None:
    ends = ip_address("10.244.1.10"), ip_address("10.244.1.11")
    (flow,) = told(*syn_ack_to_client()).flows
    assert flow.original == FiveTuple(*ends, 50508, 8080, socket.IPPROTO_TCP)
    assert flow.packets[0].direction is Direction.REPLY


def test_a_long_connection_keeps_its_ends_and_what_happened_between() -> None:
    way = f"{CLIENT} > {BACKEND}"
    correlator = told(out(way, CART, "eth0"))
    for number in range(3000):
        correlator.feed(out(way, CART, "eth0", flags=0x10, ip_id=number, seq=number, payload=1448))
        if number == 700:
            correlator.feed(drop(way, NODE, "cni0", NETFILTER_DROP, "nft_do_chain", flags=0x10, ip_id=number,
                                 seq=number, payload=1448))  # fmt: skip
    (flow,) = correlator.flows
    assert len(flow.packets) < 1024
    assert flow.packets[0].is_syn
    assert flow.packets[-1].key.seq == 2999
    assert [p.key.seq for p in flow.packets if len(p.events) == 2] == [700]
    assert flow.forgotten + len(flow.packets) == 3001
