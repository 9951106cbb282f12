"""Which pod and which container a process belongs to, read from the path of its cgroup.

In: /proc/PID/cgroup. Out: a `Member`: pod UID, container id, and the container that is the node, where there is one
(kind, k3d). The directories' names are those of `PODS` and `CONTAINERS`, and no other; each has an example.

Sources: the pod's directory is the kubelet's, for both cgroup drivers (design proposal "Kubelet pod level resource
management"; kubernetes.io, "Container runtimes", section "cgroup drivers"); the container's is the runtime's
(containerd: docs/cri/config.md, SystemdCgroup; CRI-O: crio.conf(5), cgroup_manager and conmon_cgroup; dockerd(8),
native.cgroupdriver). On cgroup v1 and in hybrid mode a process has a line a hierarchy, and some of them stay at the
root (cgroups(7)); the same directories are in v2's one line.

Surprising: conmon, which CRI-O runs beside each container, is in the pod's cgroup and in the host's netns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

# A static pod's UID is a hash of its file: hexadecimal, without dashes. The systemd driver writes "_" for "-".
_UID: Final = r"(?P<uid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})"
_SYSTEMD_UID: Final = _UID.replace("-[0-9a-f]", "_[0-9a-f]")
_SOMETHING: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{12}(?![0-9a-f])")  # the end of each of the two
_ID: Final = r"(?P<id>[0-9a-f]{64})"


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a pod or a container into a cgroup's path."""

    who: str
    pattern: re.Pattern[str]  # of one directory's name, the whole of it
    example: str


PODS: Final = (
    Form(
        # Before "kubepods": what --cgroup-root adds, as kind does.
        "the kubelet's systemd driver",
        re.compile(rf"(?:\w+-)*kubepods(?:-besteffort|-burstable)?-pod{_SYSTEMD_UID}\.slice"),
        "kubepods-burstable-pod0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0.slice",
    ),
    Form(
        "the kubelet's cgroupfs driver",
        re.compile(rf"pod{_UID}"),
        "pod0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
    ),
    Form(
        "containerd without SystemdCgroup, under a kubelet with the systemd driver",
        re.compile(rf"(?:\w+-)*kubepods(?:-besteffort|-burstable)?-pod{_SYSTEMD_UID}\.slice:cri-containerd:{_ID}"),
        "kubepods-pod0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0.slice:cri-containerd:" + 64 * "c",
    ),
)
CONTAINERS: Final = (
    Form("containerd, also k3s's", re.compile(rf"cri-containerd-{_ID}\.scope"), f"cri-containerd-{64 * 'c'}.scope"),
    Form("CRI-O, either driver", re.compile(rf"crio-{_ID}(?:\.scope)?"), f"crio-{64 * 'c'}.scope"),
    Form("docker under cri-dockerd", re.compile(rf"docker-{_ID}\.scope"), f"docker-{64 * 'c'}.scope"),
    Form("containerd, k3s, docker: cgroupfs driver", re.compile(_ID), 64 * "c"),
    Form("podman, as kind's node", re.compile(rf"libpod-{_ID}(?:\.scope)?"), f"libpod-{64 * 'c'}.scope"),
)
# CRI-O's monitor of a container: in its pod's cgroup (or system.slice), but no part of the pod.
MONITORS: Final = (
    Form("CRI-O's conmon", re.compile(rf"crio-conmon-{_ID}(?:\.scope)?"), f"crio-conmon-{64 * 'c'}.scope"),
)

FEW: Final = 32  # a guess: of a netns's processes; its pause process is among the first


@dataclass(frozen=True, slots=True)
class Member:
    """What a process is part of."""

    uid: str | None = None  # the pod's, as Kubernetes writes it
    container: str | None = None
    node: str | None = None  # the container that the pod's node is
    monitor: bool = False  # beside the container, not inside


def member(text: str) -> Member:
    """Of the text of /proc/PID/cgroup; an empty Member when there is neither pod nor container in it."""
    found = Member()
    for path in (line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2):
        here = _of_path(path)
        if here.uid:
            return here
        found = found if found.container else here
    return found


@lru_cache(4096)  # a guess; a process has up to a dozen lines, which are often the same
def _of_path(path: str) -> Member:
    if not _SOMETHING.search(path):
        return Member()
    directories = path.split("/")
    matches = [_match(PODS, directory) for directory in directories]
    containers = [_match(CONTAINERS, directory) for directory in directories]
    # The innermost pod: a node that is itself a container, or a pod, has its own id in front.
    at = max((i for i, match in enumerate(matches) if match), default=None)
    pod = matches[at] if at is not None else None
    if at is None or pod is None:
        return Member(container=next((match["id"] for match in reversed(containers) if match), None))
    inside = directories[at + 1 :]
    # Behind the pod the outermost: what a container nests in itself is not the runtime's.
    own = pod.groupdict().get("id") or next((match["id"] for match in containers[at + 1 :] if match), None)
    return Member(
        uid=pod["uid"].replace("_", "-"),
        container=own,
        node=next((match["id"] for match in reversed(containers[:at]) if match), None),
        monitor=any(_match(MONITORS, directory) for directory in inside),
    )


def _match(forms: Iterable[Form], directory: str) -> re.Match[str] | None:
    return next((match for form in forms if (match := form.pattern.fullmatch(directory))), None)


def members(proc: Path, pids: Iterable[int]) -> Iterator[tuple[int, Member]]:
    """Of each process that still runs and belongs to a pod or container."""
    for pid in pids:
        try:
            text = (proc / str(pid) / "cgroup").read_text(errors="replace")
        except OSError:
            continue
        found = member(text)
        if found.uid or found.container:
            yield pid, found
