"""What the kernel reported of packets that the routing refused, and what must be concluded from it."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Interface, ip_address

import pytest

from k8snet.cluster.interfaces import Owner, Role
from k8snet.event import Encap, Event, FiveTuple
from k8snet.findings.case import Case, route_question
from k8snet.findings.diagnose import diagnose
from k8snet.flow.model import Flow
from k8snet.kernel.rtnetlink import Neighbour, Route, RouteQuestion
from k8snet.report import Finding
from unit.story import (
    CART,
    CLIENT,
    DNAT_DONE,
    IP_INADDRERRORS,
    IP_INHDR,
    IP_INNOROUTES,
    IP_LOCAL_SOURCE,
    NEIGH_FAILED,
    NEIGH_QUEUEFULL,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    OWNERS,
    VIP,
    WEB,
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

FAR, NODE_2, WEB_3 = "10.244.2.11:8080", 2, 12
TO_FAR, BACK = f"{CLIENT} > {FAR}", f"{FAR} > {CLIENT}"
DNAT = {"orig": f"{CLIENT} > {VIP}", "reply": BACK, "status": DNAT_DONE}
TWO_NODES = OWNERS | {NODE_2: Owner("node-2", role=Role.NODE)}
NONE, BLACKHOLE = Route(errno.ENETUNREACH), Route(errno.EINVAL, "blackhole", "10.244.2.0/24")
REFUSING = Route(errno.EINVAL, "blackhole", "10.244.1.10/32")
VIA_ETH0 = Route(type="unicast", prefix="10.244.2.0/24", device="eth0", gateway=IPv4Address("192.168.50.2"))


def syn_refused(reason: int, symbol: str = "ip_error") -> list[Event]:
    """A SYN for a pod of the other node that dies on its own, where the bridge has passed it up."""
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0"),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart"),
        into(TO_FAR, NODE, "cni0", **DNAT),
        drop(TO_FAR, NODE, "cni0", reason, symbol, **DNAT),
    ]


def answers(event: Event, route: Route) -> dict[RouteQuestion, Route]:
    """That the kernel routes the packet of this event so."""
    assert event.packet is not None
    return {route_question(event, event.packet): route}


def to(netns: int, address: str, route: Route) -> dict[RouteQuestion, Route]:
    """That the netns itself reaches the address so."""
    return {RouteQuestion(netns, ip_address(address)): route}


def icmp(kind: int, code: int) -> Event:
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    return into(f"{CLIENT} > {VIP}", CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=kind, icmp_code=code, outer=outer)


def silence(*, errors: tuple[int, ...] = (), **other: object) -> list[Finding]:
    """What is said when there was no packet at all."""
    flow = Flow(FiveTuple(IPv4Address("10.244.1.10"), IPv4Address("10.96.0.80"), 0, 80, 6))
    return diagnose(Case(flow, surroundings(send_errors=errors, **other)))


def test_a_node_without_a_route_is_named() -> None:
    story = syn_refused(IP_INNOROUTES)
    rises = {NODE: {"IpExt.InNoRoutes": 2, "Ip6InNoRoutes": 1}}
    (finding,) = findings(*story, icmp(3, 0), routes=answers(story[-1], NONE), rises=rises)
    assert finding.code == "NO_ROUTE"
    assert finding.title == "REJECTED on node-1: no route to 10.244.2.11 (pod shop/web-3)"
    assert "IpExt.InNoRoutes rose by 2" in finding.evidence
    assert not any("Ip6" in line for line in finding.evidence)


def test_without_reasons_the_lookup_says_that_there_is_no_route() -> None:
    story = syn_refused(0)
    assert codes(*story, routes=answers(story[-1], NONE)) == ["NO_ROUTE"]
    assert codes(*story, routes=answers(story[-1], VIA_ETH0)) == ["KERNEL_DROP"]
    assert codes(*story) == ["KERNEL_DROP"]


def test_an_answer_that_finds_no_way_back_is_a_lost_reply() -> None:
    entry = {"orig": TO_FAR, "reply": BACK, "status": 0x18A, "info": 3}
    fields = {"flags": 0x12, "ip_id": 0, "seq": 7000}
    story = [
        *syn_refused(IP_INNOROUTES)[:3],
        out(TO_FAR, NODE, "eth0", **(DNAT | {"status": 0x1A8})),
        into(TO_FAR, NODE_2, "eth0"),
        out(BACK, WEB_3, "eth0", **fields),
        into(BACK, NODE_2, "veth-web-3", **fields),
        drop(BACK, NODE_2, "cni0", IP_INNOROUTES, "ip_error", **fields, **entry),
    ]
    (finding,) = findings(*story, owners=TWO_NODES, routes=answers(story[-1], NONE))
    assert (finding.code, finding.direction) == ("NO_ROUTE", "reply")
    assert finding.title == "REPLY LOST on node-2: no route to 10.244.1.10 (pod shop/cart)"


@pytest.mark.parametrize(("route", "code"), [(NONE, "NO_ROUTE"), (REFUSING, "ROUTE_BLACKHOLE"), (VIA_ETH0, "NO_REPLY")])
def test_a_pod_that_cannot_answer_for_want_of_a_route(route: Route, code: str) -> None:
    story = syn_to_backend()
    arrived = story[-1].packet
    assert arrived is not None
    back = {RouteQuestion(WEB, arrived.saddr, arrived.daddr): route}
    here = to(WEB, "10.244.1.11", Route(type="local", prefix="10.244.1.11/32"))
    (finding,) = findings(*story, routes=back | here)
    assert finding.code == code
    if code != "NO_REPLY":
        assert finding.title.startswith("NO REPLY from pod shop/web-1: ")
        assert finding.where.pod == "shop/web-1"


def test_a_router_on_the_way_needs_no_route_of_its_own_to_the_client() -> None:
    story = syn_to_backend()[:2]
    last = story[-1].packet
    assert last is not None
    assert "NO_ROUTE" not in codes(*story, routes={RouteQuestion(story[-1].netns, last.saddr, last.daddr): NONE})


def test_a_hosts_own_packet_without_a_route_after_the_translation() -> None:
    story = [drop(TO_FAR, NODE, "", NETFILTER_DROP, "nf_hook_slow", ifindex=0, **DNAT)]
    missing = to(NODE, "10.244.2.11", NONE)
    assert codes(*story, client_netns=NODE, routes=missing) == ["NO_ROUTE"]
    assert codes(*story, client_netns=NODE, routes=to(NODE, "10.244.2.11", VIA_ETH0)) == ["KERNEL_DROP"]


def test_a_forbidden_packet_is_not_without_a_route_for_being_dropped_in_forward() -> None:
    story = [*syn_refused(NOT_SPECIFIED)[:3], drop(TO_FAR, NODE, "eth0", NETFILTER_DROP, "nft_do_chain", **DNAT)]
    assert codes(*story, routes=to(NODE, "10.244.2.11", NONE)) == ["KERNEL_DROP"]


def test_a_pod_without_a_route_sends_nothing_and_is_named() -> None:
    (finding,) = silence(errors=(errno.ENETUNREACH,), routes=to(CART, "10.96.0.80", NONE))
    assert finding.code == "NO_ROUTE"
    assert finding.title == "NOT SENT by pod shop/cart: no route to 10.96.0.80"
    assert finding.where.pod == "shop/cart"


def test_a_pod_without_a_route_is_named_by_its_counter_when_others_send() -> None:
    routes = to(CART, "10.96.0.80", NONE)
    assert [f.code for f in silence(routes=routes, rises={CART: {"Ip.OutNoRoutes": 1}})] == ["NO_ROUTE"]
    assert silence(routes=routes) == []


def test_silence_is_no_finding_when_the_route_is_there() -> None:
    default = to(CART, "10.96.0.80", Route(type="unicast", prefix="default", device="eth0"))
    assert silence(errors=(errno.ENETUNREACH,), routes=default, rises={CART: {"Ip.OutNoRoutes": 1}}) == []
    assert silence(errors=(errno.ETIMEDOUT,)) == []


def test_a_blackhole_is_told_from_other_losses_at_the_same_place() -> None:
    story = syn_refused(NOT_SPECIFIED)
    (finding,) = findings(*story, routes=answers(story[-1], BLACKHOLE))
    assert finding.code == "ROUTE_BLACKHOLE"
    assert finding.title == "DROPPED on node-1: its route to 10.244.2.11 is a blackhole"
    assert "route: blackhole 10.244.2.0/24" in finding.evidence
    assert finding.fix[-1] == "ip route del blackhole 10.244.2.0/24"
    # Policy routing refuses with the same error, and no such route exists.
    assert codes(*story, routes=answers(story[-1], Route(errno.EINVAL))) == ["KERNEL_DROP"]


def test_forwarding_switched_off_comes_before_the_route() -> None:
    story = syn_refused(IP_INADDRERRORS)
    routes = answers(story[-1], Route(errno.EHOSTUNREACH))
    assert codes(*story, routes=routes, settings={NODE: {"net.ipv4.ip_forward": 0}}) == ["IP_FORWARD_OFF"]


@pytest.mark.parametrize(("kind", "code"), [("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES)])
def test_a_refusing_route_of_the_pod_itself(kind: str, code: int) -> None:
    route = Route(code, kind, "10.96.0.0/12", table=77)
    (finding,) = silence(errors=(code,), routes=to(CART, "10.96.0.80", route))
    assert finding.code == "ROUTE_BLACKHOLE"
    assert finding.fix[-1] == f"ip route del {kind} 10.96.0.0/12 table 77"
    assert silence(errors=(errno.ETIMEDOUT,), routes=to(CART, "10.96.0.80", route)) == []


def syn_to_nobody(reason: int = NEIGH_FAILED) -> list[Event]:
    """A SYN that was translated to an address that nobody has; it waits for two seconds."""
    gone = f"{CLIENT} > 10.244.1.99:8080"
    first = into(f"{CLIENT} > {VIP}", NODE, "veth-cart")
    entry = DNAT | {"reply": f"10.244.1.99:8080 > {CLIENT}"}
    later = first.ktime_ns // 1000 + 2_000_000
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0", us=first.ktime_ns // 1000 - 10),
        first,
        drop(gone, NODE, "cni0", reason, "neigh_invalidate", us=later, **entry),
    ]


def test_an_address_that_nobody_answers_for_is_named_with_its_state() -> None:
    table = (Neighbour(IPv4Address("10.244.1.99"), "cni0", "FAILED", None),)
    routes = to(NODE, "10.244.1.99", Route(type="unicast", prefix="10.244.1.0/24", device="cni0"))
    (finding,) = findings(*syn_to_nobody(), icmp(3, 1), neighbours={NODE: table}, routes=routes)
    assert finding.code == "NEIGH_FAILED"
    assert finding.title == "REJECTED on node-1 at cni0: 10.244.1.99 does not answer ARP"
    assert "neighbour 10.244.1.99 dev cni0: FAILED" in finding.evidence
    assert "inventory: no pod and no node has 10.244.1.99" in finding.evidence


def test_a_packet_that_waited_for_seconds_is_still_the_same_packet() -> None:
    (finding,) = findings(*syn_to_nobody(0))
    assert finding.code == "NEIGH_FAILED"
    (flow,) = told(*syn_to_nobody()).flows
    assert len(flow.requests) == 1


@pytest.mark.parametrize(("state", "code"), [("FAILED", "NEIGH_FAILED"), ("REACHABLE", "KERNEL_DROP")])
def test_too_many_packets_for_an_address_that_was_found_in_the_end_are_no_failed_neighbour(
    state: str, code: str
) -> None:
    routes = to(NODE, "10.244.1.99", Route(type="unicast", prefix="10.244.1.0/24", device="cni0"))
    table = (Neighbour(IPv4Address("10.244.1.99"), "cni0", state, None),)
    assert codes(*syn_to_nobody(NEIGH_QUEUEFULL), neighbours={NODE: table}, routes=routes) == [code]


def test_a_route_that_came_back_in_time_is_no_finding() -> None:
    first = syn_refused(IP_INNOROUTES)
    later = {"ip_id": 5190}
    again = [out(f"{CLIENT} > {VIP}", CART, "eth0", **later), into(f"{CLIENT} > {VIP}", NODE, "veth-cart", **later)]
    assert "NO_ROUTE" not in codes(*first, *again, *syn_ack_to_client(), routes=answers(first[-1], VIA_ETH0))


def test_the_next_hop_is_named_where_the_address_is_behind_a_router() -> None:
    story = [*syn_refused(NEIGH_FAILED)[:3], drop(TO_FAR, NODE, "eth0", NEIGH_FAILED, "neigh_invalidate", **DNAT)]
    table = (
        Neighbour(IPv4Address("192.168.50.2"), "eth1", "REACHABLE", "0a:00:00:00:00:01"),
        Neighbour(IPv4Address("192.168.50.2"), "eth0", "FAILED", None),
    )
    (finding,) = findings(*story, neighbours={NODE: table}, routes=to(NODE, "10.244.2.11", VIA_ETH0))
    assert finding.title == "DROPPED on node-1 at eth0: 192.168.50.2 does not answer ARP"
    assert "neighbour 192.168.50.2 dev eth0: FAILED" in finding.evidence


LOCAL = Route(type="local", prefix="10.244.2.11/32", device="lo")


def test_a_node_with_a_pods_address_is_named() -> None:
    story = [*syn_refused(NO_SOCKET, "tcp_v4_rcv"), *syn_ack_to_client(flags=0x14)[2:]]
    held = {NODE: {"lo": (IPv4Interface("10.244.2.11/32"),), "eth0": (IPv4Interface("192.168.50.1/24"),)}}
    (finding,) = findings(*story, routes=to(NODE, "10.244.2.11", LOCAL), addresses=held)
    assert finding.code == "ADDRESS_CONFLICT"
    assert finding.title == "REJECTED on node-1: the node has pod shop/web-3's address 10.244.2.11 itself"
    assert finding.fix[-1] == "ip address del 10.244.2.11/32 dev lo"
    assert "ADDRESS_CONFLICT" not in codes(*story, routes=to(NODE, "10.244.2.11", VIA_ETH0), addresses=held)


def test_a_closed_port_of_a_node_is_no_address_conflict() -> None:
    way = f"{CLIENT} > 192.168.50.1:10250"
    story = [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        drop(way, NODE, "cni0", NO_SOCKET, "tcp_v4_rcv"),
    ]
    routes = to(NODE, "192.168.50.1", Route(type="local", prefix="192.168.50.1/32", device="eth0"))
    assert "ADDRESS_CONFLICT" not in codes(*story, routes=routes)


@pytest.mark.parametrize("reason", [IP_LOCAL_SOURCE, NOT_SPECIFIED, 0], ids=["named", "unspecified", "none"])
def test_a_packet_from_the_nodes_own_address_is_an_address_conflict(reason: int) -> None:
    story = syn_refused(reason, "ip_rcv_finish_core")
    own = to(NODE, "10.244.1.10", Route(type="local", prefix="10.244.1.10/32", device="lo"))
    (finding,) = findings(*story, routes=own)
    assert finding.code == "ADDRESS_CONFLICT"
    assert finding.title.startswith("DROPPED on node-1 at cni0: it came from 10.244.1.10, an address of node-1 itself")
    there = to(NODE, "10.244.1.10", Route(type="unicast", prefix="10.244.1.0/24", device="cni0"))
    assert codes(*story, routes=there) == ["KERNEL_DROP"]


def round_and_round(ttl: int = 64) -> list[Event]:
    """A SYN that two nodes send to each other until its TTL is used up."""
    story = syn_refused(NOT_SPECIFIED)[:3]
    for left in range(ttl - 1, 0, -2):
        story += [
            out(TO_FAR, NODE, "eth0", ttl=left, **DNAT),
            into(TO_FAR, NODE_2, "eth0", ttl=left),
            out(TO_FAR, NODE_2, "eth0", ttl=left - 1),
            into(TO_FAR, NODE, "eth0", ttl=left - 1),
        ]
    return [*story[:-2], drop(TO_FAR, NODE_2, "eth0", IP_INHDR, "ip_forward", ttl=1)]


def test_a_routing_loop_is_named_with_both_routers() -> None:
    routes = to(NODE, "10.244.2.11", VIA_ETH0) | to(
        NODE_2, "10.244.2.11", Route(type="unicast", prefix="10.244.2.11/32", gateway=IPv4Address("192.168.50.1"))
    )
    (finding,) = findings(*round_and_round(), owners=TWO_NODES, routes=routes)
    assert finding.code == "ROUTING_LOOP"
    assert finding.title == "DROPPED on node-2: routing loop between node-1 and node-2"
    assert "seen 32 times at eth0 of node-1, its TTL falling from 63 to 1" in finding.evidence
    assert "route to 10.244.2.11 on node-2: 10.244.2.11/32 via 192.168.50.1" in finding.evidence


def test_a_packet_that_was_sent_with_a_small_ttl_is_no_loop() -> None:
    assert codes(*round_and_round(ttl=2), owners=TWO_NODES) == ["KERNEL_DROP"]


def test_a_healthy_flow_asks_nothing() -> None:
    story = [*syn_to_backend(), *syn_ack_to_client()]
    assert [Case(flow, surroundings()).questions for flow in told(*story).flows] == [frozenset()]


def test_an_unanswered_flow_asks_where_it_died_for_both_ends() -> None:
    story = syn_refused(IP_INNOROUTES)
    (case,) = [Case(flow, surroundings()) for flow in told(*story).flows]
    assert {str(q.to) for q in case.questions if q.netns == NODE} >= {"10.244.2.11", "10.244.1.10"}
    assert route_question(story[-1], story[-1].packet) in case.questions  # type: ignore[arg-type]  # it has one
    (case,) = [Case(flow, surroundings()) for flow in told(*syn_to_backend()).flows]
    assert RouteQuestion(WEB, ip_address("10.244.1.10"), ip_address("10.244.1.11")) in case.questions


def test_what_the_routing_said_prints_as_ip_route_does() -> None:
    assert str(VIA_ETH0) == "10.244.2.0/24 via 192.168.50.2 dev eth0"
    assert str(Route(errno.EINVAL, "blackhole", "default", table=77)) == "blackhole default table 77"
    assert str(NONE) == "none (Network is unreachable)"
