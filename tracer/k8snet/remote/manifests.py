"""What a cluster needs for `kubectl k8snet`: a namespace that lets agents in, and the rights to start them.

In: the namespace and the image. Out: YAML, the same for the same input, with comments for whoever reviews it. Nobody
is bound to the roles: who may start agents is root on the nodes, and that is for a person to decide.
"""

from __future__ import annotations

import json
from typing import Final

from k8snet.remote.pods import RIGHTS
from k8snet.remote.spec import ENFORCE, IMAGE

_VIEW: Final = (
    ("", ("nodes", "pods", "services")),
    ("discovery.k8s.io", ("endpointslices",)),
    ("networking.k8s.io", ("ingresses", "networkpolicies")),
    ("apps", ("daemonsets", "deployments", "replicasets", "statefulsets")),
    ("batch", ("cronjobs", "jobs")),
)


def manifests(namespace: str, image: str | None) -> str:
    """The YAML; `image` is noted for `kubectl k8snet trace`."""
    annotations = f"  annotations:\n    {IMAGE}: {json.dumps(image)}\n" if image else ""
    view = "".join(
        f"- apiGroups: [{json.dumps(group)}]\n  resources: [{', '.join(resources)}]\n  verbs: [list, watch]\n"
        for group, resources in _VIEW
    )
    agents = "\n".join(RIGHTS)
    return f"""\
# k8snet: what `kubectl k8snet trace` needs. It runs nothing: agent pods come and go with each trace.
# A DaemonSet is left out: its command, `k8snet watch`, does not exist yet.
# Give both roles to whoever is to trace (starting an agent makes them root on the nodes):
#   kubectl create clusterrolebinding k8snet-names --clusterrole k8snet-names --user USER
#   kubectl -n {namespace} create rolebinding k8snet-agents --role k8snet-agents --user USER
apiVersion: v1
kind: Namespace
metadata:
  name: {json.dumps(namespace)}
  labels:
    app.kubernetes.io/name: k8snet
    # Agents have hostPID, hostNetwork and capabilities: the profiles below this one refuse them.
    {ENFORCE}: privileged
{annotations}---
# What names are made of.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: k8snet-names
  labels:
    app.kubernetes.io/name: k8snet
rules:
{view}---
# To start agents, read them, and delete them.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: k8snet-agents
  namespace: {json.dumps(namespace)}
  labels:
    app.kubernetes.io/name: k8snet
rules:
{agents}
"""
