"""Records of connections' ends in, anomalies out: a bounded streaming table, judged by the catalogue.

In: raw records (`struct event`, as the ring buffer or a recording has them), in any order within milliseconds; at each
`tick` the time and a `Surroundings`, the value that all questions to the kernel and the cluster end in. Out: `Anomaly`.
No I/O and no clock, so a recording goes through it as a node does.

Surprising: of healthy connections nothing is decoded. A handshake is known by the client's initial sequence number,
which no NAT changes; only one that was not plainly answered becomes a `Flow`, and then a `Case`. There is no data to
look at: what rests on data that was seen is for `k8snet trace`.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from k8snet.event import BadRecordError, Event, FiveTuple, ProbeId
from k8snet.findings import words
from k8snet.findings.case import Case, Surroundings
from k8snet.findings.diagnose import EXPLAINS, diagnose
from k8snet.flow.dns import DnsExchange, DnsTable
from k8snet.flow.model import Direction, Flow
from k8snet.report import Finding, FlowView, Party, Severity
from k8snet.summary import PROTOCOLS, flow_view
from k8snet.watch import dns
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.catalogue import connection_reset, retransmit_burst, snat_port_pressure, table_pressure
from k8snet.watch.streams import Burst, Reset, Streams
from k8snet.watch.table import DNS_PORT, Bag, Glance, Table, glance

FLOWS: Final = 10_000
# Of those that came to nothing so many are judged in one tick, the others in the next ones: a millisecond each.
JUDGED_AT_ONCE: Final = 50

_ANSWERED_NS: Final = 50_000_000  # after the answer: it may die in the client's own netns
_YOUNG_NS: Final = 300_000_000  # without an answer: something is wrong, or it is far away
# After a drop TCP tries again within a second: the second look may name the rule, or show that it was a passing thing.
_RETRY_NS: Final = 1_200_000_000
_QUIET_NS: Final = 300_000_000
_REMEMBERED_NS: Final = 130_000_000_000  # net.ipv4.tcp_syn_retries = 6: the last SYN goes out after 63 s, and waits 64
# Data of a standing connection: one that dies is TCP's daily bread, one that dies again and again gets nowhere.
_DATA_DEATHS: Final = 3
_DATA_SPREAD_NS: Final = 500_000_000
_DATA_QUIET_NS: Final = 2_000_000_000
_PRESSURE_AGAIN_NS: Final = 60_000_000_000
_TO_ALL: Final = (1, 2)  # PACKET_BROADCAST, PACKET_MULTICAST
# What a trace of this one flow would say more about.
_TRACE: Final = frozenset(
    {"KERNEL_DROP", "NO_REPLY", "REFUSED", "LEFT_NODE", "LAST_SEEN", "SLOW_CONNECT", "RETRANSMIT_BURST"}
)

_TCP, _UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)
_STREAM_PROBES: Final = frozenset(
    {int(ProbeId.TCP_SEND_RESET), int(ProbeId.TCP_RECEIVE_RESET), int(ProbeId.TCP_RETRANSMIT_SKB)}
)
_OF_CLASHES: Final = int(ProbeId.NF_CT_RESOLVE_CLASH)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine may take, and how long it waits."""

    flows: int = FLOWS  # in the table at once; an unanswered one takes some 10 KiB
    wait: float = 3.0  # seconds without an answer until a connection counts as unanswered


@dataclass(frozen=True, slots=True)
class Counts:
    """How far it has got; sums since the beginning, but for `flows` and `one_in`."""

    events: int = 0
    lost: int = 0  # events that were not seen: the ring buffer was full
    held: int = 0  # drops of packets that were not reported one by one, for there were too many
    connections: int = 0  # handshakes that came to an end, good or bad
    answered: int = 0  # ... those that were answered
    queries: int = 0  # of DNS
    flows: int = 0  # in the table now
    evicted: int = 0  # thrown out of the full table, and never judged
    unjudged: int = 0  # came to nothing while events were lost: nothing is said of them
    one_in: int = 1  # so many connections are left out but for one: 1 is all, 2 every other one
    anomalies: int = 0


class Engine:
    """See the module's own words. Not for several threads at once."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._wait_ns = int(limits.wait * 1e9)
        self._table = Table(limits.flows)
        self._dns = DnsTable()
        self._dns_events: list[Event] = []
        self.asked: list[DnsExchange] = []  # the queries that came to their end in the last tick
        self._streams = Streams()
        self._pressed: dict[tuple[str, int], int] = {}  # code and netns: when it was told
        self._events = self._bad = self._lost = self._held = 0
        self._ended = self._answered = self._queries = self._unjudged = self._anomalies = 0
        self._hole_ns = 0  # until then events of DNS may be missing; -1: until the next tick
        self._gone: list[Bag] = []

    def feed(self, records: Iterable[bytes]) -> None:
        """Take records; a bad one is counted as lost."""
        take, events = self._table.take, 0
        for record in records:
            events += 1
            try:
                seen = glance(record)
                if seen.probe in _STREAM_PROBES:
                    self._streams.hear(Event.decode(record))
                elif seen.probe != _OF_CLASHES:
                    if DNS_PORT in (seen.sport, seen.dport) and _carries_dns(seen):
                        self._dns_events.append(Event.decode(record))
                    take(seen, record)
            except BadRecordError:
                self._bad += 1
        self._events += events

    def lose(self, lost: int, held: int = 0) -> None:
        """So many events were lost (held back), ever: of what is under way nothing is concluded from absence."""
        if lost > self._lost:
            self._table.doubt()
            self._hole_ns = -1
        self._lost, self._held = lost, held

    def sample(self, shift: int) -> None:
        """From now on the kernel reports one in 2**shift connections; what it leaves in the middle is forgotten."""
        if shift > self._table.shift:
            self._hole_ns = -1
        self._table.sample(shift)

    def due(self, now_ns: int) -> list[Flow]:
        """Flows that `tick` will judge: ask what they ask (`Case.questions`), for its `around`."""
        return [flow for bag in self._over(now_ns) if (flow := bag.made()) is not None]

    def young(self, now_ns: int) -> list[Flow]:
        """Flows that may soon be judged, because an answer is late or a packet died: a beginning to compare with."""
        waiting = [b for b in self._table if b.number and not b.answered_ns and not b.judged and not b.refused]
        late = [b for b in waiting if b.deaths or now_ns - b.started_ns >= _YOUNG_NS][:JUDGED_AT_ONCE]
        return [flow for bag in late if (flow := bag.made()) is not None]

    def tick(self, now_ns: int, around: Surroundings) -> list[Anomaly]:
        """Judge what has come to its end. Call it some ten times a second; `around.client_netns` is not looked at."""
        found = [anomaly for bag in self._over(now_ns) for anomaly in self._judged(bag, now_ns, around)]
        self._tidy(now_ns)
        resets, bursts = self._streams.due(now_ns)
        found += [_of_reset(reset, around) for reset in resets]
        found += [_of_burst(burst, around) for burst in bursts]
        found += self._of_dns(now_ns, around)
        found += self._of_nodes(now_ns, around)
        self._anomalies += len(found)
        return sorted(found, key=lambda anomaly: anomaly.ktime_ns)

    @property
    def counts(self) -> Counts:
        """How far it has got."""
        return Counts(
            events=self._events,
            lost=self._lost + self._bad,
            held=self._held,
            connections=self._ended + self._table.answered,
            answered=self._answered + self._table.answered,
            queries=self._queries,
            flows=len(self._table),
            evicted=self._table.evicted,
            unjudged=self._unjudged,
            one_in=1 << self._table.shift,
            anomalies=self._anomalies,
        )

    # --- beginnings of connections, and what died --------------------------------------------------------------------

    def _over(self, now_ns: int) -> list[Bag]:
        """To be judged now; some of many."""
        over = []
        for bag in self._table:
            if not bag.healthy and self._is_over(bag, now_ns):
                over.append(bag)
                if len(over) == JUDGED_AT_ONCE:
                    break
        return over

    def _is_over(self, bag: Bag, now_ns: int) -> bool:
        quiet, age = now_ns - bag.last_ns, now_ns - bag.started_ns
        if not bag.number:
            if bag.protocol == _TCP:
                return _is_stuck(bag) or quiet >= _DATA_QUIET_NS
            return quiet >= _QUIET_NS or age >= self._wait_ns
        if bag.answered_ns or bag.refused:
            return quiet >= _ANSWERED_NS
        if bag.judged:
            return False
        if bag.deaths and not bag.patient and age >= _RETRY_NS and quiet >= _QUIET_NS:
            return True
        return age >= self._wait_ns + _QUIET_NS

    def _judged(self, bag: Bag, now_ns: int, around: Surroundings) -> list[Anomaly]:
        """At most one; the bag is forgotten if nothing more can come of it."""
        flow = bag.made()
        case = _case_of(flow, bag, around) if flow is not None else None
        finding = self._finding(case, bag) if case is not None else None
        open_ = bag.number and not bag.answered_ns and not bag.refused
        if open_ and finding is not None and _is_blind(finding) and now_ns - bag.started_ns < self._wait_ns:
            bag.patient = True  # the next SYN may be traced
            return []
        again, bag.judged = bag.judged, True
        if not open_:
            self._gone.append(bag)
        if flow is None or case is None:
            return []
        if bag.number and not again:
            self._ended += 1
            self._answered += case.answered
        if finding is None or (again and finding.code != "SLOW_CONNECT"):
            return []
        view = flow_view(case, PROTOCOLS.get(flow.original.protocol, "ip"))
        last = max(p.last.ktime_ns for p in flow.packets)
        return [Anomaly(last, with_trace(finding, view), view, _seconds(case))]

    def _finding(self, case: Case, bag: Bag) -> Finding | None:
        """What is wrong with it, if that can be said of what a watch sees."""
        if bag.number:
            requests = case.flow.requests
            # Its beginning must have been seen: else what is missing may have been before.
            if not requests or not requests[0].is_syn:
                return None
            if bag.doubtful and not case.deaths and case.refused_by is None:
                self._unjudged += not case.answered
                return None
        elif not words.fatal(case) or (case.tcp and not _is_stuck(bag)) or _is_nobodys(case):
            return None
        found = [f for f in diagnose(case) if f.severity in (*EXPLAINS, Severity.WARN)]
        if bag.doubtful or not bag.number:
            found = [f for f in found if f.severity is not Severity.UNKNOWN]
        return next((f for f in found if f.severity in EXPLAINS), next(iter(found), None))

    def _tidy(self, now_ns: int) -> None:
        """Forget what was judged to its end, what is plainly healthy, and what nothing more will come of."""
        healthy = [b for b in self._table if b.healthy and now_ns - b.answered_ns >= _ANSWERED_NS]
        old = [b for b in self._table if b.judged and now_ns - b.last_ns >= _REMEMBERED_NS]
        self._table.answered += len(healthy)
        self._table.drop([*healthy, *old, *self._gone])
        self._gone = []

    # --- DNS ---------------------------------------------------------------------------------------------------------

    @property
    def asking(self) -> set[int]:
        """Netns that DNS queries have left since the last tick."""
        leaving = (e for e in self._dns_events if e.probe is ProbeId.NET_DEV_QUEUE)
        return {e.netns for e in leaving if e.packet is not None and e.packet.dport == DNS_PORT}

    def _of_dns(self, now_ns: int, around: Surroundings) -> list[Anomaly]:
        for event in sorted(self._dns_events, key=lambda event: event.ktime_ns):
            self._dns.feed(event)
        self._dns_events = []
        over = self.asked = self._dns.due(now_ns)
        self._queries += len(over)
        if self._hole_ns < 0:
            self._hole_ns = now_ns
        # Queries that were under way when events were lost: of those without an answer nothing is said.
        whole = [q for q in over if q.answer is not None or q.tries[0] > self._hole_ns]
        self._unjudged += len(over) - len(whole)
        return dns.anomalies(whole, around)

    # --- the node ----------------------------------------------------------------------------------------------------

    def _of_nodes(self, now_ns: int, around: Surroundings) -> list[Anomaly]:
        found = []
        for netns in around.settings.keys() | around.rises.keys():
            for check in (table_pressure, snat_port_pressure):
                finding = check(netns, around)
                told = self._pressed.get((finding.code, netns)) if finding else None
                if finding is not None and (told is None or now_ns - told >= _PRESSURE_AGAIN_NS):
                    self._pressed[finding.code, netns] = now_ns
                    found.append(Anomaly(now_ns, finding, None))
        return found


def _carries_dns(seen: Glance) -> bool:
    return seen.protocol in (_TCP, _UDP) and (bool(seen.payload_len) or seen.encap != 0)


def _is_stuck(bag: Bag) -> bool:
    """The same connection's data died several times, longer apart than a burst."""
    return bag.deaths >= _DATA_DEATHS and bag.last_ns - bag.started_ns >= _DATA_SPREAD_NS


def _case_of(flow: Flow, bag: Bag, around: Surroundings) -> Case:
    """Of what died alone nothing follows from what was not seen: nobody has looked for it."""
    client = around.backend_netns.get(flow.original.saddr)
    lost = 1 if bag.doubtful or not bag.number else 0
    return Case(flow, replace(around, client_netns=client, lost=lost))


def _is_nobodys(case: Case) -> bool:
    """Sent to everybody, or an answer that came when nobody waited for it any more: nothing was lost by its end."""
    for death in words.fatal(case):
        header = death.event.packet
        if header is None or header.daddr.is_multicast or death.event.pkt_type in _TO_ALL:
            continue
        if death.direction is Direction.REPLY and words.no_socket(death):
            continue
        return False
    return True


def _seconds(case: Case) -> float | None:
    """How long the client waited, for its answer or in vain; None: it did not, or nobody knows."""
    tries = [p.first.ktime_ns for p in case.flow.requests if p.is_syn]
    if not tries:
        return None
    if case.answered:
        return (case.answers[0].last.ktime_ns - tries[0]) / 1e9
    return (tries[-1] - tries[0]) / 1e9 if len(tries) > 1 else None


def _of_reset(reset: Reset, around: Surroundings) -> Anomaly:
    view = _view(reset.here if reset.here_is_client else reset.here.reversed(), around)
    return Anomaly(reset.ktime_ns, connection_reset(reset, around), view)


def _of_burst(burst: Burst, around: Surroundings) -> Anomaly:
    here_is_client = burst.here.sport > burst.here.dport
    view = _view(burst.here if here_is_client else burst.here.reversed(), around)
    return Anomaly(burst.ktime_ns, with_trace(retransmit_burst(burst, around), view), view)


def _view(asked: FiveTuple, around: Surroundings) -> FlowView:
    """Of a connection of which a socket's addresses are all that is known."""
    return flow_view(Case(Flow(asked), around), PROTOCOLS[asked.protocol])


def _is_blind(finding: Finding) -> bool:
    """A packet filter did it, and the rule is not known."""
    return finding.where.hook is not None and finding.where.rule is None


def with_trace(finding: Finding, view: FlowView) -> Finding:
    """With the command that looks at this one flow more closely, where that would tell more."""
    if finding.code not in _TRACE and not _is_blind(finding):
        return finding
    server = _spelled(view.server)
    if view.server.service:
        server = view.server.service.replace("/", "/svc/")
    protocol = "" if view.protocol == "tcp" else f" --protocol {view.protocol}"
    port = f":{view.server.port}" if view.server.port else ""
    command = f"k8snet trace --from {shlex.quote(_spelled(view.client))} --to {shlex.quote(server + port)}{protocol}"
    return replace(finding, fix=(*finding.fix, command))


def _spelled(end: Party) -> str:
    """As `k8snet trace` reads it: namespace/kind/name."""
    if end.pod is None:
        return f"[{end.ip}]" if ":" in end.ip and end.port else end.ip
    namespace, _, name = end.pod.partition("/")
    return f"{namespace}/po/{name}"
