"""Who a process is and what its pod is called, on trees of /proc, cgroups and state directories: one a runtime.

The trees are data: paths and contents as the runtimes' and the kubelet's documentation has them, shortened to what
identifies a pod. UIDs, ids and names are made up.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cluster import hardware
from k8snet.cluster.cgroups import CONTAINERS, MONITORS, PODS, Form, Member, member, members
from k8snet.cluster.hardware import Hardware
from k8snet.cluster.runtimes import BUNDLES, Claim, Names, bundle_claim, crictl_claims, log_claims, roots
from k8snet.kernel.rtnetlink import Link

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
SYSTEMD = UID.replace("-", "_")
STATIC = "8d4b62dd8ac4c1ba05a9b9fcc1b5dbc5"  # a static pod's: the hash of its file
PAUSE, APP, OUTER = "aa" * 32, "bb" * 32, "0b" * 32


# cgroup paths


@dataclass(frozen=True)
class Cgroup:
    """A process's /proc/PID/cgroup and what it says."""

    id: str
    text: str
    uid: str | None = UID
    container: str | None = APP
    node: str | None = None
    monitor: bool = False


BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice"
GUARANTEED = f"/kubepods.slice/kubepods-pod{SYSTEMD}.slice"
KIND = "/kubelet.slice/kubelet-kubepods.slice"
HYBRID = f"""\
13:misc:/
11:cpuset:/kubepods/pod{UID}/{APP}
1:name=systemd:/kubepods/pod{UID}/{APP}
0::/system.slice/containerd.service
"""

CGROUPS = (
    Cgroup("containerd-systemd-v2", f"0::{BURSTABLE}/cri-containerd-{APP}.scope\n"),
    Cgroup("containerd-systemd-guaranteed", f"0::{GUARANTEED}/cri-containerd-{APP}.scope"),
    Cgroup(
        "containerd-cgroupfs-v1", "".join(f"{n}:/kubepods/besteffort/pod{UID}/{APP}\n" for n in ("12:pids", "1:cpu"))
    ),
    Cgroup("containerd-cgroupfs-v2", f"0::/kubepods/burstable/pod{UID}/{APP}"),
    Cgroup(
        "containerd-cgroupfs-under-a-systemd-kubelet",
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{SYSTEMD}.slice:cri-containerd:{APP}",
    ),
    Cgroup("containerd-hybrid", HYBRID),
    Cgroup("cri-o-systemd-v2", f"0::{BURSTABLE}/crio-{APP}.scope"),
    Cgroup("cri-o-with-a-child-cgroup", f"0::{GUARANTEED}/crio-{APP}.scope/container"),
    Cgroup("cri-o-cgroupfs-v1", f"4:pids:/kubepods/burstable/pod{UID}/crio-{APP}"),
    Cgroup("cri-o-conmon-in-the-pod", f"0::{GUARANTEED}/crio-conmon-{APP}.scope", container=None, monitor=True),
    Cgroup("cri-o-conmon-in-the-system", f"0::/system.slice/crio-conmon-{APP}.scope", uid=None, container=None),
    Cgroup("k3s-cgroupfs", f"0::/kubepods/besteffort/pod{UID}/{APP}"),
    Cgroup("k3s-systemd", f"0::{BURSTABLE}/cri-containerd-{APP}.scope"),
    Cgroup("k3d", f"0::/docker/{OUTER}/kubepods/burstable/pod{UID}/{APP}", node=OUTER),
    Cgroup("docker-systemd-v1", f"1:name=systemd:{BURSTABLE}/docker-{APP}.scope"),
    Cgroup("docker-cgroupfs", f"9:memory:/kubepods/burstable/pod{UID}/{APP}"),
    Cgroup("docker-alone-systemd", f"0::/system.slice/docker-{APP}.scope", uid=None),
    Cgroup("docker-alone-cgroupfs", f"5:cpuset:/docker/{APP}\n0::/system.slice/containerd.service", uid=None),
    Cgroup("static-pod-systemd", f"0::/kubepods.slice/kubepods-pod{STATIC}.slice/crio-{APP}.scope", uid=STATIC),
    Cgroup("static-pod-cgroupfs", f"0::/kubepods/burstable/pod{STATIC}/{APP}", uid=STATIC),
    Cgroup(
        "kind-v2",
        f"0::/system.slice/docker-{OUTER}.scope{KIND}/kubelet-kubepods-besteffort.slice/"
        f"kubelet-kubepods-besteffort-pod{SYSTEMD}.slice/cri-containerd-{APP}.scope",
        node=OUTER,
    ),
    Cgroup("kind-v1", f"6:memory:/docker/{OUTER}/kubelet/kubepods/burstable/pod{UID}/{APP}", node=OUTER),
    Cgroup(
        "kind-on-podman",
        f"0::/machine.slice/libpod-{OUTER}.scope/container{KIND}/kubelet-kubepods-pod{SYSTEMD}.slice/"
        f"cri-containerd-{APP}.scope",
        node=OUTER,
    ),
    Cgroup(
        "kinds-own-kubelet",
        f"0::/system.slice/docker-{OUTER}.scope/kubelet.slice/kubelet.service",
        uid=None,
        container=OUTER,
    ),
    Cgroup(
        "a-cluster-inside-a-pod",
        f"0::/docker/{PAUSE}/kubepods/pod{'1' * 32}/{OUTER}/kubepods/besteffort/pod{UID}/{APP}",
        node=OUTER,
    ),
    Cgroup("docker-inside-the-pod", f"0::/kubepods/pod{UID}/{APP}/docker/{OUTER}"),
    Cgroup("seen-from-another-pod-systemd", f"0::/../../kubepods-pod{SYSTEMD}.slice/cri-containerd-{APP}.scope"),
    Cgroup("seen-from-another-pod-cgroupfs", f"0::/../../pod{UID}/{APP}"),
    Cgroup("the-pods-own-cgroup", f"0::/kubepods/burstable/pod{UID}", container=None),
    Cgroup("a-login", "0::/user.slice/user-0.slice/session-1.scope", uid=None, container=None),
    Cgroup("a-uid-in-a-services-name", f"0::/system.slice/backup-of-pod{UID}.service", uid=None, container=None),
    Cgroup("a-uid-that-goes-on", f"0::/kubepods/pod{UID}0/{APP}", uid=None),
    Cgroup("a-uid-that-began-before", f"0::/kubepods/pod0{UID}/{APP}", uid=None),
    Cgroup("half-a-uid", f"0::/kubepods/pod{UID[:-1]}/{APP}", uid=None),
    Cgroup("a-short-id", f"0::/kubepods/pod{UID}/{APP[:-1]}", container=None),
    Cgroup("nonsense", "nonsense", uid=None, container=None),
    Cgroup("empty", "", uid=None, container=None),
)


@pytest.mark.parametrize("case", CGROUPS, ids=lambda case: case.id)
def test_cgroup_paths(case: Cgroup) -> None:
    assert member(case.text) == Member(case.uid, case.container, case.node, case.monitor)


@pytest.mark.parametrize("form", [*PODS, *CONTAINERS, *MONITORS], ids=lambda form: form.who)
def test_each_form_has_an_example_that_no_other_form_fits(form: Form) -> None:
    fits = [other.who for other in (*PODS, *CONTAINERS, *MONITORS) if other.pattern.fullmatch(form.example)]
    assert fits == [form.who]


uids = st.uuids().map(str) | st.text("0123456789abcdef", min_size=32, max_size=32)
ids = st.text("0123456789abcdef", min_size=64, max_size=64)
above = st.lists(st.sampled_from(["system.slice", "kubelet", "k8s.io", "..", "init.scope"]), max_size=3)
qos = st.sampled_from(["", "-burstable", "-besteffort"])


@given(
    uids,
    ids,
    above,
    qos,
    st.sampled_from(["cri-containerd-{}.scope", "crio-{}.scope", "docker-{}.scope", "{}", "crio-{}"]),
)
def test_any_uid_under_either_driver(uid: str, container: str, above: list[str], qos: str, form: str) -> None:
    scope = form.format(container)
    systemd = "/".join(["", *above, f"kubepods{qos}-pod{uid.replace('-', '_')}.slice", scope])
    cgroupfs = "/".join(["", *above, "kubepods", qos[1:], f"pod{uid}", scope])
    assert member(f"0::{systemd}\n") == member(f"3:cpu:{cgroupfs}\n") == Member(uid, container)


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    found = member(text)
    assert found.uid is None or found.uid in text.replace("_", "-")


def test_processes_that_ended_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"8/cgroup": f"0::/kubepods/pod{UID}/{APP}", "9/cgroup": "0::/init.scope"})
    assert list(members(tmp_path, (7, 8, 9))) == [(8, Member(UID, APP))]


# names: one tree a runtime


def write(root: Path, files: dict[str, Any]) -> None:
    """`files` below `root`: text, JSON, or a directory (None)."""
    for path, content in files.items():
        file = root / path
        (file if content is None else file.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content))


def containerd(
    uid: str = UID, namespace: str = "shop", name: str = "cart-7d4f", *, netns: str | None = None
) -> dict[str, Any]:
    """A bundle's config.json of containerd's CRI plugin."""
    return {
        "ociVersion": "1.2.0",
        "process": {"args": ["/pause"], "cwd": "/"},
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": PAUSE,
            "io.kubernetes.cri.sandbox-log-directory": f"/var/log/pods/{namespace}_{name}_{uid}",
            "io.kubernetes.cri.sandbox-name": name,
            "io.kubernetes.cri.sandbox-namespace": namespace,
            "io.kubernetes.cri.sandbox-uid": uid,
        },
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network", **({"path": netns} if netns else {})}]},
    }


def cri_o(name: str = "cart-7d4f") -> dict[str, Any]:
    """A container's config.json of CRI-O."""
    return {
        "ociVersion": "1.1.0",
        "annotations": {
            "io.kubernetes.container.name": "cart",
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": PAUSE,
            "io.kubernetes.pod.name": name,
            "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.pod.uid": UID,
        },
        "linux": {"namespaces": [{"type": "network", "path": "/var/run/netns/d7b2"}]},
    }


DOCKER = {
    "ID": APP,
    "Config": {
        "Image": "shop/cart",
        "Labels": {
            "io.kubernetes.container.name": "cart",
            "io.kubernetes.docker.type": "container",
            "io.kubernetes.pod.name": "cart-7d4f",
            "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.pod.uid": UID,
            "io.kubernetes.sandbox.id": PAUSE,
        },
    },
}
TASKS = "io.containerd.runtime.v2.task/k8s.io"
BUNDLE = f"run/containerd/{TASKS}/{APP}/config.json"
MICROK8S = f"var/snap/microk8s/common/run/containerd/{TASKS}/{APP}/config.json"
USERDATA = f"run/containers/storage/overlay-containers/{APP}/userdata/config.json"
LABELS = f"var/lib/docker/containers/{APP}/config.v2.json"
LOGS = f"var/log/pods/shop_cart-7d4f_{UID}"


@dataclass(frozen=True)
class Tree:
    """A node's file system and who says what the pod is called."""

    id: str
    files: dict[str, Any] = field(repr=False)
    sources: tuple[str, ...]
    netns: str | None = None  # a file of the tree


TREES = (
    Tree("containerd", {BUNDLE: containerd()}, ("containerd",)),
    Tree("containerd-with-logs", {BUNDLE: containerd(), f"{LOGS}/cart/0.log": ""}, ("containerd", "/var/log/pods")),
    Tree(
        "containerd-and-its-netns",
        {BUNDLE: containerd(netns="/var/run/netns/cni-1"), "run/netns/cni-1": ""},
        ("containerd",),
        netns="run/netns/cni-1",
    ),
    Tree("containerd-and-a-netns-that-is-gone", {BUNDLE: containerd(netns="/var/run/netns/cni-1")}, ("containerd",)),
    # Before 1.6 containerd wrote no UID: then the name rests on the logs.
    Tree(
        "old-containerd",
        {BUNDLE: {"annotations": {"io.kubernetes.cri.sandbox-id": PAUSE}}, LOGS: None},
        ("/var/log/pods",),
    ),
    Tree("k3s", {f"run/k3s/containerd/{TASKS}/{APP}/config.json": containerd()}, ("containerd",)),
    Tree("microk8s", {MICROK8S: containerd()}, ("containerd",)),
    Tree("cri-o", {USERDATA: cri_o(), "run/netns/d7b2": ""}, ("CRI-O",), netns="run/netns/d7b2"),
    Tree("cri-dockerd", {LABELS: DOCKER, f"{LOGS}/cart/0.log": ""}, ("docker", "/var/log/pods")),
    Tree("logs-alone", {LOGS: None, "var/log/pods/shop_other_" + "1" * 32: None}, ("/var/log/pods",)),
    Tree("a-container-of-another-pod", {BUNDLE: containerd("1" * 32)}, ()),
    Tree("docker-without-kubernetes", {LABELS: {"Config": {"Labels": {}}}}, ()),
    Tree("nothing", {}, ()),
)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.id)
def test_names_that_a_node_knows(tmp_path: Path, tree: Tree) -> None:
    write(tmp_path, tree.files)
    inum = (tmp_path / tree.netns).stat().st_ino if tree.netns else None
    assert Names(tmp_path).claims(UID, (APP,), ask=False) == tuple(
        Claim(UID, "shop", "cart-7d4f", source, None if source.startswith("/") else inum) for source in tree.sources
    )


@pytest.mark.parametrize("tree", [tree for tree in TREES if tree.netns], ids=lambda tree: tree.id)
def test_the_runtime_knows_whose_a_netns_without_a_process_is(tmp_path: Path, tree: Tree) -> None:
    write(tmp_path, {**tree.files, f"run/containerd/{TASKS}/notes.txt": "no bundle", "run/netns/other": ""})
    names = Names(tmp_path)
    inum = (tmp_path / str(tree.netns)).stat().st_ino
    assert names.at_home(inum) == (Claim(UID, "shop", "cart-7d4f", tree.sources[0], inum),)
    assert names.at_home((tmp_path / "run/netns/other").stat().st_ino) == ()


def test_every_bundle_is_read_somewhere() -> None:
    written = [path for tree in TREES for path in tree.files]
    unread = [b.path for b in BUNDLES if b.path.format(id=APP) not in written]
    # The same files as elsewhere, below another directory.
    assert unread == [
        f"run/k0s/containerd/{TASKS}/{{id}}/config.json",
        "var/lib/containers/storage/overlay-containers/{id}/userdata/config.json",
    ]


def test_a_container_is_read_until_it_is_known_and_never_again(tmp_path: Path) -> None:
    memo: dict[tuple[Path, str], Claim] = {}
    expected = (Claim(UID, "shop", "cart-7d4f", "containerd"),)
    write(tmp_path, {f"run/containerd/{TASKS}/{APP}": None})
    assert Names(tmp_path, memo).claims(UID, (APP,), ask=False) == ()
    write(tmp_path, {BUNDLE: containerd()})
    assert Names(tmp_path, memo).claims(UID, (APP,), ask=False) == expected
    (tmp_path / BUNDLE).unlink()
    assert Names(tmp_path, memo).claims(UID, (APP,), ask=False) == expected
    assert Names(tmp_path).claims(UID, (APP,), ask=False) == ()


def test_static_pods_have_logs_under_the_hash(tmp_path: Path) -> None:
    write(tmp_path, {f"var/log/pods/kube-system_etcd-node-1_{STATIC}": None})
    assert Names(tmp_path).claims(STATIC, ()) == (Claim(STATIC, "kube-system", "etcd-node-1", "/var/log/pods"),)


def test_two_directories_for_one_uid_are_both_told(tmp_path: Path) -> None:
    write(tmp_path, {f"var/log/pods/shop_cart_{UID}": None, f"var/log/pods/ops_admin_{UID}": None})
    assert {claim.key for claim in Names(tmp_path).claims(UID, ())} == {"shop/cart", "ops/admin"}


@pytest.mark.parametrize(
    "directory",
    [
        UID,
        "shop_cart",
        f"shop_cart_{UID}_1",
        f"_cart_{UID}",
        f"shop_ca\x1brt_{UID}",
        f"Shop_cart_{UID}",
        "shop_cart_../etc",
        "",
    ],
)
def test_directories_that_are_no_pods(directory: str) -> None:
    assert log_claims([directory]) == []


names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(names, names, uids)
def test_a_log_directory_says_what_the_kubelet_put_in(namespace: str, name: str, uid: str) -> None:
    assert log_claims([f"{namespace}_{name}_{uid}"]) == [Claim(uid, namespace, name, "/var/log/pods")]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        '{"annotations": []}',
        "[" * 100_000,
        '{"annotations": {"io.kubernetes.cri.sandbox-uid": 7}}',
    ],
    ids=["empty", "cut-off", "list", "null", "string", "odd-annotations", "deep", "number"],
)
def test_a_bundle_that_is_none(tmp_path: Path, content: str) -> None:
    bundle = BUNDLES[0]
    write(tmp_path, {bundle.path.format(id=APP): content})
    assert bundle_claim(tmp_path, bundle, APP) is None


def test_names_that_cannot_be_are_no_names(tmp_path: Path) -> None:
    bundle = BUNDLES[0]
    write(tmp_path, {bundle.path.format(id=APP): containerd(name="cart\x1b[2J")})
    assert bundle_claim(tmp_path, bundle, APP) is None


def test_what_a_hostile_node_puts_in_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    bundle = BUNDLES[0]
    place = tmp_path / bundle.path.format(id=APP)
    write(tmp_path, {"elsewhere.json": containerd()})
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere.json")
    assert bundle_claim(tmp_path, bundle, APP) is None
    place.unlink()
    os.mkfifo(place)  # to open it would wait for ever
    assert bundle_claim(tmp_path, bundle, APP) is None
    place.unlink()
    place.write_text(json.dumps(containerd()))
    assert bundle_claim(tmp_path, bundle, APP) is not None
    place.write_text(json.dumps(containerd()) + " " * (5 << 20))
    assert bundle_claim(tmp_path, bundle, APP) is None


# nodes that are containers


def test_a_node_that_is_a_container_has_a_root_of_its_own(tmp_path: Path) -> None:
    for pid in ("1", "40", "41"):
        (tmp_path / pid / "root").mkdir(parents=True)
    found = [
        (41, Member(None, OUTER)),
        (40, Member(None, OUTER)),
        (52, Member(UID, APP, OUTER)),
        (60, Member(None, APP)),
    ]
    assert roots(tmp_path, found) == {None: tmp_path / "1/root", OUTER: tmp_path / "40/root"}
    assert roots(tmp_path, found[:1]) == {None: tmp_path / "1/root"}
    assert roots(tmp_path, (), Path("/host")) == {None: Path("/host")}


# crictl


CART = {"attempt": 0, "name": "cart-7d4f", "namespace": "shop", "uid": UID}
OLD = {"attempt": 1, "name": "old", "namespace": "shop", "uid": "1" * 32}
PODS_JSON = {
    "items": [
        {"id": PAUSE, "metadata": CART, "state": "SANDBOX_READY"},
        {"id": APP, "metadata": OLD, "state": "SANDBOX_NOTREADY"},
        {"id": APP, "state": "SANDBOX_READY"},
        7,
    ]
}


def test_what_crictl_prints() -> None:
    assert crictl_claims(json.dumps(PODS_JSON)) == [Claim(UID, "shop", "cart-7d4f", "crictl")]
    assert [crictl_claims(text) for text in ("", "FATA[0000] connect: permission denied", "[]", '{"items": 1}')] == [
        []
    ] * 4


@pytest.fixture
def crictl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name that writes down how it was called; the test says what it answers."""
    import socket

    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/crictl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {tmp_path}/answer\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "root/run/crio").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path / "root/run/crio")  # a socket's path has 108 bytes
        listening.bind("crio.sock")
    return tmp_path


def test_crictl_is_asked_once_and_only_when_nobody_else_knows(crictl: Path) -> None:
    (crictl / "answer").write_text(json.dumps(PODS_JSON))
    write(crictl / "root", {"var/log/pods/shop_known_" + "2" * 32: None})
    names = Names(crictl / "root")
    assert names.claims("2" * 32, ())[0].name == "known"
    assert names.claims(UID, (), ask=False) == ()
    assert not (crictl / "calls").exists()
    assert names.claims(UID, ()) == (Claim(UID, "shop", "cart-7d4f", "crictl"),)
    assert names.claims("3" * 32, ()) == ()
    (call,) = (crictl / "calls").read_text().splitlines()
    assert call == f"--runtime-endpoint unix://{crictl}/root/run/crio/crio.sock --timeout 2s pods -o json"


def test_crictl_that_fails_names_nobody(crictl: Path) -> None:
    (crictl / "bin/crictl").write_text("#!/bin/sh\nexit 1\n")
    assert Names(crictl / "root").claims(UID, ()) == ()


# hardware


def nic(bus: str = "pci", address: str = "0000:3b:02.1") -> Link:
    return Link(3, "net1", "device", None, 1500, "up", None, None, None, bus=bus, hardware=address)


def test_a_virtual_function_leads_to_its_card(tmp_path: Path) -> None:
    devices = tmp_path / "bus/pci/devices"
    write(devices, {"0000:3b:00.0/net/ens1f0": None, "0000:3b:02.1": None, "0000:3b:02.2": None, "0000:af:00.0": None})
    (devices / "0000:3b:02.1/physfn").symlink_to("../0000:3b:00.0")
    (devices / "0000:3b:02.2/physfn").symlink_to("../0000:af:00.0")
    assert hardware.of_link(tmp_path, nic()) == Hardware("0000:3b:02.1", virtual=True, card="ens1f0")
    # The card's own interface is in another netns, or has another driver: its address stays.
    assert hardware.of_link(tmp_path, nic(address="0000:3b:02.2")) == Hardware("0000:3b:02.2", True, "0000:af:00.0")
    assert hardware.of_link(tmp_path, nic(address="0000:af:00.0")) == Hardware("0000:af:00.0")
    assert hardware.of_link(tmp_path, nic("virtio", "virtio0")) == Hardware("virtio0")
    assert hardware.of_link(tmp_path, nic("", "")) is None
    assert hardware.of_link(tmp_path, nic("..", "../..")) is None
