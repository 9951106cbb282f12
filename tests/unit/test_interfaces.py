"""Interfaces and pods, tied together from what the kernel shows and the node says: veths, owners, names, the map."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from k8snet.cli.map import document, doubts, guests, rows, table
from k8snet.cluster.cgroups import Member
from k8snet.cluster.hardware import Hardware
from k8snet.cluster.interfaces import Owner, Role, Seen, Spot, World, calico_name, world
from k8snet.cluster.inventory import Inventory, Node, Pod
from k8snet.cluster.runtimes import Claim
from k8snet.kernel import rtnetlink
from k8snet.kernel.netns import Netns, scan
from k8snet.kernel.rtnetlink import Link

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
OTHER = "11111111-2222-3333-4444-555555555555"
CID = "c0ffee" + 58 * "1"

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
    container: str | None = None,
    claims: tuple[Claim, ...] = (),
    nsids: dict[int, int] | None = None,
    hardware: dict[int, Hardware] | None = None,
) -> Seen:
    addresses = {on: tuple(map(ip_interface, ips.split()))} if ips else {}
    members = tuple(Member(uid, container) for uid in uids)
    netns = Netns(inum, f"/run/netns/n{inum}")
    return Seen(netns, (LO, *links), addresses, members, claims, hardware or {}, nsids or {})


def pod_netns(
    inum: int, back: int, ips: str, uids: tuple[str, ...] = (), to: int = NODE, claims: tuple[Claim, ...] = ()
) -> Seen:
    return seen(inum, link(2, "eth0", to=back, nsid=7), ips=ips, uids=uids, nsids={7: to}, claims=claims)


def claim(key: str, uid: str = UID, source: str = "containerd", netns: int | None = None) -> Claim:
    namespace, name = key.split("/")
    return Claim(uid, namespace, name, source, netns)


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
    assert found.owner(CART) == Owner("the-host", cart, role=Role.POD, pin="n11", named_by="inventory, by address")
    assert found.owner(PAY).pod is pay
    assert found.netns_of_pod(pay) == Netns(PAY, "/run/netns/n12")
    assert found.netns_of_pod(pod("away", "10.2.0.9")) is None
    assert found.owner(99) == Owner()


def test_pods_are_named_by_the_uid_of_their_cgroup() -> None:
    cart = pod("cart", uid=UID)  # the API does not know its address yet
    found = look_at((node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", (UID,))), cart)
    assert found.owner(CART) == Owner("the-host", cart, UID, role=Role.POD, pin="n11", named_by="inventory, by UID")


def test_an_address_does_not_outweigh_another_pods_uid() -> None:
    found = look_at(
        (node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", (UID,))), pod("old", "10.1.0.1", uid="u1")
    )
    note = "by its address it would be shop/old, by its UID it is not"
    assert found.owner(CART) == Owner("the-host", None, UID, role=Role.POD, pin="n11", notes=(note,))


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


# names from the node itself, and contradictions


def one_pod(*claims: Claim, pods: tuple[Pod, ...] = (), uids: tuple[str, ...] = (UID,)) -> Owner:
    return look_at((node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", uids, claims=claims)), *pods).owner(CART)


def test_without_an_inventory_the_node_names_its_pods() -> None:
    owner = one_pod(claim("shop/cart"), claim("shop/cart", source="/var/log/pods"))
    cart = Pod("shop", "cart", UID, "the-host", (ip_address("10.1.0.1"),), False, "Running", source="containerd")
    assert owner.pod == cart
    assert (owner.named_by, owner.notes) == ("containerd, by UID", ())


def test_what_the_node_said_before_is_no_inventory() -> None:
    # Names can be resolved with it, but by now the address, and even the UID's name, may be another's.
    old = Pod("shop", "old", UID, "the-host", (ip_address("10.1.0.1"),), False, "Running", source="crictl")
    owner = one_pod(claim("shop/cart"), pods=(old,))
    assert owner.pod is not None
    assert (owner.pod.key, owner.named_by, owner.notes) == ("shop/cart", "containerd, by UID", ())
    assert one_pod(pods=(old,), uids=()).pod is None


def test_the_inventory_is_asked_before_the_node() -> None:
    cart = pod("cart", "10.1.0.1", uid=UID)
    owner = one_pod(claim("shop/cart"), pods=(cart,))
    assert (owner.pod, owner.named_by, owner.notes) == (cart, "inventory, by UID", ())


def test_a_claim_that_the_inventory_contradicts_is_told() -> None:
    cart = pod("cart", "10.1.0.1", uid=UID)
    owner = one_pod(claim("shop/tart", source="/var/log/pods"), pods=(cart,))
    assert (owner.pod, owner.notes) == (cart, ("/var/log/pods calls it shop/tart",))


def test_two_names_for_one_uid_are_no_name() -> None:
    owner = one_pod(claim("shop/cart"), claim("kube-system/admin", source="/var/log/pods"))
    assert (owner.pod, owner.uid, owner.named_by) == (None, UID, "")
    assert set(owner.notes) == {"containerd calls it shop/cart", "/var/log/pods calls it kube-system/admin"}


def test_the_uid_is_right_where_the_address_says_otherwise() -> None:
    cart, old = pod("cart", uid=UID), pod("old", "10.1.0.1", uid=OTHER)
    owner = one_pod(pods=(cart, old))
    assert (owner.pod, owner.notes) == (cart, ("by its address it would be shop/old, by its UID it is not",))
    owner = one_pod(claim("shop/cart"), pods=(old,))
    assert owner.pod is not None
    assert (owner.pod.key, owner.notes) == ("shop/cart", ("by its address it would be shop/old, by its UID it is not",))


def test_a_pod_that_was_made_anew_under_its_old_name_is_told() -> None:
    owner = one_pod(claim("shop/web-0"), pods=(pod("web-0", "10.1.0.9", uid=OTHER),))
    assert owner.pod is not None
    assert (owner.pod.key, owner.pod.uid) == ("shop/web-0", UID)
    assert owner.notes == ("the inventory has shop/web-0 with another UID: an older or newer pod of this name",)


def test_a_claim_for_another_uid_names_nobody() -> None:
    assert one_pod(claim("shop/cart", uid=OTHER)).pod is None
    assert one_pod(claim("shop/cart"), uids=()).pod is None


def test_a_netns_that_others_entered_is_still_its_pods() -> None:
    uids = (UID, OTHER)
    told = one_pod(claim("shop/cart", netns=CART), claim("ops/debug", OTHER, netns=PAY), uids=uids)
    assert told.pod is not None
    assert (told.role, told.pod.key) == (Role.POD, "shop/cart")
    assert one_pod(pods=(cart := pod("cart", "10.1.0.1", uid=UID),), uids=uids).pod is cart


def test_a_pod_whose_processes_have_all_crashed_is_named_by_its_runtime() -> None:
    told = one_pod(claim("shop/cart", source="CRI-O", netns=CART), uids=())
    assert told.pod is not None
    assert (told.pod.key, told.uid, told.named_by) == ("shop/cart", UID, "CRI-O, by UID")
    assert one_pod(claim("shop/cart", netns=CART), claim("shop/pay", OTHER, netns=CART), uids=()).pod is None


def calico(*pods: Pod, device: str, uids: tuple[str, ...] = (), claims: tuple[Claim, ...] = ()) -> Owner:
    node = node_netns(link(3, device, to=2, nsid=1))
    return look_at((node, pod_netns(CART, 3, "10.1.0.1/32", uids, claims=claims)), *pods).owner(CART)


def test_calico_names_a_veth_after_its_pod() -> None:
    # `printf %s shop.cart | sha1sum | cut -c 1-11`
    assert calico_name("shop/cart") == "calie45f23531db"


def test_calicos_device_name_confirms_or_contradicts() -> None:
    cart, pay = pod("cart", "10.1.0.1", uid=UID), pod("pay")
    right, wrong = calico_name("shop/cart"), calico_name("shop/pay")
    assert calico(cart, device=right).notes == ()
    assert calico(cart, device="vethab12").notes == ()
    for told in (
        calico(cart, device=wrong),
        calico(cart, device=wrong, uids=(UID,)),
        calico(device=wrong, uids=(UID,), claims=(claim("shop/cart"),)),
    ):
        assert told.pod is not None
        assert (told.pod.key, told.notes) == (
            "shop/cart",
            (f"its veth is {wrong}; Calico would call shop/cart's {right}",),
        )
    named = calico(pay, device=wrong)
    assert (named.pod, named.named_by) == (pay, "inventory, by Calico's device name")
    # A UID that nobody knows is not overruled by a device that may be left over.
    assert calico(pay, device=wrong, uids=(UID,)).pod is None


def test_pods_on_the_nodes_network_are_told_and_own_nothing() -> None:
    proxy, dns = pod("proxy", "192.168.50.1", uid=OTHER, host_network=True), pod("dns", uid=UID)
    node = seen(NODE, *node_netns(CART_VETH).links[1:], uids=(OTHER, "f" * 32), container=CID, nsids={1: CART})
    node = replace(node, members=(*node.members, Member("0" * 32, CID, monitor=True)))
    assert node.uids == (OTHER, "f" * 32)
    found = look_at((node, pod_netns(CART, 3, "10.1.0.1/24", (UID,))), proxy, dns)
    assert found.owner(NODE) == Owner("the-host", role=Role.NODE)
    assert [(guest.uid, guest.pod, guest.netns, guest.node) for guest in found.guests] == [
        (OTHER, proxy, NODE, "the-host"),
        ("f" * 32, None, NODE, "the-host"),
    ]
    assert lines(found)[2:] == [
        "shop/proxy                             10      hostNetwork   -           -        -",
        f"uid:{'f' * 32}   10      hostNetwork   -           -        -",
    ]
    assert document(found, [], guests(found))["hostNetwork"][0]["pod"] == {"namespace": "shop", "name": "proxy"}
    assert [guest.uid for guest in guests(found, "shop")] == [OTHER]
    assert found.pods == (dns, proxy)


def test_a_node_that_is_a_container_is_told_by_its_own_processes() -> None:
    outer = "0b" * 32
    init, proxy, cart = Member(None, outer), Member(OTHER, CID, outer), Member(UID, CID, outer)
    kind = replace(seen(NODE, link(2, "eth0", to=9, nsid=5), ips="172.18.0.2/16"), members=(init, proxy))
    inside = replace(pod_netns(CART, 3, "10.1.0.1/24"), members=(cart, init))  # somebody looks at it from the node
    found = look_at((seen(HOST), kind, inside), host=HOST)
    assert (found.owner(NODE).role, found.owner(CART).role, found.owner(CART).uid) == (Role.NODE, Role.POD, UID)
    assert [(guest.uid, guest.netns) for guest in found.guests] == [(OTHER, NODE)]


def test_a_process_of_a_pod_that_entered_the_nodes_network_is_no_hostnetwork_pod() -> None:
    node = seen(NODE, *node_netns(CART_VETH).links[1:], uids=(UID,), container=CID, nsids={1: CART})
    assert look_at((node, pod_netns(CART, 3, "10.1.0.1/24", (UID,)))).guests == ()


def test_contradictions_are_told_once_each() -> None:
    found = look_at(
        (node_netns(CART_VETH), pod_netns(CART, 3, "10.1.0.1/24", (UID,))), pod("cart", uid=UID), pod("old", "10.1.0.1")
    )
    assert doubts(found, rows(found)) == [
        "warning: shop/cart (netns 11): by its address it would be shop/old, by its UID it is not"
    ]


def test_a_netns_with_nothing_but_lo_is_nobodys() -> None:
    idle = link(2, "tunl0", "ipip", state="down")
    found = look_at((*TWO_PODS, seen(LATE, idle)))
    assert found.owner(LATE) == Owner()


# the map


def lines(found: World, wide: bool = False) -> list[str]:
    return table(found, rows(found), guests(found), wide).splitlines()


def test_table() -> None:
    assert lines(look_at(TWO_PODS, pod("cart", "10.1.0.1"))) == [
        "POD           NETNS   INTERFACE   PEER        BRIDGE   IPS",
        "shop/cart     11      eth0        veth-cart   cni0     10.1.0.1",
        "ip:10.1.0.2   12      eth0        veth-pay    cni0     10.1.0.2,fd00::2",
    ]


def test_wide_table() -> None:
    one = seen(CART, link(2, "eth0", to=3, nsid=7), ips="10.1.0.1/24", uids=(UID,), container=CID, nsids={7: NODE})
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
        "NAMED-BY": "-",
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


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        pytest.param(Hardware("0000:3b:02.1", virtual=True, card="ens1f0"), "VF 0000:3b:02.1 of ens1f0", id="vf"),
        pytest.param(Hardware("0000:3b:00.0"), "hardware 0000:3b:00.0", id="a-card-of-its-own"),
    ],
)
def test_hardware_inside_a_pod(hardware: Hardware, words: str) -> None:
    inside = seen(CART, link(3, "net1", "device"), ips="10.9.0.1/24", on=3, hardware={3: hardware})
    found = look_at((node_netns(), inside))
    assert f"   none (a device of its own: {words})   " in lines(found)[1]
    (entry,) = document(found, rows(found))["interfaces"]
    assert entry["interface"]["hardware"]["address"] == hardware.address


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


SCHEMA: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "docs/schema/interface-map.schema.json").read_text("utf-8")
)
OBJECTS: Final = {
    "PodInterface": lambda whole: whole["interfaces"][0],
    "HostNetworkPod": lambda whole: whole["hostNetwork"][0],
    "Device": lambda whole: whole["interfaces"][0]["interface"],
    "Hardware": lambda whole: whole["interfaces"][0]["interface"]["hardware"],
    "Netns": lambda whole: whole["interfaces"][0]["netns"],
    "Pod": lambda whole: whole["interfaces"][0]["pod"],
}


def whole_document() -> dict[str, Any]:
    """A document with everything in it."""
    card = Hardware("0000:3b:02.1", virtual=True, card="ens1f0")
    inside = seen(CART, link(2, "eth0", "device"), ips="10.1.0.1/24", uids=(UID,), container=CID, hardware={2: card})
    node = replace(node_netns(PAY_VETH), members=(Member(OTHER, CID),))
    parts = (node, inside, pod_netns(PAY, 4, "10.1.0.2/24"), seen(LATE, link(2, "eth0", "macvlan", to=2, nsid=7),
             ips="10.1.0.3/24", nsids={7: NODE}))  # fmt: skip
    found = look_at(parts, pod("cart", uid=UID), pod("proxy", uid=OTHER, host_network=True))
    return document(found, rows(found), guests(found))


def test_the_document_is_what_the_schema_says() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    whole = json.loads(json.dumps(whole_document()))
    Draft202012Validator(SCHEMA).validate(whole)
    assert [bool(entry["peer"] or entry["parent"]) for entry in whole["interfaces"]] == [False, True, True]


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_field_is_in_the_schema_and_required(kind: str) -> None:
    part = SCHEMA["$defs"][kind]
    assert list(OBJECTS[kind](whole_document())) == part["required"] == list(part["properties"])
