"""Healthy traffic of many kinds, traced passively: every connection is seen, every one is delivered, nothing is found.

The traffic is real programs' (http.client, a DNS query over a fresh socket), sent from inside the client's netns. A few
connections of each kind, in each back end; test_crowd.py has the thousands.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from k8snet.cluster import names
from k8snet.cluster.interfaces import look
from k8snet.kernel.netns import entered
from k8snet.lab.lab import BACKENDS, Lab
from k8snet.render.text import render
from k8snet.report import Report, Verdict
from k8snet.send import dns_query
from k8snet.trace import Nobody, Request, run_trace
from live.conftest import patience

CONNECTIONS = 53  # odd and known, so that a miscount shows


@pytest.fixture(scope="module", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One healthy lab for all kinds of traffic."""
    with Lab.up(backend=request.param) as lab:
        yield lab


class Starting(Nobody):
    """Starts the traffic when the probes are there."""

    def __init__(self, traffic: threading.Thread) -> None:
        self._traffic = traffic

    def ready(self) -> None:
        self._traffic.start()


def traced(
    lab: Lab,
    target: str,
    protocol: str,
    traffic: Callable[[], None],
    count: int = CONNECTIONS,
    seconds: float = 30,
) -> Report:
    """The report on `traffic`, which a thread makes from inside the client's netns while the trace runs."""
    failed: list[BaseException] = []

    def body() -> None:
        try:
            with entered(lab.netns_of("shop/cart").path):
                traffic()
        except BaseException as error:  # told to the test's own thread
            failed.append(error)

    request = Request(
        client=names.resolve_from("shop/cart", lab.inventory),
        server=names.resolve_to(target, lab.inventory),
        inventory=lab.inventory,
        protocol=protocol,
        count=count,
        timeout=seconds * patience(),
    )
    thread = threading.Thread(target=body)
    report = run_trace(request, look(lab.inventory), Starting(thread))
    thread.join()
    assert not failed, failed
    return report


def http_requests() -> None:
    """Short connections with a request and an answer each."""
    for _ in range(CONNECTIONS):
        connection = http.client.HTTPConnection("10.96.0.80", 80, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read()
        connection.close()


def queries() -> None:
    """One socket a query, as most resolvers do."""
    for number in range(CONNECTIONS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("10.96.0.10", 53))
            sock.send(dns_query("web.shop.svc.cluster.local", number + 1))
            assert sock.recv(512)[:2] == (number + 1).to_bytes(2, "big")


def queries_of_one_socket() -> None:
    """All from the same port, as some resolvers do: one query, one flow all the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        for number in range(CONNECTIONS):
            sock.sendto(dns_query("web.shop.svc.cluster.local", number + 1), ("10.96.0.10", 53))
            assert sock.recv(512)[:2] == (number + 1).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("target", "protocol", "traffic"),
    [
        pytest.param("shop/svc/web:80", "tcp", http_requests, id="http"),
        pytest.param("kube-system/svc/kube-dns:53", "udp", queries, id="dns"),
        pytest.param("kube-system/svc/kube-dns:53", "udp", queries_of_one_socket, id="dns-one-socket"),
    ],
)
def test_healthy_traffic_is_counted_and_gives_no_finding(
    lab: Lab, target: str, protocol: str, traffic: Callable[[], None]
) -> None:
    report = traced(lab, target, protocol, traffic)
    assert report.verdict is Verdict.DELIVERED, f"\n{render(report)}"
    assert report.findings == (), f"\n{render(report)}"
    assert (report.connections, report.answered) == (CONNECTIONS, CONNECTIONS), f"\n{render(report)}"
    assert report.lost == {}
