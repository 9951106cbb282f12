"""Findings about the routing decision: the node does not forward, or does not like where a packet came from."""

from __future__ import annotations

import shlex

from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case
from k8snet.findings.entry import Match


def ip_forward_off(case: Case) -> Match | None:
    """The node does not route: net.ipv4.ip_forward is 0, or forwarding of the device is."""
    for death in case.deaths:
        if death.symbol != "ip_error" and death.reason != "IP_INADDRERRORS":
            continue
        settings = case.around.settings.get(death.event.netns, {})
        names = ("net.ipv4.ip_forward", f"net.ipv4.conf.{death.event.ifname}.forwarding")
        off = [name for name in names if settings.get(name) == 0]
        if not off or death.reason not in (*UNSPECIFIED, "IP_INADDRERRORS"):
            continue
        sysctl = off[0]
        return Match(
            title=f"DROPPED on {words.owner(case, words.place(case, death))}: {sysctl} is 0, the node does not route",
            where=words.place(case, death),
            why="The packet is for another host, and this node is not allowed to forward.",
            evidence=(*words.evidence(case, death), f"sysctl {sysctl} = 0"),
            fix=(
                f"{words.enter(case, death.event.netns)}sysctl -w {shlex.quote(sysctl)}=1",
                f"# To make it last: echo '{sysctl} = 1' > /etc/sysctl.d/99-kubernetes.conf",
            ),
            direction=death.direction,
        )
    return None


def rp_filter(case: Case) -> Match | None:
    """Reverse-path filter: the packet came in by a device that the node would not use to answer its source."""
    for death in case.deaths:
        rose = case.around.rises.get(death.event.netns, {}).get("TcpExt.IPReversePathFilter", 0)
        without_reason = death.reason in UNSPECIFIED and death.symbol == "ip_rcv_finish_core" and rose > 0
        if death.reason != "IP_RPFILTER" and not without_reason:
            continue
        event = death.event
        settings = case.around.settings.get(event.netns, {})
        names = [f"net.ipv4.conf.{device}.rp_filter" for device in ("all", event.ifname)]
        source = event.packet.saddr if event.packet else "its source"
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, words.place(case, death))} at {event.ifname}: "
            f"reverse-path filter, the {death.direction.value} came in by the wrong device",
            where=words.place(case, death),
            why=f"The node's route to {source} does not lead out of {event.ifname}, and rp_filter is strict.",
            evidence=(
                *words.evidence(case, death),
                *(f"sysctl {name} = {settings[name]}" for name in names if name in settings),
                *((f"TcpExt.IPReversePathFilter rose by {rose}",) if rose else ()),
            ),
            fix=(
                f"{words.enter(case, event.netns)}ip route get {source}",
                f"# Mend the route to or from {source}, so that both directions use one device.",
                "# If it is meant that they differ:",
                f"{words.enter(case, event.netns)}sysctl -w {shlex.join(f'{name}=2' for name in names)}",
            ),
            direction=death.direction,
        )
    return None
