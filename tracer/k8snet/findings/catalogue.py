"""The catalogue of findings: one entry a code, the most specific first.

An entry's function looks at a `Case` and returns a `Match` or None. The first entry of severity FAIL that matches
explains the flow; no entry knows of the others, and none guesses: what the evidence does not show is left to
KERNEL_DROP and LAST_SEEN at the end, which say where and leave the cause open. `docs/findings/CODE.md` has a page
for each, and a lab scenario makes each happen.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from k8snet.event import Address, CtStatus, Event, FiveTuple, ProbeId
from k8snet.findings.case import UNSPECIFIED, Case, Death, pod_name
from k8snet.flow.model import Direction, Packet
from k8snet.kernel.rules import UNKNOWN, NamedRule, words
from k8snet.report import Place, Severity, Verdict


@dataclass(frozen=True, slots=True)
class Match:
    """What an entry says of one flow; the fields are those of `k8snet.report.Finding`."""

    title: str
    where: Place
    why: str
    evidence: tuple[str, ...]
    fix: tuple[str, ...]
    direction: Direction | None = None
    named_by: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One finding of the catalogue."""

    code: str
    severity: Severity
    about: str  # when it is given, in one sentence
    match: Callable[[Case], Match | None]
    verdict: Verdict | None = None  # how such a flow ends, where its last event is somebody else's business
    by_absence: bool = False  # it rests on what was *not* seen: withheld while events are being lost


# --- who is to blame: netfilter --------------------------------------------------------------------------------


def no_endpoints(case: Case) -> Match | None:
    """A Service without ready endpoints: kube-proxy rejects what is sent to it, or lets it leak."""
    if case.flow.dnat is not None or case.answered:
        return None
    port, service = case.service_port, case.service
    death = next((d for d in case.deaths if _to_service(case, d.event)), None)
    rule = death.rule if death is not None and death.rule and NO_ENDPOINTS in death.rule.text else None
    # kube-proxy's own rule says it, whatever the inventory knows; without the rule the inventory has to.
    if rule is None and (port is None or service is None or port.ready):
        return None
    leak = _leak(case)
    if death is not None:
        where, evidence = _place(case, death), _evidence(case, death)
    elif leak is not None:
        where, evidence = _at(case, leak), (_seen(case, leak),)
    else:
        return None
    key = service.key if service else (rule.service if rule else None) or str(case.flow.original.daddr)
    name = f"{key}:{(port.name or port.port) if port else case.flow.original.dport}"
    if port is not None:
        evidence = (*evidence, f"inventory: {name} has {len(port.endpoints)} endpoints, {len(port.ready)} ready")
    return Match(
        title=f"{_ended(case, death)} on {_owner(case, where)}: Service {name} has no ready endpoints",
        where=where,
        why=f"No ready pod stands behind {name}, so kube-proxy has nothing to send the connection to.",
        evidence=evidence,
        fix=_look_at_endpoints(key),
        direction=Direction.REQUEST,
        named_by=death.rule.by if death is not None and death.rule else None,
    )


def _look_at_endpoints(key: str) -> tuple[str, ...]:
    namespace, _, name = key.partition("/")
    if not name:
        return ("kubectl get services -A -o wide",)
    namespace, label = shlex.quote(namespace), shlex.quote(f"kubernetes.io/service-name={name}")
    return (
        f"kubectl -n {namespace} get endpointslices -l {label}",
        f"kubectl -n {namespace} get service {shlex.quote(name)} -o jsonpath='{{.spec.selector}}'",
        "# Compare the selector with the labels of the pods, and the pods' readiness probes with their state.",
    )


def hairpin_off(case: Case) -> Match | None:
    """A pod that reaches itself through its Service: the bridge will not send a frame back where it came from."""
    death = next((d for d in case.deaths if d.symbol.startswith(("br_", "__br_")) and d.reason in UNSPECIFIED), None)
    if death is None or death.event.packet is None or case.flow.dnat is None:
        return None
    if case.flow.dnat[0] != case.flow.original.saddr or death.event.packet.daddr != case.flow.original.saddr:
        return None
    event = death.event
    setting = f"bridge.{event.ifname}.hairpin_mode"
    mode = case.around.settings.get(event.netns, {}).get(setting)
    if mode == 1:
        return None
    return Match(
        title=f"DROPPED on {_owner(case, _place(case, death))} at {event.ifname}: hairpin mode is off",
        where=_place(case, death),
        why="The Service sent the pod to itself, and the bridge does not send a frame back out of the port it came in "
        "by unless that port is in hairpin mode.",
        evidence=(*_evidence(case, death), *((f"{setting} = {mode}",) if mode is not None else ())),
        fix=(
            f"{_enter(case, event.netns)}bridge link set dev {shlex.quote(event.ifname)} hairpin on",
            "# To make it last: hairpinMode: true in the configuration of the CNI's bridge plug-in.",
        ),
        direction=death.direction,
    )


def ip_forward_off(case: Case) -> Match | None:
    """The node does not route: net.ipv4.ip_forward is 0, or forwarding of the device is."""
    for death in case.deaths:
        if death.symbol != "ip_error" and death.reason != "IP_INADDRERRORS":
            continue
        settings = case.around.settings.get(death.event.netns, {})
        names = ("net.ipv4.ip_forward", f"net.ipv4.conf.{death.event.ifname}.forwarding")
        off = [name for name in names if settings.get(name) == 0]
        if not off or death.reason not in (*UNSPECIFIED, "IP_INADDRERRORS"):
            continue
        sysctl = off[0]
        return Match(
            title=f"DROPPED on {_owner(case, _place(case, death))}: {sysctl} is 0, the node does not route",
            where=_place(case, death),
            why="The packet is for another host, and this node is not allowed to forward.",
            evidence=(*_evidence(case, death), f"sysctl {sysctl} = 0"),
            fix=(
                f"{_enter(case, death.event.netns)}sysctl -w {shlex.quote(sysctl)}=1",
                f"# To make it last: echo '{sysctl} = 1' > /etc/sysctl.d/99-kubernetes.conf",
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
            title=f"{_ended(case, death)} on {_owner(case, _place(case, death))} at {event.ifname}: "
            f"reverse-path filter, the {death.direction.value} came in by the wrong device",
            where=_place(case, death),
            why=f"The node's route to {source} does not lead out of {event.ifname}, and rp_filter is strict.",
            evidence=(
                *_evidence(case, death),
                *(f"sysctl {name} = {settings[name]}" for name in names if name in settings),
                *((f"TcpExt.IPReversePathFilter rose by {rose}",) if rose else ()),
            ),
            fix=(
                f"{_enter(case, event.netns)}ip route get {source}",
                f"# Mend the route to or from {source}, so that both directions use one device.",
                "# If it is meant that they differ:",
                f"{_enter(case, event.netns)}sysctl -w {shlex.join(f'{name}=2' for name in names)}",
            ),
            direction=death.direction,
        )
    return None


def not_listening(case: Case) -> Match | None:
    """The request reached the pod and no process listens on the port."""
    request = next((p for p in case.flow.requests if p.received_in(case.backend_netns)), None)
    if case.backend_netns is None or request is None or case.answered or case.backend is None:
        return None
    death = next(
        (
            d
            for d in case.deaths
            if d.direction is Direction.REQUEST and d.event.netns == case.backend_netns and _no_socket(d)
        ),
        None,
    )
    # Kernels before 6.x may not tell the drop; the pod's own reset or ICMP error does.
    told = next(
        (
            p
            for p in case.flow.packets
            if p.direction is Direction.REPLY
            and p.sent_from(case.backend_netns)
            and (p.is_rst or (p.is_icmp_error and p.key.icmp == (3, 3)))
        ),
        None,
    )
    if death is None and (told is None or any(p.is_syn_ack for p in case.flow.replies)):
        return None
    address, port = case.backend
    where = _place(case, death) if death else _at(case, request.last)
    protocol = "tcp" if case.tcp else "udp"
    answer = "with a reset" if case.tcp else "with ICMP port unreachable"
    return Match(
        title=f"REJECTED by {_owner(case, where)}: nothing listens on {protocol} port {port}",
        where=where,
        why=f"The request arrived in the pod, and the kernel answered {answer}: no process has port {port} open there.",
        evidence=(
            *(_evidence(case, death) if death else ()),
            *((f"{_label(told)} left {told.first.ifname or 'the pod'}",) if told else ()),
        ),
        fix=(
            f"{_enter(case, case.backend_netns)}ss -H{'t' if case.tcp else 'u'}lnp 'sport = :{port}'",
            *_target_port_advice(case, address, port),
        ),
        direction=Direction.REQUEST,
        also=("the process listens on 127.0.0.1 only, or on the other address family",),
    )


def pod_firewall_drop(case: Case) -> Match | None:
    """A rule or policy inside a pod's own netns dropped it."""
    death = next((d for d in case.deaths if d.netfilter and case.in_pod(d.event.netns)), None)
    if death is None:
        return None
    where = _place(case, death)
    chain = (death.hook or "netfilter").upper()
    rule = death.rule
    return Match(
        title=f"{_ended(case, death)} in {_owner(case, where)}, {chain}: "
        + (f"{'policy' if rule.policy else 'rule'} of the pod's own firewall" if rule else "the pod's own firewall"),
        where=where,
        why="The packet died inside the pod's network namespace: something in the pod (a sidecar, an init container, "
        "the image's own firewall) has put packet filter rules there.",
        evidence=_evidence(case, death),
        fix=_mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by if rule else None,
    )


def forward_policy_drop(case: Case) -> Match | None:
    """No rule of the node's FORWARD chain accepted it, and the chain's policy is DROP."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.policy and d.hook == "forward"), None)
    also = "docker sets this policy when it switches IP forwarding on; firewalld has it while it reloads"
    return _by_policy(case, death, death.rule, also) if death and death.rule else None


def chain_policy_drop(case: Case) -> Match | None:
    """The policy of another base chain than FORWARD is DROP."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.policy and d.hook != "forward"), None)
    return _by_policy(case, death, death.rule) if death and death.rule else None


def _by_policy(case: Case, death: Death, rule: NamedRule, *also: str) -> Match:
    where = _place(case, death)
    return Match(
        title=f"{_ended(case, death)} on {_owner(case, where)} in {rule.chain}: the chain's policy is DROP",
        where=where,
        why=f"No rule of {rule.table} {rule.chain} accepted the packet, and the chain's policy is DROP.",
        evidence=_evidence(case, death),
        fix=_mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=also,
    )


def rule_reject(case: Case) -> Match | None:
    """A rule rejected it: the client is told at once."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.rejects), None)
    return _by_rule(case, death, death.rule, "REJECTED") if death and death.rule else None


def rule_drop(case: Case) -> Match | None:
    """A rule dropped it."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and not d.rule.rejects and not d.rule.policy), None)
    return _by_rule(case, death, death.rule, _ended(case, death)) if death and death.rule else None


def _by_rule(case: Case, death: Death, rule: NamedRule, verb: str) -> Match:
    where = _place(case, death)
    chain = (death.hook or "netfilter").upper()
    owner = "" if rule.owner in ("", UNKNOWN) else f" of {rule.owner}"
    return Match(
        title=f"{verb} on {_owner(case, where)} in {chain}: a rule{owner} in {rule.chain}",
        where=where,
        why=(rule.meaning + ". " if rule.meaning else "")
        + f"The rule stands in {rule.table} {rule.chain} and matched this packet.",
        evidence=_evidence(case, death),
        fix=_mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=rule.candidates,
    )


# --- nobody translated, nobody answered ------------------------------------------------------------------------


def dnat_miss(case: Case) -> Match | None:
    """The Service's address left the node untranslated: kube-proxy's rules are missing or were not reached."""
    port, service = case.service_port, case.service
    if port is None or service is None or not port.ready or case.flow.dnat is not None or case.answered:
        return None
    leak = _leak(case)
    death = next(
        (d for d in case.deaths if _to_service(case, d.event) and d.reason in ("IP_INNOROUTES", "IP_OUTNOROUTES")), None
    )
    event = leak or (death.event if death else None)
    if event is None:
        return None
    where = _at(case, event)
    name = f"{service.key}:{port.name or port.port}"
    left = f"left by {event.ifname} to {case.flow.original.daddr}" if leak else "found no route"
    return Match(
        title=f"NOT TRANSLATED on {_owner(case, where)}: the packet to Service {name} {left}",
        where=where,
        why=f"{case.flow.original.daddr} exists only in kube-proxy's rules, and none of them matched this packet, "
        f"although the Service has {len(port.ready)} ready endpoint{'s' if len(port.ready) != 1 else ''}.",
        evidence=(
            _seen(case, event),
            _conntrack(event),
            *((f"kfree_skb {_reason(death)}, {_device(death.event)}",) if death else ()),
        ),
        fix=(
            f"{_enter(case, event.netns)}iptables-save -t nat | grep -e '-A PREROUTING' -e {case.flow.original.daddr}",
            f"{_enter(case, event.netns)}nft list table ip kube-proxy",
            "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide",
            "# kube-proxy writes its rules again when it starts: restart it if it runs and the rules are missing.",
        ),
        direction=Direction.REQUEST,
        also=("another component than kube-proxy handles Services here, and did not handle this one",),
    )


def no_reply(case: Case) -> Match | None:
    """The request reached the pod's netns, nothing died, and no answer left it."""
    netns = case.backend_netns
    if netns is None or case.answered or case.backend is None or case.flow.replies or case.flow.icmp_errors:
        return None
    request = next((p for p in reversed(case.flow.requests) if p.received_in(netns)), None)
    if request is None or any(d.direction is Direction.REQUEST and d.packet is request for d in case.deaths):
        return None
    where = _at(case, request.last)
    port = case.backend[1]
    protocol = "tcp" if case.tcp else "udp"
    queue = case.around.listening.get((netns, protocol, port))
    evidence = [_seen(case, request.last), "no answer left the pod, and nothing was dropped on the way there"]
    if queue is not None:
        unread = f", {queue} bytes wait unread" if protocol == "udp" else f", {queue} connections wait to be accepted"
        evidence.append(f"a socket has {protocol} port {port} open{unread if queue else ', its queue is empty'}")
    return Match(
        title=f"NO REPLY from {_owner(case, where)}: the request arrived, the application did not answer",
        where=where,
        why="The packet was delivered to the pod. What happens from there on is the application's doing.",
        evidence=tuple(evidence),
        fix=(
            f"{_enter(case, netns)}ss -{'t' if case.tcp else 'u'}anp 'sport = :{port}'",
            *((f"kubectl -n {where.pod.split('/')[0]} logs {where.pod.split('/')[1]} --tail=50",) if where.pod else ()),
        ),
        direction=Direction.REQUEST,
    )


def kernel_drop(case: Case) -> Match | None:
    """The kernel dropped a packet for a reason that no other entry explains."""
    death = next(iter(_fatal(case)), None)
    if death is None:
        return None
    where = _place(case, death)
    hook = f" in {death.hook.upper()}" if death.hook else ""
    blind = death.netfilter and death.rule is None
    return Match(
        title=f"{_ended(case, death)} on {_owner(case, where)}{hook}: "
        + ("a netfilter rule or policy that could not be named" if blind else _reason(death)),
        where=where,
        why=(
            "A packet filter dropped it. Which rule is not known: tracing was off, or too late for this packet."
            if blind
            else f"The kernel function {death.symbol or '(unknown)'} freed the packet"
            + (f" and gave {death.reason} as the reason." if death.reason not in UNSPECIFIED else " without a reason.")
        ),
        evidence=_evidence(case, death),
        fix=(
            (
                f"{_enter(case, death.event.netns)}iptables-save -c",
                f"{_enter(case, death.event.netns)}nft -a list ruleset",
                "# Or trace again without --read-only, and let the rule be named.",
            )
            if blind
            else (
                f"{_enter(case, death.event.netns)}nstat -az",
                f"{_enter(case, death.event.netns)}ip -s link show"
                + (f" dev {shlex.quote(death.event.ifname)}" if death.event.ifname else ""),
            )
        ),
        direction=death.direction,
    )


def refused(case: Case) -> Match | None:
    """Somebody outside told the client no, and no packet died on this node."""
    told = case.refused_by
    if told is None or case.answered:
        return None
    source = told.first.outer if told.is_icmp_error else told.first.packet
    where = _at(case, told.first)
    sender = _name(case, source.saddr) if source else "an unknown host"
    return Match(
        title=f"REJECTED: {_label(told)} came from {sender}",
        where=where,
        why="The client was told no, and nothing on this node decided it.",
        evidence=(f"{_label(told)} was first seen in {_owner(case, where)} at {told.first.ifname or 'no device'}",),
        fix=(f"# Look on {sender}, or run k8snet on its node.",),
        direction=Direction.REPLY,
    )


def left_node(case: Case) -> Match | None:
    """The request left this node and no answer came back."""
    request = next(reversed(case.flow.requests), None)
    if case.answered or request is None or case.flow.replies or _fatal(case):
        return None
    last = request.last
    if last.probe is not ProbeId.NET_DEV_QUEUE or case.in_pod(last.netns):
        return None
    where = _at(case, last)
    return Match(
        title=f"NO REPLY: the request left {_owner(case, where)} by {last.ifname}, nothing came back",
        where=where,
        why="This node did its part. The packet was lost, or stayed without an answer, behind that device.",
        evidence=(_seen(case, last),),
        fix=(
            f"{_enter(case, last.netns)}ip route get {case.backend[0] if case.backend else case.flow.original.daddr}",
            "# Run k8snet trace with the same --from and --to on the node of the other end.",
        ),
        direction=Direction.REQUEST,
    )


def last_seen(case: Case) -> Match | None:
    """No answer, and nothing that explains it was seen."""
    packets = [p for p in case.flow.packets if not p.is_icmp_error]
    if case.answered or not packets:
        return None
    replies = case.flow.replies
    last = (replies or packets)[-1]
    where = _at(case, last.last)
    return Match(
        title=f"NO ANSWER: the {last.direction.value} was last seen on {_owner(case, where)}"
        + (f" at {last.last.ifname}" if last.last.ifname else ""),
        where=where,
        why="What happened after that could not be observed. This is not a statement that nothing was dropped.",
        evidence=(_seen(case, last.last),),
        fix=("k8snet check", "# It lists what this kernel does not let k8snet see."),
        direction=last.direction,
    )


FINDINGS: Final = (
    Entry("NO_ENDPOINTS", Severity.FAIL, "the Service has no ready endpoints", no_endpoints),
    Entry("HAIRPIN_OFF", Severity.FAIL, "a pod reaches itself through its Service, hairpin mode is off", hairpin_off),
    Entry("IP_FORWARD_OFF", Severity.FAIL, "the node does not forward", ip_forward_off),
    Entry("RP_FILTER", Severity.FAIL, "the reverse-path filter dropped it", rp_filter),
    Entry("POD_FIREWALL_DROP", Severity.FAIL, "a packet filter inside the pod dropped it", pod_firewall_drop),
    Entry("FORWARD_POLICY_DROP", Severity.FAIL, "the policy of the node's FORWARD chain is DROP", forward_policy_drop),
    Entry("CHAIN_POLICY_DROP", Severity.FAIL, "the policy of another base chain is DROP", chain_policy_drop),
    Entry("RULE_REJECT", Severity.FAIL, "a rule rejected it", rule_reject),
    Entry("RULE_DROP", Severity.FAIL, "a rule dropped it", rule_drop),
    Entry("NOT_LISTENING", Severity.FAIL, "nothing listens on the port", not_listening),
    Entry("DNAT_MISS", Severity.FAIL, "the Service's address was not translated", dnat_miss, verdict=Verdict.NO_REPLY),
    Entry("KERNEL_DROP", Severity.FAIL, "the kernel dropped it for another reason", kernel_drop),
    Entry("NO_REPLY", Severity.FAIL, "the request arrived, the application did not answer", no_reply, by_absence=True),
    Entry("REFUSED", Severity.FAIL, "another host refused it", refused),
    Entry("LEFT_NODE", Severity.FAIL, "the request left the node and nothing came back", left_node, by_absence=True),
    Entry("LAST_SEEN", Severity.UNKNOWN, "no answer, and nothing that explains it was seen", last_seen),
)


# --- words -----------------------------------------------------------------------------------------------------


def _fatal(case: Case) -> list[Death]:
    """Deaths that matter: of an unanswered flow all, of an answered one those that no retransmission made good."""
    if not case.answered:
        return case.deaths
    return [d for d in case.deaths if d.packet.key.payload_len and not _made_good(case, d)]


def _made_good(case: Case, death: Death) -> bool:
    dead = {id(d.packet) for d in case.deaths}
    return any(
        id(p) not in dead and p.key.seq == death.packet.key.seq and p.first.ktime_ns > death.packet.first.ktime_ns
        for p in case.flow.directed(death.direction)
    )


def _no_socket(death: Death) -> bool:
    if death.reason == "NO_SOCKET":
        return True
    return death.reason == "" and death.symbol in ("tcp_v4_rcv", "tcp_v6_rcv", "__udp4_lib_rcv", "__udp6_lib_rcv")


def _to_service(case: Case, event: Event) -> bool:
    """The packet still has the address that the client used."""
    return event.packet is not None and event.packet.daddr == case.flow.original.daddr


def _leak(case: Case) -> Event | None:
    """Where the packet left the client's node with the Service's address still on it."""
    for packet in case.flow.requests:
        for event in packet.events:
            outside = not case.in_pod(event.netns) and event.netns != case.around.client_netns
            # A drop at the egress port is no leak; a frame for the node's own bridge is on its way up.
            if event.probe is ProbeId.NET_DEV_QUEUE and outside and _to_service(case, event):
                return event
    return None


def _ended(case: Case, death: Death | None) -> str:
    if death is not None and death.direction is Direction.REPLY:
        return "REPLY LOST"
    return "REJECTED" if case.refused_by is not None else "DROPPED"


def _owner(case: Case, place: Place) -> str:
    if place.pod:
        return f"pod {place.pod}"
    return place.node or (f"netns {place.netns}" if place.netns else "this node")


def _at(case: Case, event: Event) -> Place:
    owner = case.owner(event.netns)
    return Place(
        netns=event.netns or None, node=owner.node, pod=pod_name(owner, event.netns), device=event.ifname or None
    )


def _place(case: Case, death: Death) -> Place:
    at, rule = _at(case, death.event), death.rule
    return Place(
        netns=at.netns,
        node=at.node,
        pod=at.pod,
        device=at.device,
        hook=death.hook,
        table=rule.table if rule else (death.event.table or None),
        chain=rule.chain if rule else None,
        rule=rule.text if rule else None,
    )


def _reason(death: Death) -> str:
    reason = death.reason or "no reason on this kernel"
    return f"{reason} at {death.symbol}" if death.symbol else reason


def _device(event: Event) -> str:
    return f"device {event.ifname}" if event.ifname else "no device"


def _evidence(case: Case, death: Death) -> tuple[str, ...]:
    lines = []
    rule = death.rule
    if rule is not None:
        lines.append(f"{rule.by}: {rule.table} {rule.chain}: {rule.text}")
    lines.append(f"kfree_skb: {_reason(death)}, {_device(death.event)}")
    if death.event.ct_orig is not None:
        lines.append(_conntrack(death.event))
    if death.hook and not death.hook_sure:
        lines.append(f"hook {death.hook}: deduced from device and conntrack state")
    told = case.refused_by
    if told is not None:
        lines.append(f"the client was told: {_label(told)}")
    return tuple(lines)


def _conntrack(event: Event) -> str:
    if event.ct_orig is None:
        return "conntrack: no entry on the packet"
    status = CtStatus(event.ct_status)
    dnat = "DNAT done" if CtStatus.DST_NAT in status else "no DNAT rule matched"
    if CtStatus.DST_NAT not in status and CtStatus.DST_NAT_DONE not in status:
        dnat = "not yet past the DNAT hook"
    snat = ", SNAT chosen" if CtStatus.SRC_NAT in status else ""
    return f"conntrack: {dnat}{snat}, {'confirmed' if CtStatus.CONFIRMED in status else 'not confirmed'}"


def _seen(case: Case, event: Event) -> str:
    way = "left" if event.probe is ProbeId.NET_DEV_QUEUE else "came in"
    header = event.packet
    return f"{arrow(header) if header else 'packet'} {way} by {event.ifname} of {_owner(case, _at(case, event))}"


def _label(packet: Packet) -> str:
    return label(packet)


def label(packet: Packet) -> str:
    """A packet's name for people: SYN, SYN-ACK, RST, echo request, DNS query, 42 bytes."""
    header = packet.first.packet
    if packet.is_icmp_error:
        kind, code = packet.key.icmp
        return ICMP_ERRORS.get((kind, code), f"ICMP type {kind} code {code}")
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


NO_ENDPOINTS: Final = "has no endpoints"  # in the comment of kube-proxy's REJECT rule

ICMP_ERRORS: Final = {  # RFC 792, RFC 1122, RFC 1812
    (3, 0): "ICMP network unreachable",
    (3, 1): "ICMP host unreachable",
    (3, 2): "ICMP protocol unreachable",
    (3, 3): "ICMP port unreachable",
    (3, 4): "ICMP fragmentation needed",
    (3, 9): "ICMP network prohibited",
    (3, 10): "ICMP host prohibited",
    (3, 13): "ICMP administratively prohibited",
    (11, 0): "ICMP time exceeded",
}


def arrow(header: FiveTuple) -> str:
    """`10.244.1.10:50508 → 10.96.0.80:80`, without ports where there are none."""
    return f"{_end(header.saddr, header.sport, header)} → {_end(header.daddr, header.dport, header)}"


def _end(address: Address, port: int, header: FiveTuple) -> str:
    if header.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _name(case: Case, address: Address) -> str:
    inventory = case.around.inventory
    if pod := inventory.pod_by_ip.get(address):
        return f"{address} (pod {pod.key})"
    if node := inventory.node_by_ip.get(address):
        return f"{address} (node {node.name})"
    return str(address)


# --- the fix ---------------------------------------------------------------------------------------------------


def _enter(case: Case, netns: int) -> str:
    """What to put before a command so that it runs in that netns; nothing in the one the user is in."""
    return case.around.enter.get(netns, "")


def _tool(rule: NamedRule) -> str:
    six = "6" if rule.table.startswith("ip6") else ""
    return f"ip{six}tables-{'legacy' if rule.engine == 'legacy' else 'nft'}"


def _mend_rule(case: Case, death: Death) -> tuple[str, ...]:
    rule = death.rule
    enter = _enter(case, death.event.netns)
    if rule is None:
        return (f"{enter}iptables-save -c", f"{enter}nft -a list ruleset")
    advice = _OWNER_ADVICE.get(rule.owner)
    table = rule.table.split()[-1]
    option = "" if table == "filter" else f"-t {table} "
    if rule.policy and rule.text.startswith("-P "):
        lines: tuple[str, ...] = (f"{enter}{_tool(rule)} {option}-P {shlex.quote(rule.chain)} ACCEPT",)
        if rule.chain == "FORWARD":
            lines = (
                *lines,
                "# Who set it may set it again: docs/findings/FORWARD_POLICY_DROP.md says how to make it last.",
            )
    elif rule.text.startswith("-A "):
        # Whoever owns the rule would write it again. iptables-save quotes for its own reader, not for a shell.
        delete = shlex.join(words(rule.text)[1:])
        lines = () if rule.owner in _OWNER_ADVICE else (f"{enter}{_tool(rule)} {option}-D {delete}",)
    else:
        handle = re.search(r"# handle (\d+)", rule.text)
        place = shlex.join([*rule.table.split(), rule.chain])
        lines = (
            (f"{enter}nft delete rule {place} handle {handle[1]}",)
            if handle
            else (f"{enter}nft -a list chain {place}",)
        )
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


def _target_port_advice(case: Case, address: Address, port: int) -> tuple[str, ...]:
    service = case.service
    if service is None or case.service_port is None:
        return ()
    return (
        f"kubectl -n {service.namespace} get service {service.name} -o jsonpath='{{.spec.ports}}'",
        f"# Its targetPort sends port {case.service_port.port} to {port}: compare with what the container listens on.",
    )
