"""What kube-proxy (nftables mode) writes for a set of Services: Inventory in, the text of one nft table out.

The text is in the form in which `nft list table` prints it back; a unit test compares it with what a real kube-proxy
wrote. One table a family: that of the cluster's CIDR. As in iptables mode, nothing is written for session affinity and
load balancers. Surprising to readers of the iptables rules: a Service is an element of a map here, not a rule, and a
Service without endpoints is one in `no-endpoint-services`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Service, ServicePort
from k8snet.event import Address
from k8snet.lab.kubeproxy import address_of, chosen, is_open, of_family, port_name, ports

TABLE = "kube-proxy"

# The chains that do not depend on any Service: pkg/proxy/nftables/proxier.go, setupNFTables. {ip} is the family.
_CHAINS = """\
	chain filter-prerouting {
		type filter hook prerouting priority dstnat - 10; policy accept;
		ct state new jump firewall-check
	}

	chain filter-input {
		type filter hook input priority -110; policy accept;
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}

	chain filter-forward {
		type filter hook forward priority -110; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}

	chain filter-output {
		type filter hook output priority -110; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump firewall-check
	}

	chain filter-output-post-dnat {
		type filter hook output priority -90; policy accept;
		ct state new jump cluster-ips-check
	}

	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}

	chain nat-output {
		type nat hook output priority -100; policy accept;
		jump services
	}

	chain nat-postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		jump masquerading
	}

	chain nodeport-endpoints-check {
		{ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
	}

	chain service-endpoints-check {
		{ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
	}

	chain firewall-check {
		{ip} daddr . meta l4proto . th dport vmap @firewall-ips
	}

	chain services {
		{ip} daddr . meta l4proto . th dport vmap @service-ips
		{ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}

	chain masquerading {
		meta mark & 0x00004000 == 0x00000000 return
		meta mark set meta mark ^ 0x00004000
		masquerade fully-random
	}

	chain cluster-ips-check {
		{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
	}

	chain mark-for-masquerade {
		meta mark set meta mark | 0x00004000
	}

	chain reject-chain {
		comment "helper for @no-endpoint-services / @no-endpoint-nodeports"
		reject
	}
"""


@dataclass
class _Elements:
    """What goes into the table's sets and maps."""

    cluster_ips: list[str] = field(default_factory=list)
    no_endpoints: list[str] = field(default_factory=list)
    no_endpoint_node_ports: list[str] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    node_ports: list[str] = field(default_factory=list)


def rules(inventory: Inventory, cluster_cidr: str, node: Node) -> str:
    """The whole table of `node` for `nft -f`, of the family of `cluster_cidr`."""
    version = ip_network(cluster_cidr).version
    ip = "ip" if version == 4 else "ip6"
    elements, chains = _Elements(), list[str]()
    for service, port in ports(of_family(inventory, version)):
        vip, protocol = service.cluster_ips[0], port.protocol.lower()
        to_vip, to_node_port = f"{vip} . {protocol} . {port.port}", f"{protocol} . {port.node_port}"
        if str(vip) not in elements.cluster_ips[-1:]:
            elements.cluster_ips.append(str(vip))
        anywhere, here = chosen(port), chosen(port, node)
        refused = f' comment "{port_name(service, port)}" : {"drop" if anywhere else "goto reject-chain"}'
        inside = local_chain(service, port) if service.internal_local else service_chain(service, port)
        if here if service.internal_local else anywhere:
            elements.services.append(f"{to_vip} : goto {inside}")
        else:
            elements.no_endpoints.append(to_vip + refused)
        outer = [f"{ip} . {protocol} . {port.port}" for ip in service.external_ips]
        if anywhere:
            elements.services += [f"{place} : goto external-{_base(service, port)}" for place in outer]
            elements.node_ports += [f"{to_node_port} : goto external-{_base(service, port)}"] if port.node_port else []
        if not (here if service.external_local else anywhere):
            elements.no_endpoints += [place + refused for place in outer]
            elements.no_endpoint_node_ports += [to_node_port + refused] if port.node_port else []
        chains += _service(service, port, vip, node, cluster_cidr)
    node_ips = [str(a) for a in node.ips if a.version == version]
    body = "\n".join((_sets(elements, node_ips, version), _CHAINS.replace("{ip}", ip), *chains))
    return f'table {ip} {TABLE} {{\n\tcomment "rules for kube-proxy"\n{body}}}\n'


def anew(inventory: Inventory, cluster_cidr: str, node: Node) -> str:
    """The same in place of the table that may be there, in one transaction."""
    table = f"{'ip' if ip_network(cluster_cidr).version == 4 else 'ip6'} {TABLE}"
    return f"add table {table}\ndelete table {table}\n{rules(inventory, cluster_cidr, node)}"


def _sets(elements: _Elements, node_ips: list[str], version: int) -> str:
    address, port = f"ipv{version}_addr", "inet_proto . inet_service"
    return "\n".join(
        _set(kind, name, keys, comment, content)
        for kind, name, keys, comment, content in (
            ("set", "cluster-ips", address, "Active ClusterIPs", elements.cluster_ips),
            ("set", "nodeport-ips", address, "IPs that accept NodePort traffic", node_ips),
            (
                "map",
                "no-endpoint-services",
                f"{address} . {port} : verdict",
                "vmap to drop or reject packets to services with no endpoints",
                elements.no_endpoints,
            ),
            (
                "map",
                "no-endpoint-nodeports",
                f"{port} : verdict",
                "vmap to drop or reject packets to service nodeports with no endpoints",
                elements.no_endpoint_node_ports,
            ),
            (
                "map",
                "firewall-ips",
                f"{address} . {port} : verdict",
                "destinations that are subject to LoadBalancerSourceRanges",
                [],
            ),
            (
                "map",
                "service-ips",
                f"{address} . {port} : verdict",
                "ClusterIP, ExternalIP and LoadBalancer IP traffic",
                elements.services,
            ),
            ("map", "service-nodeports", f"{port} : verdict", "NodePort traffic", elements.node_ports),
        )
    )


def _set(kind: str, name: str, keys: str, comment: str, elements: Iterable[str]) -> str:
    between = ",\n\t\t\t     "
    content = between.join(elements)
    lines = [f"type {keys}", f'comment "{comment}"', *([f"elements = {{ {content} }}"] if content else [])]
    return _block(f"{kind} {name}", lines)


def _chain(name: str, *lines: str) -> str:
    return _block(f"chain {name}", lines)


def _block(head: str, lines: Iterable[str]) -> str:
    return f"\t{head} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _service(service: Service, port: ServicePort, vip: Address, node: Node, cluster_cidr: str) -> Iterator[str]:
    protocol, ip = port.protocol.lower(), "ip" if vip.version == 4 else "ip6"
    everywhere, local = service_chain(service, port), local_chain(service, port)
    inside = local if service.internal_local else everywhere
    used = {inside}
    if is_open(service, port):
        used |= {everywhere, local} if service.external_local else {everywhere}
    policies = {everywhere: chosen(port), local: chosen(port, node)}
    of_chain = {chain: endpoints for chain, endpoints in policies.items() if chain in used and endpoints}
    for endpoint in dict.fromkeys(e for endpoints in of_chain.values() for e in endpoints):
        yield _chain(
            endpoint_chain(service, port, endpoint),
            f"{ip} saddr {endpoint.ip} jump mark-for-masquerade",
            f"meta l4proto {protocol} dnat to {address_of(endpoint)}",
        )
    for chain, endpoints in of_chain.items():
        choice = ", ".join(f"{n} : goto {endpoint_chain(service, port, e)}" for n, e in enumerate(endpoints))
        to_vip = f"{ip} daddr {vip} {protocol} dport {port.port}"
        masquerade = f"{to_vip} {ip} saddr != {cluster_cidr} jump mark-for-masquerade"
        yield _chain(
            chain,
            *((masquerade,) if chain == inside else ()),
            f"numgen random mod {len(endpoints)} vmap {{ {choice} }}",
        )
    if not is_open(service, port) or not policies[everywhere]:
        return
    if not service.external_local:
        yield _chain(f"external-{_base(service, port)}", "jump mark-for-masquerade", f"goto {everywhere}")
        return
    yield _chain(
        f"external-{_base(service, port)}",
        f'{ip} saddr {cluster_cidr} goto {everywhere} comment "short-circuit pod traffic"',
        'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"',
        f'fib saddr type local goto {everywhere} comment "short-circuit local traffic"',
        *((f"goto {local}",) if policies[local] else ()),
    )


def service_chain(service: Service, port: ServicePort) -> str:
    """service-...: pkg/proxy/nftables/proxier.go, servicePortPolicyClusterChainName."""
    return f"service-{_base(service, port)}"


def local_chain(service: Service, port: ServicePort) -> str:
    """local-...: servicePortPolicyLocalChainName, of the endpoints on the node."""
    return f"local-{_base(service, port)}"


def endpoint_chain(service: Service, port: ServicePort, endpoint: Endpoint) -> str:
    """endpoint-...: servicePortEndpointChainNameBase, which has dots for an address's colons."""
    address = str(endpoint.ip).replace(":", ".")
    return f"endpoint-{_hashed(f'{_plain(service, port)}__{address}/{endpoint.port}')}"


def _base(service: Service, port: ServicePort) -> str:
    return _hashed(_plain(service, port))


def _plain(service: Service, port: ServicePort) -> str:
    return f"{service.key}/{port.protocol.lower()}/{port.name}"


def _hashed(name: str) -> str:
    return f"{base64.b32encode(hashlib.sha256(name.encode()).digest()).decode('ascii')[:8]}-{name}"
