"""Every scenario of the lab, with both back ends: real packets in, the right finding out, and nothing else.

This is the suite that also runs in the virtual machines. A healthy scenario must give no finding at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from k8snet.lab import topology
from k8snet.lab.lab import BACKENDS, EVERY_BACKEND, TOPOLOGIES, Lab
from k8snet.lab.needs import IPVS, missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import SCENARIOS, Scenario, differences
from k8snet.render.text import render
from k8snet.report import Report, Verdict
from live.conftest import patience
from live.pages import page_of, said

BROKEN = [s for s in SCENARIOS if s.expected.code is not None]
HEALTHY = [s for s in SCENARIOS if s.expected.code is None]


def with_backends(scenarios: list[Scenario]) -> list[object]:
    """Each scenario with each back end that it makes sense for."""
    return [pytest.param(s, b, id=f"{s.name}-{b}") for s in scenarios for b in s.backends or BACKENDS]


# What tests/matrix.py reads; a test hands in the outcome when there is one.
Tell = Callable[[str], None]


@pytest.fixture(autouse=True)
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tell:
    """Skip, with the reason, what this kernel cannot do at all; else how to note what came out."""
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    scenario = values.get("scenario")
    if isinstance(scenario, Scenario):
        record_property("scenario", scenario.name)
        record_property("backend", values["backend"] if "backend" in values else values["healthy_lab"][0])
        if why := missing(scenario.needs):
            pytest.skip(why)
    return lambda outcome: record_property("outcome", outcome)


# They say where, and leave the cause open.
GENERAL = {"KERNEL_DROP", "LEFT_NODE", "LAST_SEEN"}


def outcome(wrong: list[str], scenario: Scenario, report: Report) -> str:
    """`right`; `missing`, when nothing false is said but not enough; else `wrong`."""
    if not wrong:
        return "right"
    codes = {finding.code for finding in report.findings}
    return "missing" if scenario.expected.code is not None and codes <= GENERAL else "wrong"


def told(report: Report) -> str:
    """The whole report, for the message of a failing test."""
    return f"\n{render(report)}"


@pytest.mark.parametrize(("scenario", "backend"), with_backends(BROKEN))
def test_a_broken_lab_names_what_is_broken(scenario: Scenario, backend: str, tell: Tell) -> None:
    with Lab.up(backend, scenario.topology) as lab:
        scenario.break_it(lab)
        report = play(lab, scenario, patience=patience())
        wrong = differences(lab, scenario.expected, report)
        tell(outcome(wrong, scenario, report))
        assert not wrong, told(report)
    assert not report.lost, told(report)
    page = page_of(scenario.name)
    if page is not None and backend == (scenario.backends or BACKENDS)[0] and "K8SNET_VM" not in os.environ:
        assert said(render(report, 100)) == said(page), told(report)


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_changes_nothing_and_still_names_the_rule(backend: str) -> None:
    """Without a table of our own the rule is named by its counter, and the report says so."""
    scenario = next(s for s in SCENARIOS if s.name == "forward-rule-drop")
    with Lab.up(backend=backend) as lab:
        scenario.break_it(lab)
        before = lab.run_in("node-1", ["nft", "list", "ruleset"]).stdout
        report = play(lab, scenario, read_only=True, patience=patience())
        assert lab.run_in("node-1", ["nft", "list", "tables"]).stdout.count("k8snet") == 0
    assert "k8snet" not in before
    assert report.verdict is Verdict.DROPPED, told(report)
    (finding,) = report.findings
    assert finding.code == "RULE_DROP", told(report)
    assert finding.where.rule == scenario.expected.rule
    assert finding.named_by == "counters"
    assert "read-only" in report.rule_naming


@pytest.mark.parametrize(("scenario", "backend"), with_backends([s for s in HEALTHY if s.steps]))
def test_a_healthy_flow_in_a_changed_lab_gives_no_finding(scenario: Scenario, backend: str, tell: Tell) -> None:
    with Lab.up(backend, scenario.topology) as lab:
        scenario.break_it(lab)
        is_healthy(lab, scenario, play(lab, scenario, patience=patience()), tell)


# Last in the file: there can be one lab at a time, and this one stays up while its parameters do not change.
@pytest.fixture(scope="module")
def healthy_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One unbroken lab for all healthy scenarios of a back end and topology."""
    backend, wires = request.param
    if why := missing((*topology.TOPOLOGIES[wires].needs, *({backend} & {IPVS}))):
        pytest.skip(why)
    with Lab.up(*request.param) as lab:
        yield lab


@pytest.mark.parametrize(
    ("healthy_lab", "scenario"),
    [
        pytest.param((b, t), s, id=f"{s.name}-{b}")
        for t in TOPOLOGIES
        for b in EVERY_BACKEND
        for s in HEALTHY
        if s.topology == t and b in (s.backends or BACKENDS) and not s.steps
    ],
    indirect=["healthy_lab"],
)
def test_a_healthy_flow_gives_no_finding(healthy_lab: Lab, scenario: Scenario, tell: Tell) -> None:
    is_healthy(healthy_lab, scenario, play(healthy_lab, scenario, patience=patience()), tell)


def is_healthy(lab: Lab, scenario: Scenario, report: Report, tell: Tell) -> None:
    """Everything was answered, nothing was found, and both ways are drawn from end to end."""
    wrong = differences(lab, scenario.expected, report)
    tell(outcome(wrong, scenario, report))
    assert not wrong, told(report)
    assert report.connections == scenario.traffic.connections, told(report)
    assert not report.lost, told(report)
    for path in report.paths:
        assert path.ended == "delivered", told(report)
    assert report.expected is not None, told(report)
    assert report.expected.difference is None, told(report)
    if report.flow.server.service:
        steps = {path.direction: [h.nat for h in path.hops if h.nat] for path in report.paths}
        assert any("DNAT to" in step for step in steps["request"]), told(report)
        assert any("DNAT undone" in step for step in steps["reply"]), told(report)
