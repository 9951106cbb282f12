"""What may take packets away at a device: queues (qdiscs), tc filters with their actions, BPF programs at tc and XDP.

In: a netns. Out: how much each qdisc has dropped, and what hangs at which device. Only netlink dumps and bpf() queries.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import NETLINK_ROUTE, Netlink, attributes, text

# linux/rtnetlink.h, pkt_sched.h, pkt_cls.h, if_link.h, gen_stats.h, bpf.h.
_RTM_GETLINK, _RTM_GETQDISC, _RTM_GETTFILTER = 18, 38, 46
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_TCMSG: Final = struct.Struct("=B3xiIII")  # family, ifindex, handle, parent, info
_IFLA_XDP, _XDP_ATTACHED, _XDP_ID = 43, 2, 4
_XDP_MODES: Final = {1: "native", 2: "generic", 3: "offloaded", 4: "several"}
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_STATS_QUEUE: Final = 3
_QUEUE: Final = struct.Struct("=IIIII")  # struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits
_PARENTS: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # of clsact; the ingress qdisc's filters have ffff:
_INGRESS: Final = 0xFFFF0000
_BPF_NAME, _BPF_ID = 7, 11
# Where each classifier keeps its actions; `u32` and `fw` may have an old-style policer beside them.
_ACTIONS: Final = {"bpf": 1, "matchall": 2, "flower": 3, "basic": 3, "fw": 4, "u32": 7, "cgroup": 1, "flow": 9}
_ACT_KIND, _ACT_STATS = 1, 4
_TCX: Final = {"ingress": 46, "egress": 47}
_MOST: Final = 64  # the kernel's own limit for programs at one tcx hook (BPF_MPROG_MAX)


@dataclass(frozen=True, slots=True)
class Attached:
    """One thing at a device that sees every packet there and may take it."""

    hook: str  # "tc ingress", "tc egress", "xdp"
    kind: str  # "bpf", "tcx", "u32 police", "matchall gact"; "generic", "native" for XDP
    name: str = ""  # the program's
    id: int | None = None
    dropped: int | None = None  # by its actions, where they count

    def __str__(self) -> str:
        program = f" program {self.name or '(without a name)'} (id {self.id})" if self.id is not None else ""
        return f"{self.hook} {self.kind}{program}"


def qdisc_drops(netns: Netns) -> dict[str, int]:
    """What each qdisc has dropped, by "qdisc.DEVICE.KIND.dropped". OSError when the netns is gone."""
    drops: Counter[str] = Counter()
    with entered(netns.path):
        names = dict(socket.if_nameindex())
    with Netlink(netns.path, NETLINK_ROUTE) as netlink:
        for body in netlink.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
            _, index, *_ = _TCMSG.unpack_from(body)
            fields = dict(attributes(body[_TCMSG.size :]))
            stats = dict(attributes(fields.get(_TCA_STATS2, b""))).get(_STATS_QUEUE, b"")
            if index in names and len(stats) >= _QUEUE.size:
                drops[f"qdisc.{names[index]}.{text(fields[_TCA_KIND])}.dropped"] += _QUEUE.unpack_from(stats)[2]
    return dict(drops)


def attached(netns: Netns, devices: Iterable[str]) -> dict[str, tuple[Attached, ...]]:
    """What hangs at these devices of the netns, without those where nothing does; OSError when the netns is gone."""
    found: dict[str, list[Attached]] = {}
    with entered(netns.path):
        indexes = {name: index for index, name in socket.if_nameindex()}
    wanted = {name: indexes[name] for name in devices if name in indexes}
    with Netlink(netns.path, NETLINK_ROUTE) as netlink:
        for name, index in wanted.items():
            try:
                link = netlink.get(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
            except OSError:  # ENODEV: it has just gone
                continue
            xdp = dict(attributes(link[_IFINFOMSG.size :])).get(_IFLA_XDP, b"")
            found[name] = [*_xdp(xdp), *_filters(netlink, index)]
    with entered(netns.path):
        for name in found:
            found[name] += _tcx(wanted[name])
    return {name: tuple(things) for name, things in found.items() if things}


def _xdp(payload: bytes) -> Iterator[Attached]:
    fields = dict(attributes(payload))
    mode = fields.get(_XDP_ATTACHED, b"\0")[0]
    if mode:
        number = int.from_bytes(fields.get(_XDP_ID, b""), "little") or None
        yield Attached("xdp", _XDP_MODES.get(mode, "program"), program_name(number), number)


def _filters(netlink: Netlink, index: int) -> Iterator[Attached]:
    seen = set()
    for hook, parent in (*_PARENTS.items(), ("ingress", _INGRESS)):
        try:
            answers = netlink.dump(_RTM_GETTFILTER, _TCMSG.pack(0, index, 0, parent, 0))
        except OSError:  # the ingress qdisc has no egress, and without either there is no parent
            continue
        for body in answers:
            if body in seen:
                continue
            seen.add(body)
            fields = dict(attributes(body[_TCMSG.size :]))
            kind = text(fields.get(_TCA_KIND, b""))
            options = dict(attributes(fields.get(_TCA_OPTIONS, b"")))
            if not options:  # the head of a chain, no filter
                continue
            actions, dropped = _actions(options.get(_ACTIONS.get(kind, 0), b""))
            if kind == "bpf":
                raw = options.get(_BPF_ID)
                number = int.from_bytes(raw, "little") if raw else None
                name = program_name(number) or text(options.get(_BPF_NAME, b""))
                yield Attached(f"tc {hook}", " ".join((kind, *actions)), name, number, dropped)
            elif actions:
                yield Attached(f"tc {hook}", " ".join((kind, *actions)), dropped=dropped)


def _actions(payload: bytes) -> tuple[list[str], int | None]:
    """Kinds of a filter's actions, and how many packets they have dropped."""
    kinds, dropped = [], None
    for _, action in attributes(payload):
        fields = dict(attributes(action))
        kinds.append(text(fields.get(_ACT_KIND, b"")))
        stats = dict(attributes(fields.get(_ACT_STATS, b""))).get(_STATS_QUEUE, b"")
        if len(stats) >= _QUEUE.size:
            dropped = (dropped or 0) + _QUEUE.unpack_from(stats)[2]
    return kinds, dropped


# --- bpf(): no dump of rtnetlink knows a program's name, or programs at tcx ----------------------------------------


class _QueryOptions(ctypes.Structure):
    """struct bpf_prog_query_opts of libbpf."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("prog_cnt", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_void_p),
    )


@cache
def _libbpf() -> ctypes.CDLL:
    from k8snet.kernel.libbpf import LIBRARY

    return ctypes.CDLL(LIBRARY, use_errno=True)


def program_name(number: int | None) -> str:
    """The name a program was loaded with (15 characters); empty when it has none, or is gone."""
    if number is None:
        return ""
    try:
        lib = _libbpf()
    except OSError:
        return ""
    fd = lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if fd < 0:
        return ""
    import os

    info = ctypes.create_string_buffer(232)  # struct bpf_prog_info; the kernel fills as much as it has
    length = ctypes.c_uint32(len(info))
    try:
        failed = lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(length))
    finally:
        os.close(fd)
    return "" if failed else text(info.raw[64:80])


def _tcx(index: int) -> Iterator[Attached]:
    with contextlib.suppress(OSError, AttributeError):
        query = _libbpf().bpf_prog_query_opts
        for hook, kind in _TCX.items():
            ids = (ctypes.c_uint32 * _MOST)()
            options = _QueryOptions(ctypes.sizeof(_QueryOptions), 0, 0, ctypes.addressof(ids), _MOST, None)
            if query(index, kind, ctypes.byref(options)):  # EINVAL: a kernel without tcx
                return
            for number in ids[: options.prog_cnt]:
                yield Attached(f"tc {hook}", "tcx", program_name(number), number)
