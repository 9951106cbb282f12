"""What takes packets away at a device: each story was seen in the lab, beside one that only looks like it."""

from __future__ import annotations

import pytest

from k8snet.event import Event
from k8snet.kernel.devices import Attached
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    NODE,
    NOT_SPECIFIED,
    VIP,
    codes,
    drop,
    findings,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
)

TC_INGRESS, TC_EGRESS, QDISC_DROP, XDP, NO_REASON = 60, 61, 62, 63, 0
NATTED = f"{CLIENT} > {BACKEND}"
GUARD = Attached("tc ingress", "bpf", "egress_guard", 71)
XDP_GUARD = Attached("xdp", "native", "flood_guard", 72)


def died_at_ingress(reason: int, symbol: str) -> list[Event]:
    """The SYN reaches the node's end of the client's veth, and goes no further."""
    return [*syn_to_backend()[:2], drop(f"{CLIENT} > {VIP}", NODE, "veth-cart", reason, symbol)]


def died_at_egress(reason: int, symbol: str = "__dev_queue_xmit") -> list[Event]:
    """The SYN has been translated, and is lost in front of the server's veth."""
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": CONFIRMED}
    return [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", reason, symbol, **entry)]


def test_a_program_at_tc_ingress_is_named_with_its_id() -> None:
    story = died_at_ingress(TC_INGRESS, "__netif_receive_skb_core")
    (finding,) = findings(*story, attached={(NODE, "veth-cart"): (XDP_GUARD, GUARD)})
    assert finding.code == "TC_DROP"
    assert finding.title == (
        "DROPPED on node-1 at veth-cart: the tc ingress program egress_guard (id 71) dropped the packet"
    )
    assert finding.where.device == "veth-cart"
    assert "bpftool prog show id 71" in finding.fix


def test_a_tc_drop_whose_program_is_not_known_names_the_device() -> None:
    (finding,) = findings(*died_at_egress(TC_EGRESS))
    assert finding.code == "TC_DROP"
    assert finding.title == "DROPPED on node-1 at veth-web-1: a filter or program at tc egress dropped the packet"


def test_of_several_filters_the_one_that_counted_a_drop_is_named() -> None:
    policer = Attached("tc ingress", "u32 police", dropped=2)
    idle = Attached("tc ingress", "flower gact", dropped=0)
    story = died_at_ingress(TC_INGRESS, "__netif_receive_skb_core")
    (finding,) = findings(*story, attached={(NODE, "veth-cart"): (idle, policer)})
    assert finding.title.endswith("the filter u32 police at tc ingress dropped the packet")
    (finding,) = findings(*story, attached={(NODE, "veth-cart"): (idle, GUARD)})
    assert finding.title.endswith("one of 2 filters or programs at tc ingress dropped the packet")


def test_without_a_reason_a_tc_drop_needs_the_counter_of_that_device() -> None:
    story = died_at_ingress(NO_REASON, "__netif_receive_skb_core")
    assert codes(*story, rises={NODE: {"qdisc.veth-cart.clsact.dropped": 2}}) == ["TC_DROP"]
    assert codes(*story, rises={NODE: {"qdisc.veth-web-1.clsact.dropped": 2}}) == ["KERNEL_DROP"]


@pytest.mark.parametrize(
    ("reason", "symbol"), [(NOT_SPECIFIED, "veth_xdp_rcv_skb"), (NO_REASON, "veth_poll")], ids=["6.1", "5.10"]
)
def test_an_xdp_program_in_the_driver_is_named(reason: int, symbol: str) -> None:
    story = died_at_ingress(reason, symbol)
    (finding,) = findings(*story, attached={(NODE, "veth-cart"): (XDP_GUARD,)})
    assert finding.code == "XDP_DROP"
    assert "the native XDP program flood_guard (id 72) dropped the packet" in finding.title
    assert finding.fix[-1].endswith("ip link set dev veth-cart xdpdrv off")


def test_the_function_alone_is_no_xdp_program() -> None:
    assert codes(*died_at_ingress(NOT_SPECIFIED, "do_xdp_generic")) == ["KERNEL_DROP"]
    assert codes(*died_at_ingress(XDP, "do_xdp_generic")) == ["XDP_DROP"]


@pytest.mark.parametrize("reason", [QDISC_DROP, NO_REASON])
def test_a_queue_that_counted_the_drop_is_named(reason: int) -> None:
    (finding,) = findings(*died_at_egress(reason), rises={NODE: {"qdisc.veth-web-1.netem.dropped": 3}})
    assert finding.code == "QDISC_DROP"
    assert finding.title == "DROPPED on node-1 at veth-web-1: its queue (netem) dropped the packet"


def test_a_device_that_is_down_has_no_queue_to_blame() -> None:
    assert codes(*died_at_egress(QDISC_DROP)) == ["KERNEL_DROP"]
    rises = {NODE: {"qdisc.veth-cart.netem.dropped": 3, "qdisc.veth-web-1.clsact.dropped": 3}}
    assert codes(*died_at_egress(QDISC_DROP), rises=rises) == ["KERNEL_DROP"]


def test_a_queue_that_lost_one_copy_is_no_failure_once_the_next_came_through() -> None:
    lost = [*died_at_egress(QDISC_DROP)]
    rises = {NODE: {"qdisc.veth-web-1.netem.dropped": 1}}
    assert codes(*lost, *syn_to_backend(), *syn_ack_to_client(), rises=rises) == []


def test_an_xdp_program_where_the_answer_would_come_in_is_mentioned() -> None:
    way = f"{CLIENT} > 192.0.2.1:443"
    story = [out(way, CART, "eth0"), into(way, NODE, "veth-cart"), out(way, NODE, "eth0")]
    (finding,) = findings(*story, attached={(NODE, "eth0"): (XDP_GUARD, GUARD)})
    assert finding.code == "LEFT_NODE"
    assert [text.split(" of eth0")[0] for text in finding.also] == ["xdp native program flood_guard (id 72)"]


def test_what_may_have_taken_a_packet_is_mentioned_where_it_was_last_seen() -> None:
    (finding,) = findings(*syn_to_backend()[:2], attached={(NODE, "veth-cart"): (GUARD,)})
    assert finding.code == "LAST_SEEN"
    assert "tc ingress bpf program egress_guard (id 71) of veth-cart" in finding.also[0]
