"""What can be broken in the lab: for each scenario how, with which traffic, and what a trace must find.

Data, read by the demo, the tutorial and the live tests alike. A step is a command as one would type it in the netns
it names (iptables is that of the lab's back end), so a break can be repeated by hand:
`ip netns exec k8snet-node-1 iptables -P FORWARD DROP`. Nothing is ever undone: the next scenario gets a new lab.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered
from k8snet.lab.namespaces import sysctl
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab
    from k8snet.report import Finding, Report


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the client sends."""

    target: str  # as --to takes it
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    connections: int = 1
    dns: str | None = None  # ask for this name
    client: str = "shop/cart"  # as --from takes it


@dataclass(frozen=True, slots=True)
class Expected:
    """What the report must say. None: the report must not say (`code`), or it does not matter (all others)."""

    verdict: Verdict = Verdict.DELIVERED
    code: str | None = None
    node: str | None = None  # the netns where it happened is this node's ...
    pod: str | None = None  # ... or this pod's
    device: str | None = None
    hook: str | None = None
    chain: str | None = None
    rule: str | None = None  # as iptables-save prints it; a chain's policy is no rule
    direction: Literal["request", "reply"] | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to break the lab, or none."""

    name: str
    about: str
    traffic: Traffic
    expected: Expected = field(default_factory=Expected)
    steps: tuple[tuple[str, str], ...] = ()  # (netns, command)

    def break_it(self, lab: Lab) -> None:
        """Do all steps; raises K8snetError when one fails."""
        for name, command in self.steps:
            words = shlex.split(command)
            if words[0] == "sysctl":  # procps is not everywhere
                with entered(lab.netns_of(name).path):
                    sysctl(*words[1].split("="))
            else:
                lab.run_in(name, words, check=True)


_TO_PAYMENTS: Final = "FORWARD -s 10.244.1.10/32 -d 10.244.1.14/32 -p tcp -m tcp --dport 8080"
_IN_PAYMENTS: Final = "INPUT -p tcp -m tcp --dport 8080"

SCENARIOS: Final = (
    Scenario(
        "healthy-tcp-pod",
        "A TCP connection from pod to pod on one node: bridged, no NAT, answered.",
        Traffic("shop/pod/web-1:8080"),
    ),
    Scenario(
        "healthy-tcp-service",
        "TCP to a Service: DNAT to one of three pods on the way out, translated back on the way home.",
        Traffic("shop/svc/web:80", connections=3),
    ),
    Scenario(
        "healthy-tcp-remote",
        "TCP to a Service whose only pod is on the other node: DNAT, then routed out of eth0.",
        Traffic("shop/svc/remote:80"),
    ),
    Scenario(
        "healthy-udp-dns-service",
        "A DNS query over UDP to the cluster's DNS Service: DNAT there and back.",
        Traffic("kube-system/svc/kube-dns:53", "udp", dns="web.shop.svc.cluster.local"),
    ),
    Scenario(
        "healthy-udp-dns-pod",
        "A DNS query over UDP straight to the DNS pod: no NAT.",
        Traffic("kube-system/pod/dns:53", "udp", dns="web.shop.svc.cluster.local"),
    ),
    Scenario(
        "healthy-icmp-pod",
        "Echo request and echo reply between two pods of one node.",
        Traffic("shop/pod/web-1", "icmp"),
    ),
    Scenario(
        "healthy-icmp-remote",
        "Echo request and echo reply between pods of two nodes, by way of eth0.",
        Traffic("shop/pod/web-3", "icmp"),
    ),
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
        "no-endpoints",
        "A Service whose selector matches no pod: kube-proxy's own rule rejects the SYN, untranslated, with ICMP port "
        "unreachable.",
        Traffic("shop/svc/empty:80"),
        Expected(
            Verdict.REJECTED,
            "NO_ENDPOINTS",
            node="node-1",
            device="cni0",
            hook="forward",
            chain="KUBE-SERVICES",
            rule='-A KUBE-SERVICES -d 10.96.0.81/32 -p tcp -m comment --comment "shop/empty:http has no endpoints"'
            " -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
            direction="request",
        ),
    ),
    Scenario(
        "dnat-miss",
        "kube-proxy's rules are not reached: the SYN keeps the Service's address, is routed out of the node by the "
        "default route (eth1), and nothing comes back.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.NO_REPLY, "DNAT_MISS", node="node-1", device="eth1", direction="request"),
        (("node-1", "iptables -t nat -F PREROUTING"),),
    ),
    Scenario(
        "not-listening",
        "The Service's targetPort is wrong: the SYN reaches the pod, nobody listens on 9090, the pod's kernel answers "
        "with a reset.",
        Traffic("shop/svc/admin:80"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/payments", direction="request"),
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
        "udp-silent",
        "The application reads the datagram and never answers: it enters the pod, nothing drops it, no reply leaves.",
        Traffic("shop/svc/statsd:8125", "udp"),
        Expected(Verdict.NO_REPLY, "NO_REPLY", pod="shop/payments"),
    ),
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
    Scenario(
        "hairpin-off",
        "A pod calls its own Service: the SYN is translated to the pod itself and must leave the bridge by the port it "
        "came in by, which only hairpin mode allows.",
        Traffic("shop/svc/cart:80"),
        Expected(Verdict.DROPPED, "HAIRPIN_OFF", node="node-1", device="vethcart", direction="request"),
        (("node-1", "bridge link set dev vethcart hairpin off"),),
    ),
)


def by_name(name: str) -> Scenario:
    """The scenario called `name`; raises K8snetError."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise K8snetError(f"there is no scenario {name!r}", "see: k8snet lab list")


def differences(lab: Lab, expected: Expected, report: Report) -> list[str]:
    """What `report` says otherwise than expected, a line each; empty when it is as it must be. The lab must be up."""
    wrong = []
    if report.verdict is not expected.verdict:
        wrong.append(f"verdict: expected {expected.verdict.value}, found {report.verdict.value}")
    if expected.code is None:
        return [*wrong, *(f"a finding where there is nothing to find: {f.code}" for f in report.findings)]
    codes = [finding.code for finding in report.findings]
    if codes != [expected.code]:
        return [*wrong, f"finding: expected {expected.code}, found {', '.join(codes) or 'none'}"]
    return [*wrong, *_misplaced(lab, expected, report.findings[0])]


def _misplaced(lab: Lab, expected: Expected, finding: Finding) -> list[str]:
    where = finding.where
    home = expected.node or expected.pod
    pairs = [
        ("netns", lab.netns_of(home).inum if home else None, where.netns),
        *((name, getattr(expected, name), getattr(where, name)) for name in ("node", "pod", "device", "hook", "chain")),
        ("rule", expected.rule, where.rule),
        ("direction", expected.direction, finding.direction),
    ]
    return [f"{name}: expected {want}, found {got}" for name, want, got in pairs if want is not None and got != want]
