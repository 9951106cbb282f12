"""What a scenario is: how the lab is broken, with which traffic, and what a trace must find.

Data, read by the demo, the tutorial and the live tests alike. A step is a command as one would type it in the netns
it names (iptables is that of the lab's back end), so a break can be repeated by hand:
`ip netns exec k8snet-node-1 iptables -P FORWARD DROP`. Nothing is ever undone: the next scenario gets a new lab.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from k8snet.cluster.inventory import NetworkPolicy
from k8snet.kernel.netns import entered
from k8snet.lab.namespaces import sysctl
from k8snet.lab.resolvers import Lookup
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab
    from k8snet.report import Finding, Report


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the client sends."""

    target: str  # as --to takes it
    protocol: Literal["tcp", "udp", "sctp", "icmp"] | None = "tcp"
    connections: int = 1
    lookup: Lookup | None = None  # instead of connections of ours; then `connections` are the queries to wait for
    dns: str | None = None  # ask for this name
    client: str = "shop/cart"  # as --from takes it
    size: int = 0  # bytes that each connection sends


@dataclass(frozen=True, slots=True)
class Expected:
    """What the report must say. None: the report must not say (`code`), or it does not matter (all others)."""

    verdict: Verdict = Verdict.DELIVERED
    code: str | None = None
    node: str | None = None  # the netns where it happened is this node's ...
    pod: str | None = None  # ... or this pod's
    device: str | None = None
    hook: str | None = None
    chain: str | None = None
    rule: str | None = None  # as iptables-save prints it; a chain's policy is no rule
    direction: Literal["request", "reply"] | None = None
    beside: tuple[str, ...] = ()  # codes of lower severity that stand beside it
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # back end -> fields that differ with it

    def with_backend(self, backend: str) -> Expected:
        """What is expected in a lab of this back end."""
        return replace(self, **self.instead.get(backend, {}))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to break the lab, or none."""

    name: str
    about: str
    traffic: Traffic
    expected: Expected = field(default_factory=Expected)
    steps: tuple[tuple[str, str], ...] = ()  # (netns, command)
    topology: str = "bridge"
    backends: tuple[str, ...] | None = None  # those of the lab that it makes sense for; None: all
    instead: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # steps with these back ends
    needs: tuple[str, ...] = ()  # of the machine: see `k8snet.lab.needs`
    read_only: bool = False  # trace with --read-only
    policies: tuple[NetworkPolicy, ...] = ()  # the objects behind what the steps load
    company: Callable[[Lab], AbstractContextManager[object]] | None = None  # what else goes on while it is traced

    def steps_with(self, backend: str) -> tuple[tuple[str, str], ...]:
        """What to do in a lab of this back end."""
        return self.instead.get(backend, self.steps)

    def break_it(self, lab: Lab) -> None:
        """Do all steps; raises K8snetError when one fails."""
        for name, command in self.steps_with(lab.backend):
            words = shlex.split(command)
            if words[0] == "sysctl":  # procps is not everywhere
                with entered(lab.netns_of(name).path):
                    sysctl(*words[1].split("="))
            else:
                lab.run_in(name, words, check=True)


def differences(lab: Lab, expected: Expected, report: Report) -> list[str]:
    """What `report` says otherwise than expected, a line each; empty when it is as it must be. The lab must be up."""
    expected = expected.with_backend(lab.backend)
    wrong = []
    if report.verdict is not expected.verdict:
        wrong.append(f"verdict: expected {expected.verdict.value}, found {report.verdict.value}")
    if expected.code is None:
        return [*wrong, *(f"a finding where there is nothing to find: {f.code}" for f in report.findings)]
    codes = [finding.code for finding in report.findings]
    if codes != [expected.code, *expected.beside]:
        wanted = ", ".join((expected.code, *expected.beside))
        return [*wrong, f"finding: expected {wanted}, found {', '.join(codes) or 'none'}"]
    return [*wrong, *_misplaced(lab, expected, report.findings[0])]


def _misplaced(lab: Lab, expected: Expected, finding: Finding) -> list[str]:
    where = finding.where
    home = expected.node or expected.pod
    pairs = [
        ("netns", lab.netns_of(home).inum if home else None, where.netns),
        *((name, getattr(expected, name), getattr(where, name)) for name in ("node", "pod", "device", "hook", "chain")),
        ("rule", expected.rule, where.rule),
        ("direction", expected.direction, finding.direction),
    ]
    return [f"{name}: expected {want}, found {got}" for name, want, got in pairs if want is not None and got != want]
