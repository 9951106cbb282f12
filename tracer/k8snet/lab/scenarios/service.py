"""Services with nobody behind them, and addresses that nothing translates."""

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
