"""What a run changes on the node is undone, however the run ends.

Before each change the run tells a child process what it is about to do; the child opens the netns (a pod's path
vanishes with the pod), keeps a journal in /run/k8snet, and says yes. When the run ends, in whatever way, the child
sees its socket close, undoes what is left, and goes. When the child was killed too, `k8snet cleanup` reads the
journal. The child is forked, not started, so it costs a millisecond; fork it before there are threads and before
sockets that must die with the run (`Guardian.start`).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import socket
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from k8snet.errors import K8snetError
from k8snet.kernel.netns import Netns, entered, scan
from k8snet.kernel.nfnetlink import delete_table

JOURNAL: Final = Path("/run/k8snet")
_ANSWER_SECONDS: Final = 5.0  # a guess: the child has one file to open and one to write
_MESSAGE_MAX: Final = 65536
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def sysctl(name: str) -> Path:
    """The file of a value below /proc/sys in this thread's netns; in a container, whose own is read-only, pid 1's."""
    ways = [Path(way) / name for way in ("/proc/sys", "/proc/1/root/proc/sys")]
    return next((way for way in ways if os.access(way, os.W_OK)), ways[0])


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value under /proc/sys that the run sets to `ours`. Undone only while it still is `ours`."""

    netns: int
    path: str  # the way into the netns
    name: str  # below /proc/sys: "net/netfilter/nf_log/2"
    was: str
    ours: str

    def undo(self, path: str) -> bool:
        """Write the old value back in the netns at `path`; False when there was nothing to undo."""
        with entered(path):
            file = sysctl(self.name)
            try:
                if file.read_text().strip() != self.ours:
                    return False
                file.write_text(self.was)
            except FileNotFoundError:
                return False
        return True

    def __str__(self) -> str:
        return f"{self.name.replace('/', '.')} = {self.was} in netns {self.netns}"


@dataclass(frozen=True, slots=True)
class NftTable:
    """An nf_tables table that the run creates."""

    netns: int
    path: str
    family: str
    name: str

    def undo(self, path: str) -> bool:
        """Delete the table in the netns at `path`; False when there was nothing to undo."""
        try:
            return delete_table(path, self.family, self.name)
        except OSError as error:
            # EPERM: a living socket owns it, and the kernel will remove it with that. The rest: no nf_tables at all.
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL):
                return False
            raise

    def __str__(self) -> str:
        return f"table {self.family} {self.name} in netns {self.netns}"


Change = Sysctl | NftTable
_KINDS: Final[dict[str, type[Sysctl] | type[NftTable]]] = {"sysctl": Sysctl, "table": NftTable}


def _as_json(change: Change) -> dict[str, Any]:
    return {"kind": "sysctl" if isinstance(change, Sysctl) else "table", **asdict(change)}


def _from_json(document: dict[str, Any]) -> Change:
    fields = dict(document)
    return _KINDS[fields.pop("kind")](**fields)


class Guardian(contextlib.AbstractContextManager["Guardian"]):
    """Undoes changes when the run ends. Nothing is started before the first change, unless by `start`."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._socket: socket.socket | None = None
        self._changes: list[Change] = []
        self._questions = 0
        _guardians.add(self)

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._pid

    def start(self) -> None:
        """Fork the child now: early, before threads and before sockets that must die with this process."""
        if self._pid is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        # A Ctrl-C between fork and the child's own handlers would unwind the parent's frames in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    ours.close()
                    _child(theirs, parent)
                finally:
                    os._exit(0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        ours.settimeout(_ANSWER_SECONDS)
        self._pid, self._socket = pid, ours

    def will_change(self, change: Change) -> None:
        """Say what is about to be changed; make the change after this returns. K8snetError: do not make it."""
        self.start()
        problem = self._ask({"do": "watch", "change": _as_json(change)})
        if problem:
            raise K8snetError(
                f"nothing is changed on this node, because it could not be undone safely: {problem}",
                "use --read-only, which changes nothing",
            )
        self._changes.append(change)

    def undo(self, change: Change) -> None:
        """Undo one change now, whoever still can."""
        if change not in self._changes:
            return
        if self._ask({"do": "undo", "change": _as_json(change)}) is not None:
            # The child is gone: do it here. What fails here too stays in the journal for `k8snet cleanup`.
            try:
                change.undo(change.path)
            except FileNotFoundError:
                pass  # the netns is gone, and with it what was changed in it
            except OSError:
                return
        self._changes.remove(change)

    def forget(self, change: Change) -> None:
        """The change was not made after all."""
        if change in self._changes:
            self._changes.remove(change)
            self._ask({"do": "forget", "change": _as_json(change)})

    def close(self) -> None:
        """Undo all that is left and end the child."""
        for change in reversed(list(self._changes)):
            self.undo(change)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid is not None:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self._pid, 0)
                if status and not self._changes:  # killed, so it could not remove its journal
                    _remove(_journal_of(os.getpid()))
            self._pid = None

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> str | None:
        """None: done. Else why not."""
        if self._socket is None:
            return "the guardian process is not running"
        self._questions += 1
        try:
            self._socket.send(json.dumps({"number": self._questions, **question}).encode())
            while answer := self._socket.recv(_MESSAGE_MAX):
                document = json.loads(answer)
                # An older number answers a question that Ctrl-C interrupted.
                if document["number"] == self._questions:
                    return str(document["problem"]) or None
        except OSError as error:
            return f"the guardian process does not answer: {error}"
        return "the guardian process has died"

    def _forked(self) -> None:
        # A copy of our end in a forked child would hide this process's death from the guardian.
        if self._socket is not None:
            self._socket.close()
        self._socket, self._pid, self._changes = None, None, []


_guardians: weakref.WeakSet[Guardian] = weakref.WeakSet()


def _after_fork() -> None:
    for guardian in list(_guardians):
        guardian._forked()


os.register_at_fork(after_in_child=_after_fork)


# --- the child -------------------------------------------------------------------------------------------------------


def _child(talk: socket.socket, parent: int) -> None:
    _detach(talk.fileno())
    journal = _journal_of(parent)
    start = started(parent)
    watched: dict[str, tuple[Change, int]] = {}  # by its JSON -> the change, the open netns
    while True:
        try:
            message = talk.recv(_MESSAGE_MAX)
        except InterruptedError:
            continue
        except OSError:
            message = b""
        if not message:
            break
        question = json.loads(message)
        change = _from_json(question["change"])
        key = json.dumps(question["change"], sort_keys=True)
        problem = ""
        try:
            if question["do"] == "watch":
                watched[key] = change, _open_netns(change)
                _write_journal(journal, parent, start, [c for c, _ in watched.values()])
            elif key in watched:
                if question["do"] == "undo":
                    watched[key][0].undo(f"/proc/self/fd/{watched[key][1]}")
                os.close(watched.pop(key)[1])
                _write_journal(journal, parent, start, [c for c, _ in watched.values()])
        except OSError as error:
            problem = str(error)
        with contextlib.suppress(OSError):  # the run may have gone meanwhile; the next read says so
            talk.send(json.dumps({"number": question["number"], "problem": problem}).encode())
    for key in reversed(list(watched)):
        with contextlib.suppress(OSError):
            watched[key][0].undo(f"/proc/self/fd/{watched[key][1]}")
            del watched[key]
    if watched:
        _write_journal(journal, parent, start, [c for c, _ in watched.values()])
    else:
        _remove(journal)


def _detach(keep: int) -> None:
    """Own session, no terminal, no signals of the run, and none of its files (a reader of our stdout waits for EOF)."""
    gc.disable()  # what the run holds must not be finalised a second time, here
    os.setsid()
    os.chdir("/")
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    # Also BPF links and maps: a copy of their descriptors would keep probes attached.
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2 and int(entry.name) != keep:
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("k8snet-guardian")


def _open_netns(change: Change) -> int:
    fd = os.open(change.path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(fd).st_ino != change.netns:
        os.close(fd)
        raise OSError(errno.ESTALE, f"{change.path} is no longer netns {change.netns}")
    return fd


# --- the journal -----------------------------------------------------------------------------------------------------


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it names one process. None: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _journal_of(pid: int) -> Path:
    return JOURNAL / f"{pid}.json"


def _write_journal(path: Path, owner: int, start: int | None, changes: list[Change]) -> None:
    document = {
        "owner": owner,
        "owner_started": start,
        "guardian": os.getpid(),
        "guardian_started": started(os.getpid()),
        "changes": [_as_json(change) for change in changes],
    }
    fresh = path.with_suffix(".new")
    for _ in range(3):
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh.write_text(json.dumps(document))
            fresh.replace(path)
        except FileNotFoundError:
            continue  # another run's guardian has just removed the empty directory
        except OSError as error:
            # A read-only /run (a container) costs `k8snet cleanup`, not the guardian.
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        return


def _remove(journal: Path) -> None:
    with contextlib.suppress(OSError):
        journal.with_suffix(".new").unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        journal.parent.rmdir()  # only when it is empty


@dataclass(frozen=True, slots=True)
class Left:
    """One journal: what a run has changed and not undone."""

    journal: Path
    owner: int
    running: bool  # the run is alive
    guarded: bool  # its guardian is
    changes: tuple[Change, ...]


def left() -> Iterator[Left]:
    """Every journal. One that cannot be read has no changes."""
    for path in sorted(JOURNAL.glob("*.json")):
        try:
            document = json.loads(path.read_text())
            changes = tuple(_from_json(change) for change in document["changes"])
            running, guarded = (
                document[f"{who}_started"] is not None and started(document[who]) == document[f"{who}_started"]
                for who in ("owner", "guardian")
            )
            yield Left(path, int(document["owner"]), running, guarded, changes)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, OSError):
            yield Left(path, 0, False, False, ())


def undo_left(item: Left, seconds: float = 3.0) -> list[Change]:
    """Undo what one journal lists and remove it: what was undone. A living guardian gets `seconds` to do it itself."""
    deadline = time.monotonic() + seconds
    while item.guarded and not item.running and item.journal.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if item.guarded and not item.running and not item.journal.exists():
        return list(item.changes)
    ways = scan()
    undone = []
    for change in reversed(item.changes):
        way: Netns | None = ways.get(change.netns)
        if way is None:  # the netns is gone, and with it what was changed in it
            continue
        if change.undo(way.path):
            undone.append(change)
    _remove(item.journal)
    return undone
