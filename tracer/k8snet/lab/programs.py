"""BPF programs of two instructions for the lab: they have a name and always give the same verdict.

No compiler and no tool is needed: a program is loaded by libbpf and attached by one rtnetlink message. It lives as
long as the device it is attached to.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import Final

from k8snet.kernel.libbpf import LIBRARY
from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import NETLINK_ROUTE, Netlink, attribute

TC_SHOT: Final = 2
XDP_DROP: Final = 1

_SCHED_CLS, _XDP = 3, 6  # enum bpf_prog_type
_INSTRUCTION: Final = struct.Struct("=BBhi")
_RTM_SETLINK, _RTM_NEWQDISC, _RTM_NEWTFILTER = 19, 36, 44
_CREATE: Final = 0x600  # NLM_F_CREATE | NLM_F_EXCL
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_TCMSG: Final = struct.Struct("=B3xiIII")
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_DIRECTIONS: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_DIRECT_ACTION: Final = 1
_XDP_MODES: Final = {"generic": 1 << 1, "native": 1 << 2}
_TCX: Final = {"ingress": 46, "egress": 47}  # enum bpf_attach_type


def _load(kind: int, name: str, verdict: int) -> int:
    """A program that only returns `verdict`: its file descriptor."""
    # r0 = verdict; exit
    code = _INSTRUCTION.pack(0xB7, 0, 0, verdict) + _INSTRUCTION.pack(0x95, 0, 0, 0)
    lib = ctypes.CDLL(LIBRARY, use_errno=True)
    fd = lib.bpf_prog_load(kind, name.encode(), b"GPL", code, ctypes.c_size_t(2), None)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), f"program {name}")
    return int(fd)


def _index(netns: Netns, device: str) -> int:
    with entered(netns.path):
        return socket.if_nametoindex(device)


def drop_at_tc(netns: Netns, device: str, direction: str, name: str) -> None:
    """Attach a program `name` to the tc hook of `device` that drops everything."""
    index = _index(netns, device)
    fd = _load(_SCHED_CLS, name, TC_SHOT)
    try:
        with Netlink(netns.path, NETLINK_ROUTE) as netlink:
            clsact = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + attribute(1, b"clsact\0")
            netlink.request(_RTM_NEWQDISC, clsact, _CREATE)
            options = b"".join(
                (
                    attribute(6, struct.pack("=I", fd)),
                    attribute(7, name.encode() + b"\0"),
                    attribute(8, struct.pack("=I", _DIRECT_ACTION)),
                )
            )
            protocol = socket.htons(0x0003)  # ETH_P_ALL
            head = _TCMSG.pack(0, index, 0, _DIRECTIONS[direction], 1 << 16 | protocol)
            netlink.request(_RTM_NEWTFILTER, head + attribute(1, b"bpf\0") + attribute(2, options), _CREATE)
    finally:
        os.close(fd)


def drop_at_tcx(netns: Netns, device: str, direction: str, name: str) -> None:
    """The same without a qdisc, as kernels since 6.6 have it; OSError (EINVAL) on older ones."""
    fd = _load(_SCHED_CLS, name, TC_SHOT)
    try:
        with entered(netns.path):
            index = socket.if_nametoindex(device)
            failed = ctypes.CDLL(LIBRARY, use_errno=True).bpf_prog_attach(fd, index, _TCX[direction], 0)
        if failed:
            raise OSError(-failed, os.strerror(-failed), device)
    finally:
        os.close(fd)


def drop_at_xdp(netns: Netns, device: str, mode: str, name: str) -> None:
    """Attach an XDP program `name` to `device`, in the driver ("native") or above it, that drops everything."""
    index = _index(netns, device)
    fd = _load(_XDP, name, XDP_DROP)
    try:
        with Netlink(netns.path, NETLINK_ROUTE) as netlink:
            options = attribute(1, struct.pack("=i", fd)) + attribute(3, struct.pack("=I", _XDP_MODES[mode]))
            netlink.request(_RTM_SETLINK, _IFINFOMSG.pack(0, 0, index, 0, 0) + attribute(43 | 0x8000, options))
    finally:
        os.close(fd)
