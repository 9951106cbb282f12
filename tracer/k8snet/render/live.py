"""What is seen while a trace runs: the ways of the packets, growing, in the form that the report will have.

In: hops, notes and counts as the trace comes by them. Out: a view on the terminal that is wiped when the trace ends,
because the report follows; lines when `plain` is asked for; otherwise one line when it begins. The view starts with
the first call and not with the `with` block: rich takes a tenth of a second to import, which is not to delay the first
probe. There is no thread: each call redraws when the last drawing is old enough.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final

from k8snet.render.cells import cut
from k8snet.render.safe import inert, inert_all
from k8snet.render.text import Line, Span, arrow, coloured, device, place, ways
from k8snet.report import Hop, Path

if TYPE_CHECKING:
    from rich.live import Live as RichLive

REDRAW_EVERY: Final = 0.1  # seconds
_KINDS: Final = 6  # of packets that are kept on view; data packets differ in size, so there may be many
_HOPS: Final = 40  # of one kind of packet

_Where = tuple[int, str | None, str]  # netns, device, direction


@dataclass(slots=True)
class _Seen:
    """All packets with the same name in one direction, drawn as one."""

    hops: dict[_Where, Hop] = field(default_factory=dict)
    times: dict[_Where, int] = field(default_factory=dict)

    def add(self, hop: Hop) -> None:
        where = (hop.netns, hop.device, hop.direction)
        if where not in self.hops and len(self.hops) >= _HOPS:
            return
        self.hops[where] = hop
        self.times[where] = self.times.get(where, 0) + 1


class Live:
    """A `k8snet.trace.Watcher` for people. Use as a context manager: leaving it leaves the terminal as it was."""

    def __init__(self, title: str, stream: IO[str] | None = None, plain: bool = False) -> None:
        self._title = inert(title)
        self._stream = sys.stderr if stream is None else stream
        self._plain = plain
        self._draws = not plain and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._view: RichLive | None = None
        self._drawn = 0.0
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._notes: list[str] = []
        self._counts = (0, 0, 0)

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        view, self._view, self._draws = self._view, None, False
        if view is None:
            return
        try:
            view.stop()
        finally:
            # A second Ctrl-C may have come in the middle of that.
            view.console.show_cursor(True)

    def ready(self) -> None:
        """All probes are attached. Said even where nothing is drawn: a script waits for it."""
        if self._draws:
            self._redraw()
        else:
            self._say(f"tracing {self._title}; Ctrl-C ends with the report")

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """A packet was seen at another place."""
        if self._plain:
            safe = inert_all(hop)
            self._say(f"{direction}: {inert(packet)}  {place(safe)}  {device(safe).strip()}  {arrow(hop.header)}")
        elif self._draws:
            # Seen last stands last, where there is always room for it.
            seen = self._seen.setdefault((direction, packet), _Seen())
            seen.add(hop)
            while len(self._seen) > _KINDS:
                del self._seen[next(iter(self._seen))]
            self._redraw()

    def note(self, text: str) -> None:
        """Something about the trace itself."""
        if self._plain:
            self._say(f"note: {inert(text)}")
        elif self._draws:
            self._notes.append(inert(text))
            self._redraw()

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """How far it has got."""
        self._counts = (connections, answered, lost)
        if self._draws:
            self._redraw()

    def lines(self, width: int, height: int) -> list[Line]:
        """The view, in at most `height` lines: the head, and as much of the end as there is room for."""
        connections, answered, lost = self._counts
        state = "waiting for the first packet"
        if self._seen or connections:
            state = f"{connections} seen, {answered} answered"
        state += (f", {lost} events lost" if lost else "") + "; Ctrl-C ends with the report"
        head: list[Line] = [
            [Span(cut(self._title, width), "name")],
            [Span(cut(state, width), "warn" if lost else "dim")],
        ]
        body = ways([_path(*key, seen) for key, seen in self._seen.items()], width)
        body += [[Span(cut(f"note  {note}", width), "dim")] for note in self._notes[-3:]]
        room = max(height - len(head), 0)
        if len(body) > room:
            body = [[Span("  …", "dim")], *body[len(body) - room + 1 :]] if room > 1 else []
        return [*head, *body][:height]

    def _redraw(self) -> None:
        now = monotonic()
        if now - self._drawn < REDRAW_EVERY:
            return
        view = self._view or self._begin()
        size = view.console.size
        # One line is left for the cursor, one column so that no terminal wraps.
        text = coloured(self.lines(size.width - 1, size.height - 1))
        text.no_wrap, text.overflow = True, "crop"
        view.update(text, refresh=True)
        self._drawn = monotonic()

    def _begin(self) -> RichLive:
        from rich.console import Console
        from rich.live import Live as RichLive

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        self._view = RichLive(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._view.start()
        return self._view

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def _path(direction: str, packet: str, seen: _Seen) -> Path:
    times = max(seen.times.values(), default=0)
    label = f"{packet}, {times} times" if times > 1 else packet
    return Path(direction, label, 1, 1, tuple(seen.hops.values()), ended="")
