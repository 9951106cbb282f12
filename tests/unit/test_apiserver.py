"""The API server of the tests, asked by the real client: what it answers is what a real one answered.

Every test here is about the server, so that those who use it need not doubt it.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kubernetes.client.exceptions import ApiException
from kubernetes.config import incluster_config
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError

from apiobjects import RECORDED, changed, endpointslice, node, pod, recorded, service
from apiserver import ApiServer, asks
from apistore import Object

# The package is typed in part, and differently from version to version.
kube: Any = kubernetes
in_cluster: Any = incluster_config.InClusterConfigLoader
pytestmark = pytest.mark.timeout(20)
CART, WEB = pod("shop/cart", "10.1.0.1", labels={"app": "cart"}), pod("shop/web", "10.1.0.2", node="node-2")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def core(server: ApiServer, tmp_path: Path) -> Any:
    """The real client, for someone who may do everything."""
    return connect(server.kubeconfig(tmp_path / "admin"))


def connect(path: Path, retries: Retry | None = None) -> Any:
    """By default it tries once: what the server says is what is seen."""
    configuration = kube.client.Configuration()
    configuration.retries = Retry(0) if retries is None else retries
    kube.config.load_kube_config(str(path), client_configuration=configuration)
    return kube.client.CoreV1Api(kube.client.ApiClient(configuration))


def as_user(server: ApiServer, directory: Path, credentials: Object) -> Any:
    return connect(server.kubeconfig(directory / "user", credentials))


def raw(response: Any) -> Object:
    value: Object = json.loads(response.data)
    return value


def names(listed: Object) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


def pods(core: Any, **options: Any) -> Object:
    return raw(core.list_pod_for_all_namespaces(**options, _preload_content=False))


def follow(core: Any, **options: Any) -> Iterator[Object]:
    """Opens a watch of all pods; gives its events, as JSON."""
    response = core.list_pod_for_all_namespaces(watch=True, **options, _preload_content=False)

    def events() -> Iterator[Object]:
        rest = b""
        try:
            for chunk in response.stream(None, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            response.close()
        assert rest == b""

    return events()


def watched(server: ApiServer, core: Any, **options: Any) -> list[Object]:
    """The events of a watch that is closed at once."""
    events = follow(core, **options)
    server.wait_watching("pods", 1)
    server.end_watches("close")
    return list(events)


def brief(event: Object) -> tuple[str, str]:
    return event["type"], event["object"]["metadata"]["name"]


def refused(error: pytest.ExceptionInfo[ApiException]) -> Object:
    """The Status that came."""
    body: Any = error.value.body
    status: Object = json.loads(body)
    return status


def without_version(value: Object) -> Object:
    return changed(value, resourceVersion="")


# Answers as a real server gave them.


def test_recorded_objects_come_back_as_they_were(server: ApiServer, core: Any) -> None:
    server.put(*recorded())
    for plural, listed in (
        ("pods", core.list_pod_for_all_namespaces(_preload_content=False)),
        ("services", core.list_service_for_all_namespaces(_preload_content=False)),
        ("nodes", core.list_node(_preload_content=False)),
    ):
        answer, expected = raw(listed), json.loads((RECORDED / f"{plural}.json").read_text())
        assert [answer["kind"], answer["apiVersion"]] == [expected["kind"], expected["apiVersion"]]
        assert list(map(without_version, answer["items"])) == list(map(without_version, expected["items"]))


def test_refusals_are_the_recorded_ones(server: ApiServer, tmp_path: Path, core: Any) -> None:
    anonymous = as_user(server, tmp_path, {})
    with pytest.raises(ApiException) as caught:
        anonymous.list_pod_for_all_namespaces()
    assert refused(caught) == json.loads((RECORDED / "anonymous.json").read_text())
    bob = as_user(server, tmp_path, {"token": server.token("bob")})
    with pytest.raises(ApiException) as caught:
        bob.list_namespaced_pod("shop")
    assert refused(caught) == json.loads((RECORDED / "403.json").read_text())
    assert caught.value.status == 403
    with pytest.raises(ApiException) as caught:
        core.read_namespaced_pod("nope", "default")
    assert refused(caught) == json.loads((RECORDED / "404.json").read_text())
    assert caught.value.status == 404


def test_the_events_of_a_watch_are_the_recorded_ones(server: ApiServer, core: Any) -> None:
    lines = (RECORDED / "watch-old-resource-version.jsonl").read_text().splitlines()
    expected = list(map(json.loads, lines))
    start = pods(core)["metadata"]["resourceVersion"]
    for event in expected:
        server.put(event["object"])
    seen = watched(server, core, resource_version=start)
    assert [event["type"] for event in seen] == [event["type"] for event in expected]
    assert [without_version(event["object"]) for event in seen] == [without_version(it["object"]) for it in expected]


def test_initial_events_are_refused_as_recorded(core: Any) -> None:
    options = {"send_initial_events": True, "resource_version_match": "NotOlderThan", "allow_watch_bookmarks": True}
    assert list(follow(core, **options)) == [json.loads((RECORDED / "watch-services-initial-events.jsonl").read_text())]


def test_the_version_and_the_resources_can_be_discovered(core: Any) -> None:
    version = kube.client.VersionApi(core.api_client).get_code()
    assert version.minor == json.loads((RECORDED / "version.json").read_text())["minor"]
    assert {"pods", "services", "nodes"} <= {found.name for found in core.get_api_resources().resources}
    discovery = kube.client.DiscoveryV1Api(core.api_client).get_api_resources().resources
    assert [(found.name, found.kind, found.namespaced) for found in discovery] == [
        ("endpointslices", "EndpointSlice", True)
    ]
    groups = {group.name for group in kube.client.ApisApi(core.api_client).get_api_versions().groups}
    assert {"apps", "batch", "discovery.k8s.io", "networking.k8s.io"} <= groups


# Lists.


def test_an_object_alone_says_what_it_is_and_one_in_a_list_does_not(server: ApiServer, core: Any) -> None:
    server.put(CART)
    alone = raw(core.read_namespaced_pod("cart", "shop", _preload_content=False))
    (listed,) = pods(core)["items"]
    assert (alone.pop("kind"), alone.pop("apiVersion")) == ("Pod", "v1")
    assert alone == listed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"label_selector": "app=cart"}, ["cart"], id="label"),
        pytest.param({"label_selector": "app!=cart"}, ["db", "none", "web"], id="not-label"),
        pytest.param({"label_selector": "app in (cart, web),tier"}, ["web"], id="set-and-key"),
        pytest.param({"label_selector": "app notin (cart,web)"}, ["db", "none"], id="notin"),
        pytest.param({"label_selector": "!app"}, ["none"], id="no-key"),
        pytest.param({"field_selector": "spec.nodeName=node-1"}, ["cart", "none"], id="node"),
        pytest.param({"field_selector": "spec.nodeName=node-1,metadata.name!=cart"}, ["none"], id="two-fields"),
        pytest.param({"field_selector": "status.podIP==10.1.0.2"}, ["web"], id="address"),
        pytest.param({"field_selector": "spec.hostNetwork=true"}, ["db"], id="bool"),
        pytest.param({"field_selector": "spec.nodeName="}, [], id="empty"),
    ],
)
def test_selectors(server: ApiServer, core: Any, options: dict[str, str], expected: list[str]) -> None:
    web = pod("shop/web", "10.1.0.2", node="node-2", labels={"app": "web", "tier": "front"})
    server.put(CART, web, pod("shop/none", "10.1.0.3"))
    server.put(pod("data/db", "10.1.0.4", node="node-2", labels={"app": "db"}, host_network=True))
    assert sorted(names(pods(core, **options))) == expected
    within = raw(core.list_namespaced_pod("data", **options, _preload_content=False))
    assert names(within) == [name for name in expected if name == "db"]


def test_a_field_that_cannot_be_selected_by_is_refused(core: Any) -> None:
    with pytest.raises(ApiException, match=r"field label not supported: spec\.image") as caught:
        pods(core, field_selector="spec.image=x")
    assert caught.value.status == 400


def test_pages_are_of_one_moment(server: ApiServer, core: Any) -> None:
    server.put(*(pod(f"shop/p-{number}", "10.1.0.1") for number in range(5)))
    first = pods(core, limit=2)
    assert names(first) == ["p-0", "p-1"]
    assert first["metadata"]["remainingItemCount"] == 3
    server.delete("pods", "shop", "p-2")
    server.put(pod("shop/p-3", "10.1.0.99"), pod("shop/p-9", "10.1.0.9"))
    rest = pods(core, limit=9, _continue=first["metadata"]["continue"])
    assert names(rest) == ["p-2", "p-3", "p-4"]
    assert rest["items"][1]["status"]["podIP"] == "10.1.0.1"
    assert rest["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}
    with pytest.raises(ApiException, match="not allowed when using continue"):
        pods(core, _continue=first["metadata"]["continue"], resource_version=first["metadata"]["resourceVersion"])
    server.store.ignores_limit = True
    assert len(names(pods(core, limit=2, resource_version="0"))) == 5
    assert len(names(pods(core, limit=2))) == 2


def test_a_page_after_compaction_is_gone_and_can_be_had_from_today(server: ApiServer, core: Any) -> None:
    server.put(*(pod(f"shop/p-{number}", "10.1.0.1") for number in range(3)))
    token = pods(core, limit=1)["metadata"]["continue"]
    server.delete("pods", "shop", "p-1")
    server.compact()
    with pytest.raises(ApiException) as caught:
        pods(core, limit=1, _continue=token)
    assert (caught.value.status, refused(caught)["reason"]) == (410, "Expired")
    assert names(pods(core, _continue=refused(caught)["metadata"]["continue"])) == ["p-2"]


def test_resource_versions_of_lists(server: ApiServer, core: Any) -> None:
    server.put(CART)
    then = pods(core)["metadata"]["resourceVersion"]
    server.put(WEB)
    assert names(pods(core, resource_version="0")) == ["cart", "web"]
    assert names(pods(core, resource_version=then)) == ["cart", "web"]
    exact = pods(core, resource_version=then, resource_version_match="Exact")
    assert (names(exact), exact["metadata"]["resourceVersion"]) == (["cart"], then)
    with pytest.raises(ApiException, match="Too large resource version") as caught:
        pods(core, resource_version="99999")
    assert caught.value.status == 504
    server.compact()
    with pytest.raises(ApiException, match="Expired") as caught:
        pods(core, resource_version=then, resource_version_match="Exact")
    assert caught.value.status == 410


def test_ten_thousand_pods_and_five_thousand_services(server: ApiServer, core: Any) -> None:
    server.put(*(pod(f"big/p-{number}", f"10.1.{number // 250}.{number % 250}") for number in range(10_000)))
    server.put(*(service(f"big/s-{number}", f"10.96.{number // 250}.{number % 250}") for number in range(5_000)))
    listed = core.list_pod_for_all_namespaces(_preload_content=False).data
    listed += core.list_service_for_all_namespaces(_preload_content=False).data
    assert listed.count(b'"resourceVersion"') == 15_000 + 2


# Watches.


def test_a_watch_tells_what_happens_after_its_version(server: ApiServer, core: Any) -> None:
    server.put(CART)
    start = pods(core)["metadata"]["resourceVersion"]
    events = follow(core, resource_version=start, timeout_seconds=9)
    server.put(WEB)
    assert brief(next(events)) == ("ADDED", "web")
    server.put(service("shop/web", "10.96.0.1"), changed(CART, labels={"app": "new"}))
    assert brief(next(events)) == ("MODIFIED", "cart")
    server.delete("pods", "shop", "cart")
    gone = next(events)
    assert brief(gone) == ("DELETED", "cart")
    assert gone["object"]["metadata"]["resourceVersion"] == pods(core)["metadata"]["resourceVersion"]
    server.end_watches("close")
    assert list(events) == []


def test_the_clients_own_watch_reads_it(server: ApiServer, core: Any) -> None:
    server.put(CART, WEB)
    watcher = kube.watch.Watch()
    seen = []
    for event in watcher.stream(core.list_namespaced_pod, "shop"):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 2:
            watcher.stop()
    assert seen == [("ADDED", "cart"), ("ADDED", "web")]
    server.wait_watching("pods", 0)


def test_an_object_that_stops_matching_is_deleted_for_who_selects(server: ApiServer, core: Any) -> None:
    start = pods(core)["metadata"]["resourceVersion"]
    server.put(pod("shop/cart", node=None))
    server.put(CART)
    server.put(pod("shop/cart", "10.1.0.7"))
    server.put(pod("shop/cart", "10.1.0.7", node="node-2"))
    server.delete("pods", "shop", "cart")
    seen = watched(server, core, resource_version=start, field_selector="spec.nodeName=node-1")
    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event["object"]["spec"]["nodeName"] for event in seen] == ["node-1"] * 3
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(set(versions))


def test_bookmarks_come_when_they_were_asked_for(server: ApiServer, core: Any) -> None:
    asked = follow(core, resource_version="200", allow_watch_bookmarks=True, timeout_seconds=1)
    silent = follow(core, resource_version="200")
    server.wait_watching("pods", 2)
    server.put(node("node-1", "192.0.2.1"))
    server.bookmark()
    bookmark = next(asked)
    metadata = {"resourceVersion": str(server.store.version)}
    assert bookmark == {"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}}
    # The last one comes with the timeout.
    assert list(asked) == [bookmark]
    server.end_watches("close")
    assert list(silent) == []


def test_a_version_that_was_compacted_is_gone(server: ApiServer, core: Any) -> None:
    start = pods(core)["metadata"]["resourceVersion"]
    server.put(CART)
    server.compact()
    (event,) = follow(core, resource_version=start)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    server.gone_as_status = True
    with pytest.raises(ApiException, match="too old resource version") as caught:
        list(follow(core, resource_version=start))
    assert caught.value.status == 410
    now = pods(core)["metadata"]["resourceVersion"]
    assert watched(server, core, resource_version=now) == []
    with pytest.raises(ApiException, match="too old resource version"):
        follow(core, resource_version="1")


def test_a_running_watch_can_expire(server: ApiServer, core: Any) -> None:
    server.put(CART)
    events = follow(core)
    assert brief(next(events)) == ("ADDED", "cart")
    server.compact()
    server.put(WEB)
    assert brief(next(events)) == ("ADDED", "web")
    server.end_watches("gone")
    (event,) = events
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_a_mute_watch_stays_open_and_says_nothing(server: ApiServer, core: Any) -> None:
    events = follow(core, _request_timeout=(1, 0.3))
    server.wait_watching("pods", 1)
    server.end_watches("mute")
    server.put(CART)
    with pytest.raises(HTTPError, match="timed out"):
        next(events)
    assert len(server.watching("pods")) == 1


def test_who_leaves_is_noticed(server: ApiServer, core: Any) -> None:
    response = core.list_pod_for_all_namespaces(watch=True, _preload_content=False)
    server.wait_watching("pods", 1)
    assert server.watching("services") == []
    response.close()
    server.wait_watching("pods", 0)


# Who asks.


def test_a_revoked_token_is_unauthorized(server: ApiServer, tmp_path: Path) -> None:
    token = server.token("bob", "dev")
    server.allow("dev", "list", "pods")
    bob = as_user(server, tmp_path, {"token": token})
    assert names(pods(bob)) == []
    server.revoke(token)
    with pytest.raises(ApiException) as caught:
        pods(bob)
    assert (caught.value.status, refused(caught)["message"]) == (401, "Unauthorized")
    assert [(request.user, request.groups) for request in server.requests] == [
        ("bob", ("dev", "system:authenticated")),
        ("", ()),
    ]


def test_a_client_certificate_names_user_and_groups(server: ApiServer, tmp_path: Path) -> None:
    own = server.client_certificate("carol", "dev", "ops")
    server.allow("ops", "get list", "pods", namespace="shop")
    files = {"client-certificate": str(own.certificate), "client-key": str(own.key)}
    carol = as_user(server, tmp_path, files)
    assert carol.list_namespaced_pod("shop").items == []
    with pytest.raises(ApiException) as caught:
        pods(carol)
    assert refused(caught)["message"].startswith('pods is forbidden: User "carol" cannot list resource "pods"')
    assert {(request.user, request.groups) for request in server.requests} == {
        ("carol", ("dev", "ops", "system:authenticated"))
    }


def test_impersonation_is_judged_and_recorded(server: ApiServer, tmp_path: Path) -> None:
    alice = as_user(server, tmp_path, {"token": server.token("alice")})
    server.allow("bob", "list", "pods")
    alice.api_client.set_default_header("Impersonate-User", "bob")
    with pytest.raises(ApiException) as caught:
        pods(alice)
    assert refused(caught)["message"] == (
        'users "bob" is forbidden: User "alice" cannot impersonate resource "users" in API group ""'
        " at the cluster scope"
    )
    server.allow("alice", "impersonate", "users")
    assert names(pods(alice)) == []
    last = server.requests[-1]
    assert (last.user, last.impersonated_by) == ("bob", "alice")


def test_a_rule_is_for_its_namespace_and_its_resource(server: ApiServer, tmp_path: Path) -> None:
    server.allow("bob", "get list watch", "pods namespaces", namespace="shop")
    server.put(CART)
    bob = as_user(server, tmp_path, {"token": server.token("bob")})
    assert bob.read_namespaced_pod("cart", "shop").status.pod_ip == "10.1.0.1"
    assert bob.read_namespace("shop").metadata.name == "shop"
    for refused_call in (bob.list_pod_for_all_namespaces, bob.list_namespace):
        with pytest.raises(ApiException, match="at the cluster scope"):
            refused_call()
    with pytest.raises(ApiException) as caught:
        kube.client.AppsV1Api(bob.api_client).read_namespaced_deployment("cart", "shop")
    assert refused(caught)["message"] == (
        'deployments.apps "cart" is forbidden: User "bob" cannot get resource "deployments" in API group "apps"'
        ' in the namespace "shop"'
    )
    assert refused(caught)["details"] == {"name": "cart", "group": "apps", "kind": "deployments"}


def test_a_service_account_finds_the_server(server: ApiServer, tmp_path: Path) -> None:
    environment = server.service_account(tmp_path, "k8snet", "agent")
    server.allow("system:serviceaccounts:k8snet", "list", "pods")
    configuration = kube.client.Configuration()
    loader = in_cluster(str(tmp_path / "token"), str(tmp_path / "ca.crt"), environ=environment)
    loader.load_and_set(configuration)
    assert names(pods(kube.client.CoreV1Api(kube.client.ApiClient(configuration)))) == []
    assert server.requests[-1].user == "system:serviceaccount:k8snet:agent"


# What goes wrong.


def test_a_fault_hits_so_many_requests_and_says_when_to_come_back(server: ApiServer, core: Any) -> None:
    server.fault(asks("list", "pods"), times=2, status=429, retry_after=3)
    assert core.list_node().items == []
    for _ in range(2):
        with pytest.raises(ApiException) as caught:
            pods(core)
        assert (caught.value.status, (caught.value.headers or {})["Retry-After"]) == (429, "3")
        assert refused(caught)["details"] == {"retryAfterSeconds": 3}
    assert names(pods(core)) == []
    assert [request.resource for request in server.requests] == ["nodes", "pods", "pods", "pods"]


def test_a_client_that_tries_again_gets_through(server: ApiServer, tmp_path: Path) -> None:
    patient = connect(server.kubeconfig(tmp_path / "config"), Retry(3, status_forcelist=[503]))
    server.fault(times=1, status=503)
    server.fault(times=1, hang_up=True)
    assert names(pods(patient)) == []
    assert len(server.requests) == 3


def test_a_slow_answer_comes_in_the_end(server: ApiServer, core: Any) -> None:
    fault = server.fault(times=math.inf, delay=0.2)
    start = time.monotonic()
    with pytest.raises(HTTPError):
        pods(core, _request_timeout=(1, 0.1))
    assert names(pods(core)) == []
    assert time.monotonic() - start >= 0.3
    fault.times = 0
    assert names(pods(core)) == []


def test_no_answer(server: ApiServer, core: Any) -> None:
    server.fault(hang_up=True)
    with pytest.raises(MaxRetryError):
        pods(core)
    assert names(pods(core)) == []


def test_a_watch_is_cut_in_the_middle_of_a_line(server: ApiServer, core: Any) -> None:
    server.put(CART, WEB)
    server.fault(asks("watch"), cut_after=1)
    events = follow(core)
    assert brief(next(events)) == ("ADDED", "cart")
    with pytest.raises(HTTPError):
        next(events)
    torn = core.list_pod_for_all_namespaces(
        watch=True, resource_version=str(server.store.version), _preload_content=False
    )
    server.wait_watching("pods", 1)
    server.end_watches("cut")
    chunks = torn.stream(None, decode_content=False)
    half = next(chunks)
    assert half.startswith(b'{"type":"BOOKMARK"')
    assert not half.endswith(b"\n")
    with pytest.raises(HTTPError):
        next(chunks)
    server.fault(asks("list"), cut_after=0)
    with pytest.raises(HTTPError):
        pods(core)


def test_all_connections_can_be_cut(server: ApiServer, core: Any) -> None:
    events = follow(core)
    server.wait_watching("pods", 1)
    server.disconnect()
    with pytest.raises(HTTPError):
        list(events)
    server.wait_watching("pods", 0)
    assert names(pods(core)) == []


def test_nobody_listens(server: ApiServer, core: Any) -> None:
    events = follow(core)
    with server.refusing():
        with pytest.raises(HTTPError):
            list(events)
        with pytest.raises(MaxRetryError, match="refused"):
            pods(core)
    assert names(pods(core)) == []


def test_another_authority_is_not_trusted(server: ApiServer, core: Any) -> None:
    assert names(pods(core)) == []
    with server.foreign_certificate(), pytest.raises(MaxRetryError, match="CERTIFICATE_VERIFY_FAILED"):
        pods(core)
    assert names(pods(core)) == []


def test_the_certificates_stand_the_strictest_reading(server: ApiServer) -> None:
    context = ssl.create_default_context(cafile=str(server.authority.own.certificate))
    # What Python does by itself from 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    plain = socket.create_connection(("127.0.0.1", server.port))
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
        assert secured.version() == "TLSv1.3"


# Writes.


def test_a_pod_is_made_runs_and_goes(server: ApiServer, core: Any) -> None:
    spec = {"containers": [{"name": "agent", "image": "k8snet"}], "nodeName": "node-1"}
    wanted = {"metadata": {"generateName": "k8snet-"}, "spec": spec, "apiVersion": "v1", "kind": "Pod"}
    with pytest.raises(ApiException, match=r"namespaces .*k8snet.* not found"):
        core.create_namespaced_pod("k8snet", wanted)
    core.create_namespace({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "k8snet"}})
    made = core.create_namespaced_pod("k8snet", wanted)
    name = made.metadata.name
    assert (made.status.phase, name.startswith("k8snet-")) == ("Pending", True)
    assert json.loads(server.requests[-1].body)["spec"] == spec
    with pytest.raises(ApiException) as caught:
        core.create_namespaced_pod("k8snet", wanted | {"metadata": {"name": name}})
    assert (caught.value.status, refused(caught)["reason"]) == (409, "AlreadyExists")
    server.put(server.get("pods", "k8snet", name) | {"status": {"phase": "Running", "podIP": "192.0.2.1"}})
    assert core.read_namespaced_pod(name, "k8snet").status.phase == "Running"
    going = core.delete_namespaced_pod(name, "k8snet", grace_period_seconds=5)
    assert going.metadata.deletion_grace_period_seconds == 5
    assert core.read_namespaced_pod(name, "k8snet").metadata.deletion_timestamp is not None
    core.delete_namespaced_pod(name, "k8snet", grace_period_seconds=0)
    with pytest.raises(ApiException, match="not found"):
        core.read_namespaced_pod(name, "k8snet")


def test_patches(server: ApiServer, core: Any) -> None:
    server.put(CART)
    core.patch_namespaced_pod("cart", "shop", {"metadata": {"labels": {"app": None, "tier": "front"}}})
    assert server.get("pods", "shop", "cart")["metadata"]["labels"] == {"tier": "front"}
    core.patch_namespaced_pod("cart", "shop", [{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}])
    cart = server.get("pods", "shop", "cart")
    assert cart["metadata"]["labels"] == {"tier": "front", "a/b": "c"}
    containers = [{"name": "c", "image": "new"}, {"name": "d", "image": "d"}]
    core.patch_namespaced_pod("cart", "shop", {"spec": {"containers": containers}})
    merged = server.get("pods", "shop", "cart")["spec"]["containers"]
    assert [(item["name"], item["image"]) for item in merged] == [("c", "new"), ("d", "d")]
    assert merged[0]["terminationMessagePolicy"] == "File"
    core.patch_namespaced_pod_status("cart", "shop", {"status": {"phase": "Failed"}})
    assert server.get("pods", "shop", "cart")["status"]["phase"] == "Failed"
    with pytest.raises(ApiException) as caught:
        core.replace_namespaced_pod("cart", "shop", cart)
    assert (caught.value.status, refused(caught)["reason"]) == (409, "Conflict")
    with pytest.raises(ApiException) as caught:
        core.patch_namespaced_pod("cart", "shop", [{"op": "test", "path": "/status/phase", "value": "Running"}])
    assert caught.value.status == 422


def test_a_log_is_followed_to_its_end(server: ApiServer, core: Any) -> None:
    server.put(CART)
    with pytest.raises(ApiException, match="waiting to start"):
        core.read_namespaced_pod_log("cart", "shop")
    server.write_log("shop", "cart", b"one\ntw")
    followed = core.read_namespaced_pod_log("cart", "shop", follow=True, _preload_content=False)
    chunks = followed.stream(None, decode_content=False)
    assert next(chunks) + next(chunks) == b"one\ntw"
    server.write_log("shop", "cart", b"o\n", end=True)
    assert b"".join(chunks) == b"o\n"
    assert core.read_namespaced_pod_log("cart", "shop", _preload_content=False).data == b"one\ntwo\n"


# The server itself.


def unanswered(core: Any) -> None:
    with pytest.raises(HTTPError):
        pods(core)


def test_everything_ends_with_the_block(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with ApiServer() as server:
        core = connect(server.kubeconfig(tmp_path / "config"))
        silent = socket.create_connection(("127.0.0.1", server.port))
        server.fault(asks("list"), delay=60)
        events = follow(core, timeout_seconds=60)
        slow = threading.Thread(target=unanswered, args=(core,))
        slow.start()
        server.wait_for(asks("list"))
        start = time.monotonic()
    assert time.monotonic() - start < 20  # of the 60 that were asked for
    slow.join()
    assert set(threading.enumerate()) == before
    assert silent.recv(1) == b""
    silent.close()
    with pytest.raises(HTTPError):
        list(events)


def test_an_error_of_the_server_is_not_the_clients(tmp_path: Path) -> None:
    def broken(_: object) -> bool:
        raise ZeroDivisionError

    def ask() -> None:
        with ApiServer() as server:
            server.fault(broken)
            with pytest.raises(HTTPError):
                pods(connect(server.kubeconfig(tmp_path / "config")))

    with pytest.raises(ZeroDivisionError):
        ask()


def test_an_order_to_nobody_is_an_error_of_the_test(server: ApiServer) -> None:
    with pytest.raises(AssertionError, match="no watch of pods runs"):
        server.end_watches("close", "pods")


def test_waiting_in_vain_says_what_came(server: ApiServer, core: Any) -> None:
    pods(core)
    with pytest.raises(AssertionError, match="admin list /api/v1/pods"):
        server.wait_for(asks("list", "services"), timeout=0.05)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6(tmp_path: Path) -> None:
    with ApiServer("::1") as server:
        assert names(pods(connect(server.kubeconfig(tmp_path / "config")))) == []


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Callable[..., str]:
    """Runs the real kubectl in namespace shop; gives what it prints."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    path = server.kubeconfig(tmp_path / "kubectl", namespace="shop")
    always = ["kubectl", "--kubeconfig", str(path), "--cache-dir", str(tmp_path / "cache")]

    def run(*arguments: str, stdin: Sequence[Object] = ()) -> str:
        text = "\n".join(map(json.dumps, stdin))
        done = subprocess.run([*always, *arguments], input=text, capture_output=True, text=True, timeout=15)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_kubectl_gets(server: ApiServer, kubectl: Callable[..., str]) -> None:
    cart = pod("shop/cart", "10.1.0.1")
    server.put(cart, service("shop/cart", "10.96.0.1"), endpointslice("shop/cart-1", "cart", cart))
    listed = kubectl("get", "po,svc,endpointslices", "-o", "name").split()
    assert listed == ["pod/cart", "service/cart", "endpointslice.discovery.k8s.io/cart-1"]


def test_kubectl_applies_changes_and_deletes(server: ApiServer, kubectl: Callable[..., str]) -> None:
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "one"}]}}
    spec = {"selector": {"matchLabels": {"app": "a"}}, "template": template}
    wanted: list[Object] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "k8snet"}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a", "namespace": "k8snet"}, "spec": spec},
    ]
    assert kubectl("apply", "-f", "-", stdin=wanted).splitlines() == [
        "namespace/k8snet created",
        "daemonset.apps/a created",
    ]
    template["spec"] = {"containers": [{"name": "a", "image": "two"}]}
    assert "daemonset.apps/a configured" in kubectl("apply", "-f", "-", stdin=wanted)
    made = server.get("daemonsets", "k8snet", "a")["spec"]["template"]["spec"]
    assert made == {"containers": [{"name": "a", "image": "two"}]}
    kubectl("delete", "-f", "-", stdin=wanted)
    with pytest.raises(KeyError):
        server.get("namespaces", "", "k8snet")


def test_kubectl_runs_a_pod_reads_its_log_and_deletes_it(server: ApiServer, kubectl: Callable[..., str]) -> None:
    server.put(CART)
    kubectl("run", "agent", "--image=k8snet", "--restart=Never")
    server.write_log("shop", "agent", b"hello\n", end=True)
    assert kubectl("logs", "-f", "agent") == "hello\n"
    assert kubectl("delete", "pod", "agent") == 'pod "agent" deleted\n'
    assert [request.subresource for request in server.requests if request.subresource] == ["log"]
