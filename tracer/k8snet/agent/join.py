"""The reading side: the streams of one or two agents in, one Report out, the same that one machine would have given.

Every stream is read to its end or as far as it goes; then numbers that mean something on one machine only (netns, skb
addresses, drop reasons, code addresses, times) are made unlike or alike, one correlator gets all events in the order of
time, and `k8snet.judge` does the rest. Surprising: two kernels give the same inode numbers to their netns, and always
to the first one. Until the report is written a netns's number therefore says whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from k8snet.agent import clock, lines
from k8snet.agent.lines import BadLineError, Bye, Error, Events, Facts, Hello, Line, Names, Ready, Rules
from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import Inventory
from k8snet.errors import K8snetError
from k8snet.event import BadRecordError, Event, ProbeId
from k8snet.findings.case import Case, Surroundings
from k8snet.flow.correlate import Correlator
from k8snet.flow.model import Flow, Packet
from k8snet.judge import Observation, is_asked_for, judge, servers_of
from k8snet.kernel.conntrack import Rivals
from k8snet.kernel.rules import NamedRule
from k8snet.kernel.ruletrace import RuleStep
from k8snet.path import Surface
from k8snet.report import Expected, Finding, Hop, Report
from k8snet.trace import uncollected

_MACHINE: Final = 32  # bits of a netns's number; those above say which machine it is on
# A guess: wall clocks of nodes that somebody looks after differ by less.
WALL_NS: Final = 1_000_000_000

Heard = Callable[[int, Line], None]


@dataclass
class Half:
    """One stream, as far as it went."""

    hello: Hello
    facts: dict[str, Any] = field(default_factory=dict)  # fields of `Facts`
    events: dict[int, Event] = field(default_factory=dict)  # by number
    reasons: dict[int, str] = field(default_factory=dict)
    symbols: dict[int, str] = field(default_factory=dict)
    steps: list[RuleStep] = field(default_factory=list)
    ready: Ready | None = None
    bye: Bye | None = None
    error: Error | None = None
    left_out: int = 0  # events
    damaged: int = 0  # lines
    bad: int = 0  # records
    broken: str = ""  # why it ended early
    on_the_way: str = "events on the way"  # what those are called that were seen and did not arrive here
    lacks: dict[str, int] = field(default_factory=dict)  # what else is missing of it, and how much

    @property
    def node(self) -> str:
        """Where it comes from: as Kubernetes calls it, if the agent knew."""
        names = {owner.node for owner in self.fact("owners").values() if owner.role is Role.NODE and owner.node}
        return names.pop() if len(names) == 1 else self.hello.node

    def fact(self, name: str) -> Any:
        """The newest that is known; the field's default where nothing is."""
        return self.facts.get(name, _DEFAULTS[name])

    @property
    def lost(self) -> dict[str, int]:
        """What was not seen, or did not arrive."""
        lost = {name: count for name, count in (self.bye.lost if self.bye else {}).items() if count}
        missing = (self.bye.events if self.bye else max(self.events, default=-1) + 1) - len(self.events)
        missing -= self.bad + self.left_out
        if missing > 0:
            lost[self.on_the_way] = missing
        if self.damaged:
            lost["damaged lines"] = self.damaged
        if self.bad:
            lost["undecodable"] = self.bad
        if self.bye is None:
            lost["end of the stream"] = 1
        return lost | self.lacks


_DEFAULTS: Final = {f.name: getattr(Facts(), f.name) for f in fields(Facts)}


class Reader:
    """Takes the lines of one stream as they come."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._half: Half | None = None
        self._error: Error | None = None
        self._damaged = 0

    def hear(self, text: str | bytes) -> Line | None:
        """One line; None when it is not an agent's, or damaged. Raises K8snetError for an agent of another version."""
        try:
            line = lines.understood(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        except BadLineError:
            self._damaged += 1
            return None
        if isinstance(line, Hello):
            self._half = self._half or Half(_fitting(line))
        elif isinstance(line, Error):
            self._error = line
        elif line is not None and self._half is not None and not take(self._half, line):
            self._damaged += 1
            return None
        return line

    def half(self, broken: str = "it ended without a last word") -> Half:
        """All of it, as far as it came; `broken`: why there is no more. Raises K8snetError when there is nothing."""
        half, error = self._half, self._error
        if error is not None:
            where = half.node if half else f"agent {self._number + 1}"
            raise K8snetError(f"on {where}: {error.problem}", error.remedy, more=error.more)
        if half is None:
            raise K8snetError(
                f"stream {self._number + 1} is no agent's: it has no first line",
                "k8snet agent --help  # its output is what is read",
            )
        half.damaged = self._damaged
        half.broken = "" if half.bye else broken
        return half


def read(stream: Iterable[str | bytes], number: int = 0, heard: Heard | None = None) -> Half:
    """Read one stream to its end."""
    reader = Reader(number)
    try:
        for text in stream:
            line = reader.hear(text)
            if line is not None and heard is not None:
                heard(number, line)
            if isinstance(line, Bye):
                break
    except OSError as error:
        return reader.half(str(error))
    return reader.half()


def _fitting(hello: Hello) -> Hello:
    if hello.version != lines.VERSION or hello.layout != lines.LAYOUT_ID:
        raise K8snetError(
            f"the agent on {hello.node} is k8snet {hello.k8snet} and speaks another language (version {hello.version}, "
            f"records {hello.layout}; here {lines.VERSION}, {lines.LAYOUT_ID})",
            "use the same version of k8snet on the nodes and here",
        )
    return hello


def take(half: Half, line: Line) -> bool:
    """Add one line to what is known; False when it is damaged."""
    match line:
        case Ready():
            half.ready = line
        case Bye():
            half.bye = line
        case Names():
            half.reasons |= line.reasons
            half.symbols |= line.symbols
        case Rules():
            half.steps += line.steps
        case Facts():
            for name, default in _DEFAULTS.items():
                new = getattr(line, name)
                if new != default:
                    old = half.facts.get(name)
                    half.facts[name] = {**old, **new} if isinstance(old, Mapping) else new
        case Events():
            try:
                take_records(half, line.first, lines.unpacked(line))
            except BadLineError:
                return False
    return True


def take_records(half: Half, first: int, records: Iterable[bytes]) -> None:
    """Add events; `first` is the number of the first of them."""
    for number, record in enumerate(records, first):
        try:
            half.events[number] = Event.decode(record)
        except BadRecordError:
            half.bad += 1


def join(
    streams: Sequence[Iterable[str | bytes]], inventory: Inventory | None = None, heard: Heard | None = None
) -> Report:
    """One report from the lines of one or two agents, read side by side.

    `inventory`: names, by default those that the agents have sent. `heard` is called for each line, in the thread that
    reads it. Whatever carries the lines raises OSError when it breaks. Raises K8snetError when a stream is no agent's,
    of another version, or an agent's that could not begin.
    """
    return joined(halves_of(streams, heard), inventory)


def halves_of(streams: Sequence[Iterable[str | bytes]], heard: Heard | None = None) -> list[Half]:
    """The streams of one or two agents, read side by side."""
    if not 1 <= len(streams) <= 2:
        raise K8snetError(f"{len(streams)} streams: a flow has one node or two", "give the streams of its ends only")
    with ThreadPoolExecutor(len(streams), "k8snet-join") as readers:
        under_way = [readers.submit(read, stream, n, heard) for n, stream in enumerate(streams)]
        return [future.result() for future in under_way]


def joined(halves: Sequence[Half], inventory: Inventory | None = None) -> Report:
    """The same for halves that were read already."""
    return seen_and_judged(halves, inventory)[1]


def seen_and_judged(
    halves: Sequence[Half],
    inventory: Inventory | None = None,
    choose: Callable[[Observation], Observation] = lambda seen: seen,
) -> tuple[Observation, Report]:
    """The report, and what it was made from: there, the number of a netns says on which machine it is.

    `choose`: what to judge of all that was seen.
    """
    # The client's first: its request is what is judged, and its clock the report's.
    halves = sorted(halves, key=_is_far)
    with uncollected():
        seen = choose(observation(halves, inventory))
        return seen, _readable(judge(seen), halves)


def _is_far(half: Half) -> tuple[bool, bool]:
    """The client is not on this node; where both have its address (a range that every node uses), Kubernetes knows."""
    request = half.fact("request")
    pod = request.client.pod if request is not None else None
    return half.fact("client_netns") is None, pod is not None and pod.node != half.node


def observation(halves: Sequence[Half], inventory: Inventory | None = None) -> Observation:
    """All halves as if one machine had seen it; netns still say whose they are."""
    several = len(halves) > 1
    if several:
        halves = [_own(half) for half in halves]
    first = halves[0]
    alone = first.hello.whole and not several
    request = first.fact("request")
    if request is None:
        raise K8snetError(
            f"the stream of {first.node} ended before it said what is traced", "run the agent again, and see its stderr"
        )
    shifts = [clock.Shift(0)]
    for other in halves[1:]:
        wall = _boot_ns(first.hello) - _boot_ns(other.hello)
        shifts.append(clock.shift(first.events.values(), other.events.values(), wall))
    names = _Numbers()
    parts = [
        _Part(n, half, shift.ns, names, whole=alone) for n, (half, shift) in enumerate(zip(halves, shifts, strict=True))
    ]
    if alone:
        known = inventory or first.fact("inventory") or request.inventory
    else:
        known = inventory or _merged([i for half in halves for i in (half.fact("request"), half.fact("inventory"))])
        request = replace(request, inventory=known)
    correlator = Correlator(request.client.addresses)
    numbered = [part.events() for part in parts]
    # What the trace itself has judged came in this order; of two events of one moment it matters which is first.
    taken = sorted((e for events in numbered for e in events.values()), key=lambda e: e.ktime_ns)
    for event in numbered[0].values() if alone else taken:
        if event.probe is not ProbeId.NF_CT_RESOLVE_CLASH:
            correlator.feed(event)
    steps = [step for part in parts for step in part.steps()]
    correlator.attach_rules(steps if alone else sorted(steps, key=lambda s: s.ktime_ns))
    client = next((n for part in parts if (n := part.client) is not None), None)
    servers = servers_of(request)
    flows = [f for f in correlator.flows if is_asked_for(f, request, servers, client, first.fact("ports"))]
    packet_of = {id(e): p for flow in flows for p in flow.packets for e in p.events}
    lost = {(f"{k} on {h.node}" if several else k): n for h in halves for k, n in h.lost.items()}
    facts = _union([part.facts() for part in parts])
    owners = facts.pop("owners")
    around = Surroundings(
        inventory=known,
        owners=owners,
        kernel=names,
        client_netns=client,
        rules=_union([part.rules(numbered[n], packet_of) for n, part in enumerate(parts)]),
        rivals=_union([part.rivals(numbered[n]) for n, part in enumerate(parts)]),
        send_errors=first.fact("send_errors"),
        lost=sum(lost.values()),
        # A whole trace's own judgement holds that it has seen all from its first event to its last.
        watched={}
        if alone and first.ready and first.bye
        else {n: _span(h, s) for p, h, s in zip(parts, halves, shifts, strict=True) for n in p.netns},
        **facts,
    )
    ways = {half.node: half.fact("rule_naming") or "off" for half in halves}
    same = len(set(ways.values())) == 1
    return Observation(
        request=request,
        flows=flows,
        around=around,
        surface=Surface(owners, frozenset().union(*(part.parties for part in parts))),
        lost=lost,
        rule_naming=next(iter(ways.values())) if same else ", ".join(f"{how} on {node}" for node, how in ways.items()),
        boot_ns=_boot_ns(first.hello),
        ports=first.fact("ports"),
        notes=(
            *_notes(halves),
            *(
                s.sentence(first.node, h.node)
                for part, h, s in zip(parts[1:], halves[1:], shifts[1:], strict=True)
                if s.measured or _rests_on(part, flows, around)
            ),
        ),
        expected=None if several else _foreseen(first),
    )


def _foreseen(half: Half) -> Expected | None:
    """The expected path of this node's agent, unless it goes on where the agent does not look: on another node."""
    found: Expected | None = half.fact("expected")
    if found is None or half.hello.whole:
        return found
    steps = (step for way in found.ways for step in (*way.request, *way.reply))
    return found if all(step.node in (None, half.node) for step in steps) else None


def _rests_on(part: _Part, flows: Sequence[Flow], around: Surroundings) -> bool:
    """The report has times of this node, or says that nothing came there: not so if an endpoint elsewhere answered."""
    seen = any(event.netns in part.netns for flow in flows for packet in flow.packets for event in packet.events)
    return seen or not flows or not all(Case(flow, around).served for flow in flows)


def _own(half: Half) -> Half:
    """Without what another node on the same kernel did, which an agent does not even write down."""
    if not half.hello.whole:
        return half
    owners = half.fact("owners")
    events = {number: event for number, event in half.events.items() if not event.netns or event.netns in owners}
    return replace(half, events=events, left_out=len(half.events) - len(events))


def _boot_ns(hello: Hello) -> int:
    """When its monotonic clock was zero, by its wall clock."""
    return hello.realtime_ns - hello.monotonic_ns


def _span(half: Half, shift: clock.Shift) -> tuple[int, int]:
    """From when to when this node was seen whole, by the first node's clock."""
    slack = 0 if shift.measured or not shift.ns else WALL_NS
    begun = half.ready.ktime_ns if half.ready else half.hello.monotonic_ns
    ended = half.bye.ktime_ns if half.bye else begun
    return begun - shift.ns + slack, ended - shift.ns - slack


def _notes(halves: Sequence[Half]) -> list[str]:
    said = [half.fact("notes") for half in halves]
    everybody = set(said[0]).intersection(*said[1:])
    notes = list(dict.fromkeys(note for some in said for note in some if note in everybody))
    for half in halves:
        notes += [f"{half.node}: {note}" for note in half.fact("notes") if note not in everybody]
        if half.broken:
            notes.append(f"the stream of {half.node} broke off after {len(half.events)} events: {half.broken}")
        if half.ready is None:
            notes.append(f"{half.node} was never observed: its probes were not attached when the stream ended")
    return notes


def _union(parts: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """One mapping of all; what two of them say, the first says, and mappings inside become one too."""
    found: dict[Any, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
                found[key] = {**value, **found[key]}
            else:
                found.setdefault(key, value)
    return found


def _merged(sources: Sequence[Any]) -> Inventory:
    """What the agents have sent of the cluster; of two versions of an object the one that came last."""
    found = [s if isinstance(s, Inventory) else s.inventory for s in sources if s is not None]
    return Inventory(
        pods=tuple({pod.key: pod for one in found for pod in one.pods}.values()),
        services=tuple({service.key: service for one in found for service in one.services}.values()),
        nodes=tuple({node.name: node for one in found for node in one.nodes}.values()),
        policies=tuple({policy.key: policy for one in found for policy in one.policies}.values()),
        source="the nodes' agents",
    )


class _Numbers:
    """Drop reasons and functions of several kernels, under numbers that mean the same for all."""

    def __init__(self) -> None:
        self._names: list[str] = [""]
        self._numbers: dict[str, int] = {"": 0}

    def of(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def drop_reason(self, number: int) -> str:
        return self._names[number]

    def symbol(self, address: int) -> str:
        return self._names[address]


class _Part:
    """One half with everything in the numbers that all share."""

    def __init__(self, number: int, half: Half, shift_ns: int, names: _Numbers, *, whole: bool = False) -> None:
        self._number = number
        self._whole = whole
        self._half = half
        self._shift_ns = shift_ns
        self._names = names

    def _netns(self, inum: int) -> int:
        # Zero says that there was none.
        return inum + (self._number << _MACHINE) if inum else 0

    @property
    def netns(self) -> frozenset[int]:
        """All that are this machine's."""
        return frozenset(map(self._netns, self._half.fact("owners")))

    @property
    def client(self) -> int | None:
        """The client's netns, if it is here."""
        inum = self._half.fact("client_netns")
        return None if inum is None else self._netns(inum)

    @property
    def parties(self) -> frozenset[int]:
        """The netns of client and backends that are here."""
        return frozenset(map(self._netns, self._half.fact("parties")))

    def events(self) -> dict[int, Event]:
        """By their number in this stream."""
        reason = {n: self._names.of(name) for n, name in self._half.reasons.items()}
        symbol = {n: self._names.of(name) for n, name in self._half.symbols.items()}
        return {
            number: event._replace(
                ktime_ns=event.ktime_ns - self._shift_ns,
                skb=event.skb + (self._number << 64),
                netns=self._netns(event.netns),
                reason=reason.get(event.reason, 0),
                location=symbol.get(event.location, 0),
            )
            for number, event in self._half.events.items()
        }

    def steps(self) -> Iterable[RuleStep]:
        """Rules that packets met."""
        for step in self._half.steps:
            yield replace(step, netns=self._netns(step.netns), ktime_ns=step.ktime_ns - self._shift_ns)

    def rules(self, events: Mapping[int, Event], packet_of: Mapping[int, Packet]) -> dict[int, NamedRule]:
        """Those that dropped, by the id of the packet."""
        named = self._half.fact("rules")
        return {
            id(packet_of[id(events[n])]): rule
            for n, rule in named.items()
            if n in events and id(events[n]) in packet_of
        }

    def rivals(self, events: Mapping[int, Event]) -> dict[Event, Rivals]:
        """What `Surroundings` has under this name."""
        return {events[n]: rivals for n, rivals in self._half.fact("rivals").items() if n in events}

    def facts(self) -> dict[str, Any]:
        """Fields of `Surroundings`, and the owners of netns."""
        half, netns = self._half, self._netns
        by_netns = (
            "owners", "settings", "rises", "tables", "enter", "neighbours", "forwarding", "links", "addresses", "fills",
            "resolvers",
        )  # fmt: skip
        found: dict[str, Any] = {name: {netns(n): v for n, v in half.fact(name).items()} for name in by_netns}
        found["owners"] = {n: self._named(owner, n) for n, owner in found["owners"].items()}
        for name in ("listening", "backlogs", "attached"):
            found[name] = {(netns(n), *rest): v for (n, *rest), v in half.fact(name).items()}
        found["backend_netns"] = {a: netns(n) for a, n in half.fact("backend_netns").items()}
        found["wires"] = {
            address: replace(wire, netns=netns(wire.netns), far_netns=wire.far_netns and netns(wire.far_netns))
            for address, wire in half.fact("wires").items()
        }
        found["routes"] = {replace(q, netns=netns(q.netns)): route for q, route in half.fact("routes").items()}
        return found

    def _named(self, owner: Owner, number: int) -> Owner:
        """Its node, and a name for a pod's netns that has none: the number alone would be ours."""
        if self._whole:
            return owner
        node = owner.node or (self._half.node if owner.role is not Role.OTHER else None)
        return replace(owner, node=node, pin=owner.pin or str(_plain(number)))


def _plain(number: int) -> int:
    return number & (1 << _MACHINE) - 1


def _readable(report: Report, halves: Sequence[Half]) -> Report:
    """With netns as their own kernel numbers them, and commands that say where to type them."""

    def hop_of(hop: Hop) -> Hop:
        return replace(hop, netns=_plain(hop.netns))

    def finding_of(finding: Finding) -> Finding:
        where = finding.where
        fix = finding.fix
        if len(halves) > 1 and where.node and not any(line.startswith("# On ") for line in fix):
            fix = (f"# On {where.node}:", *fix)
        netns = _plain(where.netns) if where.netns else where.netns
        return replace(finding, where=replace(where, netns=netns), fix=fix)

    return replace(
        report,
        paths=tuple(replace(path, hops=tuple(map(hop_of, path.hops))) for path in report.paths),
        findings=tuple(map(finding_of, report.findings)),
    )
