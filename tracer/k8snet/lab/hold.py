"""Packets held in a queue of netfilter (NFQUEUE) and let go in the order that a race needs.

A race between two packets is a matter of microseconds and of two processors. Held between the moment when NAT chooses
and the moment when conntrack takes the connection into its table, both have chosen before either is there: whoever is
let go second has lost, every time. `Hold` reads the queue; the functions below are what goes on beside the traced
traffic of a scenario: they wait for its packet, send the rival's, and let the rival go first.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from k8snet.kernel.counters import Snapshot
from k8snet.kernel.netns import Netns, entered, own
from k8snet.kernel.nfnetlink import NFGENMSG, Netlink, attribute, attributes
from k8snet.lab.namespaces import enter_own

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

QUEUE: Final = 8

_SUBSYS_QUEUE: Final = 3
_PACKET, _VERDICT, _CONFIG = 0, 1, 2  # enum nfqnl_msg_types
_CFG_CMD, _CFG_PARAMS = 1, 2
_BIND, _COPY_PACKET, _COPY_BYTES = 1, 2, 256
_PACKET_HDR, _VERDICT_HDR, _PAYLOAD = 1, 2, 10
_NF_DROP, _NF_ACCEPT = 0, 1
_TYPE_AAAA, _CLASS_IN = 28, 1

_TRY_S: Final = 30.0  # for the two packets of `lets_clash`; an emulated machine needs seconds


@dataclass(frozen=True, slots=True)
class Held:
    """One packet in the queue: where from and where to, as the rule saw it."""

    number: int
    protocol: int
    source: tuple[str, int]
    target: tuple[str, int]
    payload: bytes  # behind the UDP header; of other protocols nothing


class Hold:
    """Holds what a rule of `netns` (None: this thread's) sends to a queue, until it is let go."""

    def __init__(self, netns: str | None, queue: int = QUEUE) -> None:
        self._netlink = Netlink(netns)
        self._queue = queue
        self._waiting: list[Held] = []
        self._configure(_CFG_CMD, struct.pack("!BBH", _BIND, 0, socket.AF_INET))
        self._configure(_CFG_PARAMS, struct.pack("!IB", _COPY_BYTES, _COPY_PACKET))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._netlink.close()

    def wait_for(self, fits: Callable[[Held], bool], stop: threading.Event) -> Held:
        """The first packet that fits, held; what else comes is held too. TimeoutError: none had come at `stop`."""
        while not stop.is_set():
            found = next((held for held in self._waiting if fits(held)), None)
            if found is not None:
                self._waiting.remove(found)
                return found
            self._read()
        raise TimeoutError("the packet did not come to the queue")

    def let_go(self, *packets: Held) -> None:
        """Send them on, in this order."""
        for held in packets:
            self._decide(held, _NF_ACCEPT)

    def refuse_all(self, stop: threading.Event) -> None:
        """Drop whatever comes, until `stop`."""
        while not stop.is_set():
            waiting, self._waiting = self._waiting, []
            for held in waiting:
                self._decide(held, _NF_DROP)
            self._read()

    def let_all_go(self, stop: threading.Event) -> None:
        """Hold nothing any more, until `stop`."""
        while not stop.is_set():
            waiting, self._waiting = self._waiting, []
            self.let_go(*waiting)
            self._read()

    def _decide(self, held: Held, verdict: int) -> None:
        body = self._frame() + attribute(_VERDICT_HDR, struct.pack("!II", verdict, held.number))
        self._netlink.tell(_SUBSYS_QUEUE << 8 | _VERDICT, body)  # an answer might hide behind more packets

    def _configure(self, kind: int, payload: bytes) -> None:
        self._netlink.request(_SUBSYS_QUEUE << 8 | _CONFIG, self._frame() + attribute(kind, payload))

    def _frame(self) -> bytes:
        return NFGENMSG.pack(socket.AF_UNSPEC, 0, socket.htons(self._queue))

    def _read(self) -> None:
        if not select.select([self._netlink], [], [], 0.02)[0]:
            return
        for kind, _, body in self._netlink.received():
            if kind == _SUBSYS_QUEUE << 8 | _PACKET:
                fields = dict(attributes(body[NFGENMSG.size :]))
                (number,) = struct.unpack_from("!I", fields[_PACKET_HDR])
                self._waiting.append(_held(number, fields[_PAYLOAD]))


def _held(number: int, packet: bytes) -> Held:
    size = (packet[0] & 0x0F) * 4
    sport, dport = struct.unpack_from("!HH", packet, size)
    source, target = (str(IPv4Address(packet[at : at + 4])) for at in (12, 16))
    payload = packet[size + 8 :] if packet[9] == socket.IPPROTO_UDP else b""
    return Held(number, packet[9], (source, sport), (target, dport), payload)


def lets_clash() -> bool:
    """Whether a packet of a connection that got into the table meanwhile clashes with it when it is let go.

    Older kernels look the connection up again then, and give the packet the entry that they find (seen on 6.1).
    """
    told: list[int] = []
    enough = threading.Event()

    def body() -> None:
        enter_own()
        rule = ("iptables", "-A", "OUTPUT", "-p", "udp", "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE")
        for command in (("ip", "link", "set", "lo", "up"), (*rule, "--queue-num", str(QUEUE))):
            path = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
            subprocess.run([path or command[0], *command[1:]], check=True, capture_output=True)
        here = Netns(own(), "/proc/thread-self/ns/net")
        with Hold(None) as hold, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", 9))
            for datagram in (b"1", b"2"):
                sender.send(datagram)
            with suppress(TimeoutError):
                hold.let_go(*(hold.wait_for(lambda held: True, enough) for _ in range(2)))
            told.append(Snapshot.take(here).counters.get("conntrack.clashres", 0))

    thread = threading.Thread(target=body, name="k8snet-try")
    thread.start()
    thread.join(_TRY_S)
    enough.set()
    thread.join()
    return any(told)


def snat_rival(lab: Lab) -> AbstractContextManager[None]:
    """shop/web-1 sends from the same port to the same server, and its packet is let go first."""

    def race(hold: Hold, stack: ExitStack, stop: threading.Event) -> None:
        ours = hold.wait_for(lambda held: True, stop)
        kind = socket.SOCK_STREAM if ours.protocol == socket.IPPROTO_TCP else socket.SOCK_DGRAM
        with entered(lab.netns_of("shop/web-1").path):
            rival = stack.enter_context(socket.socket(socket.AF_INET, kind))
        rival.bind(("", ours.source[1]))
        rival.setblocking(False)
        with suppress(BlockingIOError):
            rival.connect(ours.target)
        if kind == socket.SOCK_DGRAM:
            rival.send(b"k8snet rival")
        hold.let_go(hold.wait_for(lambda held: True, stop), ours)

    return _beside(lab, race)


def dns_rival(lab: Lab, asked: str) -> AbstractContextManager[None]:
    """Another query leaves the client's socket, for the Service at `asked`, and is let go first.

    It is sent by a raw socket, as if a resolver's second thread had sent it.
    """

    def race(hold: Hold, stack: ExitStack, stop: threading.Event) -> None:
        ours = hold.wait_for(lambda held: True, stop)
        with entered(lab.netns_of("shop/cart").path):
            raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
        identity = (int.from_bytes(ours.payload[:2], "big") + 1) & 0xFFFF
        query = identity.to_bytes(2, "big") + ours.payload[2:-4] + struct.pack("!HH", _TYPE_AAAA, _CLASS_IN)
        raw.sendto(struct.pack("!HHHH", ours.source[1], 53, 8 + len(query), 0) + query, (asked, 0))
        hold.let_go(hold.wait_for(lambda held: held.source == ours.source, stop))
        # It is in the table now, and ours is not. Its answer is read before ours ends the client's interest.
        stop.wait(0.1)
        hold.let_go(ours)

    return _beside(lab, race)


@contextmanager
def refusal(lab: Lab, queue: int) -> Iterator[None]:
    """A program on node-1 that drops all that is given to it in `queue`."""
    stop = threading.Event()
    with Hold(lab.netns_of("node-1").path, queue) as hold:
        thread = threading.Thread(target=hold.refuse_all, args=(stop,), name="k8snet-refuse")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def _beside(lab: Lab, race: Callable[[Hold, ExitStack, threading.Event], None]) -> Iterator[None]:
    """Run `race` in a thread while the traffic is traced; let go whatever comes after it."""
    stop = threading.Event()

    def body() -> None:
        with ExitStack() as stack:
            with suppress(TimeoutError):
                race(hold, stack, stop)
            hold.let_all_go(stop)

    with Hold(lab.netns_of("node-1").path) as hold:
        thread = threading.Thread(target=body, name="k8snet-hold")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
