"""Names: what users write, what it means in a small cluster, and what they are told when it means nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Pod, Protocol, Service, ServicePort
from k8snet.cluster.lookup import things
from k8snet.cluster.names import Name, parse, resolve_from, resolve_to, taken_here
from k8snet.cluster.objects import KUBECTL, inventory_of
from k8snet.cluster.targets import Target
from k8snet.cluster.workloads import pods_by_workload
from k8snet.errors import Exit, K8snetError


def pod(key: str, *ips: str, phase: str = "Running", host_network: bool = False) -> Pod:
    namespace, name = key.split("/")
    ports: tuple[tuple[str, Protocol, int], ...] = (("http", "TCP", 8080), ("dns", "UDP", 53), ("dns", "TCP", 53))
    addresses = tuple(map(ip_address, ips))
    return Pod(namespace, name, f"uid-{key}", "node-1", addresses, host_network, phase, named_ports=ports)


def end(ip: str, port: int, pod: str | None = None, ready: bool = True) -> Endpoint:
    return Endpoint(ip_address(ip), port, pod, "node-1", ready)


def service(key: str, *ips: str, ports: tuple[ServicePort, ...], kind: str = "ClusterIP") -> Service:
    namespace, name = key.split("/")
    return Service(namespace, name, tuple(map(ip_address, ips)), ports, kind)


PAY = (end("10.1.0.2", 8080, "shop/pay-5c9b-x2x8k"), end("10.1.0.3", 8080, "shop/pay-5c9b-zzzzz", ready=False))
HTTP = ServicePort("http", "TCP", 80, "8080", 30080, PAY)
METRICS = ServicePort("metrics", "TCP", 9090, "9090", endpoints=(end("10.1.0.2", 9091),))
SQL = ServicePort("", "TCP", 5432, "5432", endpoints=(end("10.1.0.5", 5432, "shop/db-0"),))
DNS = ServicePort("dns", "UDP", 53, "53", endpoints=(end("10.1.0.9", 5353),))
DNS_TCP = ServicePort("dns-tcp", "TCP", 53, "53", endpoints=(end("10.1.0.9", 5354),))

CLUSTER = Inventory(
    pods=(
        pod("shop/cart-7d4f-abcde", "10.1.0.1", "fd00::1"),
        pod("shop/pay-5c9b-x2x8k", "10.1.0.2"),
        pod("shop/twin", "10.1.0.4"),
        pod("shop/db-0", "10.1.0.5"),
        pod("shop/node.dotted", "10.1.0.6"),
        pod("blue/web", "10.1.1.1"),
        pod("green/web", "10.1.1.2"),
        pod("blue/only", "10.1.1.3"),
        pod("default/here", "10.1.2.1"),
        pod("blue/here", "10.1.2.2"),
        pod("shop/pending", phase="Pending"),
        pod("shop/job-1", "10.1.0.1", phase="Succeeded"),
        pod("kube-system/kube-proxy", "192.168.50.1", host_network=True),
    ),
    services=(
        service("shop/payments", "10.96.0.80", "fd96::80", ports=(HTTP, METRICS)),
        service("shop/twin", "10.96.0.81", ports=(HTTP,)),
        service("shop/db", ports=(SQL,)),
        service("shop/empty", "10.96.0.82", ports=(ServicePort("http", "TCP", 80, "8080"),)),
        service("shop/elsewhere", ports=(), kind="ExternalName"),
        service("kube-system/kube-dns", "10.96.0.10", ports=(DNS, DNS_TCP)),
    ),
    nodes=(Node("node-1", (ip_address("192.168.50.1"),)), Node("node-2", ())),
    source="test",
)  # fmt: skip

Resolve = Callable[..., Target]
BOTH = pytest.mark.parametrize("resolve", [resolve_from, resolve_to], ids=["from", "to"])


def refused(resolve: Resolve, text: str, namespace: str | None = None, known: Inventory = CLUSTER) -> K8snetError:
    with pytest.raises(K8snetError) as caught:
        resolve(text, known, namespace)
    assert caught.value.code is Exit.USAGE
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("cart", ("cart", None, None, None), id="bare"),
        pytest.param("shop/cart", ("cart", "shop", None, None), id="namespace"),
        pytest.param("po/cart", ("cart", None, "po", None), id="kind"),
        pytest.param("shop/po/cart", ("cart", "shop", "po", None), id="namespace-kind"),
        pytest.param("pod/shop/cart", ("cart", "shop", "po", None), id="as-reports-print-it"),
        pytest.param("shop/svc/pay:http", ("pay", "shop", "svc", "http"), id="named-port"),
        pytest.param("svc/pay:80", ("pay", None, "svc", "80"), id="port"),
        pytest.param("Deployments.apps/web", ("web", None, "deploy", None), id="long-form-with-group"),
        pytest.param("po/po/web", ("web", "po", "po", None), id="namespace-spelled-like-a-kind"),
        pytest.param("10.1.0.1", ("10.1.0.1", None, "ip", None), id="ipv4"),
        pytest.param("10.1.0.1:80", ("10.1.0.1", None, "ip", "80"), id="ipv4-port"),
        pytest.param("fd00::1", ("fd00::1", None, "ip", None), id="ipv6"),
        pytest.param("[fd00::1]", ("fd00::1", None, "ip", None), id="ipv6-brackets"),
        pytest.param("[fd00::1]:80", ("fd00::1", None, "ip", "80"), id="ipv6-port"),
        pytest.param("ip/[fd00::1]:80", ("fd00::1", None, "ip", "80"), id="ip-kind"),
        pytest.param("::ffff:10.1.0.1", ("10.1.0.1", None, "ip", None), id="ipv4-in-ipv6"),
        pytest.param("web.shop.svc.cluster.local:80", ("web.shop.svc.cluster.local", None, None, "80"), id="fqdn"),
    ],
)
def test_names_are_taken_apart(text: str, expected: tuple[str, str | None, str | None, str | None]) -> None:
    name = parse(text)
    assert (name.name, name.namespace, name.kind, name.port) == expected
    assert bool(name.address) == (name.kind == "ip")


@pytest.mark.parametrize(
    ("spellings", "kind"),
    [
        ("po pod pods", "po"),
        ("svc service services", "svc"),
        ("deploy deployment deployments deployments.apps", "deploy"),
        ("sts statefulset statefulsets", "sts"),
        ("ds daemonset daemonsets", "ds"),
        ("job jobs jobs.batch", "job"),
        ("no node nodes", "no"),
        ("ep endpoints endpointslices.discovery.k8s.io", "ep"),
        ("ing ingress ingresses", "ing"),
    ],
)
def test_every_kind_in_every_spelling(spellings: str, kind: str) -> None:
    for spelling in spellings.split():
        assert parse(f"{spelling}/x").kind == kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a name"),
        ("/cart", "not a name"),
        ("shop//cart", "not a name"),
        ("a/b/c/d", "not a name"),
        ("Cart", "not a name"),
        ("cart pay", "not a name"),
        ("[cart]:80", "not a name"),
        ("shop/thing/cart", "no kind 'thing'"),
        ("deploymints.apps/cart", "no kind"),
        ("cart:", "'' is not a port"),
        ("cart:0", "no port 0"),
        ("cart:65536", "no port 65536"),
        ("cart:HTTP", "'HTTP' is not a port"),
        ("ip/cart", "not an IP address"),
        ("shop/10.1.0.1", "no namespace"),
        ("fe80::1%eth0", "link-local"),
        ("cart\x1b[31m", "not a name"),
        ("$(reboot)/po/cart", "not a name"),
        ("Shop/cart", "not a name"),
        ("a" * 700, "longer than any name"),
    ],
)
def test_what_is_no_name(text: str, words: str) -> None:
    with pytest.raises(K8snetError) as caught:
        parse(text)
    assert words in caught.value.problem
    assert caught.value.remedy


@BOTH
@given(text=st.text(alphabet="ab/:.[]0f%- \n", max_size=12) | st.text(max_size=8))
def test_any_text_is_a_name_or_a_clear_error(resolve: Resolve, text: str) -> None:
    try:
        target = resolve(text, CLUSTER)
    except K8snetError as error:
        said = (error.problem, error.remedy)
    else:
        said = (target.text, str(target.addresses[0]) if target.addresses else "outside")
    assert all(said)


OBJECTS = (
    "shop",
    "cart",
    "db",
    "one",
    "two",
    "old",
    "web",
    "x",
    "node-1",
    "10-1-0-1",
    "10.1.0.1",
    "fd00::1",
    "external",
)
WORDS = ("po", "svc", "deploy", "ep", "ing", "no", "ip", "svc.cluster.local", "pod", "80", "http")
PARTS = st.sampled_from([*OBJECTS, *WORDS])


@BOTH
@given(parts=st.lists(PARTS, max_size=5), marks=st.lists(st.sampled_from("/:.[]- "), min_size=6, max_size=6))
def test_any_mixture_of_parts_is_a_name_or_a_clear_error(resolve: Resolve, parts: list[str], marks: list[str]) -> None:
    text = "".join(part + mark for part, mark in zip(parts, marks, strict=False)).rstrip("/:")
    for known in (SMALL, CLUSTER, Inventory()):
        try:
            target = resolve(text, known)
        except K8snetError as error:
            said = (error.problem, error.remedy)
        else:
            said = (target.text, "outside" if target.outside else str(target.addresses[0]))
        assert all(said)


LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@given(LABEL, st.sampled_from(["po", "svc", "deploy", "no"]), LABEL, st.integers(1, 65535))
def test_what_is_spelled_out_is_read_back(namespace: str, kind: str, name: str, port: int) -> None:
    text = f"{namespace}/{kind}/{name}:{port}"
    assert parse(text) == Name(text, name, namespace, kind, str(port))


@BOTH
@pytest.mark.parametrize(
    "text", ["shop/cart-7d4f-abcde", "shop/po/cart-7d4f-abcde", "po/cart-7d4f-abcde", "pod/shop/cart-7d4f-abcde",
             "cart-7d4f-abcde"]
)  # fmt: skip
def test_a_pod_by_any_spelling(resolve: Resolve, text: str) -> None:
    target = resolve(text, CLUSTER)
    assert target == Target("pod/shop/cart-7d4f-abcde", (ip_address("10.1.0.1"), ip_address("fd00::1")), pod=target.pod)
    assert target.pod is CLUSTER.pods[0]


def test_service_port_by_number_and_name_with_its_ready_endpoints() -> None:
    for text in ("shop/svc/payments:80", "svc/payments:http", "payments.shop.svc:http", "payments.shop:80"):
        target = resolve_to(text, CLUSTER)
        assert (target.text, target.port, target.protocol) == ("svc/shop/payments", 80, "TCP")
        assert target.addresses == (ip_address("10.96.0.80"), ip_address("fd96::80"))
        assert target.service_port is HTTP
        assert target.backends == ((ip_address("10.1.0.2"), 8080),)
        assert target.all_endpoints == HTTP.endpoints


@pytest.mark.parametrize("domain", ["", ".", ".cluster.local", ".cluster.local.", ".corp.example"])
def test_dns_names_of_services_in_any_cluster_domain(domain: str) -> None:
    assert resolve_to(f"empty.shop.svc{domain}", CLUSTER).text == "svc/shop/empty"


def test_dns_name_of_a_pod_behind_a_headless_service() -> None:
    assert resolve_to("db-0.db.shop.svc.cluster.local:5432", CLUSTER).text == "pod/shop/db-0"


@BOTH
def test_a_pods_name_may_have_dots(resolve: Resolve) -> None:
    assert resolve("node.dotted", CLUSTER).text == "pod/shop/node.dotted"


def test_the_only_port_needs_no_naming() -> None:
    target = resolve_to("svc/empty", CLUSTER)
    assert (target.port, target.protocol, target.backends) == (80, "TCP", ())


def test_without_a_port_all_ports_of_a_service_count() -> None:
    target = resolve_to("svc/payments", CLUSTER)
    assert (target.port, target.protocol, target.service_port) == (None, "TCP", None)
    assert target.all_endpoints == HTTP.endpoints + METRICS.endpoints


def test_one_number_for_two_protocols() -> None:
    either = resolve_to("svc/kube-dns:53", CLUSTER)
    assert (either.port, either.protocol, either.service_port) == (53, None, None)
    for udp in (resolve_to("svc/kube-dns:53", CLUSTER, protocol="UDP"), resolve_to("svc/kube-dns:53/udp", CLUSTER)):
        assert (udp.port, udp.protocol, udp.service_port) == (53, "UDP", DNS)
        assert udp.backends == ((ip_address("10.1.0.9"), 5353),)


def test_named_port_of_a_pod() -> None:
    target = resolve_to("shop/pay-5c9b-x2x8k:http", CLUSTER)
    assert (target.port, target.protocol) == (8080, "TCP")
    assert resolve_to("shop/pay-5c9b-x2x8k:dns/udp", CLUSTER).protocol == "UDP"


def test_pods_port_needs_no_declaration() -> None:
    target = resolve_to("shop/pay-5c9b-x2x8k:1234", CLUSTER)
    assert (target.port, target.protocol) == (1234, None)


def test_addresses_are_named_where_they_are_known() -> None:
    assert resolve_from("10.1.0.2", CLUSTER).text == "pod/shop/pay-5c9b-x2x8k"
    assert resolve_to("[fd00::1]:80", CLUSTER).addresses == (ip_address("fd00::1"),)
    target = resolve_to("10.96.0.80:80", CLUSTER)
    assert (target.text, target.addresses, target.service_port) == (
        "svc/shop/payments",
        (ip_address("10.96.0.80"),),
        HTTP,
    )
    assert resolve_to("192.0.2.1:443", CLUSTER) == Target("192.0.2.1", (ip_address("192.0.2.1"),), 443)


def test_an_address_works_without_any_inventory() -> None:
    assert resolve_from("10.1.0.2", Inventory()).addresses == (ip_address("10.1.0.2"),)


def test_a_wrong_port_of_a_service_address_can_be_traced() -> None:
    target = resolve_to("10.96.0.80:81", CLUSTER)
    assert (target.text, target.port, target.service_port, target.backends) == ("svc/shop/payments", 81, None, ())


def test_node_port() -> None:
    for text in ("no/node-1:30080", "192.168.50.1:30080"):
        target = resolve_to(text, CLUSTER)
        assert (target.text, target.port, target.service_port) == ("node/node-1", 30080, HTTP)
        assert target.backends == ((ip_address("10.1.0.2"), 8080),)
    assert resolve_from("no/node-1", CLUSTER).service is None


def test_default_namespace_comes_first() -> None:
    assert resolve_to("here", CLUSTER).text == "pod/default/here"
    assert resolve_to("here", CLUSTER, "blue").text == "pod/blue/here"
    assert resolve_to("blue/here", CLUSTER, "default").text == "pod/blue/here"


# From here: what names can be wrong, and what is said.


@BOTH
def test_a_name_in_several_namespaces_is_ambiguous(resolve: Resolve) -> None:
    error = refused(resolve, "web:80")
    assert error.problem == "'web:80' can mean 2 things"
    assert error.remedy == "choose one: blue/po/web:80, green/po/web:80"


def test_pod_and_service_of_one_name() -> None:
    assert refused(resolve_to, "shop/twin:80").remedy == "choose one: shop/po/twin:80, shop/svc/twin:80"
    assert resolve_to("shop/svc/twin", CLUSTER).text == "svc/shop/twin"
    assert resolve_from("shop/twin", CLUSTER).text == "pod/shop/twin"  # only a pod can be a client


@BOTH
def test_every_candidate_can_be_copied(resolve: Resolve) -> None:
    for candidate in refused(resolve, "web").remedy.removeprefix("choose one: ").split(", "):
        assert resolve(candidate, CLUSTER).pod is not None


@pytest.mark.parametrize(
    ("text", "namespace", "remedy"),
    [
        pytest.param("shop/cart", None, "did you mean shop/po/cart-7d4f-abcde?", id="deployments-name"),
        pytest.param("shop/crat", None, "did you mean shop/po/cart-7d4f-abcde?", id="slip-in-the-first-word"),
        pytest.param("shop/paymets:80", None, "did you mean shop/svc/payments:80?", id="slip"),
        pytest.param("svc/only", None, "did you mean blue/po/only?", id="other-kind"),
        pytest.param("only", "shop", "did you mean blue/po/only?", id="other-namespace"),
        pytest.param("node-1", None, "did you mean no/node-1?", id="node"),
        pytest.param("shopp/cart", None, "did you mean shop/po/cart-7d4f-abcde?", id="namespace"),
        pytest.param("shopp/qqqqq", None, "did you mean namespace shop?", id="namespace-and-name"),
        pytest.param("no/node1", None, "did you mean no/node-1?", id="node-slip"),
        pytest.param("shop/qqqqq", None, "see: kubectl get pods,services -n shop", id="nothing-like-it"),
    ],
)
def test_not_found(text: str, namespace: str | None, remedy: str) -> None:
    assert refused(resolve_to, text, namespace).remedy == remedy


@BOTH
def test_names_without_an_inventory(resolve: Resolve) -> None:
    error = refused(resolve, "cart", known=Inventory())
    assert error.problem == "no " + ("pod" if resolve is resolve_from else "pod or service") + (
        " named 'cart': no pods and services are known (inventory: none)"
    )
    assert "--inventory FILE" in error.remedy


def test_a_port_that_the_service_does_not_have() -> None:
    error = refused(resolve_to, "svc/payments:8080")
    assert error.problem == "service shop/payments has no port 8080"
    assert "shop/svc/payments:http (80/TCP, to 8080 in the pod)" in error.remedy
    assert "shop/svc/payments:metrics (9090/TCP, to 9090 in the pod)" in error.remedy
    assert refused(resolve_to, "svc/payments:80/udp").problem == "service shop/payments has no UDP port 80"


def test_a_port_name_that_the_pod_does_not_have() -> None:
    error = refused(resolve_to, "shop/db-0:postgres")
    assert error.problem == "pod shop/db-0 has no port named 'postgres'"
    assert "http (8080/TCP)" in error.remedy
    assert "several ports named 'dns'" in refused(resolve_to, "shop/db-0:dns").problem
    assert "nothing is known at 192.0.2.1" in refused(resolve_to, "192.0.2.1:http").problem


def test_headless_service_stands_for_its_only_pod() -> None:
    target = resolve_to("svc/db", CLUSTER)
    assert (target.text, target.addresses, target.port) == ("pod/shop/db-0", (ip_address("10.1.0.5"),), 5432)
    assert target.notes == ("service shop/db is headless: clients connect to its only pod",)


def test_service_that_is_only_a_name() -> None:
    assert "ExternalName" in refused(resolve_to, "svc/elsewhere").problem


@pytest.mark.parametrize("text", ["svc/payments", "payments", "payments.shop.svc", "10.96.0.80", "shop/ep/payments"])
def test_a_service_is_no_client(text: str) -> None:
    error = refused(resolve_from, text)
    assert "opens no connections" in error.problem
    assert error.remedy == "name the pod that does: shop/po/pay-5c9b-x2x8k"


@BOTH
def test_pods_that_have_no_address_of_their_own(resolve: Resolve) -> None:
    assert refused(resolve, "shop/pending").problem == "pod shop/pending has no IP address (phase Pending)"
    assert "has finished (Succeeded)" in refused(resolve, "shop/job-1").problem
    assert "node-2 has no IP address" in refused(resolve, "no/node-2").problem


@BOTH
def test_a_pod_in_its_nodes_network_has_the_nodes_address(resolve: Resolve) -> None:
    target = resolve("kube-system/kube-proxy:10256", CLUSTER)
    assert (target.text, target.addresses) == ("pod/kube-system/kube-proxy", (ip_address("192.168.50.1"),))
    assert target.node == CLUSTER.nodes[0]
    assert target.notes == (
        "pod/kube-system/kube-proxy uses its node's network: connections of everything on node-1 look like its own",
    )
    assert resolve_to("kube-system/kube-proxy:http", CLUSTER).port == 8080


# From here: workloads, endpoints, Ingresses and addresses outside, in a cluster as kubectl prints it.


def object_(kind: str, key: str, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    namespace, name = key.split("/")
    metadata = {"namespace": namespace, "name": name} | more.pop("metadata", {})
    return {"kind": kind, "metadata": metadata, "spec": spec or {}, **more}


def owned(key: str, ip: str, owner: tuple[str, str] | None, node: str = "node-1", **labels: str) -> dict[str, Any]:
    """A running pod that `owner` (kind, name) made."""
    references = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else []
    ports = [{"name": "http", "containerPort": 8080}]
    return object_(
        "Pod",
        key,
        {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        metadata={"ownerReferences": references, "labels": {k.replace("_", "-"): v for k, v in labels.items()}},
        status={"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    )


def slice_(key: str, service: str | None, *ends: tuple[str, str], port: int = 8080, name: str = "http") -> Any:
    body = object_("EndpointSlice", key)
    if service:
        body["metadata"]["labels"] = {"kubernetes.io/service-name": service}
    endpoints = [{"addresses": [ip], "nodeName": node} for ip, node in ends]
    return body | {"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": name, "port": port}]}


def backend(service: str, port: object) -> dict[str, Any]:
    return {"service": {"name": service, "port": {"number" if isinstance(port, int) else "name": port}}}


CART_A, CART_B, CART_C = "cart-7d4f9c55b8-aaaaa", "cart-7d4f9c55b8-bbbbb", "cart-7d4f9c55b8-ccccc"
HTTP_80 = [{"name": "http", "port": 80, "targetPort": "http"}]
SHOP: list[dict[str, Any]] = [
    owned(f"shop/{CART_A}", "10.1.0.1", ("ReplicaSet", "cart-7d4f9c55b8"), "node-2", pod_template_hash="7d4f9c55b8"),
    owned(f"shop/{CART_B}", "10.1.0.2", ("ReplicaSet", "cart-7d4f9c55b8"), pod_template_hash="7d4f9c55b8"),
    owned(f"shop/{CART_C}", "10.1.0.3", ("ReplicaSet", "cart-7d4f9c55b8"), pod_template_hash="7d4f9c55b8"),
    owned("shop/db-0", "10.1.0.10", ("StatefulSet", "db")),
    owned("shop/db-1", "10.1.0.11", ("StatefulSet", "db"), "node-2"),
    owned("shop/agent-x2x8k", "10.1.0.20", ("DaemonSet", "agent")),
    owned("shop/backup-29000000-x7xtz", "10.1.0.30", ("Job", "backup-29000000")),
    owned("shop/alone", "10.1.0.40", None, app="adopted"),
    owned("shop/roll-6d-1", "10.1.0.50", ("Rollout", "roll")),
    object_("Service", "shop/cart", {"clusterIP": "10.96.0.1", "ports": HTTP_80, "type": "LoadBalancer",
                                     "externalIPs": ["192.0.2.10"], "externalTrafficPolicy": "Local"},
            status={"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "lb.example.com"}]}}),
    object_("Service", "shop/db", {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
    object_("Service", "shop/front", {"clusterIP": "10.96.0.2", "type": "NodePort", "sessionAffinity": "ClientIP",
                                      "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
    object_("Service", "shop/old", {"type": "ExternalName", "externalName": "db.example.com"}),
    slice_("shop/cart-aaaaa", "cart", ("10.1.0.1", "node-2"), ("10.1.0.2", "node-1")),
    slice_("shop/front-fffff", "front", ("10.1.0.1", "node-2"), ("10.1.0.2", "node-1")),
    slice_("shop/db-bbbbb", "db", ("10.1.0.10", "node-1"), ("10.1.0.11", "node-2"), port=5432, name="sql"),
    slice_("shop/by-hand", None, ("192.0.2.99", "node-1"), port=443, name="https"),
    object_("Ingress", "shop/one", {"defaultBackend": backend("cart", "http")}),
    object_("Ingress", "shop/two", {"rules": [{"host": "shop.example.com", "http": {"paths": [
        {"path": "/", "backend": backend("front", 80)}, {"path": "/cart", "backend": backend("cart", 80)}]}}]}),
    {"kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDR": "10.1.0.0/24"},
     "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.1"}]}},
]  # fmt: skip
DECLARED: list[dict[str, Any]] = [
    object_("Deployment", "shop/cart", {"selector": {"matchLabels": {"app": "cart"}}}),
    object_("ReplicaSet", "shop/cart-7d4f9c55b8", {"selector": {"matchLabels": {"app": "cart"}}},
            metadata={"ownerReferences": [{"kind": "Deployment", "name": "cart", "controller": True}]}),
    object_("Deployment", "shop/adopted", {"selector": {"matchExpressions": [
        {"key": "app", "operator": "In", "values": ["adopted"]}]}}),
    object_("Deployment", "shop/asleep", {"selector": {"matchLabels": {"app": "asleep"}}}),
    object_("Job", "shop/backup-29000000", {},
            metadata={"ownerReferences": [{"kind": "CronJob", "name": "backup", "controller": True}]}),
    object_("CronJob", "shop/backup"),
]  # fmt: skip
SMALL = inventory_of(SHOP, "small")
LARGE = inventory_of([*SHOP, *DECLARED], "large")
FILES = pytest.mark.parametrize("known", [SMALL, LARGE], ids=["pods-only", "with-workloads"])


@FILES
@pytest.mark.parametrize(
    ("text", "workload", "pods"),
    [
        ("deploy/cart", "deploy/shop/cart", [CART_A, CART_B, CART_C]),
        ("shop/rs/cart-7d4f9c55b8", "rs/shop/cart-7d4f9c55b8", [CART_A, CART_B, CART_C]),
        ("statefulset/db", "sts/shop/db", ["db-0", "db-1"]),
        ("shop/ds/agent", "ds/shop/agent", ["agent-x2x8k"]),
        ("job/backup-29000000", "job/shop/backup-29000000", ["backup-29000000-x7xtz"]),
        ("cj/backup", "cj/shop/backup", ["backup-29000000-x7xtz"]),
    ],
)
def test_a_workload_as_client_is_one_of_its_pods(known: Inventory, text: str, workload: str, pods: list[str]) -> None:
    client = resolve_from(text, known)
    assert (client.workload, [pod.name for pod in client.pods]) == (workload, pods)
    assert client.text == f"pod/shop/{pods[0]}"


def test_the_workloads_pod_on_this_node_is_taken_and_the_others_are_said() -> None:
    client = taken_here(resolve_from("deploy/cart", SMALL), lambda pod: pod.node == "node-1")
    assert (client.text, client.addresses) == (f"pod/shop/{CART_B}", (ip_address("10.1.0.2"),))
    assert client.notes == (
        f"deploy/shop/cart has 3 running pods, taken: shop/po/{CART_B}; "
        f"others: shop/po/{CART_A} on node-2, shop/po/{CART_C}",
    )


def test_a_workload_with_no_pod_here_says_where_they_are() -> None:
    with pytest.raises(K8snetError) as caught:
        taken_here(resolve_from("sts/db", SMALL), lambda pod: False)
    assert caught.value.problem == "no pod of sts/shop/db runs on this node"
    assert caught.value.remedy == "run the same command there: node-1 (shop/po/db-0); node-2 (shop/po/db-1)"


def test_a_pod_is_the_pod_wherever_it_runs() -> None:
    client = resolve_from("shop/db-1", SMALL)
    assert taken_here(client, lambda pod: False) is client


def test_of_a_workloads_pods_the_ready_one_that_stays_is_taken() -> None:
    leaving, unready, fine = (owned(f"shop/web-{n}", f"10.1.2.{n}", ("StatefulSet", "web")) for n in (0, 1, 2))
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T03:34:04Z"
    unready["status"]["conditions"][0]["status"] = "False"
    client = resolve_from("sts/web", inventory_of([leaving, unready, fine], "f"))
    assert [pod.name for pod in client.pods] == ["web-2", "web-1", "web-0"]


def test_a_pod_that_nobody_owns_belongs_to_who_selects_it() -> None:
    assert resolve_from("deploy/adopted", LARGE).text == "pod/shop/alone"


@FILES
def test_foreign_owners_make_no_workload(known: Inventory) -> None:
    assert "no Deployment named 'roll'" in refused(resolve_from, "deploy/roll", known=known).problem


def test_a_workload_without_running_pods() -> None:
    done = owned("shop/backup-x", "10.1.3.1", ("Job", "backup"))
    done["status"]["phase"] = "Succeeded"
    error = refused(resolve_from, "job/backup", known=inventory_of([done], "f"))
    assert error.problem == "shop/job/backup has no running pod: backup-x is Succeeded"
    assert (
        refused(resolve_from, "deploy/asleep", known=LARGE).remedy == "see why: kubectl describe deploy -n shop asleep"
    )


@FILES
def test_a_workload_as_server_is_all_its_pods(known: Inventory) -> None:
    for text in ("deploy/cart:8080", "deploy/cart:http"):
        server = resolve_to(text, known)
        assert (server.text, server.port) == ("deploy/shop/cart", 8080)
        assert [str(address) for address in server.addresses] == ["10.1.0.1", "10.1.0.2", "10.1.0.3"]
        assert server.backends == tuple((address, 8080) for address in server.addresses)
        assert server.notes == ("deploy/shop/cart stands for 3 pods: --send takes the first, 10.1.0.1",)
    error = refused(resolve_to, "deploy/cart:grpc", known=known)
    assert (error.problem, error.remedy) == (
        "the pods of shop/deploy/cart have no port named 'grpc'",
        "they name http (8080/TCP)",
    )


def test_endpoints_are_those_of_the_service_at_their_own_addresses() -> None:
    for text in ("ep/cart", "shop/ep/cart:http", "endpointslice/cart-aaaaa:8080"):
        server = resolve_to(text, SMALL)
        assert (server.port, server.protocol, server.service) == (8080, "TCP", None)
        assert [str(address) for address in server.addresses] == ["10.1.0.1", "10.1.0.2"]
    error = refused(resolve_to, "ep/cart:80", known=SMALL)
    assert error.remedy == "it has shop/ep/cart:http (8080/TCP)"
    assert resolve_to("ep/by-hand", SMALL).addresses == (ip_address("192.0.2.99"),)
    assert "shop/ep/empty has no endpoints" in refused(resolve_to, "shop/ep/empty").problem


def test_an_ingress_is_its_service() -> None:
    server = resolve_to("ing/one", SMALL)
    assert (server.text, server.port) == ("svc/shop/cart", 80)
    assert server.notes[-1] == (
        "shop/ing/one leads to shop/svc/cart:http; most controllers connect to shop/ep/cart instead"
    )
    error = refused(resolve_to, "ing/two", known=SMALL)
    assert error.remedy == "choose one: shop/svc/front:80 (shop.example.com/), shop/svc/cart:80 (shop.example.com/cart)"
    assert "opens no connections" in refused(resolve_from, "ing/one", known=SMALL).problem
    lost = inventory_of([*SHOP, object_("Ingress", "shop/lost", {"defaultBackend": backend("gone", 80)})], "f")
    assert refused(resolve_to, "ing/lost", known=lost).problem == (
        "shop/ing/lost leads to shop/svc/gone:80: no service named 'gone' in namespace 'shop'"
    )


def test_headless_service_asks_which_of_its_pods() -> None:
    error = refused(resolve_to, "svc/db", known=SMALL)
    assert "shop/db is headless" in error.problem
    assert error.remedy == "name one of them: shop/po/db-0:5432, shop/po/db-1:5432; or any of them: shop/ep/db"
    assert resolve_to("db-1.db.shop.svc.cluster.local:5432", SMALL).text == "pod/shop/db-1"


def test_of_a_headless_services_pods_dns_gives_the_ready_ones() -> None:
    ends = [{"addresses": [f"10.1.0.1{n}"], "conditions": {"ready": not n}} for n in (0, 1)]
    for published in (False, True):
        db = object_("Service", "shop/db", {"clusterIP": "None", "publishNotReadyAddresses": published,
                                            "ports": [{"name": "sql", "port": 5432}]})  # fmt: skip
        part = slice_("shop/db-bbbbb", "db", port=5432, name="sql") | {"endpoints": ends}
        known = inventory_of([*(one for one in SHOP if one["kind"] == "Pod"), db, part], "f")
        if published:
            assert "shop/po/db-0:5432, shop/po/db-1:5432" in refused(resolve_to, "svc/db", known=known).remedy
        else:
            target = resolve_to("svc/db", known)
            assert (target.text, target.notes) == (
                "pod/shop/db-0",
                ("service shop/db is headless: clients connect to its only ready pod",),
            )


def test_external_name_says_what_to_ask_and_what_to_write() -> None:
    error = refused(resolve_to, "svc/old:5432", known=SMALL)
    assert "only another name for db.example.com (ExternalName)" in error.problem
    assert "getent hosts db.example.com; then name the address: ADDRESS:5432" in error.remedy


def test_a_dns_name_outside_is_asked_for_by_the_client() -> None:
    error = refused(resolve_to, "www.example.com:443", known=SMALL)
    assert error.problem == "nothing in this cluster has the DNS name 'www.example.com'"
    assert "getent hosts www.example.com; then name the address: ADDRESS:443" in error.remedy


@pytest.mark.parametrize(
    "text", ["10-1-0-1.shop.pod.cluster.local:8080", "10-1-0-1.shop.pod:8080", "10-1-0-1.cart.shop.svc:8080"]
)
def test_dns_names_made_of_an_address(text: str) -> None:
    assert resolve_to(text, SMALL).text == f"pod/shop/{CART_A}"
    assert resolve_from(text, SMALL).text == f"pod/shop/{CART_A}"


def test_dns_name_made_of_an_ipv6_address() -> None:
    assert resolve_to("fd00--1.shop.pod.cluster.local:80", CLUSTER).addresses == (ip_address("fd00::1"),)


@pytest.mark.parametrize("address", ["203.0.113.7", "192.0.2.10"])
def test_addresses_that_a_service_has_for_clients_outside(address: str) -> None:
    for port in (":80", ":http", ""):
        server = resolve_to(f"{address}{port}", SMALL)
        assert (server.text, server.addresses, server.port) == ("svc/shop/cart", (ip_address(address),), 80)
        assert server.service_port == SMALL.services[0].ports[0]
    assert "opens no connections" in refused(resolve_from, address, known=SMALL).problem


def test_services_that_share_an_address_are_told_apart_by_port() -> None:
    shared = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}
    web = object_("Service", "shop/web", {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}, status=shared)
    sql = object_("Service", "shop/sql", {"clusterIP": "10.96.0.2", "ports": [{"port": 5432}]}, status=shared)
    known = inventory_of([web, sql], "f")
    assert resolve_to("203.0.113.7:80", known).text == "svc/shop/web"
    assert resolve_to("203.0.113.7:5432", known).text == "svc/shop/sql"


def test_a_node_port_asked_of_the_service_is_led_to_the_node() -> None:
    error = refused(resolve_to, "svc/front:30080", known=SMALL)
    assert error.remedy.endswith("; 30080 is its port on every node: no/node-1:30080")


def test_session_affinity_is_said() -> None:
    assert resolve_to("svc/front", SMALL).notes == (
        "svc/shop/front keeps a client at one endpoint for 10800 s (sessionAffinity: ClientIP)",
    )
    assert resolve_to("svc/cart", SMALL).notes == ()


def test_external_is_any_address_that_the_cluster_does_not_have() -> None:
    server = resolve_to("external:443", SMALL)
    assert (server.outside, server.addresses, server.port) == (True, (), 443)
    inside = ["10.1.0.1", "10.1.0.77", "10.96.0.1", "203.0.113.7", "192.168.50.1"]
    assert all(SMALL.is_inside(ip_address(address)) for address in inside)
    assert not SMALL.is_inside(ip_address("198.51.100.1"))
    assert "one client by its address" in refused(resolve_from, "external", known=SMALL).problem


def test_the_very_name_with_another_kind_comes_first() -> None:
    error = refused(resolve_from, "shop/cart-7d4f9c55b8", known=LARGE)
    assert error.remedy.startswith("did you mean shop/rs/cart-7d4f9c55b8")
    assert refused(resolve_from, "shop/agent", known=SMALL).remedy == (
        "did you mean shop/ds/agent, shop/po/agent-x2x8k?"
    )


def test_nothing_from_the_inventory_is_suggested_that_a_shell_would_run() -> None:
    evil = [owned(f"{space}/{name}", "10.1.9.1", None) for space, name in (("$(id)", "web"), ("shop", "web-`id`"))]
    fine = owned("shop/web-1", "10.1.9.2", None)
    error = refused(resolve_to, "shop/web", known=inventory_of([*evil, fine], "f"))
    assert error.remedy == "did you mean shop/po/web-1?"
    evil[0]["status"]["phase"] = "Failed"
    remedy = refused(resolve_to, "web", known=inventory_of(evil, "f")).remedy
    assert remedy == "name a running pod; why it ended: kubectl describe pod -n '$(id)' web"


def test_what_cannot_be_had_is_not_suggested() -> None:
    """A pod that is pending, a service as client, a port that only one of the two has."""
    assert "pending" not in refused(resolve_to, "shop/pendin").remedy
    assert "svc" not in refused(resolve_from, "shop/payment").remedy
    assert refused(resolve_to, "shop/paymets:8080").remedy == "did you mean shop/svc/payments?"


SUGGESTED = re.compile(r"(?:did you mean|choose one:|name one of them:|name the pod that does:) ([^;?]*)")


def suggestions(error: K8snetError) -> list[str]:
    """What a remedy offers to be copied."""
    found = SUGGESTED.search(error.remedy)
    if found is None or found[1].startswith("namespace"):
        return []
    words = re.sub(r" and \d+ more$", "", found[1])
    return [re.sub(r" \(.*\)$", "", one) for one in words.split(", ")]


NAMES = {thing.name for thing in things(LARGE, pods_by_workload(LARGE))}
SLIPS = st.sampled_from(sorted({*NAMES, "web", "twin", "crat"}))
KIND = st.sampled_from(["", "po/", "svc/", "deploy/", "sts/", "ep/", "ing/", "no/", "cj/"])
SPACE = st.sampled_from(["", "shop/", "shopp/", "blue/"])


@BOTH
@FILES
@given(SPACE, KIND, SLIPS, st.integers(0, 30), st.sampled_from(["", ":80", ":http", ":53/udp", ":8080"]))
def test_what_is_suggested_can_be_copied(
    resolve: Resolve, known: Inventory, space: str, kind: str, name: str, cut: int, port: str
) -> None:
    text = f"{space}{kind}{name[:cut] + name[cut + 1 :] or name}{port}"
    try:
        resolve(text, known)
    except K8snetError as error:
        for suggestion in suggestions(error):
            target = resolve(suggestion, known)
            assert target.addresses, f"{text} -> {suggestion}"
            asked = parse(suggestion)
            assert asked.kind
            assert asked.name in {*target.text.split("/"), *(target.workload or "").split("/")} or asked.kind == "ing"


PAGE = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
FORMS = re.findall(r"^\| (`[^|]*)\|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("form", [form for cell in FORMS for form in re.findall(r"`([^`]+)`", cell)])
def test_every_form_in_the_documentation_is_a_name(form: str) -> None:
    name = parse(f"{form}x" if form.endswith("/") else form)
    assert name.kind or name.namespace or "." in name.name or name.name == "external"


def test_the_page_has_the_command_that_messages_have() -> None:
    assert f"$ {KUBECTL} > inventory.json\n" in PAGE


def test_the_pages_example_of_a_slip_is_what_is_said() -> None:
    cart = owned(f"shop/{CART_A}", "10.1.0.1", ("ReplicaSet", "cart-7d4f9c55b8"), pod_template_hash="7d4f9c55b8")
    error = refused(resolve_from, "shop/crat", known=inventory_of([cart], "f"))
    assert f"k8snet: {error.problem}\n  {error.remedy}\n" in PAGE
