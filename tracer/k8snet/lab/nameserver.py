"""The lab's DNS server: Debian's dnsmasq, and in front of it a relay that can be slow, and swallows queries.

The relay has port 53 of the pod, UDP and TCP; dnsmasq listens on the pod's loopback and is asked for everything. What
it knows are the lab's Services and a few names whose only purpose is to go wrong: the relay keeps back the answers to
some, and dnsmasq forwards some to an upstream that answers SERVFAIL, or to nobody at all.
"""

from __future__ import annotations

import fcntl
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

PROGRAM: Final = "dnsmasq"  # of Debian's dnsmasq-base, which starts no service
PORT: Final = 53
_BEHIND: Final = ("127.0.0.1", 5353)  # dnsmasq
_BROKEN: Final = ("127.0.0.1", 5354)  # the upstream that answers SERVFAIL
_NOBODY: Final = ("127.0.0.1", 5355)

EXAMPLE: Final = "198.51.100.1"  # the host outside
SLOW: Final = "slow.example"  # after 1.2 s
LATE: Final = "late.example"  # after 1.6 s, when a resolver with timeout:1 has given up
HALF: Final = "half.example"  # the first AAAA query of each socket gets no answer
SILENT: Final = "silent.example"  # nobody knows
BROKEN: Final = "broken.example"  # SERVFAIL
LARGE: Final = "large.example"  # too many addresses for a datagram of 512 bytes
PLAIN: Final = "www.example.com"
UNKNOWN: Final = "elsewhere.test"  # dnsmasq has nobody to ask: REFUSED
DELAYS: Final[Mapping[str, float]] = {SLOW: 1.2, LATE: 1.6}  # seconds
SEARCH: Final = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lab.internal")

_TYPE_AAAA: Final = 28
_ADDRESSES: Final = 40  # of LARGE
_IDLE_S: Final = 1.0  # so long a client's connection is kept for its next query
_UP_S: Final = 30.0  # an emulated machine needs seconds to start a program
# The pod's process is killed, and dnsmasq must not outlive it. It sets its credentials anew, upon which the kernel
# forgets a PR_SET_PDEATHSIG; so a shell waits for the end of the pipe that this process keeps open.
_UNTIL_OUR_END: Final = '"$@" </dev/null & read -r end; kill -9 $!'
_kept: Final[list[subprocess.Popen[bytes]]] = []  # whose pipe would be closed with it
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def is_installed() -> bool:
    """dnsmasq is there; without it the lab's DNS pod answers as its other pods do, and nothing can go wrong."""
    return _program() is not None


def start(zone: Mapping[str, IPv4Address], families: tuple[socket.AddressFamily, ...]) -> None:
    """Start both in the netns of this process, and return once dnsmasq answers; they end with this process."""
    program = _program()
    if program is None:
        raise RuntimeError(f"{PROGRAM} is not installed")
    _loopback_up()
    broken = _socket(socket.AF_INET, socket.SOCK_DGRAM, _BROKEN)
    threading.Thread(target=_answer_servfail, args=(broken,), daemon=True).start()
    _kept.append(
        subprocess.Popen(
            ["sh", "-c", _UNTIL_OUR_END, "sh", program, *_arguments(zone)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    _wait()
    swallowed: set[tuple[str, int]] = set()
    for family in families:
        datagrams = _socket(family, socket.SOCK_DGRAM, ("", PORT))
        connections = _socket(family, socket.SOCK_STREAM, ("", PORT))
        threading.Thread(target=_relay, args=(datagrams, swallowed), daemon=True).start()
        threading.Thread(target=_accept, args=(connections,), daemon=True).start()


def _loopback_up() -> None:
    """The pod's wires are laid when its process is there already; dnsmasq wants an address to listen on."""
    request = struct.pack("16sH22x", b"lo", _IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def _program() -> str | None:
    return shutil.which(PROGRAM, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


def _arguments(zone: Mapping[str, IPv4Address]) -> Iterator[str]:
    yield from (
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--log-facility=/dev/null",
    )
    yield from ("--no-resolv", "--no-hosts", "--cache-size=0", "--bind-interfaces")
    yield from (f"--listen-address={_BEHIND[0]}", f"--port={_BEHIND[1]}")
    for domain in ("cluster.local", "lab.internal", "example", "example.com"):
        yield f"--local=/{domain}/"
    yield f"--server=/{BROKEN}/{_BROKEN[0]}#{_BROKEN[1]}"
    yield f"--server=/{SILENT}/{_NOBODY[0]}#{_NOBODY[1]}"
    for name, address in zone.items():
        yield f"--host-record={name},{address}"
    for name in (SLOW, LATE, HALF, PLAIN):
        yield f"--host-record={name},{EXAMPLE}"
    for number in range(_ADDRESSES):
        yield f"--host-record={LARGE},203.0.113.{number + 1}"


def _socket(family: socket.AddressFamily, kind: socket.SocketKind, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(16)
    return sock


def _wait() -> None:
    from k8snet.send import dns_query

    deadline = time.monotonic() + _UP_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(_BEHIND)
        sock.settimeout(0.05)
        while time.monotonic() < deadline:
            try:
                sock.send(dns_query(PLAIN, 1))
                sock.recv(512)
                return
            except OSError:
                time.sleep(0.01)
    raise RuntimeError(f"{PROGRAM} does not answer")


def _relay(sock: socket.socket, swallowed: set[tuple[str, int]]) -> None:
    """Hand each datagram on by a thread of its own, so that a slow one keeps nobody waiting."""
    while True:
        with suppress(OSError):  # the pod's network is being broken on purpose
            query, client = sock.recvfrom(65535)
            name, kind = _question(query)
            if name == HALF and kind == _TYPE_AAAA and client[:2] not in swallowed:
                swallowed.add(client[:2])
                continue
            threading.Thread(target=_pass_on, args=(sock, query, client, DELAYS.get(name, 0)), daemon=True).start()


def _pass_on(sock: socket.socket, query: bytes, client: tuple[str, int], delay: float) -> None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as behind:
        behind.settimeout(10)
        behind.connect(_BEHIND)
        behind.send(query)
        answer = behind.recv(65535)
        time.sleep(delay)
        sock.sendto(answer, client)


def _accept(listener: socket.socket) -> None:
    while True:
        with suppress(OSError):
            accepted, _ = listener.accept()
            threading.Thread(target=_converse, args=(accepted,), daemon=True).start()


def _converse(accepted: socket.socket) -> None:
    """One client's queries over TCP, each after the other."""
    with suppress(OSError), accepted, socket.create_connection(_BEHIND, timeout=10) as behind:
        accepted.settimeout(_IDLE_S)
        while message := _message(accepted):
            behind.sendall(message)
            accepted.sendall(_message(behind))


def _message(sock: socket.socket) -> bytes:
    """The next message with its length before it; empty at the end."""
    received = b""
    while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
        missing = 2 + int.from_bytes(received[:2], "big") - len(received) if len(received) >= 2 else 2 - len(received)
        chunk = sock.recv(missing)
        if not chunk:
            return b""
        received += chunk
    return received


def _answer_servfail(sock: socket.socket) -> None:
    while True:
        with suppress(OSError):
            query, client = sock.recvfrom(65535)
            if len(query) >= 12:
                flags = 0x8080 | (query[2] & 0x79) << 8 | 2
                sock.sendto(query[:2] + struct.pack("!H", flags) + query[4:], client)


def _question(query: bytes) -> tuple[str, int]:
    from k8snet.flow.dns import parse

    message = parse(query)
    if message is None:
        return "", 0
    return message.name, {"A": 1, "AAAA": _TYPE_AAAA}.get(message.type, 0)
