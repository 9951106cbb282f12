"""What this kernel and this user let us see: gathered once, judged by a pure function, printed by `k8snet check`.

In: the running machine. Out: `Abilities`, a list of facts and the status of each probe. All that is missing is said
at once, not the first thing only. Probes are really loaded and attached, with a filter that nothing matches, and taken
away again; everything else is only read. What surprises: whether rules can be named is not tried, because that would
make a table and may load modules; it is told from what the kernel has.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from k8snet.errors import K8snetError
from k8snet.event import ProbeId
from k8snet.kernel.libbpf import KERNEL_BTF, LIBRARY, KernelBtf, library
from k8snet.kernel.loader import OBJECT, Filter, ProbeStatus, Tracer
from k8snet.kernel.symbols import KALLSYMS
from k8snet.probes import ESSENTIAL

# Documentation address (RFC 5737): no packet has it.
_NOBODY: Final = Filter((IPv4Address("192.0.2.1"),), (IPv4Address("192.0.2.2"),))

_SYS_ADMIN: Final = 21
# UAPI linux/capability.h: number, name, what is lost without it.
_CAPABILITIES: Final = (
    (12, "NET_ADMIN", "rules cannot be named by tracing them"),
    (13, "NET_RAW", "rules of iptables-legacy cannot be read, and --send cannot ping"),
    (19, "SYS_PTRACE", "pods cannot be found by their processes' namespaces"),
    (_SYS_ADMIN, "SYS_ADMIN", "network namespaces cannot be entered"),
    (38, "PERFMON", "probes cannot be attached"),
    (39, "BPF", "probes cannot be loaded"),
)
_TRACING: Final = {"PERFMON", "BPF"}


class Tracing(StrEnum):
    """How much of the design this machine allows."""

    WHOLE = "whole"  # every probe of tier 1
    PARTIAL = "partial"  # a path and its end can be seen, some evidence cannot
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was looked at. `required`: without it nothing can be traced."""

    name: str
    ok: bool
    detail: str
    loss: str = ""  # what the operator loses, when not ok
    fix: str = ""  # what to do about it, when not ok
    required: bool = False


@dataclass(frozen=True, slots=True)
class Abilities:
    """Everything that was found."""

    kernel: str
    facts: tuple[Fact, ...]
    probes: tuple[ProbeStatus, ...]  # empty when nothing could be loaded

    @property
    def tracing(self) -> Tracing:
        """The verdict, and `k8snet check`'s exit code."""
        attached = {status.probe.id for status in self.probes if status.attached}
        if any(fact.required and not fact.ok for fact in self.facts) or not attached >= ESSENTIAL:
            return Tracing.IMPOSSIBLE
        missing = [status for status in self.probes if status.probe.tier == 1 and not status.attached]
        return Tracing.PARTIAL if missing else Tracing.WHOLE


def look() -> Abilities:
    """Look at everything; raises nothing that the user could mend, but says it."""
    facts = [_root(), *_capabilities(Path("/proc/self/status").read_text()), _btf(), _object(), _libbpf(), _lockdown()]
    probes: tuple[ProbeStatus, ...] = ()
    if all(fact.ok for fact in facts if fact.required):
        try:
            with Tracer(_NOBODY, also=tuple(ProbeId)) as tracer:
                probes = tracer.start()
            facts.append(Fact("ring buffer", True, "events can be handed over", required=True))
        except K8snetError as error:  # said as one more fact, beside the others
            facts.append(Fact("programs", False, error.problem, "nothing can be traced", error.remedy, required=True))
        with KernelBtf() as btf:
            facts += [_drop_reasons(btf), _symbols(), *_rule_naming(btf)]
    return Abilities(platform.release(), tuple(facts), probes)


def _root() -> Fact:
    return Fact("root", os.geteuid() == 0, f"uid {os.geteuid()}", "nothing can be traced", "sudo k8snet check", True)


def _capabilities(status: str) -> list[Fact]:
    """One fact for all that are there, one each for those that are not; `status` as in /proc/self/status."""
    words = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    have = int(words["CapEff"], 16)
    # Before 5.8 there was SYS_ADMIN alone, and the kernel still takes it for the two that came from it.
    spared = _TRACING if have >> _SYS_ADMIN & 1 else set()
    missing = [entry for entry in _CAPABILITIES if not have >> entry[0] & 1 and entry[1] not in spared]
    names = " ".join(name for number, name, _ in _CAPABILITIES if have >> number & 1)
    fix = "add them to the container's securityContext, or run it privileged"
    return [
        *([Fact("capabilities", True, names)] if names else []),
        *(Fact(f"capability {name}", False, "not held", loss, fix, name in _TRACING) for _, name, loss in missing),
    ]


def _btf() -> Fact:
    where = KERNEL_BTF / "vmlinux"
    fix = "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; every current distribution's has it"
    there = where.exists()
    detail = str(where) if there else f"{where} does not exist"
    return Fact("kernel types (BTF)", there, detail, "nothing can be traced", fix, True)


def _object() -> Fact:
    there = OBJECT.exists()
    detail = OBJECT.name if there else f"{OBJECT} does not exist"
    return Fact("compiled probes", there, detail, "nothing can be traced", "make bpf", True)


def _libbpf() -> Fact:
    try:
        version = library().function("libbpf_version_string", ctypes.c_char_p)()
        return Fact("libbpf", True, bytes(version).decode().removeprefix("v"), required=True)
    except OSError as error:
        return Fact(
            "libbpf", False, str(error), "nothing can be traced", f"install {LIBRARY}: apt install libbpf1", True
        )


def _lockdown() -> Fact:
    try:
        modes = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return Fact("lockdown", True, "not shown by this kernel")
    mode = modes.partition("[")[2].partition("]")[0] or modes.strip()
    return Fact("lockdown", True, mode)  # what it forbids shows in the probes


def _drop_reasons(btf: KernelBtf) -> Fact:
    number = len(btf.vmlinux.enum("skb_drop_reason"))
    loss = "a drop is told by the function that did it, not by a reason"
    return Fact("drop reasons", number > 0, f"{number} known to this kernel" if number else "none in this kernel", loss)


def _symbols() -> Fact:
    with KALLSYMS.open() as lines:
        shown = any(int(line.split(" ", 1)[0], 16) for line, _ in zip(lines, range(100), strict=False))
    loss = "the function that dropped a packet cannot be named"
    detail = "addresses are shown" if shown else "kptr_restrict hides the addresses"
    return Fact("kernel symbols", shown, detail, loss, "sysctl kernel.kptr_restrict=1, and run as root")


def _rule_naming(btf: KernelBtf) -> list[Fact]:
    """Whether the rule to blame can be named by tracing: of nftables and iptables-nft, of iptables-legacy."""
    loss = "the rule to blame is told from counters and from the place of the drop"
    facts = []
    if not btf.parameters("nft_do_chain", "nf_tables") and not _module("nf_tables"):
        facts.append(Fact("rule naming, nft", False, "no nf_tables in this kernel", loss))
    elif not _has_library("libnftables.so.1"):
        facts.append(Fact("rule naming, nft", False, "no libnftables", loss, "apt install libnftables1"))
    else:
        # enum nft_table_flags: the kernel removes a table with its owner (6001a930ce03, 5.12).
        flags = btf.enum("nft_table_flags", "nf_tables").values()
        owner = "NFT_TABLE_F_OWNER" in flags
        how = "own table goes with its process" if owner else "own table, removed by a guardian process"
        facts.append(Fact("rule naming, nft", True, how))
    log = Path("/proc/sys/net/netfilter/nf_log/2").exists()
    detail = "through nfnetlink_log" if log else "no nf_log in this kernel, or not loaded"
    facts.append(Fact("rule naming, legacy", log, detail, loss, "" if log else "modprobe nfnetlink_log"))
    return facts


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _module(name: str) -> bool:
    """The module is loaded, built in, or there to be loaded when it is asked for."""
    if Path("/sys/module", name).exists():
        return True
    directory = Path("/lib/modules", platform.release())
    for index in ("modules.builtin", "modules.dep"):
        try:
            if f"/{name}.ko" in (directory / index).read_text():
                return True
        except OSError:
            continue
    return False
