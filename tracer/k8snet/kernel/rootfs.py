"""A pod's own /etc/resolv.conf, read through /proc/PID/root.

The pod decides what is there: a link to a device that never ends, a pipe that blocks, a link out of its root into ours.
So the kernel resolves the path as the pod's processes would have it (openat2 with RESOLVE_IN_ROOT, Linux 5.6, kernel
commit fddb5d430ad9), only a regular file is read, and no more of it than any resolver would. Processes that share the
node's mounts (a runtime's helper in the pod's netns) say nothing about the pod.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from contextlib import suppress
from typing import Final

from k8snet.kernel.netns import Netns, inum_of
from k8snet.kernel.resolver import Resolver, parse

MOST: Final = 64 * 1024  # bytes
_OPENAT2: Final = 437  # the number of the system call, the same on all architectures
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_PATH: Final = b"etc/resolv.conf"


def resolver_of(netns: Netns) -> Resolver | None:
    """What resolvers of the processes in `netns` read; None when there is no process, or no such file."""
    for pid in netns.pids:
        try:
            if inum_of(f"/proc/{pid}/ns/net") != netns.inum:
                continue  # the pid is another's by now
            if _of_the_node(pid, netns.inum):
                continue
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            return _read(root)
        except OSError:
            continue
        finally:
            os.close(root)
    return None


def _of_the_node(pid: int, inum: int) -> bool:
    """It has the node's mounts, and another netns than the node."""
    for node in ("1", "self"):  # pid 1 is not for everybody to read (no CAP_SYS_PTRACE, a restricted pid 1)
        with suppress(OSError):
            same = inum_of(f"/proc/{pid}/ns/mnt") == inum_of(f"/proc/{node}/ns/mnt")
            return same and inum_of(f"/proc/{node}/ns/net") != inum
    return False


def _read(root: int) -> Resolver | None:
    # O_NONBLOCK: to open a pipe would wait for its writer.
    file = _open_in_root(root, _PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        return parse(os.read(file, MOST).decode("utf-8", "replace"))
    finally:
        os.close(file)


def _open_in_root(root: int, path: bytes, flags: int) -> int:
    how = struct.pack("=QQQ", flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    syscall = libc.syscall
    syscall.restype = ctypes.c_long
    file = syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(root),
        ctypes.c_char_p(path),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if file < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(file)
