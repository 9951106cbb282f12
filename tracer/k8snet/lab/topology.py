"""The lab's wires: what is connected to what, in one of a few topologies, between network namespaces.

    shop/cart   shop/web-1   shop/web-2   kube-system/dns   shop/payments          shop/web-3
        |            |            |              |                 |                    |
    [ node-1: cni0 10.244.1.1/24 ] eth0 192.168.50.1 ------- 192.168.50.2 eth0 [ node-2: cni0 10.244.2.1/24 ]
              eth1 198.51.100.2 ---- 198.51.100.1 [ internet ] 203.0.113.1 ---- 203.0.113.2 eth1

A topology is how pods are tied to their node (`cni`) and how the nodes reach each other's pods (`overlay`):

    bridge   pods on the bridge cni0, the other node's pods by a direct route (host-gw)
    routed   pods on routed veths without a bridge, the other node's pods by a direct route
    vxlan    pods on the bridge cni0, the other node's pods by way of flannel.1
    ipip     pods on routed veths, the other node's pods in IP in IP

No device ever exists in the netns that calls this. `internet` routes nothing: what leaves a node by its default route
dies there in silence.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from k8snet.cluster.inventory import Pod
from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered
from k8snet.lab import cni, overlay
from k8snet.lab.cluster import NODE_1, NODE_2, PODS
from k8snet.lab.namespaces import pin_of, sysctl
from k8snet.lab.wires import has_ipv6, route, wire

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

    from k8snet.lab.wires import Links

ROUTERS: Final = ("node-1", "node-2", "internet")
NODES: Final = ("node-1", "node-2")


@dataclass(frozen=True, slots=True)
class Topology:
    """One way to connect everything."""

    pods: Callable[[Links, str, str, Sequence[Pod], int], None]
    nodes: Callable[[Links, overlay.Site, overlay.Site], None]
    mtu: int = 1500  # of pods and bridge
    needs: tuple[str, ...] = ()  # of the machine: see `k8snet.lab.needs`


TOPOLOGIES: Final = {
    "bridge": Topology(cni.bridged, overlay.direct),
    "routed": Topology(cni.routed, overlay.direct),
    "vxlan": Topology(cni.bridged, overlay.vxlan, mtu=1450, needs=("link:vxlan",)),
    "ipip": Topology(cni.routed, overlay.ipip, mtu=1480, needs=("link:ipip",)),
}

_SITES: Final = (
    overlay.Site("node-1", NODE_1, "10.244.1.0/24"),
    overlay.Site("node-2", NODE_2, "10.244.2.0/24"),
)


def settings(name: str) -> None:
    """The sysctls of the netns `name`, from inside. Explicit, since a new netns inherits the host's of today."""
    router = name in ROUTERS
    for key, value in (
        ("net.ipv6.conf.all.disable_ipv6", 0),
        ("net.ipv6.conf.default.disable_ipv6", 0),
        ("net.ipv6.conf.default.accept_dad", 0),  # an address is there at once, and
        ("net.ipv6.conf.default.accept_ra", 0),  # nobody solicits between our packets
        ("net.ipv6.conf.default.addr_gen_mode", 1),
        ("net.ipv6.conf.all.forwarding", int(router)),
        ("net.ipv4.ip_forward", int(router)),
        ("net.ipv4.conf.all.rp_filter", 0),
        ("net.ipv4.conf.default.rp_filter", 0),
        ("net.ipv4.conf.all.accept_local", 0),
        ("net.ipv4.conf.default.accept_local", 0),
        ("net.ipv4.conf.all.send_redirects", 1),
        ("net.ipv4.conf.default.send_redirects", 1),
    ):
        _set_where_it_exists(key, value)
    if name in NODES:
        sysctl("net.bridge.bridge-nf-call-iptables", 1)
        _set_where_it_exists("net.bridge.bridge-nf-call-ip6tables", 1)
    elif not router:
        sysctl("net.ipv4.ping_group_range", "0 2147483647")  # as containerd sets it in a pod


def _set_where_it_exists(key: str, value: int) -> None:
    try:
        sysctl(key, value)
    except FileNotFoundError:
        if "ip6" not in key and "ipv6" not in key:  # a kernel without IPv6
            raise


def build(topology: str) -> None:
    """Connect everything; every netns is pinned and has `settings` already. Raises K8snetError for other topologies."""
    try:
        chosen = TOPOLOGIES[topology]
    except KeyError:
        known = ", ".join(TOPOLOGIES)
        raise K8snetError(f"the lab has no topology {topology!r}", f"choose one of: {known}") from None
    links: dict[str, IPRoute] = {}
    try:
        for name in (*ROUTERS, *(pod.key for pod in PODS)):
            links[name] = _link(name)
        _connect(links, chosen)
    finally:
        for link in links.values():
            link.close()
    for node in NODES:
        _greet(node)


def _greet(node: str) -> None:
    """One datagram from the node to each of its pods, as a kubelet's probe would have sent.

    It fills the neighbour's cached hardware header. Without that br_netfilter sends the first packet that it has
    DNATed to a pod by way of cni0 (br_nf_pre_routing_finish_bridge), a detour that later packets do not take.
    """
    families = (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)
    for number, family in enumerate(families):
        with entered(pin_of(node)), socket.socket(family, socket.SOCK_DGRAM) as probe:
            for pod in PODS:
                if pod.node == node:
                    probe.sendto(b"", (str(pod.ips[number]), 9))


def _link(name: str) -> IPRoute:
    from pyroute2 import IPRoute

    with entered(pin_of(name)):
        link = IPRoute()
        link.link("set", index=1, state="up")
    return link


def _connect(links: Links, topology: Topology) -> None:
    wire(links, ("node-1", "eth0", f"{NODE_1}/24"), ("node-2", "eth0", f"{NODE_2}/24"))
    wire(links, ("node-1", "eth1", "198.51.100.2/24"), ("internet", "eth0", "198.51.100.1/24"))
    wire(links, ("node-2", "eth1", "203.0.113.2/24"), ("internet", "eth1", "203.0.113.1/24"))
    for here, there in (_SITES, _SITES[::-1]):
        gateway = here.tunnel.removesuffix("0") + "1"
        topology.pods(links, here.node, gateway, [pod for pod in PODS if pod.node == here.node], topology.mtu)
        topology.nodes(links, here, there)
    route(links["node-1"], "default", "198.51.100.1")
    route(links["node-2"], "default", "203.0.113.1")
    route(links["internet"], "default", type="blackhole")
