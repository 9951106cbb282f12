"""Findings beside kube-proxy's nftables mode: its rules are elements of maps, and the last one refuses ClusterIPs."""

from __future__ import annotations

import pytest

from k8snet.cluster.inventory import Inventory
from k8snet.event import CtStatus, Encap, Event
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.kernel.rules import NamedRule, explain
from k8snet.report import Finding
from unit.story import CART, CLIENT, EMPTY, NETFILTER_DROP, NODE, VIP, drop, icmp_header, into, out, surroundings, told

ELEMENT = 'vmap @no-endpoint-services { 10.96.0.81 . tcp . 80 comment "shop/empty:http" : goto reject-chain }'
REFUSE = 'ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"'


def rule(chain: str, text: str, *, rejects: bool = True) -> NamedRule:
    """As the kernel's trace and the table give it."""
    meaning = explain("kube-proxy", chain, text)
    return NamedRule(
        by="nftrace",
        table="ip kube-proxy",
        chain=chain,
        text=text,
        policy=False,
        rejects=rejects,
        meaning=meaning.sentence,
        owner=meaning.owner,
        engine="nft",
        service=meaning.service,
        hook="forward",
    )


def refused(to: str) -> list[Event]:
    """A SYN that dies in FORWARD with the address that the client used; the client is told."""
    way = f"{CLIENT} > {to}"
    entry = {"orig": way, "reply": f"{to} > {CLIENT}", "status": CtStatus.DST_NAT_DONE}
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    return [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        drop(way, NODE, "cni0", NETFILTER_DROP, "nft_do_chain", **entry),
        into(way, CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, outer=outer),
    ]


def found(events: list[Event], by: NamedRule, inventory: Inventory | None = None) -> list[Finding]:
    known = {} if inventory is None else {"inventory": inventory}
    flows = told(*events).flows
    dead = [d for flow in flows for d in Case(flow, surroundings(**known)).deaths]
    around = surroundings(rules={id(d.packet): by for d in dead}, **known)
    return [f for flow in flows for f in diagnose(Case(flow, around))]


@pytest.mark.parametrize("inventory", [None, Inventory()], ids=["known-service", "nothing-known"])
def test_an_element_of_no_endpoint_services_is_a_service_without_endpoints(inventory: Inventory | None) -> None:
    (finding,) = found(refused(EMPTY), rule("service-endpoints-check", ELEMENT), inventory)
    assert finding.code == "NO_ENDPOINTS"
    assert "Service shop/empty:" in finding.title
    assert (finding.where.rule, finding.where.table) == (ELEMENT, "ip kube-proxy")
    assert finding.fix[0].startswith("kubectl -n shop get endpointslices")


def test_a_local_policy_without_local_endpoints_is_a_rule_of_kube_proxy() -> None:
    text = 'vmap @no-endpoint-services { 10.96.0.80 . tcp . 80 comment "shop/web:http" : drop }'
    (finding,) = found(refused(VIP)[:3], rule("service-endpoints-check", text, rejects=False))
    assert finding.code == "NO_LOCAL_ENDPOINTS"
    assert finding.title.startswith("DROPPED on node-1: Service shop/web:http has no endpoint on this node")


def test_a_map_whose_element_is_not_known_tells_by_what_it_did() -> None:
    text = "ip daddr . meta l4proto . th dport vmap @no-endpoint-services"
    for events, rejects, code in (
        (refused(EMPTY), True, "NO_ENDPOINTS"),
        (refused(VIP)[:3], False, "NO_LOCAL_ENDPOINTS"),
    ):
        (finding,) = found(events, rule("service-endpoints-check", text, rejects=rejects), Inventory())
        assert finding.code == code


def test_a_clusterip_that_nothing_translated_is_refused_by_the_last_rule() -> None:
    (finding,) = found(refused(VIP), rule("cluster-ips-check", REFUSE))
    assert finding.code == "DNAT_MISS"
    assert finding.title == "NOT TRANSLATED on node-1: the packet to Service shop/web:http was refused"
    assert finding.where.chain == "cluster-ips-check"


def test_a_port_that_the_service_does_not_have_is_refused_rightly() -> None:
    (finding,) = found(refused(VIP.replace(":80", ":81")), rule("cluster-ips-check", REFUSE))
    assert finding.code == "RULE_REJECT"
    assert "belong to no port of its Service" in finding.why


def test_the_same_words_in_somebody_elses_rule_are_no_translation_that_failed() -> None:
    other = NamedRule("nftrace", "inet mine", "mine", "ip daddr @cluster-ips reject", policy=False, rejects=True)
    (finding,) = found(refused(VIP), other)
    assert finding.code == "RULE_REJECT"
