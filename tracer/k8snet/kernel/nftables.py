"""libnftables through ctypes: nft's own language in, nft's own text out, without starting a program.

A `Nft` belongs to one netns, in which its one netlink socket was opened. Surprising and useful: a table with
`flags owner` (kernel commit 6001a930ce03) lives exactly as long as that socket, so a killed tool leaves no table.
Input is a program: never put a name from outside into it without `is_plain`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Final

from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered

LIBRARY: Final = "libnftables.so.1"
HANDLE: Final = 1 << 3  # enum nft_output_flags: print rule handles

_PLAIN: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_./\\-]*")
_open: weakref.WeakSet[Nft] = weakref.WeakSet()


class NftError(Exception):
    """nft refused a command; the text is its message."""


def is_plain(name: str) -> bool:
    """`name` is one word of nft's language and nothing else (the kernel lets a chain be named `x; flush ruleset`)."""
    return _PLAIN.fullmatch(name) is not None


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as missing:
        raise K8snetError(
            f"rules cannot be named by tracing: {missing}", "apt-get install libnftables1   # or: dnf install nftables"
        ) from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


class Nft(contextlib.AbstractContextManager["Nft"]):
    """nft in the netns at `path`. Raises K8snetError without the library, OSError when the netns is gone."""

    def __init__(self, path: str | Path) -> None:
        self._nft = _library()
        # Kept open: a pod's /proc path vanishes with its process, and libnftables may reopen its socket while it runs.
        self._netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with entered(self._netns):
            self._context: int | None = self._nft.nft_ctx_new(0)
        if not self._context:
            os.close(self._netns)
            raise K8snetError("libnftables gives no context", "check that the kernel has nf_tables: modprobe nf_tables")
        self._nft.nft_ctx_buffer_output(self._context)
        self._nft.nft_ctx_buffer_error(self._context)
        _open.add(self)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the context: tables that it owns are gone when this returns."""
        if self._context is not None:
            self._nft.nft_ctx_free(self._context)
            os.close(self._netns)
            self._context = None

    def run(self, commands: str, flags: int = 0) -> str:
        """What nft prints for `commands` (a script in nft's language); NftError with its message when it refuses."""
        if self._context is None:
            raise ValueError("this nft context is closed")
        self._nft.nft_ctx_output_set_flags(self._context, flags)
        with entered(self._netns):
            failed = self._nft.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._nft.nft_ctx_get_output_buffer(self._context) or b""
        error: bytes = self._nft.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftError(error.decode("utf-8", "replace").strip())
        return output.decode("utf-8", "replace")


def _after_fork() -> None:
    # libnftables opens its socket without CLOEXEC. A copy of it in a forked child would keep our table alive.
    for nft in list(_open):
        nft.close()


os.register_at_fork(after_in_child=_after_fork)
