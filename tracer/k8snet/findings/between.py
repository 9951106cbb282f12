"""A finding for two nodes that were both observed: what left one and never came in at the other.

It rests on what was not seen, so it is given only when the other node was seen whole at that moment: every probe
attached, nothing lost. One node alone can only say that a packet has left it (LEFT_NODE).
"""

from __future__ import annotations

from collections.abc import Sequence

from k8snet.cluster.interfaces import Role
from k8snet.event import ProbeId
from k8snet.findings import words
from k8snet.findings.case import Case
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction, Packet


def never_came(case: Case, packets: Sequence[Packet]) -> str | None:
    """The node on which none of `packets` came in, though it was watched and they left another one for it."""
    if not packets:
        return None
    last, direction = packets[-1].last, packets[-1].direction
    goal = case.backend_netns if direction is Direction.REQUEST else case.around.client_netns
    here = case.owner(last.netns)
    if last.probe is not ProbeId.NET_DEV_QUEUE or here.role is not Role.NODE or goal is None:
        return None
    there = case.owner(goal).node
    if not here.node or not there or here.node == there:
        return None
    if any(case.owner(e.netns).node == there for p in packets for e in p.events):
        return None
    # One try that was watched for is enough: it left, and did not come in.
    return there if any(case.was_watched(goal, p.last.ktime_ns) for p in packets) else None


def lost_between_nodes(case: Case) -> Match | None:
    """The request, or the answer, left its node, and never came in at the other one."""
    if case.answered or case.refused_by is not None or words.fatal(case):
        return None
    packets = case.flow.replies or case.flow.requests
    there = never_came(case, packets)
    if there is None:
        return None
    last, direction = packets[-1].last, packets[-1].direction
    where = words.at(case, last)
    here = words.owner(case, where)
    goal = (case.backend_netns if direction is Direction.REQUEST else case.around.client_netns) or 0
    header = last.outer or last.packet
    arriving = next((n for n, o in case.around.owners.items() if o.role is Role.NODE and o.node == there), goal)
    times = f"{len(packets)} times" if len(packets) > 1 else "once"
    return Match(
        title=f"{'REPLY LOST' if direction is Direction.REPLY else 'LOST'}: the {direction.value} left {here} by "
        f"{last.ifname} and never reached {there}",
        where=where,
        why=f"Both nodes were watched. {here} did its part; {there} has never had the packet. Whatever stands between "
        "the two has taken it.",
        evidence=(
            f"{words.label(packets[-1])} was sent {times}; " + words.seen(case, last),
            *((f"inside a tunnel: {words.tunnel(last.outer, last.encap)}",) if last.outer else ()),
            f"on {there} it was never seen, and no event was lost there",
        ),
        fix=(
            f"# On {here}: is that the right way to {there}?",
            *((f"{words.enter(case, last.netns)}ip route get {header.daddr}",) if header else ()),
            f"# On {there}: does it come in by another device, or with another address?",
            *((f"{words.enter(case, arriving)}tcpdump -c 5 -ni any host {header.daddr}",) if header else ()),
            "# Neither: look at security groups, firewalls and routers between the two nodes.",
        ),
        direction=direction,
        also=(
            f"an XDP program at a device of {there} sees packets before anybody else, and may have taken it",
            "the underlay does not let the tunnel's protocol or port through"
            if last.outer
            else "the network between the nodes knows the nodes' addresses only, and not the pods'",
        ),
    )
