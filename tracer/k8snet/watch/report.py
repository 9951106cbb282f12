"""What a watch comes to: the WatchReport, its field names those of the JSON document.

In: the folded anomalies and the last counts. Out: plain values, for `render` to show and `-o json` to print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from k8snet.report import Finding, FlowView, Severity
from k8snet.watch.engine import Counts
from k8snet.watch.fold import Entry, Told, sorted_by_weight

if TYPE_CHECKING:
    from k8snet.watch.live import Usage

MOST: Final = 100  # anomalies that a report tells apart
# A guess: when more than this part of all events was lost, "nothing was wrong" cannot be said any more.
TOO_MUCH: Final = 0.01


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that went wrong, however often it did."""

    finding: Finding
    flow: FlowView | None  # of the last time; None: it is about the node
    subject: str | None  # what it was about besides the parties: a name that was asked for
    count: int
    first: str  # RFC 3339, UTC
    last: str
    seconds: float | None  # the longest that it took, or was waited for in vain
    shared: bool  # it stands for many parties, of whom `flow` names one


@dataclass(frozen=True, slots=True)
class Dns:
    """All DNS queries of the watched pods."""

    queries: int
    unanswered: int
    rcodes: dict[str, int]  # of the answers, in words: NOERROR, NXDOMAIN
    slowest: float  # seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What the watch itself has used."""

    cpu_seconds: float
    cpu_percent: float  # of one CPU
    memory_bytes: int  # resident, at the end


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What was wrong on this node while somebody watched."""

    node: str | None
    pods: int  # that were watched, at the end
    began: str  # RFC 3339, UTC
    seconds: float
    anomalies: tuple[Seen, ...]  # the worst first
    by_code: dict[str, int]  # all of them, also those that are in `anomalies` no more
    counts: Counts
    dns: Dns | None  # None: nobody asked
    cost: Cost
    until: str | None  # the finding that was waited for, and came
    notes: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Something was wrong: a finding of severity FAIL, or what was waited for."""
        return self.until is not None or any(seen.finding.severity is Severity.FAIL for seen in self.anomalies)

    @property
    def inconclusive(self) -> bool:
        """Nothing was seen, or so much was lost that nothing can be said."""
        counts = self.counts
        seen = counts.connections + counts.queries
        lost = counts.lost + counts.evicted + counts.unjudged
        return not seen or lost > TOO_MUCH * (counts.events + lost)


class Clock:
    """The wall's time for the kernel's: what is reported is read by people."""

    def __init__(self, now: datetime, now_ns: int) -> None:
        """`now` and `now_ns` (CLOCK_MONOTONIC) are the same moment."""
        self._now, self._now_ns = now, now_ns

    def at(self, ktime_ns: int) -> datetime:
        """In UTC."""
        return datetime.fromtimestamp(self._now.timestamp() + (ktime_ns - self._now_ns) / 1e9, UTC)

    def written(self, ktime_ns: int) -> str:
        """RFC 3339, to the millisecond."""
        return self.at(ktime_ns).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seen_of(entry: Entry, clock: Clock) -> Seen:
    """An entry of the fold, for the report."""
    anomaly = entry.anomaly
    return Seen(
        finding=anomaly.finding,
        flow=anomaly.flow,
        subject=anomaly.subject,
        count=entry.count,
        first=clock.written(entry.first_ns),
        last=clock.written(entry.last_ns),
        seconds=entry.slowest,
        shared=entry.shared,
    )


def seen_now(told: Told, clock: Clock) -> Seen:
    """A line that is told while the watch goes on: as many as it stands for."""
    anomaly = told.anomaly
    return Seen(
        finding=anomaly.finding,
        flow=anomaly.flow,
        subject=anomaly.subject,
        count=told.count,
        first=clock.written(told.since_ns),
        last=clock.written(anomaly.ktime_ns),
        seconds=anomaly.seconds,
        shared=told.others > 0,
    )


def worst(entries: Iterable[Entry], clock: Clock) -> tuple[Seen, ...]:
    """The entries that a report has room for."""
    return tuple(seen_of(entry, clock) for entry in sorted_by_weight(entries)[:MOST])


def cost_of(usage: Usage, seconds: float) -> Cost:
    """What `usage` is of so many seconds."""
    return Cost(usage.cpu, 100 * usage.cpu / seconds if seconds else 0.0, usage.memory)


def notes_of(notes: Sequence[str], counts: Counts) -> tuple[str, ...]:
    """What the reader should know of the watch itself: what it did not see stands here in words."""
    found = list(notes)
    if counts.lost:
        found.append(f"{counts.lost} events were lost: what they showed is missing here")
    if counts.one_in > 1:
        found.append(f"at the end one connection of {counts.one_in} was looked at: there were too many for the budget")
    if counts.held:
        found.append(f"{counts.held} drops were counted and not looked at one by one")
    if counts.evicted:
        found.append(f"{counts.evicted} connections were left out: the table was full (--max-flows)")
    if counts.unjudged:
        found.append(f"{counts.unjudged} connections came to nothing and were not judged: too many at once")
    return tuple(dict.fromkeys(found))
