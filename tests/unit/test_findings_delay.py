"""What came through in the end, and late: each story is one that was seen in the lab, and what only looks like it."""

from __future__ import annotations

import socket

from k8snet.event import Event, FiveTuple
from k8snet.report import Severity
from unit.story import (
    BACKEND,
    CLIENT,
    DNAT_DONE,
    NETFILTER_DROP,
    NODE,
    VIP,
    codes,
    drop,
    findings,
    syn_ack_to_client,
    syn_to_backend,
)

NATTED = f"{CLIENT} > {BACKEND}"
MS = 1_000_000


def later(events: list[Event], ms: int, **other: object) -> list[Event]:
    """The same again, `ms` after the first event that the tests made."""
    start = events[0].ktime_ns
    return [
        e._replace(ktime_ns=ms * MS + 3600_000 * MS + e.ktime_ns - start, **other)  # type: ignore[arg-type]  # by name
        for e in events
    ]


def at_first(events: list[Event]) -> list[Event]:
    return later(events, 0)


def lost_syn() -> list[Event]:
    """A SYN that dies in the node's FORWARD."""
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": DNAT_DONE}
    return [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, "nft_do_chain", **entry)]


def retried() -> list[Event]:
    """The second SYN (another IP id) and its answer."""
    return [*later(syn_to_backend(), 1024, ip_id=5190), *later(syn_ack_to_client(), 1025)]


def test_a_lost_syn_that_was_sent_again_is_a_warning_with_place_and_time() -> None:
    (finding,) = findings(*at_first(lost_syn()), *retried())
    assert finding.code == "SLOW_CONNECT"
    assert finding.severity is Severity.WARN
    assert finding.title.startswith("SLOW: the connection took 1.03 s, the first SYN was dropped on node-1: ")
    assert finding.where.hook == "forward"
    assert finding.direction == "request"
    assert finding.evidence[0].startswith("SYN after 0 ms: dropped on node-1")
    assert finding.evidence[1].startswith("SYN after 1024 ms: last seen on pod shop/web-1")


def test_a_lost_syn_ack_is_the_replys_loss() -> None:
    lost = syn_ack_to_client()[:2]
    dead = drop(
        f"{BACKEND} > {CLIENT}", NODE, "veth-cart", NETFILTER_DROP, "nft_do_chain", flags=0x12, ip_id=0, seq=7000
    )
    story = [*at_first(syn_to_backend()), *later(lost, 1), *later([dead], 1)]
    (finding,) = findings(*story, *retried())
    assert finding.code == "SLOW_CONNECT"
    assert finding.direction == "reply"
    assert "the first SYN-ACK was dropped on node-1" in finding.title


def test_a_copy_whose_end_was_not_seen_is_last_seen_and_nothing_more() -> None:
    (finding,) = findings(*at_first(syn_to_backend()[:2]), *retried())
    assert "the first SYN was last seen on node-1 at veth-cart" in finding.title
    assert finding.also


def test_a_mirrored_syn_is_no_retransmission() -> None:
    copy = later(syn_to_backend(), 0, ip_id=5190)
    assert codes(*at_first(syn_to_backend()), *copy, *later(syn_ack_to_client(), 1)) == []


def test_an_unanswered_connection_is_not_slow_but_broken() -> None:
    assert codes(*at_first(lost_syn()), *later(lost_syn(), 1024, ip_id=5190)) == ["KERNEL_DROP"]


def dns(events: list[Event], **other: object) -> list[Event]:
    """The same packets as a query to port 53 and its answer."""

    def port(header: FiveTuple | None) -> FiveTuple | None:
        if header is None:
            return None
        ends = {80: 53, 8080: 53}
        return header._replace(
            sport=ends.get(header.sport, header.sport),
            dport=ends.get(header.dport, header.dport),
            protocol=socket.IPPROTO_UDP,
        )

    changed = {"tcp_flags": 0, "seq": 0x6B387320, "payload_len": 40} | other
    headers = [(port(e.packet), port(e.ct_orig), port(e.ct_reply)) for e in events]
    return [
        e._replace(packet=packet, ct_orig=orig, ct_reply=reply, **changed)  # type: ignore[arg-type]  # by name
        for e, (packet, orig, reply) in zip(events, headers, strict=True)
    ]


def test_a_dns_query_that_the_resolver_sent_again_is_slow() -> None:
    lost = dns(at_first(lost_syn()))
    again = dns(later(syn_to_backend(), 5000, ip_id=5190))
    answer = dns(later(syn_ack_to_client(), 5001), ip_id=0, payload_len=56)
    (finding,) = findings(*lost, *again, *answer)
    assert finding.code == "SLOW_CONNECT"
    assert finding.title.startswith("SLOW: the answer took 5.00 s, the first DNS query was dropped on node-1")


def test_other_udp_may_say_the_same_thing_twice() -> None:
    sent = {"ip_id": 6, "payload_len": 40}
    way = [*dns(at_first(syn_to_backend())), *dns(later(syn_to_backend(), 1000), **sent)]
    story = [*way, *dns(later(syn_ack_to_client(), 1001))]
    assert codes(*story) == ["SLOW_CONNECT"]
    assert codes(*(to_port(7, e) for e in story)) == []


def to_port(port: int, event: Event) -> Event:
    """The same packet to another port than 53."""

    def changed(header: FiveTuple | None) -> FiveTuple | None:
        ends = {53: port}
        return header and header._replace(
            sport=ends.get(header.sport, header.sport), dport=ends.get(header.dport, header.dport)
        )

    return event._replace(
        packet=changed(event.packet), ct_orig=changed(event.ct_orig), ct_reply=changed(event.ct_reply)
    )
