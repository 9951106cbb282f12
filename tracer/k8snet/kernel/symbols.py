"""Names for the kernel's numbers: drop reasons, code addresses, netfilter hooks.

In: numbers as they stand in an `Event`. Out: the names that the running kernel has for them, so that a new drop reason
has its name on the day it appears. What surprises: an address is named late, when a drop has to be shown, because
reading /proc/kallsyms takes 0.1 s; and it is read again when an address lies where nothing was known, because the
module (bridge, vxlan, nf_tables) may have been loaded since.
"""

from __future__ import annotations

import bisect
import re
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from k8snet.event import HOOK_NONE
from k8snet.kernel.libbpf import KernelBtf

KALLSYMS: Final = Path("/proc/kallsyms")
NOT_SPECIFIED: Final = "NOT_SPECIFIED"

# What the compiler appends to a function it has split or specialised.
_SUFFIX: Final = re.compile(r"\.(constprop|isra|part|cold|llvm)(\.\d+)?(?=\.|$)")


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
        self._starts: list[int] = []
        self._names: list[str] = []
        self._modules: list[str | None] = []
        self._asked: set[int] = set()

    @cached_property
    def drop_reasons(self) -> dict[int, str]:
        """Drop reasons without the prefix (`NETFILTER_DROP`); empty where the kernel has none (5.10)."""
        with KernelBtf() as btf:
            values = btf.vmlinux.enum("skb_drop_reason")
        return {number: re.sub(r"^SKB_(DROP_REASON_)?", "", name) for number, name in values.items()}

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
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0 or address - self._starts[index] >= _LONGEST:
            return None
        return Symbol(self._names[index], address - self._starts[index], self._modules[index])

    def _read(self) -> None:
        symbols: list[tuple[int, str, str | None]] = []
        with self._kallsyms.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                address, kind, name, *module = line.split()
                if kind in "tTwW" and not name.startswith(("__pfx_", "__cfi_")):
                    symbols.append((int(address, 16), name, module[0].strip("[]") if module else None))
        # Without the privilege to see addresses they all read 0: better no name than a wrong one.
        symbols = sorted((s for s in symbols if s[0]), key=lambda s: s[0])
        self._starts = [start for start, _, _ in symbols]
        self._names = [_SUFFIX.sub("", name) for _, name, _ in symbols]
        self._modules = [module for _, _, module in symbols]
