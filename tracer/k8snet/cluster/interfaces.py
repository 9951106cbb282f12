"""Which interface is whose: every netns of this machine, its interfaces, the veth pairs, and the pod or node behind.

In: netlink and /proc alone (`look`), and an Inventory for names where there is one. Out: a `World`, immutable.
A netns is tied to a pod by the pod UID in its processes' cgroups and by its IP addresses, each enough by itself.

Surprising: several netns of one machine can be nodes (the lab; Kubernetes in containers), and a device's other end
is known only by an id of the netns that it is seen from, which must be translated (`IFLA_LINK_NETNSID`).
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from k8snet.cluster.inventory import Inventory, Pod
from k8snet.kernel import netns as kernel_netns
from k8snet.kernel import rtnetlink
from k8snet.kernel.netns import Netns
from k8snet.kernel.rtnetlink import InterfaceAddress, Link

# Of these kinds, the other end of the pair is a device of its own; of all others with a link, the link is below them.
PAIRS: Final = ("veth", "netkit")
# A module of tunnels puts one such device into every netns, down and without address: nobody made it, nobody uses it.
_FALLBACKS: Final = ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0")

# The dashes are underscores with the systemd driver; static pods have a hash without dashes for a UID.
_UID: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])")
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}(?![0-9a-f])")
_BATCH: Final = 128  # a guess: netns that are open at once, far below the usual limit of 1024 files
_PIDS: Final = 32  # a guess: a netns's processes whose cgroup is read; its pause process is among the first


class Spot(NamedTuple):
    """An interface, wherever it is."""

    netns: int
    ifindex: int


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface, and what it is tied to."""

    netns: int
    ifindex: int
    name: str
    kind: str  # as the kernel says: "veth", "bridge", "macvlan", ...; "loopback"; "device": physical, or an SR-IOV VF
    mac: str | None
    mtu: int
    state: str  # operstate
    addresses: tuple[InterfaceAddress, ...]
    master: int | None  # ifindex of the bridge (bond, VRF) that it belongs to
    peer: Spot | None  # the other end of a veth
    parent: Spot | None  # the device below a macvlan, ipvlan, VLAN, ...
    unseen: bool = False  # there is a peer or parent, in a netns that cannot be seen from here

    @property
    def spot(self) -> Spot:
        """Its key."""
        return Spot(self.netns, self.ifindex)


class Role(Enum):
    """What a netns is."""

    NODE = "node"
    POD = "pod"  # or another container with a network of its own
    OTHER = "other"  # nothing but lo


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a netns belongs to. All is empty when nothing is known."""

    node: str | None = None  # the node, or the node that the pod is on
    pod: Pod | None = None
    uid: str | None = None  # pod UID, from a cgroup
    containers: tuple[str, ...] = ()  # container ids, from cgroups
    role: Role = Role.OTHER
    pin: str | None = None  # what `ip netns` calls it


@dataclass(frozen=True, slots=True)
class Seen:
    """One netns as the kernel and /proc show it."""

    netns: Netns
    links: tuple[Link, ...]
    addresses: dict[int, tuple[InterfaceAddress, ...]]
    uids: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    # The netns behind each id that a link names; an id that leads out of sight is missing.
    nsids: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Every netns and interface of this machine at one moment."""

    netns: dict[int, Netns]
    interfaces: tuple[Interface, ...]
    owners: dict[int, Owner]
    host: int  # the netns of pid 1 (ours, where that cannot be read)

    @cached_property
    def by_spot(self) -> dict[Spot, Interface]:
        """Interfaces by netns and ifindex."""
        return {interface.spot: interface for interface in self.interfaces}

    @cached_property
    def inside(self) -> dict[int, tuple[Interface, ...]]:
        """Interfaces by netns."""
        found: dict[int, list[Interface]] = {}
        for interface in self.interfaces:
            found.setdefault(interface.netns, []).append(interface)
        return {inum: tuple(interfaces) for inum, interfaces in found.items()}

    @cached_property
    def nodes(self) -> dict[str, int]:
        """The netns of each node that is on this machine, by the node's name."""
        return {o.node: inum for inum, o in self.owners.items() if o.role is Role.NODE and o.node is not None}

    def owner(self, inum: int) -> Owner:
        """Whose netns it is; an empty Owner for a netns that was not there."""
        return self.owners.get(inum, Owner())

    def interface(self, inum: int, ifindex: int) -> Interface | None:
        """The interface, or None when it was not there."""
        return self.by_spot.get(Spot(inum, ifindex))

    def name(self, inum: int, ifindex: int) -> str | None:
        """The interface's name, or None when it was not there."""
        interface = self.interface(inum, ifindex)
        return interface.name if interface else None

    def peer(self, interface: Interface) -> Interface | None:
        """The other end of a veth, if it can be seen."""
        return self.by_spot.get(interface.peer) if interface.peer else None

    def bridge(self, interface: Interface) -> Interface | None:
        """The bridge (or bond, VRF, OVS) that the interface belongs to."""
        return self.interface(interface.netns, interface.master) if interface.master else None

    def netns_of_pod(self, pod: Pod) -> Netns | None:
        """The netns of a pod on this machine; a hostNetwork pod's is its node's. None: the pod is not here."""
        if pod.host_network:
            inum = self.nodes.get(pod.node) if pod.node else None
            return self.netns.get(inum) if inum else None
        return self._by_pod.get(pod.key)

    def netns_of_node(self, name: str) -> Netns | None:
        """The netns of a node on this machine."""
        return self.netns.get(self.nodes[name]) if name in self.nodes else None

    @cached_property
    def _by_pod(self) -> dict[str, Netns]:
        return {owner.pod.key: self.netns[inum] for inum, owner in self.owners.items() if owner.pod}


def look(inventory: Inventory | None = None, proc: Path = Path("/proc")) -> World:
    """This machine as it is now. What vanishes meanwhile is left out. Raises PermissionError when not root."""
    try:
        host = kernel_netns.inum_of(proc / "1/ns/net")
    except OSError:  # not for us to read (no CAP_SYS_PTRACE, a restricted pid 1): on a node, this is where we start
        host = kernel_netns.own()
    seen = gather(kernel_netns.scan(proc).values(), host, proc)
    return world(seen, host, inventory or Inventory(), socket.gethostname())


def gather(found: Iterable[Netns], host: int, proc: Path = Path("/proc")) -> list[Seen]:
    """Each netns with its links, addresses and pod UIDs; `host` is pid 1's netns, which belongs to no pod."""
    seen: list[Seen] = []
    denied: PermissionError | None = None
    for netns in found:
        try:
            fd = kernel_netns.opened(netns)
        except FileNotFoundError:
            continue
        try:
            with rtnetlink.opened(fd) as netlink:
                links, addresses = netlink.links(), netlink.addresses()
        except PermissionError as error:
            denied = error
            continue
        finally:
            os.close(fd)
        uids, containers = ((), ()) if netns.inum == host else cgroups(proc, netns.pids)
        seen.append(Seen(netns, links, addresses, uids, containers))
    if denied and not seen:
        raise denied
    return _translated(seen, host)


def cgroups(proc: Path, pids: Iterable[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pod UIDs and container ids in the cgroup paths of processes: either driver, cgroup v1 and v2, any runtime."""
    uids: dict[str, None] = {}
    containers: dict[str, None] = {}
    for pid in list(pids)[:_PIDS]:
        try:
            lines = (proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            continue
        for path in (line.split(":", 2)[2] for line in lines if line.count(":") >= 2):
            # The innermost: a node that is itself a container has its own id in front.
            pod = next(reversed(list(_UID.finditer(path))), None)
            if pod:
                uids[pod[1].replace("_", "-")] = None
            # Behind the pod's UID the outermost: what a container nests in itself is not the runtime's.
            ids = _CONTAINER.findall(path, pod.end() if pod else 0)
            if ids:
                containers[ids[0] if pod else ids[-1]] = None
    return tuple(uids), tuple(containers)


def _translated(seen: list[Seen], host: int) -> list[Seen]:
    """With `nsids`: each netns has its own ids for others, and only the kernel, asked in that netns, can say which."""
    by_inum = {one.netns.inum: one for one in seen}
    known: dict[int, dict[int, int]] = {inum: {} for inum in by_inum}
    wanted = {
        inum: {link.link_nsid for link in one.links if link.link_nsid is not None} for inum, one in by_inum.items()
    }
    popular: Counter[int] = Counter({host: 1})
    # The node first: it knows all its pods, and each pair that it shows answers for the pod's side, too.
    for inum in sorted(wanted, key=lambda inum: -len(wanted[inum])):
        missing = {nsid for nsid in wanted[inum] if nsid >= 0} - known[inum].keys()
        likely = [by_inum[other] for other, _ in popular.most_common() if other in by_inum and other != inum]
        others = [one for other, one in by_inum.items() if other not in popular and other != inum]
        for candidates in (likely, others):
            if missing:
                known[inum] |= _ids(by_inum[inum].netns, [one.netns for one in candidates])
                missing -= known[inum].keys()
        popular.update(known[inum].values() & by_inum.keys())
        for link in by_inum[inum].links:
            other = None if link.link_nsid is None else known[inum].get(link.link_nsid)
            if other is None or link.kind not in PAIRS:
                continue
            for back in by_inum[other].links:
                if back.ifindex == link.link and back.link == link.ifindex and back.link_nsid is not None:
                    known[other][back.link_nsid] = inum
    return [replace(one, nsids=known[inum]) for inum, one in by_inum.items()]


def _ids(netns: Netns, others: list[Netns]) -> dict[int, int]:
    """The inode of each of `others` by the id that `netns` has for it."""
    found: dict[int, int] = {}
    with ExitStack() as inside:
        try:
            fd = kernel_netns.opened(netns)
            inside.callback(os.close, fd)
            netlink = inside.enter_context(rtnetlink.opened(fd))
        except FileNotFoundError:
            return found
        for start in range(0, len(others), _BATCH):
            with ExitStack() as batch:
                fds: dict[int, int] = {}
                for other in others[start : start + _BATCH]:
                    try:
                        fds[other.inum] = kernel_netns.opened(other)
                    except FileNotFoundError:
                        continue
                    batch.callback(os.close, fds[other.inum])
                nsids = netlink.nsids(list(fds.values()))
                found |= {nsid: inum for inum, nsid in zip(fds, nsids, strict=True) if nsid is not None}
    return found


def world(seen: Iterable[Seen], host: int, inventory: Inventory, hostname: str) -> World:
    """What was seen, tied together and named; `hostname` names pid 1's netns where the inventory does not."""
    by_inum = {one.netns.inum: one for one in seen}
    interfaces = tuple(_interface(one, link) for one in by_inum.values() for link in one.links)
    inside: dict[int, list[Interface]] = {inum: [] for inum in by_inum}
    for interface in interfaces:
        inside[interface.netns].append(interface)
    owners: dict[int, Owner] = {}
    pods: dict[int, Owner] = {}
    for inum, one in by_inum.items():
        ips = [address.ip for interface in inside[inum] for address in interface.addresses]
        node = next((inventory.node_by_ip[ip].name for ip in ips if ip in inventory.node_by_ip), None)
        by_ip = next((inventory.pod_by_ip[ip] for ip in ips if ip in inventory.pod_by_ip), None)
        uid = one.uids[0] if len(one.uids) == 1 else None
        pin = Path(one.netns.path).name if not one.netns.path.endswith("/ns/net") else None
        if inum == host or node or (not (by_ip or uid) and (len(one.uids) > 1 or _joins(inum, inside[inum]))):
            owners[inum] = Owner(node or (hostname if inum == host else pin or f"netns-{inum}"), role=Role.NODE)
        elif any(in_use(interface) for interface in inside[inum]):
            # An address is not enough against a UID that says otherwise: it may have been another pod's before.
            pod = next((pod for pod in inventory.pods if uid and pod.uid == uid), None)
            if pod is None and by_ip and not (uid and by_ip.uid):
                pod = by_ip
            pods[inum] = Owner(None, pod, uid, one.containers, Role.POD, pin)
        else:
            owners[inum] = Owner()
    for inum, owner in _one_netns_a_pod(pods, owners, inside).items():
        owners[inum] = replace(owner, node=_node_of(inside[inum], owners) or (owner.pod.node if owner.pod else None))
    return World({inum: one.netns for inum, one in by_inum.items()}, interfaces, owners, host)


def in_use(interface: Interface) -> bool:
    """Neither lo nor one of the devices that modules put into every netns."""
    idle = interface.name in _FALLBACKS and not interface.addresses and interface.state == "down"
    return interface.kind != "loopback" and not idle


def _joins(inum: int, interfaces: list[Interface]) -> bool:
    """A netns that joins others is a node: it bridges veths whose other ends are elsewhere, or has several such."""
    away = [i for i in interfaces if i.peer and i.peer.netns != inum]
    return any(i.master for i in away) or len({i.peer.netns for i in away if i.peer}) > 1


def _one_netns_a_pod(
    pods: dict[int, Owner], nodes: dict[int, Owner], inside: dict[int, list[Interface]]
) -> dict[int, Owner]:
    """Of several netns with one pod's address (one may be left over), the best keeps the pod."""

    def worth(inum: int) -> tuple[bool, bool]:
        return pods[inum].uid is not None, _node_of(inside[inum], nodes) is not None

    best: dict[str, int] = {}
    for inum, owner in pods.items():
        if owner.pod and (owner.pod.key not in best or worth(inum) > worth(best[owner.pod.key])):
            best[owner.pod.key] = inum
    return {
        inum: owner if owner.pod is None or best[owner.pod.key] == inum else replace(owner, pod=None)
        for inum, owner in pods.items()
    }


def _node_of(interfaces: Iterable[Interface], owners: dict[int, Owner]) -> str | None:
    """The node at the other end of a pod's interfaces."""
    for interface in interfaces:
        beyond = interface.peer or interface.parent
        owner = owners.get(beyond.netns) if beyond and beyond.netns != interface.netns else None
        if owner and owner.role is Role.NODE:
            return owner.node
    return None


def _interface(one: Seen, link: Link) -> Interface:
    inum: int | None = one.netns.inum if link.link_nsid is None else one.nsids.get(link.link_nsid)
    beyond = Spot(inum, link.link) if link.link is not None and inum is not None else None
    return Interface(
        netns=one.netns.inum,
        ifindex=link.ifindex,
        name=link.name,
        kind=link.kind,
        mac=link.mac,
        mtu=link.mtu,
        state=link.state,
        addresses=one.addresses.get(link.ifindex, ()),
        master=link.master,
        peer=beyond if link.kind in PAIRS else None,
        parent=beyond if link.kind not in PAIRS else None,
        unseen=link.link is not None and beyond is None,
    )
