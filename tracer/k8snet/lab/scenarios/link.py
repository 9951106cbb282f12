"""Bridge ports and other devices that do not pass a packet on."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

SCENARIOS: Final = (
    Scenario(
        "hairpin-off",
        "A pod calls its own Service: the SYN is translated to the pod itself and must leave the bridge by the port it "
        "came in by, which only hairpin mode allows.",
        Traffic("shop/svc/cart:80"),
        Expected(Verdict.DROPPED, "HAIRPIN_OFF", node="node-1", device="vethcart", direction="request"),
        (("node-1", "bridge link set dev vethcart hairpin off"),),
    ),
    Scenario(
        "veth-down",
        "Somebody has switched the pod's eth0 off: the bridge has forgotten where its address is, floods the SYN to "
        "all other pods, which are not meant, and nobody is told.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "VETH_DOWN", pod="shop/payments", device="eth0", direction="request"),
        (("shop/payments", "ip link set eth0 down"),),
    ),
    Scenario(
        "veth-down-routed",
        "The same on the node's side of a routed veth: with the device the pod's route has gone.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "VETH_DOWN", node="node-1", device="vethpayments", direction="request"),
        (("node-1", "ip link set vethpayments down"),),
        topology="routed",
    ),
    Scenario(
        "client-veth-down",
        "The node's side of the client's veth is switched off: the SYN gets no further than the pod's own eth0.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "VETH_DOWN", node="node-1", device="vethcart", direction="request"),
        (("node-1", "ip link set vethcart down"),),
    ),
    Scenario(
        "client-eth0-down",
        "The client's own eth0 is switched off, and its routes have gone with it: no packet is made at all.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.REJECTED, "VETH_DOWN", pod="shop/cart", device="eth0", direction="request"),
        (("shop/cart", "ip link set eth0 down"),),
    ),
    Scenario(
        "link-down",
        "The cable between the nodes is out: the route still leads there, and the device has nobody to send to.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "LINK_DOWN", node="node-1", device="eth0", direction="request"),
        (("node-2", "ip link set eth0 down"),),
    ),
    Scenario(
        "bridge-nf-off",
        "The bridge does not show its frames to iptables: the SYN is routed and translated, the SYN-ACK is bridged "
        "from pod to pod and keeps the address of the pod that answered, which the client has never heard of.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.REPLY_LOST, "BRIDGE_NF_OFF", node="node-1", device="vethcart", direction="reply"),
        (("node-1", "sysctl net.bridge.bridge-nf-call-iptables=0"),),
    ),
)
