"""A host that is on no machine of ours: what a node sends into a TUN device is gone, as behind a real network card.

Everything else in the lab lives on this machine, where a trace sees it die. Here it sees a packet leave, and either
nothing come back or a reset that nobody here has sent.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from k8snet.kernel.netns import Netns, entered

DEVICE: Final = "wan0"

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_IP: Final = struct.Struct("!BBHHHBBH4s4s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_RST_ACK: Final = 0x14


@contextmanager
def device(netns: Netns, *, refuses: bool) -> Iterator[None]:
    """The TUN device `wan0` in `netns`, not yet up; with `refuses`, whoever is behind it answers TCP with a reset."""
    with entered(netns.path):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
        over, ended = os.pipe()
        answering = threading.Thread(target=_answer, args=(tun, over, refuses), name="k8snet-outside", daemon=True)
        answering.start()
        try:
            yield
        finally:
            os.close(ended)
            answering.join()
            os.close(over)
    finally:
        os.close(tun)


def _answer(tun: int, over: int, refuses: bool) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(tun, selectors.EVENT_READ)
        selector.register(over, selectors.EVENT_READ)
        while all(key.fd == tun for key, _ in selector.select()):
            packet = os.read(tun, 65535)
            if refuses and len(packet) >= 40 and packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                with suppress(OSError):  # the device is going
                    os.write(tun, reset(packet))


def reset(packet: bytes) -> bytes:
    """What a closed port answers to this TCP packet (RFC 9293, 3.10.7.1)."""
    start = (packet[0] & 0x0F) * 4
    source, target = packet[12:16], packet[16:20]
    sport, dport, seq = struct.unpack_from("!HHI", packet, start)
    tcp = _TCP.pack(dport, sport, 0, (seq + 1) & 0xFFFFFFFF, 5 << 4, _RST_ACK, 0, 0, 0)
    pseudo = target + source + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", _checksum(pseudo + tcp)) + tcp[18:]
    ip = _IP.pack(0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0, target, source)
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + tcp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
