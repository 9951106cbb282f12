"""Findings for what no other entry explains: they say where, and leave the cause open."""

from __future__ import annotations

import shlex

from k8snet.event import Event, ProbeId
from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction
from k8snet.kernel.devices import Attached


def kernel_drop(case: Case) -> Match | None:
    """The kernel dropped a packet for a reason that no other entry explains."""
    death = next(iter(words.fatal(case)), None)
    if death is None:
        return None
    where = words.place(case, death)
    hook = f" in {death.hook.upper()}" if death.hook else ""
    blind = death.netfilter and death.rule is None
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}{hook}: "
        + ("a netfilter rule or policy that could not be named" if blind else words.reason(death)),
        where=where,
        why=(
            "A packet filter dropped it. Which rule is not known: rule tracing was off, came too late for this packet, "
            "or does not see this chain (one at a device's ingress, or a bridge's own)."
            if blind
            else f"The kernel function {death.symbol or '(unknown)'} freed the packet"
            + (f" and gave {death.reason} as the reason." if death.reason not in UNSPECIFIED else " without a reason.")
        ),
        evidence=words.evidence(case, death),
        fix=(
            (
                f"{words.enter(case, death.event.netns)}{words.iptables(case)}-save -c",
                f"{words.enter(case, death.event.netns)}nft -a list ruleset",
                "# Or trace again without --read-only, and let the rule be named.",
            )
            if blind
            else (
                f"{words.enter(case, death.event.netns)}nstat -az",
                f"{words.enter(case, death.event.netns)}ip -s link show"
                + (f" dev {shlex.quote(death.event.ifname)}" if death.event.ifname else ""),
            )
        ),
        direction=death.direction,
        also=words.not_allowed(case),
    )


def refused(case: Case) -> Match | None:
    """Somebody outside told the client no, and no packet died on this node."""
    told = case.refused_by
    if told is None or case.answered:
        return None
    source = told.first.outer if told.is_icmp_error else told.first.packet
    where = words.at(case, told.first)
    sender = words.name(case, source.saddr) if source else "an unknown host"
    return Match(
        title=f"REJECTED: {words.label(told)} came from {sender}",
        where=where,
        why="The client was told no, and nothing on this node decided it.",
        evidence=(
            f"{words.label(told)} was first seen in {words.owner(case, where)} at {told.first.ifname or 'no device'}",
        ),
        fix=(f"# Look on {sender}, or run k8snet on its node.",),
        direction=Direction.REPLY,
    )


def left_node(case: Case) -> Match | None:
    """The request left this node and no answer came back."""
    request = next(reversed(case.flow.requests), None)
    if case.answered or request is None or case.flow.replies or words.fatal(case):
        return None
    last = request.last
    if last.probe is not ProbeId.NET_DEV_QUEUE or case.in_pod(last.netns):
        return None
    where = words.at(case, last)
    target = case.backend[0] if case.backend else case.flow.original.daddr
    return Match(
        title=f"NO REPLY: the request left {words.owner(case, where)} by {last.ifname}, nothing came back",
        where=where,
        why="This node did its part. The packet was lost, or stayed without an answer, behind that device.",
        evidence=(words.seen(case, last),),
        fix=(
            f"{words.enter(case, last.netns)}ip route get {target}",
            "# Run k8snet trace with the same --from and --to on the node of the other end.",
        ),
        direction=Direction.REQUEST,
        also=(
            *words.not_allowed(case),
            *(
                f"{thing} of {last.ifname} sees what comes in before anybody else, and may have dropped the answer"
                for thing in _at_device(case, last, ("xdp",))
            ),
        ),
    )


def last_seen(case: Case) -> Match | None:
    """No answer, and nothing that explains it was seen."""
    packets = [p for p in case.flow.packets if not p.is_icmp_error]
    if case.answered or not packets:
        return None
    replies = case.flow.replies
    last = (replies or packets)[-1]
    where = words.at(case, last.last)
    return Match(
        title=f"NO ANSWER: the {last.direction.value} was last seen on {words.owner(case, where)}"
        + (f" at {last.last.ifname}" if last.last.ifname else ""),
        where=where,
        why="What happened after that could not be observed. This is not a statement that nothing was dropped.",
        evidence=(words.seen(case, last.last),),
        fix=("k8snet check", "# It lists what this kernel does not let k8snet see."),
        direction=last.direction,
        also=(
            *words.not_allowed(case),
            *(
                f"{thing} of {last.last.ifname} sees every packet after that, and may have taken this one"
                for thing in _at_device(case, last.last, ("xdp", "tc ingress"))
                if last.last.probe is ProbeId.NETIF_RECEIVE_SKB
            ),
        ),
    )


def _at_device(case: Case, event: Event, hooks: tuple[str, ...]) -> list[Attached]:
    return [a for a in case.around.attached.get((event.netns, event.ifname), ()) if a.hook in hooks]
