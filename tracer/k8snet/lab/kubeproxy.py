"""What kube-proxy (iptables mode) writes for a set of Services: Inventory in, iptables-restore text out.

The text is in the form in which iptables-save prints these rules back, so that a rule that a trace names can be
compared with it letter by letter; a unit test compares it with rules that a real kube-proxy wrote. Rules for session
affinity and load balancers are not written: the lab has neither. Nodes differ by the traffic policies `Local` alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Service, ServicePort

_SERVICES = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_NEW = "-m conntrack --ctstate NEW -m comment --comment"
_FIREWALL = f'{_NEW} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
_EXTERNAL = f'{_NEW} "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'
_CANARY = "KUBE-PROXY-CANARY"
_NODEPORTS = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"

# The rules that do not depend on any Service: pkg/proxy/iptables/proxier.go (iptablesJumpChains, the end of
# syncProxyRules) and pkg/kubelet's KUBE-FIREWALL.
_FILTER = (
    "-A INPUT -j KUBE-FIREWALL",
    f"-A INPUT {_FIREWALL}",
    '-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
    f"-A INPUT {_EXTERNAL}",
    f"-A FORWARD {_FIREWALL}",
    '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
    f'-A FORWARD {_NEW} "kubernetes service portals" -j KUBE-SERVICES',
    f"-A FORWARD {_EXTERNAL}",
    "-A OUTPUT -j KUBE-FIREWALL",
    f"-A OUTPUT {_FIREWALL}",
    f'-A OUTPUT {_NEW} "kubernetes service portals" -j KUBE-SERVICES',
    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections"'
    " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
    '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule"'
    " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)
_NAT = (
    f"-A PREROUTING {_SERVICES}",
    f"-A OUTPUT {_SERVICES}",
    '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
    '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
)
_MANGLE_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_FILTER_CHAINS = ("INPUT", "FORWARD", "OUTPUT")
_NAT_CHAINS = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
_FILTER_OWN = (
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    _CANARY,
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
)
_NAT_OWN = ("KUBE-MARK-MASQ", "KUBE-NODEPORTS", "KUBE-POSTROUTING", _CANARY, "KUBE-SERVICES")


def rules(inventory: Inventory, cluster_cidr: str, node: Node) -> str:
    """The ruleset of `node` for iptables-restore, of an IPv6 `cluster_cidr` for ip6tables-restore."""
    version = ip_network(cluster_cidr).version
    inventory = of_family(inventory, version)
    # kubelet writes its one rule against martians for IPv4 only: IPv6 has no 127.0.0.0/8.
    fixed = tuple(rule for rule in _FILTER if version == 4 or "127.0.0.0/8" not in rule)
    nat: list[str] = []
    filtered: list[str] = []
    outer: list[str] = []
    for service, port in ports(inventory):
        nat += _service(service, port, node, cluster_cidr)
        outer += _outer(service, port, node, cluster_cidr)
        filtered += _refused(service, port, node)
    nat.append(f'-A KUBE-SERVICES -m comment --comment "{_NODEPORTS}" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS')
    nat += outer
    chains = sorted({rule.split()[1] for rule in nat} - set(_NAT_OWN))
    return "".join(
        (
            _table("mangle", _MANGLE_CHAINS, (_CANARY,), ()),
            _table("filter", _FILTER_CHAINS, _FILTER_OWN, (*fixed, *filtered)),
            _table("nat", _NAT_CHAINS, tuple(sorted((*_NAT_OWN, *chains))), (*_NAT, *sorted(nat, key=_chain))),
        )
    )


def of_family(inventory: Inventory, version: int) -> Inventory:
    """The Services as the kube-proxy of one IP family sees them."""
    services = tuple(
        replace(
            service,
            cluster_ips=tuple(ip for ip in service.cluster_ips if ip.version == version),
            external_ips=tuple(ip for ip in service.external_ips if ip.version == version),
            ports=tuple(
                replace(port, endpoints=tuple(e for e in port.endpoints if e.ip.version == version))
                for port in service.ports
            ),
        )
        for service in inventory.services
    )
    return replace(inventory, services=services)


def _table(name: str, builtin: tuple[str, ...], own: tuple[str, ...], rules: tuple[str, ...]) -> str:
    lines = [f"*{name}", *(f":{c} ACCEPT [0:0]" for c in builtin), *(f":{c} - [0:0]" for c in own), *rules, "COMMIT"]
    return "\n".join(lines) + "\n"


def _chain(rule: str) -> str:
    return rule.split()[1]


def ports(inventory: Inventory) -> Iterator[tuple[Service, ServicePort]]:
    """The Service ports that kube-proxy writes something for."""
    return ((service, port) for service in inventory.services if service.cluster_ips for port in service.ports)


def chosen(port: ServicePort, node: Node | None = None) -> tuple[Endpoint, ...]:
    """Ready endpoints, else those that still serve while they terminate (KEP-1669); only those of `node`, if given."""
    known = [e for e in port.endpoints if node is None or e.node == node.name]
    return tuple(e for e in known if e.ready) or tuple(e for e in known if e.serving and e.terminating)


def port_name(service: Service, port: ServicePort) -> str:
    """kube-proxy's name for a service port, in comments and hashes: `namespace/name:port name`."""
    return f"{service.key}:{port.name}" if port.name else service.key


def service_chain(service: Service, port: ServicePort) -> str:
    """KUBE-SVC-...: pkg/proxy/iptables/proxier.go, servicePortPolicyClusterChain."""
    return f"KUBE-SVC-{_hash(port_name(service, port) + port.protocol.lower())}"


def local_chain(service: Service, port: ServicePort) -> str:
    """KUBE-SVL-...: servicePortPolicyLocalChainName, of the endpoints on the node."""
    return f"KUBE-SVL-{_hash(port_name(service, port) + port.protocol.lower())}"


def endpoint_chain(service: Service, port: ServicePort, endpoint: Endpoint) -> str:
    """KUBE-SEP-...: servicePortEndpointChainName."""
    address = address_of(endpoint)
    return f"KUBE-SEP-{_hash(port_name(service, port) + port.protocol.lower() + address)}"


def address_of(endpoint: Endpoint) -> str:
    """`10.244.1.11:8080`, `[fd00::1]:8080`."""
    return f"[{endpoint.ip}]:{endpoint.port}" if endpoint.ip.version == 6 else f"{endpoint.ip}:{endpoint.port}"


def _only(ip: IPv4Address | IPv6Address) -> str:
    return f"{ip}/{ip.max_prefixlen}"


def _hash(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode("ascii")[:16]


def _refused(service: Service, port: ServicePort, node: Node) -> Iterator[str]:
    """What is rejected since there is no endpoint, and dropped since there is none on this node."""
    anywhere, here = chosen(port), chosen(port, node)
    name, protocol = port_name(service, port), port.protocol.lower()
    icmp = "icmp6" if service.cluster_ips[0].version == 6 else "icmp"
    why = "no local endpoints" if anywhere else "no endpoints"
    comment = f'-p {protocol} -m comment --comment "{name} has {why}"'
    end = "DROP" if anywhere else f"REJECT --reject-with {icmp}-port-unreachable"
    if not (here if service.internal_local else anywhere):
        to_vip = f"-d {_only(service.cluster_ips[0])} {comment}"
        yield f"-A KUBE-SERVICES {to_vip} -m {protocol} --dport {port.port} -j {end}"
    if here if service.external_local else anywhere:
        return
    for ip in service.external_ips:
        yield f"-A KUBE-EXTERNAL-SERVICES -d {_only(ip)} {comment} -m {protocol} --dport {port.port} -j {end}"
    if port.node_port:
        to_node = f"{comment} -m addrtype --dst-type LOCAL"
        yield f"-A KUBE-EXTERNAL-SERVICES {to_node} -m {protocol} --dport {port.node_port} -j {end}"


def _service(service: Service, port: ServicePort, node: Node, cluster_cidr: str) -> Iterator[str]:
    anywhere, here = chosen(port), chosen(port, node)
    name, protocol = port_name(service, port), port.protocol.lower()
    policies = {service_chain(service, port): anywhere, local_chain(service, port): here}
    inside = local_chain(service, port) if service.internal_local else service_chain(service, port)
    used = {inside: policies[inside]}
    if is_open(service, port):
        # With the external policy Local, too: pods and the node itself may go to any endpoint.
        used[service_chain(service, port)] = anywhere
        if service.external_local:
            used[local_chain(service, port)] = here
    if policies[inside]:
        to_vip = (
            f'-d {_only(service.cluster_ips[0])} -p {protocol} -m comment --comment "{name} cluster IP"'
            f" -m {protocol} --dport {port.port}"
        )
        yield f"-A KUBE-SERVICES {to_vip} -j {inside}"
        yield f"-A {inside} ! -s {cluster_cidr} {to_vip} -j KUBE-MARK-MASQ"
    for ip in service.external_ips if anywhere else ():
        outer = (
            f'-d {_only(ip)} -p {protocol} -m comment --comment "{name} external IP" -m {protocol} --dport {port.port}'
        )
        yield f"-A KUBE-SERVICES {outer} -j {_external_chain(service, port)}"
    for chain, endpoints in used.items():
        for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
            dice = f" -m statistic --mode random --probability {_probability(left)}" if left > 1 else ""
            sep, to = endpoint_chain(service, port, endpoint), address_of(endpoint)
            yield f'-A {chain} -m comment --comment "{name} -> {to}"{dice} -j {sep}'
    for endpoint in dict.fromkeys(e for endpoints in used.values() for e in endpoints):
        sep, to = endpoint_chain(service, port, endpoint), address_of(endpoint)
        yield f'-A {sep} -s {_only(endpoint.ip)} -m comment --comment "{name}" -j KUBE-MARK-MASQ'
        yield f'-A {sep} -p {protocol} -m comment --comment "{name}" -m {protocol} -j DNAT --to-destination {to}'


def is_open(service: Service, port: ServicePort) -> bool:
    """It can be reached from outside of the cluster."""
    return bool(port.node_port or service.external_ips)


def _external_chain(service: Service, port: ServicePort) -> str:
    return f"KUBE-EXT-{_hash(port_name(service, port) + port.protocol.lower())}"


def _outer(service: Service, port: ServicePort, node: Node, cluster_cidr: str) -> Iterator[str]:
    """The NodePort, and what comes in by it or by an external IP."""
    if not is_open(service, port) or not chosen(port):
        return
    name, protocol = port_name(service, port), port.protocol.lower()
    external, chain = _external_chain(service, port), service_chain(service, port)
    if port.node_port:
        yield (
            f'-A KUBE-NODEPORTS -p {protocol} -m comment --comment "{name}"'
            f" -m {protocol} --dport {port.node_port} -j {external}"
        )

    def said(what: str) -> str:
        return f'-m comment --comment "{what} for {name} external destinations"'

    if not service.external_local:
        yield f"-A {external} {said('masquerade traffic')} -j KUBE-MARK-MASQ"
        yield f"-A {external} -j {chain}"
        return
    own = "-m addrtype --src-type LOCAL"
    yield f"-A {external} -s {cluster_cidr} {said('pod traffic')} -j {chain}"
    yield f"-A {external} {said('masquerade LOCAL traffic')} {own} -j KUBE-MARK-MASQ"
    yield f"-A {external} {said('route LOCAL traffic')} {own} -j {chain}"
    if chosen(port, node):
        yield f"-A {external} -j {local_chain(service, port)}"


def _probability(left: int) -> str:
    """1/left with kube-proxy's ten digits, then as the kernel keeps it (31 bits) and iptables-save prints it."""
    return f"{round(float(f'{1 / left:.10f}') * 2**31) / 2**31:.11f}"
