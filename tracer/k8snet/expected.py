"""What a packet's path should be, from the objects and the node's state, before there is a packet.

In: who wants to talk to whom (`Pair`), an Inventory, a World, and what the kernel has answered so far (`Answers`). Out:
an `Expected`, and the questions that are still open: the caller asks them and calls again, until there are none
(`k8snet.foresee`). The walk goes from netns to netns as a packet does: translated where a node's kube-proxy would do
it, then bridged, routed or put into a tunnel. What nobody can know from here stays unknown, with the reason.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from k8snet.cluster.allowance import Allowance, allowances
from k8snet.cluster.interfaces import PAIRS, Interface, Role, World
from k8snet.cluster.inventory import Endpoint, Inventory, Service, ServicePort
from k8snet.cluster.serving import Answer, Door, Fate, answer, door_of
from k8snet.event import Address, end_of
from k8snet.findings.case import pod_name
from k8snet.kernel.lookups import Answers
from k8snet.kernel.rtnetlink import Route, RouteQuestion
from k8snet.report import Expected, Party, Step, Way

MOST: Final = 32  # a guess: endpoints to which ways are drawn; with more, those on this machine come first
_ROUNDS: Final = 2  # a NodePort of another node brings a packet back once; more often is a loop
_DOWN: Final = ("down", "lowerlayerdown", "notpresent")
_TUNNELS: Final = ("vxlan", "ipip", "ip6tnl", "sit", "gre", "gretap", "geneve", "wireguard")
_BY_NEXT_HOP: Final = ("ipip", "sit")  # without a remote end of their own the next hop is the tunnel's other end
_ANY_MAC: Final = "00:00:00:00:00:00"
_IPVS: Final = "kube-ipvs0"  # the device that kube-proxy's IPVS mode puts all Services' addresses on
_PASTS: Final = ("macvlan", "ipvlan", "macvtap", "ipvtap")


@dataclass(frozen=True, slots=True)
class Pair:
    """One client and one server, as the first packet will name them."""

    client: Address
    netns: int | None  # the client's; None: it is not on this machine
    server: Address
    port: int | None = None  # None: any
    protocol: str | None = None  # tcp, udp, sctp, icmp; None: any


@dataclass(frozen=True, slots=True)
class _Translation:
    """Where kube-proxy rewrites the packet, and to what."""

    netns: int
    service: Service
    address: Address  # the Service's, as the client wrote it
    port: int
    endpoint: Endpoint
    masquerade: bool


@dataclass(frozen=True)
class Terrain:
    """A World with the indexes that a walk needs."""

    world: World
    inventory: Inventory
    proxied: frozenset[int]  # netns of the nodes that have kube-proxy's chains

    @cached_property
    def own(self) -> dict[int, frozenset[Address]]:
        """All addresses of each netns."""
        return {
            inum: frozenset(a.ip for i in inside for a in i.addresses) for inum, inside in self.world.inside.items()
        }

    @cached_property
    def at(self) -> dict[Address, tuple[Interface, ...]]:
        """The interfaces that have an address; two networks of one machine may use the same."""
        found: dict[Address, tuple[Interface, ...]] = {}
        for interface in self.world.interfaces:
            for address in interface.addresses:
                found[address.ip] = (*found.get(address.ip, ()), interface)
        return found

    @cached_property
    def _devices(self) -> dict[tuple[int, str], Interface]:
        return {(interface.netns, interface.name): interface for interface in self.world.interfaces}

    @cached_property
    def _nodes(self) -> frozenset[str]:
        return frozenset(node.name for node in self.inventory.nodes)

    def node(self, inum: int) -> str:
        """The Kubernetes node that this netns is, or empty."""
        owner = self.world.owner(inum)
        name = owner.node if owner.role is Role.NODE else None
        return name if name and (not self._nodes or name in self._nodes) else ""

    def is_inside(self, address: Address) -> bool:
        """It is of the cluster, or of a pod on this machine."""
        pods = (i for i in self.at.get(address, ()) if self.world.owner(i.netns).role is Role.POD)
        return self.inventory.is_inside(address) or any(pods)

    def device(self, inum: int, name: str) -> Interface | None:
        """The interface of that name."""
        return self._devices.get((inum, name))

    def port(self, bridge: Interface, address: Address) -> Interface | None:
        """The port of the bridge behind which somebody has this address."""
        peers = (self.world.peer(i) for i in self.at.get(address, ()))
        return next((p for p in peers if p and (p.netns, p.master) == bridge.spot), None)

    def is_closed(self, bridge: Interface) -> bool:
        """Everything behind the bridge's ports can be seen from here."""
        ports = [i for i in self.world.inside.get(bridge.netns, ()) if i.master == bridge.ifindex]
        return all(self.world.peer(port) is not None for port in ports)


class _End(Exception):  # noqa: N818  # no error: the walk is over
    """The rest of the way is not known, with the reason; or there is none, with no reason."""


@dataclass
class _Walk:
    """One packet on its way: `steps` grows, addresses change where they are rewritten."""

    terrain: Terrain
    answers: Answers
    wanted: set[RouteQuestion]
    source: Address
    to: Address
    server: Address  # the server's end of the header: `to` of a request, `source` of a reply
    server_port: int | None
    translation: _Translation | None = None
    masqueraded: Address | None = None  # what the backend sees instead of the client
    client: Address | None = None  # of a reply: who gets it once the masquerade is undone
    steps: list[Step] = field(default_factory=list)
    last: Interface | None = None  # by which it left the machine
    arrived: int | None = None

    @property
    def is_reply(self) -> bool:
        return self.client is not None

    def begin(self, inum: int) -> None:
        """From a socket in this netns. Raises _End when what comes next is not known."""
        self._rewrite(inum, "output")
        if self.to in self.terrain.own.get(inum, ()):
            for direction in ("out", "in"):
                self._step(inum, "lo", direction, f"{self.to} is its own address", sure=False)
            self._arrive(inum)
            return
        self._send(inum, RouteQuestion(inum, self.to, self.source if self.is_reply else None))

    def enter(self, came: Interface, next_hop: Address, *, sure: bool = True) -> None:
        """Into the netns of this device. Raises _End when what comes next is not known."""
        here = came.netns
        been = sum((step.netns, step.device, step.direction) == (here, came.name, "in") for step in self.steps)
        if been == _ROUNDS:
            problem = f"it goes round in circles by {came.name} of {self._name(here)}"
            self._step(here, None, "route", f"a way to {self.to}", problem=problem)
            raise _End("")
        peer = self.terrain.world.peer(came)
        why = f"the other end of {peer.name}" if peer else f"the {came.kind} that unwraps it"
        self._step(here, came.name, "in", why if sure else "as it left", sure=sure)
        self._route(came, next_hop)

    def _route(self, came: Interface, next_hop: Address) -> None:
        """What happens to a packet that has come in by this device."""
        here, world = came.netns, self.terrain.world
        master = world.bridge(came)
        rewritten = self._rewrite(here, "prerouting")
        receiver = came
        if master is not None and master.kind == "bridge":
            if not rewritten and next_hop not in self.terrain.own.get(here, ()):
                self._bridge(master, next_hop, f"{master.name} joins it with {came.name}")
                return
            receiver = master
            self._step(here, master.name, "in", f"{came.name} is its port", sure=False)
        elif master is not None and master.kind in ("bond", "team"):
            receiver = master
            self._step(here, master.name, "in", f"{came.name} is its port", sure=False)
        elif master is not None and master.kind != "vrf":
            raise _End(f"{master.name}, to which {came.name} belongs, is a {master.kind} and decides by itself")
        if self.to in self.terrain.own.get(here, ()):
            self._arrive(here)
            return
        self._send(here, RouteQuestion(here, self.to, self.source, receiver.ifindex))

    def _send(self, here: int, question: RouteQuestion) -> None:
        """By the device that the routing names."""
        route = self._ask(question)
        device = self.terrain.device(here, route.device)
        if route.error or device is None:
            said = f"{route} ({os.strerror(route.error)})" if route.error and route.type else str(route)
            problem = f"the routing answers: {said}{self._hint(route, question)}"
            self._step(here, None, "route", f"a route to {self.to}", problem=problem)
            raise _End("")
        next_hop = route.gateway or self.to
        self._leaving(here, device, next_hop)
        if device.kind == "bridge":
            self._step(here, device.name, "out", f"route {route}", sure=False)
            self._bridge(device, next_hop, f"{next_hop} is behind this port of {device.name}")
            return
        self._step(here, device.name, "out", f"route {route}")
        self._cross(device, next_hop)

    def _bridge(self, bridge: Interface, next_hop: Address, why: str) -> None:
        """Out of the port behind which the next hop is."""
        here = bridge.netns
        port = self.terrain.port(bridge, next_hop)
        self._leaving(here, bridge, next_hop)
        if port is None:
            if not self.terrain.is_closed(bridge):
                raise _End(f"behind which port of {bridge.name} {next_hop} is cannot be seen from here")
            place = self.terrain.world.owner(here).node or f"netns {here}"
            self._step(here, None, "route", f"{next_hop} on {bridge.name}",
                       problem=f"nobody on {bridge.name} of {place} has {next_hop}")  # fmt: skip
            raise _End("")
        self._step(here, port.name, "out", why)
        self._cross(port, next_hop)

    def _cross(self, device: Interface, next_hop: Address) -> None:
        """To whatever is at the other end of the device."""
        world, here = self.terrain.world, device.netns
        if device.kind in PAIRS:
            peer = world.peer(device)
            if peer is None:
                raise _End(f"the other end of {device.name} is in a netns that cannot be seen from here")
            of_nodes = {world.owner(here).role, world.owner(peer.netns).role} == {Role.NODE}
            if of_nodes and not self.terrain.is_inside(self.to):
                self.last = device  # what others make of it on its way out is not known: masquerading, say
                raise _End(self._elsewhere(device, next_hop))
            self.enter(peer, next_hop)
            return
        if device.kind in _TUNNELS:
            self._tunnel(device, next_hop)
            return
        if device.kind in _PASTS:
            below = world.by_spot.get(device.parent) if device.parent else None
            by = f" by {below.name}" if below else ""
            raise _End(f"{device.name} is a {device.kind}: it leaves{by} past the node's rules")
        if device.kind == "vlan" and device.parent and (below := world.by_spot.get(device.parent)):
            self._step(here, below.name, "out", f"{device.name} is a VLAN on it", sure=False)
            self._cross(below, next_hop)
            return
        self.last = device
        raise _End(self._elsewhere(device, next_hop))

    def _tunnel(self, device: Interface, next_hop: Address) -> None:
        """Around it a packet between nodes."""
        here = device.netns
        outer = self._other_end(device, next_hop)
        self.last = device
        if outer is None and device.kind == "vxlan" and not self._floods(device):
            self._step(here, None, "route", f"the node behind {device.name} that has {next_hop}",
                       problem=f"{device.name} has no entry for {next_hop}")  # fmt: skip
            raise _End("")
        if outer is None:
            raise _End(f"to which node {device.name} ({device.kind}) sends it is not in the kernel's tables")
        route = self._ask(RouteQuestion(here, outer))
        below = self.terrain.device(here, route.device)
        if route.error or below is None:
            self._step(
                here,
                None,
                "route",
                f"a route to {outer}, the other end of {device.name}",
                problem=f"the routing answers: {route}",
            )
            raise _End("")
        self._step(here, below.name, "out", f"{device.kind} to {outer}, route {route}")
        peer = self.terrain.world.peer(below)
        if peer is None:
            self.last = device
            raise _End(self._elsewhere(below, outer))
        if outer not in self.terrain.own.get(peer.netns, ()):
            raise _End(f"what is between {below.name} and {outer} is not followed")
        self._step(peer.netns, peer.name, "in", f"the other end of {below.name}")
        same = [
            i for i in self.terrain.world.inside.get(peer.netns, ()) if i.kind == device.kind and i.state not in _DOWN
        ]
        if len(same) != 1:
            raise _End(f"which {device.kind} device of {self._name(peer.netns)} unwraps it")
        self.enter(same[0], next_hop)

    def _other_end(self, device: Interface, next_hop: Address) -> Address | None:
        if device.kind in _BY_NEXT_HOP:
            return next_hop if next_hop != self.to else None
        if device.kind != "vxlan":
            return None
        known = self.answers.neighbours.get(device.netns, ())
        mac = next((n.mac for n in known if (n.address, n.device) == (next_hop, device.name)), None)
        sent = self.answers.forwarding.get(device.netns, ())
        return next((n.address for n in sent if mac and (n.mac, n.device) == (mac, device.name)), None)

    def _floods(self, device: Interface) -> bool:
        """It asks all nodes at once, or a multicast group, for what it has no entry for."""
        sent = self.answers.forwarding.get(device.netns, ())
        return any((n.mac, n.device) == (_ANY_MAC, device.name) for n in sent)

    def _elsewhere(self, device: Interface, next_hop: Address) -> str:
        by = f"it leaves this machine by {device.name}"
        pod = self.terrain.inventory.pod_by_ip.get(self.to)
        node = pod.node if pod else None
        if node:
            return f"{by}; the rest of its way is on {node}: run the same command there"
        return f"{by}; what is behind {next_hop} is not known here"

    def _rewrite(self, here: int, hook: str) -> bool:
        """What the node rewrites before it decides where to send the packet; True when it did."""
        made = self.translation
        if made is None or made.netns != here:
            return False
        if not self.is_reply:
            if (self.to, self.server_port) != (made.address, made.port):
                return False
            self.to = self.server = made.endpoint.ip
            self.server_port = made.endpoint.port
            self._step(here, None, hook, f"an endpoint of svc/{made.service.key}",
                       nat=f"DNAT to {end_of(made.endpoint.ip, made.endpoint.port)}")  # fmt: skip
            return True
        if self.masqueraded is not None and self.to == self.masqueraded and self.client is not None:
            self.to = self.client
            self._step(here, None, hook, "as the request was masqueraded here", nat=f"SNAT undone: to {self.to}")
            return True
        return False

    def _leaving(self, here: int, device: Interface, next_hop: Address) -> None:
        """What the node rewrites when it has decided."""
        made = self.translation
        if made is None or made.netns != here:
            return
        if self.is_reply:
            self._restore(here)
        elif made.masquerade and self.masqueraded is None and self.to == made.endpoint.ip:
            self.masqueraded = self._masquerade(here, device, next_hop)
            if self.masqueraded is None:
                raise _End(f"it is masqueraded, and {device.name} has no address")
            why = (
                "its backend is the client itself" if made.endpoint.ip == self.source else "it came to an outer address"
            )
            self._step(here, None, "postrouting", f"kube-proxy masquerades: {why}", nat=f"SNAT to {self.masqueraded}",
                       sure=here in self.terrain.proxied)  # fmt: skip
            self.source = self.masqueraded

    def _restore(self, here: int) -> None:
        """The reply gets the Service's address back."""
        made = self.translation
        if made is None or self.server == made.address:
            return
        self.source = self.server = made.address
        self.server_port = made.port
        self._step(here, None, "postrouting", "where it was translated",
                   nat=f"DNAT undone: from {end_of(made.address, made.port)}")  # fmt: skip

    def _masquerade(self, here: int, device: Interface, next_hop: Address) -> Address | None:
        """As the kernel chooses (inet_select_addr): of the device, of the next hop's network; else of any device."""
        inside = self.terrain.world.inside.get(here, ())
        of_device = [a for a in device.addresses if a.version == self.to.version]
        rest = [a for i in inside for a in i.addresses if a.version == self.to.version and i.kind != "loopback"]
        fit = [a for a in of_device if next_hop in a.network and not a.ip.is_link_local]
        usable = [a for a in (*fit, *of_device, *rest) if not a.ip.is_link_local]
        return usable[0].ip if usable else None

    def _ask(self, question: RouteQuestion) -> Route:
        known = self.answers.routes.get(question)
        if known is None:
            self.wanted.add(question)
            raise _End(f"the routing of {self._name(question.netns)} does not answer")
        return known

    def _hint(self, route: Route, question: RouteQuestion) -> str:
        """What an errno without an entry means for a packet that has come in."""
        if route.type or not question.iif or question.source is None:
            return ""
        if route.error in (errno.EXDEV, errno.EINVAL):
            # Which of the two it is has changed between kernels; only a look at the way back tells rp_filter.
            came = self.terrain.world.name(question.netns, question.iif)
            back = self._ask(RouteQuestion(question.netns, question.source))
            if back.type == "local":
                return f", since {question.source} is its own address"
            if back.device and back.device != came:
                return f", since it would answer {question.source} by {back.device} and not by {came}: rp_filter"
        if route.error == errno.EHOSTUNREACH:
            return ": it does not forward, or has no route"
        return ""

    def _arrive(self, here: int) -> None:
        if self.is_reply and self.translation is not None and self.translation.netns == here:
            self._restore(here)
        self.arrived = here
        what = "the client's socket" if self.is_reply else "a socket"
        port = "" if self.is_reply or self.server_port is None else f" on port {self.server_port}"
        self._step(here, None, "input", f"{what}{port}")

    def _step(
        self, here: int, device: str | None, direction: str, why: str, *,
        nat: str | None = None, problem: str | None = None, sure: bool = True,
    ) -> None:  # fmt: skip
        owner = self.terrain.world.owner(here)
        interface = self.terrain.device(here, device) if device else None
        if interface is not None and interface.state in _DOWN:
            problem = f"{interface.name} is {interface.state}"
        self.steps.append(
            Step(
                netns=here,
                node=owner.node,
                pod=pod_name(owner, here),
                device=device,
                direction=direction,
                address=end_of(self.server, self.server_port),
                nat=nat,
                why=why,
                problem=problem,
                sure=sure,
            )
        )

    def _name(self, inum: int) -> str:
        owner = self.terrain.world.owner(inum)
        return pod_name(owner, inum) or owner.node or f"netns {inum}"


def expected(pair: Pair, terrain: Terrain, answers: Answers) -> tuple[Expected, frozenset[RouteQuestion]]:
    """What should happen, as far as `answers` go, and what is to be asked for the rest. Asks nobody."""
    wanted: set[RouteQuestion] = set()
    if pair.netns is None:
        note = f"{pair.client} is not on this machine: how its packets come here is not known"
        return Expected("unknown", notes=(note,)), frozenset()
    asked = _service(pair, terrain.inventory)
    if asked is None:
        way = _way(pair, terrain, answers, wanted, None)
        return Expected("direct", ways=(way,)), frozenset(wanted)
    service, port, is_node_port = asked
    if pair.protocol == "icmp":
        note = f"{pair.server} is svc/{service.key}'s address, and kube-proxy translates no ICMP"
        return Expected("unknown", service.key, notes=(note,)), frozenset()
    if port is None:
        note = f"svc/{service.key} has several ports: write --to svc/{service.key}:PORT"
        return Expected("unknown", service.key, notes=(note,)), frozenset()
    place = _translator(pair, terrain, is_node_port)
    if place is None:
        way = _way(pair, terrain, answers, wanted, None)
        note = f"no node on this machine is known to translate {pair.server} for {pair.client}"
        found = Expected("unknown", service.key, ways=(replace(way, backend=None, reply=()),), notes=(note,))
        return found, frozenset(wanted)
    # A pod, or the node itself: whatever else comes from another machine, or another node, comes from outside.
    within = pair.netns == place or terrain.world.owner(pair.netns).role is Role.POD
    door = door_of(service, pair.server, within=within)
    own = replace(port, endpoints=tuple(e for e in port.endpoints if e.ip.version == pair.server.version))
    said = answer(service, own, terrain.node(place), door, is_ipvs=terrain.device(place, _IPVS) is not None)
    if said.fate is not Fate.SERVED:
        way = _nowhere(pair, terrain, answers, wanted, place, service, said)
        return Expected(said.fate.value, service.key, ways=(way,)), frozenset(wanted)
    here = terrain.at.keys()
    chosen = sorted(said.endpoints, key=lambda end: end.ip not in here)[:MOST]
    ways = []
    for endpoint in chosen:
        # In every mode kube-proxy masquerades what would come back to its sender, and what comes to an outer address;
        # with externalTrafficPolicy Local not what a pod sends there.
        outer = door is not Door.INSIDE and not (service.external_local and pair.netns != place)
        masquerade = outer or endpoint.ip == pair.client
        made = _Translation(place, service, pair.server, pair.port or port.port, endpoint, masquerade)
        ways.append(_way(pair, terrain, answers, wanted, made))
    notes = [f"{len(said.endpoints) - MOST} more endpoints are not drawn"] if len(said.endpoints) > MOST else []
    if place not in terrain.proxied:
        notes.append(f"no chains of kube-proxy are on {terrain.node(place)}: who translates there may do it otherwise")
    found = Expected("served", service.key, len(said.endpoints), tuple(ways), notes=tuple(notes))
    return found, frozenset(wanted)


def _service(pair: Pair, inventory: Inventory) -> tuple[Service, ServicePort | None, bool] | None:
    """Whose address the client uses, and which port; True: it is a node's address and a NodePort."""
    protocol = pair.protocol.upper() if pair.protocol else None

    def fits(port: ServicePort) -> bool:
        return protocol in (None, "ICMP", port.protocol)

    service = inventory.service_at(pair.server, pair.port or 0)
    if service is not None:
        ports = [p for p in service.ports if fits(p) and pair.port in (None, p.port)]
        if not ports and pair.protocol != "icmp":
            return None
        return service, ports[0] if len(ports) == 1 else None, False
    if pair.port is None or pair.protocol == "icmp":
        return None
    found = inventory.node_port_at(pair.server, pair.port, protocol)
    return (*found, True) if found else None


def _translator(pair: Pair, terrain: Terrain, is_node_port: bool) -> int | None:
    """The netns of the node that rewrites the Service's address: the first one that the packet comes to."""
    world = terrain.world
    if pair.netns is None:
        return None
    if is_node_port:
        owners = (i.netns for i in terrain.at.get(pair.server, ()) if terrain.node(i.netns))
        return next(owners, None)
    if terrain.node(pair.netns):
        return pair.netns
    peers = (world.peer(i) for i in world.inside.get(pair.netns, ()))
    return next((p.netns for p in peers if p is not None and terrain.node(p.netns)), None)


def _way(pair: Pair, terrain: Terrain, answers: Answers, wanted: set[RouteQuestion], made: _Translation | None) -> Way:
    """To one backend, and back."""
    unknown: list[str] = []
    asked = made.port if made else pair.port
    out = _Walk(terrain, answers, wanted, pair.client, pair.server, pair.server, asked, made)
    _walk(lambda: out.begin(pair.netns or 0), unknown)
    backend = _party(terrain.inventory, *((made.endpoint.ip, made.endpoint.port) if made else (pair.server, pair.port)))
    way = Way(backend, tuple(out.steps), (), tuple(unknown), _policies(pair, terrain.inventory, out, made))
    if out.arrived is None and out.last is None:
        return way
    back = _Walk(
        terrain, answers, wanted, out.to, out.masqueraded or pair.client, out.to, out.server_port, made,
        out.masqueraded, pair.client,
    )  # fmt: skip
    if out.arrived is not None:
        start = out.arrived
        _walk(lambda: back.begin(start), unknown)
    elif out.last is not None:
        entry = out.last
        _walk(lambda: back.enter(entry, _own_address(terrain, entry) or pair.client, sure=False), unknown)
    return replace(way, reply=tuple(back.steps), unknown=tuple(dict.fromkeys(unknown)))


def _policies(pair: Pair, inventory: Inventory, out: _Walk, made: _Translation | None) -> tuple[Allowance, ...]:
    """Behind the Service: policies are about pods. A masqueraded client is nobody that a rule of ingress could name."""
    server, port = (made.endpoint.ip, made.endpoint.port) if made else (pair.server, pair.port)
    said = allowances(inventory, pair.client, server, port, pair.protocol)
    return tuple(a for a in said if a.way == "egress" or out.masqueraded is None)


def _own_address(terrain: Terrain, device: Interface) -> Address | None:
    """Whom the other machine sends to."""
    return next(iter(terrain.own.get(device.netns, ())), None)


def _nowhere(
    pair: Pair,
    terrain: Terrain,
    answers: Answers,
    wanted: set[RouteQuestion],
    place: int,
    service: Service,
    said: Answer,
) -> Way:
    """To the node, which refuses it or drops it since there is no endpoint."""
    out = _Walk(terrain, answers, wanted, pair.client, pair.server, pair.server, pair.port)
    unknown: list[str] = []
    if pair.netns != place:
        _walk(lambda: out.begin(pair.netns or 0), unknown)
    first = next((n for n, step in enumerate(out.steps) if (step.netns, step.direction) == (place, "in")), None)
    if pair.netns != place and first is None:
        return Way(None, tuple(out.steps), (), tuple(unknown))  # it does not even come to the node
    kept = out.steps[: first + 1] if first is not None else []
    why = f"{said.policy}: Local, and no endpoint here" if said.policy else f"svc/{service.key} has no endpoints"
    end = "refused" if said.fate is Fate.REJECTED else "dropped"
    owner = terrain.world.owner(place)
    address = end_of(pair.server, pair.port)
    last = Step(place, owner.node, None, None, end, address, why=f"kube-proxy: {why}")
    return Way(None, (*kept, last))


def _walk(go: Callable[[], None], unknown: list[str]) -> None:
    try:
        go()
    except _End as end:
        if str(end):
            unknown.append(str(end))


def _party(inventory: Inventory, address: Address, port: int | None) -> Party:
    pod = inventory.pod_by_ip.get(address)
    node = inventory.node_by_ip.get(address)
    return Party(str(address), port, pod.key if pod else None, pod.node if pod else node.name if node else None)
