"""Names as users write them: `[ns/][kind/]name[:port]`, addresses, and the DNS names of services.

In: the text behind --from or --to, the Inventory, the default namespace (`-n`). Out: a `Target`, or a K8snetError
that lists what was meant perhaps, spelled so that it can be copied. `kind/ns/name` is understood too, because
reports print it. Parsing knows every kind; pods, services, nodes and addresses can be resolved now.

Surprising: without -n, a name that the namespace `default` lacks is looked for in all the others, as long as only
one of them has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, cast

from k8snet.cluster.inventory import Inventory, Pod, Protocol, Service, ServicePort
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError
from k8snet.event import Address

_SPELLINGS: Final = {
    "po": ("po", "pod", "pods"),
    "svc": ("svc", "service", "services"),
    "no": ("no", "node", "nodes"),
    "ip": ("ip",),
    "deploy": ("deploy", "deployment", "deployments"),
    "sts": ("sts", "statefulset", "statefulsets"),
    "ds": ("ds", "daemonset", "daemonsets"),
    "rs": ("rs", "replicaset", "replicasets"),
    "job": ("job", "jobs"),
    "cj": ("cj", "cronjob", "cronjobs"),
    "ep": ("ep", "endpoints", "endpointslice", "endpointslices"),
    "ing": ("ing", "ingress", "ingresses"),
}
_KINDS: Final = {spelling: kind for kind, spellings in _SPELLINGS.items() for spelling in spellings}
_NOT_YET: Final = {
    "deploy": "Deployments",
    "sts": "StatefulSets",
    "ds": "DaemonSets",
    "rs": "ReplicaSets",
    "job": "Jobs",
    "cj": "CronJobs",
    "ep": "EndpointSlices",
    "ing": "Ingresses",
}
_WORDS: Final = {"po": "pod", "svc": "service"}
_SHOWN: Final = 12  # a guess: candidates that one message lists
_SYNTAX: Final = "write [NAMESPACE/][KIND/]NAME[:PORT], such as shop/svc/payments:http, or an IP address"


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed name. Nothing has been looked up."""

    text: str
    name: str
    namespace: str | None = None
    kind: str | None = None  # short form: "po", "svc", "no", "ip", "deploy", ...
    port: str | None = None  # a number or a port's name
    protocol: Protocol | None = None  # from ":53/udp"
    address: Address | None = None

    def spelled(self, candidate: str) -> str:
        """`candidate` with the port that this name has."""
        return f"{candidate}:{self.port}" if self.port else candidate


def parse(text: str) -> Name:
    """`text` taken apart; raises K8snetError when it is no name."""
    bad = K8snetError(f"{text!r} is not a name", _SYNTAX)
    body = text.strip()
    address = _address(body)
    if address:
        return Name(text, str(address), kind="ip", address=address)
    protocol: Protocol | None = None
    if match := re.fullmatch(r"(.+:[^:/\]]+)/(tcp|udp|sctp)", body, re.IGNORECASE):
        body, protocol = match[1], cast(Protocol, match[2].upper())
    parts = body.split("/")
    parts, name = parts[:-1], parts[-1]
    name, port = _port(name)
    if "[" in body and not _address(name):
        raise bad
    # An empty part is a slip (a shell variable that was empty), and never means "any".
    if not name or not all(parts) or len(parts) > 2:
        raise bad
    namespace, kind = _namespace_and_kind(parts, bad)
    if port is not None and not re.fullmatch(r"[0-9]{1,5}|[a-z0-9]([a-z0-9-]*[a-z0-9])?", port):
        raise K8snetError(f"{text!r}: {port!r} is not a port", "write a number from 1 to 65535, or the port's name")
    if port is not None and port.isdigit() and not 0 < int(port) < 65536:
        raise K8snetError(f"{text!r}: there is no port {port}", "write a number from 1 to 65535, or the port's name")
    address = _address(name)
    if address and kind in (None, "ip"):
        if namespace:
            raise K8snetError(f"{text!r}: an address has no namespace", f"write {body.split('/', 1)[1]}")
        return Name(text, str(address), None, "ip", port, protocol, address)
    if kind == "ip":
        raise K8snetError(f"{text!r}: {name!r} is not an IP address", "write ip/10.244.1.10, ip/[fd00::1]:80")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\.?", name):  # RFC 1123, and a DNS name's last dot
        raise bad
    return Name(text, name, namespace, kind, port, protocol)


def _namespace_and_kind(parts: list[str], bad: K8snetError) -> tuple[str | None, str | None]:
    kinds = [_kind(part) for part in parts]
    match parts, kinds:
        case [], _:
            return None, None
        case [_], [str(kind)]:
            return None, kind
        case [namespace], _:
            pass
        case [namespace, _], [_, str(kind)]:
            return namespace, kind
        case [_, namespace], [str(kind), _]:
            return namespace, kind
        case [_, word], _:
            raise K8snetError(f"there is no kind {word!r}", f"kinds: {', '.join(_SPELLINGS)} and their long forms")
        case _:
            raise bad
    if "." in namespace:  # no namespace can hold a dot, but `deployments.extensions` does
        raise K8snetError(f"there is no kind {namespace!r}", f"kinds: {', '.join(_SPELLINGS)} and their long forms")
    return namespace, None


def _kind(word: str) -> str | None:
    # kubectl takes any case, and the API group behind a dot: deployments.apps.
    return _KINDS.get(word.lower().split(".")[0])


def _port(text: str) -> tuple[str, str | None]:
    if match := re.fullmatch(r"\[([^]]*)\](?::(.*))?", text):
        return match[1], match[2]
    if _address(text) or ":" not in text:
        return text, None
    name, port = text.rsplit(":", 1)
    return name, port


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise K8snetError(f"{text}: a link-local address with its device is no name", "write the pod's own address")
        return address.ipv4_mapped or address
    return address


def resolve_from(
    text: str, inventory: Inventory, namespace: str | None = None, protocol: Protocol | None = None
) -> Target:
    """The client that `text` names; raises K8snetError. `namespace` is -n's, None when it was not given."""
    lookup = _Lookup(parse(text), inventory, namespace, protocol)
    kind = lookup.asked.kind
    if kind in (None, "po") and (pods := lookup.find("po")):
        return lookup.target(lookup.only(pods))
    if kind in (None, "svc") and (services := lookup.find("svc")):
        raise lookup.no_client(services)
    target = lookup.other("po")
    if target.service and not target.node:
        raise lookup.no_client([target.service])
    # A node's port says nothing of a NodePort when the node is the client.
    return replace(target, service=None, service_port=None, all_endpoints=())


def resolve_to(
    text: str, inventory: Inventory, namespace: str | None = None, protocol: Protocol | None = None
) -> Target:
    """The server that `text` names, as the client addresses it; raises K8snetError.

    `namespace` is -n's, None when it was not given; `protocol` chooses between ports of one number (DNS: 53).
    """
    lookup = _Lookup(parse(text), inventory, namespace, protocol)
    kind = lookup.asked.kind
    kinds: tuple[_Kind, ...] = ("po", "svc") if kind is None else ("po",) if kind == "po" else ("svc",)
    if kind in (None, "po", "svc") and (found := lookup.find(*kinds)):
        return lookup.target(lookup.only(found))
    return lookup.other(*kinds)


_Kind = Literal["po", "svc"]


def _dns(asked: Name, inventory: Inventory) -> Name:
    """The name behind a DNS name: `web.shop.svc[.cluster.local]`, `web.shop`, `web-0.web.shop.svc...`; else `asked`."""
    labels = asked.name.removesuffix(".").split(".")
    if asked.namespace or asked.kind not in (None, "svc") or any(pod.name == asked.name for pod in inventory.pods):
        return asked  # a pod's name may have dots
    # Whatever stands behind `svc` is the cluster's domain, which need not be cluster.local.
    if "svc" in labels[3:4]:
        return replace(asked, name=labels[0], namespace=labels[2], kind="po")
    if "svc" in labels[2:3] or any([s.name, s.namespace] == labels for s in inventory.services):
        return replace(asked, name=labels[0], namespace=labels[1], kind="svc")
    return asked


def _spell(found: Pod | Service) -> str:
    return f"{found.namespace}/{'po' if isinstance(found, Pod) else 'svc'}/{found.name}"


def _listed(words: Iterable[str]) -> str:
    found = list(dict.fromkeys(words))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


class _Lookup:
    """One name, looked up in one inventory."""

    def __init__(self, asked: Name, inventory: Inventory, namespace: str | None, protocol: Protocol | None) -> None:
        self.asked = asked if asked.address else _dns(asked, inventory)
        self.inventory = inventory
        self.given = self.asked.namespace or namespace
        self.protocol = asked.protocol or protocol

    def find(self, *kinds: _Kind) -> list[Pod | Service]:
        """What has this name: in the namespace given, else in `default`, else anywhere."""
        if self.asked.address:
            return []
        named = [found for found in self._all(*kinds) if found.name == self.asked.name]
        if self.given:
            return [found for found in named if found.namespace == self.given]
        return [found for found in named if found.namespace == "default"] or named

    def only(self, found: list[Pod | Service]) -> Pod | Service:
        """The one that was found; raises K8snetError with all of them spelled out when there are more."""
        if len(found) == 1:
            return found[0]
        raise K8snetError(
            f"{self.asked.text!r} can mean {len(found)} things",
            f"choose one: {_listed(self.asked.spelled(_spell(one)) for one in found)}",
        )

    def other(self, *kinds: _Kind) -> Target:
        """Addresses and nodes; everything else raises K8snetError: not found, or not looked up yet."""
        if self.asked.address:
            return self._at(self.asked.address)
        if self.asked.kind == "no":
            return self._node()
        if self.asked.kind in _NOT_YET:
            near = [pod for pod in self._scope("po") if pod.name.startswith(f"{self.asked.name}-")]
            raise K8snetError(
                f"{self.asked.text!r}: {_NOT_YET[self.asked.kind]} are not looked up yet",
                f"name the pod: {_listed(map(_spell, near)) if near else 'kubectl get pods'}",
            )
        if self.asked.name == "external" and self.asked.kind is None:
            raise K8snetError("'external' is not looked up yet", "name the address outside: --to 192.0.2.1:443")
        raise self._not_found(*kinds)

    def target(self, found: Pod | Service) -> Target:
        """The address to trace of what was found; raises K8snetError when it has none of its own."""
        return self._pod(found) if isinstance(found, Pod) else self._service(found)

    def no_client(self, services: Iterable[Pod | Service | None]) -> K8snetError:
        """The error that a Service opens no connections, with the pods behind it."""
        behind = {
            end.pod: None
            for service in services
            if isinstance(service, Service)
            for port in service.ports
            for end in port.endpoints
            if end.pod
        }
        pods = [pod for pod in self.inventory.pods if pod.key in behind]
        return K8snetError(
            f"{self.asked.text!r} is a service, and a service opens no connections",
            f"name the pod that does{': ' + _listed(map(_spell, pods)) if pods else ''}",
        )

    def _pod(self, pod: Pod) -> Target:
        describe = f"kubectl describe pod -n {pod.namespace} {pod.name}"
        if pod.finished:
            raise K8snetError(
                f"pod {pod.key} has finished ({pod.phase}): its address may be another pod's by now",
                f"name a running pod; why it ended: {describe}",
            )
        if pod.host_network:
            node = f"no/{pod.node}" if pod.node else "no/NODE"
            raise K8snetError(
                f"pod {pod.key} uses its node's network: it has no interface and no address of its own",
                f"name the node: {self.asked.spelled(node)}",
            )
        if not pod.ips:
            raise K8snetError(f"pod {pod.key} has no IP address (phase {pod.phase})", f"see why: {describe}")
        target = Target(f"pod/{pod.key}", pod.ips, self._number(), self.protocol, pod=pod)
        if self.asked.port is None or target.port is not None:
            return target
        named = {(protocol, port) for name, protocol, port in pod.named_ports if name == self.asked.port}
        fit = [(protocol, port) for protocol, port in named if self.protocol in (None, protocol)]
        if len(fit) != 1:
            known = [f"{name} ({port}/{protocol})" for name, protocol, port in pod.named_ports]
            raise K8snetError(
                f"pod {pod.key} has {'several ports' if fit else 'no port'} named {self.asked.port!r}",
                f"it names {_listed(known)}" if known else "it names none: write the port's number",
            )
        return replace(target, protocol=fit[0][0], port=fit[0][1])

    def _service(self, service: Service) -> Target:
        fit = self._fitting(service)
        ends = tuple(end for port in fit for end in port.endpoints)
        if not service.cluster_ips:
            if service.type == "ExternalName":
                raise K8snetError(
                    f"service {service.key} is only another name (ExternalName): it has no address",
                    "name the address that clients get for it, such as --to 192.0.2.1:443",
                )
            keys = {end.pod: end.port for end in ends if end.pod}
            pods = [f"{_spell(pod)}:{keys[pod.key]}" for pod in self.inventory.pods if pod.key in keys]
            raise K8snetError(
                f"service {service.key} is headless: clients connect to its pods, not to an address of its own",
                f"name one of them: {_listed(pods)}" if pods else "name the pod (it has no endpoints now)",
            )
        return _with_ports(Target(f"svc/{service.key}", service.cluster_ips, service=service), fit, self.protocol)

    def _fitting(self, service: Service) -> tuple[ServicePort, ...]:
        port, number = self.asked.port, self._number()
        same = [p for p in service.ports if port is None or (p.port == number if number else p.name == port)]
        fit = tuple(p for p in same if self.protocol in (None, p.protocol))
        if fit or not (port or self.protocol):
            return fit
        known = [
            f"{_spell(service)}:{p.name or p.port} ({p.port}/{p.protocol}, to {p.target_port} in the pod)"
            for p in service.ports
        ]
        wanted = " ".join(filter(None, [self.protocol, "port", port]))
        raise K8snetError(
            f"service {service.key} has no {wanted}",
            f"it has {_listed(known)}" if known else f"it has no ports: kubectl get svc -n {service.namespace}",
        )

    def _at(self, address: Address) -> Target:
        inventory = self.inventory
        number = self._number()
        if pod := inventory.pod_by_ip.get(address):
            return replace(self._pod(pod), addresses=(address,))
        if self.asked.port is not None and number is None and address not in inventory.service_by_ip:
            raise K8snetError(
                f"{self.asked.text!r}: nothing is known at {address} that has a port named {self.asked.port!r}",
                f"write its number, such as {_bracketed(address)}:80",
            )
        target = Target(str(address), (address,), number, self.protocol)
        if service := inventory.service_by_ip.get(address):
            if number and all(port.port != number for port in service.ports):
                # Packets to such a port are real, and a fault worth seeing: no error, as there is for a name.
                return replace(target, text=f"svc/{service.key}", service=service)
            found = Target(f"svc/{service.key}", (address,), service=service)
            return _with_ports(found, self._fitting(service), self.protocol)
        if node := inventory.node_by_ip.get(address):
            return self._on_node(replace(target, text=f"node/{node.name}", node=node))
        return target

    def _node(self) -> Target:
        node = next((node for node in self.inventory.nodes if node.name == self.asked.name), None)
        if node is None:
            near = _near(self.asked.name, {node.name: [f"no/{node.name}"] for node in self.inventory.nodes})
            raise K8snetError(
                f"no node named {self.asked.name!r}",
                f"did you mean {_listed(map(self.asked.spelled, near))}?" if near else "see: kubectl get nodes",
            )
        if not node.ips:
            raise K8snetError(f"node {node.name} has no IP address", f"see: kubectl get node {node.name} -o wide")
        target = Target(f"node/{node.name}", node.ips, self._number(), self.protocol, node=node)
        if self.asked.port is not None and target.port is None:
            raise K8snetError(f"a node's ports have no names: {self.asked.port!r}", f"write no/{node.name}:30080")
        return self._on_node(target)

    def _on_node(self, target: Target) -> Target:
        for service in self.inventory.services:
            for port in service.ports:
                if target.port and port.node_port == target.port and target.protocol in (None, port.protocol):
                    return replace(
                        target,
                        service=service,
                        service_port=port,
                        protocol=port.protocol,
                        all_endpoints=port.endpoints,
                    )
        return target

    def _number(self) -> int | None:
        return int(self.asked.port) if self.asked.port and self.asked.port.isdigit() else None

    def _not_found(self, *kinds: _Kind) -> K8snetError:
        words = " or ".join(_WORDS[kind] for kind in kinds)
        problem = f"no {words} named {self.asked.name!r}" + (f" in namespace {self.given!r}" if self.given else "")
        if not self.inventory.pods and not self.inventory.services:
            return K8snetError(
                f"{problem}: no pods and services are known (inventory: {self.inventory.source})",
                "pass --inventory FILE, or name IP addresses",
            )
        spaces = {one.namespace for one in self._all("po", "svc")}
        if self.given and self.given not in spaces:
            close = _similar(self.given, spaces)
            problem = f"namespace {self.given!r} has neither pods nor services"
            if close:
                return K8snetError(problem, f"did you mean namespace {_listed(close)}?")
        # Here first, then anywhere, and what is of another kind last: the slip may be any of the three.
        near = [
            candidate
            for scope in (self._scope(*kinds), self._all(*kinds), self._scope("po", "svc"))
            for candidate in _near(self.asked.name, _spellings(scope))
        ]
        if any(node.name == self.asked.name for node in self.inventory.nodes):
            near.append(f"no/{self.asked.name}")
        see = "pods,services" + (f" -n {self.given}" if self.given in spaces else " -A")
        return K8snetError(
            problem,
            f"did you mean {_listed(map(self.asked.spelled, near))}?" if near else f"see: kubectl get {see}",
        )

    def _all(self, *kinds: _Kind) -> list[Pod | Service]:
        pods: tuple[Pod | Service, ...] = self.inventory.pods if "po" in kinds else ()
        return [*pods, *(self.inventory.services if "svc" in kinds else ())]

    def _scope(self, *kinds: _Kind) -> list[Pod | Service]:
        return [one for one in self._all(*kinds) if self.given in (None, one.namespace)]


def _with_ports(target: Target, fit: tuple[ServicePort, ...], protocol: Protocol | None) -> Target:
    numbers, protocols = {port.port for port in fit}, {port.protocol for port in fit}
    return replace(
        target,
        port=numbers.pop() if len(numbers) == 1 else None,
        protocol=protocols.pop() if len(protocols) == 1 else protocol,
        service_port=fit[0] if len(fit) == 1 else None,
        all_endpoints=tuple(end for port in fit for end in port.endpoints),
    )


def _bracketed(address: Address) -> str:
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)


def _spellings(found: Iterable[Pod | Service]) -> dict[str, list[str]]:
    spelled: dict[str, list[str]] = {}
    for one in found:
        spelled.setdefault(one.name, []).append(_spell(one))
    return spelled


def _near(name: str, spelled: dict[str, list[str]]) -> list[str]:
    """Candidates for `name`: itself, what begins with it (a Deployment's pods), what looks like it."""
    begins = [other for other in sorted(spelled) if other == name or other.startswith(f"{name}-")]
    close = _similar(name, spelled)
    # `crat` is nothing like `cart-7d4f9c-x2x8k` as a whole, only like its first words.
    for other in spelled:
        words = other.split("-")
        if _similar(name, ["-".join(words[:n]) for n in range(1, len(words))], 0.7):
            close.append(other)
    return [candidate for other in dict.fromkeys([*begins, *close]) for candidate in spelled[other]]


def _similar(name: str, others: Iterable[str], cutoff: float = 0.6) -> list[str]:
    import difflib  # 12 ms, for messages only

    return difflib.get_close_matches(name, list(others), 3, cutoff)
