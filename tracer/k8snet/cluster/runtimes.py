"""Pod names without the API: what the container runtime and the kubelet have written on the node's own disk.

In: the root of a node's file system, and what its processes are part of (k8snet.cluster.cgroups). Out: `Claim`s: a
name for a pod UID, and who says so. Root alone is enough and no daemon is asked, except as the last resort.

- the runtime's bundle of a running container: config.json of the OCI runtime specification, with annotations of
  containerd (internal/cri/annotations) or CRI-O (its labels are annotations, too); docker keeps labels beside it;
- /var/log/pods/NAMESPACE_NAME_UID/, which the kubelet makes for each pod (KEP-2718 and before it the design proposal
  "CRI: Log management for container stdout/stderr streams");
- `crictl pods`, where that is installed, and only for UIDs that the others leave without a name.

Surprising: a node may be a container (kind), and its files then are hostile territory: nothing but small regular files
is read, and never through a link at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from k8snet.cluster.cgroups import Member

_LARGEST: Final = 4 << 20  # bytes; a config.json has some 20,000, with many mounts ten times as many
_CRICTL_TIMEOUT: Final = 2  # seconds: a daemon that hangs must not hang us
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # RFC 1123: of namespaces and pods
_LOGS: Final = re.compile(r"(?P<namespace>[^_]+)_(?P<name>[^_]+)_(?P<uid>[0-9a-f-]{32,36})")


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody on the node says what a pod is called."""

    uid: str
    namespace: str
    name: str
    source: str  # "containerd", "CRI-O", "docker", "/var/log/pods", "crictl"
    netns: int | None = None  # the pod's netns, where the source says it

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where a runtime describes a container, and under which keys it names the pod."""

    source: str
    path: str  # below the node's root; {id} is the container
    keys: tuple[str, str, str]  # UID, namespace, name
    within: tuple[str, ...] = ("annotations",)


_CRI: Final = ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name")
_KUBELET: Final = ("io.kubernetes.pod.uid", "io.kubernetes.pod.namespace", "io.kubernetes.pod.name")
_TASKS: Final = "io.containerd.runtime.v2.task/k8s.io/{id}/config.json"
_USERDATA: Final = "containers/storage/overlay-containers/{id}/userdata/config.json"

BUNDLES: Final = (
    Bundle("containerd", f"run/containerd/{_TASKS}", _CRI),
    Bundle("containerd", f"run/k3s/containerd/{_TASKS}", _CRI),  # k3s, RKE2
    Bundle("containerd", f"run/k0s/containerd/{_TASKS}", _CRI),
    Bundle("containerd", f"var/snap/microk8s/common/run/containerd/{_TASKS}", _CRI),
    Bundle("CRI-O", f"run/{_USERDATA}", _KUBELET),
    Bundle("CRI-O", f"var/lib/{_USERDATA}", _KUBELET),
    Bundle("docker", "var/lib/docker/containers/{id}/config.v2.json", _KUBELET, ("Config", "Labels")),
)
LOGS: Final = "var/log/pods"
SOCKETS: Final = (
    "run/containerd/containerd.sock",
    "run/crio/crio.sock",
    "run/k3s/containerd/containerd.sock",
    "run/cri-dockerd.sock",
)


@dataclass
class Names:
    """What is written below one node's root; each directory is read once."""

    root: Path
    # Containers of an earlier look: their description never changes.
    memo: dict[tuple[Path, str], Claim] = field(default_factory=dict)

    def claims(self, uid: str, containers: Iterable[str], *, ask: bool = True) -> tuple[Claim, ...]:
        """All that is claimed of this pod, the most trusted first; `ask`: also by crictl, if nothing else does."""
        bundles = (self._bundle(container) for container in containers)
        # All its containers say the same: the first is enough.
        first = next((claim for claim in bundles if claim is not None and claim.uid == uid), None)
        found = [*([first] if first else []), *self.logs.get(uid, ())]
        if not found and ask:
            found += [claim] if (claim := self.crictl.get(uid)) else []
        return tuple(dict.fromkeys(found))

    def _bundle(self, container: str) -> Claim | None:
        key = (self.root, container)
        if key not in self.memo:
            claims = (bundle_claim(self.root, bundle, container) for bundle in self._here)
            found = next((claim for claim in claims if claim), None)
            if found is None:
                return None  # it may be in the making
            self.memo[key] = found
        return self.memo[key]

    def at_home(self, inum: int) -> tuple[Claim, ...]:
        """Whose netns it is by the runtime's word: of a pod without a process (all crashed, or in a VM)."""
        return self._by_netns.get(inum, ())

    @cached_property
    def _by_netns(self) -> Mapping[int, tuple[Claim, ...]]:
        found: dict[int, tuple[Claim, ...]] = {}
        for bundle in self._here:
            for container in _listed(self.root / bundle.path.split("{id}")[0]):
                claim = self._bundle(container)
                if claim is not None and claim.netns is not None:
                    found[claim.netns] = tuple(dict.fromkeys((*found.get(claim.netns, ()), claim)))
        return found

    @cached_property
    def _here(self) -> list[Bundle]:
        return [bundle for bundle in BUNDLES if (self.root / bundle.path.split("{id}")[0]).is_dir()]

    @cached_property
    def logs(self) -> Mapping[str, list[Claim]]:
        """The pods that have a directory of logs, by UID."""
        found: dict[str, list[Claim]] = {}
        for claim in log_claims(_listed(self.root / LOGS)):
            found.setdefault(claim.uid, []).append(claim)
        return found

    @cached_property
    def crictl(self) -> Mapping[str, Claim]:
        """The pods that the runtime's own client knows, by UID."""
        program = shutil.which("crictl")
        sockets = [self.root / socket for socket in SOCKETS if (self.root / socket).is_socket()]
        return {claim.uid: claim for s in sockets if program for claim in crictl_claims(_asked(program, s))}


def bundle_claim(root: Path, bundle: Bundle, container: str) -> Claim | None:
    """What the runtime's description of a container says of its pod; None when there is none."""
    text = _small_file(root / bundle.path.format(id=container))
    document = _json(text) if text is not None else None
    labels: Any = document
    for key in bundle.within:
        labels = labels.get(key) if isinstance(labels, dict) else None
    if not isinstance(labels, dict):
        return None
    uid, namespace, name = (labels.get(key) for key in bundle.keys)
    return _claim(uid, namespace, name, bundle.source, _netns(root, document))


def log_claims(directories: Iterable[str]) -> list[Claim]:
    """The names of directories below /var/log/pods, taken apart."""
    matches = (_LOGS.fullmatch(directory) for directory in directories)
    claims = (_claim(m["uid"], m["namespace"], m["name"], f"/{LOGS}") for m in matches if m)
    return [claim for claim in claims if claim]


def crictl_claims(text: str) -> list[Claim]:
    """What `crictl pods -o json` printed: a PodSandbox of the CRI each."""
    document = _json(text)
    items = document.get("items") if isinstance(document, dict) else None
    claims = []
    for item in items if isinstance(items, list) else ():
        # A sandbox that is not ready is of a pod that ended, or the pod's former one.
        if isinstance(item, dict) and item.get("state") == "SANDBOX_READY" and isinstance(item.get("metadata"), dict):
            metadata = item["metadata"]
            claims.append(_claim(metadata.get("uid"), metadata.get("namespace"), metadata.get("name"), "crictl"))
    return [claim for claim in claims if claim]


def roots(proc: Path, members: Iterable[tuple[int, Member]], given: Path | None = None) -> dict[str | None, Path]:
    """The root of the machine's file system (None), and of each container that is a node (its id).

    `given` is the machine's root where it is not pid 1's.
    """
    found: dict[str | None, Path] = {None: given or _root(proc, 1) or Path("/")}
    members = list(members)
    nodes = {one.node for _, one in members if one.node}
    for pid, one in sorted(members, key=lambda found: found[0]):
        if one.uid is None and one.container in nodes and one.container not in found:
            root = _root(proc, pid)
            found |= {one.container: root} if root else {}
    return found


def _root(proc: Path, pid: int) -> Path | None:
    root = proc / str(pid) / "root"
    try:
        return root if (root / ".").is_dir() else None
    except OSError:
        return None


def _claim(uid: object, namespace: object, name: object, source: str, netns: int | None = None) -> Claim | None:
    if not isinstance(uid, str) or not isinstance(namespace, str) or not isinstance(name, str):
        return None
    if not uid or not _NAME.fullmatch(namespace) or not _NAME.fullmatch(name):
        return None
    return Claim(uid, namespace, name, source, netns)


def _netns(root: Path, document: Any) -> int | None:
    """The netns that an OCI config.json makes the container join."""
    linux = document.get("linux") if isinstance(document, dict) else None
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    for namespace in namespaces if isinstance(namespaces, list) else ():
        if isinstance(namespace, dict) and namespace.get("type") == "network":
            path = namespace.get("path")
            # The link /var/run would lead to our own /run. A path in /proc has a pid of the node's, not of ours.
            match = re.fullmatch(r"(?:/var)?/run/((?:docker/)?netns/[^/]+)", path) if isinstance(path, str) else None
            try:
                return (root / "run" / match[1]).stat().st_ino if match else None
            except OSError:
                return None
    return None


def _small_file(path: Path) -> str | None:
    try:
        # NONBLOCK: opening a pipe would wait for somebody who writes.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _listed(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:
        return []


def _asked(program: str, socket: Path) -> str:
    words = [program, "--runtime-endpoint", f"unix://{socket}", "--timeout", f"{_CRICTL_TIMEOUT}s"]
    try:
        ran = subprocess.run(
            [*words, "pods", "-o", "json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CRICTL_TIMEOUT + 1,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.decode("utf-8", "replace") if ran.returncode == 0 else ""
