"""The stories of IPv6 as the lab told them: other functions and reasons, ICMPv6's numbers, and two stacks at once."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from k8snet.cluster.inventory import Endpoint, Inventory, Service, ServicePort
from k8snet.event import CtStatus, Encap, Event, FiveTuple, ProbeId
from k8snet.kernel.rtnetlink import Route, RouteQuestion
from k8snet.path import Surface
from k8snet.report import Finding, FlowView, Party, Verdict
from k8snet.summary import summarise
from unit.story import (
    CART,
    CONFIRMED,
    DNAT_DONE,
    INVENTORY,
    IP_INADDRERRORS,
    IP_INHDR,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    WEB,
    addresses,
    cases,
    drop,
    findings,
    into,
    out,
)

CLIENT, BACKEND, VIP = "[fd00:10:244:1::10]:50508", "[fd00:10:244:1::11]:8080", "[fd00:10:96::80]:80"
HALF, HALF4 = "[fd00:10:96::81]:80", "10.96.0.81:80"
FAR = "[fd00:10:244:2::11]:8080"
NATTED = f"{CLIENT} > {BACKEND}"
DNAT = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": DNAT_DONE}
FORWARDED = {"orig": f"{CLIENT} > {VIP}", "reply": f"{FAR} > {CLIENT}", "status": DNAT_DONE}
NO_REASON = 0  # a kernel that has none

_PODS = tuple(
    replace(pod, ips=(*pod.ips, ip_address(six)))
    for pod, six in zip(
        INVENTORY.pods, ("fd00:10:244:1::10", "fd00:10:244:1::11", "fd00:10:244:2::11"), strict=True
    )
)  # fmt: skip


def _service(name: str, ips: tuple[str, ...], *ends: str) -> Service:
    endpoints = tuple(Endpoint(ip_address(ip), 8080, "shop/web-1", "node-1", ready=True) for ip in ends)
    return Service("shop", name, addresses(*ips), (ServicePort("http", "TCP", 80, "8080", endpoints=endpoints),))


# Behind "half" there are pods of one IP family only: a pod network that is dual-stack, and an application that is not.
STAGE = Inventory(
    pods=_PODS,
    services=(
        _service("web", ("10.96.0.80", "fd00:10:96::80"), "10.244.1.11", "fd00:10:244:1::11"),
        _service("half", ("10.96.0.81", "fd00:10:96::81"), "10.244.1.11"),
    ),
    nodes=INVENTORY.nodes,
    source="the tests' stage, dual-stack",
)
BACKENDS = {
    ip_address("10.244.1.11"): WEB,
    ip_address("fd00:10:244:1::11"): WEB,
    ip_address("fd00:10:244:1::10"): CART,
}


def said(*events: Event, **other: object) -> list[Finding]:
    """What the catalogue says on this stage."""
    return findings(*events, **({"inventory": STAGE, "backend_netns": BACKENDS} | other))


def codes(*events: Event, **other: object) -> list[str]:
    """Their codes."""
    return [finding.code for finding in said(*events, **other)]


def error(kind: int, code: int, about: str, netns: int, dev: str, **other: object) -> Event:
    """An ICMPv6 error that quotes a packet of the flow, where it comes in."""
    header = FiveTuple(ip_address("fd00:10:96::80"), ip_address("fd00:10:244:1::10"), 0, 0, socket.IPPROTO_ICMPV6)
    fields = {"encap": Encap.ICMP_ERROR, "outer": header, "icmp_type": kind, "icmp_code": code, "ip_id": 0}
    return into(about, netns, dev, **(fields | other))


def sent(to: str = VIP) -> list[Event]:
    """A SYN that has left the pod and arrived on the node."""
    return [out(f"{CLIENT} > {to}", CART, "eth0", ip_id=0), into(f"{CLIENT} > {to}", NODE, "veth-cart", ip_id=0)]


def forwarded(reason: int, symbol: str) -> list[Event]:
    """A SYN to a pod of the other node that dies when the node routes it."""
    return [*sent(), drop(f"{CLIENT} > {FAR}", NODE, "cni0", reason, symbol, ip_id=0, **FORWARDED)]


def test_a_healthy_handshake_gives_no_finding() -> None:
    entry = DNAT | {"status": CONFIRMED}
    reply = {"flags": 0x12, "ip_id": 0, "seq": 7000, "skb": 0xFFFF_0000_0000_6790}
    story = [
        *sent(),
        out(NATTED, NODE, "veth-web-1", ip_id=0, **entry),
        into(NATTED, WEB, "eth0", ip_id=0),
        out(f"{BACKEND} > {CLIENT}", WEB, "eth0", **reply),
        into(f"{BACKEND} > {CLIENT}", NODE, "veth-web-1", **reply),
        out(f"{VIP} > {CLIENT}", NODE, "veth-cart", **reply, **(entry | {"status": CONFIRMED | 2, "info": 3})),
        into(f"{VIP} > {CLIENT}", CART, "eth0", **reply),
    ]
    assert said(*story) == []
    assert cases(*story)[0].answered


def test_a_fragment_that_conntrack_has_renumbered_is_the_same_packet() -> None:
    """nf_defrag_ipv6 puts fragments together, and ip6_fragment takes them apart again with another id."""
    entry = DNAT | {"status": CONFIRMED}
    first = {"protocol": socket.IPPROTO_UDP, "frag_off": 1 << 13, "payload": 1440}
    story = [
        out(f"{CLIENT} > {VIP}", CART, "eth0", ip_id=11, **first),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart", ip_id=11, **first),
        out(NATTED, NODE, "veth-web-1", ip_id=22, **first, **entry),
        into(NATTED, WEB, "eth0", ip_id=22, **first),
    ]
    (case,) = cases(*story, inventory=STAGE, backend_netns=BACKENDS)
    assert len(case.flow.packets) == 1


# --- forwarding ---------------------------------------------------------------------------------------------------

SIX_OFF = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 0}
FOUR_OFF = {"net.ipv4.ip_forward": 0, "net.ipv4.conf.cni0.forwarding": 0, "net.ipv6.conf.all.forwarding": 1}


@pytest.mark.parametrize("reason", [IP_INADDRERRORS, NOT_SPECIFIED, NO_REASON], ids=["6.18", "6.1", "5.10"])
def test_a_node_that_does_not_forward_ipv6_is_named_by_its_own_sysctl(reason: int) -> None:
    (found,) = said(*forwarded(reason, "ip6_forward"), settings={NODE: SIX_OFF})
    assert found.code == "IP_FORWARD_OFF"
    assert "net.ipv6.conf.all.forwarding is 0" in found.title
    assert "sysctl -w net.ipv6.conf.all.forwarding=1" in found.fix[0]
    assert any("accept_ra" in line for line in found.fix)


def test_the_sysctl_of_the_other_family_is_not_to_blame() -> None:
    assert codes(*forwarded(IP_INADDRERRORS, "ip6_forward"), settings={NODE: FOUR_OFF}) == ["KERNEL_DROP"]


def test_forwarding_that_is_off_does_not_explain_another_reason() -> None:
    assert codes(*forwarded(IP_INHDR, "ip6_forward"), settings={NODE: SIX_OFF}) == ["KERNEL_DROP"]  # hop limit


# --- routes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "code"),
    [
        pytest.param(Route(errno.ENETUNREACH), "NO_ROUTE", id="none"),
        pytest.param(Route(errno.EACCES, "prohibit", "fd00:10:244:2::/64", "lo"), "ROUTE_BLACKHOLE", id="prohibit"),
        pytest.param(Route(errno.EINVAL, "blackhole", "fd00:10:244:2::/64", "lo"), "ROUTE_BLACKHOLE", id="blackhole"),
        pytest.param(Route(0, "unicast", "fd00:10:244:2::/64", "eth0"), "KERNEL_DROP", id="there-is-one"),
    ],
)
def test_a_bridge_that_finds_no_route_for_what_it_translated_drops_it_itself(route: Route, code: str) -> None:
    """br_nf_pre_routing_finish_ipv6 gives no reason and sends no ICMPv6 error: the routing has to be asked."""
    question = RouteQuestion(NODE, ip_address("fd00:10:244:2::11"))
    story = forwarded(NOT_SPECIFIED, "br_nf_pre_routing_finish_ipv6")
    (found,) = said(*story, routes={question: route})
    assert found.code == code
    assert found.title.startswith("DROPPED")
    assert "is told" not in found.why or "nobody is told" in found.why


def test_a_bridge_drop_is_left_open_when_the_routing_was_not_asked() -> None:
    assert codes(*forwarded(NOT_SPECIFIED, "br_nf_pre_routing_finish_ipv6")) == ["KERNEL_DROP"]


# --- two stacks ---------------------------------------------------------------------------------------------------


def test_a_service_may_have_no_endpoints_in_one_family() -> None:
    story = [
        *sent(HALF),
        drop(f"{CLIENT} > {HALF}", NODE, "cni0", NETFILTER_DROP, "nft_do_chain", ip_id=0),
        error(1, 4, f"{CLIENT} > {HALF}", CART, "eth0"),
    ]
    (found,) = said(*story)
    assert found.code == "NO_ENDPOINTS"
    assert found.title.startswith("REJECTED")
    assert "inventory: shop/half:http has 0 endpoints, 0 ready" in found.evidence
    assert "the client was told: ICMPv6 port unreachable" in found.evidence


def test_the_same_service_has_endpoints_in_the_other_family() -> None:
    client = "10.244.1.10:50508"
    story = [
        out(f"{client} > {HALF4}", CART, "eth0"),
        into(f"{client} > {HALF4}", NODE, "veth-cart"),
        drop(f"{client} > {HALF4}", NODE, "cni0", NETFILTER_DROP, "nft_do_chain"),
    ]
    assert codes(*story) == ["KERNEL_DROP"]


def test_a_miss_counts_the_endpoints_of_its_own_family_and_shows_its_own_tools() -> None:
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{VIP} > {CLIENT}", "status": CtStatus.DST_NAT_DONE}
    (found,) = said(*sent(), out(f"{CLIENT} > {VIP}", NODE, "eth1", ip_id=0, **entry))
    assert found.code == "DNAT_MISS"
    assert "1 ready endpoint." in found.why
    assert found.fix[0].startswith("ip6tables-save ")
    assert "nft list table ip6 kube-proxy" in found.fix


def test_a_rule_that_was_not_named_is_looked_for_with_ip6tables() -> None:
    (found,) = said(*forwarded(NETFILTER_DROP, "nft_do_chain"))
    assert found.code == "KERNEL_DROP"
    assert found.fix[0] == "ip6tables-save -c"


# --- ICMPv6 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code", "refuses"),
    [
        pytest.param(1, 0, True, id="no-route"),
        pytest.param(1, 1, True, id="prohibited"),
        pytest.param(1, 3, True, id="address-unreachable"),
        pytest.param(1, 4, True, id="port-unreachable"),
        pytest.param(2, 0, False, id="too-big"),
        pytest.param(3, 0, False, id="time-exceeded"),  # 3 is "unreachable" in IPv4's ICMP
        pytest.param(4, 0, False, id="parameter-problem"),
    ],
)
def test_which_icmpv6_errors_say_no(kind: int, code: int, refuses: bool) -> None:
    (case,) = cases(*sent(), error(kind, code, f"{CLIENT} > {VIP}", CART, "eth0"), inventory=STAGE)
    assert (case.refused_by is not None) == refuses


def test_a_closed_udp_port_is_told_by_icmpv6() -> None:
    client, server = "[fd00:10:244:1::10]:40000", "[fd00:10:244:1::11]:9999"
    way, udp = f"{client} > {server}", {"protocol": socket.IPPROTO_UDP, "ip_id": 0}
    story = [
        out(way, CART, "eth0", **udp),
        into(way, WEB, "eth0", **udp),
        drop(way, WEB, "eth0", NO_SOCKET, "__udp6_lib_rcv", **udp),
        error(1, 4, way, WEB, "eth0", **udp)._replace(probe=ProbeId.NET_DEV_QUEUE),
    ]
    (found,) = said(*story)
    assert found.code == "NOT_LISTENING"
    assert "ICMPv6 port unreachable left eth0" in found.evidence


@pytest.mark.parametrize("listening", [{(WEB, "tcp", 8080): 0}, {}, {(WEB, "udp", 8080): 0}, {(CART, "tcp", 8080): 0}])
def test_a_port_that_is_open_for_ipv4_only_is_not_called_closed(listening: dict[tuple[int, str, int], int]) -> None:
    """/proc does not tell for which address: it was not for this one, as the kernel said."""
    way = f"{CLIENT} > {BACKEND}"
    story = [
        out(way, CART, "eth0", ip_id=0),
        into(way, WEB, "eth0", ip_id=0),
        drop(way, WEB, "eth0", NO_SOCKET, "tcp_v6_rcv", ip_id=0),
    ]
    (found,) = said(*story, listening=listening)
    assert found.code == "NOT_LISTENING"
    elsewhere = (WEB, "tcp", 8080) in listening
    assert found.title.endswith(" of fd00:10:244:1::11" if elsewhere else "nothing listens on tcp port 8080")
    assert ("no process has port 8080 open there" in found.why) != elsewhere
    assert any("came by IPv6" in text for text in found.also) == elsewhere


def test_a_closed_tcp_port_is_named_without_a_reason_too() -> None:
    way = f"{CLIENT} > {BACKEND}"
    reset = {"flags": 0x14, "ip_id": 0, "seq": 0}
    story = [
        out(way, CART, "eth0", ip_id=0),
        into(way, WEB, "eth0", ip_id=0),
        drop(way, WEB, "eth0", NO_REASON, "tcp_v6_rcv", ip_id=0),
        out(f"{BACKEND} > {CLIENT}", WEB, "eth0", **reset),
        into(f"{BACKEND} > {CLIENT}", CART, "eth0", **reset),
    ]
    assert codes(*story) == ["NOT_LISTENING"]


def test_an_echo_over_ipv6_is_called_icmp() -> None:
    way, back = "fd00:10:244:1::10 > fd00:10:244:1::11", "fd00:10:244:1::11 > fd00:10:244:1::10"
    echo = {"protocol": socket.IPPROTO_ICMPV6, "ip_id": 0, "payload": 16}
    story = cases(
        out(way, CART, "eth0", **echo),
        into(way, WEB, "eth0", **echo),
        out(back, WEB, "eth0", **echo),
        into(back, CART, "eth0", **echo),
        inventory=STAGE,
        backend_netns=BACKENDS,
    )
    asked = FlowView(Party("any"), Party("any"), None, "icmp")
    report = summarise(story, Surface({}, frozenset()), asked, lost={}, rule_naming="nftrace", chains={})
    assert (report.verdict, report.flow.protocol, len(story)) == (Verdict.DELIVERED, "icmp", 1)
