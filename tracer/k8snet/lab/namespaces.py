"""Network namespaces of the lab: one forked process lives in each, and a mount under /run/netns pins it.

The process is forked and never executes anything (Python's start-up is slow in emulated machines), so everything it
must not share with its parent is cut here: descriptors, signals, session. It dies with the process that forked it.
Every pin carries the prefix `k8snet-`, so that what a crash left can be found and removed by name.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from k8snet.errors import Exit, K8snetError
from k8snet.kernel.netns import CLONE_NEWNET

PREFIX: Final = "k8snet-"
PINS: Final = Path("/run/netns")

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

Report = Callable[[object], None]


def pin_of(name: str) -> Path:
    """Where the netns of `name` ("node-1", "shop/cart") is pinned."""
    return PINS / (PREFIX + name.replace("/", "-"))


def pins() -> list[Path]:
    """Every pin with our prefix, of a living lab or left behind."""
    return sorted(PINS.glob(f"{PREFIX}*"))


def unpin(pin: Path) -> None:
    """Take the mount and its file away, if there; the netns itself goes with its last process."""
    try:
        while True:  # a pin that was mounted over once more
            _call("umount2", os.fsencode(pin), _MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    pin.unlink(missing_ok=True)


def enter_new(name: str) -> None:
    """Move this process into a fresh netns and pin it as `name`."""
    pin = pin_of(name)
    PINS.mkdir(mode=0o755, exist_ok=True)
    _call("unshare", CLONE_NEWNET)
    pin.touch(mode=0o444, exist_ok=False)
    _call("mount", b"/proc/self/ns/net", os.fsencode(pin), None, _MS_BIND, None)


def enter_own() -> None:
    """Move this thread into a fresh netns that goes when the thread ends."""
    _call("unshare", CLONE_NEWNET)


def mount_own(files: Mapping[Path, Path]) -> None:
    """Move this process into a mount namespace of its own, where each file stands in another one's place."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    for file, place in files.items():
        _call("mount", os.fsencode(file), os.fsencode(place), None, _MS_BIND, None)


def sysctl(key: str, value: str | int) -> None:
    """Set one sysctl of the netns this process is in, named with dots as sysctl(8) does (no dots inside a name)."""
    with open(f"/proc/sys/{key.replace('.', '/')}", "w", encoding="ascii") as file:
        file.write(str(value))


def fork(name: str, body: Callable[[Report], None], *, dies_with_parent: signal.Signals) -> tuple[int, int]:
    """Run `body(report)` in a child called `name`; returns its pid and a descriptor for `answer`.

    The child gets the signal `dies_with_parent` when the thread that forked it ends (prctl(2), PR_SET_PDEATHSIG).
    """
    parent = os.getpid()
    read, write = os.pipe()
    # A Ctrl-C between fork and the child's own handlers would run the parent's clean-up a second time.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _child(name, body, parent, write, dies_with_parent)
        os.close(write)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid, read


def answer(read: int) -> Any:
    """What the child reported; raises the K8snetError it met, or RuntimeError with its traceback."""
    with open(read, "rb") as pipe:
        text = pipe.read()
    if not text:
        raise RuntimeError("a process of the lab died before it was ready")
    told = json.loads(text)
    if "problem" in told:
        raise K8snetError(told["problem"], told["remedy"], Exit(told["code"]))
    if "bug" in told:
        raise RuntimeError(f"in a process of the lab:\n{told['bug']}")
    return told["ready"]


def outlive_parent() -> None:
    """Take back `dies_with_parent` for the calling process."""
    _call("prctl", _PR_SET_PDEATHSIG, 0, 0, 0, 0)


def _child(
    name: str, body: Callable[[Report], None], parent: int, write: int, dies_with_parent: signal.Signals
) -> NoReturn:
    # Nothing may escape from here: the frames above belong to the parent.
    status = 1
    try:
        # The parent's garbage stays garbage: a finalizer here would close a descriptor that now is somebody else's.
        gc.freeze()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        _close_all_but(write)
        _call("prctl", _PR_SET_PDEATHSIG, int(dies_with_parent), 0, 0, 0)
        _call("prctl", _PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if os.getppid() == parent:  # else it died before prctl, and no signal will come
            body(lambda value: _tell(write, {"ready": value}))
            status = 0
    except K8snetError as error:
        _tell(write, {"problem": error.problem, "remedy": error.remedy, "code": int(error.code)})
    except SystemExit:
        status = 0
    except BaseException:
        _tell(write, {"bug": traceback.format_exc()})
    finally:
        os._exit(status)


def _close_all_but(keep: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- the names are numbers, not paths
        if int(entry) > 2 and int(entry) != keep:
            try:
                os.close(int(entry))
            except OSError:  # the descriptor that listed the directory
                continue


def _tell(write: int, message: dict[str, object]) -> None:
    try:
        os.write(write, json.dumps(message).encode())
        os.close(write)
    except OSError:  # nobody waits for the answer any more
        return


def _call(function: str, *arguments: int | bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
