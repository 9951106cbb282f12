"""What takes packets away at a device: BPF programs at tc and XDP, tc's policers, queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab


def _tc(device: str, direction: str) -> Callable[[Lab], AbstractContextManager[None]]:
    @contextmanager
    def company(lab: Lab) -> Iterator[None]:
        from k8snet.lab.programs import drop_at_tc

        drop_at_tc(lab.netns_of("node-1"), device, direction, "egress_guard")
        yield

    return company


def _xdp(mode: str) -> Callable[[Lab], AbstractContextManager[None]]:
    @contextmanager
    def company(lab: Lab) -> Iterator[None]:
        from k8snet.lab.programs import drop_at_xdp

        drop_at_xdp(lab.netns_of("node-1"), "vethcart", mode, "flood_guard")
        yield

    return company


SCENARIOS: Final = (
    Scenario(
        "tc-drop",
        "A BPF program at tc ingress of the client's veth drops everything: the SYN comes out of the pod, is seen at "
        "the node's end of the veth, and goes no further.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "TC_DROP", node="node-1", device="vethcart", direction="request"),
        company=_tc("vethcart", "ingress"),
    ),
    Scenario(
        "tc-drop-egress",
        "The same at tc egress of the server's veth.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "TC_DROP", node="node-1", device="vethpayments", direction="request"),
        company=_tc("vethpayments", "egress"),
    ),
    Scenario(
        "xdp-drop",
        "A generic XDP program on the node's end of the client's veth drops everything.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "XDP_DROP", node="node-1", device="vethcart", direction="request"),
        company=_xdp("generic"),
    ),
    Scenario(
        "xdp-drop-native",
        "The same program in the veth's driver, where the packet is not yet in the node's network stack.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "XDP_DROP", node="node-1", device="vethcart", direction="request"),
        company=_xdp("native"),
    ),
    Scenario(
        "tc-police",
        "A policer at tc ingress of the client's veth lets next to nothing through.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "TC_DROP", node="node-1", device="vethcart", direction="request"),
        (
            ("node-1", "tc qdisc add dev vethcart clsact"),
            (
                "node-1",
                "tc filter add dev vethcart ingress protocol ip u32 match ip dport 80 0xffff "
                "action police rate 1kbit burst 1 conform-exceed drop",
            ),
        ),
        needs=("action:police",),
    ),
    Scenario(
        "qdisc-drop",
        "A queue of the server's veth that has no room for a whole packet (a token bucket with a burst of 40 bytes): "
        "the SYN is translated, reaches the device, and is dropped in front of it.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "QDISC_DROP", node="node-1", device="vethpayments", direction="request"),
        (("node-1", "tc qdisc replace dev vethpayments root tbf rate 1mbit burst 40 limit 40"),),
    ),
    Scenario(
        "qdisc-netem",
        "netem on the server's veth loses every packet, as somebody's chaos experiment that was never taken down.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "QDISC_DROP", node="node-1", device="vethpayments", direction="request"),
        (("node-1", "tc qdisc add dev vethpayments root netem loss 100%"),),
        needs=("qdisc:netem",),
    ),
)
