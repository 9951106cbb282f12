"""Which endpoints a node sends clients to, and when it sends them to none: as kube-proxy's recorded rules have it."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from k8snet.cluster.file import inventory
from k8snet.cluster.inventory import Service
from k8snet.cluster.serving import Answer, Door, Fate, answer, door_of

DATA = Path(__file__).parents[1] / "data"
KNOWN = inventory([json.loads((DATA / "kube-api" / f"{kind}.json").read_text())
                   for kind in ("pods", "services", "endpointslices", "nodes")], "recorded")  # fmt: skip


def service(name: str) -> Service:
    return next(service for service in KNOWN.services if service.key == f"shop/{name}")


def said(name: str, node: str = "node-1", door: Door = Door.INSIDE) -> Answer:
    found = service(name)
    return answer(found, found.ports[0], node, door)


def test_every_ready_endpoint_serves_every_node() -> None:
    assert said("web").fate is Fate.SERVED
    assert len(said("web").endpoints) == 3
    assert said("web", "node-3") == said("web")


def test_without_endpoints_the_client_is_refused_at_every_door() -> None:
    assert {said("empty", door=door) for door in Door} == {Answer(Fate.REJECTED)}


def test_endpoints_on_their_way_out_serve_while_no_other_does() -> None:
    assert [(end.ready, end.terminating) for end in said("draining").endpoints] == [(False, True)]


@pytest.mark.parametrize(
    ("name", "door", "expected"),
    [
        pytest.param("int-local", Door.INSIDE, Answer(Fate.DROPPED, policy="internalTrafficPolicy"), id="internal"),
        pytest.param("np-local", Door.OUTSIDE, Answer(Fate.DROPPED, policy="externalTrafficPolicy"), id="external"),
    ],
)
def test_a_local_policy_without_a_local_endpoint_drops(name: str, door: Door, expected: Answer) -> None:
    """On node-1; kube-proxy's recorded rules there say "has no local endpoints" of these two and of no other."""
    assert said(name, "node-1", door) == expected
    assert said(name, "node-2", door).fate is Fate.SERVED
    rules = (DATA / "kube-proxy" / "iptables-nft-save.txt").read_text()
    assert f"shop/{name}:http has no local endpoints" in rules
    assert "shop/web:http has no" not in rules


def test_ipvs_has_no_rule_to_drop_it_and_refuses_at_the_clusterip_alone() -> None:
    """pkg/proxy/ipvs/proxier.go, syncEndpoint."""
    inner, outer = service("int-local"), service("np-local")
    assert answer(inner, inner.ports[0], "node-1", is_ipvs=True) == Answer(
        Fate.REJECTED, policy="internalTrafficPolicy"
    )
    assert answer(outer, outer.ports[0], "node-1", Door.OUTSIDE, is_ipvs=True).fate is Fate.SERVED


@pytest.mark.parametrize(
    ("address", "within", "expected"),
    [
        pytest.param("10.96.0.84", False, Door.INSIDE, id="ClusterIP"),
        pytest.param("10.9.9.2", True, Door.OUTSIDE_FROM_WITHIN, id="a-pod-at-a-node-port"),
        pytest.param("10.9.9.2", False, Door.OUTSIDE, id="another-machine-at-a-node-port"),
    ],
)
def test_the_door_depends_on_the_address_and_on_who_asks(address: str, within: bool, expected: Door) -> None:
    assert door_of(service("np-local"), ip_address(address), within=within) is expected


@pytest.mark.parametrize("door", [Door.INSIDE, Door.OUTSIDE_FROM_WITHIN])
def test_the_external_policy_does_not_bind_clients_within(door: Door) -> None:
    assert said("np-local", "node-1", door).fate is Fate.SERVED
