"""What is found reaches the reader, the command and the report; --until ends the watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from k8snet.errors import K8snetError
from k8snet.flow.dns import DnsAnswer, DnsExchange
from k8snet.report import Severity
from k8snet.watch import execute
from k8snet.watch.audience import Audience, View, environment
from k8snet.watch.engine import Counts
from k8snet.watch.execute import AT_ONCE, SPARE, Runner, words_of
from k8snet.watch.fold import SECOND, Told
from k8snet.watch.live import Usage
from k8snet.watch.report import Clock, Dns
from unit.anomalies import anomaly, found, stranger
from unit.reports import EVIL
from unit.story import out
from unit.test_watch_report import LINE

USAGE = Usage(cpu=0.5, memory=60_000_000, pods=3)


@dataclass
class Taken:
    """A reader that keeps what it is told."""

    lines: list[Told] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    pods: int | None = None
    enough: bool = False

    def ready(self, pods: int) -> None:
        self.pods = pods

    def told(self, told: Told, clock: Clock) -> None:
        self.lines.append(told)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def view(self, view: View) -> None:
        self.views.append(view)

    def ended(self) -> bool:
        return self.enough


@dataclass
class Hands:
    """A clock that is set by hand."""

    ns: int = 0

    def __call__(self) -> int:
        return self.ns


def watched(**more: object) -> tuple[Audience, Taken, Hands]:
    reader, hands = Taken(), Hands()
    audience = Audience(reader, "node-1", now_ns=hands, **more)  # type: ignore[arg-type]  # named by the caller
    audience.ready(replace(USAGE, cpu=2.0))
    audience.counts(Counts(), replace(USAGE, cpu=2.0 + USAGE.cpu))
    return audience, reader, hands


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the reader and the report


def test_the_reader_hears_of_the_first_at_once_and_of_repeats_in_time() -> None:
    audience, reader, hands = watched()
    audience.found([anomaly(0.1 * n) for n in range(41)])
    assert [line.count for line in reader.lines] == [1]
    hands.ns = 60 * SECOND
    audience.counts(Counts(connections=50), USAGE)
    assert [line.count for line in reader.lines] == [1, 40]
    assert reader.pods == 3
    assert reader.views[-1].counts.connections == 50


def test_repeats_that_were_not_told_yet_are_told_at_the_end() -> None:
    audience, reader, hands = watched()
    audience.found([anomaly(0), anomaly(1), anomaly(2)])
    hands.ns = 4 * SECOND
    report = audience.finish(Counts(connections=9, anomalies=3))
    assert [line.count for line in reader.lines] == [1, 2]
    assert (report.seconds, report.by_code, report.anomalies[0].count) == (4.0, {"FORWARD_POLICY_DROP": 3}, 3)
    assert (report.cost.cpu_seconds, report.cost.cpu_percent, report.node) == (0.5, 12.5, "node-1")


def test_until_ends_the_watch() -> None:
    audience, _, _ = watched(until=frozenset({"NO_REPLY"}))
    audience.found([anomaly()])
    assert not audience.ended()
    audience.found([anomaly(1, found("NO_REPLY", Severity.WARN))])
    assert audience.ended()
    report = audience.finish(Counts(connections=1))
    assert (report.until, report.failed) == ("NO_REPLY", True)


def test_until_may_wait_for_a_finding_that_is_no_failure() -> None:
    audience, _, _ = watched(until=frozenset({"SLOW_CONNECT"}))
    audience.found([anomaly(1, found("SLOW_CONNECT", Severity.WARN))])
    assert audience.ended()
    assert audience.finish(Counts(connections=1)).failed


def test_the_reader_may_have_had_enough() -> None:
    audience, reader, _ = watched()
    assert not audience.ended()
    reader.enough = True
    assert audience.ended()


def test_a_note_is_said_each_time_that_it_is_news_and_stands_once_in_the_report() -> None:
    audience, reader, _ = watched()
    for text in ("samples", "samples", "all again", "samples"):
        audience.note(text)
    assert reader.notes == ["samples", "all again", "samples"]
    for n in range(1000):
        audience.note(f"note {n}")
    notes = audience.finish(Counts(connections=1), ["of the names"]).notes
    assert (notes[:2], notes[-1], len(notes)) == (("samples", "all again"), "of the names", 51)


def exchange(rcode: int | None, seconds: float = 0.01) -> DnsExchange:
    event = out("10.244.1.10:4000 > 10.96.0.10:53", 1, "eth0")
    server = ip_address("10.96.0.10")
    answers = (
        (DnsAnswer(int(seconds * SECOND), server, int(seconds * SECOND), server, 0x8180 | rcode),)
        if rcode is not None
        else ()
    )
    client = ip_address("10.244.1.10")
    return DnsExchange(
        client, 4000, 1, "udp", 1, "eth0", "web.shop", "A", server, 53, None, (0,), event, answers
    )  # fmt: skip


def test_dns_is_summed_up() -> None:
    audience, reader, _ = watched()
    assert audience.finish(Counts()).dns is None
    audience.asked([exchange(0), exchange(3), exchange(None), exchange(0, 5.0)])
    assert audience.finish(Counts(queries=4)).dns == Dns(4, 1, {"NOERROR": 2, "NXDOMAIN": 1}, 5.0)
    audience.counts(Counts(), USAGE)
    assert reader.views[-1].dns is not None


# --- --exec


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def script(directory: Path, text: str) -> list[str]:
    file = directory / "script.py"
    file.write_text(text)
    return [sys.executable, str(file)]


def test_the_command_has_the_finding_on_stdin_and_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = script(
        tmp_path,
        f"import json, os, sys\n"
        f"found = [json.load(sys.stdin), {{k: v for k, v in os.environ.items() if k.startswith('K8SNET_')}}]\n"
        f"open({str(out)!r}, 'a').write(json.dumps(found) + '\\n')\n",
    )
    runner = Runner(words, subprocess.DEVNULL)
    audience, _, _ = watched(runner=runner)
    audience.found([anomaly(), anomaly(1)])
    runner.finish()
    [line] = lines_of(out)
    document, told = json.loads(line)
    Draft202012Validator(LINE).validate(document)
    assert document["finding"]["code"] == "FORWARD_POLICY_DROP"
    assert {key: told[f"K8SNET_{key}"] for key in ("CODE", "SEVERITY", "CLIENT", "SERVER", "SUBJECT", "COUNT")} == {
        "CODE": "FORWARD_POLICY_DROP",
        "SEVERITY": "FAIL",
        "CLIENT": "shop/cart-7d4f",
        "SERVER": "svc/shop/payments:80",
        "SUBJECT": "",
        "COUNT": "1",
    }
    assert (runner.ran, runner.failed, runner.running) == (1, 0, 0)


def test_no_shell_reads_what_comes_from_outside(tmp_path: Path) -> None:
    told = Told(anomaly(0, found(title=f"$(touch {tmp_path}/x)\n\0{EVIL}"), subject="`id`\x1b"), 1, 0, 0, 1, True)
    assert all(value.isprintable() for value in environment(told).values())
    runner = Runner(words_of("echo $(touch /nowhere) ; false | $K8SNET_TITLE"), subprocess.DEVNULL)
    runner.offer("{}", environment(told))
    runner.finish()
    assert (runner.ran, runner.failed) == (1, 0)
    assert not (tmp_path / "x").exists()


def test_a_command_that_reads_nothing_holds_nobody_up() -> None:
    runner = Runner(["true"], subprocess.DEVNULL)
    runner.offer("x" * 10_000_000, {})
    runner.finish()
    assert (runner.ran, runner.failed) == (1, 0)


def test_a_command_that_hangs_is_ended_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "LIMIT", 0.3)
    pids = tmp_path / "pids"
    runner = Runner(["sh", "-c", f"sleep 300 & echo $$ $! > {pids}; wait"], subprocess.DEVNULL)
    runner.offer("{}", {})
    runner.finish()
    assert (runner.failed, runner.running) == (1, 0)
    wait_until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in lines_of(pids)[0].split()))


def test_the_limit_holds_when_we_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "from k8snet.watch import execute\n"
        "execute.LIMIT = 1\n"
        f"execute.Runner(['sh', '-c', 'echo $$ > {pids}; exec sleep 300'], subprocess.DEVNULL).offer('', {{}})\n"
        f"while not os.path.exists({str(pids)!r}): time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == -9
    wait_until(lambda: lines_of(pids))
    wait_until(lambda: not Path(f"/proc/{lines_of(pids)[0]}/cwd").exists())


def test_so_many_at_once_and_no_more() -> None:
    runner = Runner(["sleep", "60"], subprocess.DEVNULL)
    for _ in range(AT_ONCE + 3):
        runner.offer("{}", {})
    assert (runner.running, runner.skipped) == (AT_ONCE, 3)
    for process in runner._running:
        process.terminate()
    runner.finish()


def test_so_many_in_a_row_and_no_more() -> None:
    runner = Runner(["true"], subprocess.DEVNULL)
    for _ in range(SPARE + 5):
        runner.offer("{}", {})
        runner.finish()
    assert SPARE <= runner.ran < SPARE + 5
    assert runner.ran + runner.skipped == SPARE + 5


def test_what_was_not_run_or_failed_is_said_in_the_report() -> None:
    runner = Runner(["false"], subprocess.DEVNULL)
    audience, _, _ = watched(runner=runner)
    audience.found([anomaly(n, flow=stranger(n), client="") for n in range(SPARE + 5)])
    runner.finish()
    notes = " ".join(audience.finish(Counts(connections=1)).notes)
    assert "--exec: " in notes
    assert "ran no command" in notes
    assert f"{runner.failed} commands failed" in notes


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("", "names no command"),
        ("'open", "No closing quotation"),
        ("no-such-program -x", "no program 'no-such-program'"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(command: str, problem: str) -> None:
    with pytest.raises(K8snetError, match=problem):
        words_of(command)
