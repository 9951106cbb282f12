"""Trace a scenario's traffic through the lab, as `k8snet trace --send` would."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from k8snet.lab.scenarios import Scenario
from k8snet.report import Report

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
        size=traffic.size,
        wait=WAIT * patience,
        read_only=read_only or scenario.read_only,
        tiers=tiers,
    )
    with scenario.company(lab) if scenario.company else nullcontext():
        return run_trace(request, look(lab.inventory), watcher)
