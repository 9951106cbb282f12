"""Which ports a netns has open, and what waits unread there: /proc/net/{tcp,udp} and sock_diag, asked from inside.

For a listening TCP socket the queue is the number of connections that wait for accept(), for a UDP socket the bytes
that wait for recv() (Documentation/networking/proc_net_tcp.rst). How long the former may get, only sock_diag tells.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import Netlink

LISTEN: Final = 0x0A  # TCP_LISTEN
UNCONNECTED: Final = 0x07  # TCP_CLOSE, the state of a UDP socket that is bound and not connected
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states
_ANSWER: Final = struct.Struct("=4x2s46x4xII8x")  # struct inet_diag_msg: source port, rqueue, wqueue
FILES: Final = (("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED))


def queues(netns: Netns) -> dict[tuple[str, int], int]:
    """(protocol, port) of every open server socket, and its receive queue; raises OSError when the netns is gone."""
    found: dict[tuple[str, int], int] = {}
    with entered(netns.path):
        for name, state in FILES:
            try:
                # /proc/net is the process's, not the thread's: the thread's own view is needed here.
                lines = Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii").splitlines()
            except FileNotFoundError:  # IPv6 is off
                continue
            for line in lines[1:]:
                port, queue = parse(line, state)
                if port is not None:
                    key = (name.removesuffix("6"), port)
                    found[key] = max(found.get(key, 0), queue)
    return found


def backlogs(netns: Netns) -> dict[tuple[str, int], tuple[int, int]]:
    """By ("tcp", port): how many connections wait for accept(), and how many may (listen()'s backlog).

    Of several sockets on one port the fullest. Empty where the kernel has no sock_diag; OSError: the netns is gone.
    """
    found: dict[tuple[str, int], tuple[int, int]] = {}
    with Netlink(netns.path, _NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                answers = netlink.dump(_SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << LISTEN))
            except OSError:  # ENOENT: neither built in nor a module
                continue
            for answer in answers:
                if len(answer) < _ANSWER.size:
                    continue
                port, *depth = _ANSWER.unpack_from(answer)
                key, (waiting, most) = ("tcp", int.from_bytes(port, "big")), depth
                before = found.get(key, (waiting, most))
                found[key] = max(before, (waiting, most), key=lambda pair: pair[0] - pair[1])
    return found


def parse(line: str, state: int) -> tuple[int | None, int]:
    """The local port and receive queue of one line; no port when the socket is in another state."""
    words = line.split()
    if len(words) < 5 or int(words[3], 16) != state:
        return None, 0
    return int(words[1].rpartition(":")[2], 16), int(words[4].partition(":")[2], 16)
