"""The pod that runs k8snet on a node, as an object of the API. Functions of values.

In: which node, which image, the words of the command, what the inventory is to hold. Out: a dict. The pod gets no
credentials of the cluster: names come along in an annotation, and the downward API makes a file of it. Nor does it
mount a path of the host: with hostPID and SYS_PTRACE all that k8snet reads is below /proc/1/root.

Surprising: which capabilities are needed was found by leaving out one after the other (docs/install.md has the table).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]

NAMESPACE: Final = "k8snet"
NAME: Final = "app.kubernetes.io/name"
LABELS: Final = {NAME: "k8snet", "app.kubernetes.io/component": "agent"}
SELECTOR: Final = ",".join(f"{key}={value}" for key, value in LABELS.items())
IMAGE: Final = "k8snet.io/image"  # annotation of the namespace: the image of its agents
STARTED_BY: Final = "k8snet.io/started-by"  # annotation of an agent: whose it is
INVENTORY: Final = "k8snet.io/inventory"
ENFORCE: Final = "pod-security.kubernetes.io/enforce"
CONTAINER: Final = "agent"
GRACE: Final = 20  # seconds: for the report once it is told to end; its own patience is 3 s by default
DIRECTORY: Final = "/etc/k8snet"
FILE: Final = f"{DIRECTORY}/inventory.json"
CAPABILITIES: Final = (
    "BPF",
    "NET_ADMIN",
    "NET_RAW",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_RESOURCE",
)
# All annotations of an object together may have 256 KiB (apimachinery, TotalAnnotationSizeLimitB).
MOST: Final = 240 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where agents run, and as what; the same for all of a command."""

    namespace: str
    image: str
    privileged: bool = False
    started_by: str = ""


def pod(place: Place, name: str, node: str, words: Sequence[str], inventory: str, lifetime: int) -> Object:
    """The Pod that runs `k8snet WORDS` on `node`, once; the kubelet ends it after `lifetime` seconds at the latest."""
    annotations = {
        STARTED_BY: place.started_by,
        INVENTORY: inventory,
        # Kubernetes before 1.30 knows AppArmor by this alone; later ones want it to say what the field says.
        f"container.apparmor.security.beta.kubernetes.io/{CONTAINER}": "unconfined",
    }
    if place.privileged:  # runs unconfined anyway
        del annotations[f"container.apparmor.security.beta.kubernetes.io/{CONTAINER}"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": place.namespace,
            "labels": dict(LABELS),
            "annotations": annotations,
        },
        "spec": {
            # Not by a scheduler, which may find the node full, cordoned or tainted: it is this node or none.
            "nodeName": node,
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": lifetime,
            "terminationGracePeriodSeconds": GRACE,
            "hostPID": True,
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [_container(place, words)],
            "volumes": [
                {"name": "names", "downwardAPI": {"items": [_file()]}},
                {"name": "run", "emptyDir": {"medium": "Memory"}},
                {"name": "tmp", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _container(place: Place, words: Sequence[str]) -> Object:
    return {
        "name": CONTAINER,
        "image": place.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["k8snet"],
        "args": list(words),
        "securityContext": security(privileged=place.privileged),
        # It asks for nothing, for the kubelet of a full node would refuse it (OutOfcpu): what is not said here is taken
        # from the limits. No limit of CPU: a tracer that is held up loses events.
        "resources": {"requests": {"cpu": "0", "memory": "0"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [
            {"name": "names", "mountPath": DIRECTORY, "readOnly": True},
            {"name": "run", "mountPath": "/run/k8snet"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a directory of its own
        ],
    }


def _file() -> Object:
    return {"path": FILE.rpartition("/")[2], "fieldRef": {"fieldPath": f"metadata.annotations['{INVENTORY}']"}}


def security(*, privileged: bool) -> Object:
    """The container's securityContext: root with eight capabilities, or all that there is."""
    if privileged:
        return {"privileged": True, "runAsUser": 0, "readOnlyRootFilesystem": True}
    return {
        "runAsUser": 0,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
        # The runtimes' profile lets nobody look into processes outside of the container: /proc/PID/ns.
        "appArmorProfile": {"type": "Unconfined"},
        # The same of SELinux; a node without it does not look at this.
        "seLinuxOptions": {"type": "spc_t"},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def inventory(items: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
    """A List of these objects in one line, each once, without what k8snet does not read; and how many did not fit."""
    found: dict[tuple[str, ...], str] = {}
    for item in items:
        key = (str(item["kind"]), str(item["metadata"].get("namespace") or ""), str(item["metadata"]["name"]))
        if key not in found:
            found[key] = json.dumps(_pruned(item), separators=(",", ":"))
    taken, left = [], MOST
    for text in found.values():
        if len(text) < left:
            taken.append(text)
            left -= len(text) + 1
    return '{"apiVersion":"v1","kind":"List","items":[' + ",".join(taken) + "]}", len(found) - len(taken)


_STATIC: Final = "kubernetes.io/config.hash"  # by which the kubelet and its cgroups know a static pod
_KEPT: Final = ("name", "namespace", "uid", "labels", "ownerReferences", "deletionTimestamp")


def _pruned(item: Mapping[str, Any]) -> Object:
    metadata = {key: value for key, value in item["metadata"].items() if key in _KEPT and value}
    own = (item["metadata"].get("annotations") or {}).get(_STATIC)
    metadata |= {"annotations": {_STATIC: own}} if own else {}
    kept = {key: value for key, value in item.items() if key != "metadata"} | {"metadata": metadata}
    if item["kind"] == "Pod":
        spec, status = item.get("spec") or {}, item.get("status") or {}
        kept["spec"] = {key: spec[key] for key in ("nodeName", "hostNetwork") if key in spec}
        for containers in ("containers", "initContainers"):  # a native sidecar is one of the latter
            if containers in spec:
                kept["spec"][containers] = [
                    {"name": one.get("name"), **({"ports": one["ports"]} if one.get("ports") else {})}
                    for one in spec[containers] or ()
                ]
        kept["status"] = {
            key: status[key] for key in ("phase", "podIP", "podIPs", "hostIP", "hostIPs") if key in status
        }
        ready = [one for one in status.get("conditions") or () if one.get("type") == "Ready"]
        kept["status"]["conditions"] = [{"type": "Ready", "status": one.get("status")} for one in ready]
    elif item["kind"] == "Node":
        spec, status = item.get("spec") or {}, item.get("status") or {}
        kept["spec"] = {key: spec[key] for key in ("podCIDR", "podCIDRs") if key in spec}
        kept["status"] = {"addresses": status.get("addresses") or []}
    return kept
