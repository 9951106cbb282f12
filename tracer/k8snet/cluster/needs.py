"""What has to be asked of the API so that a trace, or a map, can speak in names: no more than that.

In: a `Wish` (parsed names, addresses seen in packets, who we are) and what is known so far. Out: queries. Asked again
with the answers, until nothing is missing: the Service leads to its EndpointSlices and pods, the Deployment to its
pods, the nodes to the one that we are and its pods. A function of values; `k8snet.cluster.watch` does the asking.

Surprising: a single object is a list, too (metadata.name=cart), so that everything can be watched with two verbs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final

from k8snet.cluster.api import Query
from k8snet.cluster.inventory import Inventory, Labels, Pod, Service, Workload
from k8snet.cluster.names import Name, behind_dns
from k8snet.event import Address

NODES: Final = Query("nodes")
# Of these a service can have another address than its ClusterIP, and node ports. An ExternalName has neither.
OUTER: Final = Query("services", fields="spec.type!=ClusterIP,spec.type!=ExternalName")
_WORKLOADS: Final = {
    "deploy": "deployments",
    "rs": "replicasets",
    "sts": "statefulsets",
    "ds": "daemonsets",
    "job": "jobs",
    "cj": "cronjobs",
}
_OF_SERVICES: Final = (Query("services"), Query("endpointslices"), Query("networkpolicies"))
_FEW: Final = 16  # a guess: pods that are asked for one by one


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants names for."""

    client: Name | None = None
    server: Name | None = None
    namespace: str | None = None  # of names that have none; None: `default`, then all
    here: frozenset[Address] = frozenset()  # this machine's addresses ...
    hostname: str = ""  # ... and its name: which node it is
    pods_of: str = ""  # this node's pods: of this namespace, else of all
    seen: frozenset[Address] = frozenset()  # in packets, without a name
    wide: bool = False  # also what the names may have been meant to be
    watched: tuple[Name, ...] = ()  # further clients
    services: bool = False  # every Service with its endpoints and policies, as kube-proxy has them


def needed(
    wish: Wish, known: Inventory, asked: Collection[Query] = (), refused: Collection[Query] = ()
) -> frozenset[Query]:
    """What to ask; `asked` has been answered before (into `known`), or was not granted or understood (`refused`)."""
    found = _of_nodes(wish, known, asked)
    names = [name for name in (wish.client, wish.server, *wish.watched) if name is not None]
    found |= set(_OF_SERVICES) if wish.services else set()
    for name in names:
        found |= set(_of_name(wish, name, known, asked))
    for address in wish.seen:
        found |= set(_of_address(address, known, asked, client=True))
    spaces = {name.namespace or wish.namespace or "default" for name in names}
    return frozenset(narrow for query in found for narrow in _granted(query, spaces, refused))


def our_nodes(wish: Wish, known: Inventory, asked: Collection[Query] = (NODES,)) -> set[str]:
    """The nodes that this machine is: by address, else by name; by name alone while the nodes are not for us to see.

    Several, where the nodes are containers.
    """
    ours = {node.name for ip, node in known.node_by_ip.items() if ip in wish.here}
    own = wish.hostname.lower()
    if not ours and own and (any(node.name == own for node in known.nodes) or (NODES in asked and not known.nodes)):
        ours = {own}
    return ours


def is_lookup(query: Query) -> bool:
    """The query asks for one object; when it finds nothing there is nothing to watch."""
    return query.fields.startswith(("metadata.name=", "status.podIP=", "spec.clusterIP="))


def _granted(query: Query, spaces: Iterable[str], refused: Collection[Query]) -> Iterator[Query]:
    """The query, and what can be asked instead."""
    yield query
    if query in refused and query == OUTER:  # Kubernetes 1.30 and before: no selector for it (pull request 122541)
        yield Query("services")
    # Who may not ask it of all namespaces may perhaps ask it of those that were named.
    if query in refused and not query.namespace and query != NODES:
        yield from (replace(query, namespace=space) for space in spaces)


def _of_name(wish: Wish, name: Name, known: Inventory, asked: Collection[Query]) -> Iterator[Query]:
    client = name is not wish.server
    name = behind_dns(name, known)
    if name.address:
        yield from _of_address(name.address, known, asked, client=client)
        pod = known.pod_by_ip.get(name.address)
        yield from (Query("networkpolicies", pod.namespace),) if pod else ()
        if not client:
            yield from _of_services(_at(name, known), known, asked)
            if name.address in known.node_by_ip and name.port:
                yield OUTER
        return
    if name.kind == "no":
        if name.port and not client:
            yield OUTER
            yield from _of_services(_on_port(name, known), known, asked)
        return
    if name.external:
        if not client:  # what is not outside has to be known
            yield Query("services")
            if not _in_networks(wish, known, asked):
                yield Query("pods")
        return
    given = name.namespace or wish.namespace
    place = given or "default"
    lookups = {replace(query, namespace=place) for query in _lookups(name)}
    yield from lookups
    pods, services, workloads = _found(name, place, known)
    yield from (Query("services", space, f"metadata.name={own}") for space, own in _behind(name, place, known))
    if not given and lookups <= set(asked) and not (pods or workloads or (services and not client)):
        yield from _lookups(name)
        pods, services, workloads = _found(name, "", known)
        yield from (Query("services", space, f"metadata.name={own}") for space, own in _behind(name, "", known))
    for space, other in _dns(name):
        yield other
        services += [s for s in known.services if (s.namespace, f"metadata.name={s.name}") == (space, other.fields)]
        pods += [p for p in known.pods if (p.namespace, f"metadata.name={p.name}") == (space, other.fields)]
    if not client:  # a service opens no connections: that it is one is all that a message needs
        yield from _of_services(services, known, asked)
    for workload in workloads:
        yield from _of_workload(workload, known)
    yield from (Query("networkpolicies", pod.namespace) for pod in pods)
    yield from (Query("networkpolicies", workload.namespace) for workload in workloads)
    if wish.wide:
        kinds = dict.fromkeys(("pods", "services", *(query.resource for query in _lookups(name))))
        yield from (Query(resource, given or "") for resource in kinds)


def _in_networks(wish: Wish, known: Inventory, asked: Collection[Query]) -> bool:
    """The nodes' podCIDRs tell who is a pod: they do where our own pods are inside, for some plugins ignore them.

    Also while that is not known yet: a list of all pods is not asked for lightly.
    """
    ours = [pod for pod in known.pods if pod.node in our_nodes(wish, known, asked) and not pod.host_network]
    pending = any(query not in asked for query in _of_nodes(wish, known, asked))
    inside = all(any(ip in network for network in known.pod_networks) for pod in ours for ip in pod.ips)
    return pending or (bool(ours) and inside)


def _of_nodes(wish: Wish, known: Inventory, asked: Collection[Query]) -> set[Query]:
    """The nodes, and the pods of those that we are."""
    ours = our_nodes(wish, known, asked)
    return {NODES, *(Query("pods", wish.pods_of, f"spec.nodeName={node}") for node in ours)}


def _lookups(name: Name) -> list[Query]:
    """Every object, in all namespaces, that the name itself can mean."""
    resources = {
        None: ("pods", "services"),
        "po": ("pods",),
        "svc": ("services",),
        "ep": ("endpointslices", "services"),
        "ing": ("ingresses",),
    }.get(name.kind) or (_WORKLOADS[name.kind or ""],)
    return [Query(resource, fields=f"metadata.name={name.name}") for resource in resources]


def _found(name: Name, space: str, known: Inventory) -> tuple[list[Pod], list[Service], list[Workload]]:
    """What has this name and kind in the namespace ("": in any)."""

    def fits(namespace: str, own: str) -> bool:
        return own == name.name and space in ("", namespace)

    pods = [p for p in known.pods if name.kind in (None, "po") and fits(p.namespace, p.name)]
    behind = _behind(name, space, known)
    services = [
        s
        for s in known.services
        if (name.kind in (None, "svc", "ep") and fits(s.namespace, s.name)) or (s.namespace, s.name) in behind
    ]
    workloads = [w for w in known.workloads if w.kind == name.kind and fits(w.namespace, w.name)]
    return pods, services, workloads


def _behind(name: Name, space: str, known: Inventory) -> set[tuple[str, str]]:
    """The services, by namespace and name, that an Ingress or EndpointSlice of this name belongs to."""
    pairs: list[tuple[str, str, str | None]] = []
    if name.kind == "ing":
        pairs += [(i.namespace, i.name, route.service) for i in known.ingresses for route in i.routes]
    elif name.kind == "ep":
        pairs += [(part.namespace, part.name, part.service) for part in known.slices]
    return {(at, service) for at, own, service in pairs if service and own == name.name and space in ("", at)}


def _dns(name: Name) -> Iterator[tuple[str, Query]]:
    """What a DNS name of the cluster can mean: web.shop, web.shop.svc..., web-0.web.shop.svc..."""
    labels = name.name.removesuffix(".").split(".")
    if name.namespace or name.kind not in (None, "svc"):
        return
    if labels[3:4] == ["svc"]:
        yield labels[2], Query("pods", labels[2], f"metadata.name={labels[0]}")
        yield labels[2], Query("services", labels[2], f"metadata.name={labels[1]}")
    elif len(labels) == 2 or labels[2:3] == ["svc"]:
        yield labels[1], Query("services", labels[1], f"metadata.name={labels[0]}")


def _of_services(services: Iterable[Service], known: Inventory, asked: Collection[Query]) -> Iterator[Query]:
    """The endpoints of services, the pods behind them, and the policies of those."""
    for service in services:
        yield Query("endpointslices", service.namespace, labels=f"kubernetes.io/service-name={service.name}")
        yield Query("networkpolicies", service.namespace)
        chosen = Query("pods", service.namespace, labels=_equal(service.selector))
        if service.selector:
            yield chosen
        if not service.selector or chosen in asked:  # endpoints may be somebody's own making
            ends = dict.fromkeys(end.pod for port in service.ports for end in port.endpoints if end.pod)
            for space, _, name in [key.partition("/") for key in ends if key not in known.pod_by_key][:_FEW]:
                yield Query("pods", space, f"metadata.name={name}")


def _of_workload(workload: Workload, known: Inventory) -> Iterator[Query]:
    """The pods of a workload, and what stands between it and them."""
    if workload.selector is not None:
        yield Query("pods", workload.namespace, labels=str(workload.selector))
    elif workload.kind == "cj":
        yield Query("jobs", workload.namespace)
        for other in known.workloads:
            owner = other.owner
            if (
                other.namespace == workload.namespace
                and owner
                and (owner.kind, owner.name) == ("CronJob", workload.name)
            ):
                yield from _of_workload(other, known)


def _of_address(address: Address, known: Inventory, asked: Collection[Query], *, client: bool) -> Iterator[Query]:
    """Who has the address; the API finds a pod by its first address, and a service by its first ClusterIP."""
    lookups = [Query("pods", fields=f"status.podIP={address}")]
    if not client:
        lookups.append(Query("services", fields=f"spec.clusterIP={address}"))
    tables = (known.pod_by_ip, known.node_by_ip, known.service_by_ip, known.service_by_outer_ip)
    if any(address in table for table in tables):
        return
    yield from lookups
    if not set(lookups) <= set(asked):
        return
    for node in known.nodes:
        if any(address in ip_network(cidr) for cidr in node.pod_cidrs):
            yield Query("pods", fields=f"spec.nodeName={node.name}")
            return
    if not client:
        yield Query("services")  # a second ClusterIP, a load balancer's or an external one: there is no index of those


def _at(name: Name, known: Inventory) -> list[Service]:
    address = name.address
    if address is None:
        return []
    by_ip = known.service_by_ip.get(address)
    if by_ip:
        return [by_ip]
    return list(known.service_by_outer_ip.get(address, ())) or (
        _on_port(name, known) if address in known.node_by_ip else []
    )


def _on_port(name: Name, known: Inventory) -> list[Service]:
    """The services with this node port."""
    number = name.number
    return [s for s in known.services if number and any(port.node_port == number for port in s.ports)]


def _equal(labels: Labels) -> str:
    return ",".join(f"{key}={value}" for key, value in labels)
