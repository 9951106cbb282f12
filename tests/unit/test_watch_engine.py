"""A watch's engine: of a healthy crowd nothing is told, of each that fails why; its memory is bounded."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest

from k8snet.event import BadRecordError, CtStatus, Encap, Event, ProbeId
from k8snet.report import Severity
from k8snet.watch import table
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Engine, Limits
from k8snet.watch.live import Budget
from k8snet.watch.table import Table, glance, is_kept, number_of
from unit.story import (
    BACKEND,
    CART,
    CONFIRMED,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    QUEUE_PURGE,
    VIP,
    WEB,
    drop,
    event,
    icmp_header,
    into,
    out,
    surroundings,
)  # fmt: skip
from unit.streams import record_of

SECOND = 1_000_000_000
CART_IP = "10.244.1.10"


def numbers_of(count: int) -> list[int]:
    """Initial sequence numbers from all over their range (the MINSTD generator's)."""
    numbers = [1]
    while len(numbers) <= count:
        numbers.append(numbers[-1] * 48271 % 0x7FFF_FFFF)
    return [number << 1 | number & 1 for number in numbers[1:]]


def us(seconds: float) -> int:
    """As the stories' builders want it."""
    return round(seconds * 1e6)


def syn(port: int, seq: int, at: float, *, hops: int = 4, ip_id: int = 0) -> list[Event]:
    """A SYN on its way to the Service, so many hops far, 10 us each."""
    client, natted = f"{CART_IP}:{port}", f"{CART_IP}:{port} > {BACKEND}"
    entry = {"orig": f"{client} > {VIP}", "reply": f"{BACKEND} > {client}", "status": CONFIRMED}
    fields = {"seq": seq, "ip_id": ip_id or port}
    return [
        out(f"{client} > {VIP}", CART, "eth0", us=us(at), **fields),
        into(f"{client} > {VIP}", NODE, "veth-cart", us=us(at) + 10, **fields),
        out(natted, NODE, "veth-web-1", us=us(at) + 20, **fields, **entry),
        into(natted, WEB, "eth0", us=us(at) + 30, **fields),
    ][:hops]


def answer(port: int, seq: int, at: float, *, hops: int = 4, flags: int = 0x12) -> list[Event]:
    """The SYN-ACK (or with flags 0x14 the reset) to it."""
    client = f"{CART_IP}:{port}"
    entry = {"orig": f"{client} > {VIP}", "reply": f"{BACKEND} > {client}", "status": CONFIRMED | 2, "info": 3}
    fields = {"flags": flags, "ip_id": 0, "seq": 7000 + port, "ack": (seq + 1) & 0xFFFF_FFFF}
    return [
        out(f"{BACKEND} > {client}", WEB, "eth0", us=us(at), **fields),
        into(f"{BACKEND} > {client}", NODE, "veth-web-1", us=us(at) + 10, **fields),
        out(f"{VIP} > {client}", NODE, "veth-cart", us=us(at) + 20, **fields, **entry),
        into(f"{VIP} > {client}", CART, "eth0", us=us(at) + 30, **fields),
    ][:hops]


def dead_syn(port: int, seq: int, at: float, ip_id: int = 0) -> list[Event]:
    """A SYN that a packet filter of the node drops."""
    client = f"{CART_IP}:{port}"
    entry = {"orig": f"{client} > {VIP}", "reply": f"{BACKEND} > {client}", "status": CtStatus(0x120), "info": 2}
    fields = {"seq": seq, "ip_id": ip_id or port, **entry}
    died = drop(f"{client} > {BACKEND}", NODE, "veth-cart", NETFILTER_DROP, "nf_hook_slow", us=us(at) + 20, **fields)
    return [*syn(port, seq, at, hops=2, ip_id=ip_id), died]


def played(engine: Engine, events: Iterable[Event], until: float, **around: object) -> list[Anomaly]:
    """The events as they come, with a tick each tenth of a second."""
    todo = sorted(events, key=lambda e: e.ktime_ns)
    told: list[Anomaly] = []
    for tick in range(1, round(until * 10) + 1):
        now = tick * SECOND // 10
        engine.feed(record_of(e) for e in todo if e.ktime_ns < now)
        todo = [e for e in todo if e.ktime_ns >= now]
        told += engine.tick(now, surroundings(client_netns=None, **around))
    return told


def codes(anomalies: Iterable[Anomaly]) -> list[str]:
    return [anomaly.finding.code for anomaly in anomalies]


# --- what is healthy --------------------------------------------------------------------------------------------------


def test_a_crowd_of_healthy_connections_gives_nothing_and_leaves_nothing() -> None:
    engine = Engine()
    numbers = numbers_of(2003)
    crowd = [e for n, seq in enumerate(numbers) for e in (*syn(1024 + n, seq, 1 + n / 997),
                                                          *answer(1024 + n, seq, 1.0002 + n / 997))]  # fmt: skip
    assert played(engine, crowd, 5) == []
    counts = engine.counts
    assert (counts.connections, counts.answered, counts.flows, counts.evicted) == (2003, 2003, 0, 0)
    assert counts.events == len(crowd)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_within_milliseconds_does_not_matter(seed: int) -> None:
    engine = Engine()
    crowd = [e for n in range(97) for e in (*syn(2000 + n, 90 + n * 7, 1), *answer(2000 + n, 90 + n * 7, 1.0001))]
    first = [e for e in crowd if e.netns == CART and e.probe is ProbeId.NET_DEV_QUEUE]
    rest = [e for e in crowd if e not in first]
    rest.sort(key=lambda e: (e.ktime_ns + e.seq) * (7919 + seed) % 104_729)
    engine.feed(map(record_of, [*first, *rest]))
    assert engine.tick(2 * SECOND, surroundings()) == []
    assert engine.counts.answered == 97


def test_what_began_before_we_looked_is_left_alone() -> None:
    engine = Engine()
    late = [*answer(4000, 500, 1), *answer(4001, 600, 1, flags=0x14), *syn(4002, 700, 1)[2:], *answer(4002, 700, 1.1)]
    assert played(engine, late, 8) == []


def test_a_sequence_number_may_be_the_last_or_the_first() -> None:
    engine = Engine()
    edges = (0xFFFF_FFFF, 1)
    assert not played(
        engine, [e for n, s in enumerate(edges) for e in (*syn(5000 + n, s, 1), *answer(5000 + n, s, 1.1))], 6
    )
    assert engine.counts.answered == 2


def test_the_kernels_own_bookkeeping_is_no_anomaly() -> None:
    engine = Engine()
    way = f"{CART_IP}:5555 > {BACKEND}"
    noise = [
        *syn(5001, 42, 1),
        *answer(5001, 42, 1.0001),
        drop(f"{CART_IP}:5001 > {BACKEND}", WEB, "", QUEUE_PURGE, "skb_queue_purge", us=us(1.0003), seq=42, ip_id=5001),
        *(drop(way, WEB, "", QUEUE_PURGE, "skb_queue_purge", us=us(2 + n), flags=0x18, payload=99) for n in range(5)),
    ]
    assert played(engine, noise, 15) == []
    assert engine.counts.flows == 0


def test_data_that_is_lost_once_and_sent_again_is_none() -> None:
    engine = Engine()
    lost = [drop(f"{CART_IP}:5555 > {BACKEND}", NODE, "veth-web-1", 62, "__dev_queue_xmit", flags=0x18, payload=1400,
                 seq=9000 + n, us=us(1 + n / 1000)) for n in range(40)]  # fmt: skip
    assert played(engine, lost, 15) == []


# --- what fails -------------------------------------------------------------------------------------------------------


def test_one_failure_among_many_healthy_connections_is_told_once() -> None:
    engine = Engine()
    crowd = [e for n in range(200) for e in (*syn(6000 + n, n * 11 + 5, 1 + n / 50),
                                             *answer(6000 + n, n * 11 + 5, 1.0001 + n / 50))]  # fmt: skip
    broken = [*dead_syn(9999, 77, 2), *dead_syn(9999, 77, 3, 11), *dead_syn(9999, 77, 5, 12)]
    (told,) = played(engine, [*crowd, *broken], 12)
    assert told.finding.code == "KERNEL_DROP"
    assert told.finding.fix[-1] == "k8snet trace --from shop/po/cart --to shop/svc/web:80"
    assert told.flow is not None
    assert (told.flow.client.pod, told.flow.server.service) == ("shop/cart", "shop/web")
    assert told.seconds == pytest.approx(3.0, abs=0.01), "it waited for a SYN whose rules are traced, in vain"
    assert (engine.counts.connections, engine.counts.answered) == (201, 200)


def test_a_connection_that_comes_through_after_it_was_given_up_is_told_as_slow() -> None:
    engine = Engine()
    tries = [*dead_syn(9999, 77, 1), *dead_syn(9999, 77, 2, 11), *dead_syn(9999, 77, 4, 12)]
    story = [*tries, *syn(9999, 77, 8, ip_id=13), *answer(9999, 77, 8.0001)]
    told = played(engine, story, 10)
    assert codes(told) == ["KERNEL_DROP", "SLOW_CONNECT"]
    assert told[-1].seconds == pytest.approx(7.0, abs=0.01)
    assert "nf_hook_slow" in " ".join(told[-1].finding.evidence)
    assert engine.counts.connections == 1


def test_a_syn_that_was_lost_once_makes_a_slow_connect() -> None:
    (told,) = played(Engine(), [*syn(700, 3, 1), *syn(700, 3, 2, ip_id=9), *answer(700, 3, 2.0001)], 6)
    assert told.finding.code == "SLOW_CONNECT"
    assert told.seconds == pytest.approx(1.0, abs=0.01)


def test_a_refusal_is_told_at_once() -> None:
    refused = drop(f"{CART_IP}:701 > {BACKEND}", WEB, "eth0", NO_SOCKET, "tcp_v4_rcv", us=us(1.00004), seq=3, ip_id=701)
    told = played(Engine(), [*syn(701, 3, 1), refused, *answer(701, 3, 1.0001, flags=0x14)], 1.3)
    assert codes(told) == ["NOT_LISTENING"]
    assert told[0].finding.where.pod == "shop/web-1"


def test_a_silent_server_is_told_after_the_wait() -> None:
    engine = Engine(Limits(wait=2.0))
    silent = [*syn(702, 3, 1), *syn(702, 3, 2, ip_id=9)]
    assert played(engine, silent, 3) == []
    told = engine.tick(round(3.4 * SECOND), surroundings())
    assert codes(told) == ["NO_REPLY"]


def test_an_answer_that_dies_on_its_way_is_told() -> None:
    client = f"{CART_IP}:703"
    lost = drop(f"{BACKEND} > {client}", NODE, "veth-web-1", 16, "ip_rcv_finish_core", flags=0x12, seq=7703, ack=4,
                ip_id=0, us=us(1.0002))  # fmt: skip
    told = played(Engine(), [*syn(703, 3, 1), *answer(703, 3, 1.0001, hops=2), lost], 6)
    assert codes(told) == ["RP_FILTER"]


def test_data_of_a_standing_connection_that_dies_again_and_again_is_told() -> None:
    dying = [drop(f"{CART_IP}:704 > {BACKEND}", NODE, "veth-web-1", NETFILTER_DROP, "nf_hook_slow", flags=0x18,
                  payload=100, seq=50, ip_id=n, us=us(1 + n / 3)) for n in range(1, 5)]  # fmt: skip
    told = played(Engine(), dying, 4)
    assert codes(told)[:1] == ["KERNEL_DROP"]


def test_a_datagram_that_nobody_could_take_is_told_and_one_to_everybody_is_not() -> None:
    udp = {"protocol": socket.IPPROTO_UDP, "payload": 60}
    full = drop(f"{CART_IP}:705 > 10.244.1.11:9000", WEB, "eth0", 64, "udp_queue_rcv_one_skb", us=us(1), **udp)
    mdns = drop(f"{CART_IP}:5353 > 224.0.0.251:5353", WEB, "eth0", NO_SOCKET, "__udp4_lib_rcv", us=us(1), **udp)
    late = drop("10.244.1.11:9000 > 10.244.1.10:45000", CART, "eth0", NO_SOCKET, "__udp4_lib_rcv", us=us(1), **udp)
    assert codes(played(Engine(), [full, mdns, late], 3)) == ["UDP_BUFFER_FULL"]


def test_an_icmp_error_that_refuses_a_syn_belongs_to_it() -> None:
    client = f"{CART_IP}:706"
    told = [
        *syn(706, 3, 1, hops=2),
        *(
            event(probe, f"{client} > {VIP}", netns, dev, seq=3, ip_id=706, encap=Encap.ICMP_ERROR, icmp_type=3,
                  icmp_code=1, outer=icmp_header("10.244.1.1", CART_IP), us=us(1.0001) + n)
            for n, (probe, netns, dev) in enumerate(((ProbeId.NET_DEV_QUEUE, NODE, "veth-cart"),
                                                     (ProbeId.NETIF_RECEIVE_SKB, CART, "eth0")))
        ),
    ]  # fmt: skip
    found = played(Engine(), told, 2)
    assert len(found) == 1
    assert found[0].finding.severity is Severity.FAIL


# --- resets and retransmissions ---------------------------------------------------------------------------------------


def reset_at(way: str, netns: int, state: int, at: float) -> Event:
    return event(ProbeId.TCP_RECEIVE_RESET, way, netns, "", code=state, us=us(at), flags=0, skb=0)


def sent_reset(way: str, netns: int, at: float, *, skb: int = 0) -> Event:
    return event(ProbeId.TCP_SEND_RESET, way, netns, "", us=us(at), skb=skb)


def test_a_standing_connection_that_its_server_resets_is_told() -> None:
    client = f"{CART_IP}:40000"
    (told,) = played(
        Engine(), [sent_reset(f"{BACKEND} > {client}", WEB, 1), reset_at(f"{client} > {VIP}", CART, 1, 1)], 2
    )
    assert told.finding.code == "CONNECTION_RESET"
    assert told.finding.where.pod == "shop/web-1"
    assert told.flow is not None
    assert told.flow.server.service == "shop/web"


@pytest.mark.parametrize("state", [2, 4, 5, 7, 8, 9], ids=lambda n: f"state-{n}")
def test_a_reset_of_what_was_over_or_had_not_begun_is_none(state: int) -> None:
    assert played(Engine(), [reset_at(f"{CART_IP}:40000 > {VIP}", CART, state, 1)], 2) == []


def test_a_client_that_hangs_up_hard_is_none() -> None:
    client = f"{CART_IP}:40000"
    hung_up = [sent_reset(f"{client} > {VIP}", CART, 1), reset_at(f"{BACKEND} > {client}", WEB, 1, 1)]
    assert played(Engine(), hung_up, 2) == []


def resent(at: float, seq: int, state: int = 1) -> Event:
    return event(ProbeId.TCP_RETRANSMIT_SKB, f"{CART_IP}:40000 > {VIP}", CART, "", seq=seq, code=state, us=us(at))


def test_a_segment_that_is_sent_again_and_again_is_told_once() -> None:
    told = played(Engine(), [resent(1 + t, 99) for t in (0.2, 0.6, 1.4, 3.0, 6.2, 12.6)], 15)
    assert codes(told) == ["RETRANSMIT_BURST"]
    assert "4 times in 2.8 s" in told[0].finding.title


def test_a_burst_of_different_segments_is_told_and_a_few_are_not() -> None:
    few = [resent(1 + n / 10, n) for n in range(40)]
    assert played(Engine(), few, 8) == []
    assert codes(played(Engine(), [resent(1 + n / 100, n) for n in range(80)], 8)) == ["RETRANSMIT_BURST"]


def test_a_handshakes_retransmissions_are_the_handshakes_business() -> None:
    assert played(Engine(), [resent(1 + n, 99, state=2) for n in range(9)], 12) == []


# --- the node ---------------------------------------------------------------------------------------------------------


def test_a_table_that_is_nearly_full_is_told_once_a_minute() -> None:
    engine = Engine()
    full = {NODE: {"net.netfilter.nf_conntrack_count": 95, "net.netfilter.nf_conntrack_max": 100}}
    assert codes(played(engine, [], 5, settings=full)) == ["CT_TABLE_PRESSURE"]
    assert codes(engine.tick(70 * SECOND, surroundings(settings=full))) == ["CT_TABLE_PRESSURE"]


def test_a_table_with_room_is_none() -> None:
    half = {NODE: {"net.netfilter.nf_conntrack_count": 50, "net.netfilter.nf_conntrack_max": 100}}
    assert played(Engine(), [], 1, settings=half, rises={NODE: {"conntrack.found": 3}}) == []


def test_rising_counters_are_told() -> None:
    rises = {NODE: {"conntrack.early_drop": 2, "conntrack.found": 900}}
    assert sorted(codes(played(Engine(), [], 1, rises=rises))) == ["CT_TABLE_PRESSURE", "SNAT_PORT_PRESSURE"]


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_table_is_bounded_and_what_had_to_go_is_counted_and_never_judged() -> None:
    engine = Engine(Limits(flows=100))
    flood = [e for n in range(1000) for e in syn(10_000 + n, n + 1, 1 + n / 10_000)]
    told = played(engine, flood, 8)
    assert engine.counts.evicted >= 900 - 10
    assert len(told) + engine.counts.evicted == 1000
    assert set(codes(told)) == {"NO_REPLY"}


def test_of_one_connection_few_records_are_kept() -> None:
    kept = Table(10)
    for n in range(500):
        record = record_of(syn(707, 3, 1 + n / 1000, ip_id=n + 1)[0])
        kept.take(glance(record), record)
    (bag,) = kept
    assert len(bag.records) == table.KEPT


def test_what_was_judged_is_forgotten_after_a_while() -> None:
    engine = Engine()
    assert codes(played(engine, syn(708, 3, 1), 6)) == ["NO_REPLY"]
    assert engine.counts.flows == 1
    engine.tick(200 * SECOND, surroundings())
    assert engine.counts.flows == 0


def test_broken_records_are_counted_and_nothing_else() -> None:
    engine = Engine()
    engine.feed([b"", b"\0" * 95, record_of(syn(709, 3, 1)[0])[:-1]])
    assert engine.counts.lost == 3
    with pytest.raises(BadRecordError):
        glance(b"short")


# --- losses and samples -----------------------------------------------------------------------------------------------


def test_nothing_is_concluded_from_absence_when_events_were_lost() -> None:
    engine = Engine()
    engine.feed(map(record_of, [*syn(710, 3, 1), *dead_syn(711, 4, 1)]))
    engine.lose(5)
    told = engine.tick(6 * SECOND, surroundings())
    assert codes(told) == ["KERNEL_DROP"]
    assert engine.counts.unjudged == 1
    assert played(engine, [], 1) == []


def test_what_begins_after_the_loss_is_judged_as_ever() -> None:
    engine = Engine()
    engine.lose(5)
    assert codes(played(engine, syn(710, 3, 1), 6)) == ["NO_REPLY"]


def test_connections_that_are_sampled_out_in_the_middle_are_forgotten() -> None:
    engine = Engine()
    numbers = numbers_of(400)
    for n, seq in enumerate(numbers):
        engine.feed(map(record_of, syn(11_000 + n, seq, 1)))
    engine.sample(3)
    for n, seq in enumerate(numbers):
        if is_kept(seq, 3):  # of the others the kernel reports nothing any more
            engine.feed(map(record_of, answer(11_000 + n, seq, 1.1)))
    assert engine.tick(8 * SECOND, surroundings()) == []
    assert engine.counts.one_in == 8
    assert 20 < engine.counts.answered < 90  # an eighth of 400


def test_a_connection_is_kept_or_left_out_as_a_whole() -> None:
    for port, seq in ((12_000, 12345), (12_001, 0xFFFF_FFFF), (12_002, 987_654_321)):
        packets = [*syn(port, seq, 1), *answer(port, seq, 1.1), *answer(port, seq, 1.1, flags=0x14)]
        assert {number_of(glance(record_of(e))) for e in packets} == {seq}


def test_a_glance_sees_what_the_decoder_sees() -> None:
    one = drop("10.1.2.3:4 > 10.5.6.7:8", 99, "eth0", 7, "tcp_v4_rcv", payload=55, seq=1, ack=2, us=3, code=-5,
               status=0x1108, pkt_type=3, ifindex=17, flags=0x1F)  # fmt: skip
    seen = glance(record_of(one))
    assert one.packet is not None
    assert seen[:12] == (one.ktime_ns, 99, 17, -5, 1, 2, 0x1108, 55, 0x1F, 3, one.probe, one.encap)
    assert (seen.saddr[:4], seen.daddr[:4]) == (one.packet.saddr.packed, one.packet.daddr.packed)
    assert seen[-3:] == one.packet[2:]


def test_over_budget_it_looks_at_fewer_and_after_a_calm_while_at_more_again() -> None:
    budget, events, shifts = Budget(1000, 0.5), 0, []
    for second in range(1, 60):
        events += 9000 >> budget.shift if second < 20 else 100
        shifts.append(budget.after(float(second), events, 0.0, lost=False))
    assert max(shifts) == 4, "9,000 a second are 562 when of 16 one is looked at"
    assert shifts[18] == shifts[5] == 4
    assert shifts[-1] < 4
    assert sorted(shifts[20:], reverse=True) == shifts[20:]


def test_a_loss_makes_it_look_at_fewer_at_once() -> None:
    budget = Budget(1000, 0.5)
    assert budget.after(1.0, 10, 0.0, lost=False) == 0
    assert budget.after(1.1, 20, 0.0, lost=True) == 1
    assert budget.why == "events were lost"


def test_over_its_share_of_the_processor_it_looks_at_fewer_and_says_that() -> None:
    budget, cpu, shifts = Budget(1000, 0.25), 0.0, []
    for tenth in range(1, 1200):
        cpu += 0.1 * (0.9 / (1 << budget.shift) if tenth < 400 else 0.02)
        shifts.append(budget.after(tenth / 10, 100 * tenth // 10, cpu, lost=False))
    assert max(shifts) == shifts[398] == 2, "0.9 of a processor are 0.225 when of 4 one is looked at"
    assert budget.why == "over 25% of a processor"
    assert shifts[-1] == 0


def test_a_second_of_work_once_is_not_over_the_share_of_the_processor() -> None:
    budget, cpu = Budget(1000, 0.25), 0.0
    for tenth in range(1, 200):
        cpu += 0.1 if 100 <= tenth < 110 else 0.001
        assert budget.after(tenth / 10, 0, cpu, lost=False) == 0
