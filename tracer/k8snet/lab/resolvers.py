"""Programs in the lab's pods that look names up, each with an /etc/resolv.conf of its own.

Two families: the C library's getaddrinfo, which asks for A and AAAA from one thread and waits for both; and a resolver
of many threads that share one socket, as some runtimes have. `Lookup` says what is asked for; `waiting` starts the
process, in the pod's netns and a mount namespace of its own, and the value it yields sets it off: only then the probes
are attached.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from k8snet.kernel.netns import entered
from k8snet.lab.namespaces import Report, answer, fork, mount_own, pin_of
from k8snet.send import dns_query

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

SERVER = "10.96.0.10"


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is looked up, by whom, and how."""

    names: tuple[str, ...]
    options: str = ""  # of resolv.conf
    search: tuple[str, ...] = ()
    family: Literal["glibc", "threads"] = "glibc"
    kind: socket.AddressFamily = socket.AF_UNSPEC  # glibc: of the addresses that are wanted

    @property
    def resolv_conf(self) -> str:
        """The file's text."""
        lines = [f"nameserver {SERVER}"]
        lines += [f"search {' '.join(self.search)}"] if self.search else []
        lines += [f"options {self.options}"] if self.options else []
        return "\n".join(lines) + "\n"


@contextmanager
def waiting(lab: Lab, pod: str, lookup: Lookup) -> Iterator[Callable[[], None]]:
    """A process in `pod` that looks up when it is told so, and then stays until the end of the block."""
    lab.netns_of(pod)  # raises when the lab has none
    child, read = fork("k8snet-resolver", partial(_live, pod=pod, lookup=lookup), dies_with_parent=signal.SIGKILL)
    try:
        answer(read)
        yield partial(os.kill, child, signal.SIGUSR1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _live(report: Report, *, pod: str, lookup: Lookup) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with tempfile.TemporaryDirectory(prefix="k8snet-") as directory:
        conf, switch = Path(directory, "resolv.conf"), Path(directory, "nsswitch.conf")
        conf.write_text(lookup.resolv_conf, encoding="ascii")
        switch.write_text("hosts: dns\n", encoding="ascii")
        mount_own({conf: Path("/etc/resolv.conf"), switch: Path("/etc/nsswitch.conf")})
    with entered(pin_of(pod)):
        report(None)
        signal.sigwait({signal.SIGUSR1})
        for name in lookup.names:
            if lookup.family == "glibc":
                with suppress(socket.gaierror):
                    socket.getaddrinfo(name, 80, lookup.kind, socket.SOCK_STREAM)
            else:
                _by_threads(name)
        signal.sigwait({signal.SIGUSR1})


def _by_threads(name: str) -> None:
    """A and AAAA from one socket at the same moment, by two threads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((SERVER, 53))
        sock.settimeout(5)
        together = threading.Barrier(2)

        def ask(kind: int) -> None:
            together.wait()
            sock.send(dns_query(name, 4000 + kind)[:-4] + kind.to_bytes(2, "big") + b"\0\1")

        threads = [threading.Thread(target=ask, args=(kind,)) for kind in (1, 28)]
        for thread in threads:
            thread.start()
        with suppress(OSError):
            for _ in threads:
                sock.recv(4096)
        for thread in threads:
            thread.join()
