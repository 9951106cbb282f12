"""`k8snet map`: every pod interface on this machine, and what it is tied to outside the pod.

In: the `World` of k8snet.cluster.interfaces, with names where an inventory has them. Out: a table in kubectl's
manner, or an InterfaceMap document. A pod that nobody has named is shown by its UID, its container, or its address.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from k8snet.errors import Exit, K8snetError
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.cluster.interfaces import Interface, Owner, World

_TEXT = ("POD", "NETNS", "INTERFACE", "PEER", "BRIDGE", "IPS")
_WIDE = (*_TEXT, "NODE", "KIND", "MTU", "MAC", "STATE", "CONTAINER")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `map` to the command line."""
    parser = commands.add_parser(
        "map",
        help="every pod interface on this node: pod, netns, veth, bridge, addresses",
        description="Every pod interface on this node: pod, netns, interface inside, peer outside, bridge, addresses.",
        epilog="exit codes: 0 done, 2 usage or privilege",
    )
    parser.add_argument("-n", "--namespace", metavar="NS", help="only pods of this namespace (needs --inventory)")
    parser.add_argument(
        "--inventory", metavar="FILE", help="pods, services, endpointslices, nodes as kubectl prints them"
    )
    parser.add_argument("-o", "--output", choices=("text", "wide", "json"), default="text", help="default: text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Look once and print; raises K8snetError when not root."""
    denied = K8snetError("k8snet map enters network namespaces, and may not", "run it as root: sudo k8snet map")
    if os.geteuid() != 0:
        raise denied
    from k8snet.cluster import file, interfaces

    if args.namespace and not args.inventory:
        raise K8snetError(
            "-n needs the names of pods, and none are known without an inventory",
            f"make one: {file.KUBECTL} > inventory.json, then pass --inventory inventory.json",
        )
    inventory = file.load(args.inventory) if args.inventory else None
    try:
        world = interfaces.look(inventory)
    except PermissionError:
        raise denied from None
    found = rows(world, args.namespace)
    if args.output == "json":
        print(json.dumps(document(world, found), indent=2))
    elif found:
        print(table(world, found, wide=args.output == "wide"))
    else:
        where = f" of namespace {args.namespace}" if args.namespace else ""
        print(f"No pod interface{inert(where)} on this node.", file=sys.stderr)
    return Exit.OK


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


def table(world: World, found: Iterable[Interface], wide: bool = False) -> str:
    """The interfaces as kubectl would print them."""
    # Which node is a question only where a machine is several of them.
    several = len({world.owner(interface.netns).node for interface in found}) > 1
    columns = _WIDE if wide else (*_TEXT, "NODE") if several else _TEXT
    lines = [columns, *([inert(cell) for cell in _cells(world, i, columns)] for i in found)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def document(world: World, found: Iterable[Interface]) -> dict[str, Any]:
    """The interfaces as an InterfaceMap."""
    return {
        "apiVersion": "k8snet.io/v1alpha1",
        "kind": "InterfaceMap",
        "interfaces": [_entry(world, interface) for interface in found],
    }


def _entry(world: World, interface: Interface) -> dict[str, Any]:
    owner = world.owner(interface.netns)
    peer = world.peer(interface)
    bridge = world.bridge(peer) if peer else None
    parent = world.by_spot.get(interface.parent) if interface.parent else None
    return {
        "pod": {"namespace": owner.pod.namespace, "name": owner.pod.name} if owner.pod else None,
        "podUID": owner.uid or (owner.pod.uid if owner.pod and owner.pod.uid else None),
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
    }


def _cells(world: World, interface: Interface, columns: Iterable[str]) -> list[str]:
    owner = world.owner(interface.netns)
    peer = world.peer(interface)
    bridge = world.bridge(peer) if peer else None
    # Every interface has a link-local address; it tells nobody anything.
    ips = [str(address.ip) for address in interface.addresses if not address.ip.is_link_local]
    cell = {
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
        "CONTAINER": ",".join(container[:12] for container in owner.containers) or "-",
    }
    return [cell[column] for column in columns]


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
        return "a device of its own: physical or a VF"
    parent = world.by_spot.get(interface.parent) if interface.parent else None
    return f"{interface.kind} on {parent.name}" if parent else interface.kind
