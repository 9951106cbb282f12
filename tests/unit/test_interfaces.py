"""Interfaces and pods, tied together from what the kernel shows: cgroup paths, veths, owners, the map."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from k8snet.cli.map import document, rows, table
from k8snet.cluster.interfaces import Owner, Role, Seen, Spot, World, cgroups, world
from k8snet.cluster.inventory import Inventory, Node, Pod
from k8snet.kernel import rtnetlink
from k8snet.kernel.netns import Netns, scan
from k8snet.kernel.rtnetlink import Link

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
SYSTEMD_UID = UID.replace("-", "_")
CID = "c0ffee" + 58 * "1"
OUTER = "0b" * 32

HOST, NODE, CART, PAY, LATE = 1, 10, 11, 12, 13


def link(ifindex: int, name: str, kind: str = "veth", *, master: int | None = None, to: int | None = None,
         nsid: int | None = None, state: str = "up") -> Link:  # fmt: skip
    return Link(ifindex, name, kind, f"02:00:00:00:00:{ifindex:02x}", 1450, state, master, to, nsid)


LO = link(1, "lo", "loopback", state="unknown")


def seen(
    inum: int,
    *links: Link,
    ips: str = "",
    on: int = 2,
    uids: tuple[str, ...] = (),
    containers: tuple[str, ...] = (),
    nsids: dict[int, int] | None = None,
) -> Seen:
    addresses = {on: tuple(map(ip_interface, ips.split()))} if ips else {}
    return Seen(Netns(inum, f"/run/netns/n{inum}"), (LO, *links), addresses, uids, containers, nsids or {})


def pod_netns(inum: int, back: int, ips: str, uids: tuple[str, ...] = (), to: int = NODE) -> Seen:
    return seen(inum, link(2, "eth0", to=back, nsid=7), ips=ips, uids=uids, nsids={7: to})


def node_netns(*veths: Link, inum: int = NODE, ips: str = "192.168.50.1/24") -> Seen:
    """A node with a bridge; nsid N of its own is netns 10 + N."""
    return seen(inum, link(2, "cni0", "bridge"), *veths, ips=ips, nsids={1: CART, 2: PAY, 3: LATE})


def pod(name: str, *ips: str, uid: str = "", node: str = "node-1", host_network: bool = False) -> Pod:
    return Pod("shop", name, uid, node, tuple(map(ip_address, ips)), host_network, "Running")


def look_at(parts: Iterable[Seen], *pods: Pod, host: int = NODE, nodes: tuple[Node, ...] = ()) -> World:
    return world(parts, host, Inventory(pods, nodes=nodes), "the-host")


CART_VETH = link(3, "veth-cart", master=2, to=2, nsid=1)
PAY_VETH = link(4, "veth-pay", master=2, to=2, nsid=2)
TWO_PODS = (
    node_netns(CART_VETH, PAY_VETH),
    pod_netns(CART, 3, "10.1.0.1/24"),
    pod_netns(PAY, 4, "10.1.0.2/24 fd00::2/64"),
)


# cgroup paths, as each runtime writes them


@pytest.mark.parametrize(
    ("cgroup", "uids", "containers"),
    [
        pytest.param(
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD_UID}.slice/cri-containerd-{CID}.scope",
            (UID,), (CID,), id="containerd-systemd-v2",
        ),
        pytest.param(f"11:memory:/kubepods/besteffort/pod{UID}/{CID}\n10:cpu,cpuacct:/kubepods/besteffort/pod{UID}/{CID}",
                     (UID,), (CID,), id="containerd-cgroupfs-v1"),
        pytest.param(f"0::/kubepods/pod{UID}/{CID}", (UID,), (CID,), id="k3s-guaranteed-v2"),
        pytest.param(f"0::/kubepods.slice/kubepods-pod{SYSTEMD_UID}.slice/crio-{CID}.scope/container",
                     (UID,), (CID,), id="cri-o-systemd"),
        pytest.param(f"4:pids:/kubepods/burstable/pod{UID}/crio-{CID}", (UID,), (CID,), id="cri-o-cgroupfs"),
        pytest.param(
            f"1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD_UID}.slice/docker-{CID}.scope",
            (UID,), (CID,), id="docker-systemd-v1",
        ),
        pytest.param(f"0::/system.slice/containerd.service/kubepods-burstable-pod{SYSTEMD_UID}.slice:cri-containerd:{CID}",
                     (UID,), (CID,), id="containerd-slice-without-systemd"),
        pytest.param(f"0::/kubepods/burstable/pod{'ab' * 16}/{CID}", ("ab" * 16,), (CID,), id="static-pod"),
        pytest.param(f"0::/docker/{OUTER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD_UID}.slice/"
                     f"cri-containerd-{CID}.scope", (UID,), (CID,), id="kind"),
        pytest.param(f"0::/kubepods/pod{UID}/{CID}/docker/{OUTER}", (UID,), (CID,), id="docker-inside-the-pod"),
        pytest.param(f"0::/../../kubepods-pod{SYSTEMD_UID}.slice/cri-containerd-{CID}.scope", (UID,), (CID,),
                     id="seen-from-a-container"),
        pytest.param(f"0::/system.slice/docker-{CID}.scope", (), (CID,), id="docker-without-kubernetes"),
        pytest.param("0::/user.slice/user-0.slice/session-1.scope", (), (), id="a-login"),
        pytest.param("nonsense", (), (), id="nonsense"),
        pytest.param("", (), (), id="empty"),
    ],
)  # fmt: skip
def test_cgroup_paths(tmp_path: Path, cgroup: str, uids: tuple[str, ...], containers: tuple[str, ...]) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(cgroup)
    assert cgroups(tmp_path, (7,)) == (uids, containers)


def test_processes_that_ended_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "8").mkdir()
    (tmp_path / "8/cgroup").write_text(f"0::/kubepods/pod{UID}/{CID}")
    assert cgroups(tmp_path, (7, 8)) == ((UID,), (CID,))


# which netns there are


def test_processes_are_grouped_by_netns(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for name in ("a", "b"):
        (tmp_path / name).touch()
    for pid, netns in (("9", "a"), ("30", "b"), ("4", "b")):
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "ns/net").hardlink_to(tmp_path / netns)
    (proc / "77/ns").mkdir(parents=True)  # ended while we looked
    (proc / "meminfo").touch()
    found = scan(proc, mounts=())
    a, b = ((tmp_path / name).stat().st_ino for name in ("a", "b"))
    assert found == {a: Netns(a, f"{proc}/9/ns/net"), b: Netns(b, f"{proc}/4/ns/net")}
    assert found[b].pids == (4, 30)


def test_a_file_that_a_mount_left_behind_is_no_netns(tmp_path: Path) -> None:
    (tmp_path / "left-over").touch()
    assert (tmp_path / "left-over").stat().st_ino not in scan(mounts=(tmp_path,))


def test_older_kernels_leave_the_link_out_when_both_ends_have_one_ifindex() -> None:
    attributes = struct.pack("=HHI", 8, 37, 3) + struct.pack("=HH", 9, 3) + b"eth0\0\0\0\0"  # link-netnsid 3, name
    parsed = rtnetlink._link(struct.pack("=BxHiII", 0, 1, 42, 0, 0) + attributes)
    assert (parsed.ifindex, parsed.name, parsed.link, parsed.link_nsid) == (42, "eth0", 42, 3)


# ends, bridges, owners


def test_both_ends_of_a_veth_know_each_other_and_the_bridge() -> None:
    found = look_at(TWO_PODS)
    inside = found.interface(PAY, 2)
    assert inside is not None
    outside = found.peer(inside)
    assert outside is not None
    assert (outside.name, outside.netns, outside.peer) == ("veth-pay", NODE, Spot(PAY, 2))
    bridge = found.bridge(outside)
    assert bridge is not None
    assert bridge.name == "cni0"
    assert found.name(PAY, 2) == "eth0"
    assert found.name(PAY, 99) is None


def test_pods_are_named_by_address() -> None:
    cart, pay = pod("cart", "10.1.0.1", uid="u1"), pod("pay", "10.1.0.2", "fd00::2")
    found = look_at(TWO_PODS, cart, pay, pod("away", "10.2.0.9"))
    assert found.owner(CART) == Owner("the-host", cart, role=Role.POD, pin="n11")
    assert found.owner(PAY).pod is pay
    assert found.netns_of_pod(pay) == Netns(PAY, "/run/netns/n12")
    assert found.netns_of_pod(pod("away", "10.2.0.9")) is None
    assert found.owner(99) == Owner()


def test_pods_are_named_by_the_uid_of_their_cgroup() -> None:
    cart = pod("cart", uid=UID)  # the API does not know its address yet
    found = look_at((node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", (UID,))), cart)
    assert found.owner(CART) == Owner("the-host", cart, UID, role=Role.POD, pin="n11")


def test_an_address_does_not_outweigh_another_pods_uid() -> None:
    found = look_at(
        (node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", (UID,))), pod("old", "10.1.0.1", uid="u1")
    )
    assert found.owner(CART) == Owner("the-host", None, UID, role=Role.POD, pin="n11")


def test_a_netns_left_over_with_a_pods_address_is_not_the_pod() -> None:
    left_over = seen(LATE, link(2, "eth0"), ips="10.1.0.1/24")
    cart = pod("cart", "10.1.0.1")
    for parts in ((left_over, *TWO_PODS), (*TWO_PODS, left_over)):
        found = look_at(parts, cart)
        assert found.netns_of_pod(cart) == Netns(CART, "/run/netns/n11")
        assert found.owner(LATE).pod is None


def test_several_nodes_on_one_machine_are_told_by_their_addresses() -> None:
    second = seen(20, link(5, "veth-late", to=2, nsid=0), ips="192.168.50.2/24", on=5, nsids={0: LATE})
    parts = (seen(HOST), *TWO_PODS, second, pod_netns(LATE, 5, "10.2.0.1/24", to=20))
    nodes = (Node("node-1", (ip_address("192.168.50.1"),)), Node("node-2", (ip_address("192.168.50.2"),)))
    found = look_at(parts, pod("late", "10.2.0.1"), host=HOST, nodes=nodes)
    assert found.nodes == {"the-host": HOST, "node-1": NODE, "node-2": 20}
    assert found.owner(LATE).node == "node-2"
    assert found.owner(CART).node == "node-1"
    assert found.netns_of_node("node-2") == Netns(20, "/run/netns/n20")


def test_without_an_inventory_a_netns_that_bridges_others_is_a_node() -> None:
    found = look_at((seen(HOST), *TWO_PODS), host=HOST)
    assert found.owner(NODE) == Owner("n10", role=Role.NODE)
    assert found.owner(CART) == Owner("n10", role=Role.POD, pin="n11")


def test_a_pod_with_two_interfaces_is_no_node() -> None:
    second = link(3, "net1", to=5, nsid=7)
    both = seen(CART, link(2, "eth0", to=3, nsid=7), second, nsids={7: NODE})
    found = look_at((node_netns(CART_VETH, link(5, "veth-net1", to=3, nsid=1)), both))
    assert found.owner(CART).role is Role.POD
    assert [interface.name for interface in rows(found)] == ["eth0", "net1"]


def test_a_pod_that_nests_containers_is_no_node() -> None:
    links = (
        link(2, "eth0", to=3, nsid=7),
        link(3, "docker0", "bridge"),
        link(4, "veth-nested", master=3, to=2, nsid=8),
    )
    nested = seen(CART, *links, ips="10.1.0.1/24", uids=(UID,), nsids={7: NODE, 8: LATE})
    found = look_at((node_netns(CART_VETH), nested, pod_netns(LATE, 4, "172.17.0.2/16", to=CART)))
    assert (found.owner(CART).role, found.owner(CART).uid) == (Role.POD, UID)


def test_pods_on_the_hosts_network_are_where_their_node_is() -> None:
    proxy = pod("proxy", "192.168.50.1", host_network=True)
    nodes = (Node("node-1", (ip_address("192.168.50.1"),)),)
    found = look_at(TWO_PODS, proxy, nodes=nodes)
    assert found.netns_of_pod(proxy) == Netns(NODE, "/run/netns/n10")
    assert found.owner(NODE).pod is None
    assert found.netns_of_pod(pod("proxy-2", host_network=True, node="node-2")) is None


def test_a_netns_with_nothing_but_lo_is_nobodys() -> None:
    idle = link(2, "tunl0", "ipip", state="down")
    found = look_at((*TWO_PODS, seen(LATE, idle)))
    assert found.owner(LATE) == Owner()


# the map


def lines(found: World, wide: bool = False) -> list[str]:
    return table(found, rows(found), wide).splitlines()


def test_table() -> None:
    assert lines(look_at(TWO_PODS, pod("cart", "10.1.0.1"))) == [
        "POD           NETNS   INTERFACE   PEER        BRIDGE   IPS",
        "shop/cart     11      eth0        veth-cart   cni0     10.1.0.1",
        "ip:10.1.0.2   12      eth0        veth-pay    cni0     10.1.0.2,fd00::2",
    ]


def test_wide_table() -> None:
    one = seen(CART, link(2, "eth0", to=3, nsid=7), ips="10.1.0.1/24", uids=(UID,), containers=(CID,), nsids={7: NODE})
    heading, row = lines(look_at((node_netns(CART_VETH), one)), wide=True)
    assert dict(zip(heading.split(), row.split(), strict=True)) == {
        "POD": f"uid:{UID}",
        "NETNS": "11",
        "INTERFACE": "eth0",
        "PEER": "veth-cart",
        "BRIDGE": "cni0",
        "IPS": "10.1.0.1",
        "NODE": "the-host",
        "KIND": "veth",
        "MTU": "1450",
        "MAC": "02:00:00:00:00:02",
        "STATE": "up",
        "CONTAINER": "c0ffee111111",
    }


@pytest.mark.parametrize(
    ("inside", "nsids", "words"),
    [
        pytest.param(link(2, "eth0", "macvlan", to=2, nsid=7), {7: NODE}, "none (macvlan on cni0)", id="macvlan"),
        pytest.param(link(2, "eth0", "ipvlan", to=2, nsid=7), {}, "none (ipvlan)", id="ipvlan-on-something-unseen"),
        pytest.param(link(2, "eth0", "device"), {}, "none (a device of its own: physical or a VF)", id="sr-iov"),
        pytest.param(link(2, "eth0", "dummy"), {}, "none (dummy)", id="dummy"),
        pytest.param(link(2, "eth0", to=9, nsid=7), {}, "none (its other end is in a netns that cannot be seen)",
                     id="unseen"),
        pytest.param(link(2, "eth0"), {}, "none (its other end is gone)", id="gone"),
    ],
)  # fmt: skip
def test_why_there_is_no_peer(inside: Link, nsids: dict[int, int], words: str) -> None:
    found = look_at((node_netns(), seen(CART, inside, ips="10.1.0.1/24", nsids=nsids)))
    assert words in lines(found)[1]
    (entry,) = document(found, rows(found))["interfaces"]
    assert (entry["peer"], entry["bridge"]) == (None, None)
    assert f"none ({entry['noPeer']})" == words


def test_device_names_cannot_reach_the_terminal() -> None:
    hostile = node_netns(link(3, "v\x1b[2J", master=2, to=2, nsid=1))
    (_, row) = lines(look_at((hostile, pod_netns(CART, 3, "10.1.0.1/24"))))
    assert "v\\x1b[2J" in row
    assert "\x1b" not in row


def test_namespace_narrows_the_map() -> None:
    found = look_at(TWO_PODS, pod("cart", "10.1.0.1"))
    assert [interface.netns for interface in rows(found, "shop")] == [CART]
    assert rows(found, "blue") == []


def test_the_node_is_a_column_where_there_are_several() -> None:
    second = seen(20, link(5, "veth-late", master=9, to=2, nsid=0), nsids={0: LATE})
    found = look_at((*TWO_PODS, second, pod_netns(LATE, 5, "10.2.0.1/24", to=20)))
    assert [line.split()[-1] for line in lines(found)] == ["NODE", "the-host", "the-host", "n20"]


def test_document() -> None:
    whole = document(found := look_at(TWO_PODS, pod("cart", "10.1.0.1", uid="u1")), rows(found))
    assert (whole["apiVersion"], whole["kind"]) == ("k8snet.io/v1alpha1", "InterfaceMap")
    assert json.loads(json.dumps(whole)) == whole
    entry = whole["interfaces"][0]
    assert entry["pod"] == {"namespace": "shop", "name": "cart"}
    assert (entry["podUID"], entry["node"], entry["bridge"]) == ("u1", "the-host", "cni0")
    assert entry["netns"] == {"inum": 11, "path": "/run/netns/n11"}
    assert entry["interface"]["addresses"] == ["10.1.0.1/24"]
    assert (entry["peer"]["name"], entry["peer"]["netns"], entry["peer"]["mtu"]) == ("veth-cart", 10, 1450)
