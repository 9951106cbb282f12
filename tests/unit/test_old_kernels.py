"""Kernels without drop reasons (5.10): what a function's name alone can mean, and what it cannot."""

from __future__ import annotations

from unit.story import CLIENT, NODE, WEB, cases, codes, drop, syn_ack_to_client, syn_to_backend

NO_REASON = 0
NATTED = f"{CLIENT} > 10.244.1.11:8080"


def test_a_syn_that_comes_again_because_the_answer_is_lost_is_not_lost_itself() -> None:
    """The listening socket has a request for it already, and it is freed where a SYN to a closed port is freed."""
    answer = syn_ack_to_client()[:2]
    way, syn_ack = f"10.244.1.11:8080 > {CLIENT}", {"flags": 0x12, "seq": 7000, "ip_id": 0}
    lost = drop(way, NODE, "veth-web-1", NO_REASON, "ip_rcv_finish_core", **syn_ack)
    again = [drop(NATTED, WEB, "eth0", NO_REASON, "tcp_v4_rcv", ip_id=5190)]
    story = [*syn_to_backend(), *answer, lost, *again]
    (case,) = cases(*story)
    assert [death.symbol for death in case.deaths] == ["ip_rcv_finish_core"]
    assert codes(*story, rises={NODE: {"TcpExt.IPReversePathFilter": 1}}) == ["RP_FILTER"]


def test_a_syn_to_a_closed_port_is_refused() -> None:
    refused = drop(NATTED, WEB, "eth0", NO_REASON, "tcp_v4_rcv")
    assert codes(*syn_to_backend(), refused, *syn_ack_to_client(flags=0x14)) == ["NOT_LISTENING"]
