"""Which endpoints a node's kube-proxy sends a client to, and what becomes of the packet when there is none.

In: a Service's port, the node, and the door that the client uses. Out: an `Answer`, known before any packet: with no
endpoints at all the client is refused, with a traffic policy `Local` and none on this node the packet is dropped. In
IPVS mode there are no rules that could drop it: there the client is refused, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from k8snet.cluster.inventory import Endpoint, Service, ServicePort
from k8snet.event import Address


class Door(Enum):
    """How a client comes to a Service."""

    INSIDE = "ClusterIP"  # from a pod or a node
    OUTSIDE = "NodePort, load balancer or external IP"  # from outside of the cluster
    OUTSIDE_FROM_WITHIN = "the same, from a pod or from the node itself"


class Fate(Enum):
    """What kube-proxy does with a packet to a Service."""

    SERVED = "served"
    REJECTED = "rejected"  # "has no endpoints"
    DROPPED = "dropped"  # "has no local endpoints"


@dataclass(frozen=True, slots=True)
class Answer:
    """The endpoints that one node chooses from; `policy`: the field of the Service that leaves none of those it has."""

    fate: Fate
    endpoints: tuple[Endpoint, ...] = ()
    policy: str = ""


def door_of(service: Service, address: Address, *, within: bool) -> Door:
    """By which door a client comes that uses this address; `within`: it is a pod, or the node that is asked."""
    if address in service.cluster_ips:
        return Door.INSIDE
    return Door.OUTSIDE_FROM_WITHIN if within else Door.OUTSIDE


def answer(
    service: Service, port: ServicePort, node: str, door: Door = Door.INSIDE, *, is_ipvs: bool = False
) -> Answer:
    """What `node` does with a packet to this port. For kube-proxy (KEP-1669, KEP-2086); others may differ."""
    usable = _usable(port.endpoints)
    # A client within the cluster that asks for an outer address is sent to any endpoint: it need not leave the node.
    local = {
        Door.INSIDE: service.internal_local and "internalTrafficPolicy",
        Door.OUTSIDE: service.external_local and "externalTrafficPolicy",
        Door.OUTSIDE_FROM_WITHIN: "",
    }[door]
    if not usable:
        return Answer(Fate.REJECTED)
    if not local:
        return Answer(Fate.SERVED, usable)
    here = _usable(tuple(end for end in port.endpoints if end.node == node))
    if here:
        return Answer(Fate.SERVED, here)
    if not is_ipvs:
        return Answer(Fate.DROPPED, policy=local)
    # pkg/proxy/ipvs/proxier.go, syncEndpoint: a ClusterIP's virtual server is left without anybody; an outer address
    # is sent to any endpoint, for the sake of clients within (kubernetes/kubernetes#97081).
    return Answer(Fate.REJECTED, policy=local) if door is Door.INSIDE else Answer(Fate.SERVED, usable)


def _usable(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Those that are ready; with none, those that are on their way out and still serve (KEP-1669)."""
    ready = tuple(end for end in endpoints if end.ready)
    return ready or tuple(end for end in endpoints if end.serving and end.terminating)
