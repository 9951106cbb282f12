"""What Kubernetes says there is: pods, services, nodes, what owns and selects them. Immutable, for the whole pipeline.

An `Inventory` says nothing about this machine (netns, devices): that is `k8snet.cluster.interfaces`. Names are
`namespace/name`, as kubectl's users write them. Only pods, services, endpoints and nodes are needed; the rest makes
more names work (`deploy/cart`, `ing/shop`) and may be missing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal

from k8snet.event import Address

# Seconds that a pod keeps its name after its end: its last packets are still under way.
KEPT: Final = 60.0

Protocol = Literal["TCP", "UDP", "SCTP"]
PROTOCOLS: Final[Mapping[int, Protocol]] = {
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
}
Labels = tuple[tuple[str, str], ...]
WorkloadKind = Literal["deploy", "rs", "sts", "ds", "job", "cj"]


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller in an object's ownerReferences; `kind` as Kubernetes spells it: ReplicaSet, Rollout, Node."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Selector:
    """A LabelSelector; an empty one selects everything."""

    labels: Labels = ()
    expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # (key, operator, values)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """All its requirements hold; one with an operator that nobody knows never does."""
        return all(labels.get(key) == value for key, value in self.labels) and all(
            _holds(labels.get(key), operator, values) for key, operator, values in self.expressions
        )

    def __str__(self) -> str:
        """As the API's `labelSelector` and `kubectl -l` take it."""
        sets = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}
        own = [f"{key}={value}" for key, value in self.labels]
        own += [sets[op].format(key, ",".join(values)) for key, op, values in self.expressions if op in sets]
        return ",".join(own)


def _holds(value: str | None, operator: str, values: tuple[str, ...]) -> bool:
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values  # true of what has no such label, too
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False


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
    labels: Labels = ()
    named_ports: tuple[tuple[str, Protocol, int], ...] = ()  # (port name, protocol, containerPort)
    owner: Owner | None = None
    ready: bool = True  # False only when its Ready condition says so
    terminating: bool = False
    source: str = ""  # who named it, where that was not Kubernetes: "containerd", "/var/log/pods"

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
    zone: str | None = None


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
    """One Service; `cluster_ips` is empty for a headless one and for an ExternalName."""

    namespace: str
    name: str
    cluster_ips: tuple[Address, ...]
    ports: tuple[ServicePort, ...]
    type: str = "ClusterIP"
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    load_balancer_names: tuple[str, ...] = ()  # where the cloud gives a DNS name and no address
    external_name: str | None = None  # the DNS name that an ExternalName stands for
    affinity: int | None = None  # sessionAffinity ClientIP: seconds for which a client keeps its backend
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local
    publishes_not_ready: bool = False  # its DNS names have the addresses of pods that are not ready
    headless_families: tuple[int, ...] = ()  # 4, 6: of a headless one; the others' addresses say it
    selector: Labels = ()  # of its pods; empty when somebody else makes its endpoints

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def headless(self) -> bool:
        """It has endpoints and no address: DNS gives the endpoints' own."""
        return not self.cluster_ips and self.type != "ExternalName"

    @property
    def families(self) -> tuple[int, ...]:
        """4, 6 or both, the first one first."""
        return tuple(ip.version for ip in self.cluster_ips) or self.headless_families

    @property
    def outer_ips(self) -> tuple[Address, ...]:
        """Addresses that clients outside of the cluster use: kube-proxy translates them as it does a ClusterIP."""
        return tuple(dict.fromkeys((*self.load_balancer_ips, *self.external_ips)))


@dataclass(frozen=True, slots=True)
class SlicePort:
    """One port of an EndpointSlice with the slice's endpoints."""

    name: str
    protocol: Protocol
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """One EndpointSlice; `service` is None when it was made by hand for something else."""

    namespace: str
    name: str
    service: str | None
    ports: tuple[SlicePort, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What makes pods: a Deployment, ReplicaSet, StatefulSet, DaemonSet, Job or CronJob."""

    kind: WorkloadKind
    namespace: str
    name: str
    selector: Selector | None = None  # None: a CronJob, which selects nothing
    owner: Owner | None = None

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Route:
    """One way through an Ingress: a host and path (empty: any) to a port of a service in its namespace."""

    host: str
    path: str
    service: str
    port: str  # a number or the service port's name; empty: not said


@dataclass(frozen=True, slots=True)
class Ingress:
    """One Ingress; the default backend is the route without host and path."""

    namespace: str
    name: str
    routes: tuple[Route, ...] = ()
    ips: tuple[Address, ...] = ()  # where its controller can be reached, if it says so

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PolicyPeer:
    """Whom a rule of a NetworkPolicy allows: the pods of both selectors, or an IP block."""

    pods: Selector | None = None  # None: all pods of `namespaces`
    namespaces: Selector | None = None  # None: the policy's own
    block: str | None = None  # "10.0.0.0/8"
    excepted: tuple[str, ...] = ()  # parts of the block that are not allowed


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """One port, or several, that a rule allows."""

    protocol: Protocol
    port: int | str | None = None  # a number, the name of a container's port, or None for all
    end: int | None = None  # the last one, where it is a range


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule of a NetworkPolicy: any of these peers at any of these ports; no peers, or no ports: all of them."""

    peers: tuple[PolicyPeer, ...] = ()
    ports: tuple[PolicyPort, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One NetworkPolicy: which pods it is about, in which direction, and what it allows there."""

    namespace: str
    name: str
    selector: Selector
    ingress: bool
    egress: bool
    ingress_rules: tuple[PolicyRule, ...] = ()
    egress_rules: tuple[PolicyRule, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def selects(self, pod: Pod) -> bool:
        """The policy is about this pod; hostNetwork pods are beyond most network plugins."""
        return pod.namespace == self.namespace and self.selector.matches(dict(pod.labels))


@dataclass(frozen=True, slots=True)
class Node:
    """One node and its addresses (InternalIP and others)."""

    name: str
    ips: tuple[Address, ...]
    pod_cidrs: tuple[str, ...] = ()
    ready: bool = True  # False only when its Ready condition says so, or that nobody knows


@dataclass(frozen=True)
class Inventory:
    """Everything known of the cluster, from one look."""

    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    nodes: tuple[Node, ...] = ()
    source: str = field(default="none", compare=False)  # where it came from, for messages
    workloads: tuple[Workload, ...] = ()
    ingresses: tuple[Ingress, ...] = ()
    policies: tuple[NetworkPolicy, ...] = ()
    # Not compared: the services hold the same endpoints, joined.
    slices: tuple[EndpointSlice, ...] = field(default=(), compare=False)

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

    @cached_property
    def pod_by_key(self) -> dict[str, Pod]:
        """Pods by `namespace/name`."""
        return {pod.key: pod for pod in self.pods}

    @cached_property
    def service_by_outer_ip(self) -> dict[Address, tuple[Service, ...]]:
        """Services by load balancer and external IPs, which several may share, each with ports of its own."""
        found: dict[Address, tuple[Service, ...]] = {}
        for service in self.services:
            for ip in service.outer_ips:
                found[ip] = (*found.get(ip, ()), service)
        return found

    def service_at(self, address: Address, port: int) -> Service | None:
        """Whose ClusterIP or outer IP this is; the port only decides between services that share it."""
        if service := self.service_by_ip.get(address):
            return service
        sharing = self.service_by_outer_ip.get(address, ())
        own = [service for service in sharing if any(p.port == port for p in service.ports)]
        return own[0] if own else sharing[0] if len(sharing) == 1 else None

    def node_port_at(
        self, address: Address, number: int, protocol: str | None = None
    ) -> tuple[Service, ServicePort] | None:
        """Whose NodePort this is, if the address is a node's; `protocol` as Services spell it, None: any."""
        if address not in self.node_by_ip:
            return None
        return next(
            (
                (service, port)
                for service in self.services
                for port in service.ports
                if port.node_port == number and protocol in (None, port.protocol)
            ),
            None,
        )

    @cached_property
    def pod_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The nodes' podCIDRs."""
        return tuple(ip_network(cidr) for node in self.nodes for cidr in node.pod_cidrs)

    def is_inside(self, address: Address) -> bool:
        """The address is a pod's, a service's or a node's, or of a node's podCIDR: not outside of the cluster."""
        known = (self.pod_by_ip, self.service_by_ip, self.service_by_outer_ip, self.node_by_ip)
        return any(address in table for table in known) or any(address in network for network in self.pod_networks)

    def policies_of(self, pod: Pod) -> tuple[NetworkPolicy, ...]:
        """The policies that select this pod."""
        return tuple(policy for policy in self.policies if policy.selects(pod))
