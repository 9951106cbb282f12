"""What an agent writes: values that come back as they were, lines that fit, and nothing of another node's."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import tracemalloc
import zlib
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8snet.agent import lines, report, values
from k8snet.agent.report import NEW_POD_NS, Reporter, Text, part_of
from k8snet.agent.values import BadValueError, plain
from k8snet.cli import agent
from k8snet.cluster import interfaces, inventory
from k8snet.event import LAYOUT
from k8snet.findings.case import Surroundings, Wire
from k8snet.kernel import conntrack, devices, rtnetlink, rules, ruletrace
from k8snet.kernel.netns import Netns
from k8snet.lab.cluster import INVENTORY
from unit import story
from unit.story import CART, NODE, drop, out
from unit.streams import NATTED, REQUEST, record_of, stream, syn, world

WRITTEN = (
    interfaces.Owner, inventory.Pod, inventory.Service, inventory.NetworkPolicy, Wire, devices.Attached,
    conntrack.Rivals, conntrack.Fill, rtnetlink.RouteQuestion, rtnetlink.Route, rtnetlink.Neighbour, rtnetlink.Link,
    IPv4Interface, IPv6Interface, rules.NamedRule, ruletrace.RuleStep,
)  # fmt: skip


def back(kind: type, value: object) -> object:
    return values.read(kind, json.loads(json.dumps(plain(value))))


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_value_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    value = data.draw(st.from_type(kind))
    assert back(kind, value) == value


def test_a_request_with_its_names_comes_back() -> None:
    request = replace(REQUEST, inventory=INVENTORY)
    assert back(type(request), request) == request


def test_mappings_keep_keys_that_are_no_text() -> None:
    facts = lines.Facts(
        settings={7: {"net.ipv4.ip_forward": 1}},
        listening={(7, "tcp", 80): 0},
        routes={rtnetlink.RouteQuestion(7, story.addresses("10.0.0.1")[0]): rtnetlink.Route(101)},
        ports=frozenset({40_000}),
    )
    assert lines.understood(lines.written(facts)) == facts


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.mark.parametrize("kind", [*lines.KINDS.values()], ids=lambda kind: kind.__name__)
@given(st.data())
def test_what_is_no_such_line_is_a_damaged_one_and_nothing_else(kind: type, data: st.DataObject) -> None:
    names = [field.name for field in fields(kind)]
    given_fields = data.draw(st.dictionaries(st.sampled_from(names), ANYTHING))
    text = json.dumps({"line": kind.__name__.lower()} | given_fields, separators=(",", ":"))
    try:
        line = lines.understood(text)
    except lines.BadLineError:
        line = None
    assert line is None or isinstance(line, kind)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [(int, True), (int, 1.0), (int, "1"), (str, 1), (bool, 1), (tuple[int, ...], {}), (tuple[int, str], [1]),
     (dict[int, str], [[1]]), (dict[int, str], {"1": "a"}), (interfaces.Role, "king"), (rtnetlink.RouteQuestion, {}),
     (IPv4Address, "10.0.0.256"), (rtnetlink.RouteQuestion, {"netns": 1, "to": 5})],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_refused(kind: Any, raw: object) -> None:
    with pytest.raises(BadValueError):
        values.read(kind, raw)


def test_facts_have_the_fields_of_surroundings() -> None:
    known = {field.name for field in fields(Surroundings)}
    assert {field.name for field in fields(lines.Facts)} - known == {
        "request", "parties", "ports", "rule_naming", "notes", "expected",
    }  # fmt: skip
    # What is not sent: the kernel's names (`names` lines), what the judgement finds out itself.
    assert known - {field.name for field in fields(lines.Facts)} == {"kernel", "watched", "lost", "queries"}
    assert set(report._AROUND) <= known


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_full_batch_is_no_line_that_a_runtime_cuts() -> None:
    chance = random.Random(1)  # noqa: S311 (nothing is to be kept secret)
    events = [e for n in range(60) for e in syn(us=n)[0]]
    changed = (
        e._replace(seq=chance.getrandbits(32), skb=chance.getrandbits(48), cpu=chance.getrandbits(6)) for e in events
    )
    records = [record_of(e._replace(ktime_ns=e.ktime_ns + chance.getrandbits(40))) for e in changed]
    line = lines.packed(0, (records * 2)[: lines.BATCH])
    assert line.count == lines.BATCH
    assert len(lines.written(line)) < 16 * 1024


def test_records_come_back() -> None:
    records = [record_of(e) for e in syn()[0]]
    assert list(lines.unpacked(lines.packed(0, records))) == records


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(lines.Events(0, 2, lines.packed(0, [bytes(LAYOUT.size)]).records), id="too-few"),
        pytest.param(lines.Events(0, 0, lines.packed(0, [bytes(LAYOUT.size)]).records), id="too-many"),
        pytest.param(lines.Events(0, 1, base64.b64encode(zlib.compress(bytes(1 << 24))).decode()), id="bomb"),
        pytest.param(lines.Events(0, 1 << 40, ""), id="promise"),
        pytest.param(lines.Events(0, -1, ""), id="negative"),
        pytest.param(lines.Events(0, 1, "not base64"), id="not-base64"),
        pytest.param(lines.Events(0, 1, base64.b64encode(b"not zlib").decode()), id="not-zlib"),
    ],
)
def test_records_that_are_not_what_was_promised_are_refused(line: lines.Events) -> None:
    with pytest.raises(lines.BadLineError):
        list(lines.unpacked(line))


def test_few_bytes_that_grow_to_many_are_never_all_unpacked() -> None:
    line = lines.Events(0, 1, base64.b64encode(zlib.compress(bytes(1 << 26))).decode())
    tracemalloc.start()
    with pytest.raises(lines.BadLineError):
        lines.unpacked(line)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20


# --- the agent -------------------------------------------------------------------------------------------------------


def written(text: str) -> list[lines.Line]:
    found = [lines.understood(line) for line in text.splitlines()]
    return [line for line in found if line is not None]


def test_the_lines_are_in_the_order_that_a_reader_needs() -> None:
    kinds = [type(line).__name__.lower() for line in written(stream("node-1", syn()[0]))]
    assert kinds[0] == "hello"
    assert kinds[-1] == "bye"
    assert kinds.index("ready") < kinds.index("events")


def test_the_names_of_a_drop_come_before_it() -> None:
    dead = drop(NATTED, NODE, "eth0", story.NETFILTER_DROP, "nft_do_chain")
    found = written(stream("node-1", [*syn()[0], dead]))
    names = next(n for n, line in enumerate(found) if isinstance(line, lines.Names))
    assert names < next(n for n, line in enumerate(found) if isinstance(line, lines.Events))
    assert found[names] == lines.Names(
        {story.NETFILTER_DROP: "NETFILTER_DROP"}, {story.at("nft_do_chain"): "nft_do_chain"}
    )


def begun() -> tuple[Reporter, io.StringIO]:
    text = io.StringIO()
    reporter = Reporter(Text(text), story.Kernel())
    reporter.begun(world("node-1"), CART, {})
    return reporter, text


def counted(text: io.StringIO) -> int:
    return sum(line.count for line in written(text.getvalue()) if isinstance(line, lines.Events))


def test_what_another_node_of_the_same_kernel_does_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, text = begun()
    stranger = out(NATTED, 4711, "eth0")
    reporter.saw(stranger, record_of(stranger))
    monkeypatch.setattr("time.monotonic_ns", lambda: stranger.ktime_ns + NEW_POD_NS)
    reporter.moment(world("node-1"), ())
    newer = world("node-1")
    reporter.moment(replace(newer, netns=newer.netns | {4711: Netns(4711, "/run/netns/new")}), ())
    assert counted(text) == 0


def test_a_new_pods_first_packets_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, text = begun()
    first = out(NATTED, 4711, "eth0")
    reporter.saw(first, record_of(first))
    monkeypatch.setattr("time.monotonic_ns", lambda: first.ktime_ns + NEW_POD_NS // 2)
    reporter.moment(world("node-1"), ())
    assert counted(text) == 0
    newer = world("node-1")
    reporter.moment(replace(newer, netns=newer.netns | {4711: Netns(4711, "/run/netns/new")}), ())
    assert counted(text) == 1


def test_of_a_cluster_only_what_the_flow_touches_is_written() -> None:
    part = part_of(INVENTORY, (), REQUEST)
    assert {pod.key for pod in part.pods} == {"shop/cart", "shop/web-3"}
    assert {service.key for service in part.services} == {"shop/remote"}
    assert {node.name for node in part.nodes} == {"node-1", "node-2"}


def test_on_other_nodes_the_clients_node_may_stand_for_it() -> None:
    afar = agent._as_seen_from_afar(replace(REQUEST, inventory=INVENTORY))
    assert [str(address) for address in afar.client.addresses] == ["10.244.1.10", "192.168.50.1"]


def test_a_pipe_tells_its_end_and_dev_null_does_not() -> None:
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        assert agent._tells_its_end(reading)
        assert not agent._tells_its_end(null)
    finally:
        for fd in (reading, writing, null):
            os.close(fd)
