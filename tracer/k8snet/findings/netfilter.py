"""Findings about packet filters: which rule or policy is to blame, in whose netns."""

from __future__ import annotations

from k8snet.findings import words
from k8snet.findings.case import Case, Death
from k8snet.findings.entry import Match
from k8snet.kernel.rules import UNKNOWN, NamedRule


def pod_firewall_drop(case: Case) -> Match | None:
    """A rule or policy inside a pod's own netns dropped it."""
    death = next((d for d in case.deaths if d.netfilter and case.in_pod(d.event.netns)), None)
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
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.policy and d.hook == "forward"), None)
    also = "docker sets this policy when it switches IP forwarding on; firewalld has it while it reloads"
    return _by_policy(case, death, death.rule, also) if death and death.rule else None


def chain_policy_drop(case: Case) -> Match | None:
    """The policy of another base chain than FORWARD is DROP."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.policy and d.hook != "forward"), None)
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
        also=also,
    )


def rule_reject(case: Case) -> Match | None:
    """A rule rejected it: the client is told at once."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and d.rule.rejects), None)
    return _by_rule(case, death, death.rule, "REJECTED") if death and death.rule else None


def rule_drop(case: Case) -> Match | None:
    """A rule dropped it."""
    death = next((d for d in case.deaths if d.netfilter and d.rule and not d.rule.rejects and not d.rule.policy), None)
    return _by_rule(case, death, death.rule, words.ended(case, death)) if death and death.rule else None


def _by_rule(case: Case, death: Death, rule: NamedRule, verb: str) -> Match:
    where = words.place(case, death)
    chain = (death.hook or "netfilter").upper()
    owner = "" if rule.owner in ("", UNKNOWN) else f" of {rule.owner}"
    return Match(
        title=f"{verb} on {words.owner(case, where)} in {chain}: a rule{owner} in {rule.chain}",
        where=where,
        why=(rule.meaning + ". " if rule.meaning else "")
        + f"The rule stands in {rule.table} {rule.chain} and matched this packet.",
        evidence=words.evidence(case, death),
        fix=words.mend_rule(case, death),
        direction=death.direction,
        named_by=rule.by,
        also=rule.candidates,
    )
