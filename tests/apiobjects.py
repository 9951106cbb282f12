"""Objects for the API server of the tests: what a real server answered, and more of the same by small functions.

Each is a plain dict with kind and apiVersion. `managedFields` stay in: real answers have them, and they are most of a
small object.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

from apistore import Object

RECORDED = Path(__file__).parent / "data" / "kube-api"


def recorded(*plurals: str) -> list[Object]:
    """The objects of the recorded lists; all of them when none is named."""
    found = []
    for plural in plurals or ("nodes", "pods", "services", "endpointslices"):
        answer = json.loads((RECORDED / f"{plural}.json").read_text())
        head = {"kind": answer["kind"].removesuffix("List"), "apiVersion": answer["apiVersion"]}
        found += [head | item for item in answer["items"]]
    return found


@cache
def _template(kind: str) -> tuple[str, list[Object]]:
    """The first recorded object of a kind without what is its own, as text, and its managedFields apart."""
    value = next(value for value in recorded() if value["kind"] == kind)
    metadata = value["metadata"]
    for name in ("uid", "resourceVersion", "creationTimestamp"):
        del metadata[name]
    managed: list[Object] = metadata.pop("managedFields")
    return json.dumps(value), managed


def _new(kind: str, key: str, labels: dict[str, str] | None) -> Object:
    text, managed = _template(kind)
    value: Object = json.loads(text)
    namespace, _, name = key.rpartition("/")
    value["metadata"] |= {"name": name} | ({"namespace": namespace} if namespace else {})
    # The managedFields are shared: nobody changes them, and copying them would take most of the time.
    value["metadata"] |= {"labels": dict(labels or {}), "managedFields": managed}
    return value


def node(name: str, *ips: str, pod_cidrs: tuple[str, ...] = ()) -> Object:
    value = _new("Node", name, {"kubernetes.io/hostname": name})
    value["spec"] = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}
    value["status"]["addresses"] = [{"type": "InternalIP", "address": ip} for ip in ips]
    value["status"]["addresses"].append({"type": "Hostname", "address": name})
    return value


def pod(
    key: str,
    *ips: str,
    node: str | None = "node-1",
    phase: str | None = None,
    labels: dict[str, str] | None = None,
    ports: tuple[tuple[str, str, int], ...] = (),
    host_network: bool = False,
) -> Object:
    """A pod "namespace/name". `ports` are (name, protocol, number); without an address it is Pending."""
    value = _new("Pod", key, labels)
    named = [{"name": name, "protocol": protocol, "containerPort": number} for name, protocol, number in ports]
    value["spec"]["containers"][0]["ports"] = named
    value["spec"].pop("nodeName", None)
    value["spec"] |= ({"nodeName": node} if node else {}) | ({"hostNetwork": True} if host_network else {})
    value["status"] = {"phase": phase or ("Running" if ips else "Pending"), "qosClass": "BestEffort"}
    if ips:
        ready = {"type": "Ready", "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-11-22T03:34:04Z"}
        value["status"] |= {"podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips], "conditions": [ready]}
    return value


def service(
    key: str,
    *ips: str,
    port: int = 80,
    target: int | str = 8080,
    name: str = "http",
    kind: str = "ClusterIP",
    selector: dict[str, str] | None = None,
) -> Object:
    """A Service of one port; without an address it is headless."""
    value = _new("Service", key, None)
    families = ["IPv6" if ":" in ip else "IPv4" for ip in ips] or ["IPv4"]
    value["spec"] = {
        "ports": [{"name": name, "protocol": "TCP", "port": port, "targetPort": target}],
        "selector": selector or {"app": key.rpartition("/")[2]},
        "clusterIP": ips[0] if ips else "None",
        "clusterIPs": list(ips) or ["None"],
        "type": kind,
        "sessionAffinity": "None",
        "ipFamilies": families,
        "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
        "internalTrafficPolicy": "Cluster",
    }
    return value


def endpointslice(key: str, service: str, *pods: Object, port: int = 8080, name: str = "http") -> Object:
    """The slice of a Service whose endpoints are these pods; one that is not Running is not ready."""
    value = _new("EndpointSlice", key, {"kubernetes.io/service-name": service})
    value["endpoints"] = [_endpoint(pod) for pod in pods]
    value["addressType"] = "IPv6" if any(":" in pod["status"]["podIP"] for pod in pods) else "IPv4"
    value["ports"] = [{"name": name, "protocol": "TCP", "port": port}]
    return value


def _endpoint(pod: Object) -> Object:
    metadata, ready = pod["metadata"], pod["status"]["phase"] == "Running"
    target = {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"]}
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "nodeName": pod["spec"].get("nodeName"),
        "targetRef": target,
    }


def changed(value: Object, **metadata: object) -> Object:
    """A copy with other metadata, such as labels={…}."""
    copied = copy.deepcopy(value)
    copied["metadata"] |= metadata
    return copied
