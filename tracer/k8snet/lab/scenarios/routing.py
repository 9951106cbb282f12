"""Nodes that do not forward, or do not like where a packet came from."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_NFT_TO_A_GONE_POD: Final = "ip daddr 10.96.0.82 tcp dport 80 dnat to 10.244.1.99:8080"
_TO_A_GONE_POD: Final = "-d 10.96.0.82/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.99:8080"

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
    Scenario(
        "device-forwarding-off",
        "The node forwards, but not what comes in by the pods' bridge.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "IP_FORWARD_OFF", node="node-1", device="cni0", direction="request"),
        (("node-1", "sysctl net.ipv4.conf.cni0.forwarding=0"),),
    ),
    Scenario(
        "no-route",
        "The node has no route to the pod network of the other node, and no default route: the SYN is translated, "
        "finds no way on, and the client is told that the network is unreachable.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REJECTED, "NO_ROUTE", node="node-1", device="cni0", direction="request"),
        (("node-1", "ip route del 10.244.2.0/24"), ("node-1", "ip route del default")),
    ),
    Scenario(
        "no-return-route",
        "The other node has no route back: the SYN arrives, the pod answers, and the SYN-ACK dies on node-2.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REPLY_LOST, "NO_ROUTE", node="node-2", device="cni0", direction="reply"),
        (("node-2", "ip route del 10.244.1.0/24"), ("node-2", "ip route del default")),
    ),
    Scenario(
        "no-route-host",
        "The same for a program of the node itself: its packet is routed a second time after the translation, and "
        "finds no route then.",
        Traffic("shop/svc/remote:80", client="no/node-1"),
        Expected(Verdict.DROPPED, "NO_ROUTE", node="node-1", direction="request"),
        (
            ("node-1", "ip route del 10.244.2.0/24"),
            ("node-1", "ip route add 10.96.0.0/16 via 198.51.100.1"),
            ("node-1", "ip route del default"),
        ),
    ),
    Scenario(
        "pod-without-route",
        "The pod has lost its default route: its own kernel refuses to connect, and there is no packet at all.",
        Traffic("shop/svc/web:80"),
        Expected(Verdict.REJECTED, "NO_ROUTE", pod="shop/cart", direction="request"),
        (("shop/cart", "ip route del default"),),
    ),
    Scenario(
        "backend-without-route",
        "The pod behind the Service has lost its default route: the SYN arrives, and its kernel makes no SYN-ACK.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.NO_REPLY, "NO_ROUTE", pod="shop/web-3", device="eth0", direction="reply"),
        (("shop/web-3", "ip route del default"), ("shop/web-3", "sysctl net.ipv4.conf.all.rp_filter=0")),
    ),
    Scenario(
        "route-blackhole",
        "The route to the other node's pods is a blackhole: the SYN is translated and vanishes, nobody is told.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "ROUTE_BLACKHOLE", node="node-1", device="cni0", direction="request"),
        (("node-1", "ip route replace blackhole 10.244.2.0/24"),),
    ),
    Scenario(
        "route-unreachable",
        "The same with a route of type unreachable: the client is told.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REJECTED, "ROUTE_BLACKHOLE", node="node-1", device="cni0", direction="request"),
        (("node-1", "ip route replace unreachable 10.244.2.0/24"),),
    ),
    Scenario(
        "route-prohibit",
        "The same with a route of type prohibit: the client is told that it is prohibited.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REJECTED, "ROUTE_BLACKHOLE", node="node-1", device="cni0", direction="request"),
        (("node-1", "ip route replace prohibit 10.244.2.0/24"),),
    ),
    Scenario(
        "pod-route-blackhole",
        "A blackhole in the pod's own routing table: its kernel refuses to connect, and there is no packet at all.",
        Traffic("shop/svc/web:80"),
        Expected(Verdict.REJECTED, "ROUTE_BLACKHOLE", pod="shop/cart", direction="request"),
        (("shop/cart", "ip route add blackhole 10.96.0.0/12"),),
    ),
    Scenario(
        "backend-route-blackhole",
        "A blackhole in the routing table of the pod behind the Service: the SYN arrives, and no SYN-ACK can be made.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.NO_REPLY, "ROUTE_BLACKHOLE", pod="shop/payments", device="eth0", direction="reply"),
        (
            ("shop/payments", "sysctl net.ipv4.conf.all.rp_filter=0"),
            ("shop/payments", "ip route add blackhole 10.244.1.10/32"),
        ),
    ),
    Scenario(
        "neighbour-failed",
        "kube-proxy still sends the Service to a pod that is gone: the node asks who has its address, nobody answers, "
        "and after three seconds it gives up and tells the client that the host is unreachable.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.REJECTED, "NEIGH_FAILED", node="node-1", device="cni0", direction="request"),
        (("node-1", f"iptables -t nat -I KUBE-SERVICES {_TO_A_GONE_POD}"),),
        instead={"nftables": (("node-1", f"nft insert rule ip kube-proxy services {_NFT_TO_A_GONE_POD}"),)},
    ),
    Scenario(
        "address-conflict",
        "Somebody has given the node the address of a pod: the node takes the SYN for its own, and refuses it since "
        "nothing listens there.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REJECTED, "ADDRESS_CONFLICT", node="node-1", direction="request"),
        (("node-1", "ip addr add 10.244.2.11/32 dev lo"),),
    ),
    Scenario(
        "source-address-conflict",
        "The other node has the address of the client: it drops the SYN at its door, since nobody else can have its "
        "own address.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "ADDRESS_CONFLICT", node="node-2", device="eth0", direction="request"),
        (("node-2", "ip addr add 10.244.1.10/32 dev lo"),),
    ),
    Scenario(
        "routing-loop",
        "Each node thinks that the other has the pod: the SYN goes to and fro until its time to live is used up.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "ROUTING_LOOP", node="node-2", device="eth0", direction="request"),
        (("node-2", "ip route add 10.244.2.11/32 via 192.168.50.1"),),
    ),
)
