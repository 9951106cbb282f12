"""What kube-proxy (IPVS mode) sets up on a node: virtual servers, and a device that has all their addresses.

The Services are no rules here: a packet to one is for the node itself, since kube-ipvs0 has the address, and IPVS takes
it away in the input hook. The few rules beside it (masquerading of what is marked, accepting of what is forwarded) are
those of iptables mode with no Service in it; kube-proxy's own match ipsets, which are not needed for what the lab asks.
IPv4 only, and no node ports; like the rules of iptables mode without affinity and external IPs.
"""

from __future__ import annotations

import socket
from typing import Final

from k8snet.cluster.inventory import Inventory, Node
from k8snet.kernel.netns import entered
from k8snet.lab import kubeproxy
from k8snet.lab.namespaces import sysctl

DEVICE: Final = "kube-ipvs0"

_MASQUERADE: Final = 0  # IP_VS_CONN_F_MASQ: NAT, the one of three ways that kube-proxy uses
_PROTOCOLS: Final = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
# pkg/proxy/ipvs/proxier.go, NewProxier.
_SETTINGS: Final = (
    ("net.ipv4.vs.conntrack", 1),
    ("net.ipv4.vs.expire_nodest_conn", 1),
    ("net.ipv4.vs.expire_quiescent_template", 1),
    ("net.ipv4.conf.all.arp_ignore", 1),
    ("net.ipv4.conf.all.arp_announce", 2),
)


def set_up(netns: str, inventory: Inventory, node: Node) -> None:
    """Make the device and the virtual servers of all Services in the node's netns that has none yet."""
    from pyroute2 import IPVS, IPRoute, IPVSDest, IPVSService  # type: ignore[import-untyped]  # it ships no types

    known = kubeproxy.of_family(inventory, 4)
    with entered(netns):
        with IPRoute() as link:
            link.link("add", ifname=DEVICE, kind="dummy")
            index = link.link_lookup(ifname=DEVICE)[0]
            for address in sorted({str(ip) for service in known.services for ip in service.cluster_ips}):
                link.addr("add", index=index, address=address, prefixlen=32)
        with IPVS() as ipvs:
            for service, port in kubeproxy.ports(known):
                place = {"addr": str(service.cluster_ips[0]), "port": port.port, "protocol": _PROTOCOLS[port.protocol]}
                server = IPVSService(**place, sched_name="rr")
                ipvs.service("add", service=server)
                # Where the policy Local leaves nobody, the virtual server is without one: it refuses, and drops nothing
                # (pkg/proxy/ipvs/proxier.go, syncEndpoint).
                for endpoint in kubeproxy.chosen(port, node if service.internal_local else None):
                    dest = IPVSDest(addr=str(endpoint.ip), port=endpoint.port, fwd_method=_MASQUERADE)
                    ipvs.dest("add", service=server, dest=dest)
        for key, value in _SETTINGS:
            sysctl(key, value)
