"""`k8snet trace` and `map` with names from an API server: real packets in a lab, a real client, HTTPS.

The server has what the lab's Kubernetes would have; what it does to its clients meanwhile is no reason for a trace to
stop, to stall, or to name anybody wrongly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer, asks
from k8snet.lab.cluster import objects
from k8snet.lab.lab import Lab
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and BPF")

SEND = ("trace", "--from", "shop/cart", "--to", "shop/svc/web:80", "--send", "2", "-o", "json")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as running:
        yield running


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.put(*objects(lab.inventory)["items"])
        running.kubeconfig(tmp_path / "config")
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "KUBECONFIG": str(tmp_path / "config")}


def started(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "k8snet", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60 * patience())
    return process.returncode, out, err


def run(environment: dict[str, str], *words: str) -> tuple[int, str, str]:
    return ended(started(environment, *words))


def watching(process: subprocess.Popen[str]) -> None:
    """Return once the trace says that it sees packets."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("tracing"):
            return
    raise AssertionError(process.wait())


def connect(lab: Lab) -> None:
    """One connection from the client to the Service."""
    code = "import socket; socket.create_connection(('10.96.0.80', 80), 5).close()"
    lab.run_in("shop/cart", [sys.executable, "-c", code], check=True)


def parties(report: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Client, Service and backend, as the report names them."""
    flow = report["flow"]
    return flow["client"]["pod"], flow["server"]["service"], (flow["backend"] or {}).get("pod")


def test_the_report_names_everybody(server: ApiServer, environment: dict[str, str]) -> None:
    code, out, err = run(environment, *SEND)
    assert code == 0, err
    report = json.loads(out)
    client, service, backend = parties(report)
    assert (client, service) == ("shop/cart", "shop/web")
    assert backend is not None
    assert backend.startswith("shop/web-")
    assert {request.verb for request in server.requests} == {"list", "watch"}
    assert not any("names" in note for note in report["notes"])


def test_addresses_get_their_names_too(server: ApiServer, environment: dict[str, str]) -> None:
    words = ("trace", "--from", "10.244.1.10", "--to", "10.96.0.80:80", "--send", "1", "-o", "json")
    code, out, err = run(environment, *words)
    assert code == 0, err
    assert parties(json.loads(out))[:2] == ("shop/cart", "shop/web")


def test_a_backend_that_comes_while_the_trace_runs_is_named(
    lab: Lab, server: ApiServer, environment: dict[str, str]
) -> None:
    late = [server.get("pods", "shop", name) for name in ("web-1", "web-2", "web-3")]
    slices = [item for item in objects(lab.inventory)["items"] if item["kind"] == "EndpointSlice"]
    for item in (item for item in slices if item["metadata"]["name"].startswith("web-")):
        server.delete("endpointslices", "shop", item["metadata"]["name"])
    for pod in late:
        server.delete("pods", "shop", pod["metadata"]["name"])
    words = (
        "trace",
        "--from",
        "shop/cart",
        "--to",
        "shop/svc/web:80",
        "--count",
        "1",
        "--timeout",
        "20s",
        "-o",
        "json",
    )
    process = started(environment, *words)
    watching(process)
    server.put(*late)
    connect(lab)
    code, out, err = ended(process)
    assert code == 0, err
    backend = parties(json.loads(out))[2]
    assert backend is not None
    assert backend.startswith("shop/web-")


def test_a_backend_that_no_list_had_is_looked_up_by_its_address(
    lab: Lab, server: ApiServer, environment: dict[str, str]
) -> None:
    for item in objects(lab.inventory)["items"]:
        metadata = item["metadata"]
        if item["kind"] == "EndpointSlice":
            server.delete("endpointslices", metadata["namespace"], metadata["name"])
        elif metadata["name"].startswith("web-"):  # as a pod of another node that the Service does not select
            server.put(item | {"spec": item["spec"] | {"nodeName": "node-9"}, "metadata": metadata | {"labels": {}}})
    code, out, err = run(environment, *SEND)
    assert code == 0, err
    backend = parties(json.loads(out))[2]
    assert backend is not None
    assert backend.startswith("shop/web-")
    assert any("status.podIP=10.244." in r.query.get("fieldSelector", "") for r in server.requests)


def test_an_api_that_goes_away_stops_nothing(lab: Lab, server: ApiServer, environment: dict[str, str]) -> None:
    words = (
        "trace",
        "--from",
        "shop/cart",
        "--to",
        "shop/svc/web:80",
        "--count",
        "2",
        "--timeout",
        "20s",
        "-o",
        "json",
    )
    process = started(environment, *words)
    watching(process)
    with server.refusing():
        connect(lab)
        time.sleep(0.5)
        connect(lab)
        code, out, err = ended(process)
    assert code == 0, err
    report = json.loads(out)
    assert report["connections"] == 2
    assert parties(report)[:2] == ("shop/cart", "shop/web")
    assert any("names may be older than" in note for note in report["notes"])
    assert "Traceback" not in err


def test_a_dead_api_does_not_keep_addresses_from_being_traced(server: ApiServer, environment: dict[str, str]) -> None:
    words = ("trace", "--from", "10.244.1.10", "--to", "10.96.0.80:80", "--send", "1", "-o", "json")
    with server.refusing():
        code, out, err = run(environment, *words)
    assert code == 0, err
    report = json.loads(out)
    assert report["verdict"] == "delivered"
    assert parties(report) == (None, None, None)
    assert any("refuses connections" in note for note in report["notes"])
    assert "refuses connections" in err


def test_the_map_is_named_by_the_api(server: ApiServer, environment: dict[str, str]) -> None:
    code, out, err = run(environment, "map", "-n", "shop", "-o", "json")
    assert code == 0, err
    named = {f"{i['pod']['namespace']}/{i['pod']['name']}" for i in json.loads(out)["interfaces"]}
    assert {"shop/cart", "shop/web-1", "shop/payments"} <= named
    assert {(r.verb, r.resource, r.namespace) for r in server.requests} == {
        ("list", "nodes", ""),
        ("list", "pods", "shop"),
    }


def test_a_map_without_the_api_is_still_a_map(server: ApiServer, environment: dict[str, str]) -> None:
    server.fault(asks(), 99, status=401)
    code, out, err = run(environment, "map", "-o", "json")
    assert code == 0, err
    assert any(a["addresses"] for a in (i["interface"] for i in json.loads(out)["interfaces"]))
    assert "401 Unauthorized" in err
    code, _, err = run(environment, "map", "-o", "json", "--no-api")
    assert (code, err) == (0, "")
