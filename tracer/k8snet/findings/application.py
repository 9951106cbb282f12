"""Findings about the socket at the end: nothing listens, or nobody answers."""

from __future__ import annotations

from k8snet.event import Address
from k8snet.findings import words
from k8snet.findings.case import Case
from k8snet.findings.entry import Match
from k8snet.flow.model import Direction


def not_listening(case: Case) -> Match | None:
    """The request reached the pod and no process listens on the port."""
    request = next((p for p in case.flow.requests if p.received_in(case.backend_netns)), None)
    if case.backend_netns is None or request is None or case.answered or case.backend is None:
        return None
    death = next(
        (
            d
            for d in case.deaths
            if d.direction is Direction.REQUEST and d.event.netns == case.backend_netns and words.no_socket(d)
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
    where = words.place(case, death) if death else words.at(case, request.last)
    protocol = "tcp" if case.tcp else "udp"
    answer = "with a reset" if case.tcp else "with ICMP port unreachable"
    return Match(
        title=f"REJECTED by {words.owner(case, where)}: nothing listens on {protocol} port {port}",
        where=where,
        why=f"The request arrived in the pod, and the kernel answered {answer}: no process has port {port} open there.",
        evidence=(
            *(words.evidence(case, death) if death else ()),
            *((f"{words.label(told)} left {told.first.ifname or 'the pod'}",) if told else ()),
        ),
        fix=(
            f"{words.enter(case, case.backend_netns)}ss -H{'t' if case.tcp else 'u'}lnp 'sport = :{port}'",
            *_target_port_advice(case, address, port),
        ),
        direction=Direction.REQUEST,
        also=("the process listens on 127.0.0.1 only, or on the other address family",),
    )


def _target_port_advice(case: Case, address: Address, port: int) -> tuple[str, ...]:
    service = case.service
    if service is None or case.service_port is None:
        return ()
    return (
        f"kubectl -n {service.namespace} get service {service.name} -o jsonpath='{{.spec.ports}}'",
        f"# Its targetPort sends port {case.service_port.port} to {port}: compare with what the container listens on.",
    )


def no_reply(case: Case) -> Match | None:
    """The request reached the pod's netns, nothing died, and no answer left it."""
    netns = case.backend_netns
    if netns is None or case.answered or case.backend is None or case.flow.replies or case.flow.icmp_errors:
        return None
    request = next((p for p in reversed(case.flow.requests) if p.received_in(netns)), None)
    if request is None or any(d.direction is Direction.REQUEST and d.packet is request for d in case.deaths):
        return None
    where = words.at(case, request.last)
    port = case.backend[1]
    protocol = "tcp" if case.tcp else "udp"
    queue = case.around.listening.get((netns, protocol, port))
    evidence = [words.seen(case, request.last), "no answer left the pod, and nothing was dropped on the way there"]
    if queue is not None:
        unread = f", {queue} bytes wait unread" if protocol == "udp" else f", {queue} connections wait to be accepted"
        evidence.append(f"a socket has {protocol} port {port} open{unread if queue else ', its queue is empty'}")
    return Match(
        title=f"NO REPLY from {words.owner(case, where)}: the request arrived, the application did not answer",
        where=where,
        why="The packet was delivered to the pod. What happens from there on is the application's doing.",
        evidence=tuple(evidence),
        fix=(
            f"{words.enter(case, netns)}ss -{'t' if case.tcp else 'u'}anp 'sport = :{port}'",
            *((f"kubectl -n {where.pod.split('/')[0]} logs {where.pod.split('/')[1]} --tail=50",) if where.pod else ()),
        ),
        direction=Direction.REQUEST,
    )
