"""`k8snet map` on real namespaces, with `ip -j` as the second opinion, and with netns that come and go under its eyes.

Processes are put into real cgroups, under the names that the kubelet and containerd give them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from k8snet.cli import map as map_command
from k8snet.cluster.follow import Follower
from k8snet.cluster.interfaces import Role, Spot, World, gather, look
from k8snet.cluster.inventory import Inventory, Node, Pod
from k8snet.cluster.names import resolve_from, resolve_to
from k8snet.errors import K8snetError
from k8snet.event import Address
from k8snet.kernel import netns
from k8snet.report import Verdict
from k8snet.trace import Nobody, Request, run_trace
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

PREFIX = f"k8snet-map-{os.getpid()}-"
NODE_IP = "192.168.77.1"


def ip(*words: str) -> Any:
    """What `ip -j` says; raises with its complaint."""
    ran = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {ran.stderr.strip()}")
    return json.loads(ran.stdout or "[]")


@dataclass
class Machine:
    """One node with a bridge and pods, all by names of this process."""

    pods: dict[str, str] = field(default_factory=dict)  # kind of pod: its address
    missing: dict[str, str] = field(default_factory=dict)  # kind of pod: why this kernel has none

    def path(self, name: str) -> str:
        return f"/run/netns/{PREFIX}{name}"

    def inum(self, name: str) -> int:
        return netns.inum_of(self.path(name))

    def ip(self, name: str, *words: str) -> Any:
        return ip("-n", PREFIX + name, *words)

    def add(self, name: str) -> None:
        ip("netns", "add", PREFIX + name)
        self.ip(name, "link", "set", "lo", "up")

    def add_pod(self, name: str, address: str, *link: str, node_end: str | None = None) -> None:
        """A pod whose eth0 is what `ip link add` makes of `link` in the node's netns."""
        self.add(name)
        try:
            self.ip("node", "link", "add", *(word.replace("POD", PREFIX + name) for word in link))
        except RuntimeError as error:
            self.missing[name] = str(error)
            return
        if node_end:
            self.ip("node", "link", "set", node_end, "master", "br0", "up")
        self.ip(name, "addr", "add", address, "dev", "eth0")
        self.ip(name, "link", "set", "eth0", "up")
        self.pods[name] = address.split("/")[0]

    def add_veth(self, name: str, address: str, *, device: str = "eth0", node_end: str = "") -> None:
        """One more interface of a netns that is there, on the node's bridge."""
        outside = node_end or f"v-{name}"
        self.ip("node", "link", "add", outside, "type", "veth", "peer", "name", device, "netns", PREFIX + name)
        self.ip("node", "link", "set", outside, "master", "br0", "up")
        self.ip(name, "addr", "add", address, "dev", device)
        self.ip(name, "link", "set", device, "up")

    def remove(self, name: str) -> None:
        ip("netns", "del", PREFIX + name)

    def inventory(self) -> Inventory:
        pods = tuple(
            Pod("shop", name, "", "node-1", (ip_interface(address).ip,), False, "Running")
            for name, address in self.pods.items()
        )
        return Inventory(pods, nodes=(Node("node-1", (ip_interface(NODE_IP).ip,)),))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        made.add("node")
        made.ip("node", "link", "add", "br0", "type", "bridge")
        made.ip("node", "link", "set", "br0", "up")
        made.ip("node", "addr", "add", f"{NODE_IP}/24", "dev", "br0")
        inside = ("peer", "name", "eth0", "netns", "POD")
        made.add_pod("plain", "10.77.0.2/24", "v-plain", "type", "veth", *inside, node_end="v-plain")
        made.add_pod("six", "fd77::3/64", "v-six", "mtu", "1400", "type", "veth", *inside, node_end="v-six")
        # Both ends with one ifindex, which older kernels show without IFLA_LINK; and routed, without a bridge.
        made.add_pod("same", "10.77.0.4/32", "v-same", "index", "77", "type", "veth", *inside, "index", "77")
        made.add_pod("macvlan", "10.77.0.5/24", "eth0", "link", "br0", "netns", "POD", "type", "macvlan")
        made.add_pod("ipvlan", "10.77.0.6/24", "eth0", "link", "br0", "netns", "POD", "type", "ipvlan")
        made.add_pod("dummy", "10.77.0.7/24", "eth0", "netns", "POD", "type", "dummy")
        yield made
    finally:
        for name in [entry["name"] for entry in ip("netns", "list")]:
            if name.startswith(PREFIX):
                ip("netns", "del", name)


def need(machine: Machine, kind: str) -> None:
    if kind in machine.missing:
        pytest.skip(f"this kernel makes no such device: {machine.missing[kind]}")


@pytest.fixture
def world(machine: Machine) -> World:
    return look(machine.inventory())


VETHS = ("plain", "six", "same")


@pytest.mark.parametrize("name", ["node", *VETHS, "macvlan", "ipvlan", "dummy"])
def test_every_interface_is_as_ip_shows_it(machine: Machine, name: str) -> None:
    need(machine, name)
    expected = {
        link["ifindex"]: (
            link["ifname"],
            link.get("linkinfo", {}).get("info_kind", "loopback"),
            link["address"] if link["link_type"] == "ether" else None,
            link["mtu"],
            link["operstate"].lower(),
            link.get("master"),
            {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]},
        )
        for link in machine.ip(name, "-d", "addr", "show")
    }
    found = look()
    inum = machine.inum(name)
    assert {
        i.ifindex: (
            i.name,
            i.kind,
            None if i.kind == "loopback" else i.mac,
            i.mtu,
            i.state,
            found.name(inum, i.master) if i.master else None,
            set(map(str, i.addresses)),
        )
        for i in found.inside[inum]
    } == expected


@pytest.mark.parametrize("name", VETHS)
def test_veth_ends_are_as_ip_shows_them(machine: Machine, world: World, name: str) -> None:
    # iproute2's own translation of ids, in the node's netns, against ours.
    names = {entry["nsid"]: entry.get("name") for entry in machine.ip("node", "netns", "list-id")}
    (outside,) = machine.ip("node", "link", "show", f"v-{name}")
    assert names[outside["link_netnsid"]] == PREFIX + name
    (inside,) = machine.ip(name, "link", "show", "eth0")
    interface = world.interface(machine.inum(name), inside["ifindex"])
    assert interface is not None
    assert interface.peer == Spot(machine.inum("node"), outside["ifindex"])
    peer = world.peer(interface)
    assert peer is not None
    assert (peer.name, peer.peer) == (f"v-{name}", interface.spot)
    bridge = world.bridge(peer)
    assert (bridge.name if bridge else None) == outside.get("master")


@pytest.mark.parametrize("name", ["macvlan", "ipvlan"])
def test_a_device_on_top_of_the_nodes_has_a_parent_and_no_peer(machine: Machine, world: World, name: str) -> None:
    need(machine, name)
    (eth0,) = [i for i in world.inside[machine.inum(name)] if i.name == "eth0"]
    (below,) = machine.ip("node", "link", "show", "br0")
    assert eth0.peer is None
    assert eth0.parent == Spot(machine.inum("node"), below["ifindex"])


def test_owners_by_name(machine: Machine, world: World) -> None:
    assert world.owner(machine.inum("node")).node == "node-1"
    assert world.nodes["node-1"] == machine.inum("node")
    for pod in machine.inventory().pods:
        owner = world.owner(machine.inum(pod.name))
        assert (owner.role, owner.pod, owner.node) == (Role.POD, pod, "node-1")
        home = world.netns_of_pod(pod)
        assert home is not None
        assert home.path == machine.path(pod.name)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    top = argparse.ArgumentParser()
    map_command.register(top.add_subparsers())
    args = top.parse_args(["map", *words])
    assert args.run(args) == 0
    return capsys.readouterr().out


@pytest.fixture
def inventory_file(machine: Machine, tmp_path: Path) -> str:
    pods = [
        {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": address},
        }
        for name, address in machine.pods.items()
    ]
    node = {
        "kind": "Node",
        "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]},
    }
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"kind": "List", "items": [*pods, node]}))
    return str(path)


def test_map_command(machine: Machine, inventory_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(capsys, "--inventory", inventory_file, "-n", "shop")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert rows.keys() == {f"shop/{name}" for name in machine.pods}
    assert rows["shop/plain"][:5] == [str(machine.inum("plain")), "eth0", "v-plain", "br0", "10.77.0.2"]
    document = json.loads(printed(capsys, "--inventory", inventory_file, "-n", "shop", "-o", "json"))
    assert document["kind"] == "InterfaceMap"
    by_pod = {entry["pod"]["name"]: entry for entry in document["interfaces"]}
    assert by_pod["same"]["peer"]["ifindex"] == by_pod["same"]["interface"]["ifindex"] == 77
    assert by_pod["same"]["bridge"] is None
    assert (by_pod["six"]["interface"]["mtu"], by_pod["six"]["peer"]["mtu"]) == (1500, 1400)
    assert printed(capsys, "--inventory", inventory_file, "-n", "blue") == ""


def test_map_without_an_inventory_shows_addresses(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {line.split()[0] for line in printed(capsys, "-o", "wide").splitlines()}
    assert {f"ip:{address}" for address in machine.pods.values()} <= shown


def test_a_namespace_that_nobody_is_in(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--no-api", "-n", "nowhere") == ""


def test_not_root_is_refused() -> None:
    args = argparse.Namespace(namespace=None, inventory=None, output="text")
    os.seteuid(65534)
    try:
        with pytest.raises(K8snetError) as caught:
            map_command.run(args)
    finally:
        os.seteuid(0)
    assert "sudo" in caught.value.remedy


# What vanishes


def test_a_netns_that_went_between_scan_and_look_is_left_out(machine: Machine) -> None:
    machine.add("short-lived")
    inum = machine.inum("short-lived")
    found = netns.scan()
    assert inum in found
    ip("netns", "del", PREFIX + "short-lived")
    seen = {one.netns.inum: one for one in gather(found.values(), netns.own())}
    assert inum not in seen
    assert machine.inum("plain") in seen


def test_a_netns_that_only_a_process_holds_comes_and_goes_with_it(machine: Machine) -> None:
    # The child says when it is inside its own netns, and stays until its input ends.
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo in; read gone"], stdin=-1, stdout=-1)
    assert holder.stdin
    assert holder.stdout
    try:
        assert holder.stdout.readline() == b"in\n"
        inum = netns.inum_of(f"/proc/{holder.pid}/ns/net")
        found = netns.scan()
        assert found[inum].pids == (holder.pid,)
        assert [i.name for i in look().inside[inum] if i.kind == "loopback"] == ["lo"]
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    assert inum not in {one.netns.inum for one in gather(found.values(), netns.own())}


def test_from_a_container_the_nodes_pinned_netns_are_seen(machine: Machine) -> None:
    code = "from k8snet.kernel.netns import opened, scan; [print(n.inum) for n in scan().values() if opened(n)]"
    script = 'mount -t tmpfs none /run && exec "$0" -c "$1"'
    # In a pid namespace of its own, because a machine's pid 1 need not let itself be looked at.
    node = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    words = [*node, 'unshare --mount sh -c "$1" "$2" "$3"; exit "$?"', "sh", script, sys.executable, code]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert str(machine.inum("plain")) in ran.stdout.split()


def test_looking_while_netns_come_and_go(machine: Machine) -> None:
    stop = threading.Event()
    rounds = 0

    def churn() -> None:
        nonlocal rounds
        while not stop.is_set():
            machine.add("churn")
            inside = ("peer", "name", "eth0", "netns", PREFIX + "churn")
            # Its end in the node goes a moment after the netns, so this may find the name still taken.
            with contextlib.suppress(RuntimeError):
                machine.ip("node", "link", "add", "v-churn", "type", "veth", *inside)
            ip("netns", "del", PREFIX + "churn")
            rounds += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        while rounds < 11 and thread.is_alive():
            found = look(machine.inventory())
            assert found.owner(machine.inum("plain")).pod == machine.inventory().pods[0]
    finally:
        stop.set()
        thread.join()
    assert rounds >= 11


def test_looking_leaves_no_file_open_and_the_thread_where_it_was(machine: Machine) -> None:
    before = netns.own(), sorted(Path("/proc/self/fd").iterdir())
    look(machine.inventory())
    assert (netns.own(), sorted(Path("/proc/self/fd").iterdir())) == before


def test_looking_needs_no_heavy_import() -> None:
    code = "import sys; import k8snet.cluster.interfaces as i; i.look(); print([m for m in HEAVY if m in sys.modules])"
    heavy = ("pyroute2", "rich", "kubernetes", "asyncio")
    ran = subprocess.run([sys.executable, "-c", f"HEAVY = {heavy}; {code}"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# Names without an inventory: real processes in real cgroups


def cgroup_mount() -> Path | None:
    """A hierarchy without controllers, so that nothing is limited: version 2's, or systemd's of version 1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    named = [m[1] for m in mounts if m[2] == "cgroup2" or (m[2] == "cgroup" and "name=systemd" in m[3])]
    return next((Path(path) for path in named if os.access(path, os.W_OK)), None)


@dataclass
class Kubelet:
    """Starts pods' processes as a kubelet and containerd would, below a cgroup of its own."""

    cgroups: Path
    root: Path  # of the node's file system
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)

    def start(self, netns_path: str, uid: str, key: str | None = None) -> str:
        """A pause process inside the netns, and its container's id; `key`: namespace/name, known on the node."""
        container = os.urandom(32).hex()
        if key is not None:
            (self.root / f"var/log/pods/{key.replace('/', '_')}_{uid}").mkdir(parents=True)
        self.run(uid, f"kubepods/besteffort/pod{uid}/{container}", netns_path=netns_path)
        return container

    def run(self, name: str, cgroup: str, *, netns_path: str | None = None, root: str | None = None) -> None:
        """A process in a cgroup, with a root of its own if need be; `stop` ends it, and the cgroup with it."""
        directory = self.cgroups / cgroup
        directory.mkdir(parents=True)
        enter = ["nsenter", f"--net={netns_path}"] if netns_path else []
        leave = f"os.chroot({root!r}); " if root else ""
        wait = f"import os, sys; {leave}print('in', flush=True); sys.stdin.readline()"
        words = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(directory), *enter]
        process = subprocess.Popen([*words, sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.running[name] = process, directory
        assert process.stdout
        assert process.stdout.readline() == b"in\n"

    def stop(self, name: str) -> None:
        process, directory = self.running.pop(name)
        process.communicate(b"\n")
        while directory != self.cgroups.parent and not any(entry.is_dir() for entry in directory.iterdir()):
            directory.rmdir()
            directory = directory.parent


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    mount = cgroup_mount()
    if mount is None:
        pytest.skip("no cgroup hierarchy without controllers is mounted where we may write")
    made = Kubelet(mount / PREFIX.rstrip("-"), tmp_path)
    yield made
    for name in list(made.running):
        made.stop(name)


def uid_of(number: int) -> str:
    return f"0f1e2d3c-4b5a-6978-8796-{number:012x}"


def test_a_pod_is_named_with_root_alone(machine: Machine, kubelet: Kubelet) -> None:
    container = kubelet.start(machine.path("plain"), uid_of(1), "shop/cart")
    unnamed = kubelet.start(machine.path("six"), uid_of(2))
    found = look(root=kubelet.root)
    owner = found.owner(machine.inum("plain"))
    assert owner.pod is not None
    assert (owner.pod.key, owner.uid, owner.containers) == ("shop/cart", uid_of(1), (container,))
    assert (owner.role, owner.named_by, owner.notes) == (Role.POD, "/var/log/pods, by UID", ())
    assert [str(address) for address in owner.pod.ips] == ["10.77.0.2"]
    other = found.owner(machine.inum("six"))
    assert (other.pod, other.uid, other.containers) == (None, uid_of(2), (unnamed,))
    assert found.netns_of_pod(owner.pod) == found.netns[machine.inum("plain")]


def bundle(root: Path, container: str, uid: str, key: str, netns_path: str) -> None:
    """What containerd writes for a container."""
    namespace, name = key.split("/")
    place = root / f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{container}"
    place.mkdir(parents=True)
    cri = "io.kubernetes.cri.sandbox"
    annotations = {f"{cri}-uid": uid, f"{cri}-namespace": namespace, f"{cri}-name": name}
    linux = {"namespaces": [{"type": "network", "path": netns_path}]}
    (place / "config.json").write_text(json.dumps({"annotations": annotations, "linux": linux}))


def test_a_pod_without_a_process_is_named_by_its_runtime(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/netns").symlink_to("/run/netns")
    bundle(tmp_path, "ab" * 32, uid_of(9), "shop/crashed", f"/var/run/netns/{PREFIX}six")
    found = look(root=tmp_path)
    owner = found.owner(machine.inum("six"))
    assert owner.pod is not None
    assert (owner.pod.key, owner.named_by, owner.containers) == ("shop/crashed", "containerd, by UID", ())
    assert [o.pod.key for o in found.owners.values() if o.pod] == ["shop/crashed"]


def test_a_netns_that_another_pod_entered_stays_its_own_pods(machine: Machine, kubelet: Kubelet) -> None:
    (kubelet.root / "run").mkdir()
    (kubelet.root / "run/netns").symlink_to("/run/netns")
    bundle(
        kubelet.root, kubelet.start(machine.path("plain"), uid_of(10)), uid_of(10), "shop/cart", machine.path("plain")
    )
    bundle(kubelet.root, kubelet.start(machine.path("plain"), uid_of(11)), uid_of(11), "ops/debug", machine.path("six"))
    owner = look(root=kubelet.root).owner(machine.inum("plain"))
    assert owner.pod is not None
    assert (owner.role, owner.pod.key) == (Role.POD, "shop/cart")


def test_a_node_that_is_a_container_names_its_own_pods(machine: Machine, kubelet: Kubelet) -> None:
    outer, uid = "0b" * 32, uid_of(12)
    inner = kubelet.root / "inner"
    (inner / f"var/log/pods/shop_inner_{uid}").mkdir(parents=True)
    (kubelet.root / f"var/log/pods/shop_outer_{uid}").mkdir(parents=True)  # a pod of the machine's own kubelet, perhaps
    kubelet.run("kind", f"docker-{outer}.scope/init.scope", root=str(inner))
    pod = f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid.replace('-', '_')}.slice"
    container = f"docker-{outer}.scope/{pod}/cri-containerd-{'ab' * 32}.scope"
    kubelet.run(uid, container, netns_path=machine.path("plain"))
    owner = look(root=kubelet.root).owner(machine.inum("plain"))
    assert owner.pod is not None
    assert (owner.pod.key, owner.containers, owner.notes) == ("shop/inner", ("ab" * 32,), ())


def test_a_pod_on_the_nodes_network_owns_nothing(machine: Machine, kubelet: Kubelet) -> None:
    container = kubelet.start(machine.path("node"), uid_of(3), "kube-system/kube-proxy-x")
    found = look(machine.inventory(), root=kubelet.root)
    assert found.owner(machine.inum("node")).pod is None
    (guest,) = [guest for guest in found.guests if guest.uid == uid_of(3)]
    assert guest.pod is not None
    assert (guest.netns, guest.node, guest.containers) == (machine.inum("node"), "node-1", (container,))
    assert (guest.pod.key, guest.pod.host_network) == ("kube-system/kube-proxy-x", True)


def test_a_pod_with_several_interfaces_has_a_row_for_each(machine: Machine, kubelet: Kubelet) -> None:
    machine.add("multus")
    try:
        machine.add_veth("multus", "10.77.0.20/24")
        machine.add_veth("multus", "10.78.0.20/24", device="net1", node_end="v-multus-1")
        kubelet.start(machine.path("multus"), uid_of(4), "shop/multus")
        found = look(machine.inventory(), root=kubelet.root)
        table = map_command.table(found, map_command.rows(found, "shop"))
        mine = [row.split()[2:6] for row in table.splitlines() if row.split()[0] == "shop/multus"]
        assert mine == [["eth0", "v-multus", "br0", "10.77.0.20"], ["net1", "v-multus-1", "br0", "10.78.0.20"]]
    finally:
        machine.remove("multus")


# Following


@dataclass
class Listed:
    """Names that a test changes, as the API does."""

    inventory: Inventory
    notes: tuple[str, ...] = ()

    def want(self, addresses: Iterable[Address]) -> None:
        """All that there is, is there."""

    def settle(self, seconds: float) -> None:
        """Nothing is under way."""

    def add(self, name: str, address: str) -> None:
        pod = Pod("shop", name, "", "node-1", (ip_interface(address).ip,), False, "Running")
        self.inventory = replace(self.inventory, pods=(*self.inventory.pods, pod))


def eventually(what: Callable[[], bool], seconds: float = 2.0) -> bool:
    deadline = time.monotonic() + seconds * patience()
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def key_of(follower: Follower, inum: int) -> str | None:
    pod = follower.world.owner(inum).pod
    return pod.key if pod else None


def test_a_pod_that_comes_is_seen_at_once_and_named_when_its_process_starts(machine: Machine, kubelet: Kubelet) -> None:
    names = Listed(machine.inventory())
    with Follower(look(names.inventory, root=kubelet.root), names, root=kubelet.root) as follower:
        machine.add("late")
        try:
            machine.add_veth("late", "10.77.0.30/24")
            inum = machine.inum("late")

            def addresses() -> set[str]:
                return {str(a) for i in follower.world.inside.get(inum, ()) if i.name == "eth0" for a in i.addresses}

            assert eventually(lambda: "10.77.0.30/24" in addresses())
            (eth0,) = [i for i in follower.world.inside[inum] if i.name == "eth0"]
            peer = follower.world.peer(eth0)
            assert peer is not None
            assert peer.name == "v-late"
            assert key_of(follower, inum) is None
            kubelet.start(machine.path("late"), uid_of(5), "shop/late")
            assert eventually(lambda: key_of(follower, inum) == "shop/late", 5.0)
        finally:
            machine.remove("late")


def test_an_address_that_a_pod_gets_later_is_seen(machine: Machine) -> None:
    names = Listed(machine.inventory())
    with Follower(look(names.inventory), names) as follower:
        inum = machine.inum("plain")
        machine.ip("plain", "addr", "add", "10.79.0.1/32", "dev", "eth0")
        try:
            assert eventually(
                lambda: "10.79.0.1/32" in {str(a) for i in follower.world.inside[inum] for a in i.addresses}
            )
        finally:
            machine.ip("plain", "addr", "del", "10.79.0.1/32", "dev", "eth0")


def test_a_pod_that_the_inventory_learns_of_is_named(machine: Machine) -> None:
    names = Listed(machine.inventory())
    with Follower(look(names.inventory), names) as follower:
        machine.add("late")
        try:
            machine.add_veth("late", "10.77.0.31/24")
            inum = machine.inum("late")
            assert eventually(lambda: inum in follower.world.owners)
            assert key_of(follower, inum) is None
            names.add("late", "10.77.0.31")
            assert eventually(lambda: key_of(follower, inum) == "shop/late")
        finally:
            machine.remove("late")


def test_a_pod_that_died_keeps_its_name_for_a_while(machine: Machine, kubelet: Kubelet) -> None:
    names = Listed(machine.inventory())
    machine.add("dying")
    machine.add_veth("dying", "10.77.0.32/24")
    inum = machine.inum("dying")
    kubelet.start(machine.path("dying"), uid_of(6), "shop/dying")
    kept = 2.0 * patience()
    with Follower(look(names.inventory, root=kubelet.root), names, root=kubelet.root, kept=kept) as follower:
        assert key_of(follower, inum) == "shop/dying"
        kubelet.stop(uid_of(6))
        machine.remove("dying")
        assert eventually(lambda: inum in follower.world.former)
        since = time.monotonic()
        while time.monotonic() - since < kept * 0.8:
            assert key_of(follower, inum) == "shop/dying"
            time.sleep(0.05)
        assert eventually(lambda: inum not in follower.world.former and key_of(follower, inum) is None, kept)


def test_the_next_netns_of_the_same_number_is_not_the_pod_that_died(machine: Machine, kubelet: Kubelet) -> None:
    names = Listed(machine.inventory())
    machine.add("first")
    machine.add_veth("first", "10.77.0.33/24")
    inum = machine.inum("first")
    kubelet.start(machine.path("first"), uid_of(7), "shop/first")
    with Follower(look(names.inventory, root=kubelet.root), names, root=kubelet.root) as follower:
        kubelet.stop(uid_of(7))
        machine.remove("first")
        made: list[str] = []
        try:
            # The kernel takes a netns apart in the background: its number is free a moment later.
            while len(made) < 50 and inum not in map(machine.inum, made):
                made.append(f"next-{len(made)}")
                machine.add(made[-1])
                time.sleep(0.02)
            if machine.inum(made[-1]) != inum:
                pytest.skip("this kernel did not use the number again")
            machine.add_veth(made[-1], "10.77.0.34/24", node_end="v-next")
            assert eventually(lambda: len(follower.world.inside.get(inum, ())) == 2 and key_of(follower, inum) is None)
            kubelet.start(machine.path(made[-1]), uid_of(8), "shop/second")
            assert eventually(lambda: key_of(follower, inum) == "shop/second", 5.0)
            former = follower.world.former[inum].owner.pod
            assert former is not None
            assert former.key == "shop/first"
        finally:
            for name in made:
                machine.remove(name)


def test_following_leaves_no_file_open(machine: Machine) -> None:
    names = Listed(machine.inventory())
    first = look(names.inventory)
    before = sorted(Path("/proc/self/fd").iterdir())
    with Follower(first, names) as follower:
        assert follower.last().owner(machine.inum("plain")).pod == machine.inventory().pods[0]
    assert sorted(Path("/proc/self/fd").iterdir()) == before


class Arrival(Nobody):
    """Once the trace is ready a pod comes, and the client connects to it."""

    def __init__(self, machine: Machine, names: Listed) -> None:
        self._machine, self._names = machine, names

    def ready(self) -> None:
        threading.Thread(target=self._arrive, daemon=True).start()

    def _arrive(self) -> None:
        self._machine.add("arriving")
        self._machine.add_veth("arriving", "10.77.0.40/24")
        self._names.add("arriving", "10.77.0.40")
        with netns.entered(self._machine.path("arriving")):
            server = socket.create_server(("10.77.0.40", 8080))
        with netns.entered(self._machine.path("plain")):
            client = socket.socket()
        with server, client:
            client.settimeout(3 * patience())
            client.connect(("10.77.0.40", 8080))


def test_a_pod_that_comes_while_a_trace_runs_is_named_in_its_report(machine: Machine) -> None:
    inventory = machine.inventory()
    names = Listed(inventory)
    request = Request(
        client=resolve_from("shop/plain", inventory),
        server=resolve_to("10.77.0.40:8080", inventory),
        inventory=inventory,
        protocol="tcp",
        count=1,
        timeout=8 * patience(),
    )
    try:
        report = run_trace(request, look(inventory), Arrival(machine, names), names)
    finally:
        machine.remove("arriving")
    assert report.verdict is Verdict.DELIVERED
    (request_path,) = [path for path in report.paths if path.direction == "request"][:1]
    assert [hop.pod for hop in request_path.hops][-1] == "shop/arriving"
