"""Services with a traffic policy Local, and no endpoint on the node that the packet comes to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from k8snet.cluster.inventory import Endpoint, Inventory, Service
from k8snet.event import CtStatus, Encap, Event
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.flow.correlate import Correlator
from k8snet.kernel.rules import NamedRule, explain
from k8snet.report import Finding
from k8snet.summary import flow_view
from unit.story import (
    CART,
    CLIENT,
    INVENTORY,
    NETFILTER_DROP,
    NODE,
    VIP,
    drop,
    icmp_header,
    into,
    out,
    surroundings,
    syn_ack_to_client,
    syn_to_backend,
    told,
)

FAR = Endpoint(ip_address("10.244.2.11"), 8080, "shop/web-3", "node-2", ready=True)
DOOR, OUTSIDE = "192.168.50.1:30080", "198.51.100.9:50508"
LOCAL_RULE = (
    '-A KUBE-SERVICES -d 10.96.0.80/32 -p tcp -m comment --comment "shop/web:http has no local endpoints" -j DROP'
)
DOOR_RULE = '-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "shop/web:http has no local endpoints" -j DROP'


def web(*ends: Endpoint, internal_local: bool = False, external_local: bool = False) -> Inventory:
    """The stage with other endpoints and policies of shop/web, which has a NodePort."""
    service: Service = INVENTORY.services[0]
    ports = (replace(service.ports[0], endpoints=ends, node_port=30080),)
    policies = {"internal_local": internal_local, "external_local": external_local}
    changed = replace(service, ports=ports, type="NodePort", **policies)  # type: ignore[arg-type]  # by field name
    return replace(INVENTORY, services=(changed, *INVENTORY.services[1:]))


def rule(chain: str, text: str) -> NamedRule:
    """As iptables' trace gives it."""
    said = explain("filter", chain, text)
    return NamedRule(
        "nftrace", "ip filter", chain, text, policy=False, rejects=False, meaning=said.sentence, owner=said.owner,
        engine="nft", service=said.service, hook="forward",
    )  # fmt: skip


def dropped(*, is_told: bool = False) -> list[Event]:
    """A SYN from the pod that dies in FORWARD with the Service's address on it; `is_told`: IPVS refuses it."""
    way = f"{CLIENT} > {VIP}"
    entry = {"orig": way, "reply": f"{VIP} > {CLIENT}", "status": CtStatus.DST_NAT_DONE}
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    told_so = into(way, CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, outer=outer)
    return [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        drop(way, NODE, "cni0", NETFILTER_DROP, "nf_hook_slow", **entry),
        *((told_so,) if is_told else ()),
    ]


def found(events: list[Event], inventory: Inventory, by: NamedRule | None = None) -> list[Finding]:
    flows = told(*events).flows
    dead = [d for flow in flows for d in Case(flow, surroundings(inventory=inventory)).deaths]
    rules = {id(d.packet): by for d in dead} if by else {}
    return [f for flow in flows for f in diagnose(Case(flow, surroundings(inventory=inventory, rules=rules)))]


def test_the_rule_and_the_objects_agree() -> None:
    (finding,) = found(dropped(), web(FAR, internal_local=True), rule("KUBE-SERVICES", LOCAL_RULE))
    assert finding.code == "NO_LOCAL_ENDPOINTS"
    assert finding.title == (
        "DROPPED on node-1: Service shop/web:http has no endpoint on this node, and internalTrafficPolicy is Local"
    )
    assert finding.evidence[-1] == "inventory: shop/web:http has ready endpoints on node-2, none on node-1"
    assert finding.fix[-1] == """kubectl -n shop patch service web -p '{"spec":{"internalTrafficPolicy":"Cluster"}}'"""


def test_the_rule_is_enough_when_no_inventory_knows_the_service() -> None:
    (finding,) = found(dropped(), Inventory(), rule("KUBE-SERVICES", LOCAL_RULE))
    assert finding.code == "NO_LOCAL_ENDPOINTS"
    assert "and its traffic policy is Local" in finding.title
    assert finding.fix[-1] == "kubectl -n shop edit service web"


def test_kube_proxys_rule_is_believed_when_the_pods_elsewhere_are_not_ready_any_more() -> None:
    leaving = replace(FAR, ready=False, terminating=True)
    (finding,) = found(dropped(), web(leaving, internal_local=True), rule("KUBE-SERVICES", LOCAL_RULE))
    assert finding.code == "NO_LOCAL_ENDPOINTS"


def test_the_objects_are_enough_where_no_rule_is_named() -> None:
    """--read-only with nftables."""
    (finding,) = found(dropped(), web(FAR, internal_local=True))
    assert (finding.code, finding.named_by) == ("NO_LOCAL_ENDPOINTS", None)


def test_ipvs_refuses() -> None:
    (finding,) = found(dropped(is_told=True), web(FAR, internal_local=True))
    assert finding.title.startswith("REJECTED on node-1: Service shop/web:http has no endpoint on this node")


@pytest.mark.parametrize(
    ("inventory", "code"),
    [
        pytest.param(web(FAR), "KERNEL_DROP", id="policy-cluster"),
        pytest.param(web(FAR, external_local=True), "KERNEL_DROP", id="another-door"),
        pytest.param(web(FAR, replace(FAR, node="node-1"), internal_local=True), "KERNEL_DROP", id="one-is-here"),
        pytest.param(web(internal_local=True), "NO_ENDPOINTS", id="none-anywhere"),
    ],
)
def test_another_service_is_not_blamed_on_its_policy(inventory: Inventory, code: str) -> None:
    assert [f.code for f in found(dropped(), inventory)] == [code]


def test_a_rule_of_somebody_else_is_to_blame_even_if_the_policy_would_have_dropped_it() -> None:
    other = rule("FORWARD", "-A FORWARD -s 10.244.1.10/32 -j DROP")
    assert [f.code for f in found(dropped(), web(FAR, internal_local=True), other)] == ["RULE_DROP"]


def test_a_served_client_hears_nothing_of_policies() -> None:
    story = [*syn_to_backend(), *syn_ack_to_client()]
    assert found(story, web(FAR, internal_local=True)) == []


def from_outside(client: str = OUTSIDE) -> list[Event]:
    """A SYN to a NodePort, from another machine."""
    way = f"{client} > {DOOR}"
    entry = {"orig": way, "reply": f"{DOOR} > {client}", "status": CtStatus.DST_NAT_DONE}
    return [into(way, NODE, "eth0"), drop(way, NODE, "eth0", NETFILTER_DROP, "nft_do_chain", **entry)]


def at_the_door(events: list[Event], inventory: Inventory, by: NamedRule | None = None) -> list[Finding]:
    correlator = Correlator((events[0].packet.saddr,) if events[0].packet else ())
    for event in events:
        correlator.feed(event)
    around = surroundings(inventory=inventory, client_netns=None)
    dead = [d for flow in correlator.flows for d in Case(flow, around).deaths]
    around = replace(around, rules={id(d.packet): by for d in dead} if by else {})
    return [f for flow in correlator.flows for f in diagnose(Case(flow, around))]


@pytest.mark.parametrize("by", [rule("KUBE-EXTERNAL-SERVICES", DOOR_RULE), None], ids=["rule", "objects"])
def test_a_node_port_without_a_local_endpoint_is_closed_for_clients_outside(by: NamedRule | None) -> None:
    (finding,) = at_the_door(from_outside(), web(FAR, external_local=True), by)
    assert finding.code == "NO_LOCAL_ENDPOINTS"
    assert "Service shop/web:http has no endpoint on this node, and externalTrafficPolicy is Local" in finding.title
    assert finding.fix[-1] == "# The pods see a node's address then, and no longer the client's."


def test_a_node_port_is_shown_with_its_service() -> None:
    correlator = Correlator((ip_address("198.51.100.9"),))
    for event in from_outside():
        correlator.feed(event)
    view = flow_view(Case(correlator.flows[0], surroundings(inventory=web(FAR), client_netns=None)), "tcp")
    assert (view.server.service, view.server.ip, view.server.port) == ("shop/web", "192.168.50.1", 30080)
    assert view.backend is None


def test_the_external_policy_does_not_bind_a_pod() -> None:
    """kube-proxy sends it to any endpoint: somebody else has dropped it."""
    assert [f.code for f in at_the_door(from_outside(CLIENT), web(FAR, external_local=True))] == ["KERNEL_DROP"]


def test_a_node_port_without_any_endpoint_is_named_by_its_service() -> None:
    rejected = '-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "shop/web:http has no endpoints" -j REJECT'
    by = replace(rule("KUBE-EXTERNAL-SERVICES", rejected), rejects=True)
    (finding,) = at_the_door(from_outside(), web(), by)
    assert (finding.code, finding.title) == (
        "NO_ENDPOINTS",
        "DROPPED on node-1: Service shop/web:http has no ready endpoints",
    )
    assert finding.evidence[-1] == "inventory: shop/web:http has 0 endpoints, 0 ready"
