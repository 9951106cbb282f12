"""The functions of tier 2 add detail and decide nothing: with and without them a broken lab gives the same finding.

Only where functions can be traced at all: in the virtual machines, and not on a kernel that is locked down.
"""

from __future__ import annotations

import pytest

from k8snet.kernel.loader import Filter, Tracer
from k8snet.lab.cluster import PODS
from k8snet.lab.lab import BACKENDS, Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import SCENARIOS, Scenario
from k8snet.render.text import render
from k8snet.report import Report
from live.conftest import patience

BROKEN = [s for s in SCENARIOS if s.expected.code is not None]


@pytest.fixture(scope="module", autouse=True)
def _functions() -> None:
    """Skip all where not one function can be traced."""
    with Tracer(Filter(clients=PODS[0].ips), tiers=(1, 2)) as tracer:
        refused = [s for s in tracer.start() if s.probe.tier == 2]
    if not any(status.attached for status in refused):
        pytest.skip(f"no tier 2 here: {refused[0].why}")


def verdict(report: Report) -> object:
    """What must not depend on the tier. The table may: it is what tier 2 adds where no rule was named."""
    places = [(f.where.node, f.where.pod, f.where.device, f.where.hook, f.where.chain) for f in report.findings]
    return report.verdict, places, [(f.code, f.severity, f.direction, f.where.rule) for f in report.findings]


@pytest.mark.parametrize(
    ("scenario", "backend"),
    [pytest.param(s, b, id=f"{s.name}-{b}") for s in BROKEN for b in s.backends or BACKENDS],
)
def test_a_finding_does_not_depend_on_tier_2(scenario: Scenario, backend: str) -> None:
    if why := missing(scenario.needs):
        pytest.skip(why)
    reports = []
    for tiers in ((1,), (1, 2)):
        # A lab each: what a first connection leaves in it (routes, neighbours, conntrack) is no business of a second.
        with Lab.up(backend, scenario.topology) as lab:
            scenario.break_it(lab)
            reports.append(play(lab, scenario, tiers=tiers, patience=patience()))
    without, with_functions = reports
    assert verdict(without) == verdict(with_functions), f"\n{render(without)}\n{render(with_functions)}"
