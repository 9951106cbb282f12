"""A watch on a terminal: how it stands, what is worst, what came last, what the watch itself costs.

In: a `View` ten times a second, of which two are drawn. Out: the terminal's other screen, which is given back at the
end, when the summary follows; `q` ends the watch as Ctrl-C does. There is no thread, and nothing is drawn that is not
inert. When the process is killed (SIGKILL) the terminal stays as it is: `reset` mends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections import deque
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

from k8snet.render.cells import cells, cut, pad
from k8snet.render.safe import inert, inert_all
from k8snet.render.text import MARKS, Line, Span, coloured
from k8snet.render.watch import TIMES, anomaly_lines, span, what, who
from k8snet.watch.audience import View
from k8snet.watch.engine import Counts
from k8snet.watch.fold import Entry, Told, sorted_by_weight
from k8snet.watch.report import Clock, Dns

if TYPE_CHECKING:
    from rich.live import Live as RichLive

REDRAW_EVERY: Final = 0.5  # seconds; a drawing costs some 2 ms
_RATES: Final = 10.0  # seconds over which a rate is taken
_LATEST: Final = 100
_TOP: Final = 8


class Dashboard:
    """A `k8snet.watch.audience.Reader` for people. Use as a context manager: it leaves the terminal as it was."""

    def __init__(self, title: str, stream: IO[str] | None = None, keys: IO[str] | None = None) -> None:
        """`stream`: a terminal; `keys`: where `q` is typed, by default stdin where that is a terminal."""
        self._title = inert(title)
        self._stream = sys.stdout if stream is None else stream
        self._keys = sys.stdin if keys is None else keys
        self._view: RichLive | None = None
        self._drawn = 0.0
        self._latest: deque[Line] = deque(maxlen=_LATEST)
        self._marks: deque[tuple[float, Counts]] = deque()
        self._before: list[Any] | None = None  # the terminal's settings

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        view, self._view = self._view, None
        try:
            if view is not None:
                view.stop()
        finally:
            # A second Ctrl-C may have come in the middle of that.
            if view is not None:
                view.console.show_cursor(True)
                view.console.set_alt_screen(False)
            if self._before is not None:
                termios.tcsetattr(self._keys.fileno(), termios.TCSADRAIN, self._before)

    def ready(self, pods: int) -> None:
        """From now on there is something to draw."""
        self._listen()

    def told(self, told: Told, clock: Clock) -> None:
        """It goes to the top of the latest."""
        self._latest.appendleft(anomaly_lines(told, clock)[0])

    def note(self, text: str) -> None:
        """The view has it."""

    def view(self, view: View) -> None:
        """Draw it, if the last drawing is old enough."""
        now = monotonic()
        if now - self._drawn < REDRAW_EVERY:
            return
        live = self._view or self._begin()
        size = live.console.size
        text = coloured(self.lines(view, size.width, size.height))
        text.no_wrap, text.overflow = True, "crop"
        live.update(text, refresh=True)
        self._drawn = monotonic()

    def ended(self) -> bool:
        """`q` was typed."""
        if self._before is None:
            return False
        with contextlib.suppress(OSError, ValueError):
            if select.select([self._keys], [], [], 0)[0]:
                return bool({*os.read(self._keys.fileno(), 64)} & {*b"qQ"})
        return False

    def lines(self, view: View, width: int, height: int) -> list[Line]:
        """The screen, in at most `height` lines of `width` columns."""
        head = self._head(view, width)
        notes = [[Span(cut(f"note  {inert(note)}", width), "dim")] for note in view.notes[-2:]]
        room = max(height - len(head) - len(notes) - 4, 0)
        top = [_top_line(entry, width) for entry in sorted_by_weight(view.fold.entries())[: min(_TOP, room // 2)]]
        latest = [_fitted(line, width) for line in list(self._latest)[: max(room - len(top), 0)]]
        body: list[Line] = []
        if top:
            body += [[], [Span("most often", "label")], *top]
        if latest:
            body += [[], [Span("latest", "label")], *latest]
        if not top:
            body += [[], [Span("nothing has gone wrong so far", "good")]]
        return [*head, *body, *notes][:height]

    def _head(self, view: View, width: int) -> list[Line]:
        counts, usage = view.counts, view.usage
        rates = self._rates(counts, view.seconds)
        percent = 100 * usage.cpu / view.seconds if view.seconds else 0.0
        right = f"{span(view.seconds)}  q ends"
        left = cut(f"watching {self._title}", max(width - len(right) - 2, 8))
        seen = f"{usage.pods} pods  {counts.connections} connections ({rates.connections:.1f}/s)"
        seen += f", {counts.answered} answered"
        unjudged = counts.evicted + counts.unjudged
        lost = counts.lost + unjudged
        cost = f"{percent:.1f} % CPU  {usage.memory / 1e6:.0f} MB  {counts.events} events ({rates.events:.0f}/s)"
        gone = f"  {counts.lost} lost" + (f"  {unjudged} not judged" if unjudged else "")
        sampled = f"  1 in {counts.one_in} connections" if counts.one_in > 1 else ""
        lines: list[Line] = [
            [Span(pad(left, max(width - len(right), 0)), "name"), Span(right, "dim")],
            [Span(cut(f"{seen}  {counts.flows} under way", width))],
            [
                Span(cut(cost, width), "dim"),
                Span(cut(gone, max(width - cells(cost), 0)), "warn" if lost else "dim"),
                Span(cut(sampled, max(width - cells(cost) - cells(gone), 0)), "warn"),
            ],
        ]
        if view.dns is not None:
            lines.append([Span(cut(f"dns  {dns_words(view.dns)} ({rates.queries:.1f}/s)", width))])
        return lines

    def _rates(self, counts: Counts, seconds: float) -> _Rates:
        self._marks.append((seconds, counts))
        while len(self._marks) > 2 and seconds - self._marks[0][0] > _RATES:
            self._marks.popleft()
        since, before = self._marks[0]
        spent = max(seconds - since, 1e-3)
        return _Rates(
            (counts.connections - before.connections) / spent,
            (counts.queries - before.queries) / spent,
            (counts.events - before.events) / spent,
        )

    def _listen(self) -> None:
        """Keys one by one and unseen, where they are typed for us: a background job that asks for them is stopped."""
        with contextlib.suppress(OSError, ValueError, termios.error):
            fd = self._keys.fileno()
            if self._keys.isatty() and os.tcgetpgrp(fd) == os.getpgrp():
                self._before = termios.tcgetattr(fd)
                tty.setcbreak(fd, termios.TCSADRAIN)

    def _begin(self) -> RichLive:
        from rich.console import Console
        from rich.live import Live as RichLive

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        self._view = RichLive(
            console=console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False
        )
        self._view.start()
        return self._view


class _Rates:
    """So many a second."""

    def __init__(self, connections: float, queries: float, events: float) -> None:
        self.connections, self.queries, self.events = connections, queries, events


def dns_words(dns: Dns) -> str:
    """`310 queries, 12 without an answer, NXDOMAIN 40, SERVFAIL 2, slowest 5.0 s`."""
    failed = "".join(f", {rcode} {number}" for rcode, number in dns.rcodes.items() if rcode != "NOERROR")
    return f"{dns.queries} queries, {dns.unanswered} without an answer{failed}, slowest {span(dns.slowest)}"


def _top_line(entry: Entry, width: int) -> Line:
    anomaly = inert_all(entry.anomaly)
    finding = anomaly.finding
    count = pad(f"{TIMES}{entry.count}", 6)
    text = what(finding, anomaly.subject, entry.slowest)
    return _fitted(
        [
            MARKS[finding.severity],
            Span(f" {count} ", "warn"),
            Span(f"{who(anomaly, entry.shared)}  ", "name"),
            Span(text),
            Span(f"  {finding.code}", "dim"),
        ],
        width,
    )


def _fitted(line: Line, width: int) -> Line:
    """The line in `width` columns: what is wrong gives way first, then the parties; the code stays whole."""
    over = sum(cells(part.text) for part in line) - width
    fitted = list(line)
    for place in sorted(range(len(line)), key=lambda at: -cells(line[at].text))[:2]:
        if over <= 0:
            break
        text = fitted[place].text
        kept = cut(text, max(cells(text) - over, 8))
        over -= cells(text) - cells(kept)
        fitted[place] = Span(kept, fitted[place].style)
    return fitted
