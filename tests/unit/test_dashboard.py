"""The dashboard, as rich draws it, and on a pseudo-terminal with a keyboard."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from rich.console import Console

from k8snet.render import dashboard as module
from k8snet.render.cells import cells
from k8snet.render.dashboard import Dashboard
from k8snet.render.text import coloured
from k8snet.render.watch import TIMES
from k8snet.report import Severity
from k8snet.watch.audience import View
from k8snet.watch.engine import Counts
from k8snet.watch.fold import Fold
from k8snet.watch.live import Usage
from k8snet.watch.report import Clock, Dns
from unit.anomalies import anomaly, found, stranger
from unit.reports import EVIL

CLOCK = Clock(datetime(2026, 11, 22, 3, 0, 0, tzinfo=UTC), 0)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8snet.render.watch.ZONE", UTC)
    monkeypatch.setattr(module, "REDRAW_EVERY", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def view(fold: Fold | None = None, seconds: float = 300.0, **counts: int) -> View:
    """After five minutes."""
    made = Counts(**({"events": 12_000, "connections": 1200, "answered": 1190, "flows": 18} | counts))
    return View(fold or Fold(), made, Usage(1.2, 61_000_000, 12), seconds, None, (), CLOCK)


def drawn(dashboard: Dashboard, state: View, width: int = 100, height: int = 24) -> list[str]:
    """What stands on the screen: drawn by rich and recorded."""
    console = Console(
        file=io.StringIO(), record=True, width=width, height=height, color_system=None, legacy_windows=False
    )
    text = coloured(dashboard.lines(state, width, height))
    text.no_wrap, text.overflow = True, "crop"
    console.print(text, end="")
    return console.export_text().splitlines()


def busy() -> tuple[Dashboard, Fold]:
    """A policy drops 41 connections, one is slow."""
    board, fold = Dashboard("all pods of this node", io.StringIO()), Fold()
    for n in range(41):
        told = fold.add(anomaly(n))
        if told is not None:
            board.told(told, CLOCK)
    told = fold.add(anomaly(50, found("SLOW_CONNECT", Severity.WARN), client="shop/web-1", seconds=3.07))
    assert told is not None
    board.told(told, CLOCK)
    return board, fold


def test_a_quiet_node() -> None:
    assert [line.rstrip() for line in drawn(Dashboard("all pods of this node", io.StringIO()), view())] == [
        "watching all pods of this node" + " " * (100 - 30 - 13) + "5 min  q ends",
        "12 pods  1200 connections (0.0/s), 1190 answered  18 under way",
        "0.4 % CPU  61 MB  12000 events (0/s)  0 lost",
        "",
        "nothing has gone wrong so far",
    ]


def test_what_is_worst_and_what_came_last() -> None:
    board, fold = busy()
    assert [line.rstrip() for line in drawn(board, view(fold))[3:]] == [
        "",
        "most often",
        f"✗ {TIMES}41    shop/cart-7d4f → svc/shop/payments:80  DROPPED on node… policy is DROP  FORWARD_POLICY_DROP",
        f"! {TIMES}1     shop/web-1 → svc/shop/payments:80  SLOW_CONNECT in one line (3.1 s)  SLOW_CONNECT",
        "",
        "latest",
        "03:00:50  ! shop/web-1 → svc/shop/payments:80  SLOW_CONNECT in one line (3.1 s)  SLOW_CONNECT",
        "03:00:00  ✗ shop/cart-7d4f → svc/shop/payments:80  DROPPED on no…policy is DROP  FORWARD_POLICY_DROP",
    ]


def test_rates_are_those_of_the_last_seconds() -> None:
    board = Dashboard("all", io.StringIO())
    for second in range(61):
        lines = drawn(
            board, view(seconds=float(second), connections=0 if second < 50 else 20 * (second - 50), events=0)
        )
    assert "200 connections (20.0/s)" in lines[1]
    assert len(board._marks) < 20


def test_lost_and_sampled_events_and_the_dns_are_shown() -> None:
    board = Dashboard("all", io.StringIO())
    state = view(lost=17, one_in=4, evicted=2, unjudged=1)
    state = View(
        state.fold, state.counts, state.usage, 10.0, Dns(310, 12, {"NOERROR": 250, "NXDOMAIN": 40}, 5.0), ("n",), CLOCK
    )
    text = "\n".join(drawn(board, state))
    assert "17 lost  3 not judged  1 in 4 connections" in text
    assert "dns  310 queries, 12 without an answer, NXDOMAIN 40, slowest 5.0 s" in text
    assert "note  n" in text


@pytest.mark.parametrize("height", [1, 3, 5, 10, 24, 60])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_it_stays_within_the_terminal(width: int, height: int) -> None:
    board, fold = busy()
    for n in range(100):
        told = fold.add(anomaly(60 + n, found(f"CODE_{n % 30}"), flow=stranger(n), client=""))
        if told is not None:
            board.told(told, CLOCK)
    state = View(fold, Counts(lost=3), Usage(1, 1, 1), 10.0, Dns(1, 0, {}, 0.1), ["x" * 300] * 9, CLOCK)
    lines = board.lines(state, width, height)
    assert len(lines) <= height
    if width >= 80:
        assert all(sum(cells(span.text) for span in line) <= width for line in lines)


def test_hostile_names_reach_no_terminal() -> None:
    board, fold = Dashboard(EVIL, io.StringIO()), Fold()
    told = fold.add(anomaly(0, found(title="x\x1b[2J\n"), client=EVIL, subject="\x07"))
    assert told is not None
    board.told(told, CLOCK)
    state = View(fold, Counts(), Usage(0, 0, 0), 1.0, None, ["\x1b]0;owned\x07"], CLOCK)
    lines = board.lines(state, 200, 40)
    assert "".join(span.text for line in lines for span in line).isprintable()
    assert r"[red]x[/]\x1b[31m" in "".join(span.text for line in lines for span in line)


class Terminal:
    """A pseudo-terminal that somebody sits at."""

    def __init__(self) -> None:
        self.near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        os.set_blocking(self.near, False)
        self.far = os.fdopen(far, "r+b", buffering=0)
        self.screen = io.TextIOWrapper(os.fdopen(os.dup(far), "wb", buffering=0), write_through=True)
        self.keyboard = io.TextIOWrapper(self.far)

    def read(self) -> str:
        found = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.near, 65536):
                found += part
        return found.decode()

    def type(self, keys: str) -> None:
        os.write(self.near, keys.encode())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())  # it is nobody's controlling terminal here
    yield made
    os.close(made.near)


def test_it_takes_the_other_screen_and_gives_it_back(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.keyboard.fileno())
    with Dashboard("all", terminal.screen, terminal.keyboard) as board:
        board.ready(3)
        board.view(view())
        text = terminal.read()
        assert "\x1b[?1049h" in text
        assert "nothing has gone wrong so far" in text
        assert not termios.tcgetattr(terminal.keyboard.fileno())[3] & (termios.ECHO | termios.ICANON)
        assert termios.tcgetattr(terminal.keyboard.fileno())[3] & termios.ISIG
    text = terminal.read()
    assert "\x1b[?1049l" in text
    assert text.rindex("\x1b[?25h") > text.find("\x1b[?25l")
    assert termios.tcgetattr(terminal.keyboard.fileno()) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_gives_the_terminal_back_whatever_happens(terminal: Terminal, error: type[BaseException]) -> None:
    before = termios.tcgetattr(terminal.keyboard.fileno())

    def run() -> None:
        with Dashboard("all", terminal.screen, terminal.keyboard) as board:
            board.ready(3)
            board.view(view())
            raise error

    with pytest.raises(error):
        run()
    assert "\x1b[?1049l" in terminal.read()
    assert termios.tcgetattr(terminal.keyboard.fileno()) == before


@pytest.mark.parametrize(("keys", "ended"), [("q", True), ("Q", True), ("xyz\n", False), ("", False), ("xq", True)])
def test_q_ends_it(terminal: Terminal, keys: str, ended: bool) -> None:
    with Dashboard("all", terminal.screen, terminal.keyboard) as board:
        board.ready(3)
        terminal.type(keys)
        assert board.ended() == ended
        assert not board.ended()


def test_without_a_keyboard_nothing_is_waited_for(terminal: Terminal) -> None:
    with open(os.devnull, encoding="ascii") as nothing, Dashboard("all", terminal.screen, nothing) as board:
        board.ready(3)
        assert not board.ended()


def test_a_background_job_asks_for_no_keys(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would stop it (SIGTTOU)."""
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    before = termios.tcgetattr(terminal.keyboard.fileno())
    with Dashboard("all", terminal.screen, terminal.keyboard) as board:
        board.ready(3)
        assert termios.tcgetattr(terminal.keyboard.fileno()) == before
        assert not board.ended()


def test_a_new_size_is_drawn_in(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dashboard("all", terminal.screen, terminal.keyboard) as board:
        board.ready(3)
        for size in (os.terminal_size((100, 30)), os.terminal_size((60, 10))):
            monkeypatch.setattr(os, "get_terminal_size", lambda _, size=size: size)
            board.view(view(busy()[1]))
            rows = terminal.read().rpartition("\x1b[H")[2].split("\n")
            assert len(rows) == size.lines
            assert len(re.sub(r"\x1b\[[0-9;]*m", "", rows[0]).rstrip("\r")) == size.columns


def test_the_drawing_is_throttled(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDRAW_EVERY", 60.0)
    monkeypatch.setattr(module, "monotonic", lambda: 1000.0)
    with Dashboard("all", terminal.screen, terminal.keyboard) as board:
        board.ready(3)
        for second in range(50):
            board.view(view(seconds=float(second)))
        assert terminal.read().count("q ends") == 1
