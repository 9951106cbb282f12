"""One trace, from names to a Report: the only module where the pipeline's stages meet.

source (ring buffer, rule messages) → decode → correlate → diagnose → summarise. The kernel is asked at the near end
(`k8snet.kernel`), the reader is told at the far end (a `Watcher`); in between are values. `observe` is the half that
touches the kernel, `k8snet.judge` the one that does not. What is changed on the node while it runs (a table of our own
that marks packets for rule tracing) is the business of `RuleTrace` and its guardian.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Protocol

from k8snet.cluster.follow import Follower, owners_at
from k8snet.cluster.interfaces import Former, Role, World
from k8snet.cluster.inventory import Inventory, Pod
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError
from k8snet.event import DNS_PORT, Address, BadRecordError, Event, ProbeId
from k8snet.findings.case import Case, Surroundings, Wire, every_question
from k8snet.flow.correlate import Correlator
from k8snet.flow.model import AT_DEVICE, Flow, Packet
from k8snet.judge import NUMBERS, Observation, is_asked_for, judge, servers_of, silent_flow
from k8snet.kernel.conntrack import Witness
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.loader import Filter, ProbeStatus, Tracer
from k8snet.kernel.netns import Netns, opened
from k8snet.kernel.ruletrace import RuleStep
from k8snet.kernel.symbols import Symbols
from k8snet.path import Surface, hops
from k8snet.probes import ESSENTIAL
from k8snet.report import Expected, Hop, Report
from k8snet.send import Sender, Traffic

if TYPE_CHECKING:
    from k8snet.kernel.blame import Blame

DRAIN_EVERY: Final = 0.005  # seconds; a wakeup per event is the one real cost in user space
JUDGE_EVERY: Final = 0.05
ANSWERED_NS: Final = 50_000_000  # lets the rest of a handshake be drawn
# After a drop TCP tries again within a second: the second look may name the rule, or show that it was a passing thing.
RETRY_NS: Final = 1_200_000_000
QUIET_NS: Final = 300_000_000
LINGER: Final = 0.05  # seconds, for the last events of the last packet
RESOLVING: Final = 3.5  # seconds: the kernel asks for a next hop three times, a second apart, and then gives it up
NAMING: Final = 1.0  # seconds; a guess: so long may the last names be in coming


@dataclass(frozen=True)
class Request:
    """What to trace, and for how long."""

    client: Target
    server: Target
    inventory: Inventory
    protocol: str | None = None  # tcp, udp, icmp; None: as the target says, else tcp when we send, else any
    count: int | None = None  # connections
    timeout: float | None = None  # seconds
    send: int = 0
    dns: str | None = None
    size: int = 0  # bytes that each connection of ours sends
    wait: float = 3.0  # seconds until a silent connection counts as unanswered
    read_only: bool = False
    tiers: tuple[int, ...] = (1, 2)


class Names(Protocol):
    """Who says what things are called: a file, or the API (`k8snet.cluster.watch`)."""

    @property
    def inventory(self) -> Inventory:
        """The newest; never waits."""

    @property
    def notes(self) -> Sequence[str]:
        """What the reader should know of these names."""

    def want(self, addresses: Iterable[Address]) -> None:
        """These addresses have no name: find one, in the background."""

    def settle(self, seconds: float) -> None:
        """Wait for what is wanted, no longer than that."""


@dataclass(frozen=True)
class Fixed:
    """Names that do not change while a trace runs."""

    inventory: Inventory
    notes: tuple[str, ...] = ()

    def want(self, addresses: Iterable[Address]) -> None:
        """There is nobody to ask."""

    def settle(self, seconds: float) -> None:
        """Nothing is under way."""


class Watcher(Protocol):
    """Who looks on while a trace runs (`k8snet.render.live`)."""

    def ready(self) -> None:
        """All probes are attached: what happens from now on is seen."""

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """A packet was seen at another device."""

    def note(self, text: str) -> None:
        """Something about the trace itself."""

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """How far it has got."""


class Nobody:
    """A watcher that looks away."""

    def ready(self) -> None:
        """Nothing."""

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """Nothing."""


class Listener(Protocol):
    """Who takes down all that a trace sees, for somebody else to judge (`k8snet.agent`)."""

    def begun(self, world: World, client_netns: int | None, backend_netns: Mapping[Address, int]) -> None:
        """All probes are attached."""

    def saw(self, event: Event, record: bytes) -> None:
        """An event, and the record that it was."""

    def moment(self, world: World, steps: Sequence[RuleStep]) -> None:
        """Some time has passed: this machine as it is now, and all rules that were traced up to now."""

    def ended(self) -> bool:
        """It is enough."""


class KernelNames:
    """The running kernel's names as the findings want them: plain text, empty where there is none."""

    def __init__(self) -> None:
        self._symbols = Symbols()

    def drop_reason(self, number: int) -> str:
        # A kernel without reasons is not one that left the reason open: its findings rest on the symbol.
        return self._symbols.drop_reason(number) if self._symbols.drop_reasons else ""

    def symbol(self, address: int) -> str:
        found = self._symbols.symbol(address)
        return found.function if found else ""


@dataclass
class _Run:
    """The state of one trace while it runs."""

    request: Request
    world: World
    kernel: KernelNames
    names: Names
    follow: Follower
    client_netns: Netns | None
    backend_netns: dict[Address, int]
    surface: Surface
    correlator: Correlator
    witness: Witness
    servers: frozenset[Address]  # where the flows that were asked for go to; empty: anywhere
    elsewhere: frozenset[int]  # netns that the client cannot reach: other networks that use the same addresses
    handed: dict[int, tuple[Former, Former]] = field(default_factory=dict)  # netns: its first and last former owner
    sender: Sender | None = None
    listener: Listener | None = None
    pending: list[tuple[Event, bytes]] = field(default_factory=list)
    taken: int = 0  # so many of the correlator's flows are in `open`, or have been
    open: list[Flow] = field(default_factory=list)  # looked at again and again; of ten thousand flows these are few
    insisted: set[int] = field(default_factory=set)  # id(flow): its next packet is traced whatever else goes on
    located: set[Address] = field(default_factory=set)  # backends whose netns was looked for, here or not
    settled: int = 0  # connections that have come to their end ...
    answered: int = 0  # ... and well
    bad_records: int = 0
    expected: Expected | None = None

    def surroundings(self) -> Surroundings:
        return Surroundings(
            inventory=self.names.inventory,
            owners=self.surface.owners,
            kernel=self.kernel,
            client_netns=self.client_netns.inum if self.client_netns else None,
            backend_netns=self.backend_netns,
        )


def run_trace(
    request: Request,
    world: World,
    watcher: Watcher | None = None,
    names: Names | None = None,
    guardian: Guardian | None = None,
) -> Report:
    """Trace until `count`, `timeout` or Ctrl-C, and report. Raises K8snetError for what the user can mend.

    `names`: those that the report is written with, by default the request's own; `guardian`: one that was started
    already, before there were threads.
    """
    return judge(observe(request, world, watcher or Nobody(), names or Fixed(request.inventory), guardian))


def observe(
    request: Request,
    world: World,
    watcher: Watcher,
    names: Names,
    guardian: Guardian | None = None,
    listener: Listener | None = None,
) -> Observation:
    """The same without the judgement; a `listener` hears everything, and may end it."""
    run = _prepare(request, world, names)
    run.listener = listener
    run.sender = sender = _sender(request, run)  # raises for what cannot be sent, before anything is touched
    run.expected = foreseen(request, world)
    notes: list[str] = [*request.client.notes, *request.server.notes]
    with ExitStack() as stack:
        guardian = guardian or stack.enter_context(Guardian())
        if not request.read_only:
            guardian.start()  # before there are BPF maps and threads that a forked child would share
        stack.enter_context(run.follow)
        stack.enter_context(run.witness)
        stack.enter_context(uncollected())
        tracer = stack.enter_context(Tracer(_filter(request, world), tiers=request.tiers))
        notes += unattached(tracer.start())
        blame = stack.enter_context(_blame(request, run, guardian))
        watcher.ready()
        if listener is not None:
            listener.begun(world, run.client_netns.inum if run.client_netns else None, run.backend_netns)
        if sender is not None:
            sender.start()
        interrupted = False
        try:
            _watch(run, tracer, blame, sender, watcher)
        except KeyboardInterrupt:
            interrupted = True
        if sender is not None:
            sender.stop()
        time.sleep(LINGER)
        _take(run, tracer, blame, watcher, everything=True)
        lost = {name: count for name, count in tracer.lost().items() if count}
        if run.bad_records:
            lost["undecodable"] = run.bad_records
        lost |= blame.lost()
        observed = _observation(run, blame, lost, notes)
        if interrupted and not observed.flows:
            raise KeyboardInterrupt
        return observed


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's search for cycles off: events have none, and searching a million of them costs more than taking them.

    Measured: 21 us instead of 10 for each event, in pauses of half a second, in which the ring buffer overflows.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _prepare(request: Request, world: World, names: Names) -> _Run:
    client_netns = client_netns_of(world, request)
    backend_netns = _backends(request, world)
    backend_netns |= {a: client_netns.inum for a in request.client.addresses if client_netns is not None}
    parties = set(backend_netns.values()) | ({client_netns.inum} if client_netns else set())
    return _Run(
        request=request,
        world=world,
        kernel=KernelNames(),
        names=names,
        follow=Follower(world, names),
        client_netns=client_netns,
        backend_netns=backend_netns,
        surface=Surface(world.owners, frozenset(parties)),
        correlator=Correlator(request.client.addresses),
        witness=Witness(world.netns),
        servers=servers_of(request),
        elsewhere=frozenset(world.netns) - _reachable(world, client_netns) if client_netns else frozenset(),
    )


def _backends(request: Request, world: World) -> dict[Address, int]:
    """The netns of the server's addresses that are here."""
    # Ready or not: a terminating endpoint may be all there is, and one that is not ready may be so in a second.
    backends = {e.ip for e in request.server.all_endpoints} | set(request.server.addresses)
    pods = request.inventory.pod_by_ip
    return {a: n.inum for a in backends if (n := netns_of(world, a, pods.get(a))) is not None}


def _catch_up(run: _Run, world: World) -> None:
    """Take over what has become of this machine: pods that came, and went."""
    if world is run.world:
        return
    run.world = world
    run.located.clear()
    run.backend_netns |= {a: inum for a, inum in _backends(run.request, world).items() if inum not in world.gone}
    run.surface = Surface(world.owners, run.surface.parties | frozenset(run.backend_netns.values()))
    run.handed |= {inum: (run.handed.get(inum, (one, one))[0], one) for inum, one in world.former.items()}
    if run.client_netns is not None:
        run.elsewhere = frozenset(world.netns) - _reachable(world, run.client_netns)


def _name_in_time(run: _Run, flows: Iterable[Flow]) -> None:
    """Of netns whose number two pods had in turn: whose it was when the packets passed, or nobody's."""
    passed: dict[int, list[int]] = {}
    for event in (e for flow in flows for packet in flow.packets for e in packet.events if e.netns in run.handed):
        passed.setdefault(event.netns, []).append(event.ktime_ns)
    run.surface = replace(run.surface, owners=owners_at(run.world.owners, run.handed, passed))


def _reachable(world: World, start: Netns) -> set[int]:
    """Every netns that is joined to `start` by veths and devices on devices, over however many others."""
    reached, edge = {start.inum}, [start.inum]
    joined: dict[int, set[int]] = {}
    for interface in world.interfaces:
        for spot in (interface.peer, interface.parent):
            if spot is not None:
                joined.setdefault(interface.netns, set()).add(spot.netns)
                joined.setdefault(spot.netns, set()).add(interface.netns)
    while edge:
        fresh = joined.get(edge.pop(), set()) - reached
        reached |= fresh
        edge += fresh
    return reached


def netns_of(world: World, address: Address, pod: Pod | None = None) -> Netns | None:
    """The netns that has this address, None when it is not on this machine.

    Two networks on one machine may use the same address: a netns on the pod's own node is taken before another one,
    a pod's before a node's.
    """
    node = world.nodes.get(pod.node) if pod is not None and pod.node else None

    def doubt(inum: int) -> tuple[bool, bool, bool]:
        peers = {peer.netns for i in world.inside.get(inum, ()) if (peer := world.peer(i)) is not None}
        return inum in world.gone, node is not None and node not in peers, world.owner(inum).role is not Role.POD

    found = sorted({i.netns for i in world.interfaces if any(a.ip == address for a in i.addresses)}, key=doubt)
    return world.netns.get(found[0]) if found else None


def client_netns_of(world: World, request: Request) -> Netns | None:
    """Where the client is, None when it is not on this machine."""
    client = request.client
    return netns_of(world, client.addresses[0], client.pod) if client.addresses else None


def foreseen(request: Request, world: World) -> Expected | None:
    """What should become of the request's packets; None when it names no two addresses. Reads only."""
    from k8snet.foresee import foresee, pair_of

    netns = client_netns_of(world, request)
    pair = pair_of(request, netns.inum if netns else None)
    return foresee(pair, world, request.inventory) if pair else None


def _on_the_way(world: World, parties: Iterable[int]) -> tuple[Netns, ...]:
    """The parties' own netns and those at the other ends of their veths: their nodes."""
    inums = dict.fromkeys(parties)
    peers = (world.peer(i) for inum in list(inums) for i in world.inside.get(inum, ()))
    inums |= dict.fromkeys(peer.netns for peer in peers if peer is not None)
    return tuple(world.netns[inum] for inum in inums if inum in world.netns)


def _filter(request: Request, world: World) -> Filter:
    server = request.server
    peers = dict.fromkeys([*server.addresses, *(e.ip for e in server.all_endpoints)])
    ports: list[int] = []
    if server.port is not None:
        ports = list(dict.fromkeys([server.port, *(e.port for e in server.all_endpoints)]))
    return Filter(
        clients=request.client.addresses,
        peers=tuple(peers),
        protocol=NUMBERS[request.protocol] if request.protocol else 0,
        ports=tuple(ports) if request.protocol != "icmp" else (),
    )


def unattached(statuses: Iterable[ProbeStatus]) -> list[str]:
    """One line for what the chosen probes cannot show; tier 2 is never missed by a verdict."""
    missing = [s for s in statuses if not s.attached and s.probe.tier == 1 and s.probe.default]
    for status in missing:
        if status.probe.id in ESSENTIAL:
            raise K8snetError(f"probe {status.probe.name} cannot be attached: {status.why}", "k8snet check")
    return [f"probe {s.probe.name} not attached ({s.why}): {s.probe.loss}" for s in missing]


def _blame(request: Request, run: _Run, guardian: Guardian) -> Blame:
    """Who names the rules: in every netns on the way that can have some."""
    from k8snet.kernel.blame import Blame
    from k8snet.kernel.ruletrace import Match

    server = request.server
    match = Match(
        protocol=NUMBERS[request.protocol] if request.protocol else 0,
        clients=request.client.addresses,
        servers=tuple((address, server.port) for address in server.addresses),
        backends=tuple((e.ip, e.port) for e in server.all_endpoints),
    )
    return Blame(_on_the_way(run.world, run.surface.parties), match, guardian, read_only=request.read_only)


def _sender(request: Request, run: _Run) -> Sender | None:
    if not request.send:
        return None
    if run.client_netns is None:
        raise K8snetError(
            f"{request.client.text} is not on this node, so nothing can be sent from it",
            "run k8snet on the pod's node, or leave out --send and make the connection yourself",
        )
    protocol = NUMBERS[request.protocol or "tcp"]
    port = request.server.port or 0
    if protocol != socket.IPPROTO_ICMP and not port:
        raise K8snetError(
            f"--send needs a port, and {request.server.text} names none",
            f"write --to {request.server.text}:PORT, or add --protocol icmp",
        )
    to = request.server.addresses[0]
    source = next((address for address in request.client.addresses if address.version == to.version), None)
    traffic = Traffic(
        to, port, protocol, request.send, wait=request.wait, dns=request.dns, source=source, size=request.size
    )
    return Sender(run.client_netns, traffic)


def _watch(run: _Run, tracer: Tracer, blame: Blame, sender: Sender | None, watcher: Watcher) -> None:
    """Take events until the trace has what it was asked for."""
    request = run.request
    wanted = request.send or request.count
    began = judged = time.monotonic()
    deadline = began + request.timeout if request.timeout is not None else None
    while True:
        _take(run, tracer, blame, watcher)
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return
        if run.listener is not None and run.listener.ended():
            return
        if now - judged >= JUDGE_EVERY:
            judged = now
            _catch_up(run, run.follow.world)
            connections = _settle(run, blame)
            if run.listener is not None:
                run.listener.moment(run.world, blame.steps)
            watcher.counts(connections, run.answered, sum(tracer.lost().values()))
            if sender is not None and not sender.is_alive():
                if sender.error is not None and not sender.attempts:
                    raise K8snetError(
                        f"nothing could be sent from {request.client.text}: {sender.error.strerror}",
                        "the pod may have ended: see `k8snet map`",
                    )
                if run.settled >= connections and (connections or now - began >= request.wait):
                    client = run.client_netns.inum if run.client_netns else None
                    if connections or now - began >= request.wait + RESOLVING or not _is_resolving(run, client or 0):
                        return
            elif sender is None and wanted and run.settled >= wanted:
                return
        time.sleep(DRAIN_EVERY)


def _settle(run: _Run, blame: Blame) -> int:
    """Note which connections have come to their end; returns how many there are, ended or not."""
    flows = run.correlator.flows
    run.open += flows[run.taken :]
    run.taken = len(flows)
    around = run.surroundings()
    now = time.monotonic_ns()
    resolving = cache(partial(_is_resolving, run))
    still_open = []
    waiting = 0
    unnamed = set()
    for flow in run.open:
        _locate(run, flow)
        ours = _is_asked_for(run, flow)
        case = Case(flow, around)
        if ours and case.backend is not None:
            unnamed.add(case.backend[0])
        if ours and _settled(case, now, run.request.wait) and not _still_asking(run, case, now, resolving):
            run.settled += 1
            run.answered += case.served
        else:
            still_open.append(flow)
            waiting += ours
            if ours and case.tcp and id(flow) not in run.insisted and any(death.netfilter for death in case.deaths):
                run.insisted.add(id(flow))
                blame.insist(flow.original.saddr, flow.original.sport)
    run.open = still_open
    _want_names(run, unnamed)
    return run.settled + waiting


def _locate(run: _Run, flow: Flow) -> None:
    """Find the netns of a backend that DNAT has chosen and that no inventory had named."""
    if flow.dnat is None or flow.dnat[0] in run.located:
        return
    address = flow.dnat[0]
    run.located.add(address)
    if address not in run.backend_netns and (found := netns_of(run.world, address)) is not None:
        run.backend_netns[address] = found.inum
        run.surface = replace(run.surface, parties=run.surface.parties | {found.inum})


def _want_names(run: _Run, backends: Iterable[Address]) -> None:
    """DNAT may choose a backend that was not there when the names were asked for."""
    known = run.names.inventory
    unknown = [a for a in backends if a not in known.pod_by_ip and a not in known.node_by_ip]
    if unknown and not run.request.server.outside:
        run.names.want(unknown)


def _still_asking(run: _Run, case: Case, now_ns: int, resolving: Callable[[int], bool]) -> bool:
    """It may wait for an address to be resolved: how that ends is worth waiting for."""
    if case.answered or case.deaths or case.refused_by is not None:
        return False
    age = (now_ns - case.flow.started_ns) / 1e9
    last = case.flow.packets[-1].last
    here = last.netns != case.backend_netns and age < run.request.wait + RESOLVING
    return here and resolving(last.netns)


def _is_resolving(run: _Run, inum: int) -> bool:
    from k8snet.kernel.lookups import is_resolving

    return inum in run.world.netns and is_resolving(run.world.netns[inum])


def _settled(case: Case, now_ns: int, wait: float) -> bool:
    """Nothing more is to be expected of this flow."""
    packets = case.flow.packets
    if not packets:
        return False
    quiet = now_ns - max(p.last.ktime_ns for p in packets)
    age = now_ns - packets[0].first.ktime_ns
    if case.answered and (stuck := case.unacknowledged) is not None:
        return now_ns - stuck.first.ktime_ns >= wait * 1e9
    if case.answered or case.refused_by is not None:
        return quiet >= ANSWERED_NS
    if case.deaths:
        return (age >= RETRY_NS and quiet >= QUIET_NS) or age >= wait * 1e9
    return age >= wait * 1e9


def _take(run: _Run, tracer: Tracer, blame: Blame, watcher: Watcher, *, everything: bool = False) -> None:
    """Decode what the kernel has for us and give it to the correlator in the order of time."""
    blame.drain()
    while records := tracer.drain():
        for record in records:
            try:
                run.pending.append((Event.decode(record), record))
            except BadRecordError:
                run.bad_records += 1
        if not everything and len(run.pending) > 100_000:
            break
    if not run.pending:
        return
    events = sorted(run.pending, key=lambda pair: pair[0].ktime_ns)
    run.pending = []
    for event, record in events:
        if event.netns in run.elsewhere or not run.witness.hear(event):
            continue
        if run.listener is not None:
            run.listener.saw(event, record)
        packet = run.correlator.feed(event)
        if packet is not None and event.probe in AT_DEVICE:
            _show(run, packet, watcher)


def _show(run: _Run, packet: Packet, watcher: Watcher) -> None:
    from k8snet.findings.words import label

    if isinstance(watcher, Nobody):
        return
    way = hops(packet, run.surface)
    if way:
        watcher.hop(packet.direction.value, label(packet), way[-1])


def _connections(run: _Run) -> list[Flow]:
    """The flows that the user asked for: those that went to the address and port that was named."""
    return [flow for flow in run.correlator.flows if _is_asked_for(run, flow)]


def _is_asked_for(run: _Run, flow: Flow) -> bool:
    client = run.client_netns.inum if run.client_netns is not None else None
    ports = run.sender.ports if run.sender is not None else None
    return is_asked_for(flow, run.request, run.servers, client, ports)


def _observation(run: _Run, blame: Blame, lost: Mapping[str, int], notes: Sequence[str]) -> Observation:
    from k8snet.kernel.blame import Drop
    from k8snet.kernel.lookups import ask

    sender = run.sender
    run.correlator.attach_rules(blame.steps)
    flows = _connections(run)
    known = run.surroundings()
    _want_names(run, {case.backend[0] for f in flows if (case := Case(f, known)).backend is not None})
    run.names.settle(NAMING)
    _catch_up(run, run.follow.last())
    for flow in flows:
        _locate(run, flow)
    _name_in_time(run, flows)
    last = (e for f in flows for p in f.packets for e in p.events if e is p.last or e.probe is ProbeId.KFREE_SKB)
    facts = blame.facts({(e.netns, e.ifname) for e in last if e.ifname})
    around = replace(
        run.surroundings(),
        lost=sum(lost.values()),
        settings=facts.settings,
        rises=facts.rises,
        listening=facts.listening,
        backlogs=facts.backlogs,
        attached=facts.attached,
        tables=facts.tables,
        enter=facts.enter,
        rivals=run.witness.rivals,
        fills=run.witness.fills,
        wires=_wires(run),
        send_errors=tuple(a.errno for a in sender.attempts if a.errno) if sender is not None else (),
    )
    silent = None if flows else silent_flow(run.request)
    questions = {q for flow in flows or ([silent] if silent else []) for q in Case(flow, around).questions}
    if run.listener is not None:
        questions |= {q for flow in flows for q in every_question(flow)}
        run.listener.moment(run.world, blame.steps)
    if questions:
        ends = {n for w in around.wires.values() for n in (w.netns, w.far_netns) if n is not None}
        answers = ask(questions, ends, run.world.netns)
        around = replace(
            around,
            routes=answers.routes,
            neighbours=answers.neighbours,
            forwarding=answers.forwarding,
            links=answers.links,
            addresses=answers.addresses,
        )
    if run.client_netns is not None and any(flow.original.dport == DNS_PORT for flow in flows):
        from k8snet.kernel.rootfs import resolver_of

        resolver = resolver_of(run.world.netns.get(run.client_netns.inum, run.client_netns))
        around = replace(around, resolvers={run.client_netns.inum: resolver} if resolver else {})
    deaths = [d for flow in flows for d in Case(flow, around).deaths if d.netfilter]
    around = replace(around, rules=blame.name([Drop(id(d.packet), d.event, d.packet.rules) for d in deaths]))
    return Observation(
        request=run.request,
        flows=flows,
        around=around,
        surface=run.surface,
        lost=lost,
        rule_naming=blame.how,
        boot_ns=time.time_ns() - time.monotonic_ns(),
        ports=frozenset(sender.ports) if sender is not None else None,
        notes=(*notes, *blame.notes, *_gone(run), *_said(sender), *run.names.notes),
        expected=run.expected,
    )


def _wires(run: _Run) -> dict[Address, Wire]:
    """By which device each party that is here hangs on its node."""
    wires: dict[Address, Wire] = {}
    parties = dict(run.backend_netns)
    if run.client_netns is not None:
        parties |= dict.fromkeys(run.request.client.addresses, run.client_netns.inum)
    for address, inum in parties.items():
        near = next((i for i in run.world.inside.get(inum, ()) if any(a.ip == address for a in i.addresses)), None)
        if near is not None and run.world.owner(inum).role is Role.POD:
            far = run.world.peer(near)
            wires[address] = Wire(inum, near.name, far.netns if far else None, far.name if far else None)
    return wires


def _gone(run: _Run) -> list[str]:
    """Parties that went away while we looked."""
    gone = []
    for address, inum in run.backend_netns.items():
        if not _is_there(run, inum):
            pod = run.names.inventory.pod_by_ip.get(address)
            gone.append(f"{f'pod/{pod.key}' if pod else address} went away during the trace")
    return list(dict.fromkeys(gone))  # a pod has an address of each family


def _is_there(run: _Run, inum: int) -> bool:
    """The netns can be entered, and is nobody else's by now."""
    if inum in run.handed and run.world.owner(inum) != run.handed[inum][1].owner:
        return False
    try:
        os.close(opened(run.world.netns[inum]))
    except (KeyError, OSError):
        return False
    return True


def _said(sender: Sender | None) -> list[str]:
    """What the client's own socket was told, in one line."""
    if sender is None or not sender.attempts:
        return []
    results = [a.result for a in sender.attempts]
    counts = ", ".join(f"{results.count(r)} {r}" for r in dict.fromkeys(results))
    ended = f"; then sending failed: {sender.error.strerror}" if sender.error is not None else ""
    return [f"sent {len(results)} from the client's netns: {counts}{ended}"]
