"""From a filter to a stream of raw records: loads the programs, attaches them, drains the ring buffer.

In: a `Filter`. Out: `ProbeStatus` for each probe, and records that `Event.decode` understands. The running kernel's BTF
and the attempt itself decide what is attached, never a version number: a program that the kernel refuses is taken
out and the rest is loaded again, a function's by kprobe if it can be had so. What surprises: nobody is woken when
events arrive, so `drain` has to be called every few milliseconds; and detaching a function waits for the kernel, so
those are let go all at once.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from k8snet.errors import K8snetError
from k8snet.event import Address, ProbeId
from k8snet.kernel.libbpf import (
    KERNEL_BTF,
    LIBRARY,
    STRUCT,
    BpfError,
    KernelBtf,
    Link,
    Object,
    RingBuffer,
    give_back_memory,
    library,
)
from k8snet.probes import PROBES, WATCHED, Probe

OBJECT: Final = Path(__file__).parents[1] / "objects" / "k8snet.bpf.o"
_DYNPTR: Final = "bpf_dynptr_from_skb"
KPROBES: Final = Path("/sys/bus/event_source/devices/kprobe")
RING_BYTES: Final = 4 << 20
MAX_CLIENTS: Final = 4  # bpf/filter.h
MAX_PORTS: Final = 8
MAX_PEERS: Final = 4096
DRAIN_LIMIT: Final = 65536  # more records than the default ring holds: a bound for a kernel that writes as we read

_ICMP, _ICMPV6 = 1, 58
_ENOTSUPP: Final = 524  # the kernel's own, not in errno


@dataclass(frozen=True)
class Filter:
    """What to trace: packets between a client and a peer. Empty `peers` or `ports` and protocol 0 mean any."""

    clients: tuple[Address, ...]
    peers: tuple[Address, ...] = ()
    protocol: int = 0  # IPPROTO_*; ICMP means ICMPv6 as well
    ports: tuple[int, ...] = ()
    watch: bool = False  # of all flows of `peers` what tells how they fare (bpf/watch.h); all else is not looked at


@dataclass(frozen=True)
class ProbeStatus:
    """Whether a probe is attached, and if not, why."""

    probe: Probe
    attached: bool
    why: str = ""


def require_loader(path: Path = OBJECT) -> None:
    """Raise K8snetError for the first thing without which nothing can be traced."""
    if os.geteuid() != 0:
        raise K8snetError("tracing needs root", "sudo k8snet ...")
    if not (KERNEL_BTF / "vmlinux").exists():
        raise K8snetError(
            f"this kernel has no type information (BTF): {KERNEL_BTF / 'vmlinux'} does not exist",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; every current distribution's has it",
        )
    if not path.exists():
        raise K8snetError(f"the compiled BPF programs are missing: {path}", "make bpf")
    try:
        library()
    except OSError:
        raise K8snetError(f"{LIBRARY} is not installed", "apt install libbpf1  (dnf install libbpf)") from None


class Tracer:
    """The attached set of probes. A context manager; `close` is what its end does."""

    def __init__(
        self,
        filter: Filter,  # noqa: A002 (it is what the thing is called everywhere)
        tiers: Collection[int] = (1, 2),
        ring_bytes: int = RING_BYTES,
        also: Collection[ProbeId] = (),
        path: Path = OBJECT,
    ) -> None:
        """`ring_bytes`: a power of two of at least a page; `also`: probes to attach that are off by default."""
        _check(filter)
        self._filter = filter
        default = WATCHED if filter.watch else {p.id for p in PROBES if p.default}
        self._wanted = tuple(p for p in PROBES if p.tier in tiers and (p.id in default or p.id in also))
        self._ring_bytes = ring_bytes
        self._path = path
        self._object: Object | None = None
        self._ring: RingBuffer | None = None
        self._links: list[tuple[Probe, Link]] = []
        self._by_kprobe: set[Probe] = set()
        self.reads_fragments = True  # of a payload; False on kernels whose programs reach the linear part only

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> tuple[ProbeStatus, ...]:
        """Load and attach; each wanted probe's status. Raises K8snetError when nothing can be had."""
        require_loader(self._path)
        try:
            with KernelBtf() as btf:
                refused = {probe: why for probe in self._wanted if (why := _absent(probe, btf))}
                self._try_functions(refused)
                for probe in [probe for probe in refused if _has_kprobe(probe, btf)]:
                    self._by_kprobe.add(probe)
                    del refused[probe]
                self._object = self._load(btf, refused)
            self.add_peers(self._filter.peers)
            self._ring = RingBuffer(self._object.map("events"))
            for probe in self._wanted:
                if probe not in refused and (why := self._attach(probe, self._object)):
                    refused[probe] = why
        except BpfError as error:
            self.close()
            raise _explained(error) from error
        except BaseException:
            self.close()
            raise
        give_back_memory()
        return tuple(ProbeStatus(p, p not in refused, refused.get(p, "")) for p in self._wanted)

    def drain(self, limit: int = DRAIN_LIMIT) -> list[bytes]:
        """The records that have come since the last call, at most `limit`; the rest comes with the next call."""
        return self._ring.drain(limit) if self._ring else []

    def lost(self) -> dict[str, int]:
        """Events that found the ring buffer full, by probe; only probes that lost any."""
        if self._object is None:
            return {}
        offset, size = self._object.btf.variables(".bss")["lost"]
        section = self._object.map(".bss")[b"\0\0\0\0"]
        counts = struct.unpack_from(f"={size // 8}Q", section, offset)
        return {probe.name: counts[probe.id] for probe in PROBES if counts[probe.id]}

    def add_peers(self, addresses: Iterable[Address]) -> None:
        """Let packets to and from these through as well, at once."""
        if self._object is None:
            raise RuntimeError("the tracer is not started")
        peers = self._object.map("peers")
        for address in addresses:
            try:
                peers[_key(address)] = b"\1"
            except BpfError as error:
                if error.errno != errno.E2BIG:
                    raise
                raise K8snetError(f"more than {MAX_PEERS} peer addresses", "trace to one pod or service") from None

    def remove_peers(self, addresses: Iterable[Address]) -> None:
        """Let packets to and from these no longer through; harmless for those that never were."""
        if self._object is None:
            raise RuntimeError("the tracer is not started")
        peers = self._object.map("peers")
        for address in addresses:
            del peers[_key(address)]

    def held(self) -> int:
        """Drops that a watch did not report one by one, for there were too many."""
        if self._object is None:
            return 0
        offset, size = self._object.btf.variables(".bss")["held"]
        return int.from_bytes(self._object.map(".bss")[b"\0\0\0\0"][offset : offset + size], sys.byteorder)

    def sample(self, shift: int) -> None:
        """Let one in 2**shift connections of a watch through, at once."""
        if self._object is None:
            raise RuntimeError("the tracer is not started")
        self._object.map("sampling")[b"\0\0\0\0"] = struct.pack("=I", shift)

    def close(self) -> None:
        """Detach and unload; harmless when repeated."""
        links, self._links = self._links, []
        for probe, link in links:
            if probe.tier == 1:
                link.close()
        functions = [link for probe, link in links if probe.tier != 1]
        # Each waits for an RCU grace period (0.13 s, emulated 6.12); waiting at the same time they share it.
        waiting = [threading.Thread(target=link.close) for link in functions]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        if self._ring:
            self._ring.close()
            self._ring = None
        if self._object:
            self._object.close()
            self._object = None

    def _try_functions(self, refused: dict[Probe, str]) -> None:
        """If the smallest program on a function is forbidden, so is all of tier 2."""
        functions = [probe for probe in self._wanted if probe.tier == 2 and probe not in refused]
        if functions and (why := _functions_forbidden(self._path, functions[0].programs[0])):
            refused |= dict.fromkeys(functions, why)

    def _load(self, btf: KernelBtf, refused: dict[Probe, str]) -> Object:
        """The object, loaded with the wanted probes that the kernel takes; the others are added to `refused`."""
        self.reads_fragments = bool(btf.parameters(_DYNPTR))
        while True:
            owner = {program: probe for probe in self._wanted for program in self._programs(probe)}
            candidate = Object(self._path)
            try:
                for name, program in candidate.programs.items():
                    program.autoload = name in owner and owner[name] not in refused
                candidate.map("events").set_max_entries(self._ring_bytes)
                self._set_constants(candidate, btf, tier2=any(p.tier == 2 for p in self._wanted if p not in refused))
                candidate.load()
            except BpfError as error:
                candidate.close()
                culprit = owner.get(error.program or "")
                if culprit is None or culprit in refused:
                    raise
                if culprit.tier == 1 and self.reads_fragments:
                    self.reads_fragments = False  # from 6.4 to 6.11 the function is there and forbidden here
                    continue
                if culprit not in self._by_kprobe and _has_kprobe(culprit, btf):
                    self._by_kprobe.add(culprit)
                else:
                    refused[culprit] = _reason(error)
                continue
            except BaseException:
                candidate.close()
                raise
            return candidate

    def _programs(self, probe: Probe) -> tuple[str, ...]:
        return probe.fallback if probe in self._by_kprobe else probe.programs

    def _attach(self, probe: Probe, loaded: Object) -> str:
        """Attach all programs of a probe or none; the reason when it is none."""
        attached = len(self._links)
        try:
            for name in self._programs(probe):
                self._links.append((probe, loaded.programs[name].attach()))
        except BpfError as error:
            for _, link in self._links[attached:]:
                link.close()
            del self._links[attached:]
            return _reason(error)
        return ""

    def _set_constants(self, candidate: Object, btf: KernelBtf, tier2: bool) -> None:
        clients4 = [a.packed for a in self._filter.clients if isinstance(a, IPv4Address)]
        clients6 = [a.packed for a in self._filter.clients if not isinstance(a, IPv4Address)]
        protocol = self._filter.protocol
        either_icmp = protocol in (_ICMP, _ICMPV6)
        views = bool(btf.parameters("bpf_rdonly_cast"))
        shape = btf.parameters("ipt_do_table", "ip_tables") or btf.parameters("ip6t_do_table", "ip6_tables")
        values = {
            "client4_count": struct.pack("=I", len(clients4)),
            "client6_count": struct.pack("=I", len(clients6)),
            "client4": b"".join(clients4),
            "client6": b"".join(clients6),
            "any_peer": struct.pack("=?", not self._filter.peers and not self._filter.watch),
            "watching": struct.pack("=?", self._filter.watch),
            "protocol4": struct.pack("=B", _ICMP if either_icmp else protocol),
            "protocol6": struct.pack("=B", _ICMPV6 if either_icmp else protocol),
            "port_count": struct.pack("=I", len(self._filter.ports)),
            "ports": struct.pack(f"={len(self._filter.ports)}H", *self._filter.ports),
            "tier2": struct.pack("=?", tier2),
            "typed_views": struct.pack("=?", views),
            "skb_dynptrs": struct.pack("=?", self.reads_fragments),
            "nf_conn_type": struct.pack("=I", btf.vmlinux.find("nf_conn", STRUCT) if views else 0),
            "kfree_skb_args": struct.pack("=I", btf.tracepoint_arguments("kfree_skb")),
            "tcp_send_reset_args": struct.pack("=I", btf.tracepoint_arguments("tcp_send_reset")),
            "udp_fail_queue_rcv_skb_args": struct.pack("=I", btf.tracepoint_arguments("udp_fail_queue_rcv_skb")),
            "ipt_table_first": struct.pack("=?", shape[:1] != ["skb"]),
        }
        section, places = candidate.map(".rodata").initial(), candidate.btf.variables(".rodata")
        for name, value in values.items():
            offset, size = places[name]
            if len(value) > size:
                raise ValueError(f"{name}: {len(value)} bytes for {size}")
            section[offset : offset + len(value)] = value


@cache
def _functions_forbidden(path: Path, smallest: str) -> str:
    """Load one program on a function by itself: why that is forbidden; empty when it is not, or fails otherwise.

    Costs 15 ms where it works, and saves 60 ms of loading everything twice where it does not. Asked once: lockdown
    does not end before the kernel does.
    """
    with Object(path) as trial:
        for name, program in trial.programs.items():
            program.autoload = name == smallest
        trial.map("events").set_max_entries(os.sysconf("SC_PAGESIZE"))
        try:
            trial.load()
        except BpfError as error:
            return _reason(error) if error.errno in (errno.EPERM, _ENOTSUPP) else ""
    return ""


def _check(filter_: Filter) -> None:
    """Raise K8snetError for a filter that the kernel side has no room for."""
    if not filter_.clients and not filter_.watch:
        raise K8snetError("nothing to trace: the client has no address", "name a pod that is running")
    for what, have, limit in (
        ("client addresses", len(filter_.clients), MAX_CLIENTS),
        ("ports", len(filter_.ports), MAX_PORTS),
        ("peer addresses", len(filter_.peers), MAX_PEERS),
    ):
        if have > limit:
            raise K8snetError(f"{have} {what}, at most {limit} can be traced at once", "trace to one pod or service")


def _absent(probe: Probe, btf: KernelBtf) -> str:
    """Why a probe can't be had according to BTF; empty when it may be tried."""
    if probe.tier == 1:
        return "" if btf.tracepoint_arguments(probe.target) else f"this kernel has no tracepoint {probe.target}"
    if btf.parameters(probe.target, probe.module):
        return ""
    if probe.module and not Path("/sys/module", probe.module).exists():
        return f"the module {probe.module} is not loaded"
    return f"this kernel's type information has no function {probe.target}"


def _has_kprobe(probe: Probe, btf: KernelBtf) -> bool:
    """It may be had by kprobe: this kernel has them, the function, and the type that its programs read."""
    if not probe.fallback or not KPROBES.exists():
        return False
    if probe.module and not Path("/sys/module", probe.module).exists():
        return False
    return bool(btf.vmlinux.find(probe.reads, STRUCT) or (probe.module and (KERNEL_BTF / probe.module).exists()))


def _reason(error: BpfError) -> str:
    """One clause for a table: why the kernel refused."""
    if error.errno == errno.EPERM:
        return "forbidden here (capabilities, lockdown, or no function tracing in this kernel)"
    if error.errno == _ENOTSUPP:
        return "this kernel cannot attach to functions (no ftrace trampolines)"
    if error.errno in (errno.ESRCH, errno.ENOENT):
        return "not in this kernel"
    # The verifier's own last word, which stands before its statistics and libbpf's comments.
    words = [s for s in error.log.splitlines() if s.strip() and not s.startswith(("processed ", "libbpf:", "--"))]
    return os.strerror(error.errno or 0) + (f": {words[-1].strip()}" if words else "")


def _explained(error: BpfError) -> K8snetError:
    if error.errno == errno.EPERM:
        return K8snetError(
            f"the kernel does not let us load BPF programs ({error.what})",
            "run as root in the host's user namespace; under lockdown=confidentiality tracing is impossible",
        )
    if error.errno == errno.ENOMEM:
        return K8snetError(f"no memory for BPF ({error.what})", "ulimit -l unlimited, or free some memory")
    return K8snetError(f"the kernel refused the BPF programs: {_reason(error)}", "k8snet check")


def _key(address: Address) -> bytes:
    """An address as in struct tuple: IPv4 in the first four bytes, the rest zero."""
    return address.packed.ljust(16, b"\0")
