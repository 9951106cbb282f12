"""Findings about what came through in the end, and late."""

from __future__ import annotations

import shlex
import socket
from typing import Final

from k8snet.event import TcpFlag
from k8snet.findings import words
from k8snet.findings.case import Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction, Packet
from k8snet.report import Place

# A retransmission waits for its timer: a second for a SYN, seldom below 200 ms for anything. What comes sooner with
# the same bytes is a copy (a mirror, a loop through one device twice).
_RETRY_NS: Final = 200_000_000


def slow_connect(case: Case) -> Match | None:
    """The first packet of an exchange, or its answer, was lost; a retransmission came through."""
    tries = _tries(case)
    if not case.answered or not tries:
        return None
    answer = case.answers[0]
    arrived = answer.last.ktime_ns
    requests = [p for p in tries if p.direction is Direction.REQUEST and p.first.ktime_ns <= arrived]
    answers = [p for p in tries if p.direction is Direction.REPLY and p.first.ktime_ns <= arrived]
    repeated = [group for group in (requests, answers) if _spread(group) >= _RETRY_NS]
    if not repeated:
        return None
    began = requests[0].first.ktime_ns if requests else answers[0].first.ktime_ns
    lost = [p for p in (*requests, *answers) if p is not answer and not _came_through(case, p)]
    deaths = {id(d.packet): d for d in case.deaths}
    death = next((deaths[id(p)] for p in lost if id(p) in deaths), None)
    first = death.packet if death else (lost[0] if lost else repeated[0][0])
    where = words.place(case, death) if death else words.at(case, first.last)
    took = f"{(arrived - began) / 1e9:.2f} s"
    what = "the connection" if case.tcp else "the answer"
    return Match(
        title=f"SLOW: {what} took {took}, the first {words.label(first)} {_fate(case, death, where)}",
        where=where,
        why=(f"The rule that dropped it: {death.rule.text}. " if death and death.rule else "")
        + f"A copy that was sent again came through: the {_who(first)} had to wait for its retransmission timer first.",
        evidence=(
            *(_line(case, p, deaths.get(id(p)), began) for p in sorted((*requests, *answers), key=_time)),
            *(words.evidence(case, death) if death else ()),
        ),
        fix=_fix(case, death, first),
        direction=first.direction,
        named_by=death.rule.by if death and death.rule else None,
        also=() if death else ("the packet was lost on another machine, or the server's answer came late",),
    )


def _tries(case: Case) -> list[Packet]:
    """What is sent again when it is lost: SYN and SYN-ACK, a DNS query. Other UDP may say the same thing twice."""
    original = case.flow.original
    if case.tcp:
        # A client that opens the same port anew is another flow, and so has another sequence number.
        return [p for p in case.flow.packets if not p.is_icmp_error and p.has(TcpFlag.SYN)]
    if original.protocol == socket.IPPROTO_UDP and original.dport == 53:
        return [*case.flow.requests, *case.flow.replies]
    return []


def _time(packet: Packet) -> int:
    return packet.first.ktime_ns


def _spread(packets: list[Packet]) -> int:
    return packets[-1].first.ktime_ns - packets[0].first.ktime_ns if packets else 0


def _came_through(case: Case, packet: Packet) -> bool:
    if any(d.packet is packet for d in case.deaths):
        return False
    goal = case.around.client_netns if packet.direction is Direction.REPLY else case.backend_netns
    return goal is not None and packet.received_in(goal)


def _who(packet: Packet) -> str:
    return "client" if packet.direction is Direction.REQUEST else "server"


def _fate(case: Case, death: Death | None, where: Place) -> str:
    on = words.owner(case, where)
    if death is None:
        return f"was last seen on {on}" + (f" at {where.device}" if where.device else "")
    if death.rule is not None:
        return f"was dropped on {on} by {'the policy' if death.rule.policy else 'a rule'} of {death.rule.chain}"
    return f"was dropped on {on}: {words.reason(death)}"


def _line(case: Case, packet: Packet, death: Death | None, began: int) -> str:
    after = f"{(packet.first.ktime_ns - began) / 1e6:.0f} ms"
    if death is not None:
        spot = words.place(case, death)
        return f"{words.label(packet)} after {after}: dropped on {words.owner(case, spot)}, {words.reason(death)}"
    last = words.at(case, packet.last)
    return (
        f"{words.label(packet)} after {after}: last seen on {words.owner(case, last)} at {last.device or 'no device'}"
    )


def _fix(case: Case, death: Death | None, lost: Packet) -> tuple[str, ...]:
    if death is not None and death.netfilter:
        return words.mend_rule(case, death)
    event = death.event if death is not None else lost.last
    inside = words.enter(case, event.netns)
    return (
        f"{inside}ip -s link show" + (f" dev {shlex.quote(event.ifname)}" if event.ifname else ""),
        f"{inside}nstat -az TcpRetransSegs TcpExtTCPSynRetrans TcpExtTCPTimeouts",
    )
