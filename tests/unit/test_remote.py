"""`kubectl k8snet`: an agent pod on the node, its lines carried here, the pod gone afterwards, whatever happens.

The client is the real one, in a process of its own, and so are API server and kubelet of the tests. What runs in the
pods here is a program that prints what an agent has printed; tests/live/test_remote.py has real agents.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from apianswers import Request
from apiobjects import endpointslice, node, pod, service
from apiserver import ApiServer, asks
from apistore import BY_PLURAL, Object
from k8snet.cli import parser
from k8snet.cluster.api import Query
from k8snet.cluster.file import inventory as read_inventory
from k8snet.cluster.inventory import Inventory, Node
from k8snet.cluster.needs import Wish, needed
from k8snet.remote.spec import CAPABILITIES, MOST, SELECTOR, inventory, security
from k8snet.render.document import document, dumps, hop_document, hop_of, report_of
from k8snet.watch.budget import memory
from kubelet import Kubelet
from unit import reports
from unit.streams import stream, syn, syn_ack

PLUGIN = (sys.executable, "-c", "import sys; from k8snet.__main__ import kubectl; sys.exit(kubectl())")
REPORT = reports.forward_policy_drop()
HOPS = [json.dumps(hop_document("request", "SYN", hop)) for hop in reports.SYN_TO_POD]
GOLDEN = Path(__file__).parents[1] / "golden"

# Prints hops, and its report once it has printed ten or is told to end. HOW says what else happens to it.
AGENT = f"""
import signal, sys, time
how, hops, report = sys.argv[1], {HOPS!r}, {dumps(REPORT, one_line=True)!r}
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
if how == "refuses":
    print("k8snet: pod shop/cart is not on this node: it runs on node node-7", file=sys.stderr)
    print("  run the same command there", file=sys.stderr)
    sys.exit(2)
while not told:
    for hop in hops:
        print(hop, flush=True)
        time.sleep(0.01)
    if how == "dies":
        print("Killed", flush=True)
        sys.exit(137)
    if how == "good":
        break
    time.sleep(0.1)
print(report, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer() as running:
        cart = pod("shop/cart-7d4f", "10.244.1.10", node="node-1", labels={"app": "cart"})
        payments = pod("shop/payments-5c9b", "10.244.1.11", node="node-1", labels={"app": "payments"})
        running.put(node("node-1", "192.168.50.1", pod_cidrs=("10.244.1.0/24",)), cart, payments)
        running.put(node("node-2", "192.168.50.2"), pod("shop/other", "10.244.2.5", node="node-2"))
        running.put(service("shop/payments", "10.96.0.80"), endpointslice("shop/payments-x", "payments", payments))
        running.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "k8snet"}})
        running.kubeconfig(tmp_path / "config")
        yield running


@pytest.fixture
def kubelet(server: ApiServer) -> Iterator[Kubelet]:
    images = {how: [sys.executable, "-c", AGENT, how] for how in ("good", "endless", "dies", "refuses")}
    with Kubelet(server, images, "node-1") as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "KUBECONFIG": str(tmp_path / "config")}


def started(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PLUGIN, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def words(image: str, *more: str) -> tuple[str, ...]:
    return ("trace", "--image", image, "--from", "shop/cart-7d4f", "--to", "shop/svc/payments:http", *more)


def run(environment: dict[str, str], *command: str) -> tuple[int, str, str]:
    return ended(started(environment, *command))


def agents(server: ApiServer) -> list[str]:
    """The agent pods that are there and that nobody has deleted."""
    found = server.store.at(BY_PLURAL["pods"], server.store.version)
    kept = [stored.value["metadata"] for stored in found if stored.namespace == "k8snet"]
    return [metadata["name"] for metadata in kept if "deletionTimestamp" not in metadata]


def of_log(request: Request) -> bool:
    return request.subresource == "log"


# --- values


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL)
def test_a_report_is_read_as_it_was_written(make: Callable[[], object]) -> None:
    report = make()
    assert report_of(json.loads(json.dumps(document(report)))) == report  # type: ignore[arg-type] # all make Reports


def test_a_hop_is_read_as_it_was_written() -> None:
    assert [hop_of(json.loads(text)) for text in HOPS] == [("request", "SYN", hop) for hop in reports.SYN_TO_POD]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "TraceHop"},
        {"verdict": "perhaps"},
        {"flow": None},
        {"flow": {}},
        {"paths": 3},
        {"paths": [3]},
        {"findings": [{"code": "X"}]},
        {"connections": "many"},
        {"lost": []},
        {"notes": [None]},
    ],
    ids=str,
)
def test_what_is_no_report_is_told(change: Object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them will do
        report_of(document(REPORT) | change)


def test_a_report_of_a_newer_version_is_read() -> None:
    assert report_of(document(REPORT) | {"weather": "fine"}) == REPORT


def test_names_that_do_not_fit_are_left_out_from_the_end() -> None:
    pods = [pod(f"shop/p{number}", f"10.0.{number // 250}.{number % 250}") for number in range(2000)]
    text, missing = inventory(pods)
    items = json.loads(text)["items"]
    assert len(text) <= MOST + 100
    assert (len(items) + missing, items[0]["metadata"]["name"]) == (2000, "p0")
    assert 0 < missing < 1500


def test_an_object_that_two_queries_found_is_sent_once() -> None:
    text, missing = inventory([node("node-1", "192.0.2.1"), node("node-1", "192.0.2.1")])
    assert (len(json.loads(text)["items"]), missing) == (1, 0)


def test_ports_of_native_sidecars_and_policies_are_sent() -> None:
    """An agent resolves the names of ports itself, and says what policies allow."""
    sidecar = pod("shop/web", "10.1.1.1")
    metrics = [{"name": "metrics", "containerPort": 9100}]
    sidecar["spec"]["initContainers"] = [{"name": "exporter", "image": "x", "ports": metrics}]
    policy = {
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "closed"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": "metrics"}]}]},
    }
    known = read_inventory([json.loads(inventory([sidecar, policy])[0])], "the agent's")
    assert ("metrics", "TCP", 9100) in known.pods[0].named_ports
    assert known.policies[0].ingress_rules[0].ports[0].port == "metrics"


# --- a trace


def test_the_agents_report_is_rendered_here(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    code, out, err = run(environment, *words("good"))
    assert code == 1, err
    assert out == (GOLDEN / "render" / "forward_policy_drop.txt").read_text()
    assert not agents(server)


def test_the_agents_lines_are_passed_on(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    code, out, err = run(environment, *words("good", "-o", "jsonl"))
    assert (code, err) == (1, "")
    *hops, report = map(json.loads, out.splitlines())
    assert [hop_of(hop) for hop in hops] == [("request", "SYN", hop) for hop in reports.SYN_TO_POD]
    assert report_of(report) == REPORT


def test_what_the_agent_is_told(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    more = ("--send", "3", "--wait", "500ms", "--timeout", "1m", "--protocol", "tcp", "-4", "--read-only", "-n", "shop")
    run(environment, *words("good", *more))
    [made] = kubelet.ran
    [container] = made["spec"]["containers"]
    text = " ".join(container["args"])
    assert text.startswith("trace --inventory /etc/k8snet/inventory.json --from shop/cart-7d4f --to shop/svc/payments")
    for option in ("--send 3", "--wait 0.5s", "--timeout 60s", "--protocol tcp", "--ipv4", "--read-only", "-o jsonl"):
        assert option in text
    known = json.loads(made["metadata"]["annotations"]["k8snet.io/inventory"])["items"]
    assert {(item["kind"], item["metadata"]["name"]) for item in known} >= {
        ("Node", "node-1"),
        ("Pod", "cart-7d4f"),
        ("Pod", "payments-5c9b"),
        ("Service", "payments"),
        ("EndpointSlice", "payments-x"),
    }
    assert ("Pod", "other") not in {(item["kind"], item["metadata"]["name"]) for item in known}


def test_a_workload_is_one_pod_for_all_agents(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    second = pod("shop/cart-zzzz", "10.244.2.9", node="node-2", labels={"app": "cart"})
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "cart"}}},
    }
    server.put(second, deployment)
    trace = ("trace", "--image", "good", "--from", "shop/deploy/cart", "--to", "shop/svc/payments:http")
    code, out, err = run(environment, *trace)
    assert code == 1, err
    args = kubelet.ran[0]["spec"]["containers"][0]["args"]
    assert args[args.index("--from") + 1] == "shop/po/cart-7d4f"
    assert "deploy/shop/cart has 2 running pods, taken: shop/po/cart-7d4f" in " ".join(out.split())


def test_the_pod_has_no_more_than_it_needs(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    run(environment, *words("good", "--timeout", "10s"))
    spec = kubelet.ran[0]["spec"]
    [container] = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": list(CAPABILITIES)}
    assert "privileged" not in container["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert (spec["nodeName"], spec["restartPolicy"]) == ("node-1", "Never")
    assert 10 < spec["activeDeadlineSeconds"] < 200
    assert spec["tolerations"] == [{"operator": "Exists"}]
    run(environment, *words("good", "--privileged"))
    assert kubelet.ran[1]["spec"]["containers"][0]["securityContext"]["privileged"] is True


def test_the_rights_that_install_prints_are_all_that_it_takes(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], tmp_path: Path
) -> None:
    server.kubeconfig(tmp_path / "config", {"token": server.token("bob")})
    _, printed, _ = run(environment, "install", "--print")
    for item in yaml.safe_load_all(printed):
        for rule in item.get("rules", ()):
            where = item["metadata"].get("namespace", "*")
            server.allow("bob", " ".join(rule["verbs"]), " ".join(rule["resources"]), where)
    code, _, err = run(environment, *words("good"))
    assert code == 1, err
    assert not agents(server)
    assert run(environment, "cleanup")[0] == 0


# --- the namespace


def test_the_namespace_names_the_image(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    without = [word for word in words("good") if word not in ("--image", "good")]
    code, _, err = run(environment, *without)
    assert code == 2
    assert "no image is named" in err
    metadata = {"name": "k8snet", "annotations": {"k8snet.io/image": "good"}}
    server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    assert run(environment, *without)[0] == 1


def test_a_namespace_that_is_not_there(server: ApiServer, environment: dict[str, str]) -> None:
    code, _, err = run(environment, *words("good", "--agent-namespace", "nowhere"))
    assert code == 2
    assert "there is no namespace 'nowhere'" in err
    assert "install --print" in err


def test_a_namespace_that_does_not_let_it_in(server: ApiServer, environment: dict[str, str]) -> None:
    why = (
        'pods "k8snet-1" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true, '
        "hostPID=true)"
    )
    server.fault(asks("create", "pods"), status=403, message=why)
    code, _, err = run(environment, *words("good"))
    assert code == 2
    assert 'violates PodSecurity "baseline:latest"' in err
    assert "label --overwrite namespace k8snet pod-security.kubernetes.io/enforce=privileged" in err


@pytest.mark.parametrize(("verbs", "resource"), [("create", "pods"), ("get", "pods/log"), ("get", "pods")])
def test_a_right_that_lacks_is_named(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], tmp_path: Path, verbs: str, resource: str
) -> None:
    server.kubeconfig(tmp_path / "config", {"token": server.token("bob")})
    server.allow("bob", "list watch", "*")
    rights = {"create": ["pods"], "delete": ["pods"], "get": ["pods", "pods/log", "namespaces"]}
    for verb, resources in rights.items():
        left = [one for one in resources if (verb, one) != (verbs, resource)]
        server.allow("bob", verb, " ".join(left), "k8snet")
    code, _, err = run(environment, *words("good"))
    assert code == 2
    assert f"user 'bob' may not {verbs} {resource} in namespace k8snet (403 Forbidden)" in err
    assert "verbs: [create, delete, get, list]" in err
    assert "could not be deleted" not in err
    assert not agents(server)


# --- what goes wrong on the node


def test_an_image_that_cannot_be_had(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    kubelet.refuses = "ErrImagePull"
    code, _, err = run(environment, *words("good"))
    assert code == 2
    assert "node node-1 cannot get the image good: as the test wants it" in err
    assert "--image" in err
    assert not agents(server)


def test_a_capability_that_is_refused(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    kubelet.refuses = "CreateContainerError"
    code, _, err = run(environment, *words("good"))
    assert code == 2
    assert "--privileged" in err
    assert not agents(server)


def test_a_node_that_is_dead(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    kubelet.ignores = True
    code, _, err = run(environment, *words("good", "--pod-running-timeout", "1s"))
    assert code == 2
    assert "does not start on node node-1: the node's kubelet has not taken it up" in err
    assert "describe node node-1" in err
    assert not agents(server)


def test_an_agent_that_dies(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    code, _, err = run(environment, *words("dies"))
    assert code == 2
    assert "has ended without a report: exit code 137; its last words: Killed" in err
    assert not agents(server)


def test_an_agent_that_cannot_says_so_as_it_would_here(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    code, _, err = run(environment, *words("refuses"))
    assert code == 2
    assert "k8snet: pod shop/cart is not on this node: it runs on node node-7\n  run the same command there" in err


def test_a_pod_that_somebody_deletes(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    server.delete("pods", "k8snet", kubelet.ran[0]["metadata"]["name"])
    code, out, _ = ended(process)
    assert code == 1  # SIGTERM: its report still comes
    assert "DROPPED" in out


# --- what goes wrong on the way


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_log_that_breaks_is_read_on(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], after: int
) -> None:
    server.fault(of_log, 3, cut_after=after)
    code, out, err = run(environment, *words("good", "-o", "jsonl"))
    assert (code, err) == (1, "")
    *hops, report = map(json.loads, out.splitlines())
    assert [hop_of(hop) for hop in hops] == [("request", "SYN", hop) for hop in reports.SYN_TO_POD]
    assert report_of(report) == REPORT
    assert len([request for request in server.requests if of_log(request)]) >= 4


def test_an_api_that_goes_away_in_the_middle(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    with server.refusing():
        time.sleep(1.5)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 1, err
    assert "DROPPED" in out
    assert not agents(server)


def test_a_token_that_expires_in_the_middle(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], tmp_path: Path
) -> None:
    token = server.token("bob", "system:masters")
    server.kubeconfig(tmp_path / "config", {"token": token})
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    server.kubeconfig(tmp_path / "config", {"token": server.token("bob", "system:masters")})
    server.revoke(token)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 1, err
    assert not agents(server)


def test_a_pod_whose_making_was_not_confirmed_is_deleted(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    server.fault(asks("create", "pods"), math.inf, cut_after=0)  # it is made, and the answer is torn
    code, _, err = run(environment, *words("good"))
    assert code == 1, err  # made once, then found to be there
    assert not agents(server)


def test_deleting_is_tried_again(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    server.fault(asks("delete", "pods"), 2, status=500)
    code, _, err = run(environment, *words("good"))
    assert (code, "deleted" in err) == (1, False)
    assert not agents(server)


def test_a_pod_that_nobody_can_delete_is_named(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    server.fault(asks("delete", "pods"), math.inf, status=403, message="no")
    code, out, err = run(environment, *words("good"))
    assert code == 1
    assert "DROPPED" in out
    [left] = agents(server)
    assert f"kubectl -n k8snet delete pod {left}" in err
    assert "it ends by itself at" in err


# --- Ctrl-C


def test_ctrl_c_ends_with_the_report(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 1, err
    assert "DROPPED" in out
    assert not agents(server)


def test_ctrl_c_while_the_pod_starts(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    kubelet.ignores = True
    process = started(environment, *words("good"))
    server.wait_for(asks("create", "pods"), timeout=20)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    assert not agents(server)


def test_ctrl_c_while_the_pod_is_asked_for(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    server.fault(asks("create", "pods"), delay=1.0)
    process = started(environment, *words("good"))
    server.wait_for(asks("create", "pods"), timeout=20)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    assert not agents(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_no_signal_at_any_moment_leaves_a_pod(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], number: signal.Signals
) -> None:
    for moment in (0.5, 0.7, 0.9, 1.2):
        process = started(environment, *words("good"))
        time.sleep(moment)
        process.send_signal(number)
        code, _, err = ended(process)
        assert code in (1, 130, -number), err
        assert "Traceback" not in err
        assert not agents(server), moment


def test_two_of_them_wait_for_nothing(server: ApiServer, kubelet: Kubelet, environment: dict[str, str]) -> None:
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    server.fault(asks("delete", "pods"), delay=3.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    server.wait_for(asks("delete", "pods"), 2)
    assert not agents(server)


# --- cleanup


def test_what_a_killed_command_leaves_is_cleaned_up(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    process = started(environment, *words("endless"))
    server.wait_for(of_log, timeout=20)
    [left] = agents(server)
    code, out, err = run(environment, "cleanup")
    assert (code, out) == (0, "nothing to clean up\n")
    assert f"left alone: pod {left} on node node-1" in err
    process.kill()
    ended(process)
    code, out, err = run(environment, "cleanup")
    assert (code, err) == (0, "")
    assert f"deleted: pod {left} on node node-1" in out
    assert not agents(server)


def test_others_agents_are_left_alone(server: ApiServer, environment: dict[str, str]) -> None:
    other = pod("k8snet/k8snet-1", "192.0.2.1", labels={"app.kubernetes.io/name": "k8snet"})
    agent = pod(
        "k8snet/k8snet-2",
        "192.0.2.1",
        labels={"app.kubernetes.io/name": "k8snet", "app.kubernetes.io/component": "agent"},
    )
    agent["metadata"]["annotations"] = {"k8snet.io/started-by": "somewhere.else pid 1"}
    server.put(other, agent)
    assert "left alone: pod k8snet-2" in run(environment, "cleanup")[2]
    assert "deleted: pod k8snet-2" in run(environment, "cleanup", "--force")[1]
    assert agents(server) == ["k8snet-1"]


# --- which node


def test_a_client_that_is_nowhere_needs_a_node(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    trace = ("trace", "--image", "good", "--from", "203.0.113.7", "--to")
    run(environment, *trace, "shop/svc/payments:http")  # the server's only endpoint tells
    assert kubelet.ran[0]["spec"]["nodeName"] == "node-1"
    code, _, err = run(environment, *trace, "198.51.100.1:443")
    assert code == 2
    assert "say where to look: --node NODE" in err


# --- two nodes

# The agents of two nodes: the near one says all it has seen, the far one the rest when it is told to end.
PAIR = f"""
import signal, sys, time
how, node = sys.argv[1], sys.argv[sys.argv.index("--node") + 1]
near = {stream("node-1", [*syn()[0], *syn_ack()[0]])!r}
far = {stream("node-2", [*syn()[1], *syn_ack()[1]])!r}
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
lines = (near if node == "node-1" else far).splitlines()
ready = next(number for number, line in enumerate(lines) if '"line":"ready"' in line) + 1
print("\\n".join(lines[:ready]), flush=True)
if how == "dies" and node == "node-2":
    time.sleep(0.5)
    sys.exit(137)
while not told and (node == "node-2" or how == "endless"):
    time.sleep(0.05)
if how != "dies" or node == "node-1":
    print("\\n".join(lines[ready:]), flush=True)
"""


@pytest.fixture
def two_nodes(server: ApiServer) -> Iterator[Kubelet]:
    cart, web = pod("shop/cart", "10.244.1.10", node="node-1"), pod("shop/web-3", "10.244.2.11", node="node-2")
    server.put(cart, web, service("shop/remote", "10.96.0.87"), endpointslice("shop/remote-x", "remote", web))
    images = {how: [sys.executable, "-c", PAIR, how] for how in ("good", "dies", "endless")}
    with Kubelet(server, images, "node-1", "node-2") as running:
        yield running


def across(image: str, *more: str) -> tuple[str, ...]:
    return ("trace", "--image", image, "--from", "shop/cart", "--to", "shop/svc/remote:http", *more)


def test_the_halves_of_two_nodes_are_one_report(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    code, out, err = run(environment, *across("good", "--send", "1", "-o", "json"))
    assert code == 0, err
    report = json.loads(out)
    assert report["verdict"] == "delivered"
    assert {hop["node"] for hop in report["paths"][0]["hops"]} == {"node-1", "node-2"}
    assert not agents(server)


def test_hops_of_both_nodes_are_shown_as_they_come(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    code, out, err = run(environment, *across("good", "-o", "jsonl"))
    assert (code, err) == (0, "")
    *lines, report = map(json.loads, out.splitlines())
    assert report["kind"] == "TraceReport"
    hops = [hop_of(line)[2] for line in lines]
    assert [hop.device for hop in hops if hop.node == "node-1"] == ["eth0", "veth-cart", "eth0"] * 2
    assert len([hop for hop in hops if hop.node == "node-2"]) == 6
    assert not {hop.netns for hop in hops if hop.node == "node-1"} & {hop.netns for hop in hops if hop.node == "node-2"}


def test_the_far_one_is_there_before_the_near_one_sends(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    run(environment, *across("good", "--send", "1", "--count", "1"))
    far, near = two_nodes.ran
    assert [made["spec"]["nodeName"] for made in (far, near)] == ["node-2", "node-1"]
    assert "--send" in near["spec"]["containers"][0]["args"]
    assert not {"--send", "--count"} & set(far["spec"]["containers"][0]["args"])


def test_a_far_agent_that_dies_costs_its_half(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    code, out, err = run(environment, *across("dies", "-o", "json"))
    assert code in (0, 3), err
    report = json.loads(out)
    assert any("node-2" in note and "broke off" in note for note in report["notes"])
    assert "LOST_BETWEEN_NODES" not in out
    assert not agents(server)


def test_ctrl_c_ends_both_with_the_report(server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]) -> None:
    process = started(environment, *across("endless"))
    server.wait_for(of_log, 2, timeout=20)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 0, err
    assert "DELIVERED" in out
    assert not agents(server)


def test_without_the_far_node_half_a_report_comes(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    two_nodes.nodes = ("node-1",)
    _, out, _ = run(environment, *across("good", "--pod-running-timeout", "1s", "-o", "json"))
    report = json.loads(out)
    assert "does not start on node node-2" in report["notes"][0]
    assert report["notes"][0].startswith("node node-2 was not looked at: ")
    assert {hop["node"] for path in report["paths"] for hop in path["hops"]} == {"node-1"}
    assert not agents(server)


def test_without_the_near_node_there_is_no_report(
    server: ApiServer, two_nodes: Kubelet, environment: dict[str, str]
) -> None:
    two_nodes.nodes = ("node-2",)
    code, out, err = run(environment, *across("good", "--pod-running-timeout", "1s"))
    assert (code, out) == (2, "")
    assert "does not start on node node-1" in err
    assert not agents(server)


# --- the command line


@pytest.mark.parametrize("command", [(), ("trace",), ("cleanup",), ("install",)], ids=" ".join)
def test_every_command_explains_itself(environment: dict[str, str], command: tuple[str, ...]) -> None:
    code, out, err = run(environment, *command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: kubectl k8snet {' '.join(command)}".rstrip())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("trace", "--from", "a"), "--to"),
        (words("good", "--agent-namespace", "No/Such"), "'No/Such' is no name of a namespace"),
        (words("good", "--node", "node-2"), "pod/shop/cart-7d4f is on node node-1, not on node-2"),
        (words("good", "--kubeconfig", "/nowhere"), "kubeconfig /nowhere: no such file"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_before_a_pod_is_made(
    server: ApiServer, environment: dict[str, str], command: tuple[str, ...], said: str
) -> None:
    code, out, err = run(environment, *command)
    assert (code, out) == (2, "")
    assert said in err
    assert not [request for request in server.requests if request.verb == "create"]


# --- install


@pytest.mark.parametrize(("more", "golden"), [((), "manifests.yaml"), (("--watch",), "watch.yaml")], ids=str)
def test_what_install_prints(more: tuple[str, ...], golden: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "k8snet", "install", "--print", "--image", "registry.example/k8snet:1", *more],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ).stdout
    assert printed == (GOLDEN / "install" / golden).read_text()


def printed_daemon_set() -> dict[str, Any]:
    """The last of what `install --print --watch` prints."""
    *_, last = yaml.safe_load_all((GOLDEN / "install" / "watch.yaml").read_text())
    assert last["kind"] == "DaemonSet"
    found: dict[str, Any] = last
    return found


def test_the_daemon_set_may_do_what_an_agent_may_and_no_more() -> None:
    pod = printed_daemon_set()["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["securityContext"] == security(privileged=False)
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_the_daemon_set_runs_a_command_that_there_is_within_its_limits() -> None:
    pod = printed_daemon_set()["spec"]["template"]
    [container] = pod["spec"]["containers"]
    words = [word.replace("$(HOST_IP)", "192.0.2.1") for word in container["args"]]
    args = parser().parse_args(words)
    assert args.metrics == ("192.0.2.1", container["ports"][0]["containerPort"])
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(args.metrics[1])
    assert args.memory < memory(container["resources"]["limits"]["memory"])
    assert SELECTOR.partition(",")[2] not in {f"{k}={v}" for k, v in pod["metadata"]["labels"].items()}, "no agent"


def test_the_daemon_set_has_the_rights_to_all_that_a_watch_asks() -> None:
    """And to nothing else."""
    role = next(
        item
        for item in yaml.safe_load_all((GOLDEN / "install" / "watch.yaml").read_text())
        if (item["kind"], item["metadata"]["name"]) == ("ClusterRole", "k8snet-watch")
    )
    allowed = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert all(rule["verbs"] == ["list", "watch"] for rule in role["rules"])
    address = ip_address("192.0.2.1")
    node = Node("node-1", (address,))
    seen = frozenset({ip_address("10.244.7.7")})
    wish = Wish(here=frozenset({address}), hostname="node-1", services=True, seen=seen)
    queries: frozenset[Query] = frozenset()
    while fresh := needed(wish, Inventory(nodes=(node,)), queries) - queries:
        queries |= fresh
    assert {query.resource for query in queries} == allowed


def test_a_daemon_set_needs_an_image(environment: dict[str, str]) -> None:
    code, out, err = run(environment, "install", "--print", "--watch")
    assert (code, out) == (2, "")
    assert "--image" in err


def test_install_without_print_changes_nothing(environment: dict[str, str]) -> None:
    code, out, err = run(environment, "install")
    assert (code, out) == (2, "")
    assert "kubectl apply -f -" in err


def test_kubectl_takes_what_install_prints_and_runs_the_plugin(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], tmp_path: Path
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    kubectl = ["kubectl", "--cache-dir", str(tmp_path / "cache")]
    _, printed, _ = run(environment, "install", "--print", "--watch", "--image", "good", "--namespace", "tools")
    for _ in range(2):
        applied = subprocess.run(
            [*kubectl, "apply", "-f", "-"], input=printed, capture_output=True, text=True, env=environment, check=False
        )
        assert applied.returncode == 0, applied.stderr
    plugin = tmp_path / "bin" / "kubectl-k8snet"
    plugin.parent.mkdir()
    plugin.write_text(f"#!{sys.executable}\nimport sys\nfrom k8snet.__main__ import kubectl\nsys.exit(kubectl())\n")
    plugin.chmod(0o755)
    path = f"{plugin.parent}:{environment['PATH']}"
    without = [word for word in words("good") if word not in ("--image", "good")]
    traced = subprocess.run(
        ["kubectl", "k8snet", *without, "--agent-namespace", "tools"],
        capture_output=True,
        text=True,
        env=environment | {"PATH": path},
        check=False,
    )
    assert traced.returncode == 1, traced.stderr
    assert "DROPPED" in traced.stdout
