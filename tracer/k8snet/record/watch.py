"""A watch written to a file while it runs, and the file run through the engine again.

In: the calls of a `k8snet.watch.live.Listener` (and those of its `Watcher`, who is told the same as without us). Out: a
recording of events and of what was asked. Back: the same calls of a `Watcher`, by the recording's own clock.
"""

from __future__ import annotations

import platform
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet import __version__
from k8snet.agent import lines
from k8snet.agent.lines import Bye, Facts, Hello, Names, Ready
from k8snet.errors import K8snetError
from k8snet.event import LAYOUT, BadRecordError, Event, ProbeId
from k8snet.record.file import Recording
from k8snet.record.layout import DESCRIPTION
from k8snet.record.moments import Cost, Differ, EventKey, Memory, Missed, Moment, Note, Watching
from k8snet.watch.engine import Counts, Engine, Limits
from k8snet.watch.live import Usage
from k8snet.watch.table import is_for_witness

if TYPE_CHECKING:
    from k8snet.findings.case import Surroundings
    from k8snet.flow.dns import DnsExchange
    from k8snet.flow.model import Flow
    from k8snet.record.replay import Content
    from k8snet.watch.anomaly import Anomaly
    from k8snet.watch.live import Watcher

COST_EVERY: Final = 10.0  # seconds
_NAMED: Final = struct.Struct("=16x Q 24x I 37x B")  # location, reason, probe
_KFREE: Final = int(ProbeId.KFREE_SKB)
_REMEMBERED: Final = 4096  # events that something may still be said about


class Recorder:
    """Takes down what the engine is told."""

    def __init__(self, file: Recording) -> None:
        self._file = file
        self._differ = Differ()
        self._count = 0
        self._reasons: dict[int, str] = {}
        self._symbols: dict[int, str] = {}
        self._unnamed: set[tuple[int, int]] = set()
        self._ear: _Overhearing | None = None

    def begin(self, node: str, limits: Limits) -> None:
        """The first lines."""
        clocks = time.monotonic_ns(), time.time_ns()
        hello = Hello(lines.VERSION, __version__, lines.LAYOUT_ID, node, platform.release(), *clocks, True, DESCRIPTION)
        self._file.line(hello)
        self._file.line(Watching(limits.flows, limits.wait))

    def overhearing(self, watcher: Watcher) -> Watcher:
        """The same watcher, and what it is told of the watch itself is kept."""
        self._ear = _Overhearing(self._file, watcher)
        return self._ear

    @property
    def has_begun(self) -> bool:
        """Something may have been seen."""
        return self._ear is not None and self._ear.is_ready

    def finish(self, counts: Counts, notes: Sequence[str] = ()) -> str:
        """The last lines; why the recording is incomplete, or nothing."""
        if self._ear is not None:
            self._ear.keep_cost()
        self._file.line(Facts(notes=tuple(notes)))
        self._file.line(Bye(time.monotonic_ns(), self._count, {"events": counts.lost}))
        return self._file.close()

    def saw(self, records: Sequence[bytes]) -> None:
        """Records, as they go into the engine."""
        self._file.records(self._count, records)
        self._count += len(records)
        for record in records:
            if len(record) >= LAYOUT.size:
                location, reason, probe = _NAMED.unpack_from(record)
                if probe == _KFREE and (reason not in self._reasons or location not in self._symbols):
                    self._unnamed.add((reason, location))

    def lost(self, lost: int, held: int, shift: int) -> None:
        """What the engine is told of what it does not get."""
        self._file.line(Missed(lost, held, shift))

    def moment(self, now_ns: int, around: Surroundings, due: Sequence[Flow]) -> None:
        """What the next tick is told."""
        if self._unnamed:
            reasons = {reason: around.kernel.drop_reason(reason) for reason, _ in self._unnamed}
            symbols = {location: around.kernel.symbol(location) for _, location in self._unnamed}
            self._unnamed.clear()
            self._reasons |= reasons
            self._symbols |= symbols
            self._file.line(Names(reasons, symbols))
        objects = self._differ.objects(around.inventory)
        if objects is not None:
            self._file.line(objects)
        self._file.line(self._differ.moment(now_ns, around, due))


class _Overhearing:
    def __init__(self, file: Recording, watcher: Watcher) -> None:
        self._file = file
        self._watcher = watcher
        self._cost_at = 0.0
        self._failure = ""
        self._usage = Usage(0.0, 0, 0)
        self.is_ready = False

    def ready(self, usage: Usage) -> None:
        self._usage = usage
        self.is_ready = True
        self.keep_cost()
        self._file.line(Ready(time.monotonic_ns()))
        self._watcher.ready(usage)

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        self._watcher.found(anomalies)

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        self._watcher.asked(exchanges)

    def note(self, text: str) -> None:
        self._file.line(Note(text))
        self._watcher.note(text)

    def counts(self, counts: Counts, usage: Usage) -> None:
        self._usage = usage
        if time.monotonic() - self._cost_at >= COST_EVERY:
            self.keep_cost()
        if self._file.failure and not self._failure:
            self._failure = self._file.failure
            self._watcher.note(self._failure)
        self._watcher.counts(counts, usage)

    def ended(self) -> bool:
        return self._watcher.ended()

    def keep_cost(self) -> None:
        """As it is now."""
        self._cost_at = time.monotonic()
        self._file.line(Cost(self._usage.cpu, self._usage.memory, self._usage.pods))


@contextmanager
def recorder(path: Path, node: str, limits: Limits, ring: int = 0, *, overwrite: bool = False) -> Iterator[Recorder]:
    """Whom to tell what is watched. Raises K8snetError when the file cannot be made."""
    with Recording(path, ring, Memory() if ring else None, overwrite=overwrite) as file:
        writer = Recorder(file)
        writer.begin(node, limits)
        try:
            yield writer
        except BaseException:
            if not writer.has_begun:
                file.discard()
            raise


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """The recording's time, for whoever looks on."""

    now: int = 0
    boot_ns: int = 0  # by the wall clock

    def now_ns(self) -> int:
        """As CLOCK_MONOTONIC was."""
        return self.now

    def wall(self) -> datetime:
        """In UTC."""
        return datetime.fromtimestamp((self.now + self.boot_ns) / 1e9, UTC)


@dataclass
class Rewatch:
    """Runs a recording through the engine; `watcher` is made once its time is known."""

    content: Content
    watcher_of: Callable[[Clock, Memory], Watcher]
    clock: Clock = field(default_factory=Clock)
    memory: Memory = field(default_factory=Memory)
    notes: list[str] = field(default_factory=list)  # for the end of the report

    def run(self) -> Counts:
        """Everything up to the end. Raises K8snetError for a recording of a trace."""
        memory, clock = self.memory, self.clock
        engine: Engine | None = None
        watcher: Watcher | None = None
        self._expected, self._missing = -1, 0
        self._events: dict[EventKey, Event] = {}
        is_ready = ended = False
        for item in self.content:
            if isinstance(item, tuple):
                if engine is not None:
                    self._feed(engine, *item)
                continue
            memory.take(item)
            if isinstance(item, Hello):
                clock.boot_ns = item.realtime_ns - item.monotonic_ns
                clock.now = clock.now or item.monotonic_ns
            elif isinstance(item, Watching):
                engine = engine or Engine(Limits(item.flows, item.wait))
                watcher = watcher or self.watcher_of(clock, memory)
            elif engine is None or watcher is None:
                raise K8snetError(f"{self.content.name} is no recording of a watch", "k8snet replay --help")
            elif isinstance(item, Ready):
                clock.now = item.ktime_ns
                is_ready = is_ready or self._begin(watcher)
            elif isinstance(item, Missed):
                engine.sample(item.shift)
                engine.lose(item.lost + self._missing, item.held)
            elif isinstance(item, Note):
                watcher.note(item.text)
            elif isinstance(item, Moment):
                clock.now = item.now_ns
                is_ready = is_ready or self._begin(watcher)
                self._tick(engine, watcher, item)
            elif isinstance(item, Facts):
                self.notes += item.notes
            elif isinstance(item, Bye):
                clock.now = item.ktime_ns
                ended = True
        if engine is None or watcher is None:
            raise K8snetError(f"{self.content.name} holds nothing: it ended before its first lines", "record it again")
        if not ended:
            self.content.notes.append(
                f"{self.content.name} has no end: k8snet was killed, or the disk was full, or it is being written"
            )
        if is_ready:
            watcher.counts(engine.counts, self._usage)
        return engine.counts

    def _begin(self, watcher: Watcher) -> bool:
        watcher.ready(self._usage)
        return True

    @property
    def _usage(self) -> Usage:
        cost = self.memory.cost
        return Usage(cost.cpu, cost.memory, cost.pods)

    def _feed(self, engine: Engine, first: int, records: Sequence[bytes]) -> None:
        if 0 <= self._expected < first:
            self._missing += first - self._expected
            engine.lose(self.memory.missed.lost + self._missing, self.memory.missed.held)
        self._expected = first + len(records)
        engine.feed(records)
        for record in records:
            if is_for_witness(record):
                try:
                    event = Event.decode(record)
                except BadRecordError:
                    continue
                self._events[event.ktime_ns, event.skb, int(event.probe)] = event
        while len(self._events) > _REMEMBERED:
            del self._events[next(iter(self._events))]

    def _tick(self, engine: Engine, watcher: Watcher, moment: Moment) -> None:
        engine.young(moment.now_ns)  # as a watch does: it may make flows of what is young
        around = self.memory.surroundings(moment, engine.due(moment.now_ns), self._events)
        found = engine.tick(moment.now_ns, around)
        if found:
            watcher.found(found)
        if engine.asked:
            watcher.asked(engine.asked)
        watcher.counts(engine.counts, self._usage)
