"""Nodes that do not forward, or do not like where a packet came from."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

SCENARIOS: Final = (
    Scenario(
        "rp-filter",
        "node-2 answers by way of its other network: the SYN goes out of eth0, the SYN-ACK comes back in by eth1, and "
        "node-1's strict reverse-path filter drops it there; the server sends it again and again.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REPLY_LOST, "RP_FILTER", node="node-1", device="eth1", direction="reply"),
        (
            ("internet", "ip route add 10.244.1.0/24 via 198.51.100.2"),
            ("node-2", "ip route replace 10.244.1.0/24 via 203.0.113.1"),
            ("node-1", "sysctl net.ipv4.conf.eth1.rp_filter=1"),
        ),
    ),
    Scenario(
        "ip-forward-off",
        "The node does not forward: the SYN to a pod of the other node is translated, and dies in the routing decision "
        "(pods of the same node still answer: they are bridged).",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "IP_FORWARD_OFF", node="node-1", device="cni0", direction="request"),
        (("node-1", "sysctl net.ipv4.ip_forward=0"),),
    ),
)
