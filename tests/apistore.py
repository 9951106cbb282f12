"""What an API server keeps: objects by resource, the changes that led to them, and one version counter over all.

In: objects as plain dicts. Out: their JSON, encoded once when they are put, so that 10,000 of them are a list at once;
and for any version the state of then and the changes after it. A change carries the object before and after it, because
a watch with a selector reports an object that stops matching as deleted.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class Resource:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: str = ""
    # What a field selector can ask for, besides the name and the namespace.
    fields: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


POD_FIELDS = (
    *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork"),
    *("status.phase", "status.podIP", "status.nominatedNodeName"),
)
RESOURCES = (
    Resource("", "v1", "namespaces", "Namespace", False, "ns", ("status.phase",)),
    Resource("", "v1", "nodes", "Node", False, "no", ("spec.unschedulable",)),
    Resource("", "v1", "pods", "Pod", True, "po", POD_FIELDS),
    Resource("", "v1", "services", "Service", True, "svc", ("spec.clusterIP", "spec.type")),
    Resource("", "v1", "endpoints", "Endpoints", True, "ep"),
    Resource("", "v1", "configmaps", "ConfigMap", True, "cm"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", True, "sa"),
    Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Resource("apps", "v1", "deployments", "Deployment", True, "deploy"),
    Resource("apps", "v1", "replicasets", "ReplicaSet", True, "rs", ("status.replicas",)),
    Resource("apps", "v1", "statefulsets", "StatefulSet", True, "sts"),
    Resource("apps", "v1", "daemonsets", "DaemonSet", True, "ds"),
    Resource("batch", "v1", "jobs", "Job", True, "", ("status.successful",)),
    Resource("batch", "v1", "cronjobs", "CronJob", True, "cj"),
    Resource("networking.k8s.io", "v1", "ingresses", "Ingress", True, "ing"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True, "netpol"),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False),
    Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False),
)
BY_KIND = {(resource.api_version, resource.kind): resource for resource in RESOURCES}
BY_PLURAL = {resource.plural: resource for resource in RESOURCES}


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Stored:
    """One object at one version. `body` is its JSON as it stands in a list: without kind and apiVersion."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    labels: dict[str, str]
    fields: dict[str, str]
    body: bytes

    @property
    def document(self) -> bytes:
        """The object as it stands alone, or in an event of a watch."""
        head = {"kind": self.resource.kind, "apiVersion": self.resource.api_version}
        return encode(head)[:-1] + b"," + self.body[1:]

    @property
    def value(self) -> Object:
        decoded: Object = json.loads(self.document)
        return decoded

    def at(self, version: int) -> Stored:
        """The same object, as a deletion at this version shows it."""
        value = json.loads(self.body)
        value["metadata"]["resourceVersion"] = str(version)
        return replace(self, body=encode(value))


Test = Callable[[Stored], bool]


@dataclass(frozen=True)
class Change:
    version: int
    resource: Resource
    key: Key
    before: Stored | None
    after: Stored | None

    def event(self, wanted: Test) -> tuple[str, Stored] | None:
        """The change as someone sees it who asked only for some objects."""
        before = self.before if self.before is not None and wanted(self.before) else None
        after = self.after if self.after is not None and wanted(self.after) else None
        if after:
            return ("MODIFIED" if before else "ADDED"), after
        return ("DELETED", before.at(self.version)) if before else None


class Store:
    """Objects and their history. `changed` is notified after each change; whoever waits for one holds it."""

    def __init__(self, first: int = 1) -> None:
        self.changed = threading.Condition(threading.RLock())
        # Whatever was before the first version is as good as compacted.
        self.version = self.first = self.compacted = first
        # Servers with a watch cache give the whole list for resourceVersion=0, whatever the limit.
        self.ignores_limit = False
        self._objects: dict[str, dict[Key, Stored]] = {resource.plural: {} for resource in RESOURCES}
        # One change a version: the changes after version n are those from index n - first.
        self._log: list[Change] = []

    def get(self, resource: Resource, namespace: str, name: str) -> Stored | None:
        return self._objects[resource.plural].get((namespace, name))

    def put(self, value: Object) -> Stored:
        """Adds or replaces an object; version, uid and time of creation are filled in as a server does."""
        resource = BY_KIND[value["apiVersion"], value["kind"]]
        metadata = value["metadata"]
        key = (metadata["namespace"] if resource.namespaced else "", metadata["name"])
        with self.changed:
            before = self._objects[resource.plural].get(key)
            self.version += 1
            filled = metadata | {
                "uid": before.uid if before else metadata.get("uid") or str(uuid.uuid4()),
                "resourceVersion": str(self.version),
                "creationTimestamp": metadata.get("creationTimestamp") or now(),
            }
            rest = {name: part for name, part in value.items() if name not in ("kind", "apiVersion", "metadata")}
            body = {"metadata": filled} | rest
            labels = dict(metadata.get("labels") or {})
            fields = {path: field(body, path) for path in ("metadata.name", "metadata.namespace", *resource.fields)}
            after = Stored(resource, *key, filled["uid"], labels, fields, encode(body))
            self._objects[resource.plural][key] = after
            self._log.append(Change(self.version, resource, key, before, after))
            self.changed.notify_all()
        return after

    def delete(self, resource: Resource, namespace: str, name: str) -> Stored:
        """Takes an object away and returns it as it was; KeyError if it is not there."""
        with self.changed:
            before = self._objects[resource.plural].pop((namespace, name))
            self.version += 1
            self._log.append(Change(self.version, resource, (namespace, name), before, None))
            home = self.get(BY_PLURAL["namespaces"], "", namespace)
            if home and "deletionTimestamp" in home.value["metadata"] and not self.within(namespace):
                self.delete(home.resource, "", namespace)
            self.changed.notify_all()
        return before

    def within(self, namespace: str) -> bool:
        """Whether there is anything in a namespace."""
        return any(key[0] == namespace for objects in self._objects.values() for key in objects)

    def since(self, version: int) -> list[Change]:
        return self._log[max(version - self.first, 0) :]

    def at(self, resource: Resource, version: int) -> list[Stored]:
        """The objects of a resource as they were at a version, by namespace and name."""
        with self.changed:
            objects = dict(self._objects[resource.plural])
            for change in reversed(self.since(version)):
                if change.resource is resource and change.before is not None:
                    objects[change.key] = change.before
                elif change.resource is resource:
                    del objects[change.key]
        return [objects[key] for key in sorted(objects)]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def field(value: Object, path: str) -> str:
    """What a field selector compares: the text of a value, "" for one that is not set."""
    found: Any = value
    for part in _words(path):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return str(found).lower() if isinstance(found, bool) else str(found)


@cache
def _words(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


class BadSelectorError(ValueError):
    """A selector that cannot be read, or asks for a field that this resource does not offer."""


def selects(resource: Resource, labels: str, fields: str) -> Test:
    """The test that a label selector and a field selector make; either may be empty."""
    # A comma inside parentheses belongs to the values of a set.
    terms = [_label_test(term.strip()) for term in re.split(r",(?![^(]*\))", labels) if term.strip()]
    terms += [_field_test(resource, term) for term in fields.split(",") if term]
    return lambda stored: all(test(stored) for test in terms)


def _field_test(resource: Resource, term: str) -> Test:
    match = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
    if not match:
        raise BadSelectorError(f"invalid selector: '{term}'; can't understand '{term}'")
    path, sign, value = match.groups()
    if path not in ("metadata.name", "metadata.namespace", *resource.fields):
        raise BadSelectorError(f"field label not supported: {path}")
    return lambda stored: (stored.fields[path] == value) == (sign != "!=")


def _label_test(term: str) -> Test:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s*\((.*)\)", term):
        key, sign, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        return lambda stored: (stored.labels.get(key) in values) == (sign == "in")
    if match := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*(\S*)", term):
        key, sign, value = match.groups()
        return lambda stored: (stored.labels.get(key) == value) == (sign != "!=")
    if match := re.fullmatch(r"(!?)\s*([^=!\s()]+)", term):
        sign, key = match.groups()
        return lambda stored: (key in stored.labels) == (not sign)
    raise BadSelectorError(f"unable to parse requirement: {term}")
