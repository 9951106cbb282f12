"""Pods that listen on another port, or not at all, or do not answer, or cannot keep up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from k8snet.kernel.netns import entered
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

_PAYMENTS: Final = "10.244.1.14"
_TARGET: Final = 9090  # of Service shop/admin; nobody listens there unless a scenario does


@contextmanager
def _full_accept_queue(lab: Lab) -> Iterator[None]:
    """A server in shop/payments that has called listen(1) and never accepts, with two connections waiting."""
    with ExitStack() as stack:
        with entered(lab.netns_of("shop/payments").path):
            listener = stack.enter_context(socket.socket())
            listener.bind((_PAYMENTS, _TARGET))
            listener.listen(1)
            for _ in range(2):  # the kernel's test is "more than", so that a backlog of one holds two
                stack.enter_context(socket.create_connection((_PAYMENTS, _TARGET), timeout=5))
        yield


@contextmanager
def _full_buffer(lab: Lab) -> Iterator[None]:
    """A UDP server in shop/payments that never reads, with its receive buffer full."""
    with ExitStack() as stack:
        with entered(lab.netns_of("shop/payments").path):
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        server.bind((_PAYMENTS, _TARGET))
        for _ in range(64):
            sender.sendto(bytes(512), (_PAYMENTS, _TARGET))
        yield


SCENARIOS: Final = (
    Scenario(
        "not-listening",
        "The Service's targetPort is wrong: the SYN reaches the pod, nobody listens on 9090, the pod's kernel answers "
        "with a reset.",
        Traffic("shop/svc/admin:80"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/payments", direction="request"),
    ),
    Scenario(
        "not-listening-udp",
        "A datagram for a port that no process has open: the pod's kernel answers with ICMP port unreachable, which "
        "only a connected socket gets to see.",
        Traffic("shop/pod/payments:9090", "udp"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/payments", device="eth0", direction="request"),
    ),
    Scenario(
        "accept-queue-full",
        "The application has called listen(1) and never accepts: two connections wait, the third SYN reaches the pod, "
        "and the kernel discards it without calling that a drop.",
        Traffic("shop/svc/admin:80"),
        Expected(Verdict.DROPPED, "ACCEPT_QUEUE_FULL", pod="shop/payments", device="eth0", direction="request"),
        company=_full_accept_queue,
    ),
    Scenario(
        "udp-buffer-full",
        "The application has a UDP socket and does not read: the datagram reaches the pod and finds no room in the "
        "socket's receive buffer.",
        Traffic("shop/pod/payments:9090", "udp"),
        Expected(Verdict.DROPPED, "UDP_BUFFER_FULL", pod="shop/payments", direction="request"),
        company=_full_buffer,
    ),
    Scenario(
        "udp-silent",
        "The application reads the datagram and never answers: it enters the pod, nothing drops it, no reply leaves.",
        Traffic("shop/svc/statsd:8125", "udp"),
        Expected(Verdict.NO_REPLY, "NO_REPLY", pod="shop/payments"),
    ),
)
