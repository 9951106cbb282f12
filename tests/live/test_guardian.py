"""What a run changes is undone after SIGKILL, of the run alone and of its guardian too. In namespaces of this test."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k8snet.cli import cleanup
from k8snet.errors import Exit, K8snetError
from k8snet.kernel.guardian import JOURNAL, Guardian, NftTable, Sysctl, left, undo_left
from k8snet.kernel.netns import Netns, entered, inum_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

NAME = f"k8guard-{os.getpid()}"  # not `k8snet-`: that is the lab's, and `lab down` removes it
LOGGER = "net/netfilter/nf_log/2"

# A run that traces rules until it is killed. It says its guardian's pid when it has changed everything.
RUN = """
import sys, time
from ipaddress import ip_address
from k8snet.kernel.guardian import Guardian, NftTable
from k8snet.kernel.netns import Netns, inum_of
from k8snet.kernel.nftables import Nft
from k8snet.kernel.ruletrace import Match, RuleTrace
path = sys.argv[1]
netns = Netns(inum_of(path), path)
with Guardian() as guardian, RuleTrace(netns, Match(6, (ip_address("192.0.2.1"),), ()), guardian) as trace:
    assert trace.legacy, trace.missing
    guardian.will_change(NftTable(netns.inum, path, "inet", "k8snet_trace_9"))  # as on a kernel without `flags owner`
    with Nft(path) as nft:
        nft.run("create table inet k8snet_trace_9")
    print(guardian.pid, flush=True)
    time.sleep(600)
"""


def has(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """It comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def logger(netns: Netns) -> str:
    with entered(netns.path):
        return Path("/proc/sys", LOGGER).read_text().strip()


def our_tables(netns: Netns) -> list[str]:
    command = ["nsenter", f"--net={netns.path}", "nft", "list", "tables"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "k8snet" in line]


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A netns with an iptables-legacy table, so that both ways of tracing are used."""
    if shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy is not installed: apt-get install iptables")
    path = f"/run/netns/{NAME}"
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        enter = ["ip", "netns", "exec", NAME]
        made = subprocess.run(
            [*enter, "iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT"], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip(f"this kernel has no iptables-legacy: {made.stderr.decode().strip()}")
        yield Netns(inum_of(path), path)
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)


@contextlib.contextmanager
def started(netns: Netns) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run in a process of its own, and its guardian's pid."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, netns.path], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert run.stdout is not None
        line = run.stdout.readline()
        assert line, "the run ended early"
        yield run, int(line)
    finally:
        run.kill()
        run.wait()
        if run.stdout is not None:
            run.stdout.close()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def cleaned(capsys: pytest.CaptureFixture[str], netns: Netns) -> list[str]:
    """What `k8snet cleanup` says of this netns (others may be at work on this machine)."""
    capsys.readouterr()
    assert cleanup.run(argparse.Namespace(force=False)) is Exit.OK
    return [line for line in capsys.readouterr().out.splitlines() if str(netns.inum) in line]


def test_a_killed_run_leaves_nothing(netns: Netns) -> None:
    before = logger(netns)
    with started(netns) as (run, guardian):
        assert logger(netns) == "nfnetlink_log" != before
        assert len(our_tables(netns)) == 2
        assert (JOURNAL / f"{run.pid}.json").exists()
        run.kill()
        assert has(lambda: not our_tables(netns))
        assert has(lambda: logger(netns) == before)
        assert has(lambda: not (JOURNAL / f"{run.pid}.json").exists())
        assert has(lambda: not alive(guardian))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_for_everybody_does_not_stop_the_guardian(netns: Netns, number: signal.Signals) -> None:
    before = logger(netns)
    with started(netns) as (run, guardian):
        os.kill(guardian, number)
        run.send_signal(number)
        run.wait(10)
        assert has(lambda: not our_tables(netns) and logger(netns) == before)
        assert has(lambda: not alive(guardian))


def test_cleanup_undoes_what_is_left_when_the_guardian_was_killed_too(
    netns: Netns, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logger(netns)
    with started(netns) as (run, guardian):
        os.kill(guardian, signal.SIGKILL)
        run.kill()
        run.wait()
        assert has(lambda: not alive(guardian))
        # The kernel has removed the table with an owner; the rest has nobody.
        assert our_tables(netns) == ["table inet k8snet_trace_9"]
        assert logger(netns) == "nfnetlink_log"
        said = cleaned(capsys, netns)
        assert len(said) == 2
        assert any("k8snet_trace_9" in line for line in said)
        assert any(f"net.netfilter.nf_log.2 = {before}" in line for line in said)
        assert (logger(netns), our_tables(netns)) == (before, [])
        assert cleaned(capsys, netns) == []
        assert not (JOURNAL / f"{run.pid}.json").exists()


def test_cleanup_leaves_a_living_run_alone_unless_forced(netns: Netns, capsys: pytest.CaptureFixture[str]) -> None:
    before = logger(netns)
    with started(netns) as (run, _):
        assert cleaned(capsys, netns) == []
        assert (logger(netns), len(our_tables(netns))) == ("nfnetlink_log", 2)
        # As --force does, but for this run only: others may be at work on this machine.
        undone = [change for item in left() if item.owner == run.pid for change in undo_left(item)]
        assert len(undone) == 2
        assert (logger(netns), our_tables(netns)) == (before, ["table inet k8snet_trace"])


def test_cleanup_finds_a_table_without_a_journal(netns: Netns, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["nsenter", f"--net={netns.path}", "nft", "add table inet k8snet_trace; add table inet mine"]
    subprocess.run(command, check=True)
    assert cleaned(capsys, netns) == [f"removed: table inet k8snet_trace in netns {netns.inum}"]
    assert our_tables(netns) == []


def test_a_run_whose_guardian_was_killed_undoes_by_itself(netns: Netns) -> None:
    before = logger(netns)
    change = Sysctl(netns.inum, netns.path, LOGGER, before, "nfnetlink_log")
    with Guardian() as guardian:
        guardian.will_change(change)
        with entered(netns.path):
            Path("/proc/sys", LOGGER).write_text("nfnetlink_log")
        assert guardian.pid is not None
        os.kill(guardian.pid, signal.SIGKILL)
    assert logger(netns) == before
    assert not (JOURNAL / f"{os.getpid()}.json").exists()


def test_a_value_that_somebody_else_has_set_meanwhile_is_not_touched(netns: Netns) -> None:
    with Guardian() as guardian:
        guardian.will_change(Sysctl(netns.inum, netns.path, LOGGER, logger(netns), "nfnetlink_log"))
        with entered(netns.path):
            Path("/proc/sys", LOGGER).write_text("NONE")
    assert logger(netns) == "NONE"


def test_what_could_not_be_undone_is_not_changed(netns: Netns) -> None:
    with Guardian() as guardian:
        with pytest.raises(K8snetError, match="could not be undone"):
            guardian.will_change(NftTable(netns.inum, "/run/netns/no-such", "inet", "k8snet_trace"))
        with pytest.raises(K8snetError, match="no longer netns"):
            guardian.will_change(NftTable(netns.inum + 1, netns.path, "inet", "k8snet_trace"))


def test_nothing_is_started_before_the_first_change() -> None:
    with Guardian() as guardian:
        assert guardian.pid is None


def test_the_guardian_holds_no_file_and_no_terminal_of_the_run(netns: Netns) -> None:
    with started(netns) as (run, guardian):
        targets = [str(f.readlink()) for f in Path(f"/proc/{guardian}/fd").iterdir()]
        # Its own: /dev/null three times, the socket to the run, two netns that are watched.
        assert sorted(t.partition(":")[0] for t in targets) == ["/dev/null"] * 3 + [netns.path] * 2 + ["socket"]
        assert os.getsid(guardian) == guardian != os.getsid(run.pid)


def test_a_child_of_the_run_does_not_keep_its_changes_alive(netns: Netns) -> None:
    before = logger(netns)
    child = RUN.replace(
        "time.sleep(600)", "import os\n    if os.fork():\n        os.kill(os.getpid(), 9)\n    time.sleep(600)"
    )
    assert child != RUN
    command = [sys.executable, "-c", child, netns.path]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    try:
        assert run.wait(20) == -signal.SIGKILL
        assert has(lambda: not our_tables(netns) and logger(netns) == before, 5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # the run's session: its child
        if run.stdout is not None:
            run.stdout.close()
