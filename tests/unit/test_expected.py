"""What the path should be, from objects, interfaces and routes; and the first place where a real one is another.

The stage is the lab's, in its topologies: node-1 with shop/cart and shop/web-1, node-2 with shop/web-3. `Kernel`
answers route questions from plain tables, by the longest prefix, as the kernel does.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

import pytest

from k8snet.cluster.interfaces import Interface, Owner, Role, Spot, World
from k8snet.cluster.inventory import (
    Endpoint,
    Inventory,
    NetworkPolicy,
    Node,
    Pod,
    PolicyRule,
    Selector,
    Service,
    ServicePort,
)
from k8snet.event import FiveTuple
from k8snet.expected import MOST, Pair, Terrain, expected
from k8snet.kernel.lookups import Answers
from k8snet.kernel.netns import Netns
from k8snet.kernel.rtnetlink import Neighbour, Route, RouteQuestion
from k8snet.overlay import laid_over
from k8snet.report import Expected, FlowView, Hop, Party, Path, Report, Step, Verdict

NODE1, NODE2, CART, WEB1, WEB3 = 1, 2, 10, 11, 23
CLIENT, VIP = ip_address("10.244.1.10"), ip_address("10.96.0.80")


def pod(name: str, ip: str, node: str) -> Pod:
    return Pod("shop", name, f"uid-{name}", node, (ip_address(ip),), False, "Running")


PODS: Final = (
    pod("cart", "10.244.1.10", "node-1"), pod("web-1", "10.244.1.11", "node-1"), pod("web-3", "10.244.2.11", "node-2")
)  # fmt: skip
NODES: Final = (
    Node("node-1", (ip_address("192.168.50.1"),), ("10.244.1.0/24",)),
    Node("node-2", (ip_address("192.168.50.2"),), ("10.244.2.0/24",)),
)


def endpoint(ip: str, node: str | None = "node-1", *, ready: bool = True, terminating: bool = False) -> Endpoint:
    return Endpoint(ip_address(ip), 8080, None, node, ready, True, terminating)


def service(*ends: Endpoint, node_port: int | None = None, internal_local: bool = False) -> Service:
    port = ServicePort("http", "TCP", 80, "8080", node_port, ends)
    return Service("shop", "web", (VIP,), (port,), internal_local=internal_local)


def stage(*ends: Endpoint, **more: object) -> Inventory:
    return Inventory(PODS, (service(*ends, **more),), NODES)  # type: ignore[arg-type]  # passed on


def card(netns: int, index: int, name: str, kind: str = "veth", ips: str = "", *, to: tuple[int, int] | None = None,
         master: int | None = None, state: str = "up") -> Interface:  # fmt: skip
    peer = Spot(*to) if to and kind == "veth" else None
    parent = Spot(*to) if to and kind != "veth" else None
    return Interface(
        netns, index, name, kind, None, 1500, state, tuple(map(ip_interface, ips.split())), master, peer, parent
    )


@dataclass
class Kernel:
    """The routing tables, netns by netns: (prefix, Route)."""

    tables: dict[int, list[tuple[str, Route]]]
    refused: dict[tuple[int, int], int] = field(default_factory=dict)  # (netns, iif): errno
    asked: list[RouteQuestion] = field(default_factory=list)

    def route(self, question: RouteQuestion) -> Route:
        self.asked.append(question)
        if error := self.refused.get((question.netns, question.iif)):
            return Route(error)
        fit = [(ip_network(p), r) for p, r in self.tables[question.netns] if question.to in ip_network(p)]
        if not fit:
            return Route(errno.ENETUNREACH)
        return max(fit, key=lambda pair: pair[0].prefixlen)[1]


def via(prefix: str, device: str, gateway: str | None = None) -> tuple[str, Route]:
    whole = "0.0.0.0/0" if prefix == "default" else prefix
    return whole, Route(0, "unicast", prefix, device, ip_address(gateway) if gateway else None)


@dataclass
class Stage:
    """A cluster's wires and routes, and what was written down about its tunnels."""

    interfaces: list[Interface]
    kernel: Kernel
    neighbours: dict[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    forwarding: dict[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    proxied: frozenset[int] = frozenset({NODE1, NODE2})

    @property
    def world(self) -> World:
        owners = {
            NODE1: Owner("node-1", role=Role.NODE),
            NODE2: Owner("node-2", role=Role.NODE),
            **{n: Owner(p.node, p, role=Role.POD) for n, p in zip((CART, WEB1, WEB3), PODS, strict=True)},
        }
        netns = {inum: Netns(inum, f"/run/netns/n{inum}") for inum in owners}
        return World(netns, tuple(self.interfaces), owners, NODE1)

    def expect(self, inventory: Inventory, pair: Pair) -> Expected:
        """Asked as `foresee` asks the kernel: round after round, until there is no question left."""
        terrain, answers = Terrain(self.world, inventory, self.proxied), Answers()
        while True:
            found, wanted = expected(pair, terrain, answers)
            open_questions = wanted - answers.routes.keys()
            if not open_questions:
                return found
            answers.routes |= {question: self.kernel.route(question) for question in open_questions}
            answers.neighbours |= self.neighbours
            answers.forwarding |= self.forwarding


def bridged() -> Stage:
    """Pods on cni0, the nodes joined by a cable."""
    pods = [("10.244.1.0/24", "cni0"), ("10.244.2.0/24", "cni0")]
    return Stage(
        [
            card(CART, 2, "eth0", ips="10.244.1.10/24", to=(NODE1, 3)),
            card(WEB1, 2, "eth0", ips="10.244.1.11/24", to=(NODE1, 4)),
            card(WEB3, 2, "eth0", ips="10.244.2.11/24", to=(NODE2, 3)),
            card(NODE1, 2, "cni0", "bridge", "10.244.1.1/24"),
            card(NODE1, 3, "vethcart", to=(CART, 2), master=2),
            card(NODE1, 4, "vethweb-1", to=(WEB1, 2), master=2),
            card(NODE1, 5, "eth0", ips="192.168.50.1/24", to=(NODE2, 5)),
            card(NODE2, 2, "cni0", "bridge", "10.244.2.1/24"),
            card(NODE2, 3, "vethweb-3", to=(WEB3, 2), master=2),
            card(NODE2, 5, "eth0", ips="192.168.50.2/24", to=(NODE1, 5)),
        ],
        Kernel({
            CART: [via("default", "eth0", "10.244.1.1"), via("10.244.1.0/24", "eth0")],
            WEB1: [via("default", "eth0", "10.244.1.1"), via("10.244.1.0/24", "eth0")],
            WEB3: [via("default", "eth0", "10.244.2.1"), via("10.244.2.0/24", "eth0")],
            NODE1: [via(*pods[0]), via("10.244.2.0/24", "eth0", "192.168.50.2"), via("192.168.50.0/24", "eth0")],
            NODE2: [via(*pods[1]), via("10.244.1.0/24", "eth0", "192.168.50.1"), via("192.168.50.0/24", "eth0")],
        }),
    )  # fmt: skip


def routed() -> Stage:
    """A route to each pod's veth, and no bridge."""
    made = bridged()
    made.interfaces = [replace(i, master=None) for i in made.interfaces if i.name != "cni0"]
    gone = "169.254.1.1"
    made.kernel.tables |= {inum: [via("default", "eth0", gone)] for inum in (CART, WEB1, WEB3)}
    made.kernel.tables[NODE1][0:1] = [via("10.244.1.10/32", "vethcart"), via("10.244.1.11/32", "vethweb-1")]
    made.kernel.tables[NODE2][0:1] = [via("10.244.2.11/32", "vethweb-3")]
    return made


def vxlan() -> Stage:
    """The other node's pods by way of flannel.1."""
    made = bridged()
    for here, there in ((1, 2), (2, 1)):
        made.interfaces.append(card(here, 7, "flannel.1", "vxlan", f"10.244.{here}.0/32"))
        made.kernel.tables[here][1] = via(f"10.244.{there}.0/24", "flannel.1", f"10.244.{there}.0")
        mac = f"0a:00:00:00:00:0{there}"
        made.neighbours[here] = (Neighbour(ip_address(f"10.244.{there}.0"), "flannel.1", "PERMANENT", mac),)
        made.forwarding[here] = (Neighbour(ip_address(f"192.168.50.{there}"), "flannel.1", "PERMANENT", mac),)
    return made


def to_service(port: int | None = 80, protocol: str | None = "tcp") -> Pair:
    return Pair(CLIENT, CART, VIP, port, protocol)


def to_pod(ip: str, protocol: str = "tcp") -> Pair:
    return Pair(CLIENT, CART, ip_address(ip), 8080, protocol)


def said(step: Step) -> str:
    """`node-1 in vethcart`, with ~ where it is not sure and ! where something speaks against it."""
    place = step.pod or step.node or str(step.netns)
    mark = "" if step.sure else "~"
    return f"{mark}{place} {step.direction} {step.device or step.nat or ''}".rstrip() + ("!" if step.problem else "")


def way(found: Expected, number: int = 0) -> tuple[list[str], list[str]]:
    return [said(s) for s in found.ways[number].request], [said(s) for s in found.ways[number].reply]


TO_NODE: Final = ["shop/cart out eth0", "node-1 in vethcart"]
TO_CART: Final = ["node-1 out vethcart", "shop/cart in eth0", "shop/cart input"]
TO_WEB1: Final = ["node-1 out vethweb-1", "shop/web-1 in eth0", "shop/web-1 input"]
FROM_WEB1: Final = ["shop/web-1 out eth0", "node-1 in vethweb-1"]


def test_two_pods_of_one_bridge_are_joined_by_it() -> None:
    made = bridged()
    found = made.expect(stage(), to_pod("10.244.1.11"))
    assert found.fate == "direct"
    assert way(found) == ([*TO_NODE, *TO_WEB1], [*FROM_WEB1, *TO_CART])
    assert not found.ways[0].unknown
    assert {q.netns for q in made.kernel.asked} == {CART, WEB1}, "the node's routing is not asked: it does not decide"


def test_routed_pods_have_no_bridge_on_their_way() -> None:
    found = routed().expect(stage(), to_pod("10.244.1.11"))
    assert way(found) == ([*TO_NODE, *TO_WEB1], [*FROM_WEB1, *TO_CART])
    assert found.ways[0].request[2].why == "route 10.244.1.11/32 dev vethweb-1"


def test_a_service_is_translated_where_the_packet_comes_to_its_node_and_back_there() -> None:
    found = bridged().expect(stage(endpoint("10.244.1.11")), to_service())
    assert (found.fate, found.service, found.endpoints) == ("served", "shop/web", 1)
    there, back = way(found)
    nat = ["node-1 prerouting DNAT to 10.244.1.11:8080", "~node-1 in cni0", "~node-1 out cni0"]
    assert there == [*TO_NODE, *nat, *TO_WEB1]
    assert back == [*FROM_WEB1, "node-1 postrouting DNAT undone: from 10.96.0.80:80", *TO_CART]
    assert [s.address for s in found.ways[0].request] == ["10.96.0.80:80"] * 2 + ["10.244.1.11:8080"] * 6
    assert found.ways[0].reply[-1].address == "10.96.0.80:80"


def test_each_endpoint_has_its_way_and_those_of_this_machine_come_first() -> None:
    found = bridged().expect(stage(endpoint("10.244.9.9", "node-9"), endpoint("10.244.1.11")), to_service())
    assert [w.backend and w.backend.ip for w in found.ways] == ["10.244.1.11", "10.244.9.9"]


def test_of_many_endpoints_as_many_ways_are_drawn_as_can_be_read() -> None:
    many = [endpoint(f"10.244.7.{n}", "node-7") for n in range(1, 101)]
    found = bridged().expect(stage(*many, endpoint("10.244.1.11")), to_service())
    assert (found.endpoints, len(found.ways), found.notes) == (101, MOST, ("69 more endpoints are not drawn",))
    assert found.ways[0].backend is not None
    assert found.ways[0].backend.ip == "10.244.1.11"


def test_the_other_node_is_reached_by_its_cable_where_that_can_be_seen() -> None:
    there, back = way(bridged().expect(stage(), to_pod("10.244.2.11")))
    assert there == [
        *TO_NODE, "~node-1 in cni0", "node-1 out eth0", "node-2 in eth0", "~node-2 out cni0", "node-2 out vethweb-3",
        "shop/web-3 in eth0", "shop/web-3 input",
    ]  # fmt: skip
    assert back[-5:] == ["node-1 in eth0", "~node-1 out cni0", *TO_CART]


def test_a_tunnel_is_two_devices_on_each_node() -> None:
    there, _ = way(vxlan().expect(stage(), to_pod("10.244.2.11")))
    assert there[3:7] == ["node-1 out flannel.1", "node-1 out eth0", "node-2 in eth0", "node-2 in flannel.1"]


def test_a_tunnel_without_an_entry_for_the_other_node_is_not_followed() -> None:
    made = vxlan()
    made.forwarding = {}
    assert way(made.expect(stage(), to_pod("10.244.2.11")))[0][-2:] == ["node-1 out flannel.1", "node-1 route!"]
    made.forwarding[NODE1] = (Neighbour(ip_address("239.1.1.1"), "flannel.1", "PERMANENT", "00:00:00:00:00:00"),)
    found = made.expect(stage(), to_pod("10.244.2.11"))
    assert found.ways[0].unknown[0] == "to which node flannel.1 (vxlan) sends it is not in the kernel's tables"
    assert way(found)[0][-1] == "node-1 out flannel.1"


def test_beyond_this_machine_the_way_is_not_known_and_the_way_home_is() -> None:
    made = bridged()
    made.interfaces = [i for i in made.interfaces if i.netns not in (NODE2, WEB3) and (i.netns, i.name) != (1, "eth0")]
    made.interfaces.append(card(NODE1, 5, "eth0", "device", "192.168.50.1/24"))
    found = made.expect(stage(endpoint("10.244.2.11", "node-2")), to_service())
    there, back = way(found)
    assert there[-1] == "node-1 out eth0"
    assert back == [
        "~node-1 in eth0", "node-1 postrouting DNAT undone: from 10.96.0.80:80", "~node-1 out cni0", *TO_CART
    ]  # fmt: skip
    assert found.ways[0].unknown == (
        "it leaves this machine by eth0; the rest of its way is on node-2: run the same command there",
    )


def test_a_client_that_is_its_own_backend_is_masqueraded() -> None:
    there, back = way(bridged().expect(stage(endpoint("10.244.1.10")), to_service()))
    assert "node-1 postrouting SNAT to 10.244.1.1" in there
    assert there[-3:] == TO_CART
    assert "node-1 prerouting SNAT undone: to 10.244.1.10" in back
    assert back[-3:] == TO_CART


def test_without_kube_proxys_chains_a_masquerade_is_no_more_than_likely() -> None:
    made = bridged()
    made.proxied = frozenset()
    found = made.expect(stage(endpoint("10.244.1.10")), to_service())
    assert "~node-1 postrouting SNAT to 10.244.1.1" in way(found)[0]
    assert found.notes == ("no chains of kube-proxy are on node-1: who translates there may do it otherwise",)


def test_a_pod_is_not_masqueraded_by_a_local_external_policy() -> None:
    (open_service,) = stage(endpoint("10.244.1.11"), node_port=30080).services
    inventory = Inventory(PODS, (replace(open_service, external_local=True),), NODES)
    found = bridged().expect(inventory, Pair(CLIENT, CART, ip_address("192.168.50.2"), 30080, "tcp"))
    assert not any("SNAT" in step for step in way(found)[0])


def test_a_nodeport_of_the_other_node_is_translated_there_and_masqueraded() -> None:
    inventory = stage(endpoint("10.244.1.11"), node_port=30080)
    found = bridged().expect(inventory, Pair(CLIENT, CART, ip_address("192.168.50.2"), 30080, "tcp"))
    there, back = way(found)
    nat = ["node-2 prerouting DNAT to 10.244.1.11:8080", "node-2 postrouting SNAT to 192.168.50.2"]
    assert there[4:8] == ["node-2 in eth0", *nat, "node-2 out eth0"]
    assert there[-3:] == TO_WEB1
    assert "node-2 prerouting SNAT undone: to 10.244.1.10" in back
    assert back[-3:] == TO_CART


def test_a_client_on_the_node_itself_is_translated_before_its_first_device() -> None:
    pair = Pair(ip_address("192.168.50.1"), NODE1, VIP, 80, "tcp")
    there, back = way(bridged().expect(stage(endpoint("10.244.1.11")), pair))
    assert there == ["node-1 output DNAT to 10.244.1.11:8080", "~node-1 out cni0", *TO_WEB1]
    assert back[-2:] == ["node-1 postrouting DNAT undone: from 10.96.0.80:80", "node-1 input"]


def test_an_endpoint_that_terminates_serves_while_there_is_no_other() -> None:
    leaving = endpoint("10.244.1.11", ready=False, terminating=True)
    assert bridged().expect(stage(leaving), to_service()).endpoints == 1
    both = bridged().expect(stage(leaving, endpoint("10.244.2.11", "node-2")), to_service())
    assert [w.backend and w.backend.ip for w in both.ways] == ["10.244.2.11"]


def test_without_endpoints_the_way_ends_at_the_node() -> None:
    found = bridged().expect(stage(), to_service())
    assert found.fate == "rejected"
    assert way(found) == ([*TO_NODE, "node-1 refused"], [])
    assert found.ways[0].request[-1].why == "kube-proxy: svc/shop/web has no endpoints"
    assert not found.ways[0].request[-1].problem


def test_a_local_policy_without_a_local_endpoint_drops() -> None:
    found = bridged().expect(stage(endpoint("10.244.2.11", "node-2"), internal_local=True), to_service())
    assert (found.fate, way(found)[0][-1]) == ("dropped", "node-1 dropped")


def test_a_local_policy_binds_another_node_and_not_a_pod() -> None:
    inventory = stage(endpoint("10.244.1.11"), node_port=30080)
    inventory = replace(inventory, services=(replace(inventory.services[0], external_local=True),))
    door = ip_address("192.168.50.2"), 30080, "tcp"
    assert bridged().expect(inventory, Pair(CLIENT, CART, *door)).fate == "served"
    found = bridged().expect(inventory, Pair(ip_address("192.168.50.1"), NODE1, *door))
    assert (found.fate, way(found)[0][-1]) == ("dropped", "node-2 dropped")
    assert found.ways[0].request[-1].why == "kube-proxy: externalTrafficPolicy: Local, and no endpoint here"


def test_ipvs_refuses_what_the_other_modes_drop() -> None:
    made = bridged()
    made.interfaces.append(card(NODE1, 7, "kube-ipvs0", "dummy", str(VIP)))
    found = made.expect(stage(endpoint("10.244.2.11", "node-2"), internal_local=True), to_service())
    assert (found.fate, way(found)[0][-1]) == ("rejected", "node-1 refused")
    assert found.ways[0].request[-1].why == "kube-proxy: internalTrafficPolicy: Local, and no endpoint here"


def test_policies_of_both_pods_are_told_with_the_way_to_each_backend() -> None:
    closed = NetworkPolicy("shop", "closed", Selector(), ingress=True, egress=True, egress_rules=(PolicyRule(),))
    known = replace(stage(endpoint("10.244.1.11"), endpoint("10.244.2.11", "node-2")), policies=(closed,))
    found = bridged().expect(known, to_service())
    said = [[(a.way, a.pod, a.port, a.denied) for a in w.policies] for w in found.ways]
    leaves = ("egress", "shop/cart", "port 8080/TCP", False)
    assert said == [
        [leaves, ("ingress", "shop/web-1", "port 8080/TCP", True)],
        [leaves, ("ingress", "shop/web-3", "port 8080/TCP", True)],
    ]


def test_a_masqueraded_client_is_nobody_that_a_policy_of_ingress_could_name() -> None:
    closed = NetworkPolicy("shop", "closed", Selector(), ingress=True, egress=False)
    known = replace(stage(endpoint("10.244.1.11"), node_port=30080), policies=(closed,))
    found = bridged().expect(known, Pair(CLIENT, CART, ip_address("192.168.50.2"), 30080, "tcp"))
    assert (found.fate, found.ways[0].policies) == ("served", ())


def test_a_missing_route_is_told_where_it_is_missing() -> None:
    made = bridged()
    del made.kernel.tables[NODE1][1]
    there, back = way(made.expect(stage(endpoint("10.244.2.11", "node-2")), to_service()))
    assert (there[-1], back) == ("node-1 route!", [])


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EINVAL])
def test_a_way_back_by_another_cable_is_refused_by_rp_filter(error: int) -> None:
    made = bridged()
    made.interfaces += [card(NODE1, 6, "eth1", to=(NODE2, 6)), card(NODE2, 6, "eth1", to=(NODE1, 6))]
    made.kernel.tables[NODE2][1] = via("10.244.1.0/24", "eth1", "192.168.50.1")
    made.kernel.refused[NODE1, 6] = error
    found = made.expect(stage(), to_pod("10.244.2.11"))
    assert way(found)[1][-2:] == ["node-1 in eth1", "node-1 route!"]
    assert "it would answer 10.244.2.11 by eth0 and not by eth1: rp_filter" in (found.ways[0].reply[-1].problem or "")


def test_a_refusal_with_the_same_way_back_is_not_put_down_to_rp_filter() -> None:
    made = bridged()
    made.kernel.refused[NODE1, 5] = errno.EINVAL
    found = made.expect(stage(), to_pod("10.244.2.11"))
    assert way(found)[1][-1] == "node-1 route!"
    assert "rp_filter" not in (found.ways[0].reply[-1].problem or "")


def test_what_leaves_the_cluster_is_not_followed_into_other_machines() -> None:
    made = bridged()
    outside = Pair(CLIENT, CART, ip_address("192.168.50.9"), 443, "tcp")
    found = made.expect(stage(), outside)
    there, back = way(found)
    assert there[-1] == "node-1 out eth0"
    assert back == ["~node-1 in eth0", "~node-1 out cni0", *TO_CART]
    assert found.ways[0].unknown == ("it leaves this machine by eth0; what is behind 192.168.50.9 is not known here",)


def test_a_device_that_is_down_is_on_the_way_and_told() -> None:
    made = bridged()
    made.interfaces = [replace(i, state="down") if i.name == "vethweb-1" else i for i in made.interfaces]
    found = made.expect(stage(), to_pod("10.244.1.11"))
    (broken,) = (step for step in found.ways[0].request if step.problem)
    assert (broken.device, broken.problem) == ("vethweb-1", "vethweb-1 is down")


def test_an_endpoint_that_no_pod_has_any_more_is_told() -> None:
    found = bridged().expect(stage(endpoint("10.244.1.99")), to_service())
    assert found.ways[0].request[-1].problem == "nobody on cni0 of node-1 has 10.244.1.99"


def test_behind_a_port_that_cannot_be_seen_anybody_may_be() -> None:
    made = bridged()
    made.interfaces.append(card(NODE1, 9, "eth1", "device", master=2))
    found = made.expect(stage(endpoint("10.244.1.99")), to_service())
    assert found.ways[0].unknown == ("behind which port of cni0 10.244.1.99 is cannot be seen from here",)
    assert not any(step.problem for step in found.ways[0].request)


def test_a_macvlan_passes_the_node_by() -> None:
    made = bridged()
    made.interfaces[0] = card(CART, 2, "eth0", "macvlan", "10.244.1.10/24", to=(NODE1, 5))
    found = made.expect(stage(endpoint("10.244.1.11")), to_service())
    assert found.ways[0].unknown == ("eth0 is a macvlan: it leaves by eth0 past the node's rules",)
    assert (found.fate, way(found)) == ("unknown", (["shop/cart out eth0"], []))


@pytest.mark.parametrize(
    ("pair", "note"),
    [
        pytest.param(replace(to_service(), netns=None), "is not on this machine", id="client-elsewhere"),
        pytest.param(to_service(None, "icmp"), "translates no ICMP", id="icmp"),
    ],
)
def test_what_nobody_can_say_is_not_said(pair: Pair, note: str) -> None:
    found = bridged().expect(stage(endpoint("10.244.1.11")), pair)
    assert (found.fate, found.ways) == ("unknown", ())
    assert note in found.notes[0]


def test_an_unanswered_question_ends_the_way_as_unknown() -> None:
    found, wanted = expected(
        to_service(), Terrain(bridged().world, stage(endpoint("10.244.1.11")), frozenset()), Answers()
    )
    assert wanted == {RouteQuestion(CART, VIP)}
    assert found.ways[0].unknown == ("the routing of shop/cart does not answer",)


def test_a_loop_of_routes_ends() -> None:
    made = bridged()
    made.kernel.tables[NODE2][0] = via("10.244.2.0/24", "eth0", "192.168.50.1")
    found = made.expect(stage(), to_pod("10.244.2.11"))
    assert found.ways[0].request[-1].problem == "it goes round in circles by eth0 of node-2"


# the real path over it

HEADERS: Final[Mapping[str, tuple[str, int]]] = {
    "VIP": ("10.96.0.80", 80),
    "WEB": ("10.244.1.11", 8080),
    "FAR": ("10.244.2.11", 8080),
}
NAMES: Final = {"node-1": (NODE1, None), "node-2": (NODE2, None), "cart": (CART, "shop/cart"),
                "web-1": (WEB1, "shop/web-1"), "other": (77, "shop/other")}  # fmt: skip


def hops(direction: str, *places: str) -> tuple[Hop, ...]:
    """Hops from `node-1 in vethcart VIP [✗ verdict]`: the last word is the server's end of the header."""
    made = []
    for place in places:
        words, _, verdict = place.partition(" ✗ ")
        where, way_, device, server = words.split()
        netns, name = NAMES[where]
        end, client = HEADERS[server], ("10.244.1.10", 50508)
        (saddr, sport), (daddr, dport) = (client, end) if direction == "request" else (end, client)
        header = FiveTuple(ip_address(saddr), ip_address(daddr), sport, dport, socket.IPPROTO_TCP)
        at = None if device == "-" else device
        made.append(Hop(0, netns, "node-1", name, at, way_, header, verdict=verdict or None))
    return tuple(made)


THERE: Final = ("cart out eth0 VIP", "node-1 in vethcart VIP", "node-1 out vethweb-1 WEB", "web-1 in eth0 WEB")
BACK: Final = ("web-1 out eth0 WEB", "node-1 in vethweb-1 WEB", "node-1 out vethcart VIP", "cart in eth0 VIP")


def report(there: tuple[str, ...], ended: str = "delivered", back: tuple[str, ...] = (), **more: object) -> Report:
    paths = [Path("request", "SYN", 1, 1, hops("request", *there), ended)]
    if back:
        paths.append(Path("reply", "SYN-ACK", 1, 1, hops("reply", *back), str(more.pop("home", "delivered"))))
    backend = Party("10.244.1.11", 8080) if any("WEB" in hop for hop in there) else None
    flow = FlowView(Party("10.244.1.10", 50508), Party("10.96.0.80", 80), backend, "tcp")
    verdict = Verdict.DELIVERED if back else Verdict.NO_REPLY
    return replace(Report(verdict, flow, tuple(paths)), **more)  # type: ignore[arg-type]  # by field name


def difference(seen: Report, inventory: Inventory | None = None) -> tuple[str, str, str] | None:
    objects = stage(endpoint("10.244.1.11"))
    found = laid_over(bridged().expect(objects, to_service()), seen, inventory or objects).difference
    return (found.direction, said(found.step), found.instead) if found else None


def test_a_healthy_flow_shows_no_difference() -> None:
    assert difference(report(THERE, back=BACK)) is None


def test_devices_in_between_are_no_difference() -> None:
    there = (*THERE[:2], "node-1 in cni0 WEB", "node-1 out cni0 WEB", *THERE[2:])
    assert difference(report(there, back=BACK)) is None
    assert difference(report((*THERE[:2], "node-1 out bond7 WEB", *THERE[2:]), back=BACK)) is None


def test_a_socket_that_translates_by_itself_is_no_difference() -> None:
    assert difference(report(tuple(hop.replace("VIP", "WEB") for hop in THERE), back=BACK)) is None


def test_a_packet_that_leaves_untranslated_differs_at_the_translation() -> None:
    seen = report((*THERE[:2], "node-1 out eth1 VIP"), "last seen")
    assert difference(seen) == (
        "request", "node-1 prerouting DNAT to 10.244.1.11:8080", "out eth1 of node-1, to 10.96.0.80:80"
    )  # fmt: skip


def test_a_drop_after_the_translation_differs_at_the_next_device() -> None:
    seen = report((*THERE[:2], "node-1 forward - WEB ✗ policy DROP"), "dropped")
    assert difference(seen) == ("request", "node-1 out vethweb-1", "policy DROP (forward of node-1)")


def test_the_bridge_is_no_sign_of_a_translation() -> None:
    seen = report((*THERE[:2], "node-1 in cni0 VIP", "node-1 out eth1 VIP"), "last seen")
    told = difference(seen)
    assert told is not None
    assert told[1] == "node-1 prerouting DNAT to 10.244.1.11:8080"


def test_a_drop_for_want_of_a_route_differs_there_and_not_at_the_translation() -> None:
    made, objects = routed(), stage(endpoint("10.244.2.11", "node-2"))
    made.kernel.tables[NODE1] = [entry for entry in made.kernel.tables[NODE1] if entry[0] != "10.244.2.0/24"]
    seen = report((*THERE[:2], "node-1 in vethcart FAR ✗ IP_INNOROUTES"), "dropped")
    told = laid_over(made.expect(objects, to_service()), seen, objects).difference
    assert told is not None
    assert (said(told.step), told.instead) == ("node-1 route!", "IP_INNOROUTES (in vethcart of node-1)")


def test_a_packet_that_was_not_seen_from_its_start_is_not_judged() -> None:
    assert difference(report(("node-1 out eth0 WEB", "node-1 in eth0 WEB ✗ IP_INHDR"), "dropped")) is None


def test_a_drop_before_the_translation_differs_there() -> None:
    seen = report((*THERE[:2], "node-1 prerouting - VIP ✗ DROP"), "dropped")
    assert difference(seen) == (
        "request", "node-1 prerouting DNAT to 10.244.1.11:8080", "DROP (prerouting of node-1)"
    )  # fmt: skip


def test_a_packet_that_is_seen_no_more_differs_at_what_should_come_next() -> None:
    assert difference(report(THERE[:3], "last seen")) == (
        "request", "shop/web-1 in eth0", "nothing more was seen of it"
    )  # fmt: skip


def test_a_firewall_in_the_pod_differs_at_the_socket() -> None:
    seen = report((*THERE[:3], "web-1 in eth0 WEB ✗ DROP"), "dropped")
    assert difference(seen) == ("request", "shop/web-1 input", "DROP (in eth0 of shop/web-1)")


def test_a_detour_by_another_pod_is_a_difference() -> None:
    seen = report((*THERE[:2], "other in net1 WEB", *THERE[2:]), back=BACK)
    assert difference(seen) == ("request", "node-1 out vethweb-1", "in net1 of shop/other, to 10.244.1.11:8080")


def test_a_reply_that_is_not_translated_back_differs_there() -> None:
    back = (*BACK[:2], "node-1 out vethcart WEB", "cart in eth0 WEB ✗ NO_SOCKET")
    seen = report(THERE, back=back, home="dropped")
    assert difference(seen) == (
        "reply", "node-1 postrouting DNAT undone: from 10.96.0.80:80", "out vethcart of node-1, from 10.244.1.11:8080"
    )  # fmt: skip


def test_no_reply_at_all_differs_at_the_backends_device() -> None:
    assert difference(report(THERE)) == ("reply", "shop/web-1 out eth0", "no packet of the reply was seen")


def test_lost_events_forbid_to_say_so() -> None:
    assert difference(report(THERE[:3], "last seen", lost={"net_dev_queue": 3})) is None


def test_a_backend_that_is_no_endpoint_is_a_difference_unless_it_is_one_by_now() -> None:
    seen = report(THERE, back=BACK)
    seen = replace(seen, flow=replace(seen.flow, backend=Party("10.244.1.99", 8080)))
    told = difference(seen)
    assert told is not None
    assert told[2] == "DNAT to 10.244.1.99:8080, which is no endpoint of svc/shop/web"
    assert difference(seen, stage(endpoint("10.244.1.99"))) is None


def test_a_refusal_that_was_expected_is_no_difference() -> None:
    objects = stage()
    seen = report((*THERE[:2], "node-1 in cni0 VIP", "node-1 forward - VIP ✗ REJECT"), "dropped")
    found = laid_over(bridged().expect(objects, to_service()), seen, objects)
    assert found.difference is None
    gone_on = laid_over(found, report((*THERE[:2], "node-1 out eth1 VIP"), "last seen"), objects).difference
    assert gone_on is not None
    assert said(gone_on.step) == "node-1 refused"


def test_a_client_that_could_not_send_differs_at_its_routing() -> None:
    made, objects = bridged(), stage(endpoint("10.244.1.11"))
    made.kernel.tables[CART] = []
    nothing = report(THERE)
    nothing = replace(nothing, paths=())
    foreseen = made.expect(objects, to_service())
    told = laid_over(foreseen, replace(nothing, verdict=Verdict.REJECTED), objects).difference
    assert told is not None
    assert (said(told.step), told.instead) == ("shop/cart route!", "no packet was sent")
    assert laid_over(foreseen, replace(nothing, verdict=Verdict.NOTHING_SEEN), objects).difference is None
