"""Findings that only a watch can have: they are about connections that stand, and about the node.

In: what `k8snet.watch.streams` saw, counters and settings of a node's netns. Out: a `Finding`, or None.
"""

from __future__ import annotations

from typing import Final

from k8snet.cluster.interfaces import Owner
from k8snet.event import Event
from k8snet.findings import words
from k8snet.findings.case import Surroundings, pod_name
from k8snet.findings.words import arrow
from k8snet.report import Finding, Place, Severity
from k8snet.watch.streams import Burst, Reset

# Code and when it is given, in one sentence; each has a page in docs/findings.
CODES: Final = {
    "CONNECTION_RESET": "a connection that stood was reset, and the process at its other end did not expect it",
    "RETRANSMIT_BURST": "a connection that stands sends its data again and again",
    "CT_TABLE_PRESSURE": "conntrack's table is nearly full, or throws out connections to make room",
    "SNAT_PORT_PRESSURE": "source NAT finds many of the ports that it tries taken",
}
FULL: Final = 0.9  # of nf_conntrack_max; above it the rest is a matter of minutes on a busy node
PORTS_TAKEN: Final = 500  # within some 15 s; a guess: a busy node makes some ten
_NO_SOCKET: Final = "the kernel there has no such connection"


def connection_reset(reset: Reset, around: Surroundings) -> Finding:
    """Who reset it, as far as that can be told."""
    here = _place(around, reset.netns)
    by, where = reset.by, here
    if by is not None and by.netns:
        where = _place(around, by.netns)
    sender = _who(where) if by is not None else str(reset.here.daddr)
    aborted = by is not None and not by.skb
    why = "The connection stood, and neither end had closed it. "
    if by is None:
        why += "The reset came from another machine, or this kernel does not say who sent it."
    elif aborted:
        why += "The process there ended it hard: it closed with data unread, was killed, or wanted it so (SO_LINGER)."
    else:
        why += (
            f"A packet of it came to {sender}, and {_NO_SOCKET}: a server that was restarted, an entry of conntrack "
            "that timed out, or a packet whose address was not translated back."
        )
    return Finding(
        code="CONNECTION_RESET",
        severity=Severity.WARN,
        title=f"RESET by {sender}: a connection that stood",
        where=where,
        why=why,
        evidence=(
            f"tcp_receive_reset: {arrow(reset.here)} was ESTABLISHED in {_who(here)}",
            *((_sent(by),) if by is not None else ("no tcp_send_reset was seen on this machine",)),
        ),
        fix=(
            *_logs(where if by is not None else here),
            "# Idle connections: compare the keep-alive of both ends with nf_conntrack_tcp_timeout_established.",
        ),
        direction="reply" if reset.here_is_client else "request",
    )


def _sent(event: Event) -> str:
    packet = f", for {arrow(event.packet)}" if event.skb and event.packet else ""
    return f"tcp_send_reset: {'in answer to a packet' if event.skb else 'by close() or at exit'}{packet}"


def retransmit_burst(burst: Burst, around: Surroundings) -> Finding:
    """Data is sent, and not acknowledged."""
    where = _place(around, burst.netns)
    what = (
        f"the same segment {burst.times} times in {burst.seconds:.1f} s"
        if burst.times
        else f"{burst.segments} segments in {burst.seconds:.1f} s"
    )
    return Finding(
        code="RETRANSMIT_BURST",
        severity=Severity.WARN,
        title=f"SENT AGAIN by {_who(where)}: {what}, to {burst.here.daddr}",
        where=where,
        why="The other end does not acknowledge what is sent: it is lost on its way there, or its acknowledgement on "
        "the way back."
        + (" Each time the sender waits twice as long." if burst.times else " The connection works, and is slow."),
        evidence=(f"tcp_retransmit_skb: {arrow(burst.here)}, {what}",),
        fix=(
            f"{around.enter.get(burst.netns, '')}ss -tino dst {burst.here.daddr}",
            f"{around.enter.get(burst.netns, '')}ip -s link show",
        ),
        direction="reply" if burst.here.sport < burst.here.dport else "request",
        also=("the other end is gone, and its address with it",) if burst.times else (),
    )


def table_pressure(netns: int, around: Surroundings) -> Finding | None:
    """Conntrack's table of this netns is nearly full, or has begun to throw out entries."""
    settings, rises = around.settings.get(netns, {}), around.rises.get(netns, {})
    count, most = (settings.get(f"net.netfilter.nf_conntrack_{name}", 0) for name in ("count", "max"))
    early = rises.get("conntrack.early_drop", 0)
    full = bool(most) and count >= most * FULL
    if not full and not early:
        return None
    where, inside = _place(around, netns), around.enter.get(netns, "")
    state = f"{count} of {most}" if most else f"{count} entries"
    return Finding(
        code="CT_TABLE_PRESSURE",
        severity=Severity.WARN,
        title=f"conntrack's table on {_who(where)} "
        + (f"is nearly full ({state})" if full else f"throws out connections to make room ({early} of them)"),
        where=where,
        why="A packet that opens a connection needs an entry. When there is no room, connections that are not "
        "established yet are thrown out first; then new ones are dropped.",
        evidence=(
            f"{state} are taken",
            *((f"conntrack's counters rose: early_drop by {early}",) if early else ()),
        ),
        fix=(
            f"{inside}conntrack -S",
            "# Who fills it:",
            f"{inside}conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -rn | head",
            *(
                (
                    "# On the host (the limit is one number for all network namespaces), with buckets for as many:",
                    f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}",
                    f"sysctl -w net.netfilter.nf_conntrack_buckets={most * 2}",
                )
                if most
                else ()
            ),
        ),
    )


def snat_port_pressure(netns: int, around: Surroundings) -> Finding | None:
    """NAT looks for a free port and finds taken ones: before anything is lost."""
    taken = around.rises.get(netns, {}).get("conntrack.found", 0)
    if taken < PORTS_TAKEN:
        return None
    where, inside = _place(around, netns), around.enter.get(netns, "")
    return Finding(
        code="SNAT_PORT_PRESSURE",
        severity=Severity.INFO,
        title=f"source NAT on {_who(where)} finds many ports taken ({taken} within 15 s)",
        where=where,
        why="Each time NAT looks for a free source port and finds it in use, this counter rises. Nothing is lost yet: "
        "it found another one. When it finds none, connections fail (SNAT_PORTS_EXHAUSTED).",
        evidence=(f"conntrack's counters rose: found by {taken}",),
        fix=(
            f"{inside}iptables-save -t nat | grep -e MASQUERADE -e SNAT",
            "# --random-fully spreads the ports; more source addresses give more of them.",
            "# To whom most connections go:",
            f"{inside}conntrack -L | grep -o 'dst=[^ ]*' | sort | uniq -c | sort -rn | head",
        ),
    )


def _place(around: Surroundings, netns: int) -> Place:
    owner = around.owners.get(netns, Owner())
    return Place(netns=netns or None, node=owner.node, pod=pod_name(owner, netns))


def _who(where: Place) -> str:
    return words.whose(where)


def _logs(where: Place) -> tuple[str, ...]:
    namespace, _, name = (where.pod or "").partition("/")
    return (f"kubectl -n {namespace} logs {name} --tail=50",) if name else ()
