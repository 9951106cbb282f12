"""Anomalies in, what a reader should be told out: the first at once, the same thing again at growing intervals.

One line `41 times in 5 min` instead of 41. Time is the anomalies' own (CLOCK_MONOTONIC), or what the caller says it is.
Bounded: of one code only so many pairs have an entry of their own, the rest share one; an entry that has been quiet
gives way to a new one. Counts by code are exact whatever happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from k8snet.report import Severity
from k8snet.watch.anomaly import Anomaly, Key

SECOND: Final = 1_000_000_000
# Nanoseconds from one line about a thing to the next, for as long as it goes on.
INTERVALS: Final = tuple(seconds * SECOND for seconds in (10, 30, 60, 300, 900, 3600))
QUIET: Final = 600 * SECOND  # what comes again after that is told at once
OF_A_CODE: Final = 40  # entries of one code; there are some sixty codes in the catalogue


@dataclass(frozen=True, slots=True)
class Told:
    """One line: an anomaly, and what it stands for."""

    anomaly: Anomaly  # the latest of them
    count: int  # so many times since the line before
    since_ns: int  # of CLOCK_MONOTONIC: when that was, or when the first came
    ns: int  # in so many nanoseconds; 0: it is the first
    total: int  # so many times since the watch began
    first_of_code: bool  # what it means and how to mend it has not been said yet
    others: int = 0  # it stands for so many anomalies of further parties: `anomaly` is only one of them

    @property
    def repeated(self) -> bool:
        """A line about the same thing has been there before."""
        return self.ns > 0


@dataclass(slots=True)
class Entry:
    """Everything that is the same thing."""

    anomaly: Anomaly  # the latest
    first_ns: int
    last_ns: int
    told_ns: int
    count: int = 0
    untold: int = 0
    step: int = 0
    slowest: float | None = None
    shared: bool = False  # of all the parties that have no entry of their own

    def take(self, anomaly: Anomaly) -> None:
        self.anomaly = anomaly
        self.last_ns = max(self.last_ns, anomaly.ktime_ns)
        self.count += 1
        self.untold += 1
        if anomaly.seconds is not None:
            self.slowest = max(self.slowest or 0.0, anomaly.seconds)

    @property
    def due_ns(self) -> int:
        """When the next line about it may come."""
        return self.told_ns + INTERVALS[min(self.step, len(INTERVALS) - 1)]


class Fold:
    """Folds anomalies; remembers what has been told."""

    def __init__(self) -> None:
        self.by_code: Counter[tuple[str, Severity]] = Counter()
        self._entries: dict[str, dict[Key | None, Entry]] = {}
        self._explained: set[str] = set()

    def add(self, anomaly: Anomaly) -> Told | None:
        """One more; what is to be told at once, if anything is."""
        code = anomaly.finding.code
        self.by_code[code, anomaly.finding.severity] += 1
        entry = self._entry(anomaly)
        fresh = entry.count == 0
        after = anomaly.ktime_ns - entry.last_ns
        entry.take(anomaly)
        if fresh:
            return self._tell(entry, anomaly.ktime_ns, first=True)
        if after >= QUIET:
            entry.step = 0
            return self._tell(entry, anomaly.ktime_ns)
        return None

    def due(self, now_ns: int) -> list[Told]:
        """The repeats that it is time to tell."""
        return [
            self._tell(entry, now_ns) for entry in self.entries() if entry.untold and now_ns >= entry.due_ns
        ]  # fmt: skip

    def rest(self, now_ns: int) -> list[Told]:
        """The repeats that nobody has been told of, when the watch ends."""
        return [self._tell(entry, now_ns) for entry in self.entries() if entry.untold]

    def entries(self) -> Iterator[Entry]:
        """All that is remembered, in the order in which it began."""
        return iter([entry for of_code in self._entries.values() for entry in of_code.values()])

    def active(self, now_ns: int, within_ns: int) -> set[tuple[str, Severity]]:
        """What has shown itself lately."""
        return {
            (entry.anomaly.finding.code, entry.anomaly.finding.severity)
            for entry in self.entries()
            if now_ns - entry.last_ns <= within_ns
        }

    def _tell(self, entry: Entry, now_ns: int, *, first: bool = False) -> Told:
        code = entry.anomaly.finding.code
        told = Told(
            anomaly=entry.anomaly,
            count=entry.untold,
            since_ns=entry.told_ns,
            ns=0 if first else max(now_ns - entry.told_ns, 1),
            total=entry.count,
            first_of_code=code not in self._explained,
            others=entry.count if entry.shared else 0,
        )
        self._explained.add(code)
        entry.told_ns, entry.untold = now_ns, 0
        entry.step += not first
        return told

    def _entry(self, anomaly: Anomaly) -> Entry:
        """The entry of its like, made where there is room for one."""
        of_code = self._entries.setdefault(anomaly.finding.code, {})
        if anomaly.key in of_code:
            return of_code[anomaly.key]
        now = anomaly.ktime_ns
        if len(of_code) >= OF_A_CODE and not self._forgot_one(of_code, now):
            if None not in of_code:
                of_code[None] = Entry(anomaly, now, now, now, shared=True)
            return of_code[None]
        made = of_code[anomaly.key] = Entry(anomaly, now, now, now)
        return made

    def _forgot_one(self, of_code: dict[Key | None, Entry], now_ns: int) -> bool:
        quiet = [key for key, entry in of_code.items() if key is not None and now_ns - entry.last_ns >= QUIET]
        if not quiet:
            return False
        del of_code[min(quiet, key=lambda key: of_code[key].last_ns)]
        return True


def sorted_by_weight(entries: Iterable[Entry]) -> list[Entry]:
    """What is worst and most frequent first."""
    order = {severity: place for place, severity in enumerate((Severity.FAIL, Severity.UNKNOWN, Severity.WARN))}
    return sorted(entries, key=lambda e: (order.get(e.anomaly.finding.severity, len(order)), -e.count, e.first_ns))
