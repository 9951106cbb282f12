"""The live view, on a real terminal (a pseudo-terminal) and on none."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from k8snet.render import live as live_module
from k8snet.render.cells import cells
from k8snet.render.live import Live
from unit.reports import ANSWER, DNAT, EVIL, SYN_ACK_TO_POD, SYN_TO_POD, hop

SEEN = tuple(h for h in SYN_TO_POD if h is not DNAT)


class Screen:
    """A pseudo-terminal; what was written to it."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(near, False)
        self._near = near
        self._far = os.fdopen(far, "w")
        self._read = b""
        self.stream = _Drained(self)

    def drain(self) -> None:
        """Take what the terminal holds: it has room for a few kilobytes, then writers wait."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._near, 65536):
                self._read += part

    def read(self) -> str:
        """Everything since the last time."""
        self.drain()
        found, self._read = self._read, b""
        return found.decode()


class _Drained(io.StringIO):
    """The terminal's far side; each write is read at once at the near one."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def isatty(self) -> bool:
        return self._screen._far.isatty()

    def fileno(self) -> int:
        return self._screen._far.fileno()

    def write(self, text: str) -> int:
        for start in range(0, len(text), 1000):
            self._screen._far.write(text[start : start + 1000])
            self._screen._far.flush()
            self._screen.drain()
        return len(text)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live_module, "REDRAW_EVERY", 0.0)
    return Screen()


def plain(live: Live, width: int = 80, height: int = 40) -> list[str]:
    return ["".join(span.text for span in line).rstrip() for line in live.lines(width, height)]


def test_it_says_what_is_waited_for() -> None:
    head = plain(Live("shop/cart → svc/shop/web:80"))
    assert head == ["shop/cart → svc/shop/web:80", "waiting for the first packet; Ctrl-C ends with the report"]


def test_hops_appear_as_they_happen(screen: Screen) -> None:
    with Live("a → b", screen.stream) as live:
        live.counts(0, 0, 0)
        assert "waiting for the first packet" in screen.read()
        for h in SEEN:
            live.hop("request", "SYN", h)
            assert h.device is not None
            assert h.device in screen.read()


def test_repeats_are_folded(screen: Screen) -> None:
    with Live("a → b", screen.stream) as live:
        for _ in range(3):
            for h in SEEN:
                live.hop("request", "SYN", h)
        live.counts(3, 0, 0)
        text = "\n".join(plain(live))
    assert "request: SYN, 3 times" in text
    assert text.count("veth3f2a") == 1
    assert "3 seen, 0 answered; Ctrl-C" in text


def test_lost_events_are_shown_at_once(screen: Screen) -> None:
    with Live("a → b", screen.stream) as live:
        live.counts(1, 0, 17)
        assert "17 events lost" in screen.read()


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("width", [20, 40, 80])
def test_it_stays_within_the_terminal(screen: Screen, width: int, height: int) -> None:
    with Live("pod/shop/cart → svc/shop/web:80", screen.stream) as live:
        for number in range(12):
            live.hop("request", f"{number} bytes", hop(1, number, "in", "veth3f2a", ANSWER))
        live.note("n" * 200)
        lines = plain(live, width, height)
    assert len(lines) <= height
    # Narrower than 40 columns the drawing crops.
    assert all(cells(line) <= max(width, 40) for line in lines)


def test_what_was_seen_last_has_room(screen: Screen) -> None:
    with Live("a → b", screen.stream) as live:
        for h in SEEN:
            live.hop("request", "SYN", h)
        for h in SYN_ACK_TO_POD:
            live.hop("reply", "SYN-ACK", h)
        assert plain(live, 80, 8)[-2:] == ["      shop/cart-7d4f", "  27    → eth0"]
        assert plain(live, 80, 8)[2] == "  …"


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_it_leaves_the_terminal_as_it_was(screen: Screen, error: type[BaseException] | None) -> None:
    before = termios.tcgetattr(screen.stream.fileno())

    def run() -> None:
        with Live("a → b", screen.stream) as live:
            for h in SEEN:
                live.hop("request", "SYN", h)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    text = screen.read()
    assert termios.tcgetattr(screen.stream.fileno()) == before
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b[?1049h" not in text
    # Wiped: after the last letter every line of the view is erased.
    after = text[text.rindex("eth0") :]
    drawn = len(plain_view())
    assert after.count("\x1b[2K") >= drawn
    assert sys.stderr is not screen.stream


def plain_view() -> list[str]:
    screen = Screen()
    os.environ["TERM"] = "xterm-256color"
    with Live("a → b", screen.stream) as live:
        for h in SEEN:
            live.hop("request", "SYN", h)
        return plain(live)


def test_hostile_names_reach_no_terminal(screen: Screen) -> None:
    with Live(f"{EVIL} → [red]b[/]", screen.stream) as live:
        live.hop("request", "SYN\x1b[5m", hop(0, 1, "in", "ve\x1b[2Jth", ANSWER, names={1: (None, EVIL)}))
        live.note("\x1b]0;owned\x07")
        live.counts(1, 0, 0)
    text = screen.read()
    assert r"[red]x[/]\x1b[31m" in text
    assert r"ve\x1b[2Jth" in text
    for harm in ("\x1b[5m", "\x1b[2J", "\x1b]0;", "\x07", "\x1b[31m"):
        assert harm not in text


def test_without_a_terminal_there_is_nothing() -> None:
    stream = io.StringIO()
    with Live("a → b", stream) as live:
        live.hop("request", "SYN", SEEN[0])
        live.note("x")
        live.counts(1, 1, 0)
    assert stream.getvalue() == ""


def test_plain_is_one_inert_line_for_each_hop() -> None:
    stream = io.StringIO()
    with Live("a → b", stream, plain=True) as live:
        for h in SEEN:
            live.hop("request", "SYN\n", h)
        live.note("gone\x1b")
    lines = stream.getvalue().splitlines()
    assert lines[0] == r"request: SYN\n  shop/cart-7d4f  eth0 →  10.244.1.10:50508 → 10.96.0.80:80"
    assert lines[1].startswith(r"request: SYN\n  node-1  → veth3f2a")
    assert len(lines) == 5
    assert lines[-1] == r"note: gone\x1b"


def test_rich_is_imported_only_for_a_terminal() -> None:
    program = (
        "import io, sys\n"
        "from k8snet.render import text, document, live\n"
        "from unit.reports import ALL, SYN_TO_POD\n"
        "for made in ALL.values(): text.show(made(), io.StringIO()); document.dumps(made())\n"
        "with live.Live('a', io.StringIO()) as l: l.hop('request', 'SYN', SYN_TO_POD[0])\n"
        "sys.exit(any(m == 'rich' or m.startswith('rich.') for m in sys.modules))\n"
    )
    paths = [str(Path(live_module.__file__).parents[2]), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False
    )
    assert done.returncode == 0


def test_the_drawing_is_throttled(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "REDRAW_EVERY", 60.0)
    monkeypatch.setattr(live_module, "monotonic", lambda: 1000.0)
    with Live("a → b", screen.stream) as live:
        for _ in range(1000):
            live.hop("request", "SYN", SEEN[0])
        assert len(re.findall("request: SYN", screen.read())) == 1
