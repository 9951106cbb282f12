"""Findings about a Service: nobody stands behind it, or its address was not translated."""

from __future__ import annotations

import shlex

from k8snet.findings import words
from k8snet.findings.case import Case
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction


def no_endpoints(case: Case) -> Match | None:
    """A Service without ready endpoints: kube-proxy rejects what is sent to it, or lets it leak."""
    if case.flow.dnat is not None or case.answered:
        return None
    port, service = case.service_port, case.service
    death = next((d for d in case.deaths if words.to_service(case, d.event)), None)
    rule = death.rule if death is not None and death.rule and words.no_endpoints(death.rule) else None
    # kube-proxy's own rule says it, whatever the inventory knows; without the rule the inventory has to.
    if rule is None and (port is None or service is None or port.ready):
        return None
    leak = words.leak(case)
    if death is not None:
        where, evidence = words.place(case, death), words.evidence(case, death)
    elif leak is not None:
        where, evidence = words.at(case, leak), (words.seen(case, leak),)
    else:
        return None
    key = service.key if service else (rule.service if rule else None) or str(case.flow.original.daddr)
    name = f"{key}:{(port.name or port.port) if port else case.flow.original.dport}"
    if port is not None:
        evidence = (*evidence, f"inventory: {name} has {len(port.endpoints)} endpoints, {len(port.ready)} ready")
    return Match(
        title=f"{words.ended(case, death)} on {words.owner(case, where)}: Service {name} has no ready endpoints",
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


def dnat_miss(case: Case) -> Match | None:
    """The Service's address left the node untranslated: kube-proxy's rules are missing or were not reached."""
    port, service = case.service_port, case.service
    if port is None or service is None or not port.ready or case.flow.dnat is not None or case.answered:
        return None
    leak = words.leak(case)
    refused = next((d for d in case.deaths if words.refused_untranslated(case, d)), None)
    unrouted = (d for d in case.deaths if d.reason in ("IP_INNOROUTES", "IP_OUTNOROUTES"))
    death = refused or next((d for d in unrouted if words.to_service(case, d.event)), None)
    event = leak or (death.event if death else None)
    if event is None:
        return None
    where = words.place(case, refused) if refused else words.at(case, event)
    name = f"{service.key}:{port.name or port.port}"
    inside = words.enter(case, event.netns)
    left = "was refused" if refused else "found no route"
    if leak:
        left = f"left by {event.ifname} to {case.flow.original.daddr}"
    return Match(
        title=f"NOT TRANSLATED on {words.owner(case, where)}: the packet to Service {name} {left}",
        where=where,
        why=f"{case.flow.original.daddr} exists only in kube-proxy's rules, and none of them "
        f"{'translated' if refused else 'matched'} this packet, "
        f"although the Service has {len(port.ready)} ready endpoint{'s' if len(port.ready) != 1 else ''}.",
        evidence=(
            words.seen(case, event),
            *(words.evidence(case, death) if death else (words.conntrack(event),)),
        ),
        fix=(
            f"{inside}{words.iptables(case)}-save -t nat | grep -e '-A PREROUTING' -e {case.flow.original.daddr}",
            f"{inside}nft list table {'ip6' if case.ipv6 else 'ip'} kube-proxy",
            "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide",
            "# kube-proxy writes its rules again when it starts: restart it if it runs and the rules are missing.",
        ),
        direction=Direction.REQUEST,
        named_by=refused.rule.by if refused and refused.rule else None,
        also=("another component than kube-proxy handles Services here, and did not handle this one",),
    )
