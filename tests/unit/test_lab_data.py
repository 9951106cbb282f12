"""What the lab is made of, without building it: its objects, its scenarios, its DNS answers."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cli import lab as command
from k8snet.cluster import names
from k8snet.cluster.file import inventory
from k8snet.findings.catalogue import FINDINGS
from k8snet.findings.diagnose import EXPLAINS
from k8snet.lab.cluster import INVENTORY, objects
from k8snet.lab.lab import BACKENDS, EVERY_BACKEND, TOPOLOGIES
from k8snet.lab.scenarios import SCENARIOS, Scenario
from k8snet.lab.servers import dns_answer
from k8snet.report import Severity, Verdict

ZONE = {"web.shop.svc.cluster.local": IPv4Address("10.96.0.80")}


def test_the_lab_as_kubectl_prints_it_is_the_lab() -> None:
    assert inventory([objects(INVENTORY)], "kubectl") == INVENTORY


def test_the_command_line_offers_what_the_lab_has() -> None:
    assert command.BACKENDS == EVERY_BACKEND
    assert command.TOPOLOGIES == TOPOLOGIES


def test_scenarios_have_names_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_is_possible_in_the_lab(scenario: Scenario) -> None:
    target = names.resolve_to(scenario.traffic.target, INVENTORY, "default")
    assert names.resolve_from(scenario.traffic.client, INVENTORY, "default").addresses
    assert target.addresses
    expected = scenario.expected
    severity = next((entry.severity for entry in FINDINGS if entry.code == expected.code), Severity.PASS)
    assert (severity not in EXPLAINS) == (expected.verdict is Verdict.DELIVERED)
    assert expected.node in (None, *(node.name for node in INVENTORY.nodes))
    assert expected.pod in (None, *(pod.key for pod in INVENTORY.pods))
    assert expected.code is None or expected.node or expected.pod, "a finding has a place"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_what_is_otherwise_with_a_back_end_is_of_one_that_the_scenario_is_played_with(scenario: Scenario) -> None:
    possible = scenario.backends or BACKENDS
    assert set(scenario.instead) | set(scenario.expected.instead) <= set(possible)
    for backend in possible:
        expected = scenario.expected.with_backend(backend)
        assert expected.code == scenario.expected.code, "a page, and the table of findings, know a scenario by its code"
        assert bool(scenario.steps_with(backend)) == bool(scenario.steps)


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "address"),
    [
        pytest.param("web.shop.svc.cluster.local", "A", 0, "10.96.0.80", id="known"),
        pytest.param("WEB.shop.SVC.cluster.local", "A", 0, "10.96.0.80", id="any-case"),
        pytest.param("web.shop.svc.cluster.local", "AAAA", 0, None, id="no-such-type"),
        pytest.param("nobody.example", "A", 3, None, id="nxdomain"),
    ],
)
def test_dns_answers_as_another_implementation_reads_them(
    name: str, kind: str, rcode: int, address: str | None
) -> None:
    from scapy.layers.dns import DNS, DNSQR

    query = DNS(id=4711, rd=1, qd=DNSQR(qname=name, qtype=kind))
    answer = dns_answer(bytes(query), ZONE)
    assert answer is not None
    reply = DNS(answer)
    assert (reply.id, reply.qr, reply.rd, reply.rcode) == (4711, 1, 1, rcode)
    assert reply.qd[0].qname.decode() == f"{name}."
    assert [record.rdata for record in reply.an or []] == ([address] if address else [])


@given(st.binary(max_size=600))
def test_dns_never_stumbles(query: bytes) -> None:
    answer = dns_answer(query, ZONE)
    assert answer is None or answer[:2] == query[:2]


def test_dns_does_not_answer_an_answer() -> None:
    from scapy.layers.dns import DNS, DNSQR

    assert dns_answer(bytes(DNS(id=1, qr=1, qd=DNSQR(qname="a.example"))), ZONE) is None
