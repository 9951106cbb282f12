"""Traffic of our own, sent from inside the client's netns: so that a fault can be shown without a tool in the pod.

A socket belongs to the netns it was created in, for good. So only its creation happens inside the client's netns,
in a thread of its own; nothing else of the program moves. Bounded in number and time, one after the other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from k8snet.event import Address
from k8snet.kernel.netns import Netns, entered, opened


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send, and how often."""

    address: Address
    port: int  # 0 for ICMP
    protocol: int  # socket.IPPROTO_TCP, _UDP, _SCTP or _ICMP
    count: int
    wait: float = 3.0  # seconds to wait for each answer
    interval: float = 0.1  # seconds between two
    dns: str | None = None  # UDP: ask for the A record of this name
    source: Address | None = None  # a node has many, and would choose another than the one that is traced
    size: int = 0  # bytes to send: TCP: in an HTTP request; UDP and ICMP: in the datagram


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one of them ended, as the client's socket saw it."""

    result: str  # "answered", "refused", "timed out", or the kernel's words for the errno
    seconds: float
    errno: int = 0


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
        code = 0
        with sock:
            sock.settimeout(self._traffic.wait)
            try:
                self._exchange(sock, number)
                result = "answered"
            except TimeoutError:
                result = "timed out"
            except OSError as error:
                code = error.errno or 0
                result = "refused" if error.errno == errno.ECONNREFUSED else os.strerror(code)
        return Attempt(result, time.monotonic() - start, code)

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
        if self._traffic.protocol == socket.IPPROTO_SCTP:
            return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
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
            if traffic.size:
                sock.sendall(http_post(traffic.address, traffic.size))
                _await_answer(sock)
            return
        if traffic.protocol == socket.IPPROTO_SCTP:
            return
        if traffic.protocol == socket.IPPROTO_UDP:
            plain = (b"k8snet probe %d" % number).ljust(traffic.size, b".")
            query = dns_query(traffic.dns, os.getpid() + number) if traffic.dns else plain
            sock.send(query)
            # Another query may have left the same socket: an answer is known by its transaction id.
            self._await(sock, lambda answer: not traffic.dns or answer[:2] == query[:2])
            return
        echo, reply = (128, 129) if traffic.address.version == 6 else (8, 0)
        ident = os.getpid() & 0xFFFF
        sock.send(_icmp_echo(echo, ident, number + 1, traffic.size))
        expected = struct.pack("!HH", ident, number + 1)

        def is_ours(message: bytes) -> bool:  # a raw socket gets every ICMP message from that address
            start = (message[0] & 0x0F) * 4 if traffic.address.version == 4 else 0
            return message[start] == reply and message[start + 4 : start + 8] == expected

        self._await(sock, is_ours)

    def _await(self, sock: socket.socket, is_ours: Callable[[bytes], bool]) -> None:
        deadline = time.monotonic() + self._traffic.wait
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            if is_ours(sock.recv(65535)):
                return


def _await_answer(sock: socket.socket) -> None:
    """Return when the server says anything, closes, or has at least taken all data; raises TimeoutError."""
    try:
        sock.recv(65535)
    except TimeoutError:
        # Not every server speaks HTTP. What the other end has not acknowledged is still in our queue.
        if any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))):
            raise


def dns_query(name: str, txid: int) -> bytes:
    """A query for the A record of `name` (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(label)]) + label for label in name.rstrip(".").encode("idna").split(b"."))
    return struct.pack("!HHHHHH", txid & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def http_post(address: Address, size: int) -> bytes:
    """An HTTP request that is `size` bytes long in all, or as short as its head can be (RFC 9112)."""
    host = f"[{address}]" if address.version == 6 else str(address)
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: "
    body = max(0, size - len(head) - len(f"{size}\r\n\r\n"))
    return f"{head}{body}\r\n\r\n".encode() + b"." * body


def _icmp_echo(kind: int, ident: int, sequence: int, size: int = 0) -> bytes:
    body = b"k8snet probe....".ljust(size + size % 2, b".")  # even, as the checksum wants it
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
