"""`k8snet map` on real namespaces, with `ip -j` as the second opinion, and with netns that vanish under its eyes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from k8snet.cli import map as map_command
from k8snet.cluster.interfaces import Role, Spot, World, gather, look
from k8snet.cluster.inventory import Inventory, Node, Pod
from k8snet.errors import K8snetError
from k8snet.kernel import netns

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


def test_a_namespace_without_an_inventory_is_refused() -> None:
    args = argparse.Namespace(namespace="shop", inventory=None, output="text")
    with pytest.raises(K8snetError, match="without an inventory"):
        map_command.run(args)


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
