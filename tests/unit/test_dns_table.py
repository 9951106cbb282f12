"""Queries and answers as a table of bounded size sees them: matched, timed, told once."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8snet.event import Event, ProbeId
from k8snet.flow.dns import AGAIN_NS, CLIENTS, COMPANY, SETTLE_NS, WAIT_NS, DnsTable
from unit import story
from unit.lookups import BACKEND, NXDOMAIN, SERVER, TRUNCATED, answer, exchanges, query, seen, turned_away
from unit.lookups import message as written

SECOND = 1_000_000_000


def test_a_query_and_its_answer_are_one_exchange_however_many_hops_they_make() -> None:
    (one,) = exchanges(query(0), answer(0.005))
    assert (one.name, one.type, one.rcode, one.protocol, len(one.tries)) == ("web.shop", "A", "NOERROR", "udp", 1)
    assert one.seconds == pytest.approx(0.005)
    assert (one.server, one.server_port, one.backend) == (ip_address(SERVER), 53, ip_address(BACKEND))
    assert one.answer is not None
    assert (one.answer.sender, one.answer.source) == (ip_address(BACKEND), ip_address(SERVER))
    assert (one.netns, one.device) == (story.CART, "eth0")


def test_the_servers_share_of_the_time_is_known() -> None:
    (one,) = exchanges(query(0), answer(1))
    assert one.answer is not None
    assert (one.answer.sent_ns - one.last.ktime_ns) / SECOND == pytest.approx(1 - 6e-5)


def test_two_queries_of_one_socket_are_told_apart_by_their_number() -> None:
    a, b = exchanges(query(0, txid=1), query(0.0001, kind="AAAA", txid=2), answer(0.001, kind="AAAA", txid=2))
    assert (a.type, a.answer, b.type, b.rcode) == ("A", None, "AAAA", "NOERROR")


def test_the_same_again_is_a_retry() -> None:
    (one,) = exchanges(query(0), query(5), answer(5.01))
    assert len(one.tries) == 2
    assert one.seconds == pytest.approx(5.01)


def test_the_same_again_after_its_answer_is_a_retry_too() -> None:
    """Of a pair glibc sends both again."""
    (one,) = exchanges(query(0), answer(0.001), query(5), answer(5.001))
    assert len(one.tries) == 2
    assert one.seconds == pytest.approx(0.001)


def test_another_name_under_the_same_number_is_another_query() -> None:
    table = DnsTable()
    for event in [*query(0), *query(2, "other.shop")]:
        table.feed(event)
    (one,) = table.rest()
    assert (one.name, table.forgotten) == ("other.shop", 1)


def test_letters_of_another_case_are_the_same_name() -> None:
    (one,) = exchanges(query(0, "wEb.ShOp"), answer(0.001, "web.SHOP"))
    assert (one.name, one.rcode) == ("web.shop", "NOERROR")


def test_an_answer_to_another_question_is_none() -> None:
    (one,) = exchanges(query(0), answer(0.001, "evil.example"))
    assert one.answers == ()


def test_an_answer_from_an_address_that_was_not_asked_is_kept_and_not_taken() -> None:
    (one,) = exchanges(query(0), answer(1.5, server=BACKEND), turned_away(1.5, source=BACKEND))
    assert one.answer is None
    (astray,) = one.answers
    assert (astray.source, astray.refused) == (ip_address(BACKEND), True)


def test_an_answer_that_no_socket_takes_is_not_taken() -> None:
    (one,) = exchanges(query(0), answer(2), turned_away(2))
    assert one.answer is None
    assert [a.refused for a in one.answers] == [True]
    assert one.answers[0].drop == (story.NO_SOCKET, story.at("__udp4_lib_rcv"))


def test_an_answer_that_dies_on_its_way_did_not_arrive() -> None:
    (one,) = exchanges(query(0), answer(0.001, upto=2))
    assert one.answer is None
    assert [a.arrived_ns for a in one.answers] == [None]


def test_a_second_server_asked_from_the_same_socket_may_answer() -> None:
    """Musl asks all servers at once, and takes whichever answer comes first."""
    (one,) = exchanges(query(0), query(0.0001, server="10.96.0.11"), answer(0.002, server="10.96.0.11"))
    assert one.rcode == "NOERROR"
    assert len(one.tries) == 1
    assert one.others == (ip_address("10.96.0.11"),)


def test_a_query_over_tcp() -> None:
    (one,) = exchanges(query(0, tcp=True), answer(0.004, tcp=True))
    assert (one.protocol, one.name, one.rcode) == ("tcp", "web.shop", "NOERROR")
    assert one.seconds == pytest.approx(0.004)


def test_over_tcp_the_length_may_come_by_itself() -> None:
    raw = written("web.shop", "A", 7)
    way = "10.244.1.10:40000 > 10.96.0.10:53"
    whole = seen(ProbeId.NET_DEV_QUEUE, 0, way, story.CART, "eth0", raw, tcp=True)
    length = whole._replace(payload=whole.payload[:2], payload_len=2)
    rest = whole._replace(payload=raw, payload_len=len(raw), ktime_ns=whole.ktime_ns + 1000)
    (one,) = exchanges([length, rest], answer(0.002, tcp=True))
    assert (one.name, one.rcode) == ("web.shop", "NOERROR")


def test_truncated_and_then_asked_over_tcp_are_two_exchanges() -> None:
    over_udp, over_tcp = exchanges(
        query(0),
        answer(0.001, flags=TRUNCATED),
        query(0.002, port=40001, tcp=True),
        answer(0.003, port=40001, tcp=True),
    )
    assert over_udp.answer is not None
    assert over_tcp.answer is not None
    assert (over_udp.answer.truncated, over_tcp.answer.truncated) == (True, False)
    assert (over_udp.protocol, over_tcp.protocol) == ("udp", "tcp")


def test_behind_source_nat_it_is_still_the_clients_query() -> None:
    node, client = "192.168.50.1:61000", "10.244.1.10:40000"
    raw, back = written("web.shop", "A", 7), written("web.shop", "A", 7, 0x8180)
    entry: dict[str, Any] = {"orig": f"{client} > 203.0.113.53:53", "reply": f"203.0.113.53:53 > {node}"}
    out, into = ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB
    (one,) = exchanges([
        seen(out, 0, f"{client} > 203.0.113.53:53", story.CART, "eth0", raw),
        seen(out, 0.001, f"{node} > 203.0.113.53:53", story.NODE, "eth0", raw, **entry),
        seen(into, 0.002, f"{node} > 203.0.113.53:53", story.ROUTER, "eth1", raw),
        seen(into, 0.010, f"203.0.113.53:53 > {node}", story.NODE, "eth0", back),
        seen(into, 0.011, f"203.0.113.53:53 > {client}", story.CART, "eth0", back),
    ])  # fmt: skip
    assert (one.client, one.port, len(one.tries)) == (ip_address("10.244.1.10"), 40000, 1)
    assert one.seconds == pytest.approx(0.011)


def test_a_server_with_another_port_behind_nat_is_followed_by_its_number() -> None:
    """OpenShift's listens on 5353: there the events carry no payload."""
    raw, back = written("web.shop", "A", 7), written("web.shop", "A", 7, 0x8180)
    client = "10.244.1.10:40000"
    out, into = ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB
    (one,) = exchanges([
        seen(out, 0, f"{client} > 10.96.0.10:53", story.CART, "eth0", raw),
        seen(into, 0.001, f"{client} > 10.244.1.13:5353", 13, "eth0", raw)._replace(payload=b""),
        seen(out, 0.101, f"10.244.1.13:5353 > {client}", 13, "eth0", back)._replace(payload=b""),
        seen(into, 0.102, f"10.96.0.10:53 > {client}", story.CART, "eth0", back),
    ])  # fmt: skip
    assert one.answer is not None
    assert one.last.netns == 13
    assert one.answer.sender == ip_address("10.244.1.13")


def test_without_its_payload_a_query_has_no_name_and_is_matched_all_the_same() -> None:
    bare = [e._replace(payload=b"") for e in (*query(0), *answer(0.003, rcode=NXDOMAIN))]
    (one,) = exchanges(bare)
    assert (one.name, one.type, one.rcode, one.question) == ("", "", "NXDOMAIN", "query 0x0007")


def test_copies_that_a_bridge_floods_are_not_where_it_went() -> None:
    raw = written("web.shop", "A", 7)
    way = "10.244.1.10:40000 > 10.244.1.13:53"
    stray = seen(ProbeId.NETIF_RECEIVE_SKB, 0.0001, way, story.WEB, "eth0", raw, pkt_type=3)
    death = seen(ProbeId.KFREE_SKB, 0.0002, way, story.WEB, "eth0", raw, reason=story.OTHERHOST, pkt_type=3)
    (one,) = exchanges(query(0), [stray, death])
    assert one.last.netns == 13
    assert not one.died


def test_a_port_of_nat_is_another_clients_after_a_while() -> None:
    raw, node = written("web.shop", "A", 7), "192.168.50.1:61000"
    entry: dict[str, Any] = {"orig": "10.244.1.10:40000 > 203.0.113.53:53", "reply": f"203.0.113.53:53 > {node}"}
    asked = f"{node} > 203.0.113.53:53"
    out = ProbeId.NET_DEV_QUEUE
    first, later = exchanges(
        [
            seen(out, 0, "10.244.1.10:40000 > 203.0.113.53:53", story.CART, "eth0", raw),
            seen(out, 0.001, asked, story.NODE, "eth0", raw, **entry),
        ],
        [seen(out, 100, asked, story.NODE, "eth0", raw)],
    )
    assert (first.client, later.client) == (ip_address("10.244.1.10"), ip_address("192.168.50.1"))


@pytest.mark.parametrize("raw", [b"not a message of DNS", b"\0" * 40, b"\xff" * 288])
def test_what_is_no_dns_opens_nothing(raw: bytes) -> None:
    way = "10.244.1.10:40000 > 10.96.0.10:53"
    assert exchanges([seen(ProbeId.NET_DEV_QUEUE, 0, way, story.CART, "eth0", raw)]) == []


def test_an_answer_to_nothing_that_was_seen_is_passed_over() -> None:
    assert exchanges(answer(0)) == []


def test_each_is_told_once_when_it_is_over() -> None:
    table = DnsTable()
    for event in [*query(0, txid=1), *query(0, txid=2), *answer(0.002, txid=1)]:
        table.feed(event)
    assert table.due(2_000_000) == []
    assert [q.txid for q in table.due(4_000_000 + SETTLE_NS)] == [1]
    assert table.due(10 * SECOND) == []
    assert [q.txid for q in table.due(WAIT_NS + SECOND)] == [2]
    assert table.due(2 * WAIT_NS) == []
    assert table.rest() == []
    table.due(3 * WAIT_NS)
    assert len(table) == 0


def test_a_query_that_is_sent_again_waits_from_then_on() -> None:
    table = DnsTable()
    for event in [*query(0), *query(5), *query(10)]:
        table.feed(event)
    assert table.due(WAIT_NS + SECOND) == []
    (one,) = table.due(WAIT_NS + 11 * SECOND)
    assert len(one.tries) == 3


def test_a_full_table_forgets_the_oldest_and_says_so() -> None:
    table = DnsTable(limit=10)
    for number in range(25):
        for event in query(number / 1000, port=40000 + number):
            table.feed(event)
    assert (len(table), table.forgotten) == (10, 15)
    assert [q.port for q in table.rest()] == list(range(40015, 40025))


def test_memory_does_not_grow_with_clients() -> None:
    table = DnsTable()
    for number in range(3 * CLIENTS):
        client = f"10.1.{number // 250}.{number % 250 + 1}"
        for event in query(number / 100, client=client, upto=1):
            table.feed(event)
    table.due(round(1000 * SECOND))
    table.due(round(1000 * SECOND) + AGAIN_NS)
    assert len(table) == 0
    assert len(table._recent) <= CLIENTS
    assert all(len(some) <= COMPANY for some in table._recent.values())


def test_company_is_of_the_same_client_and_time() -> None:
    table = DnsTable()
    for event in [*query(0, txid=1), *query(0.1, "b.example", txid=2), *query(60, "c.example", txid=3)]:
        table.feed(event)
    assert [[other.txid for other in q.company] for q in table.rest()] == [[2], [1], []]


@given(st.lists(st.integers(0, 27), max_size=60), st.randoms())
@settings(max_examples=60, deadline=None)
def test_events_that_are_missing_or_out_of_order_never_stop_it(chosen: list[int], chance: random.Random) -> None:
    events: list[Event] = [
        *query(0), *query(0.5, kind="AAAA", txid=8), *answer(0.001), *answer(0.6, kind="AAAA", txid=8),
        *turned_away(0.6, txid=8), *query(1, tcp=True), *answer(1.1, tcp=True), *query(5), *turned_away(5.1),
    ]  # fmt: skip
    table = DnsTable(limit=3)
    for number in chosen:
        event = events[number % len(events)]
        cut = chance.randrange(40)
        table.feed(event._replace(payload=event.payload[:cut]) if chance.random() < 0.3 else event)
        if chance.random() < 0.2:
            table.due(event.ktime_ns + chance.randrange(20) * SECOND)
    assert len(table) <= 3
    assert all(q.tries for q in table.rest())
