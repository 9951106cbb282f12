"""What the catalogue is made of: an Entry for each finding, and the Match that its function gives for a flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from k8snet.findings.case import Case
from k8snet.flow.model import Direction
from k8snet.report import Place, Severity, Verdict


@dataclass(frozen=True, slots=True)
class Match:
    """What an entry says of one flow; the fields are those of `k8snet.report.Finding`."""

    title: str
    where: Place
    why: str
    evidence: tuple[str, ...]
    fix: tuple[str, ...]
    direction: Direction | None = None
    named_by: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One finding of the catalogue."""

    code: str
    severity: Severity
    about: str  # when it is given, in one sentence
    match: Callable[[Case], Match | None]
    verdict: Verdict | None = None  # how such a flow ends, where its last event is somebody else's business
    by_absence: bool = False  # it rests on what was *not* seen: withheld while events are being lost
    silent: bool = False  # it can explain that there was no packet at all
