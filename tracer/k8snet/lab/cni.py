"""How the lab's pods are tied to their node: ports of a bridge, or routed veths.

Neighbours are permanent, and forwarding entries are there from the start: a first packet that waits for ARP and is
flooded would be noise in every trace, at the mercy of timers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from k8snet.cluster.inventory import Pod
from k8snet.kernel.netns import entered
from k8snet.lab.namespaces import pin_of, sysctl
from k8snet.lab.wires import NUD_PERMANENT, NUD_REACHABLE, give, has_ipv6, index_of, know, mac, route, veth

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

    from k8snet.lab.wires import Links

NEXT_HOP: Final = "169.254.1.1"  # no device has it: the node answers for it (proxy ARP), as Calico's nodes do
NEXT_HOP6: Final = "fe80::ecee:eeff:feee:eeee"
_NEXT_HOP_MAC: Final = "ee:ee:ee:ee:ee:ee"

_NTF_MASTER = 0x04
_PORT_FORWARDING = 3
_SCOPE_LINK = 253


def host_end(pod: Pod) -> str:
    """The node's end of a pod's veth pair."""
    return f"veth{pod.name}"[:15]


def bridged(links: Links, node: str, gateway: str, pods: Sequence[Pod], mtu: int) -> None:
    """The bridge `cni0` with a port for each pod, as the CNI plugin "bridge" sets it up (hairpin on)."""
    link = links[node]
    link.link("add", ifname="cni0", kind="bridge", address=mac(gateway), br_mcast_snooping=0, mtu=mtu)
    bridge = index_of(link, "cni0")
    give(link, bridge, gateway, 24)
    link.link("set", index=bridge, state="up")
    outsides: dict[str, int] = {}
    for pod in pods:
        ip = str(pod.ips[0])
        inside = links[pod.key]
        outside = veth(links, (node, host_end(pod), None), (pod.key, "eth0", mac(ip)))
        link.link("set", index=outside, master=bridge, mtu=mtu)
        link.brport("set", index=outside, mode=1)
        link.link("set", index=outside, state="up")
        eth0 = index_of(inside, "eth0")
        give(inside, eth0, ip, 24)
        inside.link("set", index=eth0, state="up", mtu=mtu)
        route(inside, "default", gateway)
        for other in (gateway, *(str(p.ips[0]) for p in pods if p is not pod)):
            know(inside, eth0, other)
        know(link, bridge, ip)
        outsides[ip] = outside
    _wait_for_ports(link, len(pods))  # the kernel refuses a dynamic entry for a port that does not learn yet
    for ip, outside in outsides.items():
        link.fdb("replace", lladdr=mac(ip), ifindex=outside, state=NUD_REACHABLE, flags=_NTF_MASTER)


def routed(links: Links, node: str, gateway: str, pods: Sequence[Pod], mtu: int) -> None:
    """A /32 route to each pod's veth and no bridge, as Calico does it; the rest of the node's range leads nowhere."""
    link = links[node]
    route(link, f"{gateway.rpartition('.')[0]}.0/24", type="blackhole")
    for pod in pods:
        ip = str(pod.ips[0])
        inside = links[pod.key]
        outside = veth(links, (node, host_end(pod), _NEXT_HOP_MAC), (pod.key, "eth0", mac(ip)))
        with entered(pin_of(node)):
            sysctl(f"net.ipv4.conf.{host_end(pod)}.proxy_arp", 1)
            sysctl(f"net.ipv4.neigh.{host_end(pod)}.proxy_delay", 0)
        link.link("set", index=outside, state="up", mtu=mtu)
        route(link, f"{ip}/32", oif=outside, scope=_SCOPE_LINK)
        know(link, outside, ip)
        eth0 = index_of(inside, "eth0")
        give(inside, eth0, ip, 32)
        inside.link("set", index=eth0, state="up", mtu=mtu)
        inside.route("add", dst=f"{NEXT_HOP}/32", oif=eth0, scope=_SCOPE_LINK)
        inside.route("add", dst="default", gateway=NEXT_HOP, oif=eth0)
        inside.neigh("replace", dst=NEXT_HOP, lladdr=_NEXT_HOP_MAC, ifindex=eth0, state=NUD_PERMANENT)
        if has_ipv6():
            inside.route("add", dst="::/0", gateway=NEXT_HOP6, oif=eth0)
            inside.neigh("replace", dst=NEXT_HOP6, lladdr=_NEXT_HOP_MAC, ifindex=eth0, state=NUD_PERMANENT)


def _wait_for_ports(link: IPRoute, expected: int) -> None:
    """A port forwards when the kernel's link watch has run; it says so itself, usually before the first look."""
    deadline = time.monotonic() + 5
    while True:
        states = [_port_state(message) for message in link.get_links()]
        if states.count(_PORT_FORWARDING) == expected:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"of {expected} bridge ports, these states: {states}")
        time.sleep(0.005)


def _port_state(message: Any) -> int | None:
    data = (message.get_attr("IFLA_LINKINFO") or {}).get("attrs", [])
    port = dict(data).get("IFLA_INFO_SLAVE_DATA") if data else None
    return None if port is None else port.get_attr("IFLA_BRPORT_STATE")
