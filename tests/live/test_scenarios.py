"""Every scenario of the lab, with both back ends: real packets in, the right finding out, and nothing else.

This is the suite that also runs in the virtual machines. A healthy scenario must give no finding at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from k8snet.lab.lab import BACKENDS, TOPOLOGIES, Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import SCENARIOS, Scenario, differences
from k8snet.report import Report, Verdict
from live.conftest import patience

BROKEN = [s for s in SCENARIOS if s.expected.code is not None]
HEALTHY = [s for s in SCENARIOS if s.expected.code is None]


def with_backends(scenarios: list[Scenario]) -> list[object]:
    """Each scenario with each back end that it makes sense for."""
    return [pytest.param(s, b, id=f"{s.name}-{b}") for s in scenarios for b in s.backends or BACKENDS]


@pytest.fixture(autouse=True)
def _able(request: pytest.FixtureRequest) -> None:
    """Skip, with the reason, what this kernel cannot do at all."""
    scenario = request.getfixturevalue("scenario") if "scenario" in request.fixturenames else None
    if isinstance(scenario, Scenario) and (why := missing(scenario.needs)):
        pytest.skip(why)


def told(report: Report) -> str:
    """The whole report, for the message of a failing test."""
    from k8snet.render.text import render

    return f"\n{render(report)}"


@pytest.mark.parametrize(("scenario", "backend"), with_backends(BROKEN))
def test_a_broken_lab_names_what_is_broken(scenario: Scenario, backend: str) -> None:
    with Lab.up(backend, scenario.topology) as lab:
        scenario.break_it(lab)
        report = play(lab, scenario, patience=patience())
        assert not differences(lab, scenario.expected, report), told(report)
    assert not report.lost, told(report)


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_verdict_does_not_depend_on_tier_2(backend: str) -> None:
    scenario = next(s for s in SCENARIOS if s.name == "forward-policy-drop")
    with Lab.up(backend=backend) as lab:
        scenario.break_it(lab)
        reports = [play(lab, scenario, tiers=tiers, patience=patience()) for tiers in ((1,), (1, 2))]
    first, second = ([(f.code, f.where.hook, f.where.rule) for f in r.findings] for r in reports)
    assert first == second


# Last in the file: there can be one lab at a time, and this one stays up while its parameters do not change.
@pytest.fixture(scope="module")
def healthy_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One unbroken lab for all healthy scenarios of a back end and topology."""
    with Lab.up(*request.param) as lab:
        yield lab


@pytest.mark.parametrize(
    ("healthy_lab", "scenario"),
    [
        pytest.param((b, t), s, id=f"{s.name}-{b}")
        for t in TOPOLOGIES
        for b in BACKENDS
        for s in HEALTHY
        if s.topology == t and b in (s.backends or BACKENDS)
    ],
    indirect=["healthy_lab"],
)
def test_a_healthy_flow_gives_no_finding(healthy_lab: Lab, scenario: Scenario) -> None:
    report = play(healthy_lab, scenario, patience=patience())
    assert not differences(healthy_lab, scenario.expected, report), told(report)
    assert report.connections == scenario.traffic.connections, told(report)
    assert not report.lost, told(report)
    for path in report.paths:
        assert path.ended == "delivered", told(report)
    if report.flow.server.service:
        steps = {path.direction: [h.nat for h in path.hops if h.nat] for path in report.paths}
        assert any("DNAT to" in step for step in steps["request"]), told(report)
        assert any("DNAT undone" in step for step in steps["reply"]), told(report)
