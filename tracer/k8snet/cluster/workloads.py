"""Which pods belong to which Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and CronJob.

The pods' own ownerReferences say it, over the ReplicaSet to the Deployment and over the Job to the CronJob. Where the
inventory lacks ReplicaSets or Jobs, the names that the controllers give them say it as well. A pod that nobody owns
belongs to whoever selects it. Other owners (Argo's Rollout) are nobody's here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from k8snet.cluster.inventory import Inventory, Pod, Workload, WorkloadKind

_KINDS: Final[Mapping[str, WorkloadKind]] = {
    "Deployment": "deploy",
    "ReplicaSet": "rs",
    "StatefulSet": "sts",
    "DaemonSet": "ds",
    "Job": "job",
    "CronJob": "cj",
}
Key = tuple[str, str]  # short kind, namespace/name


def pods_by_workload(inventory: Inventory) -> dict[Key, list[Pod]]:
    """The pods of each workload that the inventory holds, or that its pods speak of; [] for one without pods."""
    declared: dict[Key, Workload] = {(w.kind, w.key): w for w in inventory.workloads}
    found: dict[Key, list[Pod]] = {key: [] for key in declared}
    for pod in inventory.pods:
        for key in _owners(pod, declared) if pod.owner else _selectors(pod, inventory.workloads):
            found.setdefault(key, []).append(pod)
    return found


def _owners(pod: Pod, declared: Mapping[Key, Workload]) -> Iterator[Key]:
    owner = pod.owner
    while owner is not None and owner.kind in _KINDS:
        key = (_KINDS[owner.kind], f"{pod.namespace}/{owner.name}")
        yield key
        if key in declared:
            owner = declared[key].owner
            continue
        if key[0] == "rs":
            # The Deployment's controller names its ReplicaSets NAME-HASH and gives their pods the hash as a label.
            template = dict(pod.labels).get("pod-template-hash")
            if template and (name := owner.name.removesuffix(f"-{template}")) not in (owner.name, ""):
                yield "deploy", f"{pod.namespace}/{name}"
        elif key[0] == "job" and (made := re.fullmatch(r"(.+)-[0-9]{8}", owner.name)):
            # The CronJob's controller names its Jobs NAME-MINUTES, minutes since 1970: eight digits until 2160.
            yield "cj", f"{pod.namespace}/{made[1]}"
        return


def _selectors(pod: Pod, workloads: tuple[Workload, ...]) -> Iterator[Key]:
    labels = dict(pod.labels)
    for workload in workloads:
        # A selector that says nothing selects everything; no workload may have one, so it is not one's word.
        said = workload.selector is not None and (workload.selector.labels or workload.selector.expressions)
        if said and workload.selector and workload.namespace == pod.namespace and workload.selector.matches(labels):
            yield workload.kind, workload.key
