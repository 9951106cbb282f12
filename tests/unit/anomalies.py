"""Anomalies written by hand, for what shows, folds and counts them."""

from __future__ import annotations

from dataclasses import replace

from k8snet.report import Finding, FlowView, Party, Place, Severity
from k8snet.watch.anomaly import Anomaly
from unit.reports import NODE, SERVICE, forward_policy_drop

[POLICY_DROP] = forward_policy_drop().findings
SECOND = 1_000_000_000


def found(code: str = "NO_REPLY", severity: Severity = Severity.FAIL, **more: object) -> Finding:
    """A finding of the catalogue, with a fix that begins with advice."""
    made = Finding(
        code,
        severity,
        f"{code} in one line",
        Place(NODE, "node-1"),
        "Because of what was seen.",
        (),
        ("# First look at the server.", "k8snet trace --from shop/cart --to shop/svc/payments:80"),
    )
    return replace(made, **more)  # type: ignore[arg-type]  # named by the caller


def anomaly(
    at: float = 0.0,
    finding: Finding | None = None,
    client: str = "shop/cart-7d4f",
    flow: FlowView | None = SERVICE,
    seconds: float | None = None,
    subject: str | None = None,
) -> Anomaly:
    """`at` seconds after the beginning; from shop/cart to svc/shop/payments unless it is said otherwise."""
    if flow is not None:
        flow = replace(flow, client=replace(flow.client, pod=client))
    return Anomaly(int(at * SECOND), finding or POLICY_DROP, flow, seconds, subject)


def stranger(number: int) -> FlowView:
    """A flow between two of very many addresses."""
    ip = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return FlowView(Party(ip, 40000), Party("10.96.0.80", 80, service="shop/payments"), None, "tcp")
