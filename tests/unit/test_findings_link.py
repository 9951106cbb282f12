"""What the kernel reported of packets whose link was down, or whose bridge hid them from netfilter."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

import pytest

from k8snet.event import Event, FiveTuple
from k8snet.findings.case import Case, Wire
from k8snet.findings.diagnose import diagnose
from k8snet.flow.model import Flow
from k8snet.kernel.rtnetlink import Link
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    DNAT_DONE,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    OTHERHOST,
    VIP,
    WEB,
    codes,
    drop,
    findings,
    into,
    out,
    surroundings,
    syn_ack_to_client,
    syn_to_backend,
)

NATTED, BACK = f"{CLIENT} > {BACKEND}", f"{BACKEND} > {CLIENT}"
DNAT = {"orig": f"{CLIENT} > {VIP}", "reply": BACK, "status": DNAT_DONE}
QDISC_DROP = 62
WIRES = {
    IPv4Address("10.244.1.10"): Wire(CART, "eth0", NODE, "veth-cart"),
    IPv4Address("10.244.1.11"): Wire(WEB, "eth0", NODE, "veth-web-1"),
}


def link(name: str, *, up: bool = True, carrier: bool = True, master: int | None = None) -> Link:
    return Link(3, name, "veth", None, 1500, "up" if carrier else "down", master, None, None, up, carrier)


def links(*, off: str = "", port_of: int | None = 4) -> dict[int, dict[str, Link]]:
    """All links of the stage; of a pair with an end that is `off` ("WEB/eth0") the other has no carrier."""
    found: dict[int, dict[str, Link]] = {CART: {}, WEB: {}, NODE: {}}
    for pod, netns, far in (("CART", CART, "veth-cart"), ("WEB", WEB, "veth-web-1")):
        near_up, far_up = off != f"{pod}/eth0", off != f"NODE/{far}"
        carrier = near_up and far_up
        found[netns]["eth0"] = link("eth0", up=near_up, carrier=carrier)
        found[NODE][far] = link(far, up=far_up, carrier=carrier, master=port_of)
    return found


def flooded() -> list[Event]:
    """The bridge does not know where the backend is: the SYN goes everywhere, even back to the client."""
    return [
        *syn_to_backend()[:2],
        out(NATTED, NODE, "veth-cart", **DNAT),
        into(NATTED, CART, "eth0"),
        drop(NATTED, CART, "eth0", OTHERHOST, "ip_rcv_core", pkt_type=3),
    ]


def test_a_pod_whose_device_is_down_is_named() -> None:
    (finding,) = findings(*flooded(), wires=WIRES, links=links(off="WEB/eth0"))
    assert finding.code == "VETH_DOWN"
    assert finding.title == "DROPPED on pod shop/web-1: its device eth0 is down"
    assert (finding.where.pod, finding.where.device) == ("shop/web-1", "eth0")
    assert "link eth0 of pod shop/web-1: switched off" in finding.evidence
    assert "link veth-web-1 of node-1: up, no carrier" in finding.evidence


def test_the_nodes_end_of_the_link_is_named() -> None:
    (finding,) = findings(*flooded(), wires=WIRES, links=links(off="NODE/veth-web-1"))
    assert finding.title == "DROPPED on node-1: veth-web-1, the link of pod shop/web-1, is down"
    assert finding.fix[0] == "ip link set veth-web-1 up"


def test_a_flooded_frame_with_all_links_up_is_something_else() -> None:
    assert codes(*flooded(), wires=WIRES, links=links()) == ["KERNEL_DROP"]


@pytest.mark.parametrize(
    ("reason", "symbol"),
    [
        pytest.param(QDISC_DROP, "__dev_queue_xmit", id="no-carrier"),
        pytest.param(58, "neigh_invalidate", id="nobody-answers"),
        pytest.param(88, "ip_error", id="route-gone"),
        pytest.param(NOT_SPECIFIED, "ip_error", id="blackhole-behind-it"),
        pytest.param(0, "neigh_invalidate", id="without-reasons"),
    ],
)
def test_whatever_a_dead_link_does_to_the_packet_the_link_is_named(reason: int, symbol: str) -> None:
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", reason, symbol, **DNAT)]
    assert codes(*story, wires=WIRES, links=links(off="WEB/eth0")) == ["VETH_DOWN"]
    assert codes(*story, wires=WIRES, links=links()) != ["VETH_DOWN"]


def test_a_packet_that_a_rule_dropped_is_not_the_links_fault() -> None:
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, "nft_do_chain", **DNAT)]
    assert codes(*story, wires=WIRES, links=links(off="WEB/eth0")) == ["KERNEL_DROP"]


def test_a_packet_that_crossed_the_link_is_not_its_fault() -> None:
    assert codes(*syn_to_backend(), wires=WIRES, links=links(off="WEB/eth0")) == ["NO_REPLY"]
    assert codes(*syn_to_backend(), *syn_ack_to_client(), wires=WIRES, links=links(off="WEB/eth0")) == []


def test_a_packet_that_never_came_near_the_link_is_not_its_fault() -> None:
    far = {IPv4Address("10.244.1.11"): Wire(WEB, "eth0", 2, "veth-web-1")}
    state = links(off="WEB/eth0")
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "cni0", 88, "ip_error", **DNAT)]
    assert codes(*story, wires=far, links=state) == ["NO_ROUTE"]


def test_the_clients_link_is_named_when_nothing_leaves_the_pod() -> None:
    way = f"{CLIENT} > {VIP}"
    story = [out(way, CART, "eth0"), drop(way, CART, "eth0", QDISC_DROP, "__dev_queue_xmit")]
    (finding,) = findings(*story, wires=WIRES, links=links(off="NODE/veth-cart"))
    assert finding.title == "DROPPED on node-1: veth-cart, the link of pod shop/cart, is down"


def test_the_clients_own_device_is_named_when_there_is_no_packet_at_all() -> None:
    flow = Flow(FiveTuple(IPv4Address("10.244.1.10"), IPv4Address("10.96.0.80"), 0, 80, 6))
    down = surroundings(wires=WIRES, links=links(off="CART/eth0"), send_errors=(errno.ENETUNREACH,))
    (finding,) = diagnose(Case(flow, down))
    assert finding.title == "NOT SENT by pod shop/cart: its device eth0 is down"
    quiet = surroundings(wires=WIRES, links=links(off="CART/eth0"))
    assert diagnose(Case(flow, quiet)) == []


@pytest.mark.parametrize(
    ("up", "carrier", "said"),
    [
        pytest.param(True, False, "eth1 has no carrier", id="no-carrier"),
        pytest.param(False, False, "eth1 is switched off", id="off"),
    ],
)
def test_a_device_that_nothing_can_be_sent_by_is_named(up: bool, carrier: bool, said: str) -> None:
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "eth1", QDISC_DROP, "__dev_queue_xmit", **DNAT)]
    (finding,) = findings(*story, links={NODE: {"eth1": link("eth1", up=up, carrier=carrier)}})
    assert finding.code == "LINK_DOWN"
    assert finding.title == f"DROPPED on node-1: {said}"


def test_a_queue_that_drops_while_the_device_is_up_is_not_the_devices_fault() -> None:
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "eth1", QDISC_DROP, "__dev_queue_xmit", **DNAT)]
    assert "LINK_DOWN" not in codes(*story, links={NODE: {"eth1": link("eth1")}})
    assert "LINK_DOWN" not in codes(*story)


ANSWER = {"flags": 0x12, "ip_id": 0, "seq": 7000, "skb": 0xFFFF_0000_0000_6790}


def answered_by_the_pod(reason: int = NO_SOCKET) -> list[Event]:
    """The SYN is translated, the SYN-ACK comes back with the pod's own address, and so does its repetition."""
    reset = {"flags": 0x04, "ip_id": 1, "seq": 1001}
    again = ANSWER | {"skb": 0xFFFF_0000_0000_7000}
    story = [*syn_to_backend(status=CONFIRMED)]
    for fields in (ANSWER, again):
        story += [
            out(BACK, WEB, "eth0", **fields),
            into(BACK, NODE, "veth-web-1", **fields),
            out(BACK, NODE, "veth-cart", **fields),
            into(BACK, CART, "eth0", **fields),
            drop(BACK, CART, "eth0", reason, "tcp_v4_rcv", **fields),
            out(NATTED, CART, "eth0", **reset),
        ]
    return story


OFF = {NODE: {"net.bridge.bridge-nf-call-iptables": 0}}


@pytest.mark.parametrize("reason", [NO_SOCKET, 0], ids=["with-reasons", "without-reasons"])
def test_a_bridge_that_hides_its_frames_is_named(reason: int) -> None:
    (finding,) = findings(*answered_by_the_pod(reason), settings=OFF, links=links(), wires=WIRES)
    assert finding.code == "BRIDGE_NF_OFF"
    assert (finding.where.node, finding.where.device, finding.direction) == ("node-1", "veth-cart", "reply")
    assert finding.fix[0] == "sysctl -w net.bridge.bridge-nf-call-iptables=1"


def test_an_answer_from_the_pods_address_has_other_reasons_too() -> None:
    on = {NODE: {"net.bridge.bridge-nf-call-iptables": 1}}
    assert codes(*answered_by_the_pod(), settings=on, links=links()) == ["KERNEL_DROP"]
    routed = links(port_of=None)
    assert codes(*answered_by_the_pod(), settings=OFF, links=routed) == ["KERNEL_DROP"]
    assert codes(*answered_by_the_pod(), settings=OFF) == ["KERNEL_DROP"]


def test_a_bridge_that_hides_its_frames_harms_nobody_whose_answer_was_routed() -> None:
    story = [*syn_to_backend(), *syn_ack_to_client()]
    assert codes(*story, settings=OFF, links=links()) == []
