"""Services with nobody behind them, or nobody on the node, and addresses that nothing translates."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

# In nftables mode kube-proxy itself refuses what still has a ClusterIP after DNAT.
REFUSED: Final = {
    "verdict": Verdict.REJECTED,
    "device": None,
    "hook": "forward",
    "chain": "cluster-ips-check",
}

SCENARIOS: Final = (
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
            instead={
                "nftables": {
                    "chain": "service-endpoints-check",
                    "rule": "vmap @no-endpoint-services "
                    '{ 10.96.0.81 . tcp . 80 comment "shop/empty:http" : goto reject-chain }',
                }
            },
        ),
    ),
    Scenario(
        "no-local-endpoints",
        "A Service with internalTrafficPolicy Local, whose only pod is on the other node: kube-proxy's own rule drops "
        "the SYN of a pod on this one.",
        Traffic("shop/svc/far-only:80"),
        Expected(
            Verdict.DROPPED,
            "NO_LOCAL_ENDPOINTS",
            node="node-1",
            device="cni0",
            hook="forward",
            chain="KUBE-SERVICES",
            rule='-A KUBE-SERVICES -d 10.96.0.90/32 -p tcp -m comment --comment "shop/far-only:http has no local '
            'endpoints" -m tcp --dport 80 -j DROP',
            direction="request",
            instead={
                "nftables": {
                    "chain": "service-endpoints-check",
                    "rule": 'vmap @no-endpoint-services { 10.96.0.90 . tcp . 80 comment "shop/far-only:http" : drop }',
                }
            },
        ),
    ),
    Scenario(
        "no-local-endpoints-node-port",
        "A NodePort with externalTrafficPolicy Local, whose only pod is on the other node: what comes from outside of "
        "this node is dropped before it reaches a socket.",
        Traffic("no/node-1:30081", client="no/node-2"),
        Expected(
            Verdict.DROPPED,
            "NO_LOCAL_ENDPOINTS",
            node="node-1",
            device="eth0",
            hook="input",
            chain="KUBE-EXTERNAL-SERVICES",
            rule='-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "shop/far-door:http has no local endpoints"'
            " -m addrtype --dst-type LOCAL -m tcp --dport 30081 -j DROP",
            direction="request",
            instead={
                "nftables": {
                    "chain": "nodeport-endpoints-check",
                    "rule": 'vmap @no-endpoint-nodeports { tcp . 30081 comment "shop/far-door:http" : drop }',
                }
            },
        ),
    ),
    Scenario(
        "dnat-miss",
        "kube-proxy's rules are not reached: the SYN keeps the Service's address, is routed out of the node by the "
        "default route (eth1), and nothing comes back. In nftables mode kube-proxy's last rule refuses it.",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.NO_REPLY,
            "DNAT_MISS",
            node="node-1",
            device="eth1",
            direction="request",
            instead={
                "nftables": {
                    **REFUSED,
                    "rule": 'ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',
                }
            },
        ),
        (("node-1", "iptables -t nat -F PREROUTING"),),
        instead={"nftables": (("node-1", "nft flush chain ip kube-proxy nat-prerouting"),)},
    ),
)
