"""Packets that are too big for a device on their way, and the ICMP errors that would have helped."""

from __future__ import annotations

from typing import Final

from k8snet.lab.hold import QUEUE, Hold
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.lab.topology import TOPOLOGIES
from k8snet.report import Verdict

_NEEDS: Final = TOPOLOGIES["vxlan"].needs

# As when the CNI's configuration says 1500 and nobody has thought of the tunnel's 50 bytes.
_PODS_1500: Final = (
    ("shop/cart", "ip link set eth0 mtu 1500"),
    ("node-1", "ip link set vethcart mtu 1500"),
    ("shop/web-3", "ip link set eth0 mtu 1500"),
    ("node-2", "ip link set vethweb-3 mtu 1500"),
)
_FAR: Final = Traffic("shop/svc/remote:80", size=6000)

SCENARIOS: Final = (
    Scenario(
        "mtu-healthy-data",
        "6000 bytes to a pod of the other node, through the tunnel: the pods' MTU leaves room for its headers.",
        _FAR,
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "mtu-discovered",
        "The pods' MTU is 1500 and the tunnel's 1450: the first big packet dies, ICMP tells the client, and its data "
        "comes through in smaller ones.",
        _FAR,
        Expected(code="PMTU_DISCOVERED", node="node-1", device="cni0", direction="request"),
        _PODS_1500,
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "mtu-black-hole",
        "The same, and somebody has found ICMP dangerous: the client is never told, connects and hangs.",
        _FAR,
        Expected(
            Verdict.DROPPED,
            "MTU_BLACKHOLE",
            node="node-1",
            hook="output",
            chain="OUTPUT",
            rule="-A OUTPUT -p icmp -j DROP",
            direction="request",
        ),
        (*_PODS_1500, ("node-1", "iptables -I OUTPUT -p icmp -j DROP")),
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "mtu-underlay-df",
        "The network between the nodes takes 1400 bytes and the tunnel makes 1500 of them, with the DF bit: its outer "
        "packets die, and only the node itself is told.",
        _FAR,
        Expected(Verdict.DROPPED, "MTU_EXCEEDED", node="node-1", device="eth0", direction="request"),
        (("node-1", "ip link set flannel.1 type vxlan df set"), ("node-1", "ip link set eth0 mtu 1400")),
        topology="vxlan",
        needs=_NEEDS,
    ),
    Scenario(
        "mtu-veth-mismatch",
        "The pod's end of its veth pair has a smaller MTU than the node's: TCP agrees on less, and a datagram of 1450 "
        "bytes dies between the two ends.",
        Traffic("shop/svc/echo:7", "udp", size=1450),
        Expected(Verdict.DROPPED, "MTU_EXCEEDED", node="node-1", device="vethpayments", direction="request"),
        (("shop/payments", "ip link set eth0 mtu 1400"),),
    ),
    Scenario(
        "mtu-bridge-port",
        "The node's end of the veth pair has a smaller MTU than the bridge's other ports: nobody routes here, so "
        "nobody is told, and big packets die at the port.",
        Traffic("shop/svc/payments:80", size=1440),
        Expected(Verdict.DROPPED, "MTU_EXCEEDED", node="node-1", device="vethpayments", direction="request"),
        (("node-1", "ip link set vethpayments mtu 1400"),),
    ),
    Scenario(
        "data-stalled",
        "Somebody behind the node swallows big packets without a word, as a network with a smaller MTU that filters "
        "ICMP does: the handshake passes, the data is sent again and again.",
        Traffic("shop/svc/remote:80", size=6000),
        Expected(Verdict.NO_REPLY, "DATA_STALLED", node="node-2", device="eth0", direction="request"),
        (
            (
                "node-2",
                f"iptables -t raw -A PREROUTING -p tcp -m length --length 1000:65535 -j NFQUEUE --queue-num {QUEUE}",
            ),
        ),
        company=lambda lab: Hold(lab.netns_of("node-2").path),
    ),
)
