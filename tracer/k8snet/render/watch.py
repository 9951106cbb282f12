"""What goes wrong, a line each, while it goes wrong; and at the end what it came to.

In: what `k8snet.watch.fold` tells, and the WatchReport. Out: lines of spans, or of JSON. A line has the time, both
parties, what is wrong and why, how often, the code; the first of each code has the fix, or the next step, below it.
However wide the terminal is it stays one line: lines are searched and cut by others.
"""

from __future__ import annotations

import sys
from datetime import tzinfo
from typing import Final, TextIO

from k8snet.render import document
from k8snet.render.cells import wrap
from k8snet.render.safe import inert, inert_all
from k8snet.render.text import MARKS, WIDTH, Line, Span, encodable, plain
from k8snet.report import Finding, FlowView, Party
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.audience import View
from k8snet.watch.fold import Told
from k8snet.watch.report import Clock, WatchReport, seen_now

ZONE: Final[tzinfo | None] = None  # of times on a terminal: the machine's own
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_SUMMARY: Final = 20  # a guess: anomalies that the text at the end lists; JSON has a hundred


def client_of(flow: FlowView) -> str:
    """Who asked, as `--from` takes it; its port is never the same again and says nothing."""
    return _name(flow.client) or flow.client.ip


def server_of(flow: FlowView) -> str:
    """Who was asked, as `--to` takes it."""
    server = flow.server
    if not server.port:
        return _name(server) or server.ip
    return f"{_name(server) or (f'[{server.ip}]' if ':' in server.ip else server.ip)}:{server.port}"


def _name(end: Party) -> str:
    if end.service:
        return f"svc/{end.service}"
    return end.pod or (f"no/{end.node}" if end.node else "")


def who(anomaly: Anomaly, others: int = 0) -> str:
    """Both parties, or the node."""
    flow = anomaly.flow
    if flow is None:
        where = anomaly.finding.where
        return where.node or where.pod or "this node"
    text = f"{client_of(flow)} → {server_of(flow)}"
    return f"{text} and others" if others else text


def what(finding: Finding, subject: str | None, seconds: float | None) -> str:
    """What is wrong, in one line, with what this one is about."""
    text = finding.title
    if subject and subject not in text:
        text += f": {subject}"
    return text + (f" ({span(seconds)})" if seconds is not None else "")


def span(seconds: float) -> str:
    """A time that somebody waited: `340 ms`, `3.1 s`, `5 min`, `2 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def often(told: Told) -> str:
    """`41 times in 5 min, 82 in all`, with a sign for the times; nothing of the first."""
    if not told.repeated:
        return f"{TIMES}{told.count}" if told.count > 1 else ""
    return f"{TIMES}{told.count} in {span(told.ns / 1e9)}, {told.total} in all"


def next_step(finding: Finding) -> str:
    """The first command of the fix; where there is none, the first advice; else where to read on."""
    commands = [line for line in finding.fix if not line.startswith("#")]
    return (commands or [line.lstrip("# ") for line in finding.fix] or [finding.doc])[0]


def anomaly_lines(told: Told, clock: Clock) -> list[Line]:
    """One line, and for the first of a code a second one, further in."""
    anomaly = inert_all(told.anomaly)
    finding = anomaly.finding
    line: Line = [
        Span(f"{clock.at(anomaly.ktime_ns).astimezone(ZONE):%H:%M:%S}  ", "dim"),
        MARKS[finding.severity],
        Span(f" {who(anomaly, told.others)}  ", "name"),
        Span(what(finding, anomaly.subject, anomaly.seconds)),
    ]
    if repeats := often(told):
        line.append(Span(f"  {repeats}", "warn"))
    line.append(Span(f"  {finding.code}", "dim"))
    if not told.first_of_code:
        return [line]
    return [line, [Span(" " * 12), Span("next  ", "label"), Span(next_step(finding), "command")]]


def summary_lines(report: WatchReport, width: int = WIDTH) -> list[Line]:
    """What it came to: the answer first, what was wrong, what it rests on."""
    report = inert_all(report)
    counts = report.counts
    of_code = len(report.by_code)
    total = sum(report.by_code.values())
    if report.until:
        head = Span(f"✗ {report.until} has come", "bad")
    elif total:
        bad = report.failed
        kinds = f" of {of_code} kinds" if of_code > 1 else ""
        head = Span(f"{'✗' if bad else '!'} {_plural(total, 'anomaly', 'anomalies')}{kinds}", "bad" if bad else "warn")
    elif report.inconclusive:
        head = Span("? nothing can be said: " + _why_not(report), "warn")
    else:
        head = Span("✓ nothing was wrong", "good")
    pods = _plural(report.pods, "pod", "pods")
    lines: list[Line] = [[head, Span(f"  {pods}, {span(report.seconds)}", "dim")]]
    if report.anomalies:
        lines.append([])
    explained: set[str] = set()
    column = len(str(max((seen.count for seen in report.anomalies), default=0))) + 1
    for seen in report.anomalies[:_SUMMARY]:
        anomaly = Anomaly(0, seen.finding, seen.flow, seen.seconds, seen.subject)
        count = f"{TIMES}{seen.count}".rjust(column)
        lines.append(
            [
                MARKS[seen.finding.severity],
                Span(f" {count}  ", "warn"),
                Span(f"{who(anomaly, seen.shared)}  ", "name"),
                Span(what(seen.finding, seen.subject, seen.seconds)),
                Span(f"  {seen.finding.code}", "dim"),
            ]
        )
        if seen.finding.code not in explained:
            explained.add(seen.finding.code)
            lines.append([Span(" " * (column + 4)), Span(next_step(seen.finding), "command")])
    if left := len(report.anomalies) - _SUMMARY:
        lines += [[Span(f"  {left} more: -o json has them", "dim")]] if left > 0 else []
    lines.append([])
    lines += [[Span("note  ", "label"), Span(note)] for note in report.notes]
    answers = f"{_plural(counts.connections, 'connection', 'connections')}, {counts.answered} answered"
    queries = f", {_plural(counts.queries, 'DNS query', 'DNS queries')}" if counts.queries else ""
    foot = f"{answers}{queries}, {_plural(counts.lost, 'event', 'events')} lost, {cost_words(report)}"
    return [*lines, *([Span(text, "warn" if counts.lost else "dim")] for text in wrap(foot, max(width, 40)))]


def cost_words(report: WatchReport) -> str:
    """`0.4 % of a CPU, 61 MB`."""
    return f"{report.cost.cpu_percent:.1f} % of a CPU, {report.cost.memory_bytes / 1e6:.0f} MB"


def _why_not(report: WatchReport) -> str:
    counts = report.counts
    if not counts.connections + counts.queries:
        under_way = f"{_plural(counts.flows, 'connection', 'connections')} had not come to an end yet"
        return under_way if counts.flows else "no connection of these pods was seen"
    return "too many events were lost"


def _plural(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


class Lines:
    """A `k8snet.watch.audience.Reader` of text: a line is written when it is told, and nothing in between."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream, self._title = stream, inert(title)

    def ready(self, pods: int) -> None:
        """Said on stderr, as everything that is no finding: a script waits for it."""
        print(f"watching {self._title} ({pods} now); Ctrl-C ends with the summary", file=sys.stderr, flush=True)

    def told(self, told: Told, clock: Clock) -> None:
        """At once: whoever reads the pipe wants to see it now."""
        self._stream.write(encodable(plain(anomaly_lines(told, clock)), self._stream))
        self._stream.flush()

    def note(self, text: str) -> None:
        """On stderr."""
        print(f"note: {inert(text)}", file=sys.stderr, flush=True)

    def view(self, view: View) -> None:
        """Nothing: lines are what happens, not how it stands."""

    def ended(self) -> bool:
        """Never: there is Ctrl-C."""
        return False


class JsonLines(Lines):
    """The same in JSON: a WatchAnomaly a line; the report is the caller's last line."""

    def told(self, told: Told, clock: Clock) -> None:
        """At once."""
        self._stream.write(document.dumps_anomaly(seen_now(told, clock)) + "\n")
        self._stream.flush()


class Silent(Lines):
    """For `-o json`: one document at the end."""

    def told(self, told: Told, clock: Clock) -> None:
        """It stands in the report."""
