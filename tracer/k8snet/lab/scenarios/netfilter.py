"""Packet filters that drop or reject: policies, rules, firewalls inside pods."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_TO_PAYMENTS: Final = "FORWARD -s 10.244.1.10/32 -d 10.244.1.14/32 -p tcp -m tcp --dport 8080"
_FROM_PAYMENTS: Final = "FORWARD -s 10.244.1.14/32 -d 10.244.1.10/32 -p tcp -m tcp --sport 8080"
_IN_PAYMENTS: Final = "INPUT -p tcp -m tcp --dport 8080"
_OUT_CART: Final = "OUTPUT -d 10.96.0.82/32 -p tcp -m tcp --dport 80"
_TO_EPHEMERAL: Final = "PREROUTING -i eth0 -p tcp -m tcp --dport 32768:60999"


def _own_table(rule: str) -> tuple[tuple[str, str], ...]:
    """An nftables table on node-1 that is nobody's but its writer's, with one rule."""
    return (
        ("node-1", "nft add table inet site"),
        ("node-1", "nft add chain inet site guard { type filter hook forward priority 10 ; }"),
        ("node-1", f"nft add rule inet site guard {rule}"),
    )


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
    Scenario(
        "pod-output-drop",
        "A packet filter inside the client's pod drops what the pod sends: the SYN dies in the pod's own OUTPUT, "
        "before there is a device on it, and the node never sees it.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "POD_FIREWALL_DROP",
            pod="shop/cart",
            hook="output",
            chain="OUTPUT",
            rule=f"-A {_OUT_CART} -j DROP",
            direction="request",
        ),
        (("shop/cart", f"iptables -A {_OUT_CART} -j DROP"),),
    ),
    Scenario(
        "reply-rule-drop",
        "A rule in FORWARD drops what comes from the pod's port: the SYN arrives and is answered, and the SYN-ACK dies "
        "on its way back; the server sends it again and again.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.REPLY_LOST,
            "RULE_DROP",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_FROM_PAYMENTS} -j DROP",
            direction="reply",
        ),
        (("node-1", f"iptables -I {_FROM_PAYMENTS} -j DROP"),),
    ),
    Scenario(
        "raw-reply-drop",
        "A hardened node drops what comes in for ephemeral ports, before conntrack could say that it is an answer: the "
        "SYN-ACK from the other node dies in raw PREROUTING, and conntrack waits for it in SYN_SENT.",
        Traffic("shop/svc/remote:80"),
        Expected(
            Verdict.REPLY_LOST,
            "RULE_DROP",
            node="node-1",
            device="eth0",
            hook="prerouting",
            chain="PREROUTING",
            rule=f"-A {_TO_EPHEMERAL} -j DROP",
            direction="reply",
        ),
        (("node-1", f"iptables -t raw -A {_TO_EPHEMERAL} -j DROP"),),
    ),
    Scenario(
        "reject-with-reset",
        "A rule in FORWARD answers with a TCP reset, on a bridge: the reset is made below NAT and comes from the pod's "
        "address. The client has asked the Service's, so it does not believe the reset and goes on trying.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "RULE_REJECT",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j REJECT --reject-with tcp-reset",
            direction="request",
        ),
        (("node-1", f"iptables -I {_TO_PAYMENTS} -j REJECT --reject-with tcp-reset"),),
    ),
    Scenario(
        "nft-table-drop",
        "Somebody's own nftables table, beside all that iptables shows, drops what goes to the pod.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="guard",
            direction="request",
        ),
        _own_table("ip daddr 10.244.1.14 tcp dport 8080 counter drop"),
        backends=("iptables-nft",),  # with iptables-legacy it is a mixed node: see below
    ),
    Scenario(
        "input-policy-drop",
        "Somebody has hardened the node: the policy of INPUT is DROP, and what a pod sends to the kubelet dies there.",
        Traffic("192.168.50.1:10250"),
        Expected(
            Verdict.DROPPED,
            "CHAIN_POLICY_DROP",
            node="node-1",
            device="cni0",
            hook="input",
            chain="INPUT",
            direction="request",
        ),
        (("node-1", "iptables -P INPUT DROP"),),
    ),
    Scenario(
        "ct-invalid",
        "A raw rule exempts the requests of a pod from conntrack, and not the answers: conntrack has never seen the "
        "SYN, calls the SYN-ACK INVALID, and kube-proxy's rule drops what is INVALID.",
        Traffic("shop/pod/web-1:8080"),
        Expected(
            Verdict.REPLY_LOST,
            "CT_INVALID",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="KUBE-FORWARD",
            rule="-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            direction="reply",
        ),
        (("node-1", "iptables -t raw -A PREROUTING -s 10.244.1.10/32 -p tcp -j CT --notrack"),),
        backends=("iptables-nft", "iptables-legacy"),
    ),
    Scenario(
        "ct-invalid-data",
        "Conntrack forgets a connection as soon as it is established (with a timeout of 0, so that nobody has to wait) "
        "and takes up none in the middle: after the handshake all is INVALID, and kube-proxy's rule drops it.",
        Traffic("shop/pod/web-1:8080", size=1000),
        Expected(
            Verdict.DROPPED,
            "CT_INVALID",
            node="node-1",
            device="vethweb-1",
            hook="forward",
            chain="KUBE-FORWARD",
            rule="-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            direction="request",
        ),
        (
            ("node-1", "sysctl net.netfilter.nf_conntrack_tcp_timeout_established=0"),
            ("node-1", "sysctl net.netfilter.nf_conntrack_tcp_loose=0"),
        ),
        backends=("iptables-nft", "iptables-legacy"),
    ),
    Scenario(
        "read-only-drop",
        "A rule without a counter, looked for with --read-only: no trace may be set, and no counter rises. The drop is "
        "seen with its hook, the rule stays unknown, and the report says how to have it named.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "KERNEL_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            direction="request",
        ),
        _own_table("ip daddr 10.244.1.14 tcp dport 8080 drop"),
        backends=("iptables-nft",),
        read_only=True,
    ),
    Scenario(
        "mixed-backends",
        "A node whose kube-proxy uses iptables-legacy, and where somebody has added a rule with iptables-nft. Nothing "
        "is lost, but each tool shows one half.",
        Traffic("shop/svc/payments:80"),
        Expected(code="MIXED_BACKENDS", node="node-1"),
        (("node-1", "xtables-nft-multi iptables -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"),),
        backends=("iptables-legacy",),
    ),
    Scenario(
        "mixed-backends-nft-drop",
        "kube-proxy uses iptables-legacy, and a rule of iptables-nft drops: what legacy's rules accept helps nothing.",
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
            beside=("MIXED_BACKENDS",),
        ),
        (("node-1", f"xtables-nft-multi iptables -A {_TO_PAYMENTS} -j DROP"),),
        backends=("iptables-legacy",),
    ),
    Scenario(
        "mixed-backends-legacy-drop",
        "kube-proxy uses iptables-nft, and a forgotten rule of iptables-legacy drops: no `iptables -L` shows it.",
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
            beside=("MIXED_BACKENDS",),
        ),
        (("node-1", f"xtables-legacy-multi iptables -A {_TO_PAYMENTS} -j DROP"),),
        backends=("iptables-nft",),
    ),
)
