"""Kubernetes objects in, values of the `Inventory` out: a function a kind, over plain dicts as JSON has them.

It makes no difference whether kubectl wrote them into a file, the API listed them or a watch sent them. `read` says
what is wrong with an object; `value_of` skips it, for a server is not mended by our complaint. `joined` ties the
values together: endpoints to the ports of their services, addresses to pods.

Surprising: a static pod's `uid` here is its kubernetes.io/config.hash, because that is how the node names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from ipaddress import AddressValueError, ip_address, ip_network
from typing import Any, Final, TypeVar, cast

from k8snet.cluster.inventory import (
    Endpoint,
    EndpointSlice,
    Ingress,
    Inventory,
    Labels,
    NetworkPolicy,
    Node,
    Owner,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Protocol,
    Route,
    Selector,
    Service,
    ServicePort,
    SlicePort,
    Workload,
    WorkloadKind,
)
from k8snet.errors import K8snetError
from k8snet.event import Address

RESOURCES: Final = (  # what kubectl is asked for; the first four are needed, the rest makes more names work
    "pods,services,endpointslices,nodes,deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,ingresses,"
    "networkpolicies"
)
KUBECTL: Final = f"kubectl get {RESOURCES} -A -o json"
REMEDY: Final = f"make it anew: {KUBECTL} > inventory.json"
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
_WORKLOADS: Final[Mapping[str, WorkloadKind]] = {
    "Deployment": "deploy",
    "ReplicaSet": "rs",
    "StatefulSet": "sts",
    "DaemonSet": "ds",
    "Job": "job",
    "CronJob": "cj",
}

T = TypeVar("T")
Value = Pod | Service | EndpointSlice | Node | Workload | Ingress | NetworkPolicy


def inventory_of(objects: Iterable[object], source: str) -> Inventory:
    """The inventory in Kubernetes objects that say their `kind`; others, and odd ones, are skipped."""
    return joined((value for body in objects if (value := value_of(body)) is not None), source)


def value_of(body: object, kind: str | None = None) -> Value | None:
    """One object's value; None for what is of no use here, or cannot be. A list's items do not say their `kind`."""
    if not isinstance(body, dict):
        return None
    said = kind or body.get("kind")
    try:
        return read(body, said) if isinstance(said, str) else None
    except K8snetError:
        return None


def read(body: Mapping[str, Any], kind: str, source: str = "", number: int = 0) -> Value | None:
    """One object's value, None for a kind that is of no use here; raises K8snetError that names object and field."""
    reader = READERS.get(kind)
    return reader(_Object(body, kind, source, number)) if reader else None


def joined(values: Iterable[Value], source: str) -> Inventory:
    """The inventory of all these values; of two with one name the later counts."""
    by_kind: dict[type[Value], dict[object, Value]] = {}
    for number, value in enumerate(values):
        found = by_kind.setdefault(type(value), {})
        match value:
            case Node():
                found[value.name] = value
            case Workload():
                found[value.kind, value.key] = value
            case EndpointSlice():
                found[number] = value
            case _:
                found[value.key] = value

    def every(kind: type[T]) -> tuple[T, ...]:
        return tuple(cast(Iterable[T], by_kind.get(cast(type[Value], kind), {}).values()))

    known = Inventory(
        every(Pod),
        every(Service),
        every(Node),
        source,
        every(Workload),
        every(Ingress),
        every(NetworkPolicy),
    )
    slices = tuple(_named(known, part) for part in every(EndpointSlice))
    return replace(known, services=_with_endpoints(known, slices), slices=slices)


def _named(known: Inventory, part: EndpointSlice) -> EndpointSlice:
    """The slice with the pods that its endpoints' addresses belong to, where it does not name them itself."""
    if all(end.pod or end.ip not in known.pod_by_ip for port in part.ports for end in port.endpoints):
        return part

    def named(end: Endpoint) -> Endpoint:
        pod = known.pod_by_ip.get(end.ip)
        return end if end.pod or pod is None else replace(end, pod=pod.key)

    ports = tuple(replace(port, endpoints=tuple(map(named, port.endpoints))) for port in part.ports)
    return replace(part, ports=ports)


def _with_endpoints(known: Inventory, slices: Iterable[EndpointSlice]) -> tuple[Service, ...]:
    """The services with their endpoints; kube-proxy joins by service, port name and protocol, and so do we."""
    behind: dict[tuple[str, str, Protocol], list[Endpoint]] = {}
    for part in slices:
        for port in part.ports if part.service else ():
            behind.setdefault((f"{part.namespace}/{part.service}", port.name, port.protocol), []).extend(port.endpoints)

    def served(service: Service, port: ServicePort) -> ServicePort:
        # One endpoint may stand in two slices while the controller moves it.
        ends = tuple(dict.fromkeys(behind.get((service.key, port.name, port.protocol), ())))
        return replace(port, endpoints=ends) if ends else port

    return tuple(replace(s, ports=tuple(served(s, port) for port in s.ports)) for s in known.services)


@cache
def _words(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


class _Object:
    """A decoded object with the words to say what is wrong with it."""

    def __init__(self, body: Mapping[str, Any], kind: str, source: str, number: int) -> None:
        self.body = body
        self.kind = kind
        self._source = source
        self._number = number

    def bad(self, path: str, why: str) -> K8snetError:
        """The error that field `path` is unusable."""
        metadata = self.body.get("metadata")
        names = metadata if isinstance(metadata, dict) else {}
        known = [str(names[part]) for part in ("namespace", "name") if names.get(part)]
        what = f"inventory {self._source}: {self.kind} {'/'.join(known) or f'(item {self._number})'}"
        return K8snetError(f"{what}: {path} {why}", REMEDY)

    def need(self, path: str, kind: type[T]) -> T:
        """The field at `path`, which must be there."""
        value = self.get(path, kind)
        if value is None or value == "":
            raise self.bad(path, "is missing")
        return value

    def get(self, path: str, kind: type[T]) -> T | None:
        """The field at `path`; None when it, or what holds it, is absent or null."""
        return self.pick(self.body, path, kind)

    def pick(self, body: Mapping[str, Any], path: str, kind: type[T], where: str = "") -> T | None:
        """As get(), inside a part of the object that `where` names."""
        value: Any = body
        for word in _words(path):
            if not isinstance(value, dict):
                raise self.bad(where + path, f"is inside {type(value).__name__}, not inside an object")
            value = value.get(word)
            if value is None:
                return None
        # bool is an int to Python, not to Kubernetes.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.bad(where + path, f"is {type(value).__name__}, expected {kind.__name__}")
        return value

    def parts(self, body: Mapping[str, Any], path: str, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each object of the list at `path`, with the words for it."""
        for number, part in enumerate(self.pick(body, path, list, where) or []):
            name = f"{where}{path}[{number}]"
            if not isinstance(part, dict):
                raise self.bad(name, f"is {type(part).__name__}, expected an object")
            yield f"{name}.", part

    def address(self, text: object, path: str) -> Address:
        """`text` as an IP address."""
        try:
            if isinstance(text, str):
                return ip_address(text)
        except (AddressValueError, ValueError):
            pass
        raise self.bad(path, f"is {text!r}, expected an IP address")

    def addresses(self, path: str) -> tuple[Address, ...]:
        """The list of IP addresses at `path`."""
        return tuple(self.address(text, path) for text in self.get(path, list) or [])

    def port(self, body: Mapping[str, Any], path: str, where: str) -> int | None:
        """The port number at `path`."""
        number = self.pick(body, path, int, where)
        if number is not None and not 0 < number < 65536:
            raise self.bad(where + path, f"is {number}, expected a port")
        return number

    def protocol(self, body: Mapping[str, Any], where: str) -> Protocol:
        """TCP unless the object says otherwise."""
        text = self.pick(body, "protocol", str, where) or "TCP"
        if text not in _PROTOCOLS:
            raise self.bad(f"{where}protocol", f"is {text!r}, expected TCP, UDP or SCTP")
        return cast(Protocol, text)

    def labels(self, path: str) -> Labels:
        """The map of strings at `path`, sorted."""
        return self._labels(self.body, path, "")

    def _labels(self, body: Mapping[str, Any], path: str, where: str) -> Labels:
        return tuple(
            sorted((str(key), str(value)) for key, value in (self.pick(body, path, dict, where) or {}).items())
        )

    def owner(self) -> Owner | None:
        """The controller that made this object; there is at most one (metav1.OwnerReference)."""
        for where, part in self.parts(self.body, "metadata.ownerReferences"):
            if self.pick(part, "controller", bool, where):
                kind, name = (self.pick(part, word, str, where) for word in ("kind", "name"))
                return Owner(kind, name) if kind and name else None
        return None

    def condition(self, kind: str) -> str | None:
        """The status of that condition: True, False or Unknown; None when there is none."""
        for where, part in self.parts(self.body, "status.conditions"):
            if part.get("type") == kind:
                return self.pick(part, "status", str, where)
        return None

    def selector(self, path: str) -> Selector:
        """The LabelSelector at `path`; what is not there selects everything."""
        return self.selector_in(self.body, path, "")

    def selector_in(self, body: Mapping[str, Any], path: str, where: str) -> Selector:
        """The same inside a part of the object that `where` names."""
        expressions = tuple(
            (
                self.pick(part, "key", str, at) or "",
                self.pick(part, "operator", str, at) or "",
                tuple(map(str, self.pick(part, "values", list, at) or [])),
            )
            for at, part in self.parts(body, f"{path}.matchExpressions", where)
        )
        return Selector(self._labels(body, f"{path}.matchLabels", where), expressions)

    def network(self, text: object, path: str) -> str:
        """`text`, which must be a network."""
        try:
            ip_network(str(text))
        except ValueError:
            raise self.bad(path, f"is {text!r}, expected a network") from None
        return str(text)


def _pod(item: _Object) -> Pod:
    item.need("spec", dict)
    found = [part.get("ip") for _, part in item.parts(item.body, "status.podIPs")] or [item.get("status.podIP", str)]
    named: list[tuple[str, Protocol, int]] = []
    # A native sidecar is an init container whose ports are as good as any.
    for containers in ("spec.containers", "spec.initContainers"):
        for where, container in item.parts(item.body, containers):
            for at, port in item.parts(container, "ports", where):
                name, number = item.pick(port, "name", str, at), item.port(port, "containerPort", at)
                if name and number:
                    named.append((name, item.protocol(port, at), number))
    annotations = item.get("metadata.annotations", dict) or {}
    return Pod(
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        uid=str(annotations.get("kubernetes.io/config.hash") or item.get("metadata.uid", str) or ""),
        node=item.get("spec.nodeName", str) or None,
        ips=tuple(item.address(ip, "status.podIPs") for ip in found if ip),
        host_network=item.get("spec.hostNetwork", bool) or False,
        phase=item.get("status.phase", str) or "Unknown",
        labels=item.labels("metadata.labels"),
        named_ports=tuple(named),
        owner=item.owner(),
        ready=item.condition("Ready") in (None, "True"),
        terminating=item.get("metadata.deletionTimestamp", str) is not None,
    )


def _service(item: _Object) -> Service:
    ports: list[ServicePort] = []
    for where, port in item.parts(item.body, "spec.ports"):
        number = item.port(port, "port", where)
        if number is None:
            raise item.bad(f"{where}port", "is missing")
        ports.append(
            ServicePort(
                name=item.pick(port, "name", str, where) or "",
                protocol=item.protocol(port, where),
                port=number,
                target_port=str(port.get("targetPort") or number),
                # The API writes nodePort 0 for "none" when it is asked for an older version of the object.
                node_port=item.port(port, "nodePort", where) if port.get("nodePort") else None,
            )
        )
    item.need("spec", dict)
    ips = item.get("spec.clusterIPs", list) or [item.get("spec.clusterIP", str)]
    # "None", in that spelling, is how a headless service says that it has no address.
    cluster_ips = tuple(item.address(ip, "spec.clusterIPs") for ip in ips if ip and ip != "None")
    families = {"IPv4": 4, "IPv6": 6}
    balanced, names = _balanced(item)
    affinity = None
    if item.get("spec.sessionAffinity", str) == "ClientIP":
        affinity = item.get("spec.sessionAffinityConfig.clientIP.timeoutSeconds", int) or 10800
    return Service(
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        cluster_ips=cluster_ips,
        ports=tuple(ports),
        type=item.get("spec.type", str) or "ClusterIP",
        external_ips=item.addresses("spec.externalIPs"),
        load_balancer_ips=balanced,
        load_balancer_names=names,
        external_name=item.get("spec.externalName", str) or None,
        affinity=affinity,
        internal_local=item.get("spec.internalTrafficPolicy", str) == "Local",
        external_local=item.get("spec.externalTrafficPolicy", str) == "Local",
        publishes_not_ready=item.get("spec.publishNotReadyAddresses", bool) or False,
        headless_families=()
        if cluster_ips
        else tuple(families[f] for f in map(str, item.get("spec.ipFamilies", list) or []) if f in families),
        selector=item.labels("spec.selector"),
    )


def _balanced(item: _Object) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    """What a cloud or a controller says in status.loadBalancer: addresses, and names instead of addresses."""
    ips: list[Address] = []
    names: list[str] = []
    for where, part in item.parts(item.body, "status.loadBalancer.ingress"):
        if ip := item.pick(part, "ip", str, where):
            # With ipMode Proxy the balancer hands packets on with another destination: no node ever sees this one.
            if item.pick(part, "ipMode", str, where) != "Proxy":
                ips.append(item.address(ip, f"{where}ip"))
        elif name := item.pick(part, "hostname", str, where):
            names.append(name)
    return tuple(ips), tuple(names)


def _node(item: _Object) -> Node:
    ips: list[Address] = []
    for where, address in item.parts(item.body, "status.addresses"):
        # Other types (Hostname, InternalDNS) are names.
        if address.get("type") in ("InternalIP", "ExternalIP"):
            ips.append(item.address(address.get("address"), f"{where}address"))
    given = item.get("spec.podCIDRs", list) or [item.get("spec.podCIDR", str)]
    cidrs = [item.network(cidr, "spec.podCIDRs") for cidr in given if cidr]
    ready = item.condition("Ready") in (None, "True")
    return Node(item.need("metadata.name", str), tuple(ips), tuple(cidrs), ready)


def _slice(item: _Object) -> EndpointSlice:
    namespace = item.need("metadata.namespace", str)
    service = (item.get("metadata.labels", dict) or {}).get("kubernetes.io/service-name")
    name = item.get("metadata.name", str) or ""
    if item.get("addressType", str) == "FQDN":
        return EndpointSlice(namespace, name, None)  # names instead of addresses: kube-proxy leaves them alone, too
    ports: list[SlicePort] = []
    endpoints = list(item.parts(item.body, "endpoints"))
    for where, port in item.parts(item.body, "ports"):
        number = item.port(port, "port", where)
        if number is None:
            continue  # null stands for every port: only a custom proxy makes use of that
        ends = tuple(_endpoint(item, part, at, number, namespace) for at, part in endpoints)
        ports.append(SlicePort(item.pick(port, "name", str, where) or "", item.protocol(port, where), ends))
    return EndpointSlice(namespace, name, service if isinstance(service, str) and service else None, tuple(ports))


def _endpoint(item: _Object, part: Mapping[str, Any], where: str, port: int, namespace: str) -> Endpoint:
    addresses = item.pick(part, "addresses", list, where) or []
    if not addresses:
        raise item.bad(f"{where}addresses", "is missing")
    # More than one address is allowed and means the same; kube-proxy uses the first, KEP-752.
    ip = item.address(addresses[0], f"{where}addresses[0]")
    pod: str | None = None
    if item.pick(part, "targetRef.kind", str, where) == "Pod":
        name = item.pick(part, "targetRef.name", str, where)
        pod = f"{item.pick(part, 'targetRef.namespace', str, where) or namespace}/{name}" if name else None
    # Null means: ready, as serving as it is ready, not terminating (discovery.k8s.io/v1 EndpointConditions).
    ready = item.pick(part, "conditions.ready", bool, where)
    serving = item.pick(part, "conditions.serving", bool, where)
    is_ready = ready is not False
    return Endpoint(
        ip=ip,
        port=port,
        pod=pod,
        node=item.pick(part, "nodeName", str, where),
        ready=is_ready,
        serving=is_ready if serving is None else serving,
        terminating=item.pick(part, "conditions.terminating", bool, where) or False,
        zone=item.pick(part, "zone", str, where),
    )


def _workload(item: _Object) -> Workload:
    kind = _WORKLOADS[item.kind]
    return Workload(
        kind=kind,
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        selector=item.selector("spec.selector") if item.get("spec.selector", dict) else None,
        owner=item.owner(),
    )


def _ingress(item: _Object) -> Ingress:
    routes: list[Route] = []
    for where, rule in item.parts(item.body, "spec.rules"):
        host = item.pick(rule, "host", str, where) or ""
        for at, path in item.parts(rule, "http.paths", where):
            routes += _route(item, path, f"{at}backend", host, item.pick(path, "path", str, at) or "")
    default = {"backend": item.get("spec.defaultBackend", dict)}
    routes += _route(item, default, "spec.defaultBackend", "", "")
    return Ingress(
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        routes=tuple(routes),
        ips=_balanced(item)[0],
    )


def _route(item: _Object, path: Mapping[str, Any], where: str, host: str, prefix: str) -> Iterator[Route]:
    """The way to the service of a backend; none when the backend is something else (`resource`)."""
    if service := item.pick(path, "backend.service.name", str, where):
        number = item.pick(path, "backend.service.port.number", int, where)
        name = item.pick(path, "backend.service.port.name", str, where)
        yield Route(host, prefix, service, str(number) if number else name or "")


def _policy(item: _Object) -> NetworkPolicy:
    types = item.get("spec.policyTypes", list)
    return NetworkPolicy(
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        selector=item.selector("spec.podSelector"),
        # Not said: ingress always, and egress if there are rules for it (networking.k8s.io/v1 NetworkPolicySpec).
        ingress="Ingress" in types if types else True,
        egress="Egress" in types if types else bool(item.get("spec.egress", list)),
        ingress_rules=tuple(
            _policy_rule(item, rule, "from", where) for where, rule in item.parts(item.body, "spec.ingress")
        ),
        egress_rules=tuple(
            _policy_rule(item, rule, "to", where) for where, rule in item.parts(item.body, "spec.egress")
        ),
    )


def _policy_rule(item: _Object, rule: Mapping[str, Any], ends: str, where: str) -> PolicyRule:
    peers = tuple(_policy_peer(item, peer, at) for at, peer in item.parts(rule, ends, where))
    ports = tuple(_policy_port(item, port, at) for at, port in item.parts(rule, "ports", where))
    return PolicyRule(peers, ports)


def _policy_peer(item: _Object, peer: Mapping[str, Any], where: str) -> PolicyPeer:
    block = item.pick(peer, "ipBlock.cidr", str, where)
    if block is not None:
        excepted = item.pick(peer, "ipBlock.except", list, where) or []
        return PolicyPeer(
            block=item.network(block, f"{where}ipBlock.cidr"),
            excepted=tuple(item.network(part, f"{where}ipBlock.except") for part in excepted),
        )
    pods, namespaces = (
        item.selector_in(peer, path, where) if item.pick(peer, path, dict, where) is not None else None
        for path in ("podSelector", "namespaceSelector")
    )
    return PolicyPeer(pods, namespaces)


def _policy_port(item: _Object, port: Mapping[str, Any], where: str) -> PolicyPort:
    given = port.get("port")  # a number or a name (IntOrString)
    number = given if isinstance(given, str) else item.port(port, "port", where)
    return PolicyPort(item.protocol(port, where), number, item.port(port, "endPort", where))


READERS: Final[Mapping[str, Callable[[_Object], Value]]] = {
    "Pod": _pod,
    "Service": _service,
    "EndpointSlice": _slice,
    "Node": _node,
    **dict.fromkeys(_WORKLOADS, _workload),
    "Ingress": _ingress,
    "NetworkPolicy": _policy,
}
