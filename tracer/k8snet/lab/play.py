"""Trace a scenario's traffic through the lab, as `k8snet trace --send` would."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.lab.scenarios import Scenario
from k8snet.report import Report

if TYPE_CHECKING:
    from k8snet.judge import Observation
    from k8snet.lab.lab import Lab
    from k8snet.report import Hop
    from k8snet.trace import Watcher

# A look-up that does not come to so many queries is given up.
LOOKUP = 8.0
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
    from k8snet.judge import judge

    return judge(seen_in(lab, scenario, watcher=watcher, read_only=read_only, tiers=tiers, patience=patience))


def seen_in(
    lab: Lab,
    scenario: Scenario,
    *,
    watcher: Watcher | None = None,
    read_only: bool = False,
    tiers: tuple[int, ...] = (1, 2),
    patience: float = 1.0,
    record: Path | None = None,
) -> Observation:
    """The same without the judgement; `record`: a file to keep it in."""
    from k8snet.cluster import names
    from k8snet.cluster.interfaces import look
    from k8snet.lab.resolvers import waiting
    from k8snet.record.recorder import recorder
    from k8snet.trace import Fixed, Nobody, Request, observe

    traffic, inventory = scenario.traffic, replace(lab.inventory, policies=scenario.policies)
    request = Request(
        client=names.resolve_from(traffic.client, lab.inventory),
        server=names.resolve_to(traffic.target, lab.inventory),
        inventory=inventory,
        protocol=traffic.protocol,
        send=0 if traffic.lookup else traffic.connections,
        count=traffic.connections if traffic.lookup else None,
        timeout=LOOKUP * patience if traffic.lookup else None,
        dns=traffic.dns,
        size=traffic.size,
        wait=WAIT * patience,
        read_only=read_only or scenario.read_only,
        tiers=tiers,
    )
    with ExitStack() as stack:
        if scenario.company:
            stack.enter_context(scenario.company(lab))
        if traffic.lookup:
            watcher = _Cue(watcher or Nobody(), stack.enter_context(waiting(lab, traffic.client, traffic.lookup)))
        kept = stack.enter_context(recorder(record, request)) if record is not None else None
        seen = observe(request, look(lab.inventory), watcher or Nobody(), Fixed(inventory), listener=kept)
        return kept.complete(seen, inventory) if kept is not None else seen


class _Cue:
    """A watcher that sets somebody off when the probes are attached, and hands everything on."""

    def __init__(self, watcher: Watcher, go: Callable[[], None]) -> None:
        self._watcher = watcher
        self._go = go

    def ready(self) -> None:
        """Now."""
        self._watcher.ready()
        self._go()

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """Handed on."""
        self._watcher.hop(direction, packet, hop)

    def note(self, text: str) -> None:
        """Handed on."""
        self._watcher.note(text)

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """Handed on."""
        self._watcher.counts(connections, answered, lost)
