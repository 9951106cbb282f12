"""The lab's wires: bridges, veths, routes and neighbours between network namespaces that exist already.

    shop/cart   shop/web-1   shop/web-2   kube-system/dns   shop/payments          shop/web-3
        |            |            |              |                 |                    |
    [ node-1: cni0 10.244.1.1/24 ] eth0 192.168.50.1 ------- 192.168.50.2 eth0 [ node-2: cni0 10.244.2.1/24 ]
              eth1 198.51.100.2 ---- 198.51.100.1 [ internet ] 203.0.113.1 ---- 203.0.113.2 eth1

No device ever exists in the netns that calls this. Neighbours are permanent, and forwarding entries are there from the
start: a first packet that waits for ARP and is flooded would be noise in every trace, at the mercy of timers.
`internet` routes nothing: what leaves a node by its default route dies there in silence.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

from k8snet.cluster.inventory import Pod
from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered
from k8snet.lab.cluster import NODE_1, NODE_2, PODS
from k8snet.lab.namespaces import pin_of, sysctl

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

ROUTERS: Final = ("node-1", "node-2", "internet")
NODES: Final = ("node-1", "node-2")

_NUD_REACHABLE = 0x02
_NUD_PERMANENT = 0x80
_AF_BRIDGE = 7
_NTF_MASTER = 0x04
_PORT_FORWARDING = 3


def host_end(pod: Pod) -> str:
    """The node's end of a pod's veth pair."""
    return f"veth{pod.name}"[:15]


def settings(name: str) -> None:
    """The sysctls of the netns `name`, from inside. Explicit, since a new netns inherits the host's of today."""
    router = name in ROUTERS
    for key, value in (
        ("net.ipv6.conf.all.disable_ipv6", 1),  # no router solicitations between our packets
        ("net.ipv6.conf.default.disable_ipv6", 1),
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
    elif not router:
        sysctl("net.ipv4.ping_group_range", "0 2147483647")  # as containerd sets it in a pod


def _set_where_it_exists(key: str, value: int) -> None:
    try:
        sysctl(key, value)
    except FileNotFoundError:
        if "ipv6" not in key:  # a kernel without IPv6 has none to turn off
            raise


def build(topology: str) -> None:
    """Connect everything; every netns is pinned and has `settings` already. Raises K8snetError for other topologies."""
    try:
        wires = TOPOLOGIES[topology]
    except KeyError:
        known = ", ".join(TOPOLOGIES)
        raise K8snetError(f"the lab has no topology {topology!r}", f"choose one of: {known}") from None
    links: dict[str, IPRoute] = {}
    try:
        for name in (*ROUTERS, *(pod.key for pod in PODS)):
            links[name] = _link(name)
        wires(links)
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
    with entered(pin_of(node)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for pod in PODS:
            if pod.node == node:
                probe.sendto(b"", (str(pod.ips[0]), 9))


def _link(name: str) -> IPRoute:
    from pyroute2 import IPRoute

    with entered(pin_of(name)):
        link = IPRoute()
        link.link("set", index=1, state="up")
    return link


def _bridge(links: Mapping[str, IPRoute]) -> None:
    _wire(links, ("node-1", "eth0", f"{NODE_1}/24"), ("node-2", "eth0", f"{NODE_2}/24"))
    _wire(links, ("node-1", "eth1", "198.51.100.2/24"), ("internet", "eth0", "198.51.100.1/24"))
    _wire(links, ("node-2", "eth1", "203.0.113.2/24"), ("internet", "eth1", "203.0.113.1/24"))
    for node, own in (("node-1", 1), ("node-2", 2)):
        _cni(links, node, f"10.244.{own}.1", [pod for pod in PODS if pod.node == node])
    links["node-1"].route("add", dst="10.244.2.0/24", gateway=NODE_2)
    links["node-2"].route("add", dst="10.244.1.0/24", gateway=NODE_1)
    links["node-1"].route("add", dst="default", gateway="198.51.100.1")
    links["node-2"].route("add", dst="default", gateway="203.0.113.1")
    links["internet"].route("add", dst="0.0.0.0/0", type="blackhole")


TOPOLOGIES: Final[dict[str, Callable[[Mapping[str, Any]], None]]] = {"bridge": _bridge}


def _cni(links: Mapping[str, IPRoute], node: str, gateway: str, pods: list[Pod]) -> None:
    """The bridge `cni0` with a port for each pod, as the CNI plugin "bridge" sets it up (hairpin on)."""
    link = links[node]
    link.link("add", ifname="cni0", kind="bridge", address=_mac(gateway), br_mcast_snooping=0)
    bridge = _index(link, "cni0")
    link.addr("add", index=bridge, address=gateway, prefixlen=24)
    link.link("set", index=bridge, state="up")
    outsides: dict[str, int] = {}
    for pod in pods:
        ip = str(pod.ips[0])
        inside = links[pod.key]
        outside = _veth(links, (node, host_end(pod), None), (pod.key, "eth0", _mac(ip)))
        link.link("set", index=outside, master=bridge)
        link.brport("set", index=outside, mode=1)
        link.link("set", index=outside, state="up")
        eth0 = _index(inside, "eth0")
        inside.addr("add", index=eth0, address=ip, prefixlen=24)
        inside.link("set", index=eth0, state="up")
        inside.route("add", dst="default", gateway=gateway)
        for other in (gateway, *(str(p.ips[0]) for p in pods if p is not pod)):
            inside.neigh("replace", dst=other, lladdr=_mac(other), ifindex=eth0, state=_NUD_PERMANENT)
        link.neigh("replace", dst=ip, lladdr=_mac(ip), ifindex=bridge, state=_NUD_PERMANENT)
        outsides[ip] = outside
    _wait_for_ports(link, len(pods))  # the kernel refuses a dynamic entry for a port that does not learn yet
    for ip, outside in outsides.items():
        link.fdb("replace", lladdr=_mac(ip), ifindex=outside, state=_NUD_REACHABLE, flags=_NTF_MASTER)


def _wire(links: Mapping[str, IPRoute], a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    """A veth pair between two machines, each end (netns, device, address/prefix), with neighbours known."""
    ips = [address.split("/")[0] for _, _, address in (a, b)]
    _veth(links, (a[0], a[1], _mac(ips[0])), (b[0], b[1], _mac(ips[1])))
    for (name, device, address), peer in ((a, ips[1]), (b, ips[0])):
        link = links[name]
        index = _index(link, device)
        link.addr("add", index=index, address=address.split("/")[0], prefixlen=int(address.split("/")[1]))
        link.link("set", index=index, state="up")
        link.neigh("replace", dst=peer, lladdr=_mac(peer), ifindex=index, state=_NUD_PERMANENT)


def _veth(links: Mapping[str, IPRoute], a: tuple[str, str, str | None], b: tuple[str, str, str | None]) -> int:
    """A veth pair, each end (netns, device, MAC) born where it belongs; returns the ifindex of the first."""
    with open(pin_of(b[0]), "rb") as there:
        peer: dict[str, object] = {"ifname": b[1], "net_ns_fd": there.fileno()}
        if b[2]:
            peer["address"] = b[2]
        own = {"address": a[2]} if a[2] else {}
        links[a[0]].link("add", ifname=a[1], kind="veth", peer=peer, **own)
    return _index(links[a[0]], a[1])


def _index(link: IPRoute, device: str) -> int:
    return int(link.link_lookup(ifname=device)[0])


def _mac(ip: str) -> str:
    """0a:58 and the address: how CNI's plugins used to make a pod's MAC."""
    return ":".join(f"{byte:02x}" for byte in (0x0A, 0x58, *IPv4Address(ip).packed))


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
