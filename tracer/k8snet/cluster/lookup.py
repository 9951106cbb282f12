"""One name looked up in one inventory: what client and server have in common, and what is said when it means nothing.

In: a parsed `Name`, the Inventory, the default namespace. Out: the things that have the name, or a K8snetError that
lists what was meant perhaps. What it lists has been looked up the same way, and found: it can be copied.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Final

from k8snet.cluster.inventory import EndpointSlice, Inventory, Pod, Protocol, Service, ServicePort
from k8snet.cluster.near import Thing, near, similar
from k8snet.cluster.spelling import WORDS, Name, dashed, parse
from k8snet.cluster.targets import Target
from k8snet.cluster.workloads import Key, pods_by_workload
from k8snet.errors import K8snetError
from k8snet.event import Address

WORKLOADS: Final = ("deploy", "sts", "ds", "rs", "job", "cj")
_SHOWN: Final = 12  # a guess: candidates that one message lists


def things(inventory: Inventory, workloads: Iterable[Key] = ()) -> Iterator[Thing]:
    """Everything that can be named, pods first; `workloads` as pods_by_workload has them."""
    for pod in inventory.pods:
        yield Thing("po", pod.namespace, pod.name)
    for service in inventory.services:
        yield Thing("svc", service.namespace, service.name)
    for kind, key in workloads:
        yield Thing(kind, *key.split("/", 1))
    for ingress in inventory.ingresses:
        yield Thing("ing", ingress.namespace, ingress.name)
    for service in inventory.services:
        if service.type != "ExternalName":
            yield Thing("ep", service.namespace, service.name)
    own = {service.key for service in inventory.services}
    for part in inventory.slices:
        if part.key not in own:
            yield Thing("ep", part.namespace, part.name)
    for node in inventory.nodes:
        yield Thing("no", "", node.name)


def thing_of(pod: Pod) -> Thing:
    """The pod as something that can be named."""
    return Thing("po", pod.namespace, pod.name)


def behind_dns(asked: Name, inventory: Inventory) -> Name:
    """The name behind a DNS name: `web.shop.svc[.cluster.local]`, `web.shop`, `web-0.web.shop.svc...`; else `asked`."""
    labels = asked.name.removesuffix(".").split(".")
    if asked.address or asked.namespace or asked.kind not in (None, "svc") or len(labels) == 1:
        return asked
    if any(pod.name == asked.name for pod in inventory.pods):
        return asked  # a pod's name may have dots
    # Whatever stands behind `svc` and `pod` is the cluster's domain, which need not be cluster.local.
    address = dashed(labels[0])
    if address and ("pod" in labels[2:3] or "svc" in labels[3:4]):
        return replace(asked, kind="ip", address=address)
    if "svc" in labels[3:4]:
        return replace(asked, name=labels[0], namespace=labels[2], kind="po")
    if "svc" in labels[2:3] or any([s.name, s.namespace] == labels for s in inventory.services):
        return replace(asked, name=labels[0], namespace=labels[1], kind="svc")
    return asked


def listed(words: Iterable[str]) -> str:
    """The first dozen, and how many more there are."""
    found = list(dict.fromkeys(words))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


class Lookup(ABC):
    """One name, looked up in one inventory: what client and server have in common."""

    def __init__(
        self,
        asked: Name,
        inventory: Inventory,
        namespace: str | None,
        protocol: Protocol | None,
        helpful: bool = True,  # False: it is a suggestion that is tried, which needs no suggestions of its own
    ) -> None:
        self.asked = behind_dns(asked, inventory)
        self.inventory = inventory
        self.namespace = namespace
        self.given = self.asked.namespace or namespace
        self.protocol = asked.protocol or protocol
        self.helpful = helpful

    def target(self) -> Target:
        """The target; raises K8snetError."""
        asked = self.asked
        if asked.address:
            return self.at(asked.address)
        if asked.external:
            return self.external()
        return self.meant(self.only(self.found()))

    def found(self) -> list[Thing]:
        """What has this name; raises K8snetError when nothing does."""
        kinds = (self.asked.kind,) if self.asked.kind else ("po", "svc")
        if found := self.find(*kinds):
            return found
        raise self.not_found(*kinds)

    # What differs between client and server.

    @abstractmethod
    def at(self, address: Address) -> Target:
        """An address."""

    @abstractmethod
    def external(self) -> Target:
        """Whatever is outside of the cluster."""

    @abstractmethod
    def meant(self, thing: Thing) -> Target:
        """What an object stands for."""

    # What they share.

    @cached_property
    def workloads(self) -> dict[Key, list[Pod]]:
        """Pods by workload: only made when a workload is asked for, or suggested."""
        return pods_by_workload(self.inventory)

    def all(self) -> list[Thing]:
        """Everything that can be named."""
        return list(things(self.inventory, self.workloads))

    def find(self, *kinds: str) -> list[Thing]:
        """What has this name: in the namespace given, else in `default`, else anywhere."""
        workloads = self.workloads if set(kinds) & set(WORKLOADS) else ()
        named = [
            thing
            for thing in things(self.inventory, workloads)
            if thing.name == self.asked.name and thing.kind in kinds
        ]
        if self.asked.kind == "no":
            return named[:1]
        if self.given:
            return list(dict.fromkeys(thing for thing in named if thing.namespace == self.given))
        return list(dict.fromkeys([thing for thing in named if thing.namespace == "default"] or named))

    def only(self, found: list[Thing]) -> Thing:
        """The one that was found; raises K8snetError with all of them spelled out when there are more."""
        if len(found) == 1:
            return found[0]
        choice = self.copyable(found)
        if self.helpful and not choice:
            self.meant(found[0])  # none of them can be had: the first says why
        raise K8snetError(f"{self.asked.text!r} can mean {len(found)} things", f"choose one: {listed(choice)}")

    def copyable(self, candidates: Iterable[Thing]) -> list[str]:
        """Those that can be looked up as they are spelled, with the port that was asked for if they have it."""
        if not self.helpful:
            return []
        fit: dict[str, None] = {}
        for thing in candidates:
            spellings = (self.asked.spelled(thing.spelled), thing.spelled)
            if text := next(filter(self.can_be_had, spellings), None):
                fit[text] = None
            if len(fit) == _SHOWN:
                break
        return list(fit)

    def can_be_had(self, text: str) -> bool:
        """The text names something on this side of a connection."""
        try:
            self.again(text)
        except K8snetError:
            return False
        return True

    def again(self, text: str) -> Target:
        """Another name, looked up as this one is; raises K8snetError."""
        return type(self)(parse(text), self.inventory, self.namespace, self.protocol, helpful=False).target()

    def pod(self, key: str) -> Pod:
        """The pod of that `namespace/name`, which there is."""
        return self.inventory.pod_by_key[key]

    def service(self, thing: Thing) -> Service:
        """The service that was found."""
        key = f"{thing.namespace}/{thing.name}"
        return next(service for service in self.inventory.services if service.key == key)

    def of_pod(self, pod: Pod) -> Target:
        """A pod's own address, or its node's."""
        describe = kubectl("describe", "pod", pod.namespace, pod.name)
        if pod.finished:
            raise K8snetError(
                f"pod {pod.key} has finished ({pod.phase}): its address may be another pod's by now",
                f"name a running pod; why it ended: {describe}",
            )
        if not pod.ips:
            raise K8snetError(f"pod {pod.key} has no IP address (phase {pod.phase})", f"see why: {describe}")
        target = Target(f"pod/{pod.key}", pod.ips, self.asked.number, self.protocol, pod=pod)
        if not pod.host_network:
            return target
        node = next((node for node in self.inventory.nodes if node.name == pod.node), None)
        note = f"{target.text} uses its node's network: connections of everything on {pod.node} look like its own"
        return replace(target, node=node, notes=(note,))

    def of_node(self, name: str) -> Target:
        """A node's addresses."""
        node = next(node for node in self.inventory.nodes if node.name == name)
        if not node.ips:
            raise K8snetError(
                f"node {node.name} has no IP address", f"see: kubectl get node {shlex.quote(node.name)} -o wide"
            )
        if self.asked.port is not None and self.asked.number is None:
            raise K8snetError(f"a node's ports have no names: {self.asked.port!r}", f"write no/{node.name}:30080")
        return Target(f"node/{node.name}", node.ips, self.asked.number, self.protocol, node=node)

    def running(self, thing: Thing) -> list[Pod]:
        """A workload's pods that can be client or server, the best first; raises K8snetError when there is none."""
        pods = self.workloads[thing.kind, f"{thing.namespace}/{thing.name}"]
        alive = [pod for pod in pods if pod.ips and not pod.finished]
        if not alive:
            states = listed(f"{pod.name} is {pod.phase}" for pod in pods)
            raise K8snetError(
                f"{thing.spelled} has no running pod" + (f": {states}" if pods else ""),
                f"see why: {kubectl('describe', thing.kind, thing.namespace, thing.name)}",
            )
        alive.sort(key=lambda pod: (pod.terminating, pod.phase != "Running", not pod.ready, pod.name))
        return alive

    def not_found(self, *kinds: str) -> K8snetError:
        """The error that nothing has this name, with what was meant perhaps."""
        asked, inventory = self.asked, self.inventory
        words = " or ".join(WORDS[kind] for kind in kinds)
        problem = f"no {words} named {asked.name!r}"
        if self.given and kinds != ("no",):
            problem += f" in namespace {self.given!r}"
        if not self.helpful:
            return K8snetError(problem, "see: kubectl get pods,services -A")
        if not inventory.pods and not inventory.services and not inventory.nodes:
            return K8snetError(
                f"{problem}: no pods and services are known (inventory: {inventory.source})",
                "pass --inventory FILE, or name IP addresses",
            )
        all_things = self.all()
        spaces = {thing.namespace for thing in all_things if thing.namespace}
        if self.given and self.given not in spaces and kinds != ("no",):
            return self.no_namespace(all_things, spaces)
        # The very name with another kind, then what looks like it: here, anywhere, of another kind.
        scopes: tuple[Callable[[Thing], bool], ...] = (
            lambda thing: thing.name == asked.name and self.in_scope(thing),
            lambda thing: thing.kind in kinds and self.in_scope(thing),
            lambda thing: thing.kind in kinds,
            lambda thing: thing.name == asked.name,
            lambda thing: thing.kind in ("po", "svc", *WORKLOADS) and self.in_scope(thing),
        )
        likely = [thing for fits in scopes for thing in near(asked.name, filter(fits, all_things))]
        if choice := self.copyable(dict.fromkeys(likely)):
            return K8snetError(problem, f"did you mean {listed(choice)}?")
        if asked.kind is None and "." in asked.name.strip("."):
            return K8snetError(f"nothing in this cluster has the DNS name {asked.name!r}", dns_hint(asked.name, asked))
        see = {"no": "nodes"}.get(kinds[0], "pods,services") if len(kinds) == 1 else "pods,services"
        where = "" if see == "nodes" else f" -n {self.given}" if self.given in spaces else " -A"
        return K8snetError(problem, f"see: kubectl get {see}{where}")

    def in_scope(self, thing: Thing) -> bool:
        """It is in the namespace that was given, or none was."""
        return self.given in (None, thing.namespace)

    def no_namespace(self, all_things: list[Thing], spaces: set[str]) -> K8snetError:
        """The error that the namespace is empty or misspelled."""
        problem = f"namespace {self.given!r} has neither pods nor services"
        close = similar(self.given or "", spaces)
        there = [thing for space in close for thing in near(self.asked.name, _in(space, all_things))]
        elsewhere = [thing for thing in all_things if thing.name == self.asked.name and thing.namespace]
        if choice := self.copyable(dict.fromkeys([*there, *elsewhere])):
            return K8snetError(problem, f"did you mean {listed(choice)}?")
        if close:
            return K8snetError(problem, f"did you mean namespace {listed(close)}?")
        return K8snetError(problem, f"there are: {listed(sorted(spaces))}" if spaces else "see: kubectl get ns")


def kubectl(verb: str, kind: str, namespace: str, *more: str) -> str:
    """A command to copy; names come from outside, and what they hold is not to be run."""
    return shlex.join(["kubectl", verb, kind, "-n", namespace, *more])


def _in(space: str, all_things: Iterable[Thing]) -> list[Thing]:
    return [thing for thing in all_things if thing.namespace == space]


def dns_hint(name: str, asked: Name) -> str:
    """What to do about a DNS name: its addresses are known where the client is."""
    port = f":{asked.port}" if asked.port else ""
    return (
        f"ask as the client does: kubectl exec -n NAMESPACE POD -- getent hosts {shlex.quote(name)}; "
        f"then name the address: ADDRESS{port}"
    )


def endpoint_ports(inventory: Inventory, thing: Thing) -> list[ServicePort]:
    """The ports with endpoints of the service of that name, or of the slice."""
    key = f"{thing.namespace}/{thing.name}"
    for service in inventory.services:
        if service.key == key:
            return list(service.ports)
    slices: list[EndpointSlice] = [part for part in inventory.slices if part.key == key]
    return [
        ServicePort(port.name, port.protocol, 0, "", endpoints=port.endpoints) for part in slices for port in part.ports
    ]
