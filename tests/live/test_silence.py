"""A client whose own kernel refuses to send leaves no packet to see: what a trace says then, without sending itself."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from k8snet.cluster import names
from k8snet.cluster.interfaces import look
from k8snet.kernel.netns import entered
from k8snet.lab.lab import Lab
from k8snet.report import Report, Verdict
from k8snet.trace import Nobody, Request, run_trace
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")


class Client(Nobody):
    """A program in shop/cart that connects as soon as the trace is ready."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._path = lab.netns_of("shop/cart").path
        self._address = address

    def ready(self) -> None:
        threading.Thread(target=self._connect, daemon=True).start()

    def _connect(self) -> None:
        with entered(self._path):
            sock = socket.socket()
        with sock:
            sock.settimeout(1)
            sock.connect_ex((self._address, 80))


def traced(lab: Lab, target: str, connects_to: str) -> Report:
    request = Request(
        client=names.resolve_from("shop/cart", lab.inventory),
        server=names.resolve_to(target, lab.inventory),
        inventory=lab.inventory,
        timeout=1.5 * patience(),
    )
    return run_trace(request, look(lab.inventory), Client(lab, connects_to))


@pytest.mark.parametrize(
    ("step", "code"),
    [("ip route del default", "NO_ROUTE"), ("ip link set eth0 down", "VETH_DOWN")],
    ids=["no-route", "link-down"],
)
def test_what_keeps_a_program_from_sending_is_named(step: str, code: str) -> None:
    with Lab.up() as lab:
        lab.run_in("shop/cart", step.split(), check=True)
        report = traced(lab, "shop/svc/payments:80", "10.96.0.82")
    assert report.verdict is Verdict.REJECTED
    assert [finding.code for finding in report.findings] == [code]
    assert report.findings[0].where.pod == "shop/cart"
    assert report.connections == 0


def test_a_program_that_cannot_reach_somebody_else_says_nothing_of_this_server() -> None:
    with Lab.up() as lab:
        lab.run_in("shop/cart", ["ip", "route", "del", "default"], check=True)
        report = traced(lab, "shop/pod/web-1:8080", "10.96.0.82")
    assert report.verdict is Verdict.NOTHING_SEEN
    assert not report.findings
