"""Tunnels whose ends do not know each other: each story was seen in the lab, or only looks like one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from k8snet.event import Encap, Event, FiveTuple
from k8snet.kernel.rtnetlink import Neighbour, Route, RouteQuestion
from unit.story import (
    CART,
    CLIENT,
    CONFIRMED,
    NETFILTER_DROP,
    NO_SOCKET,
    NO_TX_TARGET,
    NODE,
    NOT_SPECIFIED,
    VXLAN_VNI_NOT_FOUND,
    codes,
    drop,
    findings,
    into,
    out,
)

FAR = "10.244.2.11:8080"
WAY = f"{CLIENT} > {FAR}"
NODE_2 = 2
OUTER = FiveTuple(ip_address("192.168.50.1"), ip_address("192.168.50.2"), 55083, 8472, 17)
MAC, OTHER = "0a:58:0a:f4:02:00", "0a:58:0a:f4:03:00"
CT = {"orig": WAY, "reply": f"{FAR} > {CLIENT}", "status": CONFIRMED}


def known(*entries: str) -> dict[str, object]:
    """What the node's tables say: the next hop's MAC, and the tunnel's entries for these MACs."""
    hop = ip_address("10.244.2.0")
    return {
        "routes": {
            RouteQuestion(NODE, ip_address("10.244.2.11")): Route(
                type="unicast", prefix="10.244.2.0/24", device="flannel.1", gateway=hop
            )
        },
        "neighbours": {NODE: (Neighbour(hop, "flannel.1", "PERMANENT", MAC),)},
        "forwarding": {
            NODE: tuple(Neighbour(ip_address("192.168.50.3"), "flannel.1", "PERMANENT", mac) for mac in entries)
        },
    }


def into_the_tunnel(reason: int, symbol: str = "vxlan_xmit") -> list[Event]:
    return [
        out(WAY, CART, "eth0"),
        into(WAY, NODE, "veth-cart"),
        out(WAY, NODE, "flannel.1", **CT),
        drop(WAY, NODE, "flannel.1", reason, symbol, **CT),
    ]


def out_of_the_tunnel(reason: int, symbol: str, encap: Encap = Encap.VXLAN) -> list[Event]:
    wrapped = {"encap": encap, "outer": OUTER}
    return [
        out(WAY, CART, "eth0"),
        into(WAY, NODE, "veth-cart"),
        out(WAY, NODE, "flannel.1", **CT),
        out(WAY, NODE, "eth0", **wrapped),
        into(WAY, NODE_2, "eth0", **wrapped),
        drop(WAY, NODE_2, "eth0", reason, symbol, **wrapped),
    ]


def test_a_missing_forwarding_entry_is_named_by_mac_and_next_hop() -> None:
    (finding,) = findings(*into_the_tunnel(NO_TX_TARGET), **known(OTHER))
    assert finding.code == "VXLAN_NO_PEER"
    assert MAC in finding.title
    assert "10.244.2.0" in finding.title
    assert f"known to the device: {OTHER} dst 192.168.50.3" in finding.evidence
    assert finding.where.device == "flannel.1"


def test_a_kernel_without_that_reason_is_believed_when_the_entry_is_missing() -> None:
    assert codes(*into_the_tunnel(NOT_SPECIFIED), **known(OTHER)) == ["VXLAN_NO_PEER"]


@pytest.mark.parametrize("entry", [MAC, "00:00:00:00:00:00"])
def test_with_an_entry_or_a_default_it_is_another_drop(entry: str) -> None:
    assert codes(*into_the_tunnel(NOT_SPECIFIED), **known(entry)) == ["KERNEL_DROP"]


def test_without_the_tables_nothing_is_guessed() -> None:
    assert codes(*into_the_tunnel(NOT_SPECIFIED)) == ["KERNEL_DROP"]
    (finding,) = findings(*into_the_tunnel(NO_TX_TARGET))
    assert finding.code == "VXLAN_NO_PEER", "here the kernel itself says so"


@pytest.mark.parametrize(
    ("reason", "symbol", "says"),
    [
        pytest.param(VXLAN_VNI_NOT_FOUND, "vxlan_rcv", "network identifier", id="vni"),
        pytest.param(NOT_SPECIFIED, "vxlan_rcv", "or is down", id="vni-without-a-reason"),
        pytest.param(NO_SOCKET, "__udp4_lib_rcv", "nothing listens on UDP port 8472", id="port"),
        pytest.param(0, "__udp4_lib_rcv", "nothing listens on UDP port 8472", id="port-without-reasons"),
    ],
)
def test_an_outer_packet_that_no_tunnel_takes(reason: int, symbol: str, says: str) -> None:
    (finding,) = findings(*out_of_the_tunnel(reason, symbol))
    assert finding.code == "TUNNEL_MISMATCH"
    assert says in finding.title
    assert any("192.168.50.1 → 192.168.50.2, VXLAN, UDP port 8472" in line for line in finding.evidence)


def test_a_closed_udp_port_is_no_tunnel_that_does_not_fit() -> None:
    story = [*out_of_the_tunnel(NO_SOCKET, "__udp4_lib_rcv", Encap.NONE)]
    story = [e._replace(outer=None) for e in story]
    assert codes(*story) == ["KERNEL_DROP"]


def test_a_firewall_in_front_of_the_tunnel_is_a_firewall() -> None:
    (finding,) = findings(*out_of_the_tunnel(NETFILTER_DROP, "nft_do_chain"))
    assert finding.code == "KERNEL_DROP", "no rule was named in this story"
    assert any("outer packet of a tunnel" in line for line in finding.evidence)
