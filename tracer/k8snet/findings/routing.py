"""Findings about the routing decision: no route, a forbidden one, a next hop that is not there, or a wrong source."""

from __future__ import annotations

import errno
import os
import shlex
from ipaddress import ip_network
from typing import Final

from k8snet.event import Address, CtStatus, Event, ProbeId
from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case, Death, pod_name
from k8snet.findings.entry import Match
from k8snet.flow.model import AT_DEVICE, Direction
from k8snet.kernel.rtnetlink import REFUSALS, Route
from k8snet.report import Place

# Where packets end that the routing refuses, by its dst entry (in: ip_error; IPv6 in and out), or by no entry at all.
_REFUSED_AT: Final = frozenset(
    {"ip_error", "ip6_pkt_drop", "ip6_pkt_discard", "ip6_pkt_discard_out", "ip6_pkt_prohibit", "ip6_pkt_prohibit_out"}
    | {"dst_discard", "dst_discard_out", "__ip_queue_xmit", "ip_queue_xmit"}
    | {"br_nf_pre_routing_finish_ipv6"}  # a bridge routes what it has translated itself, and tells nobody
)
_NO_ROUTE: Final = frozenset({"IP_INNOROUTES", "IP_OUTNOROUTES"})
_NEIGHBOUR_REASONS: Final = frozenset({"NEIGH_FAILED", "NEIGH_QUEUEFULL"})
_NEIGHBOUR_SYMBOLS: Final = frozenset(
    {"neigh_invalidate", "__neigh_event_send", "arp_error_report", "ndisc_error_report"}
)


IPV6_FORWARDING: Final = "net.ipv6.conf.all.forwarding"
_ROUTER_NEEDS: Final = {
    IPV6_FORWARDING: (
        "# A router ignores router advertisements: a node that lives by them also needs "
        "net.ipv6.conf.DEVICE.accept_ra = 2.",
    )
}


def ip_forward_off(case: Case) -> Match | None:
    """The node does not route: net.ipv4.ip_forward is 0, or forwarding of the device is (IPv6 has one for all)."""
    for death in case.deaths:
        if death.symbol != ("ip6_forward" if case.ipv6 else "ip_error") and death.reason != "IP_INADDRERRORS":
            continue
        settings = case.around.settings.get(death.event.netns, {})
        names = ["net.ipv4.ip_forward", f"net.ipv4.conf.{death.event.ifname}.forwarding"]
        if case.ipv6:
            names = [IPV6_FORWARDING]
        off = [name for name in names if settings.get(name) == 0]
        if not off or death.reason not in (*UNSPECIFIED, "IP_INADDRERRORS"):
            continue
        sysctl = off[0]
        return Match(
            title=f"DROPPED on {words.owner(case, words.place(case, death))}: {sysctl} is 0, the node does not route",
            where=words.place(case, death),
            why="The packet is for another host, and this node is not allowed to forward.",
            evidence=(*words.evidence(case, death), f"sysctl {sysctl} = 0"),
            fix=(
                f"{words.enter(case, death.event.netns)}sysctl -w {shlex.quote(sysctl)}=1",
                f"# To make it last: echo '{sysctl} = 1' > /etc/sysctl.d/99-kubernetes.conf",
                *_ROUTER_NEEDS.get(sysctl, ()),
            ),
            direction=death.direction,
        )
    return None


def rp_filter(case: Case) -> Match | None:
    """Reverse-path filter: the packet came in by a device that the node would not use to answer its source."""
    for death in case.deaths:
        rose = case.around.rises.get(death.event.netns, {}).get("TcpExt.IPReversePathFilter", 0)
        without_reason = death.reason in UNSPECIFIED and death.symbol == "ip_rcv_finish_core" and rose > 0
        if death.reason != "IP_RPFILTER" and not without_reason:
            continue
        event = death.event
        settings = case.around.settings.get(event.netns, {})
        names = [f"net.ipv4.conf.{device}.rp_filter" for device in ("all", event.ifname)]
        source = event.packet.saddr if event.packet else "its source"
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, words.place(case, death))} at {event.ifname}: "
            f"reverse-path filter, the {death.direction.value} came in by the wrong device",
            where=words.place(case, death),
            why=f"The node's route to {source} does not lead out of {event.ifname}, and rp_filter is strict.",
            evidence=(
                *words.evidence(case, death),
                *(f"sysctl {name} = {settings[name]}" for name in names if name in settings),
                *((f"TcpExt.IPReversePathFilter rose by {rose}",) if rose else ()),
            ),
            fix=(
                f"{words.enter(case, event.netns)}ip route get {source}",
                f"# Mend the route to or from {source}, so that both directions use one device.",
                "# If it is meant that they differ:",
                f"{words.enter(case, event.netns)}sysctl -w {shlex.join(f'{name}=2' for name in names)}",
            ),
            direction=death.direction,
        )
    return None


def route_blackhole(case: Case) -> Match | None:
    """The route to the destination is of type blackhole, unreachable or prohibit."""
    if not case.flow.packets:
        return _own_blackhole(case)
    for death in words.fatal(case):
        route = _refusal(case, death)
        if route is None or route.type not in REFUSALS:
            continue
        target = _target(case, death.event)
        where = words.place(case, death)
        return Match(
            title=f"{words.ended(case, death)} on {words.owner(case, where)}: its route to {target} is {_a(route)}",
            where=where,
            why=f"The entry of the routing table that fits {target} best is {_a(route)}: what matches it is "
            f"{_FATE[route.type if case.refused_by else 'blackhole']}.",
            evidence=(*words.evidence(case, death), f"route: {route}", *_nobody(case, target)),
            fix=_mend_blackhole(case, death.event.netns, target, route),
            direction=death.direction,
            also=_BLOCK_ROUTES,
        )
    refused = _way_back(case)
    if refused is None or refused[2].type not in REFUSALS:
        return None
    arrival, target, route = refused
    where = words.at(case, arrival)
    whose = words.owner(case, where)
    return Match(
        title=f"NO REPLY from {whose}: its route back to {target} is {_a(route)}",
        where=where,
        why=f"The request arrived. What {whose} sends back to {target} is refused by its own routing table, before "
        "there is a packet.",
        evidence=(
            words.seen(case, arrival),
            f"route back: {route}",
            *_counted(case, arrival.netns, _NO_ROUTE_COUNTERS[target.version][1]),
        ),
        fix=_mend_blackhole(case, arrival.netns, target, route),
        direction=Direction.REPLY,
    )


def _own_blackhole(case: Case) -> Match | None:
    netns, target = case.around.client_netns, case.flow.original.daddr
    route = case.route_to(netns, target) if netns is not None else None
    if netns is None or route is None or route.type not in REFUSALS or route.error not in case.around.send_errors:
        return None
    where = _own_place(case, netns)
    return Match(
        title=f"NOT SENT by {words.owner(case, where)}: its route to {target} is {_a(route)}",
        where=where,
        why=f"The client's own routing table refuses {target}, so its socket got an error and no packet was made.",
        evidence=(_socket_error(case, route.error), f"route: {route}"),
        fix=_mend_blackhole(case, netns, target, route),
        direction=Direction.REQUEST,
        also=_BLOCK_ROUTES,
    )


def _mend_blackhole(case: Case, netns: int, target: Address, route: Route) -> tuple[str, ...]:
    inside = words.enter(case, netns)
    six = "-6 " if target.version == 6 else ""
    table = f" table {route.table}" if f"table {route.table}" in str(route) else ""
    return (
        f"{inside}ip {six}route show table all type {route.type}",
        "# Its proto says who made it. If nobody needs it:",
        f"{inside}ip {six}route del {route.type} {route.prefix}{table}",
    )


def _a(route: Route) -> str:
    return {"blackhole": "a blackhole", "unreachable": "“unreachable”", "prohibit": "“prohibit”"}[route.type]


_FATE: Final = {
    "blackhole": "dropped, and nobody is told",
    "unreachable": "dropped, and the sender is told that the host is unreachable",
    "prohibit": "dropped, and the sender is told that it is prohibited",
}
_BLOCK_ROUTES: Final = (
    "Calico and others keep such a route for each block of addresses of this node, and a longer one for each pod: then "
    "the pod behind the address is gone, or its own route is missing",
)


def no_route(case: Case) -> Match | None:
    """The netns where the packet was, or was to be made, has no route to where it should go."""
    if not case.flow.packets:
        return _client_without_route(case)
    for death in words.fatal(case):
        route = _refusal(case, death)
        if death.reason not in _NO_ROUTE and (route is None or route.error != errno.ENETUNREACH):
            continue
        event = death.event
        target = _target(case, event)
        where = words.place(case, death)
        whose = words.owner(case, where)
        counted = _counted(case, event.netns, *_NO_ROUTE_COUNTERS[target.version])
        lookup = () if route is None else (f"route to {target}: {route}",)
        return Match(
            title=f"{words.ended(case, death)} on {whose}: no route to {words.name(case, target)}",
            where=where,
            why=f"The routing of {whose} knows no way to {target}, not even a default route.",
            evidence=(*words.evidence(case, death), *lookup, *counted),
            fix=_mend_route(case, event.netns, target),
            direction=death.direction,
            also=(_POLICY_ROUTING,),
        )
    refused = _way_back(case)
    if refused is None or refused[2].error != errno.ENETUNREACH:
        return None
    arrival, target, route = refused
    where = words.at(case, arrival)
    whose = words.owner(case, where)
    return Match(
        title=f"NO REPLY from {whose}: no route back to {words.name(case, target)}",
        where=where,
        why=f"The request arrived. The routing of {whose} knows no way to {target}, not even a default route, so no "
        "answer could be made.",
        evidence=(
            words.seen(case, arrival),
            f"route to {target}: {route}",
            *_counted(case, arrival.netns, _NO_ROUTE_COUNTERS[target.version][1]),
        ),
        fix=_mend_route(case, arrival.netns, target),
        direction=Direction.REPLY,
        also=(_POLICY_ROUTING,),
    )


_POLICY_ROUTING: Final = "a rule of policy routing (ip rule) refuses it, or sends it to a table that lacks the route"


def _way_back(case: Case) -> tuple[Event, Address, Route] | None:
    """Where the request arrived and nothing came back from: that arrival, its sender, a route there that refuses."""
    request = next(reversed(case.flow.requests), None)
    if case.answered or case.flow.replies or case.flow.icmp_errors or request is None or words.fatal(case):
        return None
    last = request.last
    if last.probe is not ProbeId.NETIF_RECEIVE_SKB or last.packet is None or last.outer is not None:
        return None
    here, back = case.route_to(last.netns, last.packet.daddr), case.route_back(last)
    if here is None or here.type != "local" or back is None or not back.error:
        return None
    return last, last.packet.saddr, back


def _counted(case: Case, netns: int, *counters: str) -> tuple[str, ...]:
    rises = case.around.rises.get(netns, {})
    return tuple(f"{counter} rose by {rises[counter]}" for counter in counters if rises.get(counter))


def _client_without_route(case: Case) -> Match | None:
    netns, target = case.around.client_netns, case.flow.original.daddr
    route = case.route_to(netns, target) if netns is not None else None
    if netns is None or route is None or route.error != errno.ENETUNREACH:
        return None
    counted = _counted(case, netns, _NO_ROUTE_COUNTERS[target.version][1])
    told = errno.ENETUNREACH in case.around.send_errors
    if not told and not counted:
        return None
    where = _own_place(case, netns)
    whose = words.owner(case, where)
    return Match(
        title=f"NOT SENT by {whose}: no route to {target}",
        where=where,
        why=f"The routing of {whose} knows no way to {target}, not even a default route: the socket got an error, and "
        "no packet was made.",
        evidence=(
            *((_socket_error(case, errno.ENETUNREACH),) if told else ()),
            f"route to {target}: {route}",
            *counted,
        ),
        fix=_mend_route(case, netns, target),
        direction=Direction.REQUEST,
        also=("the CNI plug-in did not finish: the pod's events say so",) if where.pod else (),
    )


_NO_ROUTE_COUNTERS: Final = {4: ("IpExt.InNoRoutes", "Ip.OutNoRoutes"), 6: ("Ip6InNoRoutes", "Ip6OutNoRoutes")}


def _mend_route(case: Case, netns: int, target: Address) -> tuple[str, ...]:
    inside = words.enter(case, netns)
    six = "-6 " if target.version == 6 else ""
    place = case.owner(netns)
    lines = [f"{inside}ip {six}route get {target}", f"{inside}ip {six}route show table all"]
    network = next(
        ((cidr, n) for n in case.around.inventory.nodes for cidr in n.pod_cidrs if target in ip_network(cidr)), None
    )
    if case.in_pod(netns):
        lines.append("# The CNI plug-in makes a pod's routes, when the pod starts: make the pod anew.")
        if place.pod is not None:
            lines.append(f"kubectl -n {place.pod.namespace} describe pod {place.pod.name}")
    elif network is not None and network[1].name != place.node:
        cidr, node = network
        lines.append(f"# {cidr} is the pod network of {node.name}: its route is the business of the CNI's agent.")
        if place.node:
            field = shlex.quote(f"spec.nodeName={place.node}")
            lines.append(f"kubectl get pods -A -o wide --field-selector {field}")
    return tuple(lines)


def neigh_failed(case: Case) -> Match | None:
    """The next hop does not answer ARP (IPv6: neighbour discovery)."""
    for death in words.fatal(case):
        by_symbol = death.reason in UNSPECIFIED and death.symbol in _NEIGHBOUR_SYMBOLS
        if death.reason in _NEIGHBOUR_REASONS or by_symbol:
            return _unresolved(case, death)
    return None


def _unresolved(case: Case, death: Death) -> Match | None:
    event = death.event
    target = _target(case, event)
    route = case.route_to(event.netns, target) or Route()
    hop = route.gateway or target
    table = case.around.neighbours.get(event.netns, ())
    known = next((n for n in table if n.address == hop and n.device in (route.device, event.ifname)), None)
    if death.reason == "NEIGH_QUEUEFULL" and (known is None or known.state not in ("INCOMPLETE", "FAILED")):
        return None  # too many at once for an address that was still being asked for, and was found
    spot = words.place(case, death)
    device = route.device or event.ifname
    where = Place(netns=spot.netns, node=spot.node, pod=spot.pod, device=device or None)
    asked = "ARP" if hop.version == 4 else "neighbour discovery"
    nobody = _nobody(case, hop)
    next_hop = f"The next hop to {target} is {hop}" if hop != target else f"{target} should be behind {device}"
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)} at {device}: {words.name(case, hop)} "
        f"does not answer {asked}",
        where=where,
        why=f"{next_hop}, and nobody there answers for that address"
        + (": no pod has it." if nobody and hop == target else "."),
        evidence=(
            *words.evidence(case, death),
            *((f"route: {route}",) if route.type else ()),
            *((f"neighbour {hop} dev {known.device}: {known.state}",) if known else ()),
            *nobody,
        ),
        fix=(
            f"{words.enter(case, event.netns)}ip neigh show to {hop}",
            *_look_for(case, hop),
            f"{words.enter(case, event.netns)}ip route get {target}",
        ),
        direction=death.direction,
        also=("the host is there, and its device or a filter drops the question",),
    )


def _look_for(case: Case, address: Address) -> tuple[str, ...]:
    service = case.service
    lines = [f"kubectl get pods -A -o wide --field-selector status.podIP={address}"]
    if service is not None and case.backend is not None and case.backend[0] == address:
        label = shlex.quote(f"kubernetes.io/service-name={service.name}")
        lines.append(f"kubectl -n {shlex.quote(service.namespace)} get endpointslices -l {label}")
        lines.append("# An endpoint without a pod: kube-proxy or the endpoint controller has not caught up.")
    return tuple(lines)


def address_conflict(case: Case) -> Match | None:
    """The node has an address of the packet's itself: it takes it for its own, or takes its sender for an impostor."""
    for death in words.fatal(case):
        header, netns = death.event.packet, death.event.netns
        if header is None or case.in_pod(netns):
            continue
        if words.no_socket(death) and _is_a_pods(case, header.daddr, netns) and _is_local(case, netns, header.daddr):
            return _taken(case, death, header.daddr)
        martian = death.reason == "IP_LOCAL_SOURCE"
        martian |= death.reason in UNSPECIFIED and death.symbol in _SOURCE_CHECKED_AT
        if martian and _is_local(case, netns, header.saddr):
            return _impostor(case, death, header.saddr)
    return None


_SOURCE_CHECKED_AT: Final = frozenset({"ip_rcv_finish_core", "br_nf_pre_routing_finish"})


def _is_a_pods(case: Case, address: Address, netns: int) -> bool:
    """The address belongs to a pod with a netns of its own."""
    pod = case.around.inventory.pod_by_ip.get(address)
    home = case.around.backend_netns.get(address)
    return netns != home and (home is not None or (pod is not None and not pod.host_network))


def _is_local(case: Case, netns: int, address: Address) -> bool:
    route = case.route_to(netns, address)
    return route is not None and route.type == "local"


def _taken(case: Case, death: Death, address: Address) -> Match:
    where, netns = words.place(case, death), death.event.netns
    whose = words.owner(case, where)
    pod = case.around.inventory.pod_by_ip.get(address)
    owner = f"pod {pod.key}" if pod is not None else "a pod"
    return Match(
        title=f"{words.ended(case, death)} on {whose}: the node has {owner}'s address {address} itself",
        where=where,
        why=f"{address} is an address of {whose} too, so the node takes what is sent to {owner} for its own, and "
        "nothing listens on that port there.",
        evidence=(*words.evidence(case, death), *_holders(case, netns, address)),
        fix=_give_back(case, netns, address),
        direction=death.direction,
    )


def _impostor(case: Case, death: Death, address: Address) -> Match:
    where, netns = words.place(case, death), death.event.netns
    whose = words.owner(case, where)
    return Match(
        title=f"{words.ended(case, death)} on {whose} at {death.event.ifname}: it came from {address}, an address of "
        f"{whose} itself",
        where=where,
        why=f"A packet from one of its own addresses cannot come in from outside, so {whose} drops it. The address is "
        "in use twice, or something on the way put it there.",
        evidence=(*words.evidence(case, death), *_holders(case, netns, address)),
        fix=_give_back(case, netns, address),
        direction=death.direction,
        also=("source NAT on another machine uses an address that is not its own",),
    )


def _held(case: Case, netns: int, address: Address) -> list[tuple[str, str]]:
    """By which devices of the netns the address is held, with its prefix."""
    devices = case.around.addresses.get(netns, {})
    return [(device, str(held)) for device, all_of in devices.items() for held in all_of if held.ip == address]


def _holders(case: Case, netns: int, address: Address) -> tuple[str, ...]:
    found = tuple(f"address {held} dev {device}" for device, held in _held(case, netns, address))
    return found or (f"route: {case.route_to(netns, address)}",)


def _give_back(case: Case, netns: int, address: Address) -> tuple[str, ...]:
    inside = words.enter(case, netns)
    return (
        f"{inside}ip address show to {address}",
        "# Find out who added it: a load balancer's address, a left-over of an old pod, a mistake. Then:",
        *(f"{inside}ip address del {held} dev {shlex.quote(device)}" for device, held in _held(case, netns, address)),
    )


def routing_loop(case: Case) -> Match | None:
    """It went round and round between routers until its time to live was used up."""
    for death in words.fatal(case):
        named = death.reason in ("IP_INHDR", *UNSPECIFIED)
        if not named or death.symbol not in ("ip_forward", "ip6_forward") or death.event.ttl > 1:
            continue
        rounds: dict[tuple[int, str, ProbeId], list[int]] = {}
        for packet in case.flow.by_key.get(death.packet.key, ()):
            for event in packet.events:
                if event.probe in AT_DEVICE:
                    rounds.setdefault((event.netns, event.ifname, event.probe), []).append(event.ttl)
        again = {
            spot: ttls for spot, ttls in rounds.items() if len(set(ttls)) > 2
        }  # twice may be a detour that is meant
        if again:
            return _loop(case, death, again)
    return None


def _loop(case: Case, death: Death, again: dict[tuple[int, str, ProbeId], list[int]]) -> Match:
    where, target = words.place(case, death), _target(case, death.event)
    netns = list(dict.fromkeys(netns for netns, _, _ in again))
    owners = [words.owner(case, _own_place(case, inum)) for inum in netns]
    routes = [(owner, case.route_to(inum, target)) for inum, owner in zip(netns, owners, strict=True)]
    spot, ttls = max(again.items(), key=lambda item: len(set(item[1])))
    gateway = next((str(r.gateway) for _, r in routes if r is not None and r.gateway), "its next hop")
    between = " and ".join(owners) if len(owners) > 1 else f"{owners[0]} and {gateway}"
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: routing loop between {between}",
        where=where,
        why=f"Each sends what is for {target} to the other, until the packet has been forwarded so often that it is "
        "thrown away.",
        evidence=(
            *words.evidence(case, death),
            f"seen {len(set(ttls))} times at {spot[1]} of {words.owner(case, _own_place(case, spot[0]))}, its TTL "
            f"falling from {max(ttls)} to {min(ttls)}",
            *(f"route to {target} on {owner}: {route}" for owner, route in routes if route is not None),
        ),
        fix=(
            *(f"{words.enter(case, inum)}ip route get {target}" for inum in netns),
            f"# One of them must send {target} another way: mend that route.",
        ),
        direction=death.direction,
    )


def _refusal(case: Case, death: Death) -> Route | None:
    """What the routing says of a packet that it refused; None: it did not, or was not asked."""
    event = death.event
    if death.reason in _NO_ROUTE or (death.reason in UNSPECIFIED and death.symbol in _REFUSED_AT):
        return case.route(event) or case.route_to(event.netns, _target(case, event))
    rerouted = death.netfilter and death.hook == "output" and CtStatus.DST_NAT in CtStatus(event.ct_status)
    if rerouted and death.rule is None:
        # A host's own packet is routed before its Service's address is translated, and once more after it.
        return case.route_to(event.netns, _target(case, event))
    return None


def _target(case: Case, event: Event) -> Address:
    header = event.outer or event.packet
    return header.daddr if header is not None else case.flow.original.daddr


def _own_place(case: Case, netns: int) -> Place:
    owner = case.owner(netns)
    return Place(netns=netns, node=owner.node, pod=pod_name(owner, netns))


def _socket_error(case: Case, code: int) -> str:
    times = case.around.send_errors.count(code)
    return f"the client's socket was told: {os.strerror(code)}" + (f", {times} times" if times > 1 else "")


def _nobody(case: Case, address: Address) -> tuple[str, ...]:
    """That the inventory knows nobody with this address, where it knows pods at all."""
    inventory = case.around.inventory
    if not inventory.pods or address in inventory.pod_by_ip or address in inventory.node_by_ip:
        return ()
    return (f"inventory: no pod and no node has {address}",)
