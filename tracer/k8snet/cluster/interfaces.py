"""Which interface is whose: every netns of this machine, its interfaces, the veth pairs, and the pod or node behind.

In: netlink, /proc and what the runtime and the kubelet keep on disk (`look`), and an Inventory where there is one.
Out: a `World`, immutable. A netns is tied to a pod by the pod UID in its processes' cgroups and by its IP addresses,
each enough by itself; where they contradict each other the UID is right, and the owner's `notes` say so.

Surprising: several netns of one machine can be nodes (the lab; Kubernetes in containers), and a device's other end
is known only by an id of the netns that it is seen from, which must be translated (`IFLA_LINK_NETNSID`).
"""

from __future__ import annotations

import hashlib
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

from k8snet.cluster import cgroups, hardware, runtimes
from k8snet.cluster.cgroups import Member
from k8snet.cluster.hardware import Hardware
from k8snet.cluster.inventory import Inventory, Pod
from k8snet.cluster.runtimes import Claim
from k8snet.event import Address
from k8snet.kernel import netns as kernel_netns
from k8snet.kernel import rtnetlink
from k8snet.kernel.netns import Netns
from k8snet.kernel.rtnetlink import InterfaceAddress, Link

# Of these kinds, the other end of the pair is a device of its own; of all others with a link, the link is below them.
PAIRS: Final = ("veth", "netkit")
# A module of tunnels puts one such device into every netns, down and without address: nobody made it, nobody uses it.
_FALLBACKS: Final = ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0")

_BATCH: Final = 128  # a guess: netns that are open at once, far below the usual limit of 1024 files
# Calico's and Canal's name of a pod's veth on the node (libcalico-go, VethNameForWorkload), with the usual prefix.
_CALICO: Final = re.compile(r"cali[0-9a-f]{11}")


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
    hardware: Hardware | None = None

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
    named_by: str = ""  # who says what the pod is called, and by what it was recognised
    notes: tuple[str, ...] = ()  # what contradicts this


@dataclass(frozen=True, slots=True)
class Guest:
    """A pod on its node's network (hostNetwork): it has no netns, and owns none."""

    netns: int  # the node's
    node: str | None
    uid: str
    containers: tuple[str, ...]
    pod: Pod | None = None
    named_by: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """One netns as the kernel and /proc show it."""

    netns: Netns
    links: tuple[Link, ...]
    addresses: dict[int, tuple[InterfaceAddress, ...]]
    members: tuple[Member, ...] = ()  # what its processes belong to, each once
    claims: tuple[Claim, ...] = ()  # names for the members' UIDs, from the node's own disk
    hardware: dict[int, Hardware] = field(default_factory=dict)  # by ifindex
    # The netns behind each id that a link names; an id that leads out of sight is missing.
    nsids: dict[int, int] = field(default_factory=dict)

    @property
    def pin(self) -> str | None:
        """The name of the mount that keeps it, if there is one."""
        return None if self.netns.path.endswith("/ns/net") else Path(self.netns.path).name

    @property
    def uids(self) -> tuple[str, ...]:
        """The pods that have a process here."""
        return tuple(dict.fromkeys(m.uid for m in self.members if m.uid and not m.monitor))

    def containers(self, uid: str | None) -> tuple[str, ...]:
        """The containers of a pod that have a process here; of no pod: None."""
        return tuple(dict.fromkeys(m.container for m in self.members if m.uid == uid and m.container and not m.monitor))


@dataclass(frozen=True, slots=True)
class Former:
    """Whose netns it was, until when."""

    owner: Owner
    netns: Netns
    interfaces: tuple[Interface, ...]
    until: float  # time.monotonic(), of the look that found another one or none


@dataclass(frozen=True)
class World:
    """Every netns and interface of this machine at one moment."""

    netns: dict[int, Netns]
    interfaces: tuple[Interface, ...]
    owners: dict[int, Owner]
    host: int  # the netns of pid 1 (ours, where that cannot be read)
    guests: tuple[Guest, ...] = ()  # pods on their node's network
    former: dict[int, Former] = field(default_factory=dict)  # of netns that are gone, or another pod's by now
    seen: tuple[Seen, ...] = field(default=(), repr=False, compare=False)  # what all this was made from

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

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """The pods of this machine that have a name, from wherever that came."""
        named = [owner.pod for owner in self.owners.values()] + [guest.pod for guest in self.guests]
        return tuple(pod for pod in named if pod is not None)

    @cached_property
    def gone(self) -> frozenset[int]:
        """Netns that ended a moment ago, and are here for the sake of their names."""
        return frozenset(self.former.keys() - {one.netns.inum for one in self.seen})

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
        return {o.pod.key: self.netns[inum] for inum, o in self.owners.items() if o.pod and inum not in self.gone}


@dataclass(frozen=True)
class Survey:
    """Every netns of this machine as the kernel shows it."""

    seen: tuple[Seen, ...]
    host: int  # the netns of pid 1
    hostname: str

    @property
    def addresses(self) -> frozenset[Address]:
        """All addresses of this machine, whichever netns has them."""
        return frozenset(a.ip for one in self.seen for found in one.addresses.values() for a in found)

    def named(self, inventory: Inventory) -> World:
        """With the names of an inventory."""
        return world(self.seen, self.host, inventory, self.hostname)


def look(inventory: Inventory | None = None, proc: Path = Path("/proc"), root: Path | None = None) -> World:
    """This machine as it is now. What vanishes meanwhile is left out. Raises PermissionError when not root.

    `root`: of the node's file system; by default pid 1's, which is the node's also from inside a pod with hostPID.
    """
    return survey(proc, root).named(inventory or Inventory())


def survey(proc: Path = Path("/proc"), root: Path | None = None) -> Survey:
    """As `look`, without names: they may come later, and from what was seen here."""
    host = host_netns(proc)
    return Survey(tuple(gather(kernel_netns.scan(proc).values(), host, proc, root)), host, socket.gethostname())


def host_netns(proc: Path = Path("/proc")) -> int:
    """The netns of pid 1, which belongs to no pod."""
    try:
        return kernel_netns.inum_of(proc / "1/ns/net")
    except OSError:  # not for us to read (no CAP_SYS_PTRACE, a restricted pid 1): on a node, this is where we start
        return kernel_netns.own()


def gather(
    found: Iterable[Netns], host: int, proc: Path = Path("/proc"), root: Path | None = None, *, ask: bool = True
) -> list[Seen]:
    """Each netns with its links, addresses, pod UIDs and their names; `ask`: the runtime too, as a last resort."""
    return translated(read(found, host, proc, root, ask=ask), host)


def read(
    found: Iterable[Netns],
    host: int,
    proc: Path = Path("/proc"),
    root: Path | None = None,
    *,
    ask: bool = True,
    memo: dict[tuple[Path, str], Claim] | None = None,
) -> list[Seen]:
    """The same, with the netns behind links still to be translated, which takes all of them.

    `memo`: what earlier reads have found out about containers, and this one adds to.
    """
    memo = {} if memo is None else memo
    seen: list[Seen] = []
    processes: dict[int, list[tuple[int, Member]]] = {}
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
        processes[netns.inum] = _members(netns, host, proc)
        seen.append(Seen(netns, links, addresses, tuple(dict.fromkeys(m for _, m in processes[netns.inum]))))
    if denied and not seen:
        raise denied
    places = runtimes.roots(proc, [found for inside in processes.values() for found in inside], root)
    names = {node: runtimes.Names(place, memo) for node, place in places.items()}
    sysfs = places[None] / "sys"
    return [
        replace(
            one,
            claims=_claims(one, names, ask),
            hardware={i.ifindex: h for i in one.links if i.bus and (h := hardware.of_link(sysfs, i)) is not None},
        )
        for one in seen
    ]


def _members(netns: Netns, host: int, proc: Path) -> list[tuple[int, Member]]:
    few, rest = netns.pids[: cgroups.FEW], netns.pids[cgroups.FEW :]
    inside = list(cgroups.members(proc, few))
    # A node's netns has the processes of many pods; of a pod's the first are enough.
    if rest and (netns.inum == host or len({member.uid for _, member in inside}) > 1):
        inside += cgroups.members(proc, rest)
    return inside


def _claims(one: Seen, names: dict[str | None, runtimes.Names], ask: bool) -> tuple[Claim, ...]:
    # Runtimes pin a pod's netns, so that it outlives all its processes.
    if not one.members and one.pin and any(link.kind != "loopback" for link in one.links):
        return names[None].at_home(one.netns.inum)
    nodes = {member.uid: member.node for member in one.members if member.uid}
    # A node that is a container is asked about its own pods only, and nobody else about them.
    return tuple(
        claim
        for uid in one.uids
        if nodes[uid] in names
        for claim in names[nodes[uid]].claims(uid, one.containers(uid), ask=ask and nodes[uid] is None)
    )


def translated(seen: Iterable[Seen], host: int) -> list[Seen]:
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
        if missing:
            likely = [other for other, _ in popular.most_common() if other in by_inum and other != inum]
            known[inum] |= _ids(by_inum[inum].netns, [by_inum[other].netns for other in likely])
            missing -= known[inum].keys()
        if missing:
            others = [one.netns for other, one in by_inum.items() if other not in popular and other != inum]
            known[inum] |= _ids(by_inum[inum].netns, others)
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
    seen = tuple(seen)
    by_inum = {one.netns.inum: one for one in seen}
    interfaces = tuple(_interface(one, link) for one in by_inum.values() for link in one.links)
    names = {interface.spot: interface.name for interface in interfaces}
    inside: dict[int, list[Interface]] = {inum: [] for inum in by_inum}
    for interface in interfaces:
        inside[interface.netns].append(interface)
    owners: dict[int, Owner] = {}
    pods: dict[int, Owner] = {}
    namer = _Namer([pod for pod in inventory.pods if not pod.source])
    nodes = {member.node for one in seen for member in one.members if member.node}
    for inum, one in by_inum.items():
        ips = [address.ip for interface in inside[inum] for address in interface.addresses]
        node = next((inventory.node_by_ip[ip].name for ip in ips if ip in inventory.node_by_ip), None)
        by_ip = namer.at(ips)
        uid = _uid(one, by_ip)
        several = not (by_ip or uid) and (len(one.uids) > 1 or _joins(inum, inside[inum]))
        if inum == host or node or several or _is_at_home(one, nodes):
            owners[inum] = Owner(node or (hostname if inum == host else one.pin or f"netns-{inum}"), role=Role.NODE)
        elif any(in_use(interface) for interface in inside[inum]):
            outside = [names[i.peer] for i in inside[inum] if i.peer in names]
            pod, named_by, notes = namer.pod(uid, one.claims, ips, outside)
            pods[inum] = Owner(None, pod, uid, one.containers(uid), Role.POD, one.pin, named_by, notes)
        else:
            owners[inum] = Owner()
    for inum, owner in _one_netns_a_pod(pods, owners, inside).items():
        node = _node_of(inside[inum], owners) or (owner.pod.node if owner.pod else None)
        pod = replace(owner.pod, node=node) if owner.pod and owner.pod.node is None else owner.pod
        owners[inum] = replace(owner, node=node, pod=pod)
    guests = _guests(by_inum.values(), owners, namer)
    return World({i: one.netns for i, one in by_inum.items()}, interfaces, owners, host, guests, seen=seen)


def _is_at_home(one: Seen, nodes: set[str]) -> bool:
    """It is the netns of a container that is a node: its first process is that container's, none of a pod's in it."""
    return bool(one.members) and one.members[0].uid is None and one.members[0].container in nodes


def _uid(one: Seen, by_ip: Pod | None) -> str | None:
    """The pod whose netns it is: others may have entered it (`nsenter`, a debugging pod)."""
    if len(one.uids) == 1:
        return one.uids[0]
    at_home = {claim.uid for claim in one.claims if claim.netns == one.netns.inum}
    if len(at_home) == 1:
        return at_home.pop()
    return by_ip.uid if by_ip and by_ip.uid in one.uids else None


@dataclass
class _Namer:
    """Finds the name of a pod, by UID before address before device name."""

    known: list[Pod]  # to Kubernetes; what the node says of itself is in the claims, and newer there

    @cached_property
    def _by_uid(self) -> dict[str, Pod]:
        return {pod.uid: pod for pod in self.known if pod.uid}

    @cached_property
    def _keys(self) -> set[str]:
        return {pod.key for pod in self.known if pod.uid}

    @cached_property
    def _by_device(self) -> dict[str, Pod]:
        return {calico_name(pod.key): pod for pod in self.known if not pod.host_network and not pod.finished}

    @cached_property
    def _by_ip(self) -> dict[Address, Pod]:
        return Inventory(tuple(self.known)).pod_by_ip

    def at(self, ips: Iterable[Address]) -> Pod | None:
        """The pod that has one of these addresses."""
        return next((self._by_ip[ip] for ip in ips if ip in self._by_ip), None)

    def pod(
        self, uid: str | None, claims: Iterable[Claim], ips: list[Address], outside: Iterable[str]
    ) -> tuple[Pod | None, str, tuple[str, ...]]:
        """The pod, who named it, and what contradicts that; `outside` are the other ends of its veths."""
        by_ip = self.at(ips)
        pod, named_by, notes = self.by_uid(uid, claims, ips) if uid else (None, "", ())
        # An address is not enough against a UID that says otherwise: it may have been another pod's before.
        if pod is None and by_ip and not (uid and by_ip.uid):
            pod, named_by, notes = by_ip, "inventory, by address", ()
        elif by_ip and (pod is None or pod.key != by_ip.key):
            notes += (f"by its address it would be {by_ip.key}, by its UID it is not",)
        calico = [name for name in outside if _CALICO.fullmatch(name)]
        if pod is None and not uid:
            by_device = next((self._by_device[name] for name in calico if name in self._by_device), None)
            return by_device, "inventory, by Calico's device name" if by_device else "", notes
        if pod and calico and calico_name(pod.key) not in calico:
            notes += (f"its veth is {calico[0]}; Calico would call {pod.key}'s {calico_name(pod.key)}",)
        return pod, named_by, notes

    def by_uid(
        self, uid: str, claims: Iterable[Claim], ips: Iterable[Address] = (), *, host_network: bool = False
    ) -> tuple[Pod | None, str, tuple[str, ...]]:
        """The same, of a UID alone; with `ips`, if the inventory has no such pod."""
        said = {claim.key: claim for claim in reversed(list(claims)) if claim.uid == uid}
        pod = self._by_uid.get(uid)
        if pod is not None:
            others = [claim for key, claim in said.items() if key != pod.key]
            return pod, "inventory, by UID", tuple(f"{claim.source} calls it {claim.key}" for claim in others)
        if len(said) != 1:
            return None, "", tuple(f"{claim.source} calls it {claim.key}" for claim in said.values())
        ((key, claim),) = said.items()
        own = tuple(ip for ip in ips if not ip.is_link_local and not ip.is_loopback)
        another = f"the inventory has {key} with another UID: an older or newer pod of this name"
        notes = (another,) if key in self._keys else ()
        pod = Pod(claim.namespace, claim.name, uid, None, own, host_network, "Running", source=claim.source)
        return pod, f"{claim.source}, by UID", notes


def calico_name(key: str) -> str:
    """What Calico calls the node's end of the veth of the pod `namespace/name`."""
    return "cali" + hashlib.sha1(key.replace("/", ".").encode(), usedforsecurity=False).hexdigest()[:11]


def _guests(seen: Iterable[Seen], owners: dict[int, Owner], namer: _Namer) -> tuple[Guest, ...]:
    """The pods whose containers run in a node's netns, and in no other."""
    found = []
    elsewhere = {owner.uid for owner in owners.values() if owner.role is Role.POD}
    for one in seen:
        owner = owners[one.netns.inum]
        # Without a container it is a runtime's helper that was put into the pod's cgroup.
        for uid in one.uids if owner.role is Role.NODE else ():
            if uid not in elsewhere and one.containers(uid):
                pod, named_by, notes = namer.by_uid(uid, one.claims, host_network=True)
                found.append(Guest(one.netns.inum, owner.node, uid, one.containers(uid), pod, named_by, notes))
    return tuple(found)


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
        inum: owner
        if owner.pod is None or best[owner.pod.key] == inum
        else replace(owner, pod=None, named_by="", notes=(*owner.notes, f"another netns is {owner.pod.key}"))
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
        hardware=one.hardware.get(link.ifindex),
    )
