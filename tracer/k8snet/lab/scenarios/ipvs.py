"""kube-proxy in IPVS mode: what is sent to a Service is for the node itself, and is sent on from its input hook."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_ONLY: Final = ("ipvs",)
_NEEDS: Final = ("ipvs",)

SCENARIOS: Final = (
    Scenario(
        "ipvs-healthy-tcp-service",
        "TCP to a Service: IPVS sends it to one of three pods, and translates the answer back.",
        Traffic("shop/svc/web:80", connections=3),
        backends=_ONLY,
        needs=_NEEDS,
    ),
    Scenario(
        "ipvs-healthy-tcp-remote",
        "TCP to a Service whose only pod is on the other node, by IPVS.",
        Traffic("shop/svc/remote:80"),
        backends=_ONLY,
        needs=_NEEDS,
    ),
    Scenario(
        "ipvs-healthy-udp-dns-service",
        "A DNS query over UDP to the cluster's DNS Service, by IPVS.",
        Traffic("kube-system/svc/kube-dns:53", "udp", dns="web.shop.svc.cluster.local"),
        backends=_ONLY,
        needs=_NEEDS,
    ),
    Scenario(
        "ipvs-no-endpoints",
        "A Service whose selector matches no pod: its virtual server has nobody to send the SYN to, and refuses it.",
        Traffic("shop/svc/empty:80"),
        Expected(Verdict.REJECTED, "NO_ENDPOINTS", node="node-1", hook="input", direction="request"),
        backends=_ONLY,
        needs=_NEEDS,
    ),
    Scenario(
        "ipvs-no-local-endpoints",
        "A Service with internalTrafficPolicy Local, whose only pod is on the other node: its virtual server has "
        "nobody on this one. It refuses the SYN, where the other modes of kube-proxy drop it.",
        Traffic("shop/svc/far-only:80"),
        Expected(Verdict.REJECTED, "NO_LOCAL_ENDPOINTS", node="node-1", hook="input", direction="request"),
        backends=_ONLY,
        needs=_NEEDS,
    ),
    Scenario(
        "ipvs-forward-policy-drop",
        "The FORWARD policy is DROP: from pod to pod nothing goes. (What IPVS sends on is the node's own, and passes.)",
        Traffic("shop/pod/payments:8080"),
        Expected(
            Verdict.DROPPED, "FORWARD_POLICY_DROP", node="node-1", hook="forward", chain="FORWARD", direction="request"
        ),
        (("node-1", "iptables -P FORWARD DROP"),),
        backends=_ONLY,
        needs=_NEEDS,
    ),
)
