"""A node that nobody has described: no inventory, addresses alone. What DNAT chose is followed all the same."""

from __future__ import annotations

import os

import pytest

from k8snet.cluster import names
from k8snet.cluster.interfaces import look
from k8snet.cluster.inventory import Inventory
from k8snet.lab.lab import BACKENDS, Lab
from k8snet.render.text import render
from k8snet.report import Report, Verdict
from k8snet.trace import Request, run_trace
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

PAYMENTS = "netns:k8snet-shop-payments"


def traced(server: str, *, wait: float = 2.0) -> Report:
    """One connection of ours from shop/cart, known by its address, to an address."""
    nothing = Inventory()
    request = Request(
        client=names.resolve_from("10.244.1.10", nothing),
        server=names.resolve_to(server, nothing),
        inventory=nothing,
        protocol="tcp",
        send=1,
        wait=wait * patience(),
    )
    return run_trace(request, look(nothing))


def way(report: Report, direction: str) -> list[tuple[str | None, str]]:
    (path,) = (path for path in report.paths if path.direction == direction)
    return [(hop.pod or hop.node, hop.device) for hop in path.hops if hop.device]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_way_is_drawn_up_to_the_backend_and_back(backend: str) -> None:
    with Lab.up(backend):
        report = traced("10.96.0.82:80")
    assert report.verdict is Verdict.DELIVERED, f"\n{render(report)}"
    assert report.findings == ()
    assert way(report, "request")[-1] == (PAYMENTS, "eth0"), f"\n{render(report)}"
    assert way(report, "reply")[0] == (PAYMENTS, "eth0"), f"\n{render(report)}"
    assert report.paths[0].packet == "SYN"


def test_a_backend_that_stays_silent_is_found_by_its_address() -> None:
    with Lab.up() as lab:
        lab.run_in(
            "shop/payments", ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP"], check=True
        )
        report = traced("10.96.0.82:80")
    (finding,) = report.findings
    assert (finding.code, finding.where.pod) == ("POD_FIREWALL_DROP", PAYMENTS), f"\n{render(report)}"
