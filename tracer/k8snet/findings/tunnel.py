"""Findings about tunnels between nodes: one end does not know the other, or the two do not agree."""

from __future__ import annotations

import shlex

from k8snet.cluster.inventory import Node
from k8snet.event import Encap
from k8snet.findings import words
from k8snet.findings.case import UNSPECIFIED, Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction
from k8snet.kernel.rtnetlink import Neighbour

_RECEIVERS = ("vxlan_rcv", "geneve_rx", "geneve_udp_encap_recv", "ipip_rcv", "ip_tunnel_rcv", "tunnel4_rcv")
_NO_TUNNEL = ("VXLAN_VNI_NOT_FOUND", "IP_NOPROTO")


def vxlan_no_peer(case: Case) -> Match | None:
    """The VXLAN device does not know to which node it should send the frame."""
    death = next((d for d in case.deaths if _without_peer(case, d)), None)
    packet = death.event.packet if death is not None else None
    if death is None or packet is None:
        return None
    event = death.event
    where, hop = words.place(case, death), _next_hop(case, death)
    peer = _node_of(case, death)
    inside, dev = words.enter(case, event.netns), shlex.quote(event.ifname)
    others = [f for f in case.around.forwarding.get(event.netns, ()) if f.device == event.ifname]
    mac = hop.mac if hop else None
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)} at {event.ifname}: no tunnel end is known for "
        + (f"{mac}, the MAC address of next hop {hop.address}" if hop else str(packet.daddr)),
        where=where,
        why="A VXLAN device finds the node to send a frame to in its forwarding table, by the frame's MAC address. The "
        "CNI's agent writes an entry for each node; the one for "
        + (peer.name if peer else "this next hop")
        + " is missing.",
        evidence=(
            *words.evidence(case, death),
            *((f"next hop {hop.address} dev {hop.device} lladdr {mac}",) if hop else ()),
            "known to the device: " + (", ".join(f"{f.mac} dst {f.address}" for f in others) or "nobody"),
        ),
        fix=(
            f"{inside}bridge fdb show dev {dev}",
            *((f"{inside}bridge fdb append {mac} dev {dev} dst {peer.ips[0]}",) if peer and mac else ()),
            "# The CNI's agent on this node (flannel, Calico, Cilium, ...) should have written it: restart its pod.",
        ),
        direction=death.direction,
        also=("the other node was made anew and its tunnel has another MAC address now",),
    )


def _without_peer(case: Case, death: Death) -> bool:
    if not death.symbol.startswith("vxlan_xmit"):
        return False
    if death.reason == "NO_TX_TARGET":
        return True
    hop = _next_hop(case, death)
    # Kernels that give no reason drop here for others too: then the missing entry itself has to prove it.
    entries = case.around.forwarding.get(death.event.netns)
    if death.reason not in UNSPECIFIED or hop is None or entries is None:
        return False
    mine = [f.mac for f in entries if f.device == death.event.ifname]
    return hop.mac not in mine and "00:00:00:00:00:00" not in mine


def _next_hop(case: Case, death: Death) -> Neighbour | None:
    event = death.event
    route = case.route_to(event.netns, event.packet.daddr) if event.packet else None
    address = (route.gateway or event.packet.daddr) if route and event.packet else None
    table = case.around.neighbours.get(event.netns, ())
    return next((n for n in table if n.address == address and n.device == event.ifname and n.mac), None)


def _node_of(case: Case, death: Death) -> Node | None:
    """The node that the packet was to reach."""
    inventory = case.around.inventory
    pod = inventory.pod_by_ip.get(death.event.packet.daddr) if death.event.packet else None
    return next((node for node in inventory.nodes if pod and node.name == pod.node and node.ips), None)


def tunnel_mismatch(case: Case) -> Match | None:
    """The outer packet reached the tunnel's other end, and nobody there takes it."""
    death = next((d for d in case.deaths if _untaken(d)), None)
    if death is None or death.event.outer is None:
        return None
    event, outer = death.event, death.event.outer
    where = words.place(case, death)
    owner = words.owner(case, where)
    also: tuple[str, ...] = ()
    if words.no_socket(death):
        what = f"nothing listens on UDP port {outer.dport}"
        also = ("the tunnel's device is missing there",)
    elif death.reason == "VXLAN_VNI_NOT_FOUND":
        what = "no device has its network identifier (VNI)"
    elif death.reason == "IP_NOPROTO":
        what = f"no device is for IP protocol {outer.protocol}"
    else:
        what = "the device does not know its identifier (VNI), or is down"
        also = ("options of the tunnel, such as VXLAN's GBP, differ between its ends",)
    kind = {Encap.VXLAN: "vxlan", Encap.GENEVE: "geneve"}.get(event.encap, "ipip")
    return Match(
        title=f"{'DROPPED' if death.direction is Direction.REQUEST else 'REPLY LOST'} on {owner}: no tunnel takes the "
        f"packet there, {what}",
        where=where,
        why=f"Inside an outer packet from {outer.saddr} it reached {owner}. Both ends of a tunnel must have the same "
        "kind, port and identifier, and the receiving one must be there and up.",
        evidence=words.evidence(case, death),
        fix=(
            f"{words.enter(case, event.netns)}ip -d link show type {kind}",
            f"# Compare its id and dstport with those on {words.name(case, outer.saddr)}. The CNI's agent makes the "
            "device: mend its configuration and restart its pod.",
        ),
        direction=death.direction,
        also=also,
    )


def _untaken(death: Death) -> bool:
    if not words.in_tunnel(death.event):
        return False
    if words.no_socket(death) or death.reason in _NO_TUNNEL:
        return True
    return death.reason in UNSPECIFIED and death.symbol in _RECEIVERS
