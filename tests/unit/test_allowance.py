"""What NetworkPolicies say of a connection, read from the API's JSON: each rule of the API's own reference."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from k8snet.cluster.allowance import Allowance, allowances
from k8snet.cluster.inventory import Inventory
from k8snet.cluster.objects import inventory_of, read
from k8snet.errors import K8snetError

CART, WEB, STRANGER, NODE = "10.244.1.10", "10.244.1.11", "198.51.100.9", "192.168.50.1"

Json = dict[str, Any]


def pod(name: str, ip: str, labels: Json, node: str = "node-1") -> Json:
    ports = [{"name": "http", "containerPort": 8080}]
    namespace, short = name.split("/")
    return {
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": short, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    }


PODS = [
    pod("shop/cart", CART, {"app": "cart"}),
    pod("shop/web", WEB, {"app": "web"}),
    pod("back/job", "10.244.2.9", {"app": "job"}, "node-2"),
]
NODES = [
    {
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    }
    for name, ip, cidr in (("node-1", NODE, "10.244.1.0/24"), ("node-2", "192.168.50.2", "10.244.2.0/24"))
]


def policy(name: str = "web-only", **spec: object) -> Json:
    chosen = {"podSelector": {"matchLabels": {"app": "web"}}} | spec
    return {"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": chosen}


def known(*policies: Json) -> Inventory:
    return inventory_of([*PODS, *NODES, *policies], "the test")


def ask(
    *policies: Json, client: str = CART, server: str = WEB, port: int | None = 8080, protocol: str | None = "tcp"
) -> tuple[Allowance, ...]:
    return allowances(known(*policies), ip_address(client), ip_address(server), port, protocol)


def verdict(*policies: Json, **asked: Any) -> bool | None:
    """Of the one Allowance: allowed, denied, or None for not known."""
    (said,) = ask(*policies, **asked)
    return True if said.allowing else False if said.denied else None


def only_from(*peers: Json, ports: list[Json] | None = None) -> Json:
    return policy(ingress=[{"from": list(peers)} | ({"ports": ports} if ports else {})])


def test_a_pod_that_no_policy_selects_may_do_everything() -> None:
    assert ask() == ()
    assert ask(policy(podSelector={"matchLabels": {"app": "other"}})) == ()


def test_a_policy_is_about_the_ways_of_its_types_alone() -> None:
    assert ask(policy(podSelector={}, policyTypes=["Egress"]), client=STRANGER) == ()
    (said,) = ask(policy(podSelector={}, policyTypes=["Egress"]))
    assert (said.way, said.pod, said.denied) == ("egress", "shop/cart", True)


def test_without_rules_nothing_is_allowed_and_with_an_empty_rule_everything() -> None:
    assert verdict(policy()) is False
    assert verdict(policy(ingress=[])) is False
    assert verdict(policy(ingress=[{}])) is True
    assert verdict(policy(ingress=[{"from": [], "ports": []}])) is True


def test_policies_add_up() -> None:
    (said,) = ask(policy("nobody"), policy("everybody", ingress=[{}]))
    assert said.selecting == ("shop/nobody", "shop/everybody")
    assert said.allowing == ("shop/everybody",)


@pytest.mark.parametrize(
    ("peer", "client", "allowed"),
    [
        pytest.param({"podSelector": {}}, CART, True, id="own-namespace"),
        pytest.param({"podSelector": {}}, "10.244.2.9", False, id="pod-of-another-namespace"),
        pytest.param({"podSelector": {"matchLabels": {"app": "cart"}}}, CART, True, id="label"),
        pytest.param({"podSelector": {"matchLabels": {"app": "x"}}}, CART, False, id="other-label"),
        pytest.param({"namespaceSelector": {}}, "10.244.2.9", True, id="every-namespace"),
        pytest.param(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "back"}}},
            "10.244.2.9",
            True,
            id="namespace-by-name",
        ),
        pytest.param(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "back"}}},
            CART,
            False,
            id="other-namespace-by-name",
        ),
        pytest.param({"namespaceSelector": {"matchLabels": {"team": "x"}}}, CART, None, id="labels-of-namespaces"),
        pytest.param(
            {"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchLabels": {"app": "x"}}},
            CART,
            False,
            id="both-selectors-and-the-pod-does-not-fit",
        ),
        pytest.param({"ipBlock": {"cidr": "198.51.100.0/24"}}, STRANGER, True, id="block"),
        pytest.param(
            {"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.8/31"]}}, STRANGER, False, id="except"
        ),
        pytest.param({"ipBlock": {"cidr": "fd00::/8"}}, STRANGER, False, id="block-of-the-other-family"),
        pytest.param({"podSelector": {}}, STRANGER, False, id="no-pod"),
        pytest.param({"podSelector": {}}, "10.244.1.77", None, id="a-pod-that-nobody-knows"),
        pytest.param({"podSelector": {}}, "192.168.50.2", None, id="another-node"),
    ],
)
def test_peers(peer: Json, client: str, allowed: bool | None) -> None:
    assert verdict(only_from(peer), client=client) is allowed


@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        pytest.param({"port": 8080}, True, id="number"),
        pytest.param({"port": 80}, False, id="the-services-port"),
        pytest.param({"port": "http"}, True, id="name"),
        pytest.param({"port": "metrics"}, False, id="another-name"),
        pytest.param({"port": 8080, "protocol": "UDP"}, False, id="another-protocol"),
        pytest.param({"port": 8000, "endPort": 8100}, True, id="range"),
        pytest.param({"port": 8000, "endPort": 8079}, False, id="another-range"),
        pytest.param({"protocol": "TCP"}, True, id="all-of-a-protocol"),
    ],
)
def test_ports(port: Json, allowed: bool) -> None:
    assert verdict(only_from({"podSelector": {}}, ports=[port])) is allowed


def test_what_policies_say_nothing_of_is_not_known() -> None:
    asked = {"port": None, "protocol": "icmp"}
    assert verdict(only_from({"podSelector": {}}, ports=[{"port": 8080}]), **asked) is None
    assert verdict(only_from({"podSelector": {}}), **asked) is True


def test_a_rule_that_may_fit_does_not_outweigh_one_that_does() -> None:
    unsure = {"namespaceSelector": {"matchLabels": {"team": "x"}}}
    assert verdict(only_from(unsure, {"podSelector": {}})) is True
    (said,) = ask(only_from(unsure))
    assert str(said) == (
        "it is not known whether NetworkPolicy shop/web-only allows ingress to pod shop/web from pod shop/cart "
        "(app=cart), port 8080/TCP: it asks for labels of namespace shop, which k8snet does not read"
    )


def test_nothing_keeps_a_pod_from_itself_or_from_its_node() -> None:
    closed = policy(podSelector={}, policyTypes=["Ingress", "Egress"])
    assert ask(closed, client=CART, server=CART) == ()
    assert ask(closed, client=NODE) == ()
    assert [said.way for said in ask(closed, client="192.168.50.2")] == ["ingress"]


def test_both_ends_may_be_selected() -> None:
    said = ask(policy("all", podSelector={}, policyTypes=["Ingress", "Egress"], egress=[{}]))
    assert [(s.way, s.pod, s.denied) for s in said] == [("egress", "shop/cart", False), ("ingress", "shop/web", True)]


def test_it_is_said_in_one_sentence() -> None:
    (denied,) = ask(only_from({"podSelector": {"matchLabels": {"app": "x"}}}))
    assert str(denied) == (
        "no NetworkPolicy allows ingress to pod shop/web from pod shop/cart (app=cart), port 8080/TCP, "
        "and NetworkPolicy shop/web-only selects it for ingress"
    )
    (allowed,) = ask(only_from({"podSelector": {}}))
    assert str(allowed) == (
        "NetworkPolicy shop/web-only allows ingress to pod shop/web from pod shop/cart (app=cart), port 8080/TCP"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param({"ingress": [{"from": [{"ipBlock": {"cidr": "nonsense"}}]}]}, "ipBlock.cidr", id="cidr"),
        pytest.param({"ingress": [{"ports": [{"port": 70000}]}]}, "port", id="port"),
        pytest.param({"ingress": [{"ports": [{"port": 1, "protocol": "GRE"}]}]}, "protocol", id="protocol"),
    ],
)
def test_what_the_api_would_not_have_let_in_is_named(spec: Json, message: str) -> None:
    with pytest.raises(K8snetError, match=message):
        read(policy(**spec), "NetworkPolicy")
