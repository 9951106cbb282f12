"""What a cluster needs for `kubectl k8snet`: a namespace that lets agents in, and the rights to start them.

In: the namespace and the image. Out: YAML, the same for the same input, with comments for whoever reviews it. No person
is bound to a role: who may start agents is root on the nodes, and that is for a person to decide.
"""

from __future__ import annotations

import json
from typing import Final

from k8snet.remote.pods import RIGHTS
from k8snet.remote.spec import CAPABILITIES, ENFORCE, GRACE, IMAGE

_VIEW: Final = (
    ("", ("nodes", "pods", "services")),
    ("discovery.k8s.io", ("endpointslices",)),
    ("networking.k8s.io", ("ingresses", "networkpolicies")),
    ("apps", ("daemonsets", "deployments", "replicasets", "statefulsets")),
    ("batch", ("cronjobs", "jobs")),
)


_WATCHED: Final = (
    ("", ("nodes", "pods", "services")),
    ("discovery.k8s.io", ("endpointslices",)),
    ("networking.k8s.io", ("networkpolicies",)),
)
PORT: Final = 9753  # of the metrics; a guess that nobody has it
MEMORY: Final = 512  # MiB that the container may have, of which ...
BUDGET: Final = 448  # ... k8snet is told this many; the rest is for what its files in memory take


def manifests(namespace: str, image: str | None, *, watch: bool = False) -> str:
    """The YAML; `image` is noted for `kubectl k8snet trace`. `watch`: also what runs `k8snet watch` on every node."""
    annotations = f"  annotations:\n    {IMAGE}: {json.dumps(image)}\n" if image else ""
    agents = "\n".join(RIGHTS)
    runs = (
        "The DaemonSet at the end runs `k8snet watch` on every node."
        if watch
        else "It runs nothing: agent pods come and go with each trace.\n"
        "# With --watch there is a DaemonSet, too: `k8snet watch` on every node."
    )
    return f"""\
# k8snet: what `kubectl k8snet trace` needs. {runs}
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
{_rules(_VIEW)}---
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
""" + (_daemon_set(namespace, image or "") if watch else "")


def _rules(groups: tuple[tuple[str, tuple[str, ...]], ...]) -> str:
    return "".join(
        f"- apiGroups: [{json.dumps(group)}]\n  resources: [{', '.join(resources)}]\n  verbs: [list, watch]\n"
        for group, resources in groups
    )


def _daemon_set(namespace: str, image: str) -> str:
    space = json.dumps(namespace)
    return f"""\
---
# Who the watch is to the API.
apiVersion: v1
kind: ServiceAccount
metadata:
  name: k8snet-watch
  namespace: {space}
  labels:
    app.kubernetes.io/name: k8snet
---
# What its names are made of. It asks for the pods of its own node only; RBAC cannot say that.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: k8snet-watch
  labels:
    app.kubernetes.io/name: k8snet
rules:
{_rules(_WATCHED)}---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: k8snet-watch
  labels:
    app.kubernetes.io/name: k8snet
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: k8snet-watch
subjects:
- kind: ServiceAccount
  name: k8snet-watch
  namespace: {space}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: k8snet-watch
  namespace: {space}
  labels: &labels
    app.kubernetes.io/name: k8snet
    app.kubernetes.io/component: watch
spec:
  selector:
    matchLabels: *labels
  template:
    metadata:
      labels: *labels
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "{PORT}"
        # Kubernetes before 1.30 knows AppArmor by this alone.
        container.apparmor.security.beta.kubernetes.io/watch: unconfined
    spec:
      serviceAccountName: k8snet-watch
      nodeSelector:
        kubernetes.io/os: linux
      # Control planes and nodes in trouble are watched, too.
      tolerations:
      - operator: Exists
      # Pods are found by their processes; the watch's own packets are the node's and no pod's.
      hostPID: true
      hostNetwork: true
      dnsPolicy: Default
      enableServiceLinks: false
      terminationGracePeriodSeconds: {GRACE}
      containers:
      - name: watch
        image: {json.dumps(image)}
        imagePullPolicy: IfNotPresent
        command: [k8snet]
        # The metrics are to be read on the node's own address: whoever reaches the node reaches them.
        args: [watch, --output, jsonl, --memory, {BUDGET}Mi, --metrics, "$(HOST_IP):{PORT}"]
        env:
        - name: NODE_NAME
          valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}
        - name: HOST_IP
          valueFrom: {{fieldRef: {{fieldPath: status.hostIP}}}}
        ports:
        - name: metrics
          containerPort: {PORT}
          hostPort: {PORT}
          protocol: TCP
        securityContext:
          runAsUser: 0
          runAsNonRoot: false
          readOnlyRootFilesystem: true
          capabilities:
            drop: [ALL]
            add: [{", ".join(CAPABILITIES)}]
          appArmorProfile: {{type: Unconfined}}
          seLinuxOptions: {{type: spc_t}}
          seccompProfile: {{type: RuntimeDefault}}
        # No limit of CPU: a watch that is held up loses events. Above its budget it looks at fewer connections.
        resources:
          requests: {{cpu: 50m, memory: 128Mi}}
          limits: {{memory: {MEMORY}Mi}}
        volumeMounts:
        - {{name: run, mountPath: /run/k8snet}}
        - {{name: tmp, mountPath: /tmp}}
      volumes:
      - name: run
        emptyDir: {{medium: Memory, sizeLimit: 16Mi}}
      - name: tmp
        emptyDir: {{medium: Memory, sizeLimit: 16Mi}}
"""
