"""`kubectl k8snet trace`, end to end: a real client, HTTPS, an agent that runs as a process and sees real packets.

The API server is the tests' own, and so is the kubelet that runs the agent pods; the cluster is a lab.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiserver import ApiServer
from apistore import BY_PLURAL
from k8snet.lab.cluster import objects
from k8snet.lab.lab import Lab
from kubelet import Kubelet
from live.conftest import about_processes, patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and BPF")

PLUGIN = (sys.executable, "-c", "import sys; from k8snet.__main__ import kubectl; sys.exit(kubectl())")
IMAGES = {"k8snet": [sys.executable, "-m", "k8snet"]}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as running:
        yield running


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(*objects(lab.inventory)["items"])
        running.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "k8snet"}})
        running.kubeconfig(tmp_path / "config")
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "KUBECONFIG": str(tmp_path / "config")}


@pytest.fixture
def kubelet(server: ApiServer, environment: dict[str, str]) -> Iterator[Kubelet]:
    with Kubelet(server, IMAGES, "node-1", "node-2") as running:
        # A node has no kubeconfig: the agent gets its names with its pod, or not at all.
        running.environment = environment | {"KUBECONFIG": "/dev/null"}
        yield running


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
    out, err = process.communicate(timeout=60 * patience())
    return process.returncode, out, err


def agents(server: ApiServer) -> list[str]:
    """The agent pods that are still there and that nobody has deleted."""
    store = server.store
    pods = [pod.value["metadata"] for pod in store.at(BY_PLURAL["pods"], store.version) if pod.namespace == "k8snet"]
    return [pod["name"] for pod in pods if "deletionTimestamp" not in pod]


@pytest.mark.parametrize(
    ("to", "nodes"),
    [
        pytest.param("shop/svc/payments:80", ["node-1"], id="same-node"),
        pytest.param("shop/web-3:8080", ["node-2", "node-1"], id="two-nodes"),
        pytest.param("shop/svc/web:80", ["node-2", "node-1"], id="either"),
    ],
)
def test_the_report_is_as_if_it_had_been_made_there(
    server: ApiServer, kubelet: Kubelet, environment: dict[str, str], to: str, nodes: list[str]
) -> None:
    words = ("trace", "--image", "k8snet", "--from", "shop/cart", "--to", to, "--send", "2", "-o", "json")
    code, out, err = ended(started(environment, *words))
    assert code == 0, err
    report = json.loads(out)
    assert report["verdict"] == "delivered"
    assert (report["connections"], report["answered"], report["findings"]) == (2, 2, [])
    assert report["flow"]["client"]["pod"] == "shop/cart"
    server_pod = (report["flow"]["backend"] or report["flow"]["server"])["pod"]
    hops = report["paths"][0]["hops"]
    assert (hops[0]["pod"], hops[-1]["pod"]) == ("shop/cart", server_pod)
    if nodes == ["node-1"]:  # what one node foresees leads no further than the node
        assert report["expected"]["fate"] == "served"
        assert report["expected"]["difference"] is None
    assert [pod["spec"]["nodeName"] for pod in kubelet.ran] == nodes
    assert not agents(server)


def test_a_fault_is_found_named_and_rendered_here(
    lab: Lab, server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    words = ("trace", "--image", "k8snet", "--from", "shop/cart", "--to", "shop/svc/payments:80")
    lab.run_in("node-1", ["iptables", "-P", "FORWARD", "DROP"], check=True)
    try:
        code, out, err = ended(started(environment, *words, "--send", "1", "--wait", "1s"))
    finally:
        lab.run_in("node-1", ["iptables", "-P", "FORWARD", "ACCEPT"], check=True)
    assert code == 1, err
    assert "✗ DROPPED on node-1 in FORWARD: the chain's policy is DROP" in out
    assert "named by nftrace" in out
    assert not agents(server)


def test_a_fault_on_the_other_node_is_found_by_the_other_agent(
    lab: Lab, server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    words = ("trace", "--image", "k8snet", "--from", "shop/cart", "--to", "shop/web-3:8080")
    lab.run_in("node-2", ["iptables", "-P", "FORWARD", "DROP"], check=True)
    try:
        code, out, err = ended(started(environment, *words, "--send", "1", "--wait", "1s"))
    finally:
        lab.run_in("node-2", ["iptables", "-P", "FORWARD", "ACCEPT"], check=True)
    assert code == 1, err
    assert "✗ DROPPED on node-2 in FORWARD: the chain's policy is DROP" in out
    assert not agents(server)


@pytest.mark.parametrize("to", ["shop/svc/payments:80", "shop/web-3:8080"], ids=["same-node", "two-nodes"])
def test_ctrl_c_ends_with_the_report(
    lab: Lab, server: ApiServer, kubelet: Kubelet, environment: dict[str, str], to: str
) -> None:
    process = started(environment, "trace", "--image", "k8snet", "--from", "shop/cart", "--to", to)
    address, port = ("10.244.2.11", 8080) if "web-3" in to else ("10.96.0.82", 80)
    code = f"import socket; socket.create_connection(('{address}', {port}), 5).close()"
    server.wait_for(lambda request: request.subresource == "log", 2 if "web-3" in to else 1, timeout=20 * patience())
    for _ in range(10):  # nobody knows from outside when an agent has attached its probes
        lab.run_in("shop/cart", [sys.executable, "-c", code], check=True)
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    assert status == 0, err
    assert "✓ DELIVERED" in out
    assert not agents(server)


@about_processes
def test_ctrl_c_at_any_moment_leaves_no_pod(
    lab: Lab, server: ApiServer, kubelet: Kubelet, environment: dict[str, str]
) -> None:
    for tenth in range(1, 30, 3):
        words = ("trace", "--image", "k8snet", "--from", "shop/cart", "--to", "shop/svc/web:80", "--send", "1")
        process = started(environment, *words)
        time.sleep(tenth / 10)
        process.send_signal(signal.SIGTERM if tenth % 2 else signal.SIGINT)
        status, _, err = ended(process)
        assert status in (0, 130, -signal.SIGINT, -signal.SIGTERM), err
        assert "Traceback" not in err
        assert not agents(server), (tenth, err)
