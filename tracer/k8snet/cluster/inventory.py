"""What Kubernetes says there is: pods, services, nodes. Immutable, so that the pipeline can be handed it.

An `Inventory` says nothing about this machine (netns, devices): that is `k8snet.cluster.interfaces`. Names are
`namespace/name`, as kubectl's users write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from k8snet.event import Address

Protocol = Literal["TCP", "UDP", "SCTP"]


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod; `ips` is empty until the pod has an address, `node` until it is scheduled."""

    namespace: str
    name: str
    uid: str
    node: str | None
    ips: tuple[Address, ...]
    host_network: bool
    phase: str
    labels: tuple[tuple[str, str], ...] = ()
    named_ports: tuple[tuple[str, Protocol, int], ...] = ()  # (port name, protocol, containerPort)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def finished(self) -> bool:
        """All its containers have ended for good; the API keeps showing the address that it had."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind a service port, from an EndpointSlice."""

    ip: Address
    port: int
    pod: str | None  # namespace/name
    node: str | None
    ready: bool
    serving: bool = True
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service with the endpoints behind it."""

    name: str
    protocol: Protocol
    port: int
    target_port: str  # as in the object: a number or a container port's name
    node_port: int | None = None
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def ready(self) -> tuple[Endpoint, ...]:
        """The endpoints kube-proxy may send to."""
        return tuple(e for e in self.endpoints if e.ready)


@dataclass(frozen=True, slots=True)
class Service:
    """One Service; `cluster_ips` is empty for a headless one."""

    namespace: str
    name: str
    cluster_ips: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    type: str = "ClusterIP"

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """One node and its addresses (InternalIP and others)."""

    name: str
    ips: tuple[Address, ...]
    pod_cidrs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inventory:
    """Everything known of the cluster, from one look."""

    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    source: str = field(default="none", compare=False)  # where it came from, for messages

    @cached_property
    def pod_by_ip(self) -> dict[Address, Pod]:
        """Pods with an address of their own (a hostNetwork pod's is its node's, a finished pod's may be another's)."""
        return {ip: pod for pod in self.pods if not pod.host_network and not pod.finished for ip in pod.ips}

    @cached_property
    def service_by_ip(self) -> dict[Address, Service]:
        """Services by ClusterIP."""
        return {ip: service for service in self.services for ip in service.cluster_ips}

    @cached_property
    def node_by_ip(self) -> dict[Address, Node]:
        """Nodes by any of their addresses."""
        return {ip: node for node in self.nodes for ip in node.ips}
