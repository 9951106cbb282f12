"""`k8snet check`: what this kernel allows, and what the operator loses by what it does not.

In: `Abilities` of k8snet.kernel.abilities. Out: two tables in kubectl's manner, or a CheckReport document. It really
loads and attaches each probe, with a filter that no packet matches, and takes it away again; nothing else is changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from k8snet.errors import Exit
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.kernel.abilities import Abilities, Fact
    from k8snet.kernel.loader import ProbeStatus


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `check` to the command line."""
    parser = commands.add_parser(
        "check",
        help="what this kernel allows: each probe, and what is lost without it",
        description="What this kernel allows: each probe, with why it can't be had and what is lost by it.",
        epilog="exit codes: 0 everything of tier 1 can be had, 1 a part of it, 2 nothing can be traced",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Look, print, and say by the exit code how much can be had."""
    from k8snet.kernel.abilities import Tracing, look

    found = look()
    print(json.dumps(document(found), indent=2) if args.output == "json" else text(found))
    return {Tracing.WHOLE: Exit.OK, Tracing.PARTIAL: Exit.PROBLEM, Tracing.IMPOSSIBLE: Exit.USAGE}[found.tracing]


def text(found: Abilities) -> str:
    """The tables, then what is missing with its price and its cure, then the verdict in one line."""
    parts = [_table(("CHECK", "OK", "DETAIL"), [(f.name, _yes(f.ok), f.detail) for f in found.facts])]
    if found.probes:
        rows = [(s.probe.name, str(s.probe.tier), _have(s), s.probe.about) for s in found.probes]
        spare = "\nspare: can be had, and is left out by default for what it costs each packet of the machine"
        parts.append(_table(("PROBE", "TIER", "OK", "ADDS"), rows) + spare * any(row[2] == "spare" for row in rows))
    parts += [_missing(found), _verdict(found)]
    return "\n\n".join(part for part in parts if part)


def document(found: Abilities) -> dict[str, Any]:
    """What was found, as a CheckReport."""
    return {
        "apiVersion": "k8snet.io/v1alpha1",
        "kind": "CheckReport",
        "kernel": found.kernel,
        "tracing": str(found.tracing),
        "checks": [_fact(fact) for fact in found.facts],
        "probes": [_probe(status) for status in found.probes],
    }


def _fact(fact: Fact) -> dict[str, Any]:
    lost = {} if fact.ok else {"loss": fact.loss, "fix": fact.fix}
    return {"name": fact.name, "ok": fact.ok, "required": fact.required, "detail": fact.detail} | lost


def _probe(status: ProbeStatus) -> dict[str, Any]:
    probe = status.probe
    lost = {} if status.attached else {"why": status.why, "loss": probe.loss}
    entry = {"name": probe.name, "tier": probe.tier, "ok": status.attached, "default": probe.default}
    return entry | {"needs": probe.needs, "adds": probe.about} | lost


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *([inert(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _yes(ok: bool) -> str:
    return "yes" if ok else "no"


def _have(status: ProbeStatus) -> str:
    # A probe that can be had and is not attached unless something asks for it, because of what it costs.
    return "no" if not status.attached else "yes" if status.probe.default else "spare"


def _missing(found: Abilities) -> str:
    """One line for each thing that can't be had, and below it what that means; equal reasons are told once."""
    lines = []
    for fact in found.facts:
        if not fact.ok:
            lines += [f"{fact.name}: {fact.detail}", f"  lost: {fact.loss}"]
            lines += [f"  fix:  {fact.fix}"] if fact.fix else []
    reasons: dict[str, list[ProbeStatus]] = {}
    for status in found.probes:
        if not status.attached:
            reasons.setdefault(status.why, []).append(status)
    for why, statuses in reasons.items():
        lines.append(f"{', '.join(s.probe.name for s in statuses)}: {why}")
        # Two probes may cost the operator the same thing.
        lines += [f"  lost: {loss}" for loss in dict.fromkeys(s.probe.loss for s in statuses)]
    return "\n".join(map(inert, lines))


def _verdict(found: Abilities) -> str:
    from k8snet.kernel.abilities import Tracing

    attached = {tier: sum(s.attached and s.probe.tier == tier for s in found.probes) for tier in (1, 2)}
    total = {tier: sum(s.probe.tier == tier for s in found.probes) for tier in (1, 2)}
    counts = f"tier 1 {attached[1]} of {total[1]}, tier 2 {attached[2]} of {total[2]}"
    kernel = inert(found.kernel)
    if found.tracing is Tracing.IMPOSSIBLE:
        return f"Nothing can be traced on this machine (kernel {kernel})."
    if found.tracing is Tracing.PARTIAL:
        return f"Flows can be traced on kernel {kernel}, with less evidence: {counts}."
    return f"Flows can be traced on kernel {kernel}: {counts}. No verdict depends on tier 2."
