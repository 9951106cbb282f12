"""Trace a scenario's traffic through the broken lab, and hold what came out against what had to come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.lab.scenarios import Expected, Scenario
from k8snet.report import Finding, Report, Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab
    from k8snet.trace import Watcher

# A lost SYN is sent again after one second: enough for a second look, and no longer than a person wants to wait.
WAIT = 2.0


def play(
    lab: Lab,
    scenario: Scenario,
    *,
    watcher: Watcher | None = None,
    read_only: bool = False,
    tiers: tuple[int, ...] = (1, 2),
    patience: float = 1.0,
) -> Report:
    """Trace the scenario's traffic in a lab that is broken already. `patience` stretches waits on slow machines."""
    from k8snet.cluster import names
    from k8snet.cluster.interfaces import look
    from k8snet.trace import Request, run_trace

    traffic = scenario.traffic
    request = Request(
        client=names.resolve_from(traffic.client, lab.inventory),
        server=names.resolve_to(traffic.target, lab.inventory),
        inventory=lab.inventory,
        protocol=traffic.protocol,
        send=traffic.connections,
        dns=traffic.dns,
        wait=WAIT * patience,
        read_only=read_only,
        tiers=tiers,
    )
    return run_trace(request, look(lab.inventory), watcher)


def differences(report: Report, expected: Expected) -> list[str]:
    """Where the report is not what the scenario expects, one sentence each; empty: it is as expected."""
    wrong = []
    if report.verdict is not expected.verdict:
        wrong.append(f"verdict is {report.verdict}, expected {expected.verdict}")
    codes = [f.code for f in report.findings]
    if codes != ([expected.code] if expected.code else []):
        wrong.append(f"findings are {codes or 'none'}, expected {expected.code or 'none'}")
    elif report.findings:
        wrong += _misplaced(report.findings[0], expected)
    if expected.verdict is Verdict.DELIVERED and report.answered != report.connections:
        wrong.append(f"{report.answered} of {report.connections} connections answered")
    return wrong


def _misplaced(finding: Finding, expected: Expected) -> list[str]:
    where = finding.where
    pairs = (
        ("node", where.node if expected.pod is None else None, expected.node),
        ("pod", where.pod, expected.pod),
        ("device", where.device, expected.device),
        ("hook", where.hook, expected.hook),
        ("chain", where.chain, expected.chain),
        ("rule", where.rule, expected.rule),
        ("direction", finding.direction, expected.direction),
    )
    wrong = [f"{name} is {found!r}, expected {wanted!r}" for name, found, wanted in pairs if wanted and found != wanted]
    if expected.node and where.pod:
        wrong.append(f"it is in pod {where.pod}, expected the node's own netns")
    return wrong
