"""Load that provokes races, for a real cluster's pods: run in a pod's network namespace, until stdin ends.

In: "dns SERVER", which asks for A and AAAA from one socket at the same moment, as a resolver does, again and again; or
"snat SERVER", which sends from a source port that the clock decides, so that two of it, in two pods, use the same port
at the same moment. Needs nothing but Python. What it hits is a chance; nothing is measured here.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

_NAME = b"\x03web\x04shop\x03svc\x07cluster\x05local\x00"
_A, _AAAA = b"\x00\x01\x00\x01", b"\x00\x1c\x00\x01"
_TICK_S = 0.002
_FIRST_PORT, _PORTS = 20_000, 20_000


def query(identity: int, kind: bytes) -> bytes:
    """A question in wire format (RFC 1035), recursion desired."""
    return identity.to_bytes(2, "big") + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + _NAME + kind


def dns(server: str) -> None:
    """One name, both types: two threads, one socket, the same moment."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.connect((server, 53))
            start = threading.Barrier(2)

            def ask(kind: bytes, sock: socket.socket = sock, start: threading.Barrier = start) -> None:
                start.wait()
                sock.send(query(int.from_bytes(os.urandom(2), "big"), kind))

            threads = [threading.Thread(target=ask, args=(kind,)) for kind in (_A, _AAAA)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            try:
                for _ in threads:
                    sock.recv(512)
            except OSError:  # lost, which is what it is for
                continue


def snat(server: str) -> None:
    """A datagram at each tick of the clock, from the port that belongs to the tick."""
    while True:
        tick = int(time.time() / _TICK_S) + 1
        time.sleep(max(0.0, tick * _TICK_S - time.time()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("", _FIRST_PORT + tick % _PORTS))
                sock.sendto(b"k8snet", (server, 9))
            except OSError:  # the port is somebody's, or the last datagram was refused
                continue


def main() -> None:
    """Run until whoever started it has gone."""
    kind, server = sys.argv[1:]
    threading.Thread(target={"dns": dns, "snat": snat}[kind], args=(server,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
