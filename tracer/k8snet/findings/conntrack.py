"""Findings about the connection table: two connections that met in it, no room in it, an entry that outlived its pod.

A clash is told from a rule that drops behind source NAT by the *owner*: conntrack drops a packet there only because
another connection has one of its two tuples already. Which one tells the clashes apart: when the source was translated
and somebody else has the reply tuple, the SNAT port was given twice; else both connections are of one socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

from k8snet.event import CT_INFO_NONE, CtStatus, Event, FiveTuple, end_of
from k8snet.findings import words
from k8snet.findings.case import Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction
from k8snet.kernel.conntrack import Entry, Rivals
from k8snet.kernel.ruletrace import RuleStep

# Tables of iptables, and our own: whatever else there is may hold a NAT chain under any name.
_NEVER_TRANSLATES = frozenset({"raw", "mangle", "filter", "security", "k8snet_trace"})
# A retry has the same original tuple and may be in the table itself by then: TCP's comes after a second.
_PROMPT_NS = 500_000_000
_LOST_CLASH = CtStatus.CONFIRMED | CtStatus.NAT_CLASH
_NEARLY_FULL = 0.9  # the table is looked at some milliseconds after the packet
_DNS = 53
_SHOW_SNAT = "iptables-save -t nat | grep -e MASQUERADE -e SNAT"


def snat_ports_exhausted(case: Case) -> Match | None:
    """Source NAT found no free port: each try ends at a port that another connection has."""
    lost = [(death, owner) for death, _, owner in _lost_snat(case)]
    if not lost or case.answered:
        return None
    first, (death, owner) = lost[0][0], lost[-1]
    again = death.event.ktime_ns - first.event.ktime_ns >= _PROMPT_NS
    if not again and not _searched_in_vain(case, death):
        return None
    where = words.place(case, death)
    source = _source(death.event.ct_reply)
    inside = words.enter(case, death.event.netns)
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: no free SNAT port, {source} is in use",
        where=where,
        why=f"The rule that translates the source has no port left for connections to {_target(death.event.ct_reply)}: "
        f"NAT ended its search at {source}, which belongs to {_party(case, owner.orig)}.",
        evidence=(
            *words.evidence(case, death),
            f"lost: {_connection(case, death.event.ct_orig, death.event.ct_reply)}",
            f"owner of the port: {_connection(case, owner.orig, owner.reply)}",
            *((f"{len(lost)} tries were lost in the same way",) if again else ()),
            *_rises(case, death, "insert_failed", "drop", "found"),
        ),
        fix=(
            f"{inside}{_SHOW_SNAT}",
            "# Widen the range of ports in that rule, or let it use more source addresses.",
            "# A port serves one connection to the same target. Who has them:",
            f"{inside}conntrack -L -p {_protocol(death)} -d {_target_address(death)}",
        ),
        direction=death.direction,
        also=("connections that are not closed, or closed ones that wait out their time in the table",),
    )


def snat_port_clash(case: Case) -> Match | None:
    """Two connections were given the same source port at the same moment; this one came second."""
    found = next(_lost_snat(case), None)
    if found is None or found[0].event.ct_orig is None:
        return None
    death, rivals, owner = found
    loser = found[0].event.ct_orig
    where = words.place(case, death)
    source = _source(death.event.ct_reply)
    inside = words.enter(case, death.event.netns)
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: "
        f"{_party(case, owner.orig)} got the SNAT port {source} first",
        where=where,
        why=f"NAT gave {source} to two connections to {_target(death.event.ct_reply)}, of "
        f"{_party(case, loser)} and of {_party(case, owner.orig)}: each looked while the other was not "
        "in the connection table yet. The second to reach the table was dropped.",
        evidence=(
            *words.evidence(case, death),
            f"lost: {_connection(case, death.event.ct_orig, death.event.ct_reply)}",
            f"won: {_connection(case, owner.orig, owner.reply)}",
            _told(rivals),
            *_rises(case, death, "insert_failed", "drop"),
            *_made_good(case, death),
        ),
        fix=(
            f"{inside}{_SHOW_SNAT}",
            "# Add --random-fully to that rule (nft: fully-random); most network plugins have an option.",
        ),
        direction=death.direction,
        also=("more connections than the node has ports for to this one target, when it happens all the time",),
    )


def ct_clash_drop(case: Case) -> Match | None:
    """Two packets of one socket made entries that exclude each other; this one came second."""
    for death, rivals in _lost_at_the_table(case):
        orig, reply = death.event.ct_orig, death.event.ct_reply
        winner = _rival_of_same_socket(death, rivals)
        if winner is None or orig is None or reply is None or case.answered:
            continue
        where = words.place(case, death)
        same_target = winner.orig == orig
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, where)}: lost a race with another packet of the "
            "same socket",
            where=where,
            why=f"{_party(case, orig)} opened two connections from one socket at once, "
            + (
                f"both to {_server(orig)}: NAT chose {_target(winner.reply)} for the other and {_target(reply)} for "
                "this one. Conntrack keeps one."
                if same_target
                else f"to {_server(orig)} and to {_server(winner.orig)}, and NAT sent both to {_target(reply)}, whose "
                "answers could not be told apart. Conntrack keeps one."
            ),
            evidence=(
                *words.evidence(case, death),
                f"lost: {_connection(case, orig, reply)}",
                f"won: {_connection(case, winner.orig, winner.reply)}",
                _told(rivals),
                *_rises(case, death, "insert_failed", "drop"),
            ),
            fix=(
                "# Let the application send one after the other, or use a socket for each.",
                "# A resolver: dnsConfig, options: single-request-reopen; name servers with different pods behind",
                "# Or a DNS cache on each node (NodeLocal DNSCache).",
                f"{words.enter(case, death.event.netns)}conntrack -S",
            ),
            direction=death.direction,
        )
    return None


def ct_chain_too_long(case: Case) -> Match | None:
    """The connection's place in the table's hash is crowded, and the kernel refuses to add to it."""
    for death, rivals in _lost_at_the_table(case):
        rises = _rise(case, death, "chainlength")
        if rivals.of_original or rivals.of_reply or not rises or not _rise(case, death, "insert_failed"):
            continue
        where = words.place(case, death)
        inside = words.enter(case, death.event.netns)
        settings = case.around.settings.get(death.event.netns, {})
        buckets = settings.get("net.netfilter.nf_conntrack_buckets")
        entries = settings.get("net.netfilter.nf_conntrack_count")
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, where)}: a hash chain of the connection table is "
            "too long",
            where=where,
            why="The connection table has far more entries than buckets. The kernel lets no bucket grow beyond some 50 "
            "to 80 entries, and drops the packet that would have added one.",
            evidence=(
                *words.evidence(case, death),
                "no other connection has one of its tuples: it lost no race",
                *_rises(case, death, "insert_failed", "chainlength"),
                *((f"{entries} entries in {buckets} buckets",) if buckets and entries else ()),
            ),
            fix=(
                f"{inside}sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_buckets",
                "# On the host (its buckets serve all network namespaces), one for each entry that there may be:",
                "sysctl -w net.netfilter.nf_conntrack_buckets=$(sysctl -n net.netfilter.nf_conntrack_max)",
            ),
            direction=death.direction,
        )
    return None


def ct_table_full(case: Case) -> Match | None:
    """There was no room for another connection."""
    for death in case.deaths:
        fill = case.around.fills.get(death.event.netns)
        lost = _rise(case, death, "drop")
        untouched = death.event.ct_orig is None and death.event.ct_info == CT_INFO_NONE
        if not (untouched and death.netfilter and death.rule is None and lost and fill is not None and fill.maximum):
            continue
        if fill.entries < fill.maximum * _NEARLY_FULL:
            continue
        where = words.place(case, death)
        where = replace(where, hook=where.hook or "prerouting")  # what came in is tracked there, and nowhere else
        inside = words.enter(case, death.event.netns)
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, where)}: the connection table is full "
            f"({fill.entries} of {fill.maximum})",
            where=where,
            why="A packet that opens a connection needs a new entry in conntrack's table, and there is no room. "
            "Connections that have their entry go on; new ones fail until old entries expire.",
            evidence=(
                *words.evidence(case, death),
                words.conntrack(death.event),
                f"the table right after the drop: {fill.entries} entries, nf_conntrack_max {fill.maximum}",
                *_rises(case, death, "drop", "early_drop"),
            ),
            fix=(
                f"{inside}conntrack -S",
                "# Who fills it:",
                f"{inside}conntrack -L | grep -o 'src=[^ ]*' | sort | uniq -c | sort -rn | head",
                "# On the host (the limit is one number for all network namespaces), with buckets for as many:",
                f"sysctl -w net.netfilter.nf_conntrack_max={fill.maximum * 2}",
                f"sysctl -w net.netfilter.nf_conntrack_buckets={fill.maximum * 2}",
            ),
            direction=death.direction,
        )
    return None


def dns_clash_lost(case: Case) -> Match | None:
    """The loser of a resolved clash: its entry lived for a second, the answer came later and was not translated."""
    death, clash = _untranslated_answer(case), _clash(case)
    if death is None or clash is None:
        return None
    event, rivals = clash
    reply = event.ct_reply
    where = words.place(case, death)
    winner = rivals.of_original if rivals else None
    waited = (death.event.ktime_ns - event.ktime_ns) / 1e9
    what = "DNS answer" if case.flow.original.dport == _DNS else "answer"
    return Match(
        title=f"{words.ended(case, death)} in {words.owner(case, where)}: the {what} came from {_backend(case)}, "
        "which was not asked",
        where=where,
        why=f"{_party(case, case.flow.original)} sent two packets from one socket at once, and NAT chose "
        + (f"{_target(winner.reply)} for the other and " if winner else "")
        + f"{_target(reply)} for this one. Conntrack keeps such a second entry for 1 s. The answer took {waited:.1f} s "
        "and was not translated back.",
        evidence=(
            *words.evidence(case, death),
            f"lost: {_connection(case, event.ct_orig, reply)}, marked NAT_CLASH",
            *((f"won: {_connection(case, winner.orig, winner.reply)}", _told(rivals)) if winner and rivals else ()),
            *_rises_at(case, event.netns, "clashres"),
        ),
        fix=(
            "# The server is slow, or the race is lost: cure either.",
            "# A DNS cache on each node (NodeLocal DNSCache) does away with both.",
            "# Or let the pod's resolver ask one after the other: dnsConfig, options: single-request-reopen",
            f"{words.enter(case, event.netns)}conntrack -S",
        ),
        direction=Direction.REPLY,
    )


def ct_early_drop(case: Case) -> Match | None:
    """The connection's entry was thrown out to make room, and its answer was not translated back."""
    death = _untranslated_answer(case)
    if death is None or _clash(case) is not None:
        return None
    entry = next((e for p in case.flow.requests for e in p.events if _translated(e)), None)
    if entry is None or not _rises_at(case, entry.netns, "early_drop"):
        return None
    settings = case.around.settings.get(entry.netns, {})
    entries, most = (settings.get(f"net.netfilter.nf_conntrack_{name}", 0) for name in ("count", "max"))
    if not most or entries < most * _NEARLY_FULL:
        return None
    where = words.place(case, death)
    inside = words.enter(case, entry.netns)
    return Match(
        title=f"{words.ended(case, death)} in {words.owner(case, where)}: the connection was thrown out of "
        "conntrack's full table",
        where=where,
        why="The table was full, and to make room the kernel threw out connections that were not established yet. "
        f"Without its entry the answer of {_backend(case)} was not translated back, and nobody waits for one from "
        "there.",
        evidence=(
            *words.evidence(case, death),
            f"the request had its entry: {_connection(case, entry.ct_orig, entry.ct_reply)}",
            *_rises_at(case, entry.netns, "early_drop", "drop"),
            f"the table at the end: {entries} entries, nf_conntrack_max {most}",
        ),
        fix=(
            f"{inside}conntrack -S",
            "# On the host (the limit is one for all network namespaces):",
            f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}",
        ),
        direction=Direction.REPLY,
    )


def ct_clash_resolved(case: Case) -> Match | None:
    """Two packets of one socket clashed, conntrack kept both, and the answer came in time."""
    clash = _clash(case)
    if clash is None or not case.answered:
        return None
    event, rivals = clash
    where = words.at(case, event)
    winner = rivals.of_original if rivals else None
    return Match(
        title=f"conntrack clash on {words.owner(case, where)}, resolved: two packets of one socket went to different "
        "backends",
        where=where,
        why=f"{_party(case, case.flow.original)} sent two packets from one socket at once, and NAT chose "
        + (f"{_target(winner.reply)} for the other and " if winner else "")
        + f"{_target(event.ct_reply)} for this one. Conntrack kept an entry for each; this one's lives for 1 s. The "
        "answer came in time, so nothing was lost.",
        evidence=(
            f"this one: {_connection(case, event.ct_orig, event.ct_reply)}, marked NAT_CLASH",
            *(
                (f"the other: {_connection(case, winner.orig, winner.reply)}", _told(rivals))
                if winner and rivals
                else ()
            ),
            *_rises_at(case, event.netns, "clashres"),
        ),
        fix=("# Nothing is broken. An answer that takes longer than 1 s would be lost: see DNS_CLASH_LOST.",),
        direction=Direction.REQUEST,
    )


def stale_ct_entry(case: Case) -> Match | None:
    """An old entry of the connection table sends the datagrams to an address that is no endpoint any more."""
    port, dnat = case.service_port, case.flow.dnat
    if case.tcp or case.answered or port is None or dnat is None or case.service is None:
        return None
    pods = case.around.inventory.pod_by_ip
    if any((e.ip, e.port) == dnat for e in port.endpoints) or not port.ready or dnat[0] in pods:
        return None
    event = next((e for p in case.flow.requests for e in p.events if _translated(e) and not case.in_pod(e.netns)), None)
    older = _older(case, event) if event is not None else None
    if event is None or event.ct_orig is None or older is None:
        return None
    where = words.at(case, event)
    name = f"{case.service.key}:{port.name or port.port}"
    address = f"{dnat[0]}:{dnat[1]}"
    orig = event.ct_orig
    lost = next(iter(words.fatal(case)), None)
    outcome = words.ended(case, lost) if lost is not None or case.refused_by is not None else "NO REPLY"
    return Match(
        title=f"{outcome}: an old connection entry on {words.owner(case, where)} sends to {address}, no endpoint of "
        f"{name}",
        where=where,
        why=f"Conntrack still has this client's connection from before the endpoints of {name} changed, and as long as "
        "datagrams keep coming it never expires: kube-proxy's rules, which know better, are not asked.",
        evidence=(
            words.seen(case, event),
            words.conntrack(event),
            older,
            f"inventory: {name} has {len(port.ready)} ready endpoint{'s' if len(port.ready) != 1 else ''}, "
            f"{address} is none of them, and no pod has that address",
            *((f"kfree_skb: {words.reason(lost)}, {words.device(lost.event)}",) if lost is not None else ()),
        ),
        fix=(
            f"{words.enter(case, event.netns)}conntrack -D -p {_PROTOCOLS.get(orig.protocol, orig.protocol)} "
            f"-s {orig.saddr} -d {orig.daddr} --sport {orig.sport} --dport {orig.dport}",
            "# kube-proxy deletes such entries itself when an endpoint goes: look why it did not.",
            "kubectl -n kube-system logs -l k8s-app=kube-proxy --tail=100",
        ),
        direction=Direction.REQUEST,
    )


_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_SCTP: "sctp"}


# --- what was lost at the table, and to whom ------------------------------------------------------------------------


def _lost_at_the_table(case: Case) -> Iterator[tuple[Death, Rivals]]:
    """Deaths between source NAT and the connection table that no rule is known to have caused."""
    for death in case.deaths:
        rivals = case.around.rivals.get(death.event)
        if rivals is None or CtStatus.CONFIRMED in CtStatus(death.event.ct_status):
            continue
        if death.rule is None or death.rule.by == "counters":  # counters are those of all packets, an owner is of this
            yield death, rivals


def _lost_snat(case: Case) -> Iterator[tuple[Death, Rivals, Entry]]:
    """Those whose translated source belongs to another connection: the port was given twice."""
    for death, rivals in _lost_at_the_table(case):
        owner = rivals.of_reply
        if owner is not None and owner.orig != death.event.ct_orig and _source_translated(death):
            yield death, rivals, owner


def _rival_of_same_socket(death: Death, rivals: Rivals) -> Entry | None:
    """Who owns one of its tuples, when that is a connection of the same socket; its own retry is not."""
    if rivals.of_original is not None and rivals.late_ns < _PROMPT_NS:
        return rivals.of_original
    return rivals.of_reply if rivals.of_reply is not None and not _source_translated(death) else None


def _source_translated(death: Death) -> bool:
    orig, reply = death.event.ct_orig, death.event.ct_reply
    return orig is not None and reply is not None and (reply.daddr, reply.dport) != (orig.saddr, orig.sport)


def _searched_in_vain(case: Case, death: Death) -> bool:
    """NAT has met taken ports on its way to this one: in a race it meets none, and keeps the client's own if it can."""
    orig, reply = death.event.ct_orig, death.event.ct_reply
    kept = orig is not None and reply is not None and orig.sport == reply.dport
    return not kept and _rise(case, death, "found") > 0


def _clash(case: Case) -> tuple[Event, Rivals | None] | None:
    """Where a packet of the request was seen with the mark of a resolved clash, and the other party."""
    for packet in case.flow.requests:
        for event in packet.events:
            if CtStatus(event.ct_status) & _LOST_CLASH == _LOST_CLASH and event.ct_orig is not None:
                marked = next((e for e in packet.events if e in case.around.rivals), event)
                return marked, case.around.rivals.get(marked)
    return None


def _untranslated_answer(case: Case) -> Death | None:
    """An answer with the backend's address on it that reached the client's netns, where nobody waits for it."""
    if case.answered or case.around.client_netns is None or case.flow.dnat is None:
        return None
    for death in case.deaths:
        header = death.event.packet
        if death.direction is not Direction.REPLY or death.packet.is_icmp_error or header is None:
            continue
        from_backend = (header.saddr, header.sport) == case.flow.dnat and header.saddr != case.flow.original.daddr
        if from_backend and death.event.netns == case.around.client_netns and words.no_socket(death):
            return death
    return None


def _translated(event: Event) -> bool:
    """The packet was seen with an entry of the table that translates its target."""
    status = CtStatus(event.ct_status)
    return event.ct_orig is not None and CtStatus.CONFIRMED in status and CtStatus.DST_NAT in status


def _older(case: Case, event: Event) -> str | None:
    """What shows that the entry is older than the packet; None: nothing does."""
    if CtStatus.SEEN_REPLY in CtStatus(event.ct_status):
        return None if case.flow.replies else "the entry has seen an answer, and in this trace there was none"
    packet = next(p for p in case.flow.requests if event in p.events)
    met = [step for step in packet.rules if step.netns == event.netns]
    if not met or any(_may_translate(step) for step in met):
        return None
    return "no NAT rule was met: the entry was there before the packet"


def _may_translate(step: RuleStep) -> bool:
    if step.table == "kube-proxy":  # its one table of nftables has chains for everything
        return (step.base_chain or step.chain).startswith("nat-")
    return step.table not in _NEVER_TRANSLATES


# --- words ----------------------------------------------------------------------------------------------------------


def _source(reply: FiveTuple | None) -> str:
    """What the server sees as the client."""
    return end_of(reply.daddr, reply.dport) if reply else "the address"


def _backend(case: Case) -> str:
    """Whom NAT had chosen to answer."""
    return end_of(*case.flow.dnat) if case.flow.dnat else "the backend"


def _target(reply: FiveTuple | None) -> str:
    """Who answers."""
    return end_of(reply.saddr, reply.sport) if reply else "the server"


def _server(orig: FiveTuple) -> str:
    """Whom the client addressed."""
    return end_of(orig.daddr, orig.dport)


def _target_address(death: Death) -> str:
    return str(death.event.ct_orig.daddr) if death.event.ct_orig else "SERVER"


def _protocol(death: Death) -> str:
    orig = death.event.ct_orig
    return _PROTOCOLS.get(orig.protocol, str(orig.protocol)) if orig else "all"


def _party(case: Case, orig: FiveTuple) -> str:
    """Whose connection it is."""
    inventory = case.around.inventory
    if pod := inventory.pod_by_ip.get(orig.saddr):
        return f"pod {pod.key}"
    node = inventory.node_by_ip.get(orig.saddr)
    return f"node {node.name}" if node else str(orig.saddr)


def _connection(case: Case, orig: FiveTuple | None, reply: FiveTuple | None) -> str:
    """`pod shop/cart 10.244.1.10:4000 → 198.51.100.1:80, reply 198.51.100.1:80 → 198.51.100.2:4000`."""
    if orig is None or reply is None:
        return "a connection that is not known"
    pod = case.around.inventory.pod_by_ip.get(orig.saddr)
    return f"{f'pod {pod.key} ' if pod else ''}{words.arrow(orig)}, reply {words.arrow(reply)}"


def _told(rivals: Rivals) -> str:
    late = f", {rivals.late_ns / 1e6:.1f} ms after the packet" if rivals.late_ns else ""
    return f"the other one was named by {rivals.by}{late}"


def _made_good(case: Case, death: Death) -> tuple[str, ...]:
    """That it was sent again and came through, as TCP does."""
    if not case.answered:
        return ()
    again = next((p for p in case.flow.requests if p.first.ktime_ns > death.event.ktime_ns), None)
    if again is None:
        return ()
    delay = (again.first.ktime_ns - death.packet.first.ktime_ns) / 1e9
    return (f"it was sent again {delay:.1f} s later and came through: the client has seen a delay",)


def _rise(case: Case, death: Death, counter: str) -> int:
    return case.around.rises.get(death.event.netns, {}).get(f"conntrack.{counter}", 0)


def _rises(case: Case, death: Death, *counters: str) -> tuple[str, ...]:
    return _rises_at(case, death.event.netns, *counters)


def _rises_at(case: Case, netns: int, *counters: str) -> tuple[str, ...]:
    """One line for those of conntrack's counters that rose."""
    rises = case.around.rises.get(netns, {})
    told = [f"{c} by {rises[key]}" for c in counters if rises.get(key := f"conntrack.{c}")]
    return (f"conntrack's counters rose: {', '.join(told)}",) if told else ()
