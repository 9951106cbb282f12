"""The streams of two agents, joined: the report of one machine, and no more certainty than there is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8snet.agent import lines
from k8snet.agent.clock import shift
from k8snet.agent.join import join
from k8snet.errors import K8snetError
from k8snet.event import Event
from k8snet.report import Expected, Report, Step, Verdict, Way
from unit import story
from unit.story import CART, NODE, drop, into, out
from unit.streams import AHEAD_NS, FAR, NATTED, VIP, WIRE_NS, stream, syn, syn_ack


def healthy() -> tuple[str, str]:
    (here, there), (back_here, back_there) = syn(), syn_ack()
    return stream("node-1", [*here, *back_here]), stream("node-2", [*there, *back_there])


ONE, TWO = healthy()


def joined(*streams: str) -> Report:
    return join([text.splitlines() for text in streams])


def said(report: Report) -> str:
    return "\n".join(report.notes)


def way(report: Report, direction: str) -> list[tuple[str | None, str | None, str | None, str, int]]:
    (path,) = (p for p in report.paths if p.direction == direction)
    return [(h.node, h.pod, h.device, h.direction, h.netns) for h in path.hops if h.device]


# --- one report ------------------------------------------------------------------------------------------------------


def test_both_halves_are_one_way_from_end_to_end() -> None:
    report = joined(ONE, TWO)
    assert report.verdict is Verdict.DELIVERED
    assert (report.findings, report.lost, report.connections, report.answered) == ((), {}, 1, 1)
    assert way(report, "request") == [
        ("node-1", "shop/cart", "eth0", "out", CART),
        ("node-1", None, "veth-cart", "in", NODE),
        ("node-1", None, "eth0", "out", NODE),
        ("node-2", None, "eth0", "in", NODE),
        ("node-2", None, "veth-web-3", "out", NODE),
        ("node-2", "shop/web-3", "eth0", "in", 10),
    ]
    assert [path.ended for path in report.paths] == ["delivered", "delivered"]
    assert report.flow.same_node is False


def test_the_order_of_the_streams_does_not_matter() -> None:
    assert joined(TWO, ONE) == joined(ONE, TWO)


def test_times_of_both_nodes_are_of_one_clock() -> None:
    (path, _) = joined(ONE, TWO).paths
    times = [hop.us for hop in path.hops]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(130, abs=1)  # 70 us on the wire, both ways alike


def test_the_difference_of_the_clocks_is_shown() -> None:
    assert (
        "node-2's clock is 3600000.000 ms ahead of node-1's, ± 0.070 ms, by packets that crossed: 1 there, 1 back"
        in said(joined(ONE, TWO))
    )


def test_one_stream_alone_is_judged_as_one_node() -> None:
    report = joined(ONE)
    assert report.verdict is Verdict.DELIVERED
    assert {hop.node for path in report.paths for hop in path.hops} == {"node-1"}


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_what_one_agent_has_foreseen_counts_as_far_as_it_looks(node: str) -> None:
    """In the lab, where nodes share a kernel, it foresees more than it reports."""
    steps = (Step(CART, "node-1", "shop/cart", "eth0", "out"), Step(NODE, node, None, "veth-cart", "in"))
    foreseen = Expected("served", "shop/remote", 1, (Way(None, steps),))
    *before, bye = ONE.splitlines()
    told = [*before, lines.written(lines.Facts(expected=foreseen)), bye]
    assert (join([told]).expected is None) == (node == "node-2")
    assert join([told, TWO.splitlines()]).expected is None


def test_a_number_of_one_kernel_is_not_read_as_the_others() -> None:
    """Netns 1 is both nodes' own: settings of one say nothing of the other; reason 12 means what its kernel says."""
    here, there = syn()
    dead = drop(
        NATTED, NODE, "eth0", story.NETFILTER_DROP, "nft_do_chain", us=there[0].ktime_ns // 1000 + 5, ip_id=5189
    )
    two = stream("node-2", [there[0], dead], settings={NODE: {"net.ipv4.ip_forward": 1}})
    one = stream("node-1", here, settings={NODE: {"net.ipv4.ip_forward": 0}})
    other_kernel = two.replace('"reasons":[[12,"NETFILTER_DROP"]]', '"reasons":[[12,"IP_RPFILTER"]]')
    assert other_kernel != two
    (finding,) = joined(one, two).findings
    assert (finding.code, finding.where.node, finding.where.netns) == ("KERNEL_DROP", "node-2", NODE)
    assert finding.fix[0] == "# On node-2:"
    (finding,) = joined(one, other_kernel).findings
    assert finding.code == "RP_FILTER"


def test_three_streams_are_refused() -> None:
    with pytest.raises(K8snetError, match="3 streams"):
        joined(ONE, TWO, TWO)


# --- lost between the nodes ------------------------------------------------------------------------------------------


def lost_on_the_wire() -> list[Event]:
    return [*syn(us=2_000_000)[0], *syn(us=3_000_000, ip_id=5190)[0]]


def test_what_left_one_node_and_never_came_in_at_the_other_is_said_so() -> None:
    report = joined(stream("node-1", lost_on_the_wire()), stream("node-2", []))
    (finding,) = report.findings
    assert finding.code == "LOST_BETWEEN_NODES"
    assert (finding.where.node, finding.where.device, finding.direction) == ("node-1", "eth0", "request")
    assert "never reached node-2" in finding.title
    assert report.verdict is Verdict.NO_REPLY
    assert "compared by their wall clocks" in said(report)


def test_clocks_are_nothing_to_speak_of_when_an_endpoint_on_the_clients_node_has_answered() -> None:
    here, back = f"{story.CLIENT} > {story.BACKEND}", f"{story.BACKEND} > {story.CLIENT}"
    entry = {"orig": f"{story.CLIENT} > {VIP}", "reply": back, "status": story.CONFIRMED}
    answer = {"flags": 0x12, "ip_id": 0, "seq": 7000}
    near = [
        out(f"{story.CLIENT} > {VIP}", CART, "eth0"),
        into(f"{story.CLIENT} > {VIP}", NODE, "veth-cart"),
        out(here, NODE, "veth-web-1", **entry),
        into(here, story.WEB, "eth0"),
        out(back, story.WEB, "eth0", **answer),
        out(f"{VIP} > {story.CLIENT}", NODE, "veth-cart", **answer, **entry | {"info": 3}),
        into(f"{VIP} > {story.CLIENT}", CART, "eth0", **answer),
    ]
    report = joined(stream("node-1", near), stream("node-2", []))
    assert report.verdict is Verdict.DELIVERED
    assert "clock" not in said(report)


def test_the_answer_too() -> None:
    here, there = syn(us=2_000_000)
    answer = syn_ack(us=2_000_400)[1]
    report = joined(stream("node-1", here), stream("node-2", [*there, *answer]))
    (finding,) = report.findings
    assert (finding.code, finding.where.node, finding.direction) == ("LOST_BETWEEN_NODES", "node-2", "reply")
    assert report.verdict is Verdict.REPLY_LOST
    assert "packets crossed from node-1 to node-2 only" in said(report)


def test_one_node_alone_says_only_that_it_left() -> None:
    assert [f.code for f in joined(stream("node-1", lost_on_the_wire())).findings] == ["LEFT_NODE"]


def test_where_events_were_lost_nothing_is_said_of_what_was_not_seen() -> None:
    report = joined(stream("node-1", lost_on_the_wire()), stream("node-2", [], lost=1))
    assert report.lost == {"kfree_skb on node-2": 1}
    assert [f.code for f in report.findings] == ["LAST_SEEN"]


def test_a_node_that_was_not_watched_at_that_time_did_not_miss_it() -> None:
    report = joined(stream("node-1", lost_on_the_wire()), stream("node-2", [], until_us=2_500_000))
    assert [f.code for f in report.findings] == ["LEFT_NODE"]


def test_a_node_whose_stream_broke_off_did_not_miss_it() -> None:
    cut = "".join(stream("node-2", []).splitlines(keepends=True)[:-1])
    report = joined(stream("node-1", lost_on_the_wire()), cut)
    assert [f.code for f in report.findings] == ["LAST_SEEN"]
    assert report.lost == {"end of the stream on node-2": 1}
    assert "the stream of node-2 broke off after 0 events: it ended without a last word" in said(report)


def test_what_came_in_at_the_other_node_was_not_lost_before_it() -> None:
    here, there = syn()
    report = joined(stream("node-1", here), stream("node-2", there[:1]))
    assert [f.code for f in report.findings] == ["LAST_SEEN"]


# --- streams that break ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(ONE)), st.integers(0, len(TWO)))
def test_a_stream_that_breaks_at_any_byte_is_judged_as_far_as_it_goes(first: int, second: int) -> None:
    streams = ONE[:first], TWO[:second]
    try:
        report = joined(*streams)
    except K8snetError as error:
        refused = error.problem
    else:
        refused = ""
        assert not {f.code for f in report.findings} - {"LAST_SEEN", "SLOW_CONNECT"}
        whole = len(ONE.rstrip()) <= first, len(TWO.rstrip()) <= second
        ended = ("end of the stream on node-1", "end of the stream on node-2")
        assert tuple(end not in report.lost for end in ended) == whole
        assert bool(report.lost) == (not all(whole))
    assert refused == "" or "no first line" in refused or "before it said what is traced" in refused


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_line_is_counted_and_costs_no_more_than_itself(data: st.DataObject) -> None:
    text = TWO.splitlines()
    number = data.draw(st.integers(1, len(text) - 1))
    at = data.draw(st.integers(8, len(text[number]) - 1))
    junk = data.draw(st.text('abc{[]",:0', max_size=5))  # without its end, so that it is no line by chance
    text[number] = text[number][:at] + junk
    report = joined(ONE, "\n".join(text))
    assert report.lost["damaged lines on node-2"] == 1
    assert not report.findings


def test_a_stream_may_raise_what_broke_it() -> None:
    def broken() -> Iterator[str]:
        yield from TWO.splitlines()[:3]
        raise ConnectionResetError("connection reset by peer")

    report = join([ONE.splitlines(), broken()])
    assert "broke off after 0 events: connection reset by peer" in said(report)


def test_lines_of_others_and_of_later_versions_are_skipped() -> None:
    mixed = ["k8snet: no names from the API", *TWO.splitlines()[:2], '{"line":"weather","sky":"blue"}', "{}", "",
             *TWO.splitlines()[2:]]  # fmt: skip
    assert join([ONE.splitlines(), mixed]) == joined(ONE, TWO)


def test_a_field_of_a_later_version_is_skipped() -> None:
    assert joined(ONE, TWO.replace('{"line":"hello",', '{"line":"hello","mood":"good",')) == joined(ONE, TWO)


def test_records_that_went_missing_are_counted() -> None:
    kept = [line for line in TWO.splitlines() if not line.startswith('{"line":"events"')]
    assert joined(ONE, "\n".join(kept)).lost == {"events on the way on node-2": 6}


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", TWO.split("\n", 1)[1]], ids=["empty", "prose", "json", "cut"])
def test_what_is_no_agents_output_is_refused(text: str) -> None:
    with pytest.raises(K8snetError, match=r"stream 2 is no agent's"):
        joined(ONE, text)


@pytest.mark.parametrize("change", [{"version": 2}, {"layout": "296-00000000"}], ids=["version", "layout"])
def test_an_agent_that_speaks_another_language_is_refused(change: dict[str, object]) -> None:
    hello = json.loads(TWO.splitlines()[0])
    with pytest.raises(K8snetError, match="speaks another language") as refused:
        join([ONE.splitlines(), [json.dumps(hello | change, separators=(",", ":")), *TWO.splitlines()[1:]]])
    assert "same version" in refused.value.remedy


def test_what_an_agent_could_not_do_is_what_the_join_says() -> None:
    error = lines.written(lines.Error("k8snet agent needs root", "sudo k8snet agent"))
    with pytest.raises(K8snetError, match="on node-2: k8snet agent needs root"):
        join([ONE.splitlines(), [TWO.splitlines()[0], error]])


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_request_and_reply_bound_the_difference_from_both_sides() -> None:
    (here, there), (back_here, back_there) = syn(), syn_ack()
    found = shift([*here, *back_here], [*there, *back_there], 0)
    assert abs(found.ns - AHEAD_NS) <= WIRE_NS
    assert found.within_ns == WIRE_NS
    assert (found.there, found.back) == (1, 1)


def test_the_quickest_packets_decide() -> None:
    (here, there), (back_here, back_there) = syn(), syn_ack()
    late_here, late_there = syn(us=9000, ip_id=77)
    late_there = [e._replace(ktime_ns=e.ktime_ns + 5_000_000) for e in late_there]
    found = shift([*here, *back_here, *late_here], [*there, *back_there, *late_there], 0)
    assert found.within_ns == WIRE_NS
    assert found.there == 2


@pytest.mark.parametrize("way", ["there", "back"])
def test_one_way_only_gives_an_order_and_no_more(way: str) -> None:
    here, there = syn() if way == "there" else syn_ack()
    found = shift(here, there, 0)
    assert found.within_ns is None
    assert "the order is known, not the difference" in found.sentence("node-1", "node-2")
    theirs = [e.ktime_ns - found.ns for e in there]
    ours = [e.ktime_ns for e in here]
    assert max(ours) < min(theirs) if way == "there" else max(theirs) < min(ours)


def test_without_a_common_packet_there_are_only_the_wall_clocks() -> None:
    found = shift(syn()[0], [], 5_000_000)
    assert (found.ns, found.measured) == (5_000_000, False)
    assert "wall clocks, node-2's clock is 5.000 ms ahead of node-1's" in found.sentence("node-1", "node-2")


def test_a_packet_that_looks_like_another_says_nothing_of_the_clocks() -> None:
    """A retransmission of IPv6 has the same bytes: which one came in is not known."""
    here, there = syn()
    again = [e._replace(ktime_ns=e.ktime_ns + 1_000_000_000) for e in here]
    assert not shift([*here, *again], there, 0).measured


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**7), st.integers(1, 10**7))
def test_the_truth_is_within_the_bounds(ahead: int, there_ns: int, back_ns: int) -> None:
    begun = 10**16
    sent = out(NATTED, NODE, "eth0")._replace(ktime_ns=begun)
    received = into(NATTED, NODE, "eth0")._replace(ktime_ns=begun + there_ns + ahead)
    back = {"flags": 0x12, "seq": 7000}
    answered = out(f"{FAR} > {story.CLIENT}", NODE, "eth0", **back)._replace(ktime_ns=received.ktime_ns + 1000)
    heard = into(f"{FAR} > {story.CLIENT}", NODE, "eth0", **back)
    heard = heard._replace(ktime_ns=answered.ktime_ns - ahead + back_ns)
    found = shift([sent, heard], [received, answered], 0)
    assert found.within_ns is not None
    assert abs(found.ns - ahead) <= found.within_ns
    # Between nodes nothing comes in before it has left.
    assert sent.ktime_ns <= received.ktime_ns - found.ns <= answered.ktime_ns - found.ns <= heard.ktime_ns


def test_the_other_nodes_service_address_is_known_though_its_packets_never_show_it() -> None:
    assert joined(ONE, TWO).flow.server.service == "shop/remote"
    assert VIP.split(":")[0] not in TWO.split('"line":"events"')[1].split("\n")[0]


def test_findings_stay_what_one_machine_would_say() -> None:
    (here, there), (back_here, back_there) = syn(), syn_ack()
    dead = replace_drop(back_here[0])
    two_machines = joined(stream("node-1", [*here, back_here[0], dead]), stream("node-2", [*there, *back_there]))
    assert [f.code for f in two_machines.findings] == ["RP_FILTER"]
    assert two_machines.findings[0].where.node == "node-1"


def replace_drop(event: Event) -> Event:
    gone = drop(f"{FAR} > {story.CLIENT}", NODE, "eth0", story.IP_RPFILTER, "ip_rcv_finish_core", flags=0x12, ip_id=0)
    return gone._replace(ktime_ns=event.ktime_ns + 5000, seq=event.seq, skb=event.skb)
