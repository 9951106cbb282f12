"""The servers in the lab's pods: HTTP, DNS, UDP echo, and one UDP server that never answers.

`bind` opens the sockets in the netns the process is in, `serve` answers on them until the process is killed. One
thread, one loop a pod: a connection is answered as soon as its request is whole and then closed. The DNS answers are
real wire format (RFC 1035) but know only the names they are given.
"""

from __future__ import annotations

import re
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Literal, NamedTuple, NoReturn

Kind = Literal["http", "dns-udp", "dns-tcp", "dns-slow", "udp-echo", "udp-silent"]

_TYPE_A, _CLASS_IN, _NXDOMAIN = 1, 1, 3
_TTL_S = 5  # as CoreDNS answers for a Service
_MAX_REQUEST = 65536
SLOW_S = 1.5  # how long "dns-slow" takes: longer than conntrack keeps the loser of a clash


class Server(NamedTuple):
    """One listening port of a pod."""

    kind: Kind
    port: int


class Answers(NamedTuple):
    """What the servers say: the pod's own name (HTTP), and addresses by name without a final dot (DNS)."""

    pod: str
    zone: Mapping[str, IPv4Address]


def bind(server: Server, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A bound (and, for TCP, listening) socket on every address of this netns of one family."""
    kind = socket.SOCK_STREAM if server.kind in ("http", "dns-tcp") else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", server.port))
    if kind == socket.SOCK_STREAM:
        sock.listen(128)
    sock.setblocking(False)
    return sock


def serve(servers: Mapping[socket.socket, Server], answers: Answers) -> NoReturn:
    """Answer for ever."""
    selector = selectors.DefaultSelector()
    for sock, server in servers.items():
        selector.register(sock, selectors.EVENT_READ, _on_ready(selector, sock, server, answers))
    while True:
        for key, _ in selector.select():
            try:
                key.data()
            except OSError:  # the client has gone: reset, or its netns is being broken on purpose
                if isinstance(key.fileobj, socket.socket) and key.fileobj not in servers:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def _on_ready(
    selector: selectors.BaseSelector, sock: socket.socket, server: Server, answers: Answers
) -> Callable[[], None]:
    def datagram() -> None:
        request, client = sock.recvfrom(_MAX_REQUEST)
        if server.kind == "udp-echo":
            sock.sendto(request, client)
        elif server.kind in ("dns-udp", "dns-slow") and (reply := dns_answer(request, answers.zone)):
            if server.kind == "dns-slow":
                threading.Timer(SLOW_S, sock.sendto, (reply, client)).start()
            else:
                sock.sendto(reply, client)

    def connection() -> None:
        accepted, _ = sock.accept()
        accepted.setblocking(False)
        respond = answer_http if server.kind == "http" else _dns_tcp
        received = bytearray()

        def data() -> None:
            chunk = accepted.recv(4096)
            received.extend(chunk)
            reply = respond(bytes(received), answers)
            if reply is not None:
                accepted.sendall(reply)
            if reply is not None or not chunk or len(received) > _MAX_REQUEST:
                selector.unregister(accepted)
                accepted.close()

        selector.register(accepted, selectors.EVENT_READ, data)

    return connection if server.kind in ("http", "dns-tcp") else datagram


def answer_http(request: bytes, answers: Answers) -> bytes | None:
    """The answer to one HTTP request; None while it is not whole."""
    asked, end, sent = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *([0-9]{1,9})", asked, re.IGNORECASE)
    if not end or (length and len(sent) < int(length[1])):
        return None
    body = f"{answers.pod}\n".encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _dns_tcp(request: bytes, answers: Answers) -> bytes | None:
    if len(request) < 2 or len(request) < 2 + int.from_bytes(request[:2], "big"):
        return None
    reply = dns_answer(request[2 : 2 + int.from_bytes(request[:2], "big")], answers.zone)
    return None if reply is None else struct.pack("!H", len(reply)) + reply


def dns_answer(query: bytes, zone: Mapping[str, IPv4Address]) -> bytes | None:
    """The answer to one DNS query: the A record, no data for another type, NXDOMAIN; None when it is no query."""
    try:
        identity, flags, questions = struct.unpack_from("!HHH", query)
        if flags & 0x8000 or questions != 1:
            return None
        name, end = _name(query, 12)
        kind, klass = struct.unpack_from("!HH", query, end)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    address = zone.get(name.lower())
    found = address is not None and kind == _TYPE_A and klass == _CLASS_IN
    # Response, opcode and RD as asked, authoritative, recursion available.
    flags = 0x8000 | (flags & 0x7900) | 0x0400 | 0x0080 | (_NXDOMAIN if address is None else 0)
    reply = struct.pack("!HHHHHH", identity, flags, 1, int(found), 0, 0) + query[12 : end + 4]
    if found and address is not None:
        reply += struct.pack("!HHHIH", 0xC00C, _TYPE_A, _CLASS_IN, _TTL_S, 4) + address.packed
    return reply


def _name(query: bytes, at: int) -> tuple[str, int]:
    labels: list[str] = []
    while length := query[at]:
        if length > 63 or at + 1 + length >= len(query):
            raise IndexError(at)  # compressed or cut: no resolver writes a question so
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels), at + 1
