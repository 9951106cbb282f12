"""How the lab's nodes reach each other's pods: plain routes, VXLAN, or IP in IP; one function each, run for each node.

Each gives the node a route to the other node's pods. A tunnel's peers are written down beforehand, as flannel and
Calico do from what the API server tells them: nothing is learnt or flooded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from k8snet.lab.cluster import twin
from k8snet.lab.wires import NUD_PERMANENT, give, has_ipv6, index_of, know, mac, route, twin_range

if TYPE_CHECKING:
    from k8snet.lab.wires import Links

VXLAN: Final = "flannel.1"
IPIP: Final = "tunl1"  # tunl0, which Calico uses, is the module's own and may be there already, or not

_VNI, _PORT = 1, 8472
_NTF_SELF = 0x02
_ONLINK = 4  # RTNH_F_ONLINK: the next hop is reachable although no route says so


@dataclass(frozen=True, slots=True)
class Site:
    """One node, as another one sees it."""

    node: str
    address: str  # in the nodes' own network
    pods: str  # 10.244.1.0/24

    @property
    def tunnel(self) -> str:
        """The address of its tunnel device: the first of its pods' range, as flannel chooses it."""
        return self.pods.split("/")[0]


def direct(links: Links, here: Site, there: Site) -> None:
    """A route by way of the other node's own address: flannel's host-gw, Calico without encapsulation."""
    route(links[here.node], there.pods, there.address)


def vxlan(links: Links, here: Site, there: Site) -> None:
    """flannel's VXLAN: MTU 50 below that of eth0, and one neighbour and forwarding entry for each other node."""
    link = links[here.node]
    link.link(
        "add",
        ifname=VXLAN,
        kind="vxlan",
        address=mac(here.tunnel),
        vxlan_id=_VNI,
        vxlan_link=index_of(link, "eth0"),
        vxlan_local=here.address,
        vxlan_port=_PORT,
        vxlan_learning=0,
    )
    tunnel = index_of(link, VXLAN)
    give(link, tunnel, here.tunnel, 32)
    link.link("set", index=tunnel, state="up")
    know(link, tunnel, there.tunnel)
    link.fdb(
        "replace", lladdr=mac(there.tunnel), ifindex=tunnel, dst=there.address, state=NUD_PERMANENT, flags=_NTF_SELF
    )
    route(link, there.pods, there.tunnel, oif=tunnel, flags=_ONLINK)


def ipip(links: Links, here: Site, there: Site) -> None:
    """Calico's IP in IP: one device without a remote end, which takes it from the route's next hop. IPv6 goes bare."""
    link = links[here.node]
    link.link("add", ifname=IPIP, kind="ipip", ipip_local=here.address)
    tunnel = index_of(link, IPIP)
    link.addr("add", index=tunnel, address=here.tunnel, prefixlen=32)
    link.link("set", index=tunnel, state="up")
    link.route("add", dst=there.pods, gateway=there.address, oif=tunnel, flags=_ONLINK)
    if has_ipv6():
        link.route("add", dst=twin_range(there.pods), gateway=str(twin(there.address)))
