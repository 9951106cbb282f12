"""Names from a living API server: found, kept up to date, kept through everything that a server does to a client.

The server is real as far as a client can tell: HTTPS on a port of its own, in this process (tests/apiserver.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from apiobjects import changed, endpointslice, node, pod, service
from apiserver import ApiServer, asks
from k8snet.cluster import watch
from k8snet.cluster.api import Api, ApiError, DeniedError, Query
from k8snet.cluster.inventory import Inventory
from k8snet.cluster.kubeconfig import Options, access
from k8snet.cluster.names import parse
from k8snet.cluster.needs import Wish
from k8snet.cluster.watch import Cluster

HERE = frozenset({ip_address("192.168.50.1")})
WISH = Wish(parse("shop/cart"), parse("shop/svc/payments:http"), here=HERE)
CART = pod("shop/cart", "10.1.0.1", node="node-1")
PAY = pod("shop/pay-1", "10.1.0.2", node="node-2", labels={"app": "payments"})


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(
            node("node-1", "192.168.50.1"),
            node("node-2", "192.168.50.2"),
            CART,
            PAY,
            service("shop/payments", "10.96.0.80"),
            endpointslice("shop/payments-1", "payments", PAY),
        )
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits between tries, a tenth as long: their lengths have a test of their own."""
    monkeypatch.setattr(watch, "patience", lambda tries: 0.08 * min(2.0**tries, 8.0))


def api(server: ApiServer, tmp_path: Path, credentials: dict[str, object] | None = None, timeout: float = 5.0) -> Api:
    options = Options(kubeconfig=str(server.kubeconfig(tmp_path / "config", credentials)), request_timeout=timeout)
    found = access(options, {})
    assert found is not None
    return Api(options, found)


def cluster(server: ApiServer, tmp_path: Path, wish: Wish = WISH) -> AbstractContextManager[Cluster]:
    return Cluster(api(server, tmp_path), wish)


def loaded(names: Cluster, server: ApiServer) -> None:
    """All that WISH needs is known, and watched."""
    names.load()
    names.watch()
    server.wait_watching("*", 7)


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for it; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def pods(names: Cluster) -> set[str]:
    return {pod.key for pod in names.inventory.pods}


def knows(names: Cluster, address: str) -> str | None:
    """Whose address it is."""
    found = names.inventory.pod_by_ip.get(ip_address(address))
    return found.key if found else None


def failure(names: Cluster) -> str:
    assert names.failure is not None
    return names.failure.problem


# --- what is asked --------------------------------------------------------------------------------------------------


def test_a_trace_asks_for_what_it_needs_and_for_nothing_else(server: ApiServer, tmp_path: Path) -> None:
    server.put(*(pod(f"other/p{n}", f"10.9.0.{n}", node="node-2") for n in range(1, 30)))
    with cluster(server, tmp_path) as names:
        names.load()
    asked = {(r.verb, r.resource, r.namespace, r.query.get("fieldSelector"), r.query.get("labelSelector"))
             for r in server.requests if r.verb == "list"}  # fmt: skip
    assert asked == {
        ("list", "nodes", "", None, None),
        ("list", "pods", "", "spec.nodeName=node-1", None),
        ("list", "pods", "shop", "metadata.name=cart", None),
        ("list", "services", "shop", "metadata.name=cart", None),
        ("list", "services", "shop", "metadata.name=payments", None),
        ("list", "endpointslices", "shop", None, "kubernetes.io/service-name=payments"),
        ("list", "pods", "shop", None, "app=payments"),
        ("list", "networkpolicies", "shop", None, None),
    }
    assert {r.verb for r in server.requests} == {"list", "watch"}
    assert pods(names) == {"shop/cart", "shop/pay-1"}
    [payments] = names.inventory.services
    assert [end.pod for end in payments.ports[0].endpoints] == ["shop/pay-1"]


def test_long_lists_come_in_pages(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8snet.cluster.api.PAGE", 7)
    server.put(*(pod(f"other/p{n}", f"10.9.0.{n}", node="node-1") for n in range(1, 31)))
    answers = list(api(server, tmp_path).pages(Query("pods", fields="spec.nodeName=node-1"), newest=True))
    assert [len(page.items) for page in answers] == [7, 7, 7, 7, 3]
    assert len({item["metadata"]["name"] for page in answers for item in page.items}) == 31
    assert len({page.version for page in answers}) == 1


def test_a_page_that_has_expired_starts_the_list_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k8snet.cluster.api.PAGE", 2)
    server.put(*(node(f"more-{n}", f"192.168.51.{n}") for n in range(1, 6)))
    server.fault(lambda request: "continue" in request.query, status=410)
    with cluster(server, tmp_path) as names:
        names.load()
        assert len(names.inventory.nodes) == 7
        assert names.failure is None


# --- while a trace runs ---------------------------------------------------------------------------------------------


def test_pods_that_come_are_named(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        before = names.inventory
        server.put(pod("shop/new", "10.1.0.7", node="node-1"))
        until(lambda: knows(names, "10.1.0.7") == "shop/new")
        assert ip_address("10.1.0.7") not in before.pod_by_ip  # what somebody holds does not change under his hands


def test_a_pod_that_is_deleted_keeps_its_name_for_a_minute(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "KEPT", 1.0)
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        # As kubelet does it: the containers end, then the object goes.
        server.put(pod("shop/cart", "10.1.0.1", node="node-1", phase="Succeeded"))
        server.delete("pods", "shop", "cart")
        until(lambda: any(p.terminating for p in names.inventory.pods))
        assert knows(names, "10.1.0.1") == "shop/cart"
        until(lambda: knows(names, "10.1.0.1") is None, 3.0)


def test_an_address_that_another_pod_has_by_now_is_that_pods(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.delete("pods", "shop", "cart")
        until(lambda: any(p.terminating for p in names.inventory.pods))
        server.put(pod("shop/next", "10.1.0.1", node="node-1"))
        until(lambda: knows(names, "10.1.0.1") == "shop/next")
        assert "shop/cart" not in pods(names)


def test_a_pod_of_the_same_name_is_the_new_one(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.delete("pods", "shop", "cart")
        server.put(pod("shop/cart", "10.1.0.9", node="node-1"))
        until(lambda: knows(names, "10.1.0.9") == "shop/cart")
        assert knows(names, "10.1.0.1") == "shop/cart"  # its last packets
        assert names.inventory.pod_by_key["shop/cart"].ips == (ip_address("10.1.0.9"),)


def test_endpoints_follow_their_service(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        second = pod("shop/pay-2", "10.1.0.3", node="node-2", labels={"app": "payments"})
        server.put(second, endpointslice("shop/payments-1", "payments", PAY, second))
        until(lambda: knows(names, "10.1.0.3") == "shop/pay-2")
        until(lambda: len(names.inventory.services[0].ports[0].endpoints) == 2)


def test_a_selector_that_changes_leads_to_other_pods(server: ApiServer, tmp_path: Path) -> None:
    other = pod("shop/v2", "10.1.0.4", node="node-2", labels={"app": "v2"})
    server.put(other)
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        assert knows(names, "10.1.0.4") is None
        server.put(service("shop/payments", "10.96.0.80", selector={"app": "v2"}))
        until(lambda: knows(names, "10.1.0.4") == "shop/v2")


def test_an_unknown_address_gets_a_name(server: ApiServer, tmp_path: Path) -> None:
    server.put(pod("far/away", "10.1.9.9", node="node-7"))
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        assert knows(names, "10.1.9.9") is None
        names.want([ip_address("10.1.9.9"), ip_address("203.0.113.7")])
        names.settle(5.0)
        assert knows(names, "10.1.9.9") == "far/away"
        assert knows(names, "203.0.113.7") is None


def test_not_every_address_on_earth_is_asked_for(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        for n in range(200):
            names.want([ip_address(f"203.0.113.{n}")])
        names.settle(5.0)
    assert len([r for r in server.requests if "status.podIP" in r.query.get("fieldSelector", "")]) == 32


def test_what_does_not_matter_makes_no_new_inventory(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        time.sleep(0.3)
        before = names.inventory
        server.put(changed(node("node-1", "192.168.50.1"), annotations={"heartbeat": "1"}))
        server.bookmark()
        time.sleep(0.3)
        assert names.inventory is before


def test_reading_the_names_waits_for_nothing(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.fault(asks(), math.inf, delay=3.0)
        names.want([ip_address("10.1.9.9")])
        began = time.monotonic()
        for _ in range(1000):
            assert names.inventory.pods
        assert time.monotonic() - began < 2.0


def test_nothing_is_left_running(server: ApiServer, tmp_path: Path) -> None:
    before = threading.active_count()
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        began = time.monotonic()
    assert time.monotonic() - began < 5.0  # and not the minutes that a watch lasts
    until(lambda: not server.watching())
    until(lambda: threading.active_count() <= before + 1)  # the server's own


# --- what a server does to its clients ------------------------------------------------------------------------------


def arrives(server: ApiServer, names: Cluster) -> None:
    """A change that is made now becomes known, and nothing is said of trouble afterwards."""
    server.put(pod("shop/proof", "10.1.0.66", node="node-1"))
    until(lambda: knows(names, "10.1.0.66") == "shop/proof", 8.0)
    until(lambda: not names.notes, 8.0)


@pytest.mark.parametrize("how", ["close", "cut", "gone"])
def test_a_watch_that_ends_is_taken_up_again(server: ApiServer, tmp_path: Path, how: str) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.end_watches(how)  # type: ignore[arg-type]  # pytest's parameters are plain strings
        arrives(server, names)
    again = [
        r for r in server.requests if r.resource == "pods" and r.query.get("fieldSelector") == "spec.nodeName=node-1"
    ]
    lists = [r for r in again if r.verb == "list"]
    assert len(lists) == (2 if how == "gone" else 1)  # only 410 costs another list ...
    assert [r.query.get("resourceVersion") for r in lists] == ["0", None][: len(lists)]  # ... which must be the newest


@pytest.mark.parametrize("as_status", [False, True], ids=["event", "status"])
def test_a_version_that_is_too_old_is_listed_again(server: ApiServer, tmp_path: Path, as_status: bool) -> None:
    server.gone_as_status = as_status
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        with server.refusing():
            pass
        server.put(pod("shop/missed", "10.1.0.67", node="node-1"))
        server.compact()
        until(lambda: knows(names, "10.1.0.67") == "shop/missed")
        arrives(server, names)


def test_a_pod_that_went_while_nobody_watched_is_gone(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.fault(asks("watch"), math.inf, status=503)
        server.end_watches("cut")
        server.delete("pods", "shop", "cart")
        server.compact()
        until(lambda: names.notes)
        server._faults.clear()
        until(lambda: all(p.terminating for p in names.inventory.pods if p.key == "shop/cart"))
        arrives(server, names)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_trouble_that_passes_is_waited_for(server: ApiServer, tmp_path: Path, verb: str, status: int) -> None:
    server.fault(asks(verb, "pods"), 3, status=status)
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        assert pods(names) == {"shop/cart", "shop/pay-1"}
        arrives(server, names)


def test_retry_after_is_obeyed(server: ApiServer, tmp_path: Path) -> None:
    server.fault(asks("list", "nodes"), 1, status=429, retry_after=1)
    with cluster(server, tmp_path) as names:
        names.load()
    first, second = [r for r in server.requests if (r.verb, r.resource) == ("list", "nodes")]
    assert second.at - first.at >= 1.0


def test_tries_become_rarer_and_never_stop(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        server.fault(asks("watch", "nodes"), math.inf, status=503)
        server.end_watches("close", "nodes")
        time.sleep(2.5)
        tries = [r.at for r in server.requests if (r.verb, r.resource) == ("watch", "nodes")][1:]
        gaps = [after - before for before, after in pairwise(tries)]
        assert 3 <= len(gaps) <= 8
        assert gaps[-1] > 1.5 * gaps[0]


def test_how_long_is_waited() -> None:
    from k8snet.cluster.api import patience

    for tries in range(40):
        assert min(30.0, 0.8 * 2**tries) <= patience(tries) <= 2 * min(30.0, 0.8 * 2**tries)
    assert len({patience(3) for _ in range(5)}) > 1


@pytest.mark.parametrize("cut", [0, 1])
def test_a_list_that_breaks_off_is_asked_for_again(server: ApiServer, tmp_path: Path, cut: int) -> None:
    server.fault(asks("list", "pods"), 2, **({"cut_after": cut} if cut else {"hang_up": True}))
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        assert pods(names) == {"shop/cart", "shop/pay-1"}
        assert names.failure is None


def test_names_grow_old_and_the_report_says_so(server: ApiServer, tmp_path: Path) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        began = time.strftime("%H:%M", time.gmtime())
        with server.refusing():
            until(lambda: "refuses connections" in "".join(names.notes))
            [note] = names.notes
            assert note.startswith(f"names may be older than {began}")
            assert pods(names) == {"shop/cart", "shop/pay-1"}
        arrives(server, names)


def test_a_server_with_another_certificate_is_not_believed(
    server: ApiServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with cluster(server, tmp_path) as names:
        loaded(names, server)
        with server.foreign_certificate():
            until(lambda: any("not to be trusted" in note for note in names.notes))
            assert pods(names) == {"shop/cart", "shop/pay-1"}
        arrives(server, names)
    assert capfd.readouterr() == ("", "")


# --- tokens ---------------------------------------------------------------------------------------------------------


def token_file(server: ApiServer, tmp_path: Path) -> tuple[Api, str, Path]:
    token = server.token("eve", "system:masters")
    file = tmp_path / "token"
    file.write_text(token)
    return api(server, tmp_path, {"tokenFile": str(file)}), token, file


def test_a_token_that_was_replaced_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    own, old, file = token_file(server, tmp_path)
    with Cluster(own, WISH) as names:
        loaded(names, server)
        file.write_text(server.token("eve", "system:masters"))
        server.revoke(old)
        server.end_watches("close")
        until(lambda: names.renewals)
        arrives(server, names)
        assert names.renewals == 1  # once for all who were refused


def test_a_token_that_expired_for_good_is_told_and_the_trace_goes_on(server: ApiServer, tmp_path: Path) -> None:
    own, old, _ = token_file(server, tmp_path)
    with Cluster(own, WISH) as names:
        loaded(names, server)
        server.revoke(old)
        server.end_watches("close")
        until(lambda: names.notes)
        [note] = names.notes
        assert "names may be older than" in note
        assert "401 Unauthorized" in note
        assert pods(names) == {"shop/cart", "shop/pay-1"}
        time.sleep(1.0)
        refused = len(server.requests)
        time.sleep(1.0)
        assert len(server.requests) == refused  # a token that is no good is not tried again and again


def test_credentials_that_never_were_any_good(server: ApiServer, tmp_path: Path) -> None:
    with Cluster(api(server, tmp_path, {"token": "rubbish"}), WISH) as names:
        names.load()
        assert "does not know us (401 Unauthorized)" in failure(names)
        assert names.obstacle is not None
        assert names.obstacle.remedy == f"see: kubectl --kubeconfig {tmp_path}/config auth whoami"


# --- who may see what -----------------------------------------------------------------------------------------------


def bobs(server: ApiServer, tmp_path: Path, wish: Wish = WISH) -> Cluster:
    return Cluster(api(server, tmp_path, {"token": server.token("bob")}), wish)


def test_what_is_forbidden_is_said_with_the_rule_to_add(server: ApiServer, tmp_path: Path) -> None:
    server.allow("bob", "list watch", "pods services endpointslices", "shop")
    with bobs(server, tmp_path) as names:
        names.load()
        assert failure(names) == (
            "user 'bob' may not list networkpolicies in namespace shop, nodes (403 Forbidden)"
        )  # fmt: skip
        assert names.failure is not None
        assert names.failure.more == (
            '- apiGroups: ["networking.k8s.io"]',
            "  resources: [networkpolicies]",
            "  verbs: [list, watch]",
            '- apiGroups: [""]',
            "  resources: [nodes]",
            "  verbs: [list, watch]",
        )
        # What bob may see is seen.
        assert pods(names) == {"shop/cart", "shop/pay-1"}
        assert names.obstacle is None


def test_who_may_not_see_all_namespaces_sees_those_that_were_named(server: ApiServer, tmp_path: Path) -> None:
    server.allow("bob", "list watch", "nodes")
    server.allow("bob", "list watch", "pods services endpointslices networkpolicies", "shop")
    server.put(pod("shop/neighbour", "10.1.0.8", node="node-1"))
    with bobs(server, tmp_path) as names:
        names.load()
        assert knows(names, "10.1.0.8") == "shop/neighbour"
        assert failure(names) == "user 'bob' may not list pods in all namespaces (403 Forbidden)"


def test_the_object_itself_may_be_forbidden(server: ApiServer, tmp_path: Path) -> None:
    server.allow("bob", "list watch", "nodes")
    with bobs(server, tmp_path) as names:
        names.load()
        assert isinstance(names.obstacle, Exception)
        assert "user 'bob' may not list" in names.obstacle.problem
        assert "pods in namespace shop" in names.obstacle.problem


def test_a_watch_that_is_forbidden_leaves_the_list(server: ApiServer, tmp_path: Path) -> None:
    server.allow("bob", "list", "*")
    with bobs(server, tmp_path) as names:
        names.load()
        until(lambda: names.notes)
        assert pods(names) == {"shop/cart", "shop/pay-1"}
        assert all("may not watch" in note for note in names.notes)


def test_impersonation_that_is_forbidden_is_no_missing_rule(server: ApiServer, tmp_path: Path) -> None:
    path = server.kubeconfig(tmp_path / "config", {"token": server.token("bob")})
    options = Options(kubeconfig=str(path), as_user="admin")
    found = access(options, {})
    assert found is not None
    with pytest.raises(ApiError) as caught:
        list(Api(options, found).pages(Query("nodes")))
    assert not isinstance(caught.value, DeniedError)
    assert 'cannot impersonate resource "users"' in caught.value.problem


# --- no API ---------------------------------------------------------------------------------------------------------


def stopped(server: ApiServer, tmp_path: Path, **changes: str) -> ApiError:
    """What asking a server gives that is not as the kubeconfig says."""
    path = server.kubeconfig(tmp_path / "config")
    text = path.read_text()
    for old, new in changes.items():
        text = text.replace(server.url if old == "url" else old, new)
    path.write_text(text)
    options = Options(kubeconfig=str(path), request_timeout=0.5)
    found = access(options, {})
    assert found is not None
    with pytest.raises(ApiError) as caught:
        list(Api(options, found).pages(Query("nodes")))
    return caught.value


def test_nobody_listens(server: ApiServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server.refusing():
        error = stopped(server, tmp_path)
    assert error.problem == f"the API at {server.url} refuses connections: nothing listens there"
    assert f"curl -k {server.url}/readyz" in error.remedy
    assert capfd.readouterr() == ("", "")


def test_the_first_answer_of_a_dead_server_comes_at_once(server: ApiServer, tmp_path: Path) -> None:
    with server.refusing(), cluster(server, tmp_path) as names:
        began = time.monotonic()
        names.load()
        assert time.monotonic() - began < 2.5
        assert "refuses connections" in failure(names)


def test_no_host_of_that_name(server: ApiServer, tmp_path: Path) -> None:
    error = stopped(server, tmp_path, url="https://api.invalid:6443")
    assert error.problem == "the host of the API at https://api.invalid:6443 is not known here"
    assert error.remedy == "see: getent hosts api.invalid"


def test_a_certificate_of_somebody_else(server: ApiServer, tmp_path: Path) -> None:
    with server.foreign_certificate():
        error = stopped(server, tmp_path)
    assert error.problem.startswith(f"no TLS with the API at {server.url}: its certificate is not to be trusted")
    assert "config view --minify" in error.remedy


def test_a_server_that_never_answers(server: ApiServer, tmp_path: Path) -> None:
    server.fault(asks(), math.inf, delay=3.0)
    error = stopped(server, tmp_path)
    assert error.problem == f"the API at {server.url} has not answered within 0.5s"
    assert "--request-timeout" in error.remedy


def test_a_slow_server_is_waited_for_no_longer_than_was_allowed(server: ApiServer, tmp_path: Path) -> None:
    server.fault(asks(), math.inf, delay=3.0)
    with Cluster(api(server, tmp_path, timeout=0.6), WISH) as names:
        began = time.monotonic()
        names.load()
        assert time.monotonic() - began < 2.8
        assert "has not answered within 0.6s" in failure(names)
        assert names.inventory == Inventory()


@pytest.mark.parametrize("to", ["10.96.0.80:80", "no/node-2:30080"])
def test_a_server_that_lacks_an_index_is_asked_without(server: ApiServer, tmp_path: Path, to: str) -> None:
    door = service("shop/door", "10.96.0.81", kind="NodePort")
    door["spec"]["ports"][0]["nodePort"] = 30080
    server.put(door)
    server.fault(
        lambda r: "spec." in r.query.get("fieldSelector", "") and r.resource == "services", math.inf, status=400
    )
    with cluster(server, tmp_path, Wish(parse("10.1.0.1"), parse(to), here=HERE)) as names:
        names.load()
        assert {s.name for s in names.inventory.services} == {"payments", "door"}
        assert names.failure is None


def test_something_else_answers(server: ApiServer, tmp_path: Path) -> None:
    path = server.kubeconfig(tmp_path / "config")
    path.write_text(path.read_text().replace(server.url, f"{server.url}/no/api"))
    options = Options(kubeconfig=str(path))
    found = access(options, {})
    assert found is not None
    with pytest.raises(ApiError) as caught:
        list(Api(options, found).pages(Query("nodes")))
    assert "has no nodes (404 Not Found)" in caught.value.problem
    assert "api-resources | grep nodes" in caught.value.remedy


@pytest.mark.parametrize("answer", ["<html>Log in!</html>", "[]", "{}", '{"metadata": 1, "items": []}', "", "null"])
def test_what_answers_200_need_not_be_kubernetes(tmp_path: Path, answer: str) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class gives it
            pass

    with HTTPServer(("127.0.0.1", 0), Portal) as portal:
        threading.Thread(target=portal.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{portal.server_port}"
        path = tmp_path / "config"
        path.write_text(
            f"current-context: c\nusers: []\nclusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n"
            "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        )
        options = Options(kubeconfig=str(path))
        found = access(options, {})
        assert found is not None
        with pytest.raises(ApiError) as caught:
            list(Api(options, found).pages(Query("nodes")))
    assert caught.value.problem == f"what answers at {url} is no Kubernetes API"
