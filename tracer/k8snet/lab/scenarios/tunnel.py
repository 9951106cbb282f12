"""Tunnels between nodes that are not agreed on at both ends, or that somebody in between does not let through."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.lab.topology import TOPOLOGIES
from k8snet.report import Verdict

_NEEDS: Final = TOPOLOGIES["vxlan"].needs

_FAR: Final = Traffic("shop/svc/remote:80")
_MAC: Final = "0a:58:0a:f4:02:00"  # of node-2's flannel.1


def _remade(options: str) -> tuple[tuple[str, str], ...]:
    """node-2's flannel.1 once more, with other options."""
    return (
        ("node-2", "ip link del flannel.1"),
        ("node-2", f"ip link add flannel.1 address {_MAC} type vxlan local 192.168.50.2 dev eth0 {options}"),
        ("node-2", "ip addr add 10.244.2.0/32 dev flannel.1"),
        ("node-2", "ip link set flannel.1 up"),
        ("node-2", "ip neigh add 10.244.1.0 lladdr 0a:58:0a:f4:01:00 dev flannel.1 nud permanent"),
        ("node-2", "bridge fdb add 0a:58:0a:f4:01:00 dev flannel.1 dst 192.168.50.1 self permanent"),
        ("node-2", "ip route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"),
    )


SCENARIOS: Final = (
    Scenario(
        "vxlan-no-peer",
        "node-1's tunnel has no forwarding entry for node-2's end: the SYN goes into flannel.1, and the device does "
        "not know to which node it should send it.",
        _FAR,
        Expected(Verdict.DROPPED, "VXLAN_NO_PEER", node="node-1", device="flannel.1", direction="request"),
        (("node-1", f"bridge fdb del {_MAC} dev flannel.1 dst 192.168.50.2"),),
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "vxlan-blocked",
        "node-2's firewall does not know of the tunnel: the outer packet arrives there and dies in INPUT.",
        _FAR,
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-2",
            device="eth0",
            hook="input",
            chain="INPUT",
            rule="-A INPUT -p udp -m udp --dport 8472 -j DROP",
            direction="request",
        ),
        (("node-2", "iptables -I INPUT -p udp --dport 8472 -j DROP"),),
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "vxlan-wrong-vni",
        "The two ends of the tunnel have different network identifiers.",
        _FAR,
        Expected(Verdict.DROPPED, "TUNNEL_MISMATCH", node="node-2", direction="request"),
        _remade("id 2 dstport 8472"),
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "vxlan-wrong-port",
        "The two ends of the tunnel use different UDP ports.",
        _FAR,
        Expected(Verdict.DROPPED, "TUNNEL_MISMATCH", node="node-2", direction="request"),
        _remade("id 1 dstport 4789"),
        topology="vxlan",
        needs=_NEEDS,
    ),
)
