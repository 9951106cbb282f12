"""What is found goes to everybody who wants to know: the reader, a command, metrics, the report at the end.

In: the calls of `k8snet.watch.live.observe`. Out: lines for a `Reader`, of which there is one. Nobody here may hold up
the watch: the reader is a terminal or a pipe, the command runs by itself, metrics are fetched by others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from k8snet.flow.dns import DnsExchange
from k8snet.render.document import dumps_anomaly
from k8snet.render.safe import inert
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts
from k8snet.watch.execute import Runner
from k8snet.watch.fold import Fold, Told
from k8snet.watch.live import Usage
from k8snet.watch.meter import Meter
from k8snet.watch.report import Clock, Dns, WatchReport, cost_of, notes_of, seen_now, worst

_NOTES: Final = 50  # a guess: more are not read
_FACES: Final = ("CODE", "SEVERITY", "TITLE", "CLIENT", "SERVER", "SUBJECT", "COUNT")


@dataclass(frozen=True)
class View:
    """How it stands, for whoever draws it."""

    fold: Fold
    counts: Counts
    usage: Usage
    seconds: float
    dns: Dns | None
    notes: Sequence[str]
    clock: Clock


class Reader(Protocol):
    """Who reads along (`k8snet.render.watch`, `k8snet.render.dashboard`)."""

    def ready(self, pods: int) -> None:
        """What happens from now on is seen."""

    def told(self, told: Told, clock: Clock) -> None:
        """A line: something went wrong, or goes on doing so."""

    def note(self, text: str) -> None:
        """Something about the watch itself."""

    def view(self, view: View) -> None:
        """How it stands; ten times a second."""

    def ended(self) -> bool:
        """The reader has had enough."""


@dataclass
class Audience:
    """A `k8snet.watch.live.Watcher`."""

    reader: Reader
    node: str | None = None
    until: frozenset[str] = frozenset()
    runner: Runner | None = None
    meter: Meter | None = None
    now_ns: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], datetime] = lambda: datetime.now(UTC)
    fold: Fold = field(default_factory=Fold)

    def __post_init__(self) -> None:
        self._began_ns = self.now_ns()
        self._clock = Clock(self.wall(), self._began_ns)
        self._counts, self._usage = Counts(), Usage(0.0, 0, 0)
        self._notes: list[str] = []
        self._newest = ""
        self._came: str | None = None
        self._rcodes: Counter[str] = Counter()  # there are sixteen
        self._queries = self._unanswered = 0
        self._slowest = 0.0
        self._start = 0.0  # CPU seconds that it took to begin

    def ready(self, usage: Usage) -> None:
        """All probes are attached."""
        self._began_ns = self.now_ns()
        self._clock = Clock(self.wall(), self._began_ns)
        self._start = usage.cpu
        self._usage = replace(usage, cpu=0.0)
        self.reader.ready(usage.pods)

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        """Each goes to everybody; the first of its kind is told at once."""
        for anomaly in anomalies:
            code = anomaly.finding.code
            if code in self.until and self._came is None:
                self._came = code
            if self.meter is not None:
                self.meter.found(anomaly)
            told = self.fold.add(anomaly)
            if told is not None:
                self._tell(told)

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        """Counted, whether they went well or not."""
        for exchange in exchanges:
            self._queries += 1
            if exchange.rcode is None:
                self._unanswered += 1
            else:
                self._rcodes[exchange.rcode] += 1
            seconds = exchange.seconds
            self._slowest = max(self._slowest, seconds or 0.0)
            if self.meter is not None and seconds is not None:
                self.meter.asked(seconds, exchange.rcode or "")

    def note(self, text: str) -> None:
        """The reader hears it each time that it is news; the report has it once."""
        if text == self._newest:
            return
        self._newest = text
        self.reader.note(text)
        if text not in self._notes and len(self._notes) < _NOTES:
            self._notes.append(text)

    def counts(self, counts: Counts, usage: Usage) -> None:
        """Time passes: repeats are told when they are due."""
        self._counts, self._usage = counts, replace(usage, cpu=usage.cpu - self._start)
        now = self.now_ns()
        for told in self.fold.due(now):
            self._tell(told)
        if self.runner is not None:
            self.runner.poll()
        if self.meter is not None:
            self.meter.counted(counts, usage, self.fold, now)
        self.reader.view(self._view(now))

    def ended(self) -> bool:
        """The finding that was waited for has come, or the reader has had enough."""
        return self._came is not None or self.reader.ended()

    def finish(self, counts: Counts, more: Sequence[str] = ()) -> WatchReport:
        """What it came to, with `more` notes; the reader is told of the repeats that nobody has been told of."""
        self._counts = counts
        now = self.now_ns()
        for told in self.fold.rest(now):
            self.reader.told(told, self._clock)
        seconds = (now - self._began_ns) / 1e9
        notes = [*self._notes, *more]
        if self.runner is not None:
            if self.runner.skipped:
                notes.append(f"--exec: {self.runner.skipped} findings ran no command, for there were too many at once")
            if self.runner.failed:
                notes.append(f"--exec: {self.runner.failed} commands failed")
        return WatchReport(
            node=self.node,
            pods=self._usage.pods,
            began=self._clock.written(self._began_ns),
            seconds=round(seconds, 3),
            anomalies=worst(self.fold.entries(), self._clock),
            by_code=_by_code(self.fold),
            counts=counts,
            dns=self._dns(),
            cost=cost_of(self._usage, seconds),
            until=self._came,
            notes=notes_of(notes, counts),
        )

    def _tell(self, told: Told) -> None:
        self.reader.told(told, self._clock)
        if self.runner is not None:
            self.runner.offer(dumps_anomaly(seen_now(told, self._clock)), environment(told))

    def _view(self, now_ns: int) -> View:
        seconds = (now_ns - self._began_ns) / 1e9
        return View(self.fold, self._counts, self._usage, seconds, self._dns(), self._notes, self._clock)

    def _dns(self) -> Dns | None:
        if not self._queries:
            return None
        return Dns(self._queries, self._unanswered, dict(self._rcodes.most_common()), round(self._slowest, 6))


def _by_code(fold: Fold) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (code, _), number in fold.by_code.most_common():
        counts[code] = counts.get(code, 0) + number
    return counts


def environment(told: Told) -> dict[str, str]:
    """A few words on it for a script; whatever comes from outside is inert."""
    from k8snet.render.watch import client_of, server_of

    anomaly = told.anomaly
    flow = anomaly.flow
    values = (
        anomaly.finding.code,
        anomaly.finding.severity.value,
        anomaly.finding.title,
        client_of(flow) if flow else "",
        server_of(flow) if flow else "",
        anomaly.subject or "",
        str(told.count),
    )
    return {f"K8SNET_{face}": inert(value) for face, value in zip(_FACES, values, strict=True)}
