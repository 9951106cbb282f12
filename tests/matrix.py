"""How right the findings are: scenarios x kernels x back ends, from the JUnit files of tests/live/test_scenarios.py.

In: a directory with JUnit files, one or more for each kernel; of two that have the same scenario the one with the later
name counts. Out: a table on stdout, and the same as a page. Each scenario's test records what came out (`outcome`); a
scenario that a kernel cannot play is skipped there, and counts for nothing. Exit code 1 when a finding is wrong or
missing, or when there is nothing to count.
"""

from __future__ import annotations

import argparse
import sys
import time
import xml.etree.ElementTree as ET  # our own files, written by pytest a moment ago
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from k8snet.lab.lab import BACKENDS
from k8snet.lab.scenarios import SCENARIOS, Scenario

# Each outcome with its mark in the table.
MARKS = {"right": "✓", "wrong": "✗", "missing": "?", "error": "!", "skipped": "·"}
COUNTED = ("right", "wrong", "missing")


@dataclass
class Kernel:
    """What came out on one kernel, by scenario and back end."""

    release: str
    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)


def read(file: Path) -> Kernel | None:
    """The outcomes in one JUnit file; None when it is no such file."""
    try:
        root = ET.parse(file).getroot()  # noqa: S314 - written by our own pytest
    except ET.ParseError:
        return None
    suite = {p.get("name"): p.get("value") for p in root.iterfind(".//testsuite/properties/property")}
    kernel = Kernel(suite.get("kernel") or "")
    for case in root.iter("testcase"):
        said = {p.get("name"): p.get("value") or "" for p in case.iterfind("properties/property")}
        if "scenario" not in said or "backend" not in said:
            continue
        broke = case.find("failure") is not None or case.find("error") is not None
        outcome = said.get("outcome") or ("skipped" if case.find("skipped") is not None else "error")
        # A test may want more than the right finding; then the matrix is not the place to say so.
        if broke and outcome == "right":
            outcome = "error"
        kernel.outcomes[said["scenario"], said["backend"]] = outcome
    return kernel if kernel.release and kernel.outcomes else None


def page(kernels: Sequence[Kernel], day: str) -> str:
    """The whole page, in Markdown."""
    backends = dict.fromkeys((*BACKENDS, *(backend for kernel in kernels for _, backend in kernel.outcomes)))
    columns = [(k, b) for k in kernels for b in backends if any(backend == b for _, backend in k.outcomes)]
    lines = [
        "# How right the findings are",
        "",
        "Scenarios of the lab, broken, traced and judged, by back end and kernel. `make matrix` plays all of them "
        "everywhere, which takes hours; `make test` plays all on the running one, and every other one on one of the "
        f"others. {day}.",
        "",
        "- ✓ right: the finding that must come out came out, at the right place, and no other; a healthy flow had none",
        "- ✗ wrong: another finding, or the right one at the wrong place, or one where there is nothing to find",
        "- ? missing: none, or one that leaves the cause open (KERNEL_DROP, LEFT_NODE, LAST_SEEN)",
        "- · this kernel or machine cannot play it; empty: it makes no sense for this back end, or was not played",
        "- ! the test itself failed",
        "",
        "## Totals",
        "",
        "| kernel | back end | right | wrong | missing | failed | cannot be played |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    total: Counter[str] = Counter()
    for kernel, backend in columns:
        count = Counter(outcome for (_, b), outcome in kernel.outcomes.items() if b == backend)
        total += count
        lines.append(f"| {kernel.release} | {backend} | {_numbers(count)} |")
    lines.append(f"| **all** | | {_numbers(total)} |")
    judged = sum(total[o] for o in COUNTED)
    lines += ["", f"{total['right']} of {judged} findings are right ({_percent(total['right'], judged)}).", ""]
    for topology in dict.fromkeys(s.topology for s in SCENARIOS):
        count = Counter(
            outcome
            for kernel in kernels
            for (name, _), outcome in kernel.outcomes.items()
            if name in {s.name for s in SCENARIOS if s.topology == topology}
        )
        judged = sum(count[o] for o in COUNTED)
        lines.append(f"- {topology}: {count['right']} of {judged} right ({_percent(count['right'], judged)})")
    heads = [f"{k.release.split('-')[0].split('+')[0]} {_short(b)}" for k, b in columns]
    lines += ["", "## Scenarios", "", f"| scenario | topology | must come out | {' | '.join(heads)} |"]
    lines.append(f"|---|---|---|{'---|' * len(heads)}")
    lines += [_row(scenario, columns) for scenario in SCENARIOS]
    return "\n".join(lines) + "\n"


def _short(backend: str) -> str:
    return {"iptables-nft": "ipt-nft", "iptables-legacy": "legacy", "nftables": "nft"}.get(backend, backend)


def _numbers(count: Counter[str]) -> str:
    return " | ".join(str(count[o]) for o in (*COUNTED, "error", "skipped"))


def _percent(part: int, whole: int) -> str:
    # Never rounded up to a hundred.
    return f"{int(1000 * part / whole) / 10:g} %" if whole else "nothing counted"


def _row(scenario: Scenario, columns: Iterable[tuple[Kernel, str]]) -> str:
    marks = [MARKS.get(k.outcomes.get((scenario.name, b), ""), "") for k, b in columns]
    code = scenario.expected.code
    wanted = f"[{code}](findings/{code}.md)" if code else "nothing"
    return f"| `{scenario.name}` | {scenario.topology} | {wanted} | {' | '.join(marks)} |"


def main() -> int:
    """0 if every finding is right."""
    parser = argparse.ArgumentParser(description="Print how many findings are right, wrong and missing.")
    parser.add_argument("results", type=Path, help="directory with a JUnit file for each kernel")
    parser.add_argument("--page", type=Path, help="write it here too")
    args = parser.parse_args()
    found: dict[str, Kernel] = {}
    for file in sorted(args.results.glob("*.xml")):
        if kernel := read(file):
            found.setdefault(kernel.release, Kernel(kernel.release)).outcomes.update(kernel.outcomes)
    kernels = list(found.values())
    kernels.sort(key=lambda k: [int(part) if part.isdigit() else 0 for part in k.release.split("-")[0].split(".")])
    if not kernels:
        print(f"matrix: {args.results} has no results of scenarios", file=sys.stderr)
        return 1
    text = page(kernels, time.strftime("%Y-%m-%d"))
    print(text)
    if args.page:
        args.page.write_text(text)
    outcomes = Counter(outcome for kernel in kernels for outcome in kernel.outcomes.values())
    return 0 if outcomes["right"] and not (outcomes["wrong"] or outcomes["missing"] or outcomes["error"]) else 1


if __name__ == "__main__":
    sys.exit(main())
