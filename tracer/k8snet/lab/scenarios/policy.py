"""NetworkPolicies that do not let the client in, or not out, as the programs that enforce them write their rules.

Which pods a policy selects and what it allows is in the rule files of `lab/policies`: what Calico (felix), kube-router
and a plain nftables table hold for one policy and the pods that it concerns, in the form that iptables-save, ipset and
nft print.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from k8snet.cluster.inventory import NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule, Selector
from k8snet.lab.hold import refusal
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_QUEUE: Final = 100  # kube-network-policies' own default
_RULES: Final = Path(__file__).parent.parent / "policies"


def _app(name: str) -> Selector:
    return Selector((("app", name),))


_WEB_ONLY: Final = NetworkPolicy(
    "shop", "web-only", _app("payments"), ingress=True, egress=False,
    ingress_rules=(PolicyRule((PolicyPeer(_app("web")),), (PolicyPort("TCP", "http"),)),),
)  # fmt: skip
_DNS: Final = (PolicyRule(ports=(PolicyPort("UDP", 53),)),)
_DNS_ONLY: Final = NetworkPolicy("shop", "dns-only", _app("cart"), ingress=False, egress=True, egress_rules=_DNS)
_ALLOW_DNS: Final = NetworkPolicy("shop", "allow-dns", _app("cart"), ingress=False, egress=True, egress_rules=_DNS)
_DEFAULT_DENY: Final = NetworkPolicy("shop", "default-deny", Selector(), ingress=False, egress=True)


def _loaded(*names: str) -> tuple[tuple[str, str], ...]:
    """Steps that load these files on node-1."""
    tools = {".ipset": "ipset restore -file", ".rules": "iptables-restore --noflush", ".nft": "nft -f"}
    return tuple(("node-1", f"{tools[Path(name).suffix]} {_RULES / name}") for name in names)


SCENARIOS: Final = (
    Scenario(
        "netpol-calico-ingress",
        "Calico: the NetworkPolicy shop/web-only lets only the pods of app=web in to the payments pod. The SYN of "
        "another pod goes through the policy's chain, is not marked there, and dies at the end of the pod's own chain.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "NETPOL_DENY",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="cali-tw-vethpayments",
            direction="request",
        ),
        _loaded("calico.ipset", "calico-ingress.rules"),
        topology="routed",
        backends=("iptables-nft", "iptables-legacy"),
        needs=("program:ipset",),
        policies=(_WEB_ONLY,),
    ),
    Scenario(
        "netpol-calico-egress",
        "Calico, with two egress policies that select the client, as releases before 3.31 name them: one allows DNS, "
        "one nothing. The SYN dies at the end of the client's own chain.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "NETPOL_DENY",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="cali-fw-vethcart",
            direction="request",
        ),
        _loaded("calico-egress.rules"),
        topology="routed",
        backends=("iptables-nft", "iptables-legacy"),
        policies=(_ALLOW_DNS, _DEFAULT_DENY),
    ),
    Scenario(
        "netpol-kube-router-ingress",
        "kube-router: the NetworkPolicy shop/web-only lets only the pods of app=web in to the payments pod. The SYN of "
        "another pod is not marked, and the pod's own chain rejects it.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.REJECTED,
            "NETPOL_DENY",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="KUBE-POD-FW-XJZ5NPUYGYG3P2L6",
            direction="request",
        ),
        _loaded("kube-router.ipset", "kube-router-ingress.rules"),
        backends=("iptables-nft", "iptables-legacy"),
        needs=("program:ipset",),
        policies=(_WEB_ONLY,),
    ),
    Scenario(
        "netpol-kube-router-egress",
        "kube-router, with the longer comments of its older releases: the NetworkPolicy shop/dns-only lets the client "
        "do nothing but DNS.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.REJECTED,
            "NETPOL_DENY",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="KUBE-POD-FW-3WLOVMWIGFNGVVRV",
            direction="request",
        ),
        _loaded("kube-router.ipset", "kube-router-egress.rules"),
        backends=("iptables-nft", "iptables-legacy"),
        needs=("program:ipset",),
        policies=(_DNS_ONLY,),
    ),
    Scenario(
        "netpol-nftables",
        "A plain nftables table enforces the NetworkPolicy shop/web-only, whose name is in the rules' comments.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "NETPOL_DENY",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="ingress-shop-payments",
            direction="request",
        ),
        _loaded("nftables-ingress.nft"),
        backends=("iptables-nft", "nftables"),  # with iptables-legacy it is a mixed node as well
        policies=(_WEB_ONLY,),
    ),
    Scenario(
        "netpol-queue",
        "kube-network-policies: a rule in POSTROUTING gives each new connection to a program in user space, which "
        "knows the policies and drops the SYN. No rule names a policy, and it is no rule that drops.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.DROPPED,
            "NETPOL_DENY",
            node="node-1",
            device="vethpayments",
            hook="postrouting",
            chain="postrouting",
            direction="request",
        ),
        _loaded("kube-network-policies.nft"),
        backends=("iptables-nft", "nftables"),
        needs=("nft:queue num 100",),
        company=partial(refusal, queue=_QUEUE),
        policies=(_WEB_ONLY,),
    ),
)
