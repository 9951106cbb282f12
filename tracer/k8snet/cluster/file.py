"""An `Inventory` from what kubectl prints: `kubectl get pods,services,endpointslices,nodes -A -o json`.

In: a file (or `-`, standard input) with one JSON document or several after one another, each a List, a PodList and
the like, or one object. Out: the Inventory, with each EndpointSlice's endpoints joined to the ports of its Service.
Kinds that are not needed are skipped. The objects are also what the API answers, so `inventory()` serves both.

Surprising: a static pod's `uid` here is its kubernetes.io/config.hash, because that is how the node names it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import AddressValueError, ip_address
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from k8snet.cluster.inventory import Endpoint, Inventory, Node, Pod, Protocol, Service, ServicePort
from k8snet.errors import K8snetError
from k8snet.event import Address

KUBECTL: Final = "kubectl get pods,services,endpointslices,nodes -A -o json"
_REMEDY: Final = f"make it anew: {KUBECTL} > inventory.json"
_KINDS: Final = ("Pod", "Service", "EndpointSlice", "Node")
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")

T = TypeVar("T")


def load(path: str | Path) -> Inventory:
    """The inventory in the file at `path` ("-": standard input); raises K8snetError when it is no inventory."""
    source = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise K8snetError(f"inventory {source}: no such file", f"make it: {KUBECTL} > {source}") from None
    except OSError as error:
        raise K8snetError(f"inventory {source}: {error.strerror}", _REMEDY) from None
    return inventory(_documents(raw, source), source)


def inventory(documents: Iterable[Any], source: str) -> Inventory:
    """The inventory in decoded Kubernetes objects or lists of them; `source` says in messages where they came from."""
    pods: dict[str, Pod] = {}
    services: dict[str, Service] = {}
    nodes: dict[str, Node] = {}
    slices: list[_Object] = []
    unknown: set[str] = set()
    recognised = False
    for document in documents:
        for item in _items(document, source):
            match item.kind:
                case "Pod":
                    pod = _pod(item)
                    pods[pod.key] = pod
                case "Service":
                    service = _service(item)
                    services[service.key] = service
                case "Node":
                    node = _node(item)
                    nodes[node.name] = node
                case "EndpointSlice":
                    slices.append(item)
                case other:
                    unknown.add(other)
                    continue
            recognised = True
        recognised |= _list_of(document) in _KINDS
    if unknown and not recognised:
        raise K8snetError(f"inventory {source}: holds {', '.join(sorted(unknown))}, no pod, service or node", _REMEDY)
    known = Inventory(tuple(pods.values()), tuple(services.values()), tuple(nodes.values()), source)
    return replace(known, services=_joined(known, slices))


def _documents(raw: bytes, source: str) -> Iterator[Any]:
    """Each JSON document in `raw`; PowerShell writes UTF-16, so the encoding is guessed as RFC 8259's parsers do."""
    decoder = json.JSONDecoder()
    try:
        text = raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        raise K8snetError(f"inventory {source}: not text (byte {error.start}), so not JSON", _REMEDY) from None
    at = _blank(text, 0)
    if at == len(text):
        raise K8snetError(f"inventory {source}: empty", _REMEDY)
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise K8snetError(
                f"inventory {source}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}", _REMEDY
            ) from None
        except RecursionError:
            raise K8snetError(f"inventory {source}: nested too deeply to be Kubernetes objects", _REMEDY) from None
        yield document
        at = _blank(text, at)


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


class _Object:
    """A decoded object with the words to say what is wrong with it."""

    def __init__(self, body: Mapping[str, Any], kind: str, source: str, number: int) -> None:
        self.body = body
        self.kind = kind
        metadata = body.get("metadata")
        names = metadata if isinstance(metadata, dict) else {}
        known = [str(names[part]) for part in ("namespace", "name") if names.get(part)]
        self._words = f"inventory {source}: {kind} {'/'.join(known) or f'(item {number})'}"

    def bad(self, path: str, why: str) -> K8snetError:
        """The error that field `path` is unusable."""
        return K8snetError(f"{self._words}: {path} {why}", _REMEDY)

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
        for word in path.split("."):
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


def _list_of(document: object) -> str:
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind.removesuffix("List") if isinstance(kind, str) and kind != "List" else ""


def _items(document: object, source: str) -> Iterator[_Object]:
    if not isinstance(document, dict):
        raise K8snetError(f"inventory {source}: holds {type(document).__name__}, expected Kubernetes objects", _REMEDY)
    kind = document.get("kind")
    if not isinstance(kind, str):
        raise K8snetError(f"inventory {source}: no kind, so not a Kubernetes object", _REMEDY)
    if kind == "Status":
        raise K8snetError(f"inventory {source}: holds an error of the API: {document.get('message')}", _REMEDY)
    if "items" not in document:
        if kind == "List" or (kind.endswith("List") and _list_of(document) in _KINDS):
            raise K8snetError(f"inventory {source}: {kind} has no items", _REMEDY)
        yield _Object(document, kind, source, 0)
        return
    items = document["items"]
    if not isinstance(items, list):
        raise K8snetError(f"inventory {source}: items is {type(items).__name__}, expected a list", _REMEDY)
    for number, item in enumerate(items):
        # In a List each item says what it is; in a PodList none does.
        own = item.get("kind") if isinstance(item, dict) else None
        said = own or _list_of(document)
        if not isinstance(item, dict) or not isinstance(said, str) or not said:
            raise K8snetError(f"inventory {source}: items[{number}] is no Kubernetes object (no kind)", _REMEDY)
        yield _Object(item, said, source, number)


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
        labels=tuple(sorted((str(k), str(v)) for k, v in (item.get("metadata.labels", dict) or {}).items())),
        named_ports=tuple(named),
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
    return Service(
        namespace=item.need("metadata.namespace", str),
        name=item.need("metadata.name", str),
        # "None", in that spelling, is how a headless service says that it has no address.
        cluster_ips=tuple(item.address(ip, "spec.clusterIPs") for ip in ips if ip and ip != "None"),
        ports=tuple(ports),
        type=item.get("spec.type", str) or "ClusterIP",
    )


def _node(item: _Object) -> Node:
    ips: list[Address] = []
    for where, address in item.parts(item.body, "status.addresses"):
        # Other types (Hostname, InternalDNS) are names.
        if address.get("type") in ("InternalIP", "ExternalIP"):
            ips.append(item.address(address.get("address"), f"{where}address"))
    cidrs = item.get("spec.podCIDRs", list) or [item.get("spec.podCIDR", str)]
    return Node(item.need("metadata.name", str), tuple(ips), tuple(str(cidr) for cidr in cidrs if cidr))


def _joined(known: Inventory, slices: list[_Object]) -> tuple[Service, ...]:
    """The services with their endpoints; kube-proxy joins by service, port name and protocol, and so do we."""
    behind: dict[tuple[str, str, Protocol], list[Endpoint]] = {}
    for item in slices:
        service = (item.get("metadata.labels", dict) or {}).get("kubernetes.io/service-name")
        if not service or item.get("addressType", str) == "FQDN":
            continue  # made by hand for something else, or without addresses
        key = f"{item.need('metadata.namespace', str)}/{service}"
        endpoints = [(where, part) for where, part in item.parts(item.body, "endpoints")]
        for where, port in item.parts(item.body, "ports"):
            number = item.port(port, "port", where)
            if number is None:
                continue  # null stands for every port: only a custom proxy makes use of that
            name = item.pick(port, "name", str, where) or ""
            found = behind.setdefault((key, name, item.protocol(port, where)), [])
            found += [_endpoint(known, item, part, at, number) for at, part in endpoints]
    return tuple(
        replace(
            service,
            ports=tuple(
                # One endpoint may stand in two slices while the controller moves it.
                replace(port, endpoints=tuple(dict.fromkeys(behind.get((service.key, port.name, port.protocol), ()))))
                for port in service.ports
            ),
        )
        for service in known.services
    )


def _endpoint(known: Inventory, item: _Object, part: Mapping[str, Any], where: str, port: int) -> Endpoint:
    addresses = item.pick(part, "addresses", list, where) or []
    if not addresses:
        raise item.bad(f"{where}addresses", "is missing")
    # More than one address is allowed and means the same; kube-proxy uses the first, KEP-752.
    ip = item.address(addresses[0], f"{where}addresses[0]")
    pod: str | None = None
    if item.pick(part, "targetRef.kind", str, where) == "Pod":
        name = item.pick(part, "targetRef.name", str, where)
        namespace = item.pick(part, "targetRef.namespace", str, where) or item.need("metadata.namespace", str)
        pod = f"{namespace}/{name}" if name else None
    elif ip in known.pod_by_ip:
        pod = known.pod_by_ip[ip].key
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
    )
