"""The same failures over IPv6: other functions of the kernel, other drop reasons, other tools to mend them with."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from k8snet.kernel.netns import entered
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.lab.scenarios.service import REFUSED
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

_WEB: Final = "[fd00:10:96::80]:80"
_EMPTY: Final = "[fd00:10:96::81]:80"
_PAYMENTS: Final = "[fd00:10:96::82]:80"
_ADMIN: Final = "[fd00:10:96::83]:80"
_STATSD: Final = "[fd00:10:96::84]:8125"
_CART: Final = "[fd00:10:96::86]:80"
_REMOTE: Final = "[fd00:10:96::87]:80"
_DNS: Final = "[fd00:10:96::10]:53"

_TO_PAYMENTS: Final = "FORWARD -s fd00:10:244:1::10/128 -d fd00:10:244:1::14/128 -p tcp -m tcp --dport 8080"
_IN_PAYMENTS: Final = "INPUT -p tcp -m tcp --dport 8080"
_NFT_TO_A_GONE_POD: Final = "ip6 daddr fd00:10:96::82 tcp dport 80 dnat to [fd00:10:244:1::99]:8080"
_TO_A_GONE_POD: Final = (
    "-d fd00:10:96::82/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00:10:244:1::99]:8080"
)
_NEEDS: Final = ("ipv6",)


@contextmanager
def _listening_on_ipv4(lab: Lab) -> Iterator[None]:
    """A process of shop/web-1 that has forgotten IPv6."""
    with entered(lab.netns_of("shop/web-1").path):
        listening = socket.socket(socket.AF_INET)
    with listening:
        listening.bind(("", 9999))
        listening.listen()
        yield


SCENARIOS: Final = (
    Scenario(
        "ipv6-healthy-tcp-pod",
        "A TCP connection over IPv6 from pod to pod on one node: bridged, no NAT, answered.",
        Traffic("[fd00:10:244:1::11]:8080"),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-tcp-service",
        "TCP to the IPv6 address of a Service: ip6tables translates there and back.",
        Traffic(_WEB, connections=3),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-tcp-remote",
        "TCP to the IPv6 address of a Service whose only pod is on the other node: DNAT, then routed out of eth0.",
        Traffic(_REMOTE),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-udp-dns-service",
        "A DNS query over UDP to the IPv6 address of the cluster's DNS Service: DNAT there and back.",
        Traffic(_DNS, "udp", dns="web.shop.svc.cluster.local"),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-icmp-remote",
        "ICMPv6 echo request and reply between pods of two nodes, by way of eth0.",
        Traffic("fd00:10:244:2::11", "icmp"),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-udp-fragments",
        "A datagram of 4000 bytes and its echo over IPv6: the fragments carry their own extension header.",
        Traffic("[fd00:10:96::85]:7", "udp", size=4000),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-healthy-hairpin",
        "A pod calls its own Service over IPv6, and its bridge port is in hairpin mode: DNAT, and SNAT to the node.",
        Traffic(_CART),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-routed-healthy-tcp-service",
        "TCP to the IPv6 address of a Service, on nodes that route to each pod's veth: the next hop is a link-local "
        "address.",
        Traffic(_WEB, connections=3),
        topology="routed",
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-routed-healthy-icmp-remote",
        "ICMPv6 echo request and reply between pods of two nodes that have no bridge.",
        Traffic("fd00:10:244:2::11", "icmp"),
        topology="routed",
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-forward-policy-drop",
        "The policy of ip6tables FORWARD is DROP, that of iptables is not: IPv6 alone is dead.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.DROPPED,
            "FORWARD_POLICY_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            direction="request",
        ),
        (("node-1", "ip6tables -P FORWARD DROP"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-forward-rule-drop",
        "A rule in ip6tables FORWARD drops what goes to the pod's port.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j DROP",
            direction="request",
        ),
        (("node-1", f"ip6tables -I {_TO_PAYMENTS} -j DROP"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-routed-forward-rule-drop",
        "The same rule on a node without a bridge.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j DROP",
            direction="request",
        ),
        (("node-1", f"ip6tables -I {_TO_PAYMENTS} -j DROP"),),
        topology="routed",
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-forward-rule-reject",
        "The same with REJECT: the node answers the SYN with ICMPv6 administratively prohibited.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.REJECTED,
            "RULE_REJECT",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_TO_PAYMENTS} -j REJECT --reject-with icmp6-adm-prohibited",
            direction="request",
        ),
        (("node-1", f"ip6tables -I {_TO_PAYMENTS} -j REJECT --reject-with icmp6-adm-prohibited"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-pod-firewall-drop",
        "A packet filter inside the pod drops its own port for IPv6.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.DROPPED,
            "POD_FIREWALL_DROP",
            pod="shop/payments",
            device="eth0",
            hook="input",
            chain="INPUT",
            rule=f"-A {_IN_PAYMENTS} -j DROP",
            direction="request",
        ),
        (("shop/payments", f"ip6tables -A {_IN_PAYMENTS} -j DROP"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-no-endpoints",
        "A Service whose selector matches no pod, asked by its IPv6 address: kube-proxy's ip6tables rule rejects it.",
        Traffic(_EMPTY),
        Expected(
            Verdict.REJECTED,
            "NO_ENDPOINTS",
            node="node-1",
            device="cni0",
            hook="forward",
            chain="KUBE-SERVICES",
            rule='-A KUBE-SERVICES -d fd00:10:96::81/128 -p tcp -m comment --comment "shop/empty:http has no endpoints"'
            " -m tcp --dport 80 -j REJECT --reject-with icmp6-port-unreachable",
            direction="request",
            instead={
                "nftables": {
                    "chain": "service-endpoints-check",
                    "rule": "vmap @no-endpoint-services "
                    '{ fd00:10:96::81 . tcp . 80 comment "shop/empty:http" : goto reject-chain }',
                }
            },
        ),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-no-local-endpoints",
        "A Service with internalTrafficPolicy Local and no pod on this node, asked by its IPv6 address.",
        Traffic("[fd00:10:96::90]:80"),
        Expected(
            Verdict.DROPPED,
            "NO_LOCAL_ENDPOINTS",
            node="node-1",
            device="cni0",
            hook="forward",
            chain="KUBE-SERVICES",
            rule='-A KUBE-SERVICES -d fd00:10:96::90/128 -p tcp -m comment --comment "shop/far-only:http has no local '
            'endpoints" -m tcp --dport 80 -j DROP',
            direction="request",
            instead={
                "nftables": {
                    "chain": "service-endpoints-check",
                    "rule": "vmap @no-endpoint-services "
                    '{ fd00:10:96::90 . tcp . 80 comment "shop/far-only:http" : drop }',
                }
            },
        ),
        backends=("iptables-nft", "nftables"),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-dnat-miss",
        "kube-proxy's ip6tables rules are not reached: the SYN keeps the Service's address and leaves by the default "
        "route.",
        Traffic(_PAYMENTS),
        Expected(
            Verdict.NO_REPLY,
            "DNAT_MISS",
            node="node-1",
            device="eth1",
            direction="request",
            instead={"nftables": REFUSED},
        ),
        (("node-1", "ip6tables -t nat -F PREROUTING"),),
        instead={"nftables": (("node-1", "nft flush chain ip6 kube-proxy nat-prerouting"),)},
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-forward-off",
        "The node does not forward IPv6, and forwards IPv4: the SYN to a pod of the other node dies in the routing "
        "decision.",
        Traffic(_REMOTE),
        Expected(Verdict.DROPPED, "IP_FORWARD_OFF", node="node-1", device="cni0", direction="request"),
        (("node-1", "sysctl net.ipv6.conf.all.forwarding=0"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-no-route",
        "No IPv6 route to the other node's pods: the bridge routes the translated SYN itself, finds no way on and "
        "tells nobody (IPv4, and a node without a bridge, would).",
        Traffic(_REMOTE),
        Expected(Verdict.DROPPED, "NO_ROUTE", node="node-1", device="cni0", direction="request"),
        (("node-1", "ip -6 route del fd00:10:244:2::/64"), ("node-1", "ip -6 route del default")),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-routed-no-route",
        "The same without a bridge: the client is told that there is no route.",
        Traffic(_REMOTE),
        Expected(Verdict.REJECTED, "NO_ROUTE", node="node-1", device="vethcart", direction="request"),
        (("node-1", "ip -6 route del fd00:10:244:2::/64"), ("node-1", "ip -6 route del default")),
        topology="routed",
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-pod-without-route",
        "The pod has lost its IPv6 default route and kept that of IPv4: its own kernel refuses to connect, and there "
        "is no packet at all.",
        Traffic(_WEB),
        Expected(Verdict.REJECTED, "NO_ROUTE", pod="shop/cart", direction="request"),
        (("shop/cart", "ip -6 route del default"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-route-blackhole",
        "The IPv6 route to the other node's pods is a blackhole, and there is no bridge that would look first.",
        Traffic(_REMOTE),
        Expected(Verdict.DROPPED, "ROUTE_BLACKHOLE", node="node-1", device="vethcart", direction="request"),
        (
            ("node-1", "ip -6 route del fd00:10:244:2::/64"),
            ("node-1", "ip -6 route add blackhole fd00:10:244:2::/64"),
        ),
        topology="routed",
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-route-prohibit",
        "The same on a bridge with a route of type prohibit: the bridge drops the SYN, and the client is not told.",
        Traffic(_REMOTE),
        Expected(Verdict.DROPPED, "ROUTE_BLACKHOLE", node="node-1", device="cni0", direction="request"),
        (
            ("node-1", "ip -6 route del fd00:10:244:2::/64"),
            ("node-1", "ip -6 route add prohibit fd00:10:244:2::/64"),
        ),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-neighbour-failed",
        "kube-proxy still sends the Service to a pod that is gone: nobody answers neighbour discovery, and after three "
        "seconds the node gives up and tells the client that the address is unreachable.",
        Traffic(_PAYMENTS),
        Expected(Verdict.REJECTED, "NEIGH_FAILED", node="node-1", device="cni0", direction="request"),
        (("node-1", f"ip6tables -t nat -I KUBE-SERVICES {_TO_A_GONE_POD}"),),
        instead={"nftables": (("node-1", f"nft insert rule ip6 kube-proxy services {_NFT_TO_A_GONE_POD}"),)},
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-mtu-exceeded",
        "The network between the nodes takes 1400 bytes, and a datagram of 1440 is sent before anybody knows: it dies "
        "on node-1, which tells the client by ICMPv6 packet too big.",
        Traffic("[fd00:10:244:2::11]:9", "udp", size=1440),
        Expected(Verdict.DROPPED, "MTU_EXCEEDED", node="node-1", device="eth0", direction="request"),
        (("node-1", "ip link set eth0 mtu 1400"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-mtu-black-hole",
        "The same for TCP, and somebody has found ICMPv6 dangerous: the client is never told, connects and hangs.",
        Traffic(_REMOTE, size=6000),
        Expected(
            Verdict.DROPPED,
            "MTU_BLACKHOLE",
            node="node-1",
            hook="output",
            chain="OUTPUT",
            rule="-A OUTPUT -p ipv6-icmp -j DROP",
            direction="request",
        ),
        (("node-1", "ip link set eth0 mtu 1400"), ("node-1", "ip6tables -I OUTPUT -p icmpv6 -j DROP")),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-hairpin-off",
        "A pod calls its own Service over IPv6, and its bridge port is not in hairpin mode.",
        Traffic(_CART),
        Expected(Verdict.DROPPED, "HAIRPIN_OFF", node="node-1", device="vethcart", direction="request"),
        (("node-1", "bridge link set dev vethcart hairpin off"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-not-listening",
        "The Service's targetPort is wrong: the pod's kernel answers the SYN with a reset, over IPv6 too.",
        Traffic(_ADMIN),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/payments", direction="request"),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-listens-on-ipv4",
        "The process listens on 0.0.0.0, which is IPv4 only, and the client comes by IPv6.",
        Traffic("[fd00:10:244:1::11]:9999"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/web-1", direction="request"),
        needs=_NEEDS,
        company=_listening_on_ipv4,
    ),
    Scenario(
        "ipv6-routing-loop",
        "Each node thinks that the other has the pod's IPv6 address: the SYN goes to and fro until its hop limit is "
        "used up.",
        Traffic(_REMOTE),
        Expected(Verdict.DROPPED, "ROUTING_LOOP", node="node-2", device="eth0", direction="request"),
        (("node-2", "ip -6 route add fd00:10:244:2::11/128 via fd00:192:168:50::1"),),
        needs=_NEEDS,
    ),
    Scenario(
        "ipv6-udp-silent",
        "The application reads the datagram that came over IPv6 and never answers.",
        Traffic(_STATSD, "udp"),
        Expected(Verdict.NO_REPLY, "NO_REPLY", pod="shop/payments"),
        needs=_NEEDS,
    ),
)
