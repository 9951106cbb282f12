"""Inventory files: what a real API server answered, joined; and every way in which a file can be no inventory."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from k8snet.cluster.file import inventory, load
from k8snet.cluster.inventory import Inventory, Owner, Route, Selector, Service, ServicePort
from k8snet.cluster.objects import KUBECTL, inventory_of, value_of
from k8snet.errors import Exit, K8snetError

RECORDED = Path(__file__).parents[1] / "data" / "kube-api"
LISTS = ("pods", "services", "endpointslices", "nodes")


def recorded() -> Inventory:
    return inventory((json.loads((RECORDED / f"{name}.json").read_text()) for name in LISTS), "recorded")


def service(known: Inventory, key: str) -> Service:
    return next(service for service in known.services if service.key == key)


def port(known: Inventory, key: str, name: str) -> ServicePort:
    return next(port for port in service(known, key).ports if port.name == name)


def pod(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "kind": "Pod",
        "metadata": {"name": "cart", "namespace": "shop", "uid": "u1"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.10", "podIPs": [{"ip": "10.244.1.10"}, {"ip": "fd00::a"}]},
    }
    return body | changes


def svc(*ports: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.80", "ports": list(ports or [{"port": 80}])} | spec,
    }


def endpoint_slice(*addresses: str, port: object = 8080, name: str = "", **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv6" if ":" in addresses[0] else "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [{"name": name, "port": port, "protocol": "TCP"}],
    }
    return body | changes


def problem(*documents: object) -> K8snetError:
    with pytest.raises(K8snetError) as caught:
        inventory(documents, "f.json")
    assert caught.value.code is Exit.USAGE
    assert "kubectl get pods,services,endpointslices,nodes," in caught.value.remedy
    return caught.value


def test_recorded_lists_are_joined() -> None:
    known = recorded()
    assert [pod.key for pod in known.pods] == ["default/cart", "default/web"]
    assert {node.name for node in known.nodes} == {"ho-node", "node-1"}
    web = port(known, "shop/web", "http")
    assert (web.protocol, web.port, web.target_port) == ("TCP", 80, "8080")
    assert [(str(e.ip), e.port, e.node) for e in web.ready] == [
        ("10.244.1.11", 8080, "node-1"),
        ("10.244.1.12", 8080, "node-1"),
        ("10.244.2.11", 8080, "node-2"),
    ]


def test_recorded_service_with_an_empty_slice_has_no_endpoints() -> None:
    assert port(recorded(), "shop/empty", "http").endpoints == ()


def test_recorded_headless_service_has_no_address() -> None:
    assert service(recorded(), "shop/headless").cluster_ips == ()


def test_recorded_terminating_endpoint_serves_and_is_not_ready() -> None:
    (end,) = port(recorded(), "shop/draining", "http").endpoints
    assert (end.ready, end.serving, end.terminating) == (False, True, True)


def test_recorded_ports_of_one_number_are_told_apart_by_name_and_protocol() -> None:
    known = recorded()
    assert port(known, "kube-system/kube-dns", "dns").protocol == "UDP"
    assert port(known, "kube-system/kube-dns", "dns-tcp").protocol == "TCP"
    assert len(port(known, "kube-system/kube-dns", "dns").endpoints) == 2


def test_recorded_node_port() -> None:
    assert port(recorded(), "shop/np", "http").node_port == 30080


def test_endpoint_without_target_is_tied_to_its_pod_by_address() -> None:
    (end,) = port(recorded(), "default/web", "http").endpoints
    assert end.pod == "default/web"


def test_slices_of_both_families_and_several_slices_add_up() -> None:
    known = inventory([svc(), endpoint_slice("10.1.1.1"), endpoint_slice("fd00::1"), endpoint_slice("10.1.1.1")], "f")
    assert [str(e.ip) for e in known.services[0].ports[0].endpoints] == ["10.1.1.1", "fd00::1"]


def test_named_target_port_may_be_another_number_in_each_slice() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}]
    known = inventory([svc(*ports), endpoint_slice("10.1.1.1", name="http"),
                       endpoint_slice("10.1.1.2", name="http", port=9090)], "f")  # fmt: skip
    assert [(str(e.ip), e.port) for e in known.services[0].ports[0].ready] == [("10.1.1.1", 8080), ("10.1.1.2", 9090)]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param({}, (True, True, False), id="none"),
        pytest.param({"ready": None, "serving": None, "terminating": None}, (True, True, False), id="null"),
        pytest.param({"ready": False}, (False, False, False), id="not-ready"),
        pytest.param({"ready": False, "serving": True, "terminating": True}, (False, True, True), id="terminating"),
    ],
)
def test_conditions(conditions: dict[str, bool | None], expected: tuple[bool, bool, bool]) -> None:
    ends = [{"addresses": ["10.1.1.1"], "conditions": conditions}]
    (end,) = inventory([svc(), endpoint_slice("10.1.1.1", endpoints=ends)], "f").services[0].ports[0].endpoints
    assert (end.ready, end.serving, end.terminating) == expected


def test_target_reference_names_the_pod() -> None:
    ends = [{"addresses": ["10.1.1.1"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"}}]
    (end,) = inventory([svc(), endpoint_slice("10.1.1.1", endpoints=ends)], "f").services[0].ports[0].endpoints
    assert end.pod == "shop/web-0"


def test_slices_without_service_of_names_or_for_every_port_are_left_out() -> None:
    loose = endpoint_slice("10.1.1.1", metadata={"name": "x", "namespace": "shop"})
    names = endpoint_slice("10.1.1.1", addressType="FQDN", endpoints=[{"addresses": ["example.com"]}])
    known = inventory([svc(), loose, names, endpoint_slice("10.1.1.1", port=None)], "f")
    assert known.services[0].ports[0].endpoints == ()


def test_pod_of_two_families_with_named_ports() -> None:
    containers = [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]}]
    known = inventory([pod(spec={"containers": containers, "hostNetwork": False})], "f").pods[0]
    assert known.ips == (ip_address("10.244.1.10"), ip_address("fd00::a"))
    assert known.named_ports == (("http", "TCP", 8080),)
    assert known.node is None


def test_static_pod_is_known_by_the_hash_that_its_node_uses() -> None:
    meta = {"name": "etcd", "namespace": "kube-system", "uid": "u", "annotations": {"kubernetes.io/config.hash": "ab"}}
    assert inventory([pod(metadata=meta)], "f").pods[0].uid == "ab"


def test_a_finished_pods_address_names_the_pod_that_has_it_now() -> None:
    done = pod(metadata={"name": "job-1", "namespace": "shop"}, status={"phase": "Succeeded", "podIP": "10.244.1.10"})
    for order in ([done, pod()], [pod(), done]):
        assert inventory(order, "f").pod_by_ip[ip_address("10.244.1.10")].name == "cart"


def test_only_addresses_of_a_node_that_are_addresses() -> None:
    addresses = [{"type": "InternalIP", "address": "192.168.50.1"}, {"type": "Hostname", "address": "node-1"}]
    node = {"kind": "Node", "metadata": {"name": "node-1"}, "status": {"addresses": addresses}}
    assert inventory([node], "f").nodes[0].ips == (ip_address("192.168.50.1"),)


def test_unknown_kinds_are_skipped() -> None:
    known = inventory([{"kind": "List", "items": [{"kind": "ConfigMap", "metadata": {"name": "x"}}, pod()]}], "f")
    assert [pod.key for pod in known.pods] == ["shop/cart"]


def test_empty_lists_are_an_empty_cluster() -> None:
    assert inventory([{"kind": "PodList", "items": []}], "f") == Inventory()


def made(*objects: dict[str, Any]) -> Inventory:
    return inventory_of(objects, "f")


def test_recorded_service_fields() -> None:
    known = recorded()
    assert service(known, "shop/sticky").affinity == 10800
    assert service(known, "shop/web").affinity is None
    assert (service(known, "shop/np-local").external_local, service(known, "shop/np").external_local) == (True, False)
    assert (service(known, "shop/int-local").internal_local, service(known, "shop/web").internal_local) == (True, False)
    assert service(known, "shop/ext").outer_ips == (ip_address("192.0.2.10"),)
    assert known.service_by_outer_ip == {ip_address("192.0.2.10"): (service(known, "shop/ext"),)}
    headless = service(known, "shop/headless")
    assert (headless.headless, headless.families) == (True, (4,))
    assert (service(known, "shop/web").headless, service(known, "shop/web").families) == (False, (4,))


def test_load_balancer_addresses_that_nodes_see() -> None:
    ingress = [{"ip": "203.0.113.7"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]
    found = made(svc(externalIPs=["203.0.113.7"]) | {"status": {"loadBalancer": {"ingress": ingress}}}).services[0]
    assert (found.outer_ips, found.load_balancer_names) == ((ip_address("203.0.113.7"),), ("lb.example.com",))


def test_whose_address_it_is_that_several_share() -> None:
    shared = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}
    sql = svc({"port": 5432}, clusterIP="10.96.0.81") | shared | {"metadata": {"name": "sql", "namespace": "shop"}}
    known = made(svc({"port": 80}) | shared, sql)
    web, sql_service = known.services
    assert known.service_at(ip_address("203.0.113.7"), 5432) is sql_service
    assert known.service_at(ip_address("203.0.113.7"), 80) is web
    assert known.service_at(ip_address("203.0.113.7"), 443) is None
    assert known.service_at(ip_address("10.96.0.81"), 443) is sql_service
    assert made(svc() | shared).service_at(ip_address("203.0.113.7"), 443) is not None


def test_a_service_that_is_only_a_name() -> None:
    spec = {"type": "ExternalName", "externalName": "db.example.com"}
    found = made({"kind": "Service", "metadata": {"name": "db", "namespace": "shop"}, "spec": spec}).services[0]
    assert (found.external_name, found.cluster_ips, found.headless) == ("db.example.com", (), False)


def test_a_pods_owner_is_its_controller_and_it_may_be_leaving() -> None:
    references = [{"kind": "Thing", "name": "x"}, {"kind": "ReplicaSet", "name": "cart-7d4f", "controller": True}]
    meta = {"name": "cart", "namespace": "shop", "ownerReferences": references, "deletionTimestamp": "2026-11-22"}
    found = made(pod(metadata=meta, status={"conditions": [{"type": "Ready", "status": "False"}]})).pods[0]
    assert (found.owner, found.ready, found.terminating) == (Owner("ReplicaSet", "cart-7d4f"), False, True)
    assert (made(pod()).pods[0].ready, made(pod()).pods[0].terminating) == (True, False)


@pytest.mark.parametrize(("status", "ready"), [("True", True), ("False", False), ("Unknown", False), (None, True)])
def test_a_nodes_ready_condition(status: str | None, ready: bool) -> None:
    conditions = [{"type": "Ready", "status": status}] if status else []
    node = {"kind": "Node", "metadata": {"name": "n"}, "status": {"conditions": conditions}}
    assert made(node).nodes[0].ready is ready


def test_pod_networks_of_nodes_are_inside() -> None:
    known = made({"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}})
    assert known.is_inside(ip_address("10.244.1.77"))
    assert known.is_inside(ip_address("fd00:1::77"))
    assert not known.is_inside(ip_address("10.244.2.1"))


def test_endpoints_have_zone_and_node() -> None:
    ends = [{"addresses": ["10.1.1.1"], "nodeName": "node-1", "zone": "a"}]
    (end,) = made(svc(), endpoint_slice("10.1.1.1", endpoints=ends)).services[0].ports[0].endpoints
    assert (end.node, end.zone) == ("node-1", "a")


def test_slices_are_kept_with_the_pods_of_their_addresses() -> None:
    known = made(pod(), endpoint_slice("10.244.1.10", name="http"))
    (part,) = known.slices
    assert (part.key, part.service, part.ports[0].name) == ("shop/web-1", "web", "http")
    assert part.ports[0].endpoints[0].pod == "shop/cart"


def selected(selector: dict[str, Any], **labels: str) -> bool:
    meta = {"name": "cart", "namespace": "shop", "labels": labels}
    policy = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"podSelector": selector},
    }
    known = made(pod(metadata=meta), policy)
    return bool(known.policies_of(known.pods[0]))


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        pytest.param({}, {}, True, id="empty-selects-all"),
        pytest.param({"matchLabels": {"app": "cart"}}, {"app": "cart", "tier": "x"}, True, id="label"),
        pytest.param({"matchLabels": {"app": "cart"}}, {"app": "web"}, False, id="other-label"),
        pytest.param({"matchLabels": {"app": "cart", "tier": "x"}}, {"app": "cart"}, False, id="one-of-two"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "In", "values": ["cart", "web"]}]},
                     {"app": "web"}, True, id="in"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["cart"]}]},
                     {}, True, id="not-in-without-label"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["cart"]}]},
                     {"app": "cart"}, False, id="not-in"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": ""}, True, id="exists"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {}, False, id="exists-not"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {}, True, id="does-not-exist"),
        pytest.param({"matchExpressions": [{"key": "app", "operator": "Gt", "values": ["1"]}]},
                     {"app": "2"}, False, id="unknown-operator"),
    ],
)  # fmt: skip
def test_which_pods_a_policy_selects(selector: dict[str, Any], labels: dict[str, str], expected: bool) -> None:
    assert selected(selector, **labels) is expected


def test_a_policy_selects_in_its_own_namespace_only() -> None:
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "blue"}, "spec": {"podSelector": {}}}
    known = made(pod(), policy)
    assert known.policies_of(known.pods[0]) == ()


@pytest.mark.parametrize(
    ("spec", "directions"),
    [
        pytest.param({}, (True, False), id="not-said"),
        pytest.param({"egress": [{}]}, (True, True), id="not-said-with-egress"),
        pytest.param({"policyTypes": ["Egress"]}, (False, True), id="egress"),
        pytest.param({"policyTypes": ["Ingress"], "egress": [{}]}, (True, False), id="ingress-said"),
    ],
)
def test_a_policys_directions(spec: dict[str, Any], directions: tuple[bool, bool]) -> None:
    policy = made({"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}).policies[0]
    assert (policy.ingress, policy.egress) == directions


def test_a_selector_as_the_api_takes_it() -> None:
    expressions = (
        ("env", "In", ("a", "b")),
        ("old", "DoesNotExist", ()),
        ("tier", "NotIn", ("x",)),
        ("team", "Exists", ()),
    )
    assert str(Selector((("app", "cart"),), expressions)) == "app=cart,env in (a,b),!old,tier notin (x),team"


def test_an_ingress_keeps_its_ways() -> None:
    def to(service: str, **port: object) -> dict[str, Any]:
        return {"service": {"name": service, "port": port}}

    rules = [{"host": "a.example.com", "http": {"paths": [{"path": "/x", "backend": to("web", number=80)},
                                                          {"path": "/y", "backend": {"resource": {}}}]}},
             {"host": "b.example.com"}]  # fmt: skip
    spec = {"rules": rules, "defaultBackend": to("cart", name="http")}
    (ingress,) = made({"kind": "Ingress", "metadata": {"name": "i", "namespace": "shop"}, "spec": spec}).ingresses
    assert ingress.routes == (Route("a.example.com", "/x", "web", "80"), Route("", "", "cart", "http"))


def test_odd_objects_from_a_server_are_skipped_one_by_one() -> None:
    known = made(
        {"kind": 3}, {}, pod(spec=[]), pod(status={"podIP": "x"}), {"kind": "Secret"}, svc({"name": "a"}), pod()
    )
    assert [pod.key for pod in known.pods] == ["shop/cart"]
    assert known.services == ()


def test_items_of_a_list_are_told_their_kind() -> None:
    body = pod()
    del body["kind"]
    assert value_of(body) is None
    assert value_of(body, "Pod") == made(pod()).pods[0]


def test_four_kinds_are_enough_and_more_is_asked_for() -> None:
    assert KUBECTL.startswith("kubectl get pods,services,endpointslices,nodes,deployments,")
    assert not recorded().workloads


# From here: the ways to be wrong.


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param([], ["list"], id="json-list"),
        pytest.param({"a": 1}, ["no kind"], id="no-kind"),
        pytest.param({"kind": 3}, ["no kind"], id="kind-is-a-number"),
        pytest.param({"kind": "ConfigMap"}, ["ConfigMap", "no pod"], id="wrong-kind"),
        pytest.param({"kind": "List"}, ["List has no items"], id="list-without-items"),
        pytest.param({"kind": "List", "items": 3}, ["items is int"], id="items-is-a-number"),
        pytest.param({"kind": "List", "items": [3]}, ["items[0]"], id="item-is-a-number"),
        pytest.param({"kind": "List", "items": [{"metadata": {}}]}, ["items[0]", "no kind"], id="item-without-kind"),
        pytest.param(pod(metadata={"namespace": "shop"}), ["Pod shop", "metadata.name is missing"], id="pod-no-name"),
        pytest.param(pod(metadata={"name": "cart"}), ["Pod cart", "metadata.namespace is missing"], id="pod-no-ns"),
        pytest.param(pod(metadata=None), ["Pod (item 0)", "is missing"], id="pod-no-metadata"),
        pytest.param(pod(spec=None), ["Pod shop/cart", "spec is missing"], id="pod-no-spec"),
        pytest.param(pod(spec=[]), ["Pod shop/cart", "spec is list"], id="pod-spec-is-a-list"),
        pytest.param(pod(spec={"hostNetwork": "no"}), ["spec.hostNetwork is str, expected bool"], id="pod-bool"),
        pytest.param(pod(status={"podIP": "10.0.0"}), ["Pod shop/cart", "'10.0.0'", "IP address"], id="pod-bad-ip"),
        pytest.param(svc({"name": "a"}), ["Service shop/web", "spec.ports[0].port is missing"], id="port-missing"),
        pytest.param(svc({"port": 99999}), ["spec.ports[0].port is 99999"], id="port-too-large"),
        pytest.param(svc({"port": True}), ["spec.ports[0].port is bool"], id="port-is-a-bool"),
        pytest.param(svc({"port": 1, "protocol": "TPC"}), ["spec.ports[0].protocol is 'TPC'"], id="protocol"),
        pytest.param(endpoint_slice("10.1.1"), ["EndpointSlice shop/web-1", "addresses[0]"], id="endpoint-bad-ip"),
        pytest.param(
            endpoint_slice("10.1.1.1", endpoints=[{}]), ["endpoints[0].addresses is missing"], id="endpoint-no-ip"
        ),
    ],
)
def test_what_is_wrong_is_said_with_object_and_field(document: object, words: list[str]) -> None:
    error = problem(document)
    assert error.problem.startswith("inventory f.json: ")
    for word in words:
        assert word in error.problem


def test_an_error_of_the_api_is_passed_on() -> None:
    assert 'User "bob" cannot list resource "pods"' in problem(json.loads((RECORDED / "403.json").read_text())).problem


def test_another_answer_of_the_api_is_no_inventory() -> None:
    assert "not a Kubernetes object" in problem(json.loads((RECORDED / "version.json").read_text())).problem


def write(tmp_path: Path, raw: bytes) -> Path:
    path = tmp_path / "inventory.json"
    path.write_bytes(raw)
    return path


def test_documents_one_after_another(tmp_path: Path) -> None:
    raw = b"".join((RECORDED / f"{name}.json").read_bytes() for name in LISTS)
    assert load(write(tmp_path, raw)) == recorded()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_shells_write(tmp_path: Path, encoding: str) -> None:
    assert load(write(tmp_path, json.dumps(pod()).encode(encoding))).pods[0].key == "shop/cart"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(pod()).encode())))
    assert load("-").pods[0].key == "shop/cart"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b" \n ", "empty", id="blank"),
        pytest.param(b"apiVersion: v1\nkind: List\n", "not JSON at line 1, column 1", id="yaml"),
        pytest.param(b'{"kind": "List",\n "items": [}', "not JSON at line 2, column 12", id="broken"),
        pytest.param(json.dumps(pod()).encode() + b"\n{", "not JSON at line 2", id="broken-second-document"),
        pytest.param(b'{"kind": "\xff\xfe"}', "not text (byte 10)", id="binary"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(K8snetError) as caught:
        load(write(tmp_path, raw))
    assert words in caught.value.problem
    assert "kubectl get" in caught.value.remedy


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(K8snetError, match=r"no\.json: no such file") as caught:
        load(tmp_path / "no.json")
    assert f"-o json > {tmp_path / 'no.json'}" in caught.value.remedy


def test_a_directory_is_no_inventory(tmp_path: Path) -> None:
    with pytest.raises(K8snetError, match="directory"):
        load(tmp_path)


def paths(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every part of a decoded document."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*at, key))


def with_part(document: Any, path: tuple[str | int, ...], part: object) -> Any:
    if not path:
        return part
    changed = document.copy()
    changed[path[0]] = with_part(document[path[0]], path[1:], part)
    return changed


def complaint(document: Any) -> K8snetError | None:
    try:
        inventory([document], "f.json")
    except K8snetError as error:
        return error
    return None


@pytest.mark.parametrize("wrong", [None, True, -1, "", "x", [], [None], ["x"], {}, {"kind": 1}], ids=repr)
def test_nothing_but_a_clear_error_comes_of_any_part_being_wrong(wrong: object) -> None:
    document = {
        "kind": "List",
        "items": [
            pod(spec={"containers": [{"ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]}]}),
            svc({"name": "", "port": 80, "targetPort": 8080, "nodePort": 30080}, clusterIPs=["10.96.0.80"]),
            endpoint_slice(
                "10.1.1.1",
                endpoints=[{"addresses": ["10.1.1.1"], "conditions": {"ready": True}, "targetRef": {"kind": "Pod"}}],
            ),
            {"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.1.0.0/16"]},
             "status": {"addresses": [{"type": "InternalIP", "address": "10.9.9.2"}],
                        "conditions": [{"type": "Ready", "status": "True"}]}},
            {"kind": "ReplicaSet", "metadata": {"name": "r", "namespace": "shop", "ownerReferences": [
                {"kind": "Deployment", "name": "d", "controller": True}]},
             "spec": {"selector": {"matchLabels": {"a": "b"},
                                   "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}}},
            {"kind": "Ingress", "metadata": {"name": "i", "namespace": "shop"}, "spec": {"rules": [{"host": "h",
                "http": {"paths": [{"path": "/", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]},
             "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}},
            {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"},
             "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}},
        ],
    }  # fmt: skip
    inventory([document], "f.json")
    for path in paths(document["items"]):
        if path:
            inventory_of(with_part(document["items"], path, wrong), "a server")  # is never complained of
    refused = [error.problem for path in paths(document) if (error := complaint(with_part(document, path, wrong)))]
    assert refused
    assert all(problem.startswith("inventory f.json: ") for problem in refused)
