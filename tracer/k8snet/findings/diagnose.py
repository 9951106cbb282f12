"""From a settled flow to its findings, and from the findings of many flows to one list.

A loop over the catalogue and nothing else: the first FAIL (or UNKNOWN) explains the flow, entries of lower severity
may stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from k8snet.findings.case import Case
from k8snet.findings.catalogue import FINDINGS
from k8snet.findings.entry import Entry, Match
from k8snet.report import Finding, Severity

EXPLAINS = (Severity.FAIL, Severity.UNKNOWN)
_URGENCY = (Severity.FAIL, Severity.UNKNOWN, Severity.WARN, Severity.INFO, Severity.PASS)


def diagnose(case: Case) -> list[Finding]:
    """What is wrong with this flow; an empty list for a healthy one."""
    found: list[Finding] = []
    explained = False
    for entry in FINDINGS:
        if explained and entry.severity in EXPLAINS:
            continue
        if entry.by_absence and case.around.lost:
            continue
        if not case.flow.packets and not entry.silent:
            continue
        match = entry.match(case)
        if match is not None:
            found.append(_finding(entry, match))
            explained = explained or entry.severity in EXPLAINS
    return found


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """The same finding of several connections becomes one with a count; FAIL first, then the more frequent."""
    merged: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        # A rule is one cause, by whichever device the packets came.
        where = replace(finding.where, device=None) if finding.where.rule else finding.where
        key = (finding.code, where, finding.direction)
        seen = merged.get(key)
        merged[key] = replace(seen, times=seen.times + finding.times) if seen else finding
    return sorted(merged.values(), key=lambda f: (_URGENCY.index(f.severity), -f.times))


def _finding(entry: Entry, match: Match) -> Finding:
    return Finding(
        code=entry.code,
        severity=entry.severity,
        title=match.title,
        where=match.where,
        why=match.why,
        evidence=match.evidence,
        fix=match.fix,
        direction=match.direction.value if match.direction else None,
        named_by=match.named_by,
        also=match.also,
    )
