"""Findings about DNS: what the answer said, how late it came, and what a resolver made of one that did not come.

Each is a function of one query (`DnsExchange`) and what is known around it, so that a trace, where queries are flows,
and a watch, which has nothing but queries, say the same. Times are the client's: from its first try to the answer in
its netns.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from k8snet.cluster.interfaces import Owner, Role
from k8snet.event import Address, Event, ProbeId
from k8snet.findings.case import Case, Surroundings, pod_name
from k8snet.findings.entry import Match
from k8snet.flow.dns import DnsAnswer, DnsExchange
from k8snet.flow.model import Direction
from k8snet.report import Place

# A guess: a server in the cluster answers within milliseconds, one that has to ask the world within some hundred. It is
# also how long conntrack keeps the loser of a clash.
SLOW: Final = 1.0  # seconds
# Shorter than any resolver's time-out (resolv.conf(5): whole seconds), longer than what lies between A and AAAA.
_RETRY_NS: Final = 500_000_000
_PAIR_NS: Final = 200_000_000
# With two, a name of another namespace (`web.shop`) is found as it should be; three are a whole list in vain.
_STORM: Final = 3  # search domains
_PAIR: Final = frozenset({"A", "AAAA"})

_UDP_RECEIVE: Final = ("__udp4_lib_rcv", "__udp6_lib_rcv")

Explain = Callable[[DnsExchange, Surroundings], Match | None]


def understood(query: DnsExchange, around: Surroundings) -> DnsExchange:
    """The same with what the kernel's names say: an answer that found no socket was refused, ICMP error or not."""
    answers = tuple(replace(a, refused=a.refused or _found_no_socket(a, around)) for a in query.answers)
    return replace(query, answers=answers) if answers != query.answers else query


def _found_no_socket(answer: DnsAnswer, around: Surroundings) -> bool:
    if answer.drop is None:
        return False
    reason, location = answer.drop
    name = around.kernel.drop_reason(reason)
    return name == "NO_SOCKET" or (name == "" and around.kernel.symbol(location) in _UDP_RECEIVE)


def _of_a_flow(explain: Explain) -> Callable[[Case], Match | None]:
    """The same as an entry's function."""

    def of_a_flow(case: Case) -> Match | None:
        return next((match for query in case.queries if (match := explain(query, case.around)) is not None), None)

    return of_a_flow


def late(query: DnsExchange, around: Surroundings) -> Match | None:
    """The answer came when nobody waited for it any more."""
    turned_away = [a for a in query.answers if a.source == query.server and a.refused]
    if query.answer is not None or not turned_away:
        return None
    answer = turned_away[0]
    took = _since(query, answer.arrived_ns or answer.sent_ns)
    if took < SLOW:
        return None  # see `Case`: it has hung up, and not because of the server
    client = _owner(around, query.netns, query.client)
    return Match(
        title=f"LATE: the answer to {query.question} took {took:.2f} s, and {client} had given up",
        where=_place(around, query.netns, query.device),
        why=f"{_server(around, query)} answered, but by then the client had closed its socket: its kernel refused the "
        "answer. For the application the name could not be resolved.",
        evidence=(*_tries(query), *_answers(query), *_refusals(answer)),
        fix=_server_fix(around, query),
        direction=Direction.REPLY,
        also=("the client asked a second server after the first one's silence, and was content with its answer",),
    )


def servfail(query: DnsExchange, around: Surroundings) -> Match | None:
    """The server said that it could not find out."""
    return _refused_by_server(
        query,
        around,
        "SERVFAIL",
        "could not find out",
        "SERVFAIL says nothing about the name: the server asked somebody else (an upstream, the API) and got no usable "
        "answer, or DNSSEC validation failed. Resolvers ask the next server, and give up after the last.",
    )


def refused(query: DnsExchange, around: Surroundings) -> Match | None:
    """The server said that it would not answer."""
    return _refused_by_server(
        query,
        around,
        "REFUSED",
        "will not answer",
        "REFUSED is a server's policy: no zone or plugin of it is responsible for the name, or the client may not ask.",
    )


def slow(query: DnsExchange, around: Surroundings) -> Match | None:
    """One try, and its answer was long in coming."""
    answer, seconds = query.answer, query.seconds
    if answer is None or seconds is None or seconds < SLOW or len(query.tries) > 1:
        return None
    where = _at(around, query.last)
    there = (answer.sent_ns - query.last.ktime_ns) / 1e9
    spot = "in" if where.pod else "behind"
    return Match(
        title=f"SLOW: {_sender(around, query, answer)} took {seconds:.2f} s to answer {query.question}",
        where=where,
        why=f"The query was not lost on its way, and neither was the answer: of {seconds:.2f} s, {there:.2f} s went by "
        f"{spot} {_owner(around, query.last.netns)}. A client that waits less than that asks again, or gives up.",
        evidence=(*_tries(query), *_answers(query)),
        fix=_server_fix(around, query),
        direction=Direction.REQUEST,
        also=("its upstream was slow, and the server only waited for it",),
    )


def pair_timeout(query: DnsExchange, around: Surroundings) -> Match | None:
    """Of A and AAAA one had its answer at once and the other none: the resolver waited for its time-out."""
    waited = _waited(query)
    twin = next((q for q in query.company if _is_twin(query, q)), None) if waited is not None else None
    if twin is None or waited is None or (twin.seconds or 0) * 1e9 >= _RETRY_NS:
        return None
    resolver = around.resolvers.get(query.netns)
    client = _owner(around, query.netns, query.client)
    again = len(query.tries) > 1
    return Match(
        title=f"SLOW: {client} waited {waited:.2f} s for {query.type} of {query.name}, though {twin.type} was answered "
        "at once",
        where=_place(around, query.netns, query.device),
        why=f"A lookup asks for A and AAAA. The answer to {twin.type} came after {(twin.seconds or 0) * 1e3:.0f} ms, "
        f"that to {query.type} never did, so the resolver waited for its time-out"
        + (" and asked again." if again else ". The application waited with it."),
        evidence=(
            *_tries(twin),
            *_answers(twin),
            *_tries(query),
            *(_answers(query) or ("no answer to it was seen",)),
            *((f"/etc/resolv.conf of {client}: options {resolver.options or 'of the default'}",) if resolver else ()),
        ),
        fix=(
            "# Where the query or its answer was lost: its own report, and the server's log.",
            *_server_fix(around, query),
            "# Until then, in the pod: dnsConfig, options: single-request-reopen (glibc), or a DNS cache on each node.",
        ),
        direction=Direction.REQUEST,
        also=("the server drops AAAA queries of names that it has no IPv6 address for, instead of saying so",),
    )


def retried(query: DnsExchange, around: Surroundings) -> Match | None:
    """The first try came to nothing, a later one was answered."""
    waited, seconds = _waited(query), query.seconds
    if waited is None or seconds is None:
        return None
    where = _at(around, query.last)
    return Match(
        title=f"SLOW: the answer to {query.question} took {seconds:.2f} s, the first query got none",
        where=where,
        why=f"{_owner(around, query.netns, query.client)} waited for its time-out of {waited:.2f} s and asked again; "
        f"the last query was seen as far as {_owner(around, query.last.netns)}.",
        evidence=(*_tries(query), *_answers(query)),
        fix=_server_fix(around, query),
        direction=Direction.REQUEST,
        also=("the query or its answer was lost on the way, or the server did not answer it",),
    )


def clash_lost(query: DnsExchange, around: Surroundings) -> Match | None:
    """It was the loser of a clash, and its answer came with the backend's address on it."""
    astray = [a for a in query.answers if a.source != query.server and a.refused]
    if query.answer is not None or not astray or not query.clash:
        return None
    answer = astray[0]
    took = _since(query, answer.arrived_ns or answer.sent_ns)
    client = _owner(around, query.netns, query.client)
    return Match(
        title=f"REPLY LOST in {client}: after a clash the answer to {query.question} came too late to be translated",
        where=_place(around, query.netns, query.device),
        why="Two queries of one socket were sent to different backends at the same moment. Conntrack kept an entry for "
        f"this one for 1 s, and the answer took {took:.2f} s: it came from {answer.source}, which nobody had asked.",
        evidence=(*_tries(query), *_answers(query), *_refusals(answer)),
        fix=(
            "# In the pod: dnsConfig, options: single-request-reopen (glibc), or a DNS cache on each node.",
            *_server_fix(around, query),
        ),
        direction=Direction.REPLY,
    )


def no_reply(query: DnsExchange, around: Surroundings) -> Match | None:
    """It reached the server's pod, and no answer left it."""
    where = _at(around, query.last)
    if not _is_silent(query) or not where.pod or query.last.netns == query.netns:
        return None
    return Match(
        title=f"NO REPLY from pod {where.pod}: it has {query.question}, and did not answer",
        where=where,
        why="The query was delivered to the pod. What happens from there on is the server's doing: it waits for an "
        "upstream, or is overloaded.",
        evidence=(*_tries(query), "no answer left the pod"),
        fix=_server_fix(around, query),
        direction=Direction.REQUEST,
    )


def left_node(query: DnsExchange, around: Surroundings) -> Match | None:
    """It left the node, and no answer came."""
    where = _at(around, query.last)
    leaves = query.last.probe is ProbeId.NET_DEV_QUEUE
    if not _is_silent(query) or not leaves or around.owners.get(query.last.netns, Owner()).role is not Role.NODE:
        return None
    return Match(
        title=f"LEFT {where.node or 'THE NODE'} by {where.device}: {query.question}, and no answer came back",
        where=where,
        why="The query left this node, and nothing came back. Where it ended cannot be seen from here.",
        evidence=_tries(query),
        fix=(
            f"{around.enter.get(query.last.netns, '')}ip route get {query.backend or query.server}",
            *_server_fix(around, query),
        ),
        direction=Direction.REQUEST,
    )


def last_seen(query: DnsExchange, around: Surroundings) -> Match | None:
    """No answer that the client could take, and nothing that explains it."""
    if query.answer is not None or any(a.refused for a in query.answers):
        return None
    where = _at(around, query.last)
    return Match(
        title=f"NO ANSWER to {query.question}: last seen on {_owner(around, query.last.netns)}"
        + (f" at {where.device}" if where.device else ""),
        where=where,
        why="No answer reached the client, and nothing that explains it was seen.",
        evidence=(*_tries(query), *_answers(query)),
        fix=_server_fix(around, query),
        direction=Direction.REPLY if query.answers else Direction.REQUEST,
    )


def search_storm(query: DnsExchange, around: Surroundings) -> Match | None:
    """A name that exists as it stands was tried with each search domain first."""
    if not any(q.rcode == "NXDOMAIN" for q in query.near):
        return None
    expansions = _expansions(query)
    domains = list(dict.fromkeys(q.name.removeprefix(f"{query.name}.") for q in expansions))
    if query.type not in _PAIR or len(domains) < _STORM or _twin_told(query):
        return None
    asked = [*expansions, query, *(q for q in query.company if q.name == query.name and q.type != query.type)]
    began = min(q.tries[0] for q in asked)
    ended = max(a.arrived_ns for q in asked if (a := q.answer) is not None and a.arrived_ns is not None)
    resolver = around.resolvers.get(query.netns)
    dots = query.name.count(".")
    return Match(
        title=f"{len(asked)} queries for one name: {query.name} was tried with {len(domains)} search domains first",
        where=_place(around, query.netns, query.device),
        why=f"The name has {dots} dots, fewer than the resolver's ndots, so each domain of the search list was tried "
        f"before the name itself: {len(expansions)} answers were NXDOMAIN. The lookup took "
        f"{(ended - began) / 1e9 * 1e3:.0f} ms, and the server had {len(asked)} times the work.",
        evidence=(
            *(f"{q.question}: {q.rcode}" for q in sorted(asked, key=lambda q: q.tries[0])),
            *(
                (f"/etc/resolv.conf: {len(resolver.search)} search domains, options {resolver.options}",)
                if resolver
                else ()
            ),
        ),
        fix=(
            f"# Let the application ask for {query.name}. (with a dot at its end), or",
            f'# in the pod\'s spec: dnsConfig: {{options: [{{name: ndots, value: "{max(1, min(dots, 2))}"}}]}}',
        ),
        direction=Direction.REQUEST,
    )


dns_late: Final = _of_a_flow(late)
dns_servfail: Final = _of_a_flow(servfail)
dns_refused: Final = _of_a_flow(refused)
dns_slow: Final = _of_a_flow(slow)
dns_pair_timeout: Final = _of_a_flow(pair_timeout)
dns_search_storm: Final = _of_a_flow(search_storm)


def _refused_by_server(query: DnsExchange, around: Surroundings, rcode: str, does: str, why: str) -> Match | None:
    answer = query.answer
    if answer is None or answer.rcode != rcode:
        return None
    return Match(
        title=f"{rcode}: {_sender(around, query, answer)} {does} {query.question}",
        where=_at(around, query.last),
        why=why,
        evidence=(*_tries(query), *_answers(query)),
        fix=_server_fix(around, query),
        direction=Direction.REPLY,
    )


# --- what belongs together -------------------------------------------------------------------------------------------


def _is_twin(query: DnsExchange, other: DnsExchange) -> bool:
    """The other half of the same lookup."""
    return (
        {query.type, other.type} == _PAIR
        and query.name == other.name
        and other.answer is not None
        and abs(query.tries[0] - other.tries[0]) <= _PAIR_NS
    )


def _waited(query: DnsExchange) -> float | None:
    """Seconds that the resolver waited in vain for the first try; None: it did not."""
    answer = query.answer
    if len(query.tries) > 1:
        gap = query.tries[1] - query.tries[0]
        prompt = answer is not None and answer.arrived_ns is not None and answer.arrived_ns < query.tries[1]
        return None if prompt or gap < _RETRY_NS else gap / 1e9
    if answer is not None or query.answers:
        return None
    # With single-request the retry comes from a new port (glibc, measured), with the same number.
    again = [q.tries[0] for q in query.company if (q.name, q.type, q.txid) == (query.name, query.type, query.txid)]
    later = [t for t in again if t - query.tries[0] >= _RETRY_NS]
    return (min(later) - query.tries[0]) / 1e9 if later else None


def _expansions(query: DnsExchange) -> list[DnsExchange]:
    """Queries for the name with a search domain behind it: in vain, and before it was asked as it stands."""
    return [
        q
        for q in query.company
        if q.name.startswith(f"{query.name}.") and q.rcode == "NXDOMAIN" and q.tries[0] <= query.tries[0]
    ]


def _twin_told(query: DnsExchange) -> bool:
    """It is the second half of the lookup, and the finding is the first half's."""
    twins = [q for q in query.company if _is_twin(query, q)]
    return any((q.tries[0], q.type) < (query.tries[0], query.type) for q in twins)


def _is_silent(query: DnsExchange) -> bool:
    """Nobody has said anything: no server, no kernel, no router."""
    return not (query.answers or query.died or query.unreachable)


# --- the words -------------------------------------------------------------------------------------------------------


def _since(query: DnsExchange, ktime_ns: int) -> float:
    return (ktime_ns - query.tries[0]) / 1e9


def _tries(query: DnsExchange) -> tuple[str, ...]:
    return tuple(
        f"{_since(query, t):.3f} s: {query.question} to {_socket(query.server, query.server_port)}"
        f"{', over TCP' if query.protocol == 'tcp' else ''}{', again' if number else ''}"
        for number, t in enumerate(query.tries)
    )


def _answers(query: DnsExchange) -> tuple[str, ...]:
    lines = []
    for answer in query.answers:
        by = f" by {answer.sender}" if answer.sender != answer.source else ""
        cut = ", truncated" if answer.truncated else ""
        if answer.arrived_ns is None:
            lines.append(
                f"{_since(query, answer.sent_ns):.3f} s: {answer.rcode}{cut} sent{by}, never seen at the client"
            )
        else:
            lines.append(f"{_since(query, answer.arrived_ns):.3f} s: {answer.rcode}{cut} from {answer.source}{by}")
    return tuple(lines)


def _refusals(answer: DnsAnswer) -> tuple[str, ...]:
    told = "the client's kernel answered with ICMP port unreachable" if answer.refused else "no socket took it"
    return (told,)


def _socket(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _place(around: Surroundings, netns: int, device: str) -> Place:
    owner = around.owners.get(netns, Owner())
    return Place(netns=netns or None, node=owner.node, pod=pod_name(owner, netns), device=device or None)


def _at(around: Surroundings, event: Event) -> Place:
    return _place(around, event.netns, event.ifname)


def _owner(around: Surroundings, netns: int, address: Address | None = None) -> str:
    owner = around.owners.get(netns, Owner())
    if pod := pod_name(owner, netns):
        return f"pod {pod}"
    return owner.node or (str(address) if address else "this node")


def _server(around: Surroundings, query: DnsExchange) -> str:
    service = around.inventory.service_at(query.server, query.server_port)
    return f"Service {service.key}" if service else str(query.server)


def _sender(around: Surroundings, query: DnsExchange, answer: DnsAnswer) -> str:
    """Who answered, as far as it is known."""
    for address in (answer.sender, query.backend):
        pod = around.inventory.pod_by_ip.get(address) if address else None
        if pod is not None:
            return f"pod {pod.key}"
    return _server(around, query)


def _server_fix(around: Surroundings, query: DnsExchange) -> tuple[str, ...]:
    """Where to look: the server's log, and the question by hand."""
    address = query.backend or query.server
    pod = around.inventory.pod_by_ip.get(address)
    inside = around.enter.get(query.netns, "")
    ask = f"{inside}dig @{query.server} {shlex.quote(query.name)} {query.type}" if query.name else ""
    return (
        *((ask,) if ask else ()),
        *((f"kubectl -n {shlex.quote(pod.namespace)} logs {shlex.quote(pod.name)} --tail=50",) if pod else ()),
        "# Its upstreams and its own load: docs/dns.md says how to tell them apart.",
    )
