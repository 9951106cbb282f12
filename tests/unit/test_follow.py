"""Whose a netns is when pods come and go: names that are kept, and numbers that the kernel gives away again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from k8snet.cluster.cgroups import Member
from k8snet.cluster.follow import UNNOTICED, owners_at, succeeded
from k8snet.cluster.interfaces import Former, Owner, Role, Seen, World, world
from k8snet.cluster.inventory import KEPT, Inventory, Pod
from k8snet.kernel.netns import Netns
from k8snet.kernel.rtnetlink import InterfaceAddress, Link

HOST, POD = 1, 11
CART, PAY = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", "11111111-2222-3333-4444-555555555555"
PODS = tuple(
    Pod("shop", name, uid, "node-1", (ip_address(ip),), False, "Running")
    for name, uid, ip in (("cart", CART, "10.1.0.1"), ("pay", PAY, "10.1.0.2"))
)


def eth0(mac: str = "02:00:00:00:00:01") -> Link:
    return Link(2, "eth0", "veth", mac, 1500, "up", None, None, None)


def pod_netns(*links: Link, uid: str | None = None, ip: str = "10.1.0.1/24") -> Seen:
    lo = Link(1, "lo", "loopback", None, 65536, "unknown", None, None, None)
    members = (Member(uid, "c" * 64),) if uid else ()
    addresses: dict[int, tuple[InterfaceAddress, ...]] = {2: (ip_interface(ip),)} if links and ip else {}
    return Seen(Netns(POD, "/run/netns/cni-1"), (lo, *links), addresses, members)


def at(*pods: Seen, inventory: Iterable[Pod] = PODS) -> World:
    return world((Seen(Netns(HOST, "/proc/1/ns/net"), (), {}), *pods), HOST, Inventory(tuple(inventory)), "node-1")


def key(found: World) -> str | None:
    pod = found.owner(POD).pod
    return pod.key if pod else None


BEFORE = at(pod_netns(eth0(), uid=CART))


def test_a_pod_that_is_still_there_has_no_former_owner() -> None:
    now = succeeded(BEFORE, at(pod_netns(eth0(), uid=CART)), 100.0)
    assert (key(now), now.former, now.gone) == ("shop/cart", {}, frozenset())


def test_a_pod_keeps_its_name_for_a_minute_after_its_end() -> None:
    ended = succeeded(BEFORE, at(), 100.0)
    later = succeeded(ended, at(), 100.0 + KEPT - 1)
    for now in (ended, later):
        assert (key(now), now.gone, now.name(POD, 2)) == ("shop/cart", frozenset({POD}), "eth0")
        assert now.netns[POD].path == "/run/netns/cni-1"
        assert now.former[POD].until == 100.0
        assert now.netns_of_pod(PODS[0]) is None  # nobody can enter it
    over = succeeded(later, at(), 100.0 + KEPT)
    assert (over.owner(POD), over.former, POD in over.netns) == (Owner(), {}, False)


@pytest.mark.parametrize(
    "dying",
    [
        pytest.param(pod_netns(eth0(), ip=""), id="its-processes-ended"),
        pytest.param(pod_netns(), id="its-interface-went-too"),
    ],
)
def test_a_netns_that_its_pod_has_left_keeps_the_name(dying: Seen) -> None:
    now = succeeded(BEFORE, at(dying), 100.0)
    assert (key(now), now.gone) == ("shop/cart", frozenset())
    assert key(succeeded(now, at(dying), 100.0 + KEPT)) is None


def test_a_netns_that_is_made_under_the_same_number_is_nobodys_until_it_is_known() -> None:
    new = eth0("02:00:00:00:00:99")
    unknown = succeeded(BEFORE, at(pod_netns(new, ip="10.1.0.9/24")), 100.0)
    assert (key(unknown), unknown.former[POD].owner.pod) == (None, PODS[0])
    known = succeeded(unknown, at(pod_netns(new, uid=PAY)), 101.0)
    assert (key(known), known.former[POD].owner.pod, known.former[POD].until) == ("shop/pay", PODS[0], 100.0)


def test_of_two_former_owners_the_last_is_told() -> None:
    second = succeeded(BEFORE, at(pod_netns(eth0("02:00:00:00:00:99"), uid=PAY)), 100.0)
    gone = succeeded(second, at(), 110.0)
    assert (key(gone), gone.former[POD].until) == ("shop/pay", 110.0)


def test_a_netns_that_could_not_be_read_for_once_is_its_pods_again() -> None:
    back = succeeded(succeeded(BEFORE, at(), 100.0), at(pod_netns(eth0(), uid=CART)), 101.0)
    assert (key(back), back.former) == ("shop/cart", {})


def test_a_name_that_the_inventory_forgets_stays() -> None:
    now = succeeded(at(pod_netns(eth0())), at(pod_netns(eth0()), inventory=()), 100.0)
    assert key(now) == "shop/cart"


# whose packets


FORMER = Former(Owner("node-1", PODS[0], CART, role=Role.POD), Netns(POD, ""), (), 100.0)
NOW = {POD: Owner("node-1", PODS[1], PAY, role=Role.POD)}


@pytest.mark.parametrize(
    ("seconds", "pod"),
    [
        pytest.param([90.0, 98.0], PODS[0], id="all-before"),
        pytest.param([100.5, 103.0], PODS[1], id="all-after"),
        pytest.param([98.0, 103.0], None, id="before-and-after"),
        pytest.param([100.0 - UNNOTICED / 2], None, id="too-close-to-tell"),
    ],
)
def test_packets_are_those_of_the_pod_that_was_there(seconds: list[float], pod: Pod | None) -> None:
    found = owners_at(NOW, {POD: (FORMER, FORMER)}, {POD: [int(s * 1e9) for s in seconds]})
    assert (found[POD].pod, found[POD].node) == (pod, "node-1")


def test_between_three_pods_nobody_is_named() -> None:
    handed = {POD: (FORMER, replace(FORMER, until=110.0))}
    assert owners_at(NOW, handed, {POD: [int(105e9)]})[POD].pod is None


def test_a_pod_that_nobody_came_after_keeps_all_its_packets() -> None:
    handed = {POD: (FORMER, FORMER)}
    assert owners_at({POD: FORMER.owner}, handed, {POD: [int(98e9), int(103e9)]})[POD] == FORMER.owner
    assert owners_at(NOW, handed, {}) == NOW
