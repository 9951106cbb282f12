"""All scenarios of the lab, a module for each family."""

from __future__ import annotations

from typing import Final

from k8snet.errors import K8snetError
from k8snet.lab.scenarios import (
    application,
    device,
    dns,
    healthy,
    ipv6,
    ipvs,
    link,
    mtu,
    netfilter,
    policy,
    races,
    routing,
    service,
    topologies,
    traffic,
    tunnel,
)
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic, differences

__all__ = ["SCENARIOS", "Expected", "Scenario", "Traffic", "by_name", "differences"]

SCENARIOS: Final = (
    *healthy.SCENARIOS,
    *netfilter.SCENARIOS,
    *policy.SCENARIOS,
    *service.SCENARIOS,
    *routing.SCENARIOS,
    *link.SCENARIOS,
    *application.SCENARIOS,
    *device.SCENARIOS,
    *traffic.SCENARIOS,
    *races.SCENARIOS,
    *dns.SCENARIOS,
    *mtu.SCENARIOS,
    *tunnel.SCENARIOS,
    *topologies.SCENARIOS,
    *ipv6.SCENARIOS,
    *ipvs.SCENARIOS,
)


def by_name(name: str) -> Scenario:
    """The scenario called `name`; raises K8snetError."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise K8snetError(f"there is no scenario {name!r}", "see: k8snet lab list")
