"""Packet filters that drop or reject: policies, rules, firewalls inside pods."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_TO_PAYMENTS: Final = "FORWARD -s 10.244.1.10/32 -d 10.244.1.14/32 -p tcp -m tcp --dport 8080"
_IN_PAYMENTS: Final = "INPUT -p tcp -m tcp --dport 8080"

SCENARIOS: Final = (
    Scenario(
        "forward-policy-drop",
        "Docker has set the FORWARD policy to DROP: the SYN is translated, matches no rule in FORWARD and dies there; "
        "conntrack never confirms it, the client retries until it gives up.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "FORWARD_POLICY_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            direction="request",
        ),
        (("node-1", "iptables -P FORWARD DROP"),),
    ),
    Scenario(
        "forward-rule-drop",
        "A rule in FORWARD drops what goes to the pod's port: the SYN is translated and dies at that rule in silence.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j DROP",
            direction="request",
        ),
        (("node-1", f"iptables -I {_TO_PAYMENTS} -j DROP"),),
    ),
    Scenario(
        "forward-rule-reject",
        "The same with REJECT: the node answers the SYN with ICMP port unreachable, which comes from the Service's "
        "address, and the client is refused at once.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.REJECTED,
            "RULE_REJECT",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j REJECT --reject-with icmp-port-unreachable",
            direction="request",
        ),
        (("node-1", f"iptables -I {_TO_PAYMENTS} -j REJECT"),),
    ),
    Scenario(
        "pod-firewall-drop",
        "A packet filter inside the pod drops its own port: the SYN enters the pod by eth0 and dies in the pod's "
        "INPUT; the node's conntrack has it as confirmed and unanswered.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "POD_FIREWALL_DROP",
            pod="shop/payments",
            device="eth0",
            hook="input",
            chain="INPUT",
            rule=f"-A {_IN_PAYMENTS} -j DROP",
            direction="request",
        ),
        (("shop/payments", f"iptables -A {_IN_PAYMENTS} -j DROP"),),
    ),
)
