"""What a watch's engine is told besides its events, as lines; and the reader's memory of it.

In: at each tick the `Surroundings` that the engine gets. Out: a `Moment` with what is new in it; back, the same
`Surroundings` from the lines up to there. Surprising: a rule that was named belongs to a packet, and packets are made
anew in a replay; so its place among the flows that are due is written down, which is the same whenever the same events
are fed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from k8snet.agent import lines
from k8snet.agent.lines import Facts, Hello, Names
from k8snet.cluster.inventory import Inventory, NetworkPolicy, Node, Pod, Service
from k8snet.event import Event
from k8snet.findings.case import Kernel, Surroundings
from k8snet.flow.model import Flow
from k8snet.kernel.conntrack import Rivals
from k8snet.kernel.rules import NamedRule

_OBJECTS: Final = ("pods", "services", "nodes", "policies")
EventKey = tuple[int, int, int]  # ktime_ns, skb, probe


@dataclass(frozen=True)
class Watching:
    """Behind the hello: this is a watch's recording, and its engine has these limits."""

    flows: int
    wait: float


@dataclass(frozen=True)
class Objects:
    """Kubernetes objects that are new or have changed; later lines add to earlier ones."""

    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    policies: tuple[NetworkPolicy, ...] = ()
    gone: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by the names of the fields above: keys
    source: str = ""


@dataclass(frozen=True)
class Missed:
    """What the engine is told of events that it does not get; sums since the beginning."""

    lost: int
    held: int
    shift: int


@dataclass(frozen=True)
class Moment:
    """A tick: judge now. `known` adds to what is known, after the fields in `fresh` were emptied."""

    now_ns: int
    known: Facts = field(default_factory=Facts)
    fresh: tuple[str, ...] = ()
    rivals: Mapping[EventKey, Rivals] = field(default_factory=dict)  # all that there are now
    rules: Mapping[tuple[int, int], NamedRule] = field(default_factory=dict)  # number of the flow, of its packet: all


@dataclass(frozen=True)
class Note:
    """Something about the watch itself."""

    text: str


@dataclass(frozen=True)
class Cost:
    """What watching costs by now; every few seconds."""

    cpu: float  # seconds
    memory: int  # bytes
    pods: int


Told = Watching | Objects | Missed | Moment | Note | Cost
KINDS: Final[dict[str, type[Told]]] = {
    kind.__name__.lower(): kind for kind in (Watching, Objects, Missed, Moment, Note, Cost)
}


_ALL: Final[Mapping[str, type[lines.Line | Told]]] = {**lines.KINDS, **KINDS}


def understood(text: str) -> lines.Line | Told | None:
    """The line that `text` is, of a trace's or a watch's recording; None for a newer kind. Raises BadLineError."""
    return lines.parsed(text, _ALL)


# Of `Surroundings`, under the same name in `Facts`, and with the same keys.
_IN_FACTS: Final = {f.name for f in fields(Facts)} - {"inventory", "rivals", "rules"}
_SHARED: Final = tuple(f.name for f in fields(Surroundings) if f.name in _IN_FACTS)
_NOTHING: Final = Facts()


class Differ:
    """Says what is new since the last time."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._inventory: Inventory | None = None
        self._objects: dict[str, dict[str, Any]] = {name: {} for name in _OBJECTS}

    def objects(self, inventory: Inventory) -> Objects | None:
        """None: nothing is new."""
        if inventory is self._inventory:
            return None
        self._inventory = inventory
        changed: dict[str, Any] = {}
        gone: dict[str, tuple[str, ...]] = {}
        for name in _OBJECTS:
            before = self._objects[name]
            now = {_key(thing): thing for thing in getattr(inventory, name)}
            # Most are the same objects; comparing them field by field takes a hundred times as long.
            changed[name] = tuple(t for key, t in now.items() if (old := before.get(key)) is not t and old != t)
            if left := tuple(key for key in before if key not in now):
                gone[name] = left
            self._objects[name] = now
        found = Objects(**changed, gone=gone, source=inventory.source)
        return None if not gone and not any(changed.values()) else found

    def moment(self, now_ns: int, around: Surroundings, due: Sequence[Flow]) -> Moment:
        """The tick, with all that the engine may look at."""
        known: dict[str, Any] = {}
        fresh: list[str] = []
        for name in _SHARED:
            value = getattr(around, name)
            before = self._last.get(name, getattr(_NOTHING, name))
            if value == before:
                continue
            if isinstance(value, Mapping):
                self._last[name] = dict(value)  # some are changed in place
                if before.keys() - value.keys():
                    fresh.append(name)
                    before = {}
                known[name] = {key: v for key, v in value.items() if key not in before or before[key] != v}
            else:
                self._last[name] = known[name] = value
        return Moment(
            now_ns,
            Facts(**known),
            tuple(fresh),
            {(e.ktime_ns, e.skb, int(e.probe)): rivals for e, rivals in around.rivals.items()},
            {
                (n, m): around.rules[id(packet)]
                for n, flow in enumerate(due if around.rules else ())
                for m, packet in enumerate(flow.packets)
                if id(packet) in around.rules
            },
        )


def _key(thing: Pod | Service | Node | NetworkPolicy) -> str:
    return thing.name if isinstance(thing, Node) else thing.key


class Memory:
    """What the lines up to now have said: a `k8snet.record.file.State`, and whom a replay's engine asks."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.watching: Watching | None = None
        self.missed = Missed(0, 0, 0)
        self.cost = Cost(0.0, 0, 0)
        self._known: dict[str, Any] = {}
        self._objects: dict[str, dict[str, Any]] = {name: {} for name in _OBJECTS}
        self._inventory = Inventory()
        self._names = Names({}, {})
        self._now_ns = 0

    def hear(self, text: str) -> None:
        """A line has been written."""
        self.take(understood(text))

    def take(self, line: object) -> None:
        """A line has been read."""
        match line:
            case Hello():
                self.hello = self.hello or line
            case Watching():
                self.watching = line
            case Missed():
                self.missed = line
            case Cost():
                self.cost = line
            case Names():
                self._names = Names({**self._names.reasons, **line.reasons}, {**self._names.symbols, **line.symbols})
            case Objects():
                self._take_objects(line)
            case Moment():
                self._now_ns = line.now_ns
                for name in line.fresh:
                    self._known.pop(name, None)
                for name in _SHARED:
                    new = getattr(line.known, name)
                    if new != getattr(_NOTHING, name):
                        old = self._known.get(name)
                        self._known[name] = {**old, **new} if isinstance(old, Mapping) else new

    def _take_objects(self, line: Objects) -> None:
        for name in _OBJECTS:
            things = self._objects[name]
            for key in line.gone.get(name, ()):
                things.pop(key, None)
            things |= {_key(thing): thing for thing in getattr(line, name)}
        self._inventory = Inventory(**{n: tuple(self._objects[n].values()) for n in _OBJECTS}, source=line.source)

    def snapshot(self) -> Iterator[str]:
        """The same in as few lines as possible."""
        if self.hello is None:
            return
        known = self._inventory
        said: Iterable[lines.Line | Told | None] = (
            self.hello,
            self.watching,
            self._names,
            Objects(known.pods, known.services, known.nodes, known.policies, source=known.source),
            self.missed,
            self.cost,
            Moment(self._now_ns, Facts(**self._known)),
        )
        yield from (lines.written(line) for line in said if line is not None)

    @property
    def inventory(self) -> Inventory:
        """As it was then."""
        return self._inventory

    def drop_reason(self, number: int) -> str:
        """As the recorded kernel calls it."""
        return self._names.reasons.get(number, "")

    def symbol(self, address: int) -> str:
        """As the recorded kernel calls it."""
        return self._names.symbols.get(address, "")

    def surroundings(self, moment: Moment, due: Sequence[Flow], events: Mapping[EventKey, Event]) -> Surroundings:
        """What the engine was told at this moment, once `take` has heard of it."""
        kernel: Kernel = self
        known = {"client_netns": None, "owners": {}} | self._known
        return Surroundings(
            inventory=self._inventory,
            kernel=kernel,
            rivals={events[key]: rivals for key, rivals in moment.rivals.items() if key in events},
            rules={
                id(due[n].packets[m]): rule
                for (n, m), rule in moment.rules.items()
                if n < len(due) and m < len(due[n].packets)
            },
            **known,
        )
