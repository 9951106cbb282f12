"""The loop on a node: tracer → engine → whoever looks on, for as long as one likes.

In: `Settings`, the World (kept up to date by `Follower`), names. Out: calls of a `Watcher`, all from the calling
thread. Ends after `duration`, when the watcher says so, or by Ctrl-C (which is no error). The kernel is asked here, for
what the engine is about to judge; the engine itself asks nobody.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Final, Protocol

from k8snet.cluster.follow import Follower
from k8snet.cluster.interfaces import Owner, Role, World, in_use
from k8snet.event import Address, BadRecordError, Event
from k8snet.findings.case import Surroundings, Wire
from k8snet.flow.dns import DnsExchange
from k8snet.flow.model import Flow
from k8snet.kernel.conntrack import Witness
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.loader import MAX_PEERS, Filter, Tracer
from k8snet.kernel.netns import Netns, own
from k8snet.kernel.resolver import Resolver
from k8snet.kernel.rootfs import resolver_of
from k8snet.trace import KernelNames, Names, unattached
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts, Engine, Limits
from k8snet.watch.naming import Namer
from k8snet.watch.places import Places
from k8snet.watch.table import is_for_witness

DRAIN_EVERY: Final = 0.02  # seconds; in that time 20,000 events a second fill a fiftieth of the ring
TICK: Final = 0.1
EASE_AFTER: Final = 10.0  # seconds below the budget until more is looked at again
EASY: Final = 0.8  # of the budget; so much may twice as many connections take
MEASURED: Final = 1.0  # seconds
CPU_MEASURED: Final = 5.0  # seconds: reading the rules of a large node takes one, and is over then
MOST_SHIFT: Final = 16


def everybody(owner: Owner) -> bool:
    """Every pod of this node."""
    return True


@dataclass(frozen=True)
class Settings:
    """What to watch, and how much it may cost."""

    chosen: Callable[[Owner], bool] = everybody  # of the netns that are pods', which ones; asked again for new ones
    duration: float | None = None  # seconds
    limits: Limits = field(default_factory=Limits)
    events_per_second: int = 20_000  # above that, connections are sampled
    cpu: float = 0.5  # of one processor; likewise
    ring_bytes: int = 8 << 20
    read_only: bool = False  # nothing on the node is changed, not even to name a rule
    tiers: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, slots=True)
class Usage:
    """What watching costs."""

    cpu: float  # seconds of this process since the beginning
    memory: int  # bytes resident
    pods: int  # watched now


class Watcher(Protocol):
    """Who looks on (`k8snet.render.watch`, `k8snet.render.dashboard`)."""

    def ready(self, usage: Usage) -> None:
        """All probes are attached: what happens from now on is seen."""

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        """Something went wrong; at least one."""

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        """DNS queries have come to their end, well or badly; at least one."""

    def note(self, text: str) -> None:
        """Something about the watch itself: it samples from now on, a probe is missing."""

    def counts(self, counts: Counts, usage: Usage) -> None:
        """How far it has got; ten times a second."""

    def ended(self) -> bool:
        """It is enough."""


class Listener(Protocol):
    """Who takes down all that is needed to judge later (`k8snet.record`)."""

    def saw(self, records: Sequence[bytes]) -> None:
        """Records, as they go into the engine."""

    def lost(self, lost: int, held: int, shift: int) -> None:
        """What `Engine.lose` and `Engine.sample` are told, when it changes."""

    def moment(self, now_ns: int, around: Surroundings, due: Sequence[Flow]) -> None:
        """What `Engine.tick` is about to be told, and of what."""


def observe(
    settings: Settings,
    world: World,
    names: Names,
    watcher: Watcher,
    guardian: Guardian | None = None,
    listener: Listener | None = None,
) -> Counts:
    """Watch until it is enough. Raises K8snetError for what the user can mend."""
    with ExitStack() as stack:
        guardian = guardian or stack.enter_context(Guardian())
        if not settings.read_only:
            guardian.start()  # before there are BPF maps and threads that a forked child would share
        follow = stack.enter_context(Follower(world, names))
        there = dict(world.netns)
        witness = stack.enter_context(Witness(there))
        namer = stack.enter_context(Namer(guardian, read_only=settings.read_only))
        tracer = stack.enter_context(Tracer(Filter((), watch=True), settings.tiers, settings.ring_bytes))
        notes = unattached(tracer.start())
        watch = _Watch(settings, names, watcher, listener, follow, tracer, witness, namer, there)
        watch.catch_up()
        for note in notes:
            watcher.note(note)
        watcher.ready(watch.usage())
        try:
            watch.run()
        except KeyboardInterrupt:
            watch.finish()
        return watch.engine.counts


class Pods:
    """The watched pods and their addresses, as the world is now."""

    def __init__(self, chosen: Callable[[Owner], bool]) -> None:
        self.netns: dict[Address, int] = {}  # of every pod's address on this machine, watched or not
        self.wires: dict[Address, Wire] = {}
        self.watched: frozenset[Address] = frozenset()
        self.count = 0
        self._chosen = chosen

    def follow(self, world: World) -> None:
        """Take over what has become of this machine."""
        netns: dict[Address, int] = {}
        wires: dict[Address, Wire] = {}
        watched: set[Address] = set()
        self.count = 0
        # Whoever is there now comes after those that are gone: an address may be another pod's already.
        for inum in sorted(world.owners, key=lambda inum: inum not in world.gone):
            owner = world.owner(inum)
            if owner.role is not Role.POD:
                continue
            mine = self._chosen(owner)
            self.count += mine and inum not in world.gone
            for interface in world.inside.get(inum, ()):
                far = world.peer(interface)
                for address in (a.ip for a in interface.addresses if in_use(interface) and not a.ip.is_link_local):
                    netns[address] = inum
                    wires[address] = Wire(inum, interface.name, far.netns if far else None, far.name if far else None)
                    if mine:
                        watched.add(address)
        self.netns, self.wires, self.watched = netns, wires, frozenset(watched)


class Budget:
    """How many connections are looked at, so that it costs no more than it may: one in 2**shift."""

    def __init__(self, events_per_second: int, cpu: float) -> None:
        """`cpu`: seconds of processor time that a second may cost."""
        self.shift = 0
        self.why = ""  # it looks at fewer
        self._events = _Rate(events_per_second, MEASURED)
        self._cpu = _Rate(cpu, CPU_MEASURED)
        self._calm_since: float | None = None

    def after(self, now: float, events: int, cpu: float, lost: bool) -> int:
        """The shift from now on; `events`, `cpu`: all that there ever were, `lost`: some have just been lost."""
        news = self._events.measure(now, events, at_once=lost)
        if not (self._cpu.measure(now, cpu) or news):
            return self.shift
        load = max(self._events.load, self._cpu.load)
        if lost or load > 1:
            self._calm_since = None
            if load <= 1:
                self.why = "events were lost"
            elif self._cpu.load > self._events.load:
                self.why = f"over {self._cpu.most:.0%} of a processor"
            else:
                self.why = f"over {self._events.most:.0f} events a second"
            self.shift = min(MOST_SHIFT, self.shift + max(1, int(load).bit_length() - 1))
            self._cpu.restart(now, cpu)
        elif load * 2 > EASY:
            self._calm_since = None
        else:
            self._calm_since = self._calm_since or now
            if now - self._calm_since >= EASE_AFTER:
                self.shift, self._calm_since = max(0, self.shift - 1), None
        return self.shift


class _Rate:
    """How much of `most` a second something takes, measured over so many seconds."""

    def __init__(self, most: float, seconds: float) -> None:
        self.most = most
        self.load = 0.0  # 1.0 is all of it
        self._seconds = seconds
        self._since: tuple[float, float] | None = None

    def measure(self, now: float, total: float, *, at_once: bool = False) -> bool:
        """Whether there is something new in `load`; `total`: all there ever was."""
        if self._since is None:
            self._since = now, total
        seconds = now - self._since[0]
        if seconds < self._seconds and not at_once:
            return False
        self.load = (total - self._since[1]) / max(seconds, TICK) / self.most
        self._since = now, total
        return True

    def restart(self, now: float, total: float) -> None:
        """What was measured is true no more."""
        self.load, self._since = min(self.load, EASY), (now, total)


class _Watch:
    """One watch while it runs."""

    def __init__(
        self,
        settings: Settings,
        names: Names,
        watcher: Watcher,
        listener: Listener | None,
        follow: Follower,
        tracer: Tracer,
        witness: Witness,
        namer: Namer,
        there: dict[int, Netns],
    ) -> None:
        self.engine = Engine(settings.limits)
        self._settings, self._names, self._watcher, self._listener = settings, names, watcher, listener
        self._follow, self._tracer, self._witness, self._namer = follow, tracer, witness, namer
        self._there = there
        self._pods = Pods(settings.chosen)
        self._places = Places()
        self._budget = Budget(settings.events_per_second, settings.cpu)
        self._kernel = KernelNames()
        self._own = own()
        self._world: World | None = None
        self._let_through: frozenset[Address] = frozenset()
        self._resolvers: dict[int, tuple[Netns, Resolver]] = {}
        self._lost: tuple[int, int, int] = (0, 0, 0)

    def run(self) -> None:
        """Until it is enough."""
        began = ticked = time.monotonic()
        while True:
            self._take()
            now = time.monotonic()
            if self._settings.duration is not None and now - began >= self._settings.duration:
                break
            if now - ticked >= TICK:
                ticked = now
                self._tick()
                if self._watcher.ended():
                    break
            time.sleep(DRAIN_EVERY)
        self.finish()

    def finish(self) -> None:
        """Judge what has come to its end by now; of what is under way nothing can be said."""
        self._take()
        self._tick()

    def catch_up(self) -> None:
        """Take over what has become of this machine, and watch the pods that are there now."""
        world = self._follow.world
        if world is self._world:
            return
        self._world = world
        self._there.clear()
        self._there.update(world.netns)
        self._pods.follow(world)
        wanted = frozenset(sorted(self._pods.watched, key=lambda address: (address.version, address))[:MAX_PEERS])
        if len(wanted) < len(self._pods.watched):
            self._watcher.note(f"{len(self._pods.watched)} addresses of pods, only {len(wanted)} are watched")
        self._tracer.add_peers(wanted - self._let_through)
        self._tracer.remove_peers(self._let_through - wanted)
        self._let_through = wanted

    def usage(self) -> Usage:
        """What it costs by now."""
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return Usage(time.process_time(), pages * os.sysconf("SC_PAGESIZE"), self._pods.count)

    def _take(self) -> None:
        """Give the engine what the kernel has for us."""
        while records := self._tracer.drain():
            if self._listener is not None:
                self._listener.saw(records)
            self.engine.feed(records)
            for record in records:
                if is_for_witness(record):
                    with contextlib.suppress(BadRecordError):
                        self._witness.hear(Event.decode(record))

    def _tick(self) -> None:
        self.catch_up()
        lost, held = sum(self._tracer.lost().values()), self._tracer.held()
        now, cpu = time.monotonic(), time.process_time()
        shift = self._budget.after(now, self.engine.counts.events, cpu, lost > self._lost[0])
        if (lost, held, shift) != self._lost:
            self._sample(shift)
            self.engine.lose(lost, held)
            self._lost = lost, held, shift
            if self._listener is not None:
                self._listener.lost(lost, held, shift)
        now_ns = time.monotonic_ns()
        around = self._surroundings(now_ns)
        if self._listener is not None:
            self._listener.moment(now_ns, around, self.engine.due(now_ns))
        found = self.engine.tick(now_ns, around)
        self._witness.forget(now_ns)
        if found:
            self._want_names(found)
            self._watcher.found(found)
        if self.engine.asked:
            self._watcher.asked(self.engine.asked)
        self._watcher.counts(self.engine.counts, self.usage())

    def _sample(self, shift: int) -> None:
        if shift == self._lost[2]:
            return
        self._tracer.sample(shift)
        self.engine.sample(shift)
        self._watcher.note(
            f"{self._budget.why}: of {1 << shift} connections one is looked at"
            if shift
            else "all connections are looked at again"
        )

    def _surroundings(self, now_ns: int) -> Surroundings:
        """All that the engine may want to know at this moment."""
        world = self._world if self._world is not None else self._follow.world
        around = Surroundings(
            inventory=self._names.inventory,
            owners=world.owners,
            kernel=self._kernel,
            client_netns=None,
            backend_netns=self._pods.netns,
            wires=self._pods.wires,
            enter={
                inum: f"nsenter --net={shlex.quote(netns.path)} "
                for inum, netns in world.netns.items()
                if inum != self._own
            },
            rivals=self._witness.rivals,
            fills=self._witness.fills,
            resolvers=self._asked_by(world),
        )
        self._places.nodes((i for i, owner in world.owners.items() if owner.role is Role.NODE), world.netns)
        young, due = self.engine.young(now_ns), self.engine.due(now_ns)
        self._places.look(young, around, world.netns)
        self._namer.begin(young, around, world.netns)
        self._namer.drain()
        return replace(self._places.known(due, around, world.netns), rules=self._namer.name(due, around))

    def _asked_by(self, world: World) -> dict[int, Resolver]:
        """What the resolv.conf says of pods that ask for names; read once for each."""
        for inum in self.engine.asking & world.netns.keys():
            netns = world.netns[inum]
            known = inum in self._resolvers and self._resolvers[inum][0] == netns
            if not known and world.owner(inum).role is Role.POD and (resolver := resolver_of(netns)) is not None:
                self._resolvers[inum] = netns, resolver
        for inum in self._resolvers.keys() - world.netns.keys():
            del self._resolvers[inum]
        return {inum: resolver for inum, (_, resolver) in self._resolvers.items()}

    def _want_names(self, found: Sequence[Anomaly]) -> None:
        """For the next time: who is behind an address that has no name yet."""
        known = self._names.inventory
        ends = {end.ip for a in found if a.flow for end in (a.flow.client, a.flow.server) if end.pod is None}
        unknown = [ip for ip in map(ip_address, ends) if ip not in known.service_by_ip and ip not in known.node_by_ip]
        if unknown:
            self._names.want(unknown)
