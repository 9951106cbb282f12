"""Traffic that nothing is wrong with: a trace must find nothing."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Scenario, Traffic

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
        "healthy-tcp-nearest",
        "TCP to a Service with internalTrafficPolicy Local: one of the two pods on this node, never the third.",
        Traffic("shop/svc/nearest:80", connections=3),
    ),
    Scenario(
        "healthy-tcp-node-port",
        "TCP from a pod to a NodePort with externalTrafficPolicy Local: the policy does not bind it, the other node's "
        "pod answers.",
        Traffic("no/node-1:30081"),
    ),
    Scenario(
        "healthy-tcp-external-ip",
        "TCP from a pod to a Service's external IP: translated on its own node, and masqueraded.",
        Traffic("192.0.2.80:80"),
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
)
