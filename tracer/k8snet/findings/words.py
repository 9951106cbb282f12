"""The words that findings share: where something happened, what was seen there, and the commands that mend it."""

from __future__ import annotations

import shlex
import socket
from typing import Final

from k8snet.event import Address, CtStatus, Encap, Event, FiveTuple, ProbeId, end_of
from k8snet.findings.case import Case, Death, pod_name
from k8snet.flow.model import SCTP_ABORT, Direction, Packet
from k8snet.kernel.rules import NO_LOCAL_ENDPOINT, NamedRule, words
from k8snet.report import Place


def fatal(case: Case) -> list[Death]:
    """Deaths that matter: of an unanswered flow all, of an answered one those that no retransmission made good."""
    if not case.answered:
        # A RST or an ICMP error that dies only tells of what had happened to the packet it speaks of.
        cause = [d for d in case.deaths if not (d.packet.is_icmp_error or d.packet.is_rst)]
        return cause or case.deaths
    # Of a served flow an ICMP error has nothing to say that mattered.
    found = [d for d in case.deaths if d.packet.key.payload_len and not (d.packet.is_icmp_error and case.served)]
    return [d for d in found if not _made_good(case, d)]


def _made_good(case: Case, death: Death) -> bool:
    if case.tcp and not death.packet.is_icmp_error and case.acknowledged(death.packet):
        return True  # in other pieces, perhaps: who is told of a smaller MTU cuts its data anew
    dead = {id(d.packet) for d in case.deaths}
    return any(
        id(p) not in dead and p.key.seq == death.packet.key.seq and p.first.ktime_ns > death.packet.first.ktime_ns
        for p in case.flow.directed(death.direction)
    )


def no_socket(death: Death) -> bool:
    """No socket was there for it; kernels without reasons say so by the function alone."""
    if death.reason == "NO_SOCKET":
        return True
    return death.reason == "" and death.symbol in ("tcp_v4_rcv", "tcp_v6_rcv", "__udp4_lib_rcv", "__udp6_lib_rcv")


def to_service(case: Case, event: Event) -> bool:
    """The packet still has the address that the client used."""
    return event.packet is not None and event.packet.daddr == case.flow.original.daddr


def leak(case: Case) -> Event | None:
    """Where the packet left the client's node with the Service's address still on it."""
    for packet in case.flow.requests:
        for event in packet.events:
            outside = not case.in_pod(event.netns) and event.netns != case.around.client_netns
            # A drop at the egress port is no leak; a frame for the node's own bridge is on its way up.
            if event.probe is ProbeId.NET_DEV_QUEUE and outside and to_service(case, event):
                return event
    return None


def ended(case: Case, death: Death | None) -> str:
    """How the title begins."""
    if death is not None and death.direction is Direction.REPLY:
        return "REPLY LOST"
    return "REJECTED" if case.refused_by is not None else "DROPPED"


def owner(case: Case, place: Place) -> str:
    """Whose netns it is, for a sentence."""
    return whose(place)


def whose(place: Place) -> str:
    """The same, where there is no case."""
    if place.pod:
        return place.pod.replace(":", " ", 1) if place.pod.startswith("netns:") else f"pod {place.pod}"
    return place.node or (f"netns {place.netns}" if place.netns else "this node")


def at(case: Case, event: Event) -> Place:
    """Where this event was."""
    owner = case.owner(event.netns)
    return Place(
        netns=event.netns or None, node=owner.node, pod=pod_name(owner, event.netns), device=event.ifname or None
    )


def place(case: Case, death: Death) -> Place:
    """Where this packet died."""
    spot, rule = at(case, death.event), death.rule
    return Place(
        netns=spot.netns,
        node=spot.node,
        pod=spot.pod,
        device=spot.device,
        hook=death.hook,
        table=rule.table if rule else (death.event.table or None),
        chain=rule.chain if rule else None,
        rule=rule.text if rule else None,
    )


def reason(death: Death) -> str:
    """The kernel's reason and function."""
    reason = death.reason or "no reason on this kernel"
    return f"{reason} at {death.symbol}" if death.symbol else reason


def device(event: Event) -> str:
    """The device, for a sentence."""
    return f"device {event.ifname}" if event.ifname else "no device"


def evidence(case: Case, death: Death) -> tuple[str, ...]:
    """What proves this death, a line each."""
    lines = []
    rule = death.rule
    if rule is not None:
        lines.append(f"{rule.by}: {rule.table} {rule.chain}: {rule.text}")
    lines.append(f"kfree_skb: {reason(death)}, {device(death.event)}")
    if death.event.ct_orig is not None and not in_tunnel(death.event):
        lines.append(conntrack(death.event))
    if in_tunnel(death.event) and death.event.outer is not None:
        lines.append(f"it was the outer packet of a tunnel: {tunnel(death.event.outer, death.event.encap)}")
    if death.hook and not death.hook_sure:
        lines.append(f"hook {death.hook}: deduced from device and conntrack state")
    told = case.refused_by
    if told is not None:
        lines.append(f"the client was told: {label(told)}")
    return tuple(lines)


def in_tunnel(event: Event) -> bool:
    """The skb was the outer packet of a tunnel there: its addresses and conntrack entry are not the flow's."""
    return event.outer is not None and event.encap is not Encap.ICMP_ERROR


def tunnel(outer: FiveTuple, encap: Encap) -> str:
    """From which end to which, and how it is wrapped."""
    kind = _TUNNELS.get(encap, encap.name)
    return f"{outer.saddr} → {outer.daddr}, {kind}" + (f", UDP port {outer.dport}" if outer.dport else "")


_TUNNELS: Final = {Encap.VXLAN: "VXLAN", Encap.GENEVE: "Geneve", Encap.IPIP: "IP in IP"}


def conntrack(event: Event) -> str:
    """How far conntrack had got with the packet."""
    if event.ct_orig is None:
        return "conntrack: no entry on the packet"
    status = CtStatus(event.ct_status)
    dnat = "DNAT done" if CtStatus.DST_NAT in status else "no DNAT rule matched"
    if CtStatus.DST_NAT not in status and CtStatus.DST_NAT_DONE not in status:
        dnat = "not yet past the DNAT hook"
    snat = ", SNAT chosen" if CtStatus.SRC_NAT in status else ""
    return f"conntrack: {dnat}{snat}, {'confirmed' if CtStatus.CONFIRMED in status else 'not confirmed'}"


def seen(case: Case, event: Event) -> str:
    """Where a packet was seen, for a sentence."""
    way = "left" if event.probe is ProbeId.NET_DEV_QUEUE else "came in"
    header = event.packet
    return f"{arrow(header) if header else 'packet'} {way} by {event.ifname} of {owner(case, at(case, event))}"


def label(packet: Packet) -> str:
    """A packet's name for people: SYN, SYN-ACK, RST, echo request, DNS query, 42 bytes."""
    header = packet.first.packet
    if packet.is_icmp_error:
        kind, code = packet.key.icmp
        protocol, known = ("ICMPv6", ICMPV6_ERRORS) if packet.is_ipv6 else ("ICMP", ICMP_ERRORS)
        return f"{protocol} {known.get((kind, code), f'type {kind} code {code}')}"
    if packet.is_sctp and packet.first.icmp_type in SCTP_CHUNKS:
        return SCTP_CHUNKS[packet.first.icmp_type]
    if packet.is_syn:
        return "SYN"
    if packet.is_syn_ack:
        return "SYN-ACK"
    if packet.is_rst:
        return "RST"
    request = packet.direction is Direction.REQUEST
    if header is not None and header.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return "echo request" if request else "echo reply"
    if header is not None and header.protocol == socket.IPPROTO_UDP and 53 in (header.sport, header.dport):
        return "DNS query" if request else "DNS answer"
    return f"{packet.key.payload_len} bytes"


SCTP_CHUNKS: Final = {  # RFC 9260, section 3.2
    1: "INIT",
    2: "INIT ACK",
    SCTP_ABORT: "ABORT",
    7: "SHUTDOWN",
    8: "SHUTDOWN ACK",
    10: "COOKIE ECHO",
    11: "COOKIE ACK",
    14: "SHUTDOWN COMPLETE",
}


NO_ENDPOINTS: Final = "has no endpoints"  # in the comment of kube-proxy's REJECT rule


def no_endpoints(rule: NamedRule) -> bool:
    """kube-proxy's rule for a Service without endpoints; in nftables mode its comment has only the Service's name."""
    return NO_ENDPOINTS in rule.text or (rule.owner == "kube-proxy" and NO_ENDPOINTS in rule.meaning and rule.rejects)


def not_allowed(case: Case) -> tuple[str, ...]:
    """What NetworkPolicies have against the connection: whoever enforces them may be to blame, where nobody says so."""
    return tuple(str(said) for said in case.allowances if said.denied)


def no_local_endpoints(rule: NamedRule) -> bool:
    """kube-proxy's rule for a Service whose endpoints are elsewhere, and whose traffic policy is Local."""
    # In nftables mode it may be known only by its map, which holds both: what is rejected, and what is dropped.
    told = NO_LOCAL_ENDPOINT in rule.meaning or ("@no-endpoint-" in rule.text and not rule.rejects)
    return "has no local endpoints" in rule.text or (rule.owner == "kube-proxy" and told)


def refused_untranslated(case: Case, death: Death) -> bool:
    """kube-proxy (nftables mode) refuses what still has a ClusterIP after DNAT; that is right for a wrong port only."""
    rule, port = death.rule, case.service_port
    by_kube_proxy = rule is not None and rule.owner == "kube-proxy" and "@cluster-ips" in rule.text
    return by_kube_proxy and port is not None and bool(port.ready) and to_service(case, death.event)


ICMP_ERRORS: Final = {  # RFC 792, RFC 1122, RFC 1812
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 9): "network prohibited",
    (3, 10): "host prohibited",
    (3, 13): "administratively prohibited",
    (11, 0): "time exceeded",
}
ICMPV6_ERRORS: Final = {  # RFC 4443
    (1, 0): "no route to destination",
    (1, 1): "administratively prohibited",
    (1, 2): "beyond scope of source address",
    (1, 3): "address unreachable",
    (1, 4): "port unreachable",
    (1, 5): "source address failed policy",
    (1, 6): "reject route to destination",
    (2, 0): "packet too big",
    (3, 0): "time exceeded",
}


def arrow(header: FiveTuple) -> str:
    """`10.244.1.10:50508 → 10.96.0.80:80`, without ports where there are none."""
    return f"{_end(header.saddr, header.sport, header)} → {_end(header.daddr, header.dport, header)}"


def _end(address: Address, port: int, header: FiveTuple) -> str:
    if header.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return str(address)
    return end_of(address, port)


def name(case: Case, address: Address) -> str:
    """An address with the name the inventory has for it."""
    inventory = case.around.inventory
    if pod := inventory.pod_by_ip.get(address):
        return f"{address} (pod {pod.key})"
    if node := inventory.node_by_ip.get(address):
        return f"{address} (node {node.name})"
    return str(address)


def enter(case: Case, netns: int) -> str:
    """What to put before a command so that it runs in that netns; nothing in the one the user is in."""
    return case.around.enter.get(netns, "")


def iptables(case: Case) -> str:
    """The name of iptables for the client's IP family."""
    return "ip6tables" if case.ipv6 else "iptables"


def _tool(rule: NamedRule) -> str:
    six = "6" if rule.table.startswith("ip6") else ""
    return f"ip{six}tables-{'legacy' if rule.engine == 'legacy' else 'nft'}"


def mend_rule(case: Case, death: Death) -> tuple[str, ...]:
    """Commands that mend what the rule does, or show it when it has an owner."""
    rule = death.rule
    inside = enter(case, death.event.netns)
    if rule is None:
        return (f"{inside}{iptables(case)}-save -c", f"{inside}nft -a list ruleset")
    advice = _OWNER_ADVICE.get(rule.owner)
    table = rule.table.split()[-1]
    option = "" if table == "filter" else f"-t {table} "
    if rule.policy and rule.text.startswith("-P "):
        lines: tuple[str, ...] = (f"{inside}{_tool(rule)} {option}-P {shlex.quote(rule.chain)} ACCEPT",)
        if rule.chain == "FORWARD":
            lines = (
                *lines,
                "# Who set it may set it again: docs/findings/FORWARD_POLICY_DROP.md says how to make it last.",
            )
    elif rule.text.startswith("-A "):
        # Whoever owns the rule would write it again. iptables-save quotes for its own reader, not for a shell.
        delete = shlex.join(words(rule.text)[1:])
        lines = () if rule.owner in _OWNER_ADVICE else (f"{inside}{_tool(rule)} {option}-D {delete}",)
    else:
        spot = shlex.join([*rule.table.split(), rule.chain])
        lines = (f"{inside}nft -a list chain {spot}",)
        if rule.policy:
            lines = (*lines, f"{inside}nft chain {spot} '{{ policy accept ; }}'")
        elif rule.handle is not None and rule.owner not in _OWNER_ADVICE:
            lines = (*lines, f"{inside}nft delete rule {spot} handle {rule.handle}")
    return (*lines, advice) if advice else lines


_OWNER_ADVICE: Final = {
    "kube-proxy": "# kube-proxy owns this rule: change the Service or its endpoints, not the rule.",
    "Calico": "# Calico owns this rule: change the NetworkPolicy that it came from.",
    "kube-router": "# kube-router owns this rule: change the NetworkPolicy that it came from.",
    "Cilium": "# Cilium owns this rule: change the policy that it came from.",
    "Antrea": "# Antrea owns this rule: change the policy that it came from.",
    "firewalld": "# firewalld owns this rule: use firewall-cmd, or it comes back on reload.",
    "ufw": "# ufw owns this rule: use ufw, or it comes back on reload.",
    "docker": "# docker owns this rule and writes it again when it starts.",
}
