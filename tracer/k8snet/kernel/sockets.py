"""Which ports a netns has open, and what waits unread there: /proc/net/{tcp,udp}, read from inside.

For a listening TCP socket the queue is the number of connections that wait for accept(), for a UDP socket the bytes
that wait for recv() (Documentation/networking/proc_net_tcp.rst).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from k8snet.kernel.netns import Netns, entered

LISTEN: Final = 0x0A  # TCP_LISTEN
UNCONNECTED: Final = 0x07  # TCP_CLOSE, the state of a UDP socket that is bound and not connected
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


def parse(line: str, state: int) -> tuple[int | None, int]:
    """The local port and receive queue of one line; no port when the socket is in another state."""
    words = line.split()
    if len(words) < 5 or int(words[3], 16) != state:
        return None, 0
    return int(words[1].rpartition(":")[2], 16), int(words[4].partition(":")[2], 16)
