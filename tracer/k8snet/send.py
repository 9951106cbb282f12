"""Traffic of our own, sent from inside the client's netns: so that a fault can be shown without a tool in the pod.

A socket belongs to the netns it was created in, for good. So only its creation happens inside the client's netns,
in a thread of its own; nothing else of the program moves. Bounded in number and time, one after the other.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass

from k8snet.event import Address
from k8snet.kernel.netns import Netns, entered, opened


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send, and how often."""

    address: Address
    port: int  # 0 for ICMP
    protocol: int  # socket.IPPROTO_TCP, _UDP or _ICMP
    count: int
    wait: float = 3.0  # seconds to wait for each answer
    interval: float = 0.1  # seconds between two
    dns: str | None = None  # UDP: ask for the A record of this name
    source: Address | None = None  # a node has many, and would choose another than the one that is traced


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one of them ended, as the client's socket saw it."""

    result: str  # "answered", "refused", "timed out", or the kernel's words for the errno
    seconds: float


class Sender(threading.Thread):
    """Sends `traffic` from inside `netns`; `attempts` grows as each is over."""

    def __init__(self, netns: Netns, traffic: Traffic) -> None:
        super().__init__(name="k8snet-sender", daemon=True)
        self.attempts: list[Attempt] = []
        self.ports: set[int] = set()  # local ports (ICMP: the echo id) that its packets carry
        self.error: OSError | None = None  # the netns could not be entered: nothing was sent
        self._netns = netns
        self._traffic = traffic
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """The thread's body."""
        for number in range(self._traffic.count):
            if number and self._stop_asked.wait(self._traffic.interval):
                return
            if self._stop_asked.is_set():
                return
            try:
                self.attempts.append(self._attempt(number))
            except OSError as error:
                self.error = error
                return

    def stop(self) -> None:
        """Send no more; the one under way ends by its own time-out."""
        self._stop_asked.set()

    def _attempt(self, number: int) -> Attempt:
        start = time.monotonic()
        sock = self._socket()
        with sock:
            sock.settimeout(self._traffic.wait)
            try:
                self._exchange(sock, number)
                result = "answered"
            except TimeoutError:
                result = "timed out"
            except OSError as error:
                result = "refused" if error.errno == errno.ECONNREFUSED else os.strerror(error.errno or 0)
        return Attempt(result, time.monotonic() - start)

    def _socket(self) -> socket.socket:
        there = opened(self._netns)  # by any path that still leads there: a pod's process may have ended
        try:
            with entered(there):
                return self._new_socket()
        finally:
            os.close(there)

    def _new_socket(self) -> socket.socket:
        family = socket.AF_INET6 if self._traffic.address.version == 6 else socket.AF_INET
        if self._traffic.protocol == socket.IPPROTO_TCP:
            return socket.socket(family, socket.SOCK_STREAM)
        if self._traffic.protocol == socket.IPPROTO_UDP:
            return socket.socket(family, socket.SOCK_DGRAM)
        icmp = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
        return socket.socket(family, socket.SOCK_RAW, icmp)

    def _exchange(self, sock: socket.socket, number: int) -> None:
        traffic = self._traffic
        sock.bind((str(traffic.source or ""), 0))
        # Known before the first packet is sent, so that nobody takes it for somebody else's.
        self.ports.add(os.getpid() & 0xFFFF if sock.type == socket.SOCK_RAW else sock.getsockname()[1])
        sock.connect((str(traffic.address), traffic.port))
        if traffic.protocol == socket.IPPROTO_TCP:
            return
        if traffic.protocol == socket.IPPROTO_UDP:
            sock.send(dns_query(traffic.dns, os.getpid() + number) if traffic.dns else b"k8snet probe %d" % number)
            sock.recv(65535)
            return
        echo, reply = (128, 129) if traffic.address.version == 6 else (8, 0)
        ident = os.getpid() & 0xFFFF
        sock.send(_icmp_echo(echo, ident, number + 1))
        deadline = time.monotonic() + traffic.wait
        while True:  # a raw socket gets every ICMP message from that address
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            message = sock.recv(65535)
            if traffic.address.version == 4:
                message = message[(message[0] & 0x0F) * 4 :]
            if message[0] == reply and message[4:8] == struct.pack("!HH", ident, number + 1):
                return


def dns_query(name: str, txid: int) -> bytes:
    """A query for the A record of `name` (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label for label in name.rstrip(".").encode("idna").split(b"."))
    return struct.pack("!HHHHHH", txid & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def _icmp_echo(kind: int, ident: int, sequence: int) -> bytes:
    body = b"k8snet probe...."
    header = struct.pack("!BBHHH", kind, 0, 0, ident, sequence)
    # ICMPv6's checksum covers addresses too: the kernel fills it in.
    checksum = 0 if kind == 128 else _checksum(header + body)
    return struct.pack("!BBHHH", kind, 0, checksum, ident, sequence) + body


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
