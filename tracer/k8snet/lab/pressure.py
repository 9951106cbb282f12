"""Connection tables under pressure: what goes on beside the traced traffic of a scenario that runs out of room.

`nf_conntrack_max` and the number of buckets are the machine's, one for all network namespaces; whoever changes them
here owns the machine (`k8snet.lab.needs`), and gets them back as they were. What fills a table is UDP that nobody
answers, sent by a process of its own, so that the tracer keeps its time.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet.kernel.netns import entered
from k8snet.lab.namespaces import Report, answer, fork

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

_SETTINGS: Final = Path("/proc/sys/net/netfilter")
_SMALLEST: Final = 512  # buckets: the kernel rounds up to it
_NOWHERE: Final = "192.0.2"  # RFC 5737: by the default route, to a router that knows no such network
_PORTS: Final = 60_000
_ENOUGH: Final = 60_000
_SAMPLE: Final = 500


@contextmanager
def snat_ports_taken(lab: Lab, kind: socket.SocketKind = socket.SOCK_STREAM, port: int = 80) -> Iterator[None]:
    """shop/web-1 holds two connections to the server that the traced client wants."""
    with ExitStack() as stack:
        for _ in range(2):
            with entered(lab.netns_of("shop/web-1").path):
                taken = stack.enter_context(socket.socket(socket.AF_INET, kind))
            taken.settimeout(30)
            taken.connect(("198.51.100.1", port))
            if kind == socket.SOCK_DGRAM:
                taken.send(b"k8snet")
                taken.recv(64)
        yield


@contextmanager
def table_full(lab: Lab) -> Iterator[None]:
    """Room for 20 connections, and all of it is taken: in so sparse a table the kernel finds nobody to throw out."""
    with _set(nf_conntrack_max=20), _sending(lab, lambda sock: _fill(sock, 40)):
        yield


@contextmanager
def table_churns(lab: Lab) -> Iterator[None]:
    """A dense table that is full, and more connections all the time: each throws others out."""
    with _set(nf_conntrack_buckets=_SMALLEST, nf_conntrack_max=400), _sending(lab, lambda sock: _fill(sock, 800), True):
        yield


@contextmanager
def chains_long(lab: Lab) -> Iterator[None]:
    """So many connections in so few buckets that the kernel takes hardly one more."""
    with (
        _set(nf_conntrack_buckets=_SMALLEST, nf_conntrack_max=10 * _ENOUGH),
        _sending(lab, lambda sock: _fill(sock, _ENOUGH)),
    ):
        yield


@contextmanager
def _set(**settings: int) -> Iterator[None]:
    """Change settings of the machine. What is there is put back in the opposite order."""
    before = {name: (_SETTINGS / name).read_text() for name in settings}
    try:
        for name, value in settings.items():
            (_SETTINGS / name).write_text(str(value))
        yield
    finally:
        for name in reversed(before):
            (_SETTINGS / name).write_text(before[name])


@contextmanager
def _sending(lab: Lab, fill: Callable[[socket.socket], None], on_and_on: bool = False) -> Iterator[None]:
    """A process on node-1 that does `fill`, and says when it is done; `on_and_on`: and then goes on with it."""
    netns = lab.netns_of("node-1").path

    def body(report: Report) -> None:
        with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fill(sock)
            report(None)
            while on_and_on:
                fill(sock)
            signal.pause()

    child, read = fork("k8snet-fill", body, dies_with_parent=signal.SIGKILL)
    try:
        answer(read)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


_fresh = itertools.count()


def _fill(sock: socket.socket, number: int) -> None:
    """Open so many connections, or as many as the kernel takes: it tells the node's own process of a drop at once."""
    refused = 0
    for turn in itertools.islice(_fresh, number):
        try:
            sock.sendto(b"", (f"{_NOWHERE}.{1 + turn // _PORTS % 250}", 1024 + turn % _PORTS))
        except PermissionError:
            refused += 1
        if turn % _SAMPLE == 0:
            if refused > 0.9 * _SAMPLE:
                return
            refused = 0
