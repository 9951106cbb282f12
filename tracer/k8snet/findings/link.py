"""Findings about a device: what a bridge port, a queue or a program attached to it did to the packet."""

from __future__ import annotations

import shlex

from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case
from k8snet.findings.entry import Match


def hairpin_off(case: Case) -> Match | None:
    """A pod that reaches itself through its Service: the bridge will not send a frame back where it came from."""
    death = next((d for d in case.deaths if d.symbol.startswith(("br_", "__br_")) and d.reason in UNSPECIFIED), None)
    if death is None or death.event.packet is None or case.flow.dnat is None:
        return None
    if case.flow.dnat[0] != case.flow.original.saddr or death.event.packet.daddr != case.flow.original.saddr:
        return None
    event = death.event
    setting = f"bridge.{event.ifname}.hairpin_mode"
    mode = case.around.settings.get(event.netns, {}).get(setting)
    if mode == 1:
        return None
    return Match(
        title=f"DROPPED on {words.owner(case, words.place(case, death))} at {event.ifname}: hairpin mode is off",
        where=words.place(case, death),
        why="The Service sent the pod to itself, and the bridge does not send a frame back out of the port it came in "
        "by unless that port is in hairpin mode.",
        evidence=(*words.evidence(case, death), *((f"{setting} = {mode}",) if mode is not None else ())),
        fix=(
            f"{words.enter(case, event.netns)}bridge link set dev {shlex.quote(event.ifname)} hairpin on",
            "# To make it last: hairpinMode: true in the configuration of the CNI's bridge plug-in.",
        ),
        direction=death.direction,
    )
