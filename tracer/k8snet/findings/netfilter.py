"""Findings about packet filters: which rule or policy is to blame, in whose netns."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import Final

from k8snet.cluster.allowance import Allowance
from k8snet.cluster.inventory import PROTOCOLS
from k8snet.event import CT_INFO_NONE, Address
from k8snet.findings import words
from k8snet.findings.case import Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction
from k8snet.kernel.policies import Denial, Policy, Way, queue_of_policies
from k8snet.kernel.rules import UNKNOWN, NamedRule
from k8snet.report import Place

_REQUEUES: Final = ("nfqnl_reinject", "nf_reinject")  # where a verdict from user space is carried out


def netpol_deny(case: Case) -> Match | None:
    """Network policies do not let it through: the rule that dropped it enforces them."""
    for death in words.fatal(case):
        if not death.netfilter:
            continue
        if death.rule is not None and death.rule.denial is not None:
            return _by_denial(case, death, death.rule.denial)
        last = next((s for s in reversed(death.packet.rules) if s.netns == death.event.netns), None)
        if death.rule is None and death.symbol in _REQUEUES and last is not None and last.verdict == "queue":
            denial = queue_of_policies(last.table)
            if denial is not None:
                return _by_denial(case, death, denial, f"{last.family} {last.table}", last.chain)
    return None


def _by_denial(case: Case, death: Death, denial: Denial, table: str = "", chain: str = "") -> Match:
    rule, where = death.rule, words.place(case, death)
    denial = replace(denial, way=denial.way or _way(case, death, denial.pod))
    said = _said(case, death, denial)
    if not denial.policies:  # the rules name none: the objects may
        found = (name for allowance in said if allowance.denied for name in allowance.selecting)
        denial = replace(denial, policies=tuple(Policy(name) for name in found))
    if rule is None:
        where = Place(where.netns, where.node, where.pod, where.device, where.hook, table, chain)
    header = death.event.packet
    subject = peer = None
    if header is not None and denial.way is not None:
        subject, peer = (header.daddr, header.saddr) if denial.way == "ingress" else (header.saddr, header.daddr)
    meant = denial.pod or (_pod(case, subject) if subject else None)
    whom = f"pod {meant}" if meant else (str(subject) if subject else None)
    toward = {"ingress": f"ingress to {whom}", "egress": f"egress from {whom}"}.get(denial.way or "")
    toward = toward if toward and whom else (f"traffic of {whom}" if whom else "this connection")
    queued = (
        "" if rule is not None else f"nftrace: {table} {chain} gave it to a program in user space, which dropped it"
    )
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: {_verb(denial, where.chain)} {toward}",
        where=where,
        why=_why(denial, whom),
        evidence=(
            *((queued,) if queued else ()),
            *words.evidence(case, death),
            *((f"policies asked: {', '.join(p.name for p in denial.policies)}",) if len(denial.policies) > 1 else ()),
            *(f"inventory: {allowance}" for allowance in said),
        ),
        fix=(*_show_policies(denial.policies, meant), *_allow(case, death, denial, peer, whom)),
        direction=death.direction,
        named_by=rule.by if rule else "nftrace",
        also=(
            _LATE if any(a.allowing for a in said) else _MEANT,
            *(rule.candidates if rule else ()),
        ),
    )


_MEANT: Final = "the policy is right, and this client is not meant to reach that pod"
_LATE: Final = (
    "the NetworkPolicies allow it by now: the rules are older than they are, or a policy of another kind denies it"
)


def _said(case: Case, death: Death, denial: Denial) -> tuple[Allowance, ...]:
    """What the policies' objects say of the way that was denied; they are about connections, not about replies."""
    if death.direction is Direction.REPLY:
        return ()
    return tuple(a for a in case.allowances if denial.way in (None, a.way) and denial.pod in (None, a.pod))


def _way(case: Case, death: Death, pod: str | None) -> Way | None:
    """Whether the packet goes to the pod that the rule names, or comes from it; None: neither, or not known."""
    header = death.event.packet
    if header is None or pod is None:
        return None
    ends: dict[str | None, Way] = {_pod(case, header.saddr): "egress", _pod(case, header.daddr): "ingress"}
    return ends.get(pod)


def _pod(case: Case, address: Address) -> str | None:
    pod = case.around.inventory.pod_by_ip.get(address)
    return pod.key if pod else None


def _verb(denial: Denial, chain: str | None) -> str:
    names = [f"{p.kind} {p.name}" for p in denial.policies]
    if denial.explicit:
        return f"{names[0] if names else f'a network policy ({chain})'} denies"
    if len(names) == 1:
        return f"{names[0]} does not allow"
    if len(names) == 2:
        return f"{' and '.join(names)} do not allow"
    if names:
        return f"none of {len(names)} network policies allows"
    return f"the network policies in {chain} do not allow"


def _why(denial: Denial, whom: str | None) -> str:
    who = f"{denial.by} enforces" if denial.by else "Rules on the node enforce"
    what = f"the network policies of {whom}" if whom else "network policies"
    if denial.explicit:
        return f"{who} {what}, and a rule of that policy itself denies this packet."
    chosen = f" that selects it for {denial.way}" if denial.way else ""
    return f"{who} {what}. A pod with a policy{chosen} may have what a policy allows, and nothing else."


def _show_policies(policies: tuple[Policy, ...], pod: str | None) -> tuple[str, ...]:
    lines = []
    for policy in policies:
        namespace, slash, short = policy.name.rpartition("/")
        option = f"-n {shlex.quote(namespace)} " if slash else ""
        if policy.kind == "NetworkPolicy":
            lines.append(f"kubectl {option}describe networkpolicy {shlex.quote(short)}")
        else:
            lines.append(f"kubectl {option}get {policy.kind.lower()} {shlex.quote(short)} -o yaml")
    if not policies:
        namespace = (pod or "").partition("/")[0]
        lines.append(f"kubectl {f'-n {shlex.quote(namespace)}' if namespace else '-A'} get networkpolicy")
    return tuple(lines)


def _allow(case: Case, death: Death, denial: Denial, peer: Address | None, whom: str | None) -> tuple[str, ...]:
    header = death.event.packet
    if header is None:
        return ()
    protocol = PROTOCOLS.get(header.protocol)
    port = f", port {header.dport}/{protocol}" if protocol and death.direction is Direction.REQUEST else ""
    if peer is None:
        return (
            f"# If it is meant to be: allow {words.arrow(header)}{f' ({protocol})' if protocol else ''} in a policy.",
        )
    pod = case.around.inventory.pod_by_ip.get(peer)
    labels = ", ".join(f"{k}={v}" for k, v in pod.labels) if pod else ""
    other = (f"pod {pod.key}" + (f" ({labels})" if labels else "")) if pod else str(peer)
    way = f"ingress to {whom} from {other}" if denial.way == "ingress" else f"egress from {whom} to {other}"
    return (f"# If it is meant to be: allow in a policy {way}{port}.",)


def ct_invalid(case: Case) -> Match | None:
    """Conntrack calls the packet INVALID, and a rule drops what is INVALID."""
    death = next(
        (
            d
            for d in words.fatal(case)
            if d.netfilter
            and d.rule is not None
            and _DROPS_INVALID.search(d.rule.text)
            and d.event.ct_info == CT_INFO_NONE
        ),
        None,
    )
    if death is None or death.rule is None:
        return None
    rule, where, netns = death.rule, words.place(case, death), death.event.netns
    settings = case.around.settings.get(netns, {})
    rose = case.around.rises.get(netns, {}).get("conntrack.invalid", 0)
    label = words.label(death.packet)
    what = f"a packet of {label}" if label[0].isdigit() else f"the {label}"
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: conntrack calls {what} INVALID, "
        f"and a rule in {rule.chain} drops it",
        where=where,
        why=(
            f"The {label} answers a SYN that conntrack of {words.owner(case, where)} has no entry for: the two "
            "directions of the connection do not both pass through it, or one of them is exempt from tracking."
            if death.packet.is_syn_ack
            else "The packet belongs to no connection that conntrack knows, or does not fit into the one it knows: the "
            "entry expired or was deleted, the directions take different ways, or its window or flags are wrong."
        ),
        evidence=(
            *words.evidence(case, death),
            "conntrack: no entry on the packet",
            *((f"conntrack.invalid rose by {rose}",) if rose else ()),
            *(f"sysctl {n} = {settings[n]}" for n in (_LOOSE, _LIBERAL) if n in settings and _may_matter(case, death)),
        ),
        fix=_track_again(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=(
            "the conntrack table is full or was flushed: compare nf_conntrack_count with nf_conntrack_max",
            *rule.candidates,
        ),
    )


_DROPS_INVALID: Final = re.compile(r"--ctstate INVALID\b|\bct state invalid\b")
_LOOSE: Final = "net.netfilter.nf_conntrack_tcp_loose"
_LIBERAL: Final = "net.netfilter.nf_conntrack_tcp_be_liberal"


def _may_matter(case: Case, death: Death) -> bool:
    """Conntrack's settings for TCP in the middle of a connection: for its beginning they are nothing."""
    return case.tcp and not death.packet.is_syn_ack


def _track_again(case: Case, death: Death) -> tuple[str, ...]:
    settings, inside = case.around.settings.get(death.event.netns, {}), words.enter(case, death.event.netns)
    look = (
        f"{inside}conntrack -L --orig-src {case.flow.original.saddr}",
        f"{inside}iptables-save -t raw",
        f"{inside}nft list ruleset",
    )
    if death.packet.is_syn_ack:
        return (
            *look,
            "# Take away a rule that exempts one direction (NOTRACK, CT --notrack, notrack). If there is none:",
            f"{inside}ip route get {case.flow.original.daddr}",
            "# Make both directions of the connection pass through this node.",
        )
    advice = "# Open the connection again. If it goes on: what deletes entries (conntrack -D, -F), when do they expire?"
    if settings.get(_LOOSE) == 0 and _may_matter(case, death):
        return (*look, advice, f"{inside}sysctl -w {_LOOSE}=1")
    if settings.get(_LIBERAL) == 0 and _may_matter(case, death):
        return (*look, advice, "# If the entry is there, its window is to blame:", f"{inside}sysctl -w {_LIBERAL}=1")
    return (*look, advice)


def mixed_backends(case: Case) -> Match | None:
    """A node has rules of iptables-legacy and of nf_tables at once."""
    for netns, tables in case.around.tables.items():
        legacy, nft = tables.get("legacy", ()), tables.get("nft", ())
        if not legacy or not nft or case.in_pod(netns):
            continue
        owner = case.owner(netns)
        where = Place(netns=netns, node=owner.node)
        inside = words.enter(case, netns)
        return Match(
            title=f"MIXED on {words.owner(case, where)}: iptables-legacy has rules in {', '.join(legacy)}, "
            f"nf_tables in {', '.join(nft)}",
            where=where,
            why="A packet must pass both, and each tool shows one half: what is accepted in one may be dropped in the "
            "other, and a program that looks for its own rules with the wrong tool does not find them.",
            evidence=(
                f"iptables-legacy has rules in: {', '.join(legacy)}",
                f"nf_tables has rules in: {', '.join(nft)}",
            ),
            fix=(
                f"{inside}iptables-legacy-save -c",
                f"{inside}nft -a list ruleset",
                "# Choose one, let everything that writes rules use it, and remove the other half. For iptables:",
                "update-alternatives --display iptables",
            ),
        )
    return None


def pod_firewall_drop(case: Case) -> Match | None:
    """A rule or policy inside a pod's own netns dropped it."""
    death = next((d for d in words.fatal(case) if d.netfilter and case.in_pod(d.event.netns)), None)
    if death is None:
        return None
    where = words.place(case, death)
    chain = (death.hook or "netfilter").upper()
    rule = death.rule
    return Match(
        title=f"{words.ended(case, death)} in {words.owner(case, where)}, {chain}: "
        + (f"{'policy' if rule.policy else 'rule'} of the pod's own firewall" if rule else "the pod's own firewall"),
        where=where,
        why="The packet died inside the pod's network namespace: something in the pod (a sidecar, an init container, "
        "the image's own firewall) has put packet filter rules there.",
        evidence=words.evidence(case, death),
        fix=words.mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by if rule else None,
    )


def forward_policy_drop(case: Case) -> Match | None:
    """No rule of the node's FORWARD chain accepted it, and the chain's policy is DROP."""
    death = next(
        (d for d in words.fatal(case) if d.netfilter and d.rule and d.rule.policy and d.hook == "forward"), None
    )
    also = "docker sets this policy when it switches IP forwarding on; firewalld has it while it reloads"
    return _by_policy(case, death, death.rule, also) if death and death.rule else None


def chain_policy_drop(case: Case) -> Match | None:
    """The policy of another base chain than FORWARD is DROP."""
    death = next(
        (d for d in words.fatal(case) if d.netfilter and d.rule and d.rule.policy and d.hook != "forward"), None
    )
    return _by_policy(case, death, death.rule) if death and death.rule else None


def _by_policy(case: Case, death: Death, rule: NamedRule, *also: str) -> Match:
    where = words.place(case, death)
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)} in {rule.chain}: the chain's policy is DROP",
        where=where,
        why=f"No rule of {rule.table} {rule.chain} accepted the packet, and the chain's policy is DROP.",
        evidence=words.evidence(case, death),
        fix=words.mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=(*also, *rule.candidates),
    )


def rule_reject(case: Case) -> Match | None:
    """A rule rejected it: the client is told at once."""
    death = next((d for d in words.fatal(case) if d.netfilter and d.rule and d.rule.rejects), None)
    if death is None or death.rule is None:
        return None
    ignored = case.unbelieved
    if case.refused_by is not None or ignored is None or ignored.last.packet is None:
        return _by_rule(case, death, death.rule, "REJECTED")
    found = _by_rule(case, death, death.rule, words.ended(case, death))
    header = ignored.last.packet
    came = f"from {header.saddr}" if ignored.is_rst else f"about {words.arrow(header)}"
    return replace(
        found,
        title=f"{found.title} rejects, and the client does not believe it",
        why=f"{found.why} The {words.label(ignored)} reached the client {came}, and the client had asked "
        f"{case.flow.original.daddr}: it was made below NAT, for bridged traffic. So the client waits, and gives up.",
        evidence=(*found.evidence, f"the {words.label(ignored)} that reached the client: {words.arrow(header)}"),
        fix=(*found.fix, "# A rule that is to refuse: --reject-with icmp-port-unreachable, which NAT translates."),
    )


def rule_drop(case: Case) -> Match | None:
    """A rule dropped it."""
    death = next(
        (d for d in words.fatal(case) if d.netfilter and d.rule and not d.rule.rejects and not d.rule.policy), None
    )
    return _by_rule(case, death, death.rule, words.ended(case, death)) if death and death.rule else None


def _by_rule(case: Case, death: Death, rule: NamedRule, verb: str) -> Match:
    where = words.place(case, death)
    chain = (death.hook or "netfilter").upper()
    owner = "" if rule.owner in ("", UNKNOWN) else f" of {rule.owner}"
    return Match(
        title=f"{verb} on {words.owner(case, where)} in {chain}: a rule{owner} in {rule.chain}",
        where=where,
        why=(rule.meaning + ". " if rule.meaning else "")
        + f"The rule stands in {rule.table} {rule.chain} and matched "
        + ("the outer packet of the tunnel that this one was in." if words.in_tunnel(death.event) else "this packet."),
        evidence=words.evidence(case, death),
        fix=words.mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=rule.candidates,
    )
