"""Findings about a Service: nobody stands behind it, nobody here, or its address was not translated."""

from __future__ import annotations

import shlex
from dataclasses import replace

from k8snet.cluster.inventory import PROTOCOLS, Service, ServicePort
from k8snet.cluster.serving import Answer, answer, door_of
from k8snet.findings import words
from k8snet.findings.case import Case, Death
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction


def no_local_endpoints(case: Case) -> Match | None:
    """The Service has endpoints, none of them on this node, and its traffic policy says that only those will do."""
    if case.flow.dnat is not None or case.answered:
        return None
    death = next((d for d in case.deaths if d.netfilter and words.to_service(case, d.event)), None)
    if death is None or (death.rule is not None and not words.no_local_endpoints(death.rule)):
        return None
    where = words.place(case, death)
    found = _reached(case)
    said = _answer_here(case, death, where.node, *found) if found else None
    # kube-proxy's own rule says it, whatever the inventory knows; without the rule the inventory has to.
    if death.rule is None and (said is None or not said.policy):
        return None
    key = found[0].key if found else (death.rule.service if death.rule else None) or str(case.flow.original.daddr)
    name = f"{key}:{found[1].name or found[1].port}" if found else f"{key}:{case.flow.original.dport}"
    policy = said.policy if said else ""
    here = words.owner(case, where)
    return Match(
        title=f"{words.ended(case, death)} on {here}: Service {name} has no endpoint on this node, and "
        f"{policy or 'its traffic policy'} is Local",
        where=where,
        why=f"{f'{policy}:' if policy else 'A traffic policy'} Local keeps a connection on the node that it comes to, "
        f"and no ready pod of {name} runs on {here}.",
        evidence=(*words.evidence(case, death), *((_endpoints_by_node(name, found[1], where.node),) if found else ())),
        fix=_let_it_leave(found[0] if found else None, key, policy, here),
        direction=Direction.REQUEST,
        named_by=death.rule.by if death.rule else None,
    )


def _reached(case: Case) -> tuple[Service, ServicePort] | None:
    """The Service that the client used, by an address of its own or by a node's."""
    if case.service is not None:
        return (case.service, case.service_port) if case.service_port is not None else None
    used = case.flow.original
    protocol = PROTOCOLS.get(used.protocol)
    found = case.around.inventory.node_port_at(used.daddr, used.dport, protocol) if protocol else None
    if found is None:
        return None
    service, port = found
    return service, replace(port, endpoints=tuple(e for e in port.endpoints if e.ip.version == used.daddr.version))


def _answer_here(case: Case, death: Death, node: str | None, service: Service, port: ServicePort) -> Answer | None:
    """What kube-proxy of the node where it died does with this client."""
    inventory, client = case.around.inventory, case.flow.original.saddr
    known = inventory.node_by_ip.get(client)
    pod = client in inventory.pod_by_ip or any(client in network for network in inventory.pod_networks)
    within = pod or (known is not None and known.name == node)
    door = door_of(service, case.flow.original.daddr, within=within)
    return None if node is None or case.in_pod(death.event.netns) else answer(service, port, node, door)


def _endpoints_by_node(name: str, port: ServicePort, node: str | None) -> str:
    ready = sorted({end.node or "no node" for end in port.ready})
    if not ready:
        return f"inventory: {name} has {len(port.endpoints)} endpoints, 0 ready"
    return f"inventory: {name} has ready endpoints on {', '.join(ready)}" + (
        f", none on {node}" if node and node not in ready else ""
    )


def _let_it_leave(service: Service | None, key: str, policy: str, here: str) -> tuple[str, ...]:
    namespace, slash, name = key.partition("/")
    if not slash:
        return ("kubectl get services -A -o wide",)
    namespace, name = shlex.quote(namespace), shlex.quote(name)
    labels = ",".join(f"{label}={value}" for label, value in service.selector) if service else ""
    look = (
        f"kubectl -n {namespace} get pods -l {shlex.quote(labels)} -o wide" if labels else _endpoint_slices(key),
        f"# Let a ready one run on {here} (a DaemonSet has one on each node), or let the traffic leave the node:",
    )
    if not policy:
        return (*look, f"kubectl -n {namespace} edit service {name}")
    patch = shlex.quote(f'{{"spec":{{"{policy}":"Cluster"}}}}')
    hidden = "# The pods see a node's address then, and no longer the client's."
    return (
        *look,
        f"kubectl -n {namespace} patch service {name} -p {patch}",
        *((hidden,) if policy.startswith("external") else ()),
    )


def _endpoint_slices(key: str) -> str:
    namespace, _, name = key.partition("/")
    label = shlex.quote(f"kubernetes.io/service-name={name}")
    return f"kubectl -n {shlex.quote(namespace)} get endpointslices -l {label}"


def no_endpoints(case: Case) -> Match | None:
    """A Service without ready endpoints: kube-proxy rejects what is sent to it, or lets it leak."""
    if case.flow.dnat is not None or case.answered:
        return None
    service, port = _reached(case) or (case.service, None)
    death = next((d for d in case.deaths if words.to_service(case, d.event)), None)
    rule = death.rule if death is not None and death.rule and words.no_endpoints(death.rule) else None
    # kube-proxy's own rule says it, whatever the inventory knows; without the rule the inventory has to.
    if rule is None and (port is None or service is None or port.ready):
        return None
    leak = words.leak(case) if case.service is not None else None  # to a node's address it may leave
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
    return (
        _endpoint_slices(key),
        f"kubectl -n {shlex.quote(namespace)} get service {shlex.quote(name)} -o jsonpath='{{.spec.selector}}'",
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
