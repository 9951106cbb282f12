"""Names for the kernel's numbers: drop reasons, code addresses, netfilter hooks.

In: numbers as they stand in an `Event`. Out: the names that the running kernel has for them, so that a new drop reason
has its name on the day it appears. What surprises: an address is named late, when a drop has to be shown, because
reading /proc/kallsyms takes 0.1 s; and it is read again when an address lies where nothing was known, because the
module (bridge, vxlan, nf_tables) may have been loaded since.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from enum import IntEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from k8snet.event import HOOK_NONE
from k8snet.kernel.libbpf import KernelBtf

KALLSYMS: Final = Path("/proc/kallsyms")
MODULES: Final = Path("/proc/modules")
NOT_SPECIFIED: Final = "NOT_SPECIFIED"

# What the compiler appends to a function it has split or specialised.
_SUFFIX: Final = re.compile(r"\.(constprop|isra|part|cold|llvm)(\.\d+)?(?=\.|$)")
_FUNCTION: Final = re.compile(r"^([0-9a-f]+) [tTwW] (?!__pfx_|__cfi_)(\S+)(?:\t\[(\S+)\])?", re.MULTILINE)

# No function is this long: an address further behind a symbol belongs to a module that was not there at reading.
_LONGEST: Final = 1 << 20


class Hook(IntEnum):
    """enum nf_inet_hooks (UAPI linux/netfilter.h)"""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


def hook_name(hook: int) -> str | None:
    """`prerouting`, ... as in nft; None when the event does not know its hook."""
    if hook == HOOK_NONE:
        return None
    try:
        return Hook(hook).name.lower()
    except ValueError:
        return f"hook {hook}"


class Symbol(NamedTuple):
    """Where in the kernel: `function` without the compiler's suffixes, the offset in it, its module if it has one."""

    function: str
    offset: int
    module: str | None = None

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x}" + (f" [{self.module}]" if self.module else "")


class Symbols:
    """The running kernel's names, each table read when it is first needed."""

    def __init__(self, kallsyms: Path = KALLSYMS) -> None:
        self._kallsyms = kallsyms
        self._table = _Table((), ())
        self._asked: set[int] = set()

    @property
    def drop_reasons(self) -> Mapping[int, str]:
        """Drop reasons without the prefix (`NETFILTER_DROP`); empty where the kernel has none (5.10)."""
        return _drop_reasons()

    def drop_reason(self, number: int) -> str:
        """The reason's name; `NOT_SPECIFIED` where the kernel gives no reasons, the number where it is unknown."""
        if not self.drop_reasons:
            return NOT_SPECIFIED
        # Subsystems number their own reasons from 1 << 16 upwards; those have no names in the core's enum.
        return self.drop_reasons.get(number, f"reason {number:#x}")

    def symbol(self, address: int) -> Symbol | None:
        """The function that `address` lies in; None when it is 0 or kallsyms shows no addresses."""
        if not address:
            return None
        found = self._find(address)
        if found is None and address not in self._asked:
            self._asked.add(address)
            self._read()
            found = self._find(address)
        return found

    def _find(self, address: int) -> Symbol | None:
        index = bisect.bisect_right(self._table.starts, address) - 1
        if index < 0 or address - self._table.starts[index] >= _LONGEST:
            return None
        name, module = self._table.names[index]
        return Symbol(_SUFFIX.sub("", name), address - self._table.starts[index], module or None)

    def _read(self) -> None:
        # It takes 0.2 s (3 s where the machine is emulated), so it is kept as long as no module comes or goes.
        lines = MODULES.read_text().splitlines() if MODULES.exists() else []
        modules = tuple((words[0], words[5]) for words in map(str.split, lines))  # name and address, without its users
        self._table = _read(self._kallsyms, self._kallsyms.stat().st_size, modules)


@cache
def _drop_reasons() -> Mapping[int, str]:
    with KernelBtf() as btf:
        values = btf.vmlinux.enum("skb_drop_reason")
    return {number: re.sub(r"^SKB_(DROP_REASON_)?", "", name) for number, name in values.items()}


class _Table(NamedTuple):
    """Functions in the order of their addresses, and their names with their modules."""

    starts: tuple[int, ...]
    names: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def _read(kallsyms: Path, _size: int, _modules: tuple[tuple[str, str], ...]) -> _Table:
    found = _FUNCTION.findall(kallsyms.read_text(encoding="ascii", errors="replace"))
    # Without the privilege to see addresses they all read 0: better no name than a wrong one.
    symbols = sorted((int(address, 16), name, module) for address, name, module in found if address.strip("0"))
    return _Table(tuple(s[0] for s in symbols), tuple(s[1:] for s in symbols))
