"""Pods that listen on another port, or not at all, or do not answer."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

SCENARIOS: Final = (
    Scenario(
        "not-listening",
        "The Service's targetPort is wrong: the SYN reaches the pod, nobody listens on 9090, the pod's kernel answers "
        "with a reset.",
        Traffic("shop/svc/admin:80"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/payments", direction="request"),
    ),
    Scenario(
        "udp-silent",
        "The application reads the datagram and never answers: it enters the pod, nothing drops it, no reply leaves.",
        Traffic("shop/svc/statsd:8125", "udp"),
        Expected(Verdict.NO_REPLY, "NO_REPLY", pod="shop/payments"),
    ),
)
