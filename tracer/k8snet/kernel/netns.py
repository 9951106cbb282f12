"""Network namespaces: which there are, how to enter one, how to read a file of /proc as seen from inside.

A netns is named by its inode number (`ns.inum`), the same number that events carry. To enter it one needs a path
that keeps it alive: a process's /proc/PID/ns/net, or a bind mount that a CNI or `ip netns` made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

CLONE_NEWNET = 0x40000000

# Where runtimes and `ip netns` pin network namespaces (containerd and CRI-O use the first, docker the second).
MOUNTS = (Path("/run/netns"), Path("/run/docker/netns"))


@dataclass(frozen=True, slots=True)
class Netns:
    """One network namespace and how to reach it."""

    inum: int
    path: str
    pids: tuple[int, ...] = field(default=(), compare=False)  # processes inside, lowest first


def inum_of(path: str | Path) -> int:
    """The netns inode behind `path`; raises OSError when it is gone."""
    return Path(path).stat().st_ino


def own() -> int:
    """The inode of the netns this thread is in."""
    return inum_of("/proc/thread-self/ns/net")


def opened(netns: Netns) -> int:
    """A file descriptor of `netns` (the caller closes it); raises FileNotFoundError when the netns is gone."""
    # The process that led to it may have ended, and its pid may be another's by now: any of its processes will do.
    for path in (netns.path, *(f"/proc/{pid}/ns/net" for pid in netns.pids)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if os.fstat(fd).st_ino == netns.inum:
            return fd
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "network namespace is gone", netns.path)


@contextmanager
def entered(there: str | Path | int) -> Iterator[None]:
    """Run the body inside the netns at a path or behind an open fd (this thread only; what it opens stays there)."""
    with (
        open("/proc/thread-self/ns/net", "rb") as back,
        open(there, "rb", closefd=not isinstance(there, int)) as inside,
    ):
        _setns(inside.fileno())
        try:
            yield
        finally:
            _setns(back.fileno())


def scan(proc: Path = Path("/proc"), mounts: tuple[Path, ...] = MOUNTS) -> dict[int, Netns]:
    """Every netns that a process lives in or that is pinned by a mount, by inode."""
    pids: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            pids.setdefault(inum_of(entry / "ns/net"), []).append(int(entry.name))
        except OSError:  # the process ended, or a kernel thread without namespaces
            continue
    found = {
        inum: Netns(inum, str(proc / str(min(members)) / "ns/net"), tuple(sorted(members)))
        for inum, members in pids.items()
    }
    try:
        nsfs = (proc / "self/ns/net").stat().st_dev
    except OSError:
        return found
    for directory in (*_of_the_node(proc, mounts), *mounts):
        if not directory.is_dir():
            continue
        for mount in sorted(directory.iterdir()):
            try:
                status = mount.stat()
            except OSError:
                continue
            if status.st_dev != nsfs:
                continue  # the plain file that a mount left behind; its inode number may be some netns's, by chance
            # A mount outlives the process whose pid we have seen: prefer it as the way in.
            found[status.st_ino] = Netns(status.st_ino, str(mount), _pids(found.get(status.st_ino)))
    return found


def _of_the_node(proc: Path, mounts: tuple[Path, ...]) -> tuple[Path, ...]:
    """The same directories as pid 1 sees them, where we are in a container with mounts of its own."""
    try:
        if inum_of(proc / "1/ns/mnt") != inum_of(proc / "self/ns/mnt"):
            return tuple(proc / "1/root" / mount.relative_to("/") for mount in mounts)
    except OSError:  # no CAP_SYS_PTRACE
        pass
    return ()


def _pids(netns: Netns | None) -> tuple[int, ...]:
    return netns.pids if netns else ()


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(fd, CLONE_NEWNET)
        return
    import ctypes

    if _libc().setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


@cache  # opening it costs 0.1 ms, and `map` enters every netns of the node
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
