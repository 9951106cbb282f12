"""Names: what users write, what it means in a small cluster, and what they are told when it means nothing."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Pod, Protocol, Service, ServicePort
from k8snet.cluster.names import Name, parse, resolve_from, resolve_to
from k8snet.cluster.targets import Target
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
        said = (target.text, str(target.addresses[0]))
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
        pytest.param("shopp/cart", None, "did you mean namespace shop?", id="namespace"),
        pytest.param("no/node1", None, "did you mean no/node-1, no/node-2?", id="node-slip"),
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


def test_headless_service_lists_its_pods() -> None:
    error = refused(resolve_to, "svc/db")
    assert "shop/db is headless" in error.problem
    assert error.remedy == "name one of them: shop/po/db-0:5432"


def test_service_that_is_only_a_name() -> None:
    assert "ExternalName" in refused(resolve_to, "svc/elsewhere").problem


@pytest.mark.parametrize("text", ["svc/payments", "payments", "payments.shop.svc", "10.96.0.80"])
def test_a_service_is_no_client(text: str) -> None:
    error = refused(resolve_from, text)
    assert "a service opens no connections" in error.problem
    assert error.remedy == "name the pod that does: shop/po/pay-5c9b-x2x8k"


@BOTH
def test_pods_that_have_no_address_of_their_own(resolve: Resolve) -> None:
    error = refused(resolve, "kube-system/kube-proxy:10256")
    assert "uses its node's network" in error.problem
    assert error.remedy == "name the node: no/node-1:10256"
    assert refused(resolve, "shop/pending").problem == "pod shop/pending has no IP address (phase Pending)"
    assert "has finished (Succeeded)" in refused(resolve, "shop/job-1").problem
    assert "node-2 has no IP address" in refused(resolve, "no/node-2").problem


@BOTH
@pytest.mark.parametrize("kind", ["deploy", "sts", "ds", "rs", "job", "cj", "ep", "ing"])
def test_kinds_to_come(resolve: Resolve, kind: str) -> None:
    error = refused(resolve, f"shop/{kind}/cart")
    assert "not looked up yet" in error.problem
    assert error.remedy == "name the pod: shop/po/cart-7d4f-abcde"
    assert "'external' is not looked up yet" in refused(resolve, "external").problem
