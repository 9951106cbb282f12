"""What has to be asked for which name: each round from what the one before has brought, until nothing is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from apiobjects import endpointslice, node, pod, service
from k8snet.cluster.api import RESOURCES, Query
from k8snet.cluster.inventory import Inventory
from k8snet.cluster.names import parse
from k8snet.cluster.needs import NODES, OUTER, Wish, needed, our_nodes
from k8snet.cluster.objects import inventory_of
from k8snet.cluster.spelling import SPELLINGS

HERE = frozenset({ip_address("192.168.50.1"), ip_address("127.0.0.1")})
PAY = pod("shop/pay-1", "10.1.2.2", "fd00:2::2", node="node-2", labels={"app": "pay"})


def workload(kind: str, key: str, **spec: Any) -> dict[str, Any]:
    namespace, name = key.split("/")
    return {"kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec}


def owned(value: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    value["metadata"]["ownerReferences"] = [{"kind": kind, "name": name, "controller": True}]
    return value


NODEPORT = service("shop/door", "10.96.0.90", kind="NodePort")
NODEPORT["spec"]["ports"][0]["nodePort"] = 30080
BALANCED = service("shop/front", "10.96.0.91", kind="LoadBalancer")
BALANCED["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}
BARE = service("shop/bare", "10.96.0.92", "fd96::92")
del BARE["spec"]["selector"]
BARE_POD = pod("far/one", "10.1.2.7", node="node-2")

CLUSTER = [
    node("node-1", "192.168.50.1", pod_cidrs=("10.1.1.0/24", "fd00:1::/64")),
    node("node-2", "192.168.50.2", pod_cidrs=("10.1.2.0/24", "fd00:2::/64")),
    pod("shop/cart", "10.1.1.1", node="node-1", labels={"app": "cart"}),
    pod("blue/only", "10.1.1.2", node="node-1"),
    PAY,
    BARE_POD,
    service("shop/payments", "10.96.0.80", selector={"app": "pay"}),
    endpointslice("shop/payments-1", "payments", PAY),
    NODEPORT,
    BALANCED,
    BARE,
    endpointslice("shop/bare-1", "bare", BARE_POD),
    workload("Deployment", "shop/pay", selector={"matchLabels": {"app": "pay"}}),
    workload(
        "DaemonSet",
        "shop/agent",
        selector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]},
    ),
    workload("CronJob", "shop/nightly", schedule="0 3 * * *"),
    owned(workload("Job", "shop/nightly-1", selector={"matchLabels": {"job-name": "nightly-1"}}), "CronJob", "nightly"),
    workload("Job", "shop/other", selector={"matchLabels": {"job-name": "other"}}),
    workload(
        "Ingress",
        "shop/site",
        rules=[
            {
                "host": "shop.example",
                "http": {"paths": [{"backend": {"service": {"name": "payments", "port": {"number": 80}}}}]},
            }
        ],
    ),
]


def answers(query: Query) -> list[dict[str, Any]]:
    """What a server has for the query: the few selectors that are used here, understood."""

    def has(item: dict[str, Any], term: str) -> bool:
        path, _, wanted = term.partition("=")
        if path.endswith("!"):
            return not has(item, f"{path[:-1]}={wanted}")
        value: Any = item
        for word in path.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        return bool(value == wanted)

    def labelled(item: dict[str, Any], term: str) -> bool:
        key, equals, wanted = term.partition("=")
        return bool(equals) and (item["metadata"].get("labels") or {}).get(key) == wanted

    return [
        item
        for item in CLUSTER
        if item["kind"] == query.kind
        and query.namespace in ("", item["metadata"].get("namespace"))
        and all(has(item, term) for term in filter(None, query.fields.split(",")))
        and all(labelled(item, term) for term in filter(None, query.labels.split(",")))
    ]


def asked(wish: Wish, denied: frozenset[Query] = frozenset()) -> tuple[set[str], Inventory]:
    """Everything that is asked for a wish, as "resource namespace selectors", and what is known in the end."""
    done: set[Query] = set()
    known = Inventory()
    for _ in range(10):
        fresh = needed(wish, known, done, denied) - done
        if not fresh:
            return {f"{q.resource} {q.namespace or '*'} {q.fields}{q.labels}".strip() for q in done}, known
        done |= fresh
        known = inventory_of((item for q in done - denied for item in answers(q)), "test")
    raise AssertionError("it never comes to an end")


ALWAYS = {"nodes *", "pods * spec.nodeName=node-1"}


def wish(to: str, client: str = "10.1.1.1", namespace: str | None = None) -> Wish:
    return Wish(parse(client), parse(to), namespace, HERE, "here")


def only(to: str) -> set[str]:
    """What is asked for the server, beside what is asked for any trace."""
    return asked(wish(to, "10.1.1.2"))[0] - ALWAYS - {"pods * status.podIP=10.1.1.2", "networkpolicies blue"}


def test_policies_are_asked_for_where_the_pod_with_an_address_is() -> None:
    assert "networkpolicies blue" in asked(wish("no/node-2", "10.1.1.2"))[0]
    assert "networkpolicies shop" in asked(wish("10.1.2.2:8080", "10.1.1.2"))[0]


PAYMENTS = {
    "services shop metadata.name=payments",
    "endpointslices shop kubernetes.io/service-name=payments",
    "pods shop app=pay",
    "networkpolicies shop",
}


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("shop/svc/payments:http", PAYMENTS),
        ("shop/payments:http", PAYMENTS | {"pods shop metadata.name=payments"}),
        ("payments.shop.svc.cluster.local:80", PAYMENTS),
        ("payments.shop:80", PAYMENTS),
        ("10.96.0.80:80", PAYMENTS - {"services shop metadata.name=payments"}
            | {"services * spec.clusterIP=10.96.0.80", "pods * status.podIP=10.96.0.80"}),
        ("shop/ing/site", PAYMENTS | {"ingresses shop metadata.name=site"}),
        ("shop/ep/payments-1", PAYMENTS | {"endpointslices shop metadata.name=payments-1",
            "services shop metadata.name=payments-1"}),
        ("shop/po/pay-1:8080", {"pods shop metadata.name=pay-1", "networkpolicies shop"}),
        ("shop/deploy/pay:8080", {"deployments shop metadata.name=pay", "pods shop app=pay", "networkpolicies shop"}),
        ("shop/ds/agent:80", {"daemonsets shop metadata.name=agent", "pods shop app in (a,b)", "networkpolicies shop"}),
        ("shop/cj/nightly:80", {"cronjobs shop metadata.name=nightly", "jobs shop", "pods shop job-name=nightly-1",
            "networkpolicies shop"}),
        ("shop/svc/bare", {"services shop metadata.name=bare", "endpointslices shop kubernetes.io/service-name=bare",
            "pods far metadata.name=one", "networkpolicies shop"}),
        ("no/node-2", set()),
        ("external:443", {"services *"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_name_needs(to: str, expected: set[str]) -> None:
    known = only(to)
    if not to.startswith("external"):
        # A DNS name may be a pod's name, too, and dots are allowed in that.
        extra = {query for query in known if f"metadata.name={to.rpartition(':')[0] or to}" in query}
        known -= extra - expected
    assert known == expected


@pytest.mark.parametrize("to", ["no/node-2:30080", "192.168.50.2:30080"])
def test_a_node_port_leads_to_its_service(to: str) -> None:
    found, known = asked(wish(to))
    assert "services * spec.type!=ClusterIP,spec.type!=ExternalName" in found
    assert "endpointslices shop kubernetes.io/service-name=door" in found
    assert "endpointslices shop kubernetes.io/service-name=front" not in found  # only what has this port
    assert "services *" not in found
    assert {s.name for s in known.services} == {"door", "front"}
    assert OUTER.words == "services in all namespaces"


def test_an_address_without_an_index_costs_a_list_of_all_services() -> None:
    found, known = asked(wish("203.0.113.9:80"))
    assert "services *" in found
    assert known.service_by_outer_ip[ip_address("203.0.113.9")][0].name == "front"
    assert "services *" in asked(wish("[fd96::92]:80"))[0]  # a second ClusterIP


def test_the_second_address_of_a_pod_is_found_by_its_nodes_network() -> None:
    found, known = asked(wish("[fd00:2::2]:8080"))
    assert "pods * spec.nodeName=node-2" in found
    assert "services *" not in found
    assert known.pod_by_ip[ip_address("fd00:2::2")].key == "shop/pay-1"


def test_an_address_seen_in_packets_is_a_pods_or_nobodys() -> None:
    own = replace(wish("shop/svc/payments"), seen=frozenset({ip_address("10.1.2.7"), ip_address("203.0.113.9")}))
    found, known = asked(own)
    assert {"pods * status.podIP=10.1.2.7", "pods * status.podIP=203.0.113.9"} <= found
    assert not any(query.startswith(("services *", "services * spec")) for query in found)
    assert known.pod_by_ip[ip_address("10.1.2.7")].key == "far/one"


def test_what_is_outside_is_told_by_the_nodes_networks_or_by_all_pods() -> None:
    assert "pods *" not in asked(wish("external"))[0]
    CLUSTER.append(pod("shop/elsewhere", "172.16.0.9", node="node-1"))  # a plugin that has networks of its own
    try:
        assert "pods *" in asked(wish("external"))[0]
    finally:
        CLUSTER.pop()


# --- namespaces -----------------------------------------------------------------------------------------------------


def test_without_a_namespace_default_comes_first_and_then_all() -> None:
    found, known = asked(wish("10.96.0.80:80", client="only"))
    assert {"pods default metadata.name=only", "pods * metadata.name=only"} <= found
    assert any(p.key == "blue/only" for p in known.pods)


@pytest.mark.parametrize("client", ["shop/only", "only"])
def test_a_namespace_that_was_given_is_the_only_one(client: str) -> None:
    own = wish("10.96.0.80:80", client=client, namespace="shop")
    found, _ = asked(own)
    assert "pods shop metadata.name=only" in found
    assert not any(query.startswith("pods * metadata") for query in found)


def test_near_misses_are_asked_for_only_when_they_are_wanted() -> None:
    own = wish("shop/svc/paymnets")
    assert not {"pods shop", "services shop"} & asked(own)[0]
    assert {"pods shop", "services shop"} <= asked(replace(own, wide=True))[0]


# --- who we are -----------------------------------------------------------------------------------------------------


def test_our_node_is_the_one_with_our_address() -> None:
    known = inventory_of(CLUSTER, "test")
    assert our_nodes(Wish(here=HERE, hostname="node-2"), known) == {"node-1"}
    both = HERE | {ip_address("192.168.50.2")}  # nodes that are containers of one machine
    assert our_nodes(Wish(here=both), known) == {"node-1", "node-2"}


def test_else_the_one_with_our_name() -> None:
    known = inventory_of(CLUSTER, "test")
    assert our_nodes(Wish(hostname="Node-2"), known) == {"node-2"}
    assert our_nodes(Wish(hostname="laptop"), known) == set()


def test_nodes_that_may_not_be_seen_leave_our_name() -> None:
    found, _ = asked(Wish(here=HERE, hostname="node-1"), denied=frozenset({NODES}))
    assert found == {"nodes *", "pods * spec.nodeName=node-1"}


def test_what_is_forbidden_everywhere_is_asked_where_it_matters() -> None:
    everywhere = Query("pods", fields="spec.nodeName=node-1")
    found, _ = asked(wish("shop/svc/payments", client="blue/only"), denied=frozenset({everywhere}))
    assert {"pods blue spec.nodeName=node-1", "pods shop spec.nodeName=node-1"} <= found


def test_a_map_needs_the_nodes_and_our_pods() -> None:
    assert asked(Wish(here=HERE))[0] == ALWAYS
    assert asked(Wish(here=HERE, pods_of="shop"))[0] == {"nodes *", "pods shop spec.nodeName=node-1"}


def test_endpoints_are_never_asked_for() -> None:
    assert "endpoints" not in RESOURCES
    assert {Query(name).path for name in RESOURCES} >= {"/api/v1/pods", "/apis/discovery.k8s.io/v1/endpointslices"}


@pytest.mark.parametrize("kind", sorted(SPELLINGS))
def test_every_kind_of_name_can_be_asked_for(kind: str) -> None:
    name = "ip/10.1.2.7" if kind == "ip" else f"{kind}/web:80"
    for client, to in ((name, "10.1.1.1"), ("10.1.1.1", name)):
        assert asked(wish(to, client))[0] >= ALWAYS
        assert asked(replace(wish(to, client), wide=True))[0] >= ALWAYS


def test_the_page_gives_exactly_the_rights_that_are_needed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    [role] = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    given = {(group, name) for r in role["rules"] for group in r["apiGroups"] for name in r["resources"]}
    assert given == {(where.group, name) for name, where in RESOURCES.items()}
    assert all(r["verbs"] == ["list", "watch"] for r in role["rules"])
