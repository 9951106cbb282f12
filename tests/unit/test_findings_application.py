"""The socket at the end: each story is one that was seen in the lab, beside one that only looks like it."""

from __future__ import annotations

import socket

import pytest

from k8snet.event import Encap, Event
from k8snet.findings import words
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    VIP,
    WEB,
    cases,
    codes,
    drop,
    findings,
    icmp_header,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
)

NATTED = f"{CLIENT} > {BACKEND}"
SOCKET_RCVBUFF = 64
OVERFLOWS = {WEB: {"TcpExt.ListenOverflows": 2, "TcpExt.ListenDrops": 2}}
UDP = {"protocol": socket.IPPROTO_UDP, "payload": 14, "seq": 0x6B387320}


def full(waiting: int, most: int, port: int = 8080) -> dict[tuple[int, str, int], tuple[int, int]]:
    """A listening socket of the backend, and what waits there."""
    return {(WEB, "tcp", port): (waiting, most)}


def datagram() -> list[Event]:
    """A datagram to the Service, up to the backend's netns."""
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": CONFIRMED}
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0", **UDP),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart", **UDP),
        out(NATTED, NODE, "veth-web-1", **UDP, **entry),
        into(NATTED, WEB, "eth0", **UDP),
    ]


def test_a_full_accept_queue_is_named_with_its_numbers() -> None:
    (finding,) = findings(*syn_to_backend(), rises=OVERFLOWS, backlogs=full(2, 1))
    assert finding.code == "ACCEPT_QUEUE_FULL"
    assert finding.title == "DROPPED by pod shop/web-1: the accept queue of tcp port 8080 is full"
    assert "the listening socket of tcp port 8080: 2 connections wait, backlog 1" in finding.evidence
    assert "kubectl -n shop logs web-1 --tail=50" in finding.fix


@pytest.mark.parametrize(
    ("rises", "backlogs"),
    [
        pytest.param({}, full(2, 1), id="nothing-overflowed-meanwhile"),
        pytest.param(OVERFLOWS, full(1, 1), id="one-more-has-room"),
        pytest.param(OVERFLOWS, full(2, 1, port=9090), id="another-port-is-full"),
        pytest.param({CART: OVERFLOWS[WEB]}, full(2, 1), id="another-pod-overflowed"),
        pytest.param(OVERFLOWS, {}, id="no-sock_diag"),
    ],
)
def test_a_queue_that_is_not_shown_to_be_full_is_not_blamed(
    rises: dict[int, dict[str, int]], backlogs: dict[tuple[int, str, int], tuple[int, int]]
) -> None:
    assert codes(*syn_to_backend(), rises=rises, backlogs=backlogs) == ["NO_REPLY"]


def test_a_full_queue_is_not_blamed_for_what_died_elsewhere_or_was_answered() -> None:
    dead = [*syn_to_backend(), drop(NATTED, WEB, "eth0", NETFILTER_DROP, "nf_hook_slow")]
    assert codes(*dead, rises=OVERFLOWS, backlogs=full(2, 1)) == ["POD_FIREWALL_DROP"]
    assert codes(*syn_to_backend(), *syn_ack_to_client(), rises=OVERFLOWS, backlogs=full(2, 1)) == []


def test_a_full_receive_buffer_is_named() -> None:
    story = [*datagram(), drop(NATTED, WEB, "eth0", SOCKET_RCVBUFF, "udp_queue_rcv_one_skb", **UDP)]
    rises = {WEB: {"Udp.RcvbufErrors": 1}}
    (finding,) = findings(*story, rises=rises, listening={(WEB, "udp", 8080): 3840})
    assert finding.code == "UDP_BUFFER_FULL"
    assert finding.title == "DROPPED by pod shop/web-1: the receive buffer of udp port 8080 is full"
    assert "the socket of udp port 8080 has 3840 bytes unread" in finding.evidence


def test_without_a_reason_a_full_buffer_needs_the_counter() -> None:
    story = [*datagram(), drop(NATTED, WEB, "eth0", 0, "udp_queue_rcv_one_skb", **UDP)]
    assert codes(*story, rises={WEB: {"Udp.RcvbufErrors": 1}}) == ["UDP_BUFFER_FULL"]
    assert codes(*story, rises={WEB: {"Udp.InCsumErrors": 1}}) == ["KERNEL_DROP"]


def test_a_closed_udp_port_is_found_by_the_drop_and_by_the_icmp_error_alone() -> None:
    (finding,) = findings(*datagram(), drop(NATTED, WEB, "eth0", NO_SOCKET, "__udp4_lib_rcv", **UDP))
    assert finding.code == "NOT_LISTENING"
    assert finding.title == "DROPPED by pod shop/web-1: nothing listens on udp port 8080"
    error = {"encap": Encap.ICMP_ERROR, "icmp_type": 3, "icmp_code": 3, "skb": 77, **UDP}
    told = [
        out(NATTED, WEB, "eth0", outer=icmp_header("10.244.1.11", "10.244.1.10"), **error),
        into(NATTED, NODE, "veth-web-1", outer=icmp_header("10.244.1.11", "10.244.1.10"), **error),
        out(f"{CLIENT} > {VIP}", NODE, "veth-cart", outer=icmp_header("10.96.0.80", "10.244.1.10"), **error),
        into(f"{CLIENT} > {VIP}", CART, "eth0", outer=icmp_header("10.96.0.80", "10.244.1.10"), **error),
    ]
    assert codes(*datagram(), *told) == ["NOT_LISTENING"]


def test_a_host_outside_that_refuses_is_not_a_closed_port_here() -> None:
    way, back = f"{CLIENT} > 192.0.2.10:443", f"192.0.2.10:443 > {CLIENT}"
    reset = {"flags": 0x14, "ip_id": 0, "seq": 0, "skb": 78}
    story = [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        out(way, NODE, "eth0"),
        into(back, NODE, "eth0", **reset),
        out(back, NODE, "veth-cart", **reset),
        into(back, CART, "eth0", **reset),
    ]
    (finding,) = findings(*story)
    assert finding.code == "REFUSED"
    assert finding.title == "REJECTED: RST came from 192.0.2.10"
    assert finding.where.device == "eth0"
    assert codes(*story[:3]) == ["LEFT_NODE"]


INIT, INIT_ACK, ABORT = 1, 2, 6
SCTP = {"protocol": socket.IPPROTO_SCTP, "payload": 20, "seq": 0}


def association(answer: int) -> list[Event]:
    """An SCTP INIT straight to the pod, and what comes back: the chunk that it begins with."""
    way, back = f"{CLIENT} > {BACKEND}", f"{BACKEND} > {CLIENT}"
    told = {"icmp_type": answer, "skb": 79, "ip_id": 0, **SCTP}
    return [
        out(way, CART, "eth0", icmp_type=INIT, **SCTP),
        into(way, NODE, "veth-cart", icmp_type=INIT, **SCTP),
        out(way, NODE, "veth-web-1", icmp_type=INIT, **SCTP),
        into(way, WEB, "eth0", icmp_type=INIT, **SCTP),
        out(back, WEB, "eth0", **told),
        into(back, NODE, "veth-web-1", **told),
        out(back, NODE, "veth-cart", **told),
        into(back, CART, "eth0", **told),
    ]


def test_an_sctp_association_that_is_accepted_is_healthy() -> None:
    assert codes(*association(INIT_ACK)) == []
    (case,) = cases(*association(INIT_ACK))
    assert case.answered
    assert [words.label(p) for p in case.flow.packets] == ["INIT", "INIT ACK"]


def test_an_sctp_abort_is_no_answer_but_a_refusal() -> None:
    (finding,) = findings(*association(ABORT))
    assert finding.code == "NOT_LISTENING"
    assert finding.title == "REJECTED by pod shop/web-1: nothing listens on sctp port 8080"
    assert "ABORT left eth0" in finding.evidence


def test_a_closed_port_is_the_cause_even_where_its_icmp_error_is_dropped() -> None:
    outer = icmp_header("10.244.1.11", "10.244.1.10")
    error = {"encap": Encap.ICMP_ERROR, "icmp_type": 3, "icmp_code": 3, "outer": outer, **UDP}
    story = [*datagram(), drop(NATTED, WEB, "eth0", NO_SOCKET, "__udp4_lib_rcv", **UDP)]
    story += [out(NATTED, WEB, "eth0", **error), into(NATTED, NODE, "veth-web-1", **error)]
    story += [drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, "nft_do_chain", **error)]
    (finding,) = findings(*story)
    assert finding.code == "NOT_LISTENING"
    assert finding.title == "DROPPED by pod shop/web-1: nothing listens on udp port 8080"
    assert "ICMP port unreachable was lost on its way: NETFILTER_DROP at nft_do_chain" in finding.evidence
