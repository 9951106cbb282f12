"""Findings about the socket at the end: nothing listens, or nobody answers."""

from __future__ import annotations

import shlex
import socket

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
            and (p.is_rst or (p.is_icmp_error and p.key.icmp in ((3, 3), (1, 4))))
        ),
        None,
    )
    if death is None and (told is None or any(p.is_syn_ack for p in case.flow.replies)):
        return None
    address, port = case.backend
    where = words.place(case, death) if death else words.at(case, request.last)
    protocol = _protocol(case)
    answer = {"tcp": "with a reset", "sctp": "with an abort"}.get(protocol, "with ICMP port unreachable")
    # There was no socket for this packet, and there is one for the port: of another address, or since then.
    elsewhere = death is not None and (case.backend_netns, protocol, port) in case.around.listening
    missing = f"no process has port {port} open there"
    if elsewhere:
        missing = f"port {port} is open there, but was not for {address}"
    how = "REJECTED" if case.refused_by else "DROPPED"
    return Match(
        title=f"{how} by {words.owner(case, where)}: nothing listens on {protocol} port {port}"
        + (f" of {address}" if elsewhere else ""),
        where=where,
        why=f"The request arrived in the pod, and the kernel answered {answer}: {missing}.",
        evidence=(
            *(words.evidence(case, death) if death else ()),
            *((f"{words.label(told)} left {told.first.ifname or 'the pod'}",) if told else ()),
            *(
                f"{words.label(d.packet)} was lost on its way: {words.reason(d)}"
                for d in case.deaths
                if d.packet is told
            ),
            *((f"a socket has {protocol} port {port} open",) if elsewhere else ()),
        ),
        fix=(
            f"{words.enter(case, case.backend_netns)}ss -H{_SS[protocol]}lnp 'sport = :{port}'",
            *_target_port_advice(case, address, port),
        ),
        direction=Direction.REQUEST,
        also=(_LISTENS_ELSEWHERE if elsewhere else _MAY_LISTEN_ELSEWHERE,),
    )


_LISTENS_ELSEWHERE = (
    "the process listens on 127.0.0.1 only, on 0.0.0.0 (IPv4) while the client came by IPv6, or has only just started"
)
_MAY_LISTEN_ELSEWHERE = "the process listens on 127.0.0.1 only, or on the other address family"
_SS = {"tcp": "t", "udp": "u", "sctp": "S"}


def _protocol(case: Case) -> str:
    if case.flow.original.protocol == socket.IPPROTO_SCTP:
        return "sctp"
    return "tcp" if case.tcp else "udp"


def _target_port_advice(case: Case, address: Address, port: int) -> tuple[str, ...]:
    service = case.service
    if service is None or case.service_port is None:
        return ()
    return (
        f"kubectl -n {service.namespace} get service {service.name} -o jsonpath='{{.spec.ports}}'",
        f"# Its targetPort sends port {case.service_port.port} to {port}: compare with what the container listens on.",
    )


def accept_queue_full(case: Case) -> Match | None:
    """The SYN reached the pod, and the listening socket had no room for another connection."""
    netns = case.backend_netns
    if netns is None or case.backend is None or case.answered or not case.tcp or case.flow.replies or case.deaths:
        return None
    syn = next((p for p in reversed(case.flow.requests) if p.is_syn and p.received_in(netns)), None)
    overflows = case.around.rises.get(netns, {}).get("TcpExt.ListenOverflows", 0)
    port = case.backend[1]
    waiting, most = case.around.backlogs.get((netns, "tcp", port), (0, 0))
    # The kernel takes such a SYN without a word: its counter is of the whole netns, the queue is this port's.
    if syn is None or overflows <= 0 or waiting <= most:
        return None
    where = words.at(case, syn.last)
    inside = words.enter(case, netns)
    return Match(
        title=f"DROPPED by {words.owner(case, where)}: the accept queue of tcp port {port} is full",
        where=where,
        why=f"{waiting} connections wait on port {port} until the application calls accept(), and its backlog is "
        f"{most}. The kernel discards each further SYN without an answer.",
        evidence=(
            words.seen(case, syn.last),
            "no SYN-ACK left the pod, and no drop was reported: the kernel does not call this one",
            f"TcpExt.ListenOverflows of {words.owner(case, where)} rose by {overflows}",
            f"the listening socket of tcp port {port}: {waiting} connections wait, backlog {most}",
        ),
        fix=(
            f"{inside}ss -Hltnp 'sport = :{port}'",
            f"{inside}nstat -az TcpExtListenOverflows TcpExtListenDrops",
            "# The application does not accept, or not fast enough: look at its CPU, its threads and its log.",
            *_logs(where.pod),
        ),
        direction=Direction.REQUEST,
        also=("a burst of connections that the application would have accepted a moment later",),
    )


def udp_buffer_full(case: Case) -> Match | None:
    """A datagram found the socket's receive buffer full."""
    netns = case.backend_netns
    # Functions, for kernels without reasons: only together with the counter, because UDP frees for other causes there.
    death = next(
        (
            d
            for d in words.fatal(case)
            if d.reason == "SOCKET_RCVBUFF"
            or (d.reason == "" and d.symbol in _UDP_QUEUE and _rcvbuf_errors(case, d.event.netns))
        ),
        None,
    )
    if death is None or case.flow.original.protocol != socket.IPPROTO_UDP or death.packet.is_icmp_error:
        return None
    header = death.event.packet
    where = words.place(case, death)
    port = case.backend[1] if case.backend and death.event.netns == netns else (header.dport if header else 0)
    spot = death.event.netns
    unread = case.around.listening.get((spot, "udp", port))
    errors = _rcvbuf_errors(case, spot)
    return Match(
        title=f"{words.ended(case, death)} by {words.owner(case, where)}: the receive buffer of udp port {port} "
        "is full",
        where=where,
        why=f"The datagram arrived, and there was no room for it in the buffer of the socket on port {port}: "
        "the application reads too slowly, or not at all.",
        evidence=(
            *words.evidence(case, death),
            *((f"Udp.RcvbufErrors rose by {errors}",) if errors else ()),
            *((f"the socket of udp port {port} has {unread} bytes unread",) if unread is not None else ()),
        ),
        fix=(
            f"{words.enter(case, spot)}ss -Huanpm 'sport = :{port}'",
            f"{words.enter(case, spot)}nstat -az UdpRcvbufErrors UdpInErrors",
            "# The application does not read, or not fast enough: look at its CPU, its threads and its log.",
            "# Against bursts: a larger SO_RCVBUF in the application, up to sysctl net.core.rmem_max.",
            *_logs(where.pod),
        ),
        direction=death.direction,
    )


_UDP_QUEUE = ("udp_queue_rcv_one_skb", "udp_queue_rcv_skb", "udpv6_queue_rcv_one_skb", "udpv6_queue_rcv_skb")


def _rcvbuf_errors(case: Case, netns: int) -> int:
    rises = case.around.rises.get(netns, {})
    return rises.get("Udp.RcvbufErrors", 0) + rises.get("Udp6RcvbufErrors", 0)


def _logs(pod: str | None) -> tuple[str, ...]:
    """How to read what the application says; a pod that is known by its netns alone has no name to ask for."""
    namespace, _, name = (pod or "").partition("/")
    return (f"kubectl -n {shlex.quote(namespace)} logs {shlex.quote(name)} --tail=50",) if name else ()


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
    protocol = _protocol(case)
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
            f"{words.enter(case, netns)}ss -{_SS[protocol]}anp 'sport = :{port}'",
            *_logs(where.pod),
        ),
        direction=Direction.REQUEST,
    )
