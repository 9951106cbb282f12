"""What stands in the other modules on pods of a bridge, once more on other wires.

Only what differs there is said here: the device where it happens, and a target on the other node where the wires
between the nodes are what is tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from k8snet.lab.scenarios import healthy, netfilter, routing, service
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.lab.topology import TOPOLOGIES
from k8snet.report import Verdict

_BASE: Final = {s.name: s for s in (*healthy.SCENARIOS, *netfilter.SCENARIOS, *service.SCENARIOS, *routing.SCENARIOS)}
_WORDS: Final = {
    "routed": "pods on routed veths, without a bridge",
    "vxlan": "the other node by way of a VXLAN tunnel",
    "ipip": "the other node by way of an IP in IP tunnel",
}
_HEALTHY: Final = (
    "healthy-tcp-pod",
    "healthy-tcp-service",
    "healthy-tcp-remote",
    "healthy-udp-dns-service",
    "healthy-icmp-remote",
)


def elsewhere(name: str, topology: str, *, target: str | None = None, **where: str | None) -> Scenario:
    """The scenario `name` in another topology; `where` are the fields of its Expected that differ there."""
    base = _BASE[name]
    return replace(
        base,
        name=f"{name}-{topology}",
        about=f"{base.about.removesuffix('.')}: the same with {_WORDS[topology]}.",
        traffic=replace(base.traffic, target=target) if target else base.traffic,
        expected=replace(base.expected, **where),  # type: ignore[arg-type]  # places by field name, all of them texts
        topology=topology,
        needs=(*base.needs, *TOPOLOGIES[topology].needs),
    )


_FAR: Final = "shop/svc/remote:80"
_TO_PAYMENTS: Final = "FORWARD -s 10.244.1.10/32 -d 10.244.1.14/32 -p tcp -m tcp --dport 8080"

SCENARIOS: Final = (
    *(elsewhere(name, topology) for topology in ("routed", "vxlan", "ipip") for name in _HEALTHY),
    # Without a bridge there is one packet, seen at the device that it came in by.
    elsewhere("forward-policy-drop", "routed", device="vethcart"),
    elsewhere("forward-policy-drop", "vxlan", target=_FAR, device="cni0"),
    elsewhere("no-endpoints", "routed", device="vethcart"),
    elsewhere("no-endpoints", "vxlan"),
    elsewhere("dnat-miss", "routed"),
    elsewhere("dnat-miss", "vxlan", target=_FAR),
    elsewhere("rp-filter", "routed"),
    elsewhere("rp-filter", "vxlan"),
    elsewhere("ip-forward-off", "routed", device="vethcart"),
    elsewhere("ip-forward-off", "vxlan"),
    Scenario(
        "reject-with-reset-routed",
        "A rule in FORWARD answers with a TCP reset. Routed, it goes through NAT and comes from the Service's address, "
        "so the client is refused at once (on a bridge it comes from the pod's, and the client does not believe it).",
        Traffic("shop/svc/payments:80"),
        Expected(
            Verdict.REJECTED,
            "RULE_REJECT",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j REJECT --reject-with tcp-reset",
            direction="request",
        ),
        (("node-1", f"iptables -I {_TO_PAYMENTS} -j REJECT --reject-with tcp-reset"),),
        topology="routed",
    ),
)
