"""What a name stands for once an Inventory has been asked: addresses, a port, and who is behind them.

`Target` is what `k8snet.cluster.names` answers and what a trace filters on. Addresses are as the client writes them
into its packets: a Service's ClusterIP, not its endpoints'.
"""

from __future__ import annotations

from dataclasses import dataclass

from k8snet.cluster.inventory import Endpoint, Node, Pod, Protocol, Service, ServicePort
from k8snet.event import Address


@dataclass(frozen=True, slots=True)
class Target:
    """One side of the flow to trace."""

    text: str  # as the report prints it: "pod/shop/cart", "svc/shop/payments", "no/node-1", "192.0.2.1"
    addresses: tuple[Address, ...]  # IPv4 and IPv6 of a dual-stack object, or of all its pods; empty: `outside`
    port: int | None = None  # None: any
    protocol: Protocol | None = None  # where the name settles it; None: any
    pod: Pod | None = None
    service: Service | None = None
    service_port: ServicePort | None = None  # None when the service has several that fit
    node: Node | None = None
    all_endpoints: tuple[Endpoint, ...] = ()  # of the ports that fit, ready or not
    outside: bool = False  # `external`: whatever is not in the cluster
    workload: str | None = None  # the client was named as this, "deploy/shop/cart", and is one of `pods`
    pods: tuple[Pod, ...] = ()  # of `workload`: those that run, the best first
    notes: tuple[str, ...] = ()  # what the user should know of how the name was understood

    @property
    def backends(self) -> tuple[tuple[Address, int], ...]:
        """Where kube-proxy may send to: the ready endpoints with their real ports."""
        return tuple(dict.fromkeys((e.ip, e.port) for e in self.all_endpoints if e.ready))
