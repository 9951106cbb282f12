"""`k8snet map`: every pod interface on this machine, and what it is tied to outside the pod.

In: the `World` of k8snet.cluster.interfaces. Out: a table in kubectl's manner, or an InterfaceMap document. A pod that
nobody has named is shown by its UID, its container, or its address; one on its node's network has a row without an
interface. What contradicts a name is told on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from k8snet.cli import source
from k8snet.errors import Exit, K8snetError
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.cluster.interfaces import Guest, Interface, Owner, World
    from k8snet.cluster.inventory import Pod

_TEXT = ("POD", "NETNS", "INTERFACE", "PEER", "BRIDGE", "IPS")
_WIDE = (*_TEXT, "NODE", "KIND", "MTU", "MAC", "STATE", "CONTAINER", "NAMED-BY")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `map` to the command line."""
    parser = commands.add_parser(
        "map",
        help="every pod interface on this node: pod, netns, veth, bridge, addresses",
        description="Every pod interface on this node: pod, netns, interface inside, peer outside, bridge, addresses.",
        epilog="exit codes: 0 done, 2 usage or privilege",
    )
    parser.add_argument("-o", "--output", choices=("text", "wide", "json"), default="text", help="default: text")
    source.add_options(parser, "only pods of this namespace", everywhere="pods of all namespaces (the default)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Look once and print; raises K8snetError when not root."""
    denied = K8snetError("k8snet map enters network namespaces, and may not", "run it as root: sudo k8snet map")
    if os.geteuid() != 0:
        raise denied
    from k8snet.cluster import interfaces
    from k8snet.cluster.needs import Wish

    try:
        survey = interfaces.survey()
    except PermissionError:
        raise denied from None
    wish = Wish(here=survey.addresses, hostname=survey.hostname, pods_of=args.namespace or "")
    with source.opened(args, wish, needed=False, once=True) as known:
        known.tell()
        world = survey.named(known.names.inventory)
    found, on_the_node = rows(world, args.namespace), guests(world, args.namespace)
    if args.output == "json":
        print(json.dumps(document(world, found, on_the_node), indent=2))
        return Exit.OK
    if found or on_the_node:
        print(table(world, found, on_the_node, wide=args.output == "wide"))
    else:
        print(_nothing(world, args.namespace), file=sys.stderr)
    hints = []
    if known.missing and any(world.owner(interface.netns).pod is None for interface in found):
        hints.append(f"note: not all have names, for {known.missing}: {known.advice}")
    for line in (*doubts(world, found, on_the_node), *hints):
        print(inert(line), file=sys.stderr)
    return Exit.OK


def _nothing(world: World, namespace: str | None) -> str:
    if not namespace:
        return "No pod interface on this node."
    unnamed = len({i.netns for i in rows(world) if world.owner(i.netns).pod is None})
    but = f" {unnamed} pods or containers have no name here: see k8snet map" if unnamed else ""
    return f"No pod interface of namespace {inert(namespace)} on this node.{but}"


def rows(world: World, namespace: str | None = None) -> list[Interface]:
    """The interfaces inside pods, sorted by pod."""
    from k8snet.cluster.interfaces import Role, in_use

    found: list[tuple[bool, str, Interface]] = []
    for interface in world.interfaces:
        owner = world.owner(interface.netns)
        if owner.role is not Role.POD or not in_use(interface):
            continue
        if namespace is None or (owner.pod and owner.pod.namespace == namespace):
            found.append((owner.pod is None, _pod(world, owner, interface), interface))
    found.sort(key=lambda row: (row[0], row[1], row[2].netns, row[2].ifindex))
    return [interface for _, _, interface in found]


def guests(world: World, namespace: str | None = None) -> list[Guest]:
    """The pods on their node's network, sorted by name; those without a name last."""
    found = [g for g in world.guests if namespace is None or (g.pod and g.pod.namespace == namespace)]
    return sorted(found, key=lambda guest: (guest.pod is None, guest.pod.key if guest.pod else guest.uid))


def doubts(world: World, found: Iterable[Interface], on_the_node: Iterable[Guest] = ()) -> list[str]:
    """A line for each contradiction between those that name pods."""
    lines = [
        f"warning: {_pod(world, world.owner(i.netns), i)} (netns {i.netns}): {note}"
        for i in found
        for note in world.owner(i.netns).notes
    ]
    lines += [f"warning: {_guest(guest)} (hostNetwork): {note}" for guest in on_the_node for note in guest.notes]
    return list(dict.fromkeys(lines))


def table(world: World, found: Iterable[Interface], on_the_node: Iterable[Guest] = (), wide: bool = False) -> str:
    """The interfaces as kubectl would print them."""
    found, on_the_node = list(found), list(on_the_node)
    # Which node is a question only where a machine is several of them.
    several = len({world.owner(i.netns).node for i in found} | {guest.node for guest in on_the_node}) > 1
    columns = _WIDE if wide else (*_TEXT, "NODE") if several else _TEXT
    cells = [_cells(world, interface) for interface in found] + [_guest_cells(guest) for guest in on_the_node]
    lines = [columns, *([inert(row.get(column, "-")) for column in columns] for row in cells)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def document(world: World, found: Iterable[Interface], on_the_node: Iterable[Guest] = ()) -> dict[str, Any]:
    """The interfaces as an InterfaceMap."""
    return {
        "apiVersion": "k8snet.io/v1alpha1",
        "kind": "InterfaceMap",
        "interfaces": [_entry(world, interface) for interface in found],
        "hostNetwork": [_guest_entry(world, guest) for guest in on_the_node],
    }


def _guest_entry(world: World, guest: Guest) -> dict[str, Any]:
    return {
        "pod": _named(guest.pod),
        "podUID": guest.uid,
        "namedBy": guest.named_by or None,
        "notes": list(guest.notes),
        "containers": list(guest.containers),
        "node": guest.node,
        "netns": {"inum": guest.netns, "path": world.netns[guest.netns].path},
    }


def _named(pod: Pod | None) -> dict[str, str] | None:
    return {"namespace": pod.namespace, "name": pod.name} if pod else None


def _entry(world: World, interface: Interface) -> dict[str, Any]:
    owner = world.owner(interface.netns)
    peer = world.peer(interface)
    bridge = world.bridge(peer) if peer else None
    parent = world.by_spot.get(interface.parent) if interface.parent else None
    return {
        "pod": _named(owner.pod),
        "podUID": owner.uid or (owner.pod.uid if owner.pod and owner.pod.uid else None),
        "namedBy": owner.named_by or None,
        "notes": list(owner.notes),
        "containers": list(owner.containers),
        "node": owner.node,
        "netns": {"inum": interface.netns, "path": world.netns[interface.netns].path},
        "interface": _device(interface),
        "peer": _device(peer) if peer else None,
        "parent": _device(parent) if parent else None,
        "bridge": bridge.name if bridge else None,
        "noPeer": None if peer else _no_peer(world, interface),
    }


def _device(interface: Interface) -> dict[str, Any]:
    return {
        "netns": interface.netns,
        "ifindex": interface.ifindex,
        "name": interface.name,
        "kind": interface.kind,
        "mac": interface.mac,
        "mtu": interface.mtu,
        "state": interface.state,
        "addresses": [str(address) for address in interface.addresses],
        "hardware": _hardware(interface),
    }


def _hardware(interface: Interface) -> dict[str, Any] | None:
    hardware = interface.hardware
    return {"address": hardware.address, "vf": hardware.virtual, "card": hardware.card} if hardware else None


def _cells(world: World, interface: Interface) -> dict[str, str]:
    owner = world.owner(interface.netns)
    peer = world.peer(interface)
    bridge = world.bridge(peer) if peer else None
    # Every interface has a link-local address; it tells nobody anything.
    ips = [str(address.ip) for address in interface.addresses if not address.ip.is_link_local]
    return {
        "POD": _pod(world, owner, interface),
        "NETNS": str(interface.netns),
        "INTERFACE": interface.name,
        "PEER": peer.name if peer else f"none ({_no_peer(world, interface)})",
        "BRIDGE": bridge.name if bridge else "-",
        "IPS": ",".join(ips) or "-",
        "NODE": owner.node or "-",
        "KIND": interface.kind,
        "MTU": str(interface.mtu),
        "MAC": interface.mac or "-",
        "STATE": interface.state,
        "CONTAINER": _short(owner.containers),
        "NAMED-BY": owner.named_by or "-",
    }


def _guest_cells(guest: Guest) -> dict[str, str]:
    return {
        "POD": _guest(guest),
        "NETNS": str(guest.netns),
        "INTERFACE": "hostNetwork",
        "NODE": guest.node or "-",
        "CONTAINER": _short(guest.containers),
        "NAMED-BY": guest.named_by or "-",
    }


def _short(containers: Iterable[str]) -> str:
    return ",".join(container[:12] for container in containers) or "-"


def _guest(guest: Guest) -> str:
    return guest.pod.key if guest.pod else f"uid:{guest.uid}"


def _pod(world: World, owner: Owner, interface: Interface) -> str:
    if owner.pod:
        return owner.pod.key
    if owner.uid:
        return f"uid:{owner.uid}"
    if owner.containers:
        return f"container:{owner.containers[0][:12]}"
    addresses = [address.ip for other in world.inside[interface.netns] for address in other.addresses]
    first = next((ip for ip in addresses if not ip.is_link_local and not ip.is_loopback), None)
    return f"ip:{first}" if first else f"netns:{interface.netns}"


def _no_peer(world: World, interface: Interface) -> str:
    from k8snet.cluster.interfaces import PAIRS

    if interface.kind in PAIRS:
        return "its other end is in a netns that cannot be seen" if interface.unseen else "its other end is gone"
    if interface.kind == "device":
        hardware = interface.hardware
        if hardware is None:
            return "a device of its own: physical or a VF"
        what = f"VF {hardware.address} of {hardware.card}" if hardware.virtual else f"hardware {hardware.address}"
        return f"a device of its own: {what}"
    parent = world.by_spot.get(interface.parent) if interface.parent else None
    return f"{interface.kind} on {parent.name}" if parent else interface.kind
