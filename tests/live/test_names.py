"""Names that stand for several pods, or for none, traced: what is taken, what is followed and what is left out."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from k8snet.cluster import names
from k8snet.cluster.interfaces import look
from k8snet.cluster.inventory import Ingress, Inventory, Owner, Pod, Route
from k8snet.kernel.netns import entered
from k8snet.lab.lab import Lab
from k8snet.report import Report, Verdict
from k8snet.trace import Nobody, Request, netns_of, run_trace
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

OUTSIDE = "198.51.100.9"  # nobody's


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as up:
        yield up


def owned(inventory: Inventory) -> Inventory:
    """The lab whose web pods a Deployment has made, with an Ingress."""

    def made(pod: Pod) -> Pod:
        hashed = (*pod.labels, ("pod-template-hash", "5c9b"))
        return replace(pod, owner=Owner("ReplicaSet", "web-5c9b"), labels=hashed) if "web-" in pod.name else pod

    ingress = Ingress("shop", "site", (Route("", "/", "web", "http"),))
    return replace(inventory, pods=tuple(map(made, inventory.pods)), ingresses=(ingress,))


def traced(lab: Lab, client: str, server: str) -> Report:
    """One connection of our own."""
    inventory = owned(lab.inventory)
    world = look(inventory)
    found = names.taken_here(
        names.resolve_from(client, inventory), lambda pod: netns_of(world, pod.ips[0], pod) is not None
    )
    request = Request(
        client=found,
        server=names.resolve_to(server, inventory),
        inventory=inventory,
        send=1,
        protocol="tcp",
        wait=2.0 * patience(),
    )
    return run_trace(request, world)


@pytest.mark.parametrize(
    ("client", "server", "pods", "note"),
    [
        pytest.param(
            "shop/deploy/web",
            "shop/ep/payments",
            ("shop/web-1", "shop/payments"),
            "deploy/shop/web has 3 running pods, taken: shop/po/web-1; others: shop/po/web-2, shop/po/web-3",
            id="one-of-a-deployment-to-endpoints",
        ),
        pytest.param(
            "shop/cart",
            "deploy/web:8080",
            ("shop/cart", "shop/web-1"),
            "deploy/shop/web stands for 3 pods: --send takes the first, 10.244.1.11",
            id="to-a-deployment",
        ),
        pytest.param(
            "10-244-1-10.shop.pod.cluster.local",
            "web-2.web.shop.svc.cluster.local:8080",
            ("shop/cart", "shop/web-2"),
            "",
            id="dns-names",
        ),
    ],
)
def test_what_a_name_stands_for_is_traced(lab: Lab, client: str, server: str, pods: tuple[str, str], note: str) -> None:
    report = traced(lab, client, server)
    assert report.verdict is Verdict.DELIVERED
    assert (report.flow.client.pod, report.flow.server.pod) == pods
    assert not note or note in report.notes


def test_an_ingress_is_traced_through_its_service(lab: Lab) -> None:
    report = traced(lab, "shop/cart", "ing/site")
    assert report.verdict is Verdict.DELIVERED
    assert report.flow.server.service == "shop/web"
    assert report.flow.backend is not None


class Talkative(Nobody):
    """A program in shop/cart that connects to a pod, to a Service and to the world, in that order."""

    def __init__(self, lab: Lab) -> None:
        self._path = lab.netns_of("shop/cart").path

    def ready(self) -> None:
        threading.Thread(target=self._connect, daemon=True).start()

    def _connect(self) -> None:
        for address, port in (("10.244.1.11", 8080), ("10.96.0.80", 80), (OUTSIDE, 443)):
            with entered(self._path):
                sock = socket.socket()
            with sock:
                sock.settimeout(0.5)
                sock.connect_ex((address, port))


def test_of_a_clients_traffic_only_what_goes_outside_is_external(lab: Lab) -> None:
    request = Request(
        client=names.resolve_from("shop/cart", lab.inventory),
        server=names.resolve_to("external", lab.inventory),
        inventory=lab.inventory,
        timeout=3.0 * patience(),
    )
    report = run_trace(request, look(lab.inventory), Talkative(lab))
    assert report.connections == 1
    assert (report.flow.server.ip, report.flow.server.port) == (OUTSIDE, 443)
