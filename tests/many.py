"""A cluster of many Services, for what has to work at that size: rule naming."""

from __future__ import annotations

from ipaddress import IPv4Address

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Service, ServicePort

CLUSTER_CIDR = "10.244.0.0/16"
NODE = Node("node", (IPv4Address("192.0.2.1"),))


def many(services: int, without_endpoints: int) -> Inventory:
    """Services of one port; the last ones have no endpoints. One with an endpoint makes five rules, else one."""
    found = []
    for number in range(services):
        endpoint = Endpoint(IPv4Address("10.244.0.10") + number, 8080, None, None, ready=True)
        endpoints = () if number >= services - without_endpoints else (endpoint,)
        port = ServicePort("http", "TCP", 80, "8080", endpoints=endpoints)
        found.append(Service("shop", f"service-{number}", (IPv4Address("10.96.0.10") + number,), (port,)))
    return Inventory(services=tuple(found), nodes=(NODE,), source="many")
