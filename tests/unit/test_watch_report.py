"""What a watch says, as text and as documents: lines, the summary, the published schema."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from k8snet.render.document import dumps_watch
from k8snet.render.text import plain
from k8snet.render.watch import TIMES, JsonLines, Lines, anomaly_lines, next_step, span, summary_lines
from k8snet.report import Party, Severity
from k8snet.watch import report as watch_model
from k8snet.watch.engine import Counts
from k8snet.watch.fold import SECOND, Fold, Told
from k8snet.watch.report import Clock, Cost, Dns, WatchReport, notes_of, worst
from unit.anomalies import POLICY_DROP, anomaly, found, stranger
from unit.reports import EVIL, SERVICE

CLOCK: Final = Clock(datetime(2026, 11, 22, 3, 0, 0, tzinfo=UTC), 0)
SCHEMAS: Final = Path(__file__).parents[2] / "docs" / "schema"
SCHEMA: Final[dict[str, Any]] = json.loads((SCHEMAS / "watch-report.schema.json").read_text("utf-8"))
TRACE: Final[dict[str, Any]] = json.loads((SCHEMAS / "trace-report.schema.json").read_text("utf-8"))
LINE: Final = {"$ref": "#/$defs/WatchAnomaly", "$defs": SCHEMA["$defs"]}
COUNTS: Final = Counts(events=1200, connections=310, answered=269, anomalies=41)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8snet.render.watch.ZONE", UTC)


def first(told: Told | None) -> Told:
    assert told is not None
    return told


def text_of(told: Told) -> list[str]:
    return plain(anomaly_lines(told, CLOCK)).splitlines()


def made(fold: Fold | None = None, counts: Counts = COUNTS, **more: Any) -> WatchReport:
    """A watch of five minutes."""
    fold = fold or folded()
    by_code: dict[str, int] = {code: number for (code, _), number in fold.by_code.items()}
    whole = WatchReport(
        node="node-1",
        pods=12,
        began=CLOCK.written(0),
        seconds=300.0,
        anomalies=worst(fold.entries(), CLOCK),
        by_code=by_code,
        counts=counts,
        dns=None,
        cost=Cost(1.2, 0.4, 61_000_000),
        until=None,
        notes=notes_of((), counts),
    )
    return replace(whole, **more)


def folded() -> Fold:
    """41 connections that a policy drops, and one slow one."""
    fold = Fold()
    for n in range(41):
        fold.add(anomaly(n))
    fold.add(anomaly(50, found("SLOW_CONNECT", Severity.WARN), client="shop/web-1", seconds=3.07))
    return fold


def quiet() -> Fold:
    return Fold()


# --- lines


def test_the_first_line_of_a_code_has_the_fix_below_it() -> None:
    assert text_of(first(Fold().add(anomaly(62)))) == [
        "03:01:02  ✗ shop/cart-7d4f → svc/shop/payments:80  DROPPED on node-1 in FORWARD: the chain's policy is DROP  "
        "FORWARD_POLICY_DROP",
        "            next  iptables-nft -P FORWARD ACCEPT",
    ]


def test_the_next_of_a_code_are_one_line_and_repeats_have_their_number() -> None:
    fold = Fold()
    for at in (0, 1, 2, 3):
        fold.add(anomaly(at))
    [again] = fold.due(300 * SECOND)
    [line] = text_of(again)
    assert f"{TIMES}3 in 5 min, 4 in all  FORWARD_POLICY_DROP" in line
    other = text_of(first(fold.add(anomaly(4, client="shop/other"))))
    assert len(other) == 1
    assert other[0].startswith("03:00:04  ✗ shop/other → ")


def test_what_it_is_about_and_how_long_it_took_stand_in_the_line() -> None:
    [line, _] = text_of(first(Fold().add(anomaly(0, found(), seconds=5.02, subject="web.shop.svc"))))
    assert "NO_REPLY in one line: web.shop.svc (5.0 s)  NO_REPLY" in line


def test_without_names_there_are_addresses_and_the_node_stands_alone() -> None:
    ipv6 = replace(SERVICE, client=Party("fd00::1", 4000), server=Party("fd00::2", 443))
    [line, _] = text_of(first(Fold().add(replace(anomaly(), flow=ipv6))))
    assert "✗ fd00::1 → [fd00::2]:443  " in line
    [line, _] = text_of(first(Fold().add(anomaly(flow=None))))
    assert "✗ node-1  DROPPED" in line


def test_advice_is_the_next_step_where_there_is_no_command() -> None:
    assert next_step(POLICY_DROP) == "iptables-nft -P FORWARD ACCEPT"
    assert next_step(found()) == "k8snet trace --from shop/cart --to shop/svc/payments:80"
    assert next_step(found(fix=("# Look at the server.",))) == "Look at the server."
    assert next_step(found(fix=())) == "docs/findings/NO_REPLY.md"


def test_hostile_names_reach_no_terminal() -> None:
    evil = replace(SERVICE, client=Party("10.0.0.1", 1, pod=EVIL), server=Party("10.0.0.2", 2, service="a/b\x1b[2J\n"))
    told = first(Fold().add(replace(anomaly(0, found(title="x\x1b[31m"), subject="\x07"), flow=evil)))
    stream = io.StringIO()
    Lines(stream, "all").told(told, CLOCK)
    assert all(c.isprintable() or c == "\n" for c in stream.getvalue())
    assert len(stream.getvalue().splitlines()) == 2
    assert plain(summary_lines(made(fold_of(told)))).replace("\n", "").isprintable()


def fold_of(told: Told) -> Fold:
    fold = Fold()
    fold.add(told.anomaly)
    return fold


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0034, "3 ms"), (0.34, "340 ms"), (3.07, "3.1 s"), (44, "44 s"), (300, "5 min"), (90_000, "25 h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


# --- the summary


def test_the_summary_has_the_answer_first_and_what_it_rests_on_last() -> None:
    assert plain(summary_lines(made())).splitlines() == [
        "✗ 42 anomalies of 2 kinds  12 pods, 5 min",
        "",
        f"✗ {TIMES}41  shop/cart-7d4f → svc/shop/payments:80  DROPPED on node-1 in FORWARD: the chain's policy is "
        "DROP  FORWARD_POLICY_DROP",
        "       iptables-nft -P FORWARD ACCEPT",
        f"!  {TIMES}1  shop/web-1 → svc/shop/payments:80  SLOW_CONNECT in one line (3.1 s)  SLOW_CONNECT",
        "       k8snet trace --from shop/cart --to shop/svc/payments:80",
        "",
        "310 connections, 269 answered, 0 events lost, 0.4 % of a CPU, 61 MB",
    ]


def test_a_healthy_node_has_two_lines() -> None:
    report = made(quiet(), replace(COUNTS, anomalies=0))
    assert plain(summary_lines(report)).splitlines() == [
        "✓ nothing was wrong  12 pods, 5 min",
        "",
        "310 connections, 269 answered, 0 events lost, 0.4 % of a CPU, 61 MB",
    ]
    assert (report.failed, report.inconclusive) == (False, False)


def test_a_warning_alone_is_no_failure() -> None:
    fold = Fold()
    fold.add(anomaly(0, found("SLOW_CONNECT", Severity.WARN)))
    report = made(fold)
    assert not report.failed
    assert plain(summary_lines(report)).startswith("! 1 anomaly  12 pods")


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (Counts(), "no connection of these pods was seen"),
        (Counts(flows=3), "3 connections had not come to an end yet"),
        (replace(COUNTS, lost=100), "too many events were lost"),
        (replace(COUNTS, evicted=100), "too many events were lost"),
    ],
    ids=["nothing", "under-way", "lost", "evicted"],
)
def test_what_was_not_seen_is_not_called_well(counts: Counts, why: str) -> None:
    report = made(quiet(), counts)
    assert report.inconclusive
    assert plain(summary_lines(report)).startswith(f"? nothing can be said: {why}")


def test_a_few_lost_events_are_a_note() -> None:
    report = made(quiet(), replace(COUNTS, lost=3, one_in=4))
    assert not report.inconclusive
    text = plain(summary_lines(report))
    assert "note  3 events were lost" in text
    assert "note  at the end one connection of 4 was looked at" in text


def test_what_was_waited_for_is_said() -> None:
    report = made(until="SLOW_CONNECT")
    assert report.failed
    assert plain(summary_lines(report)).startswith("✗ SLOW_CONNECT has come")


# --- documents


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "report",
    [
        made(),
        made(quiet(), Counts()),
        made(until="NO_REPLY", dns=Dns(310, 12, {"NOERROR": 290, "NXDOMAIN": 8}, 5.0), node=None),
        made(notes=("a", "b")),
    ],
    ids=["anomalies", "empty", "dns", "notes"],
)
def test_every_report_is_valid(report: WatchReport) -> None:
    document = json.loads(dumps_watch(report))
    Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(document)
    assert (document["apiVersion"], document["kind"]) == ("k8snet.io/v1alpha1", "WatchReport")


def test_every_line_is_valid_and_safe() -> None:
    fold, stream = Fold(), io.StringIO()
    lines = JsonLines(stream, "all")
    for one in (anomaly(0), anomaly(1, found(), flow=None), anomaly(2, found(title=EVIL), seconds=1.5, subject="a\n")):
        lines.told(first(fold.add(one)), CLOCK)
    for n in range(3000):
        told = fold.add(anomaly(3, flow=stranger(n), client=""))
        if told is not None:
            lines.told(told, CLOCK)
    for told in fold.due(400 * SECOND):
        lines.told(told, CLOCK)
    written = stream.getvalue()
    assert written.isascii()
    documents = [json.loads(line) for line in written.splitlines()]
    for document in documents:
        Draft202012Validator(LINE).validate(document)
    assert documents[2]["finding"]["title"] == EVIL
    assert sum(document["count"] for document in documents) == 3003
    assert [document["shared"] for document in documents].count(True) == 2


def test_a_repeat_says_since_when() -> None:
    fold, stream = Fold(), io.StringIO()
    lines = JsonLines(stream, "all")
    for at in (0, 5, 9):
        fold.add(anomaly(at))
    [told] = fold.due(9 * SECOND + SECOND)
    lines.told(told, CLOCK)
    line = json.loads(stream.getvalue())
    assert (line["count"], line["first"], line["last"]) == (2, "2026-11-22T03:00:00.000Z", "2026-11-22T03:00:09.000Z")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("WatchReport", ["apiVersion", "kind", *(f.name for f in fields(WatchReport))]),
        ("WatchAnomaly", ["apiVersion", "kind", *(f.name for f in fields(watch_model.Seen))]),
        ("Seen", [f.name for f in fields(watch_model.Seen)]),
        ("Counts", [f.name for f in fields(Counts)]),
        ("Dns", [f.name for f in fields(Dns)]),
        ("Cost", [f.name for f in fields(Cost)]),
    ],
)
def test_every_field_is_in_the_schema_and_required_and_no_other(kind: str, names: list[str]) -> None:
    part: dict[str, Any] = SCHEMA if kind == "WatchReport" else SCHEMA["$defs"][kind]
    assert list(part["properties"]) == names
    assert part["required"] == names


def test_what_both_schemas_have_is_the_same() -> None:
    shared = set(SCHEMA["$defs"]) & set(TRACE["$defs"])
    assert {"FlowView", "Party", "Place", "Finding", "FiveTuple"} <= shared
    assert {name: SCHEMA["$defs"][name] for name in shared} == {name: TRACE["$defs"][name] for name in shared}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("counts", "lost"), -1),
        (("anomalies", 0, "count"), 0),
        (("anomalies", 0, "finding", "severity"), "BAD"),
        (("by_code",), {"no code": 1}),
        (("until",), 3),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    whole: Any = json.loads(dumps_watch(made()))
    part = whole
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert list(Draft202012Validator(SCHEMA).iter_errors(whole))


def test_the_wall_clock_is_the_kernels() -> None:
    clock = Clock(datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC), 5_000_000_000)
    assert clock.written(6_500_000_000) == "2026-11-23T00:00:00.500Z"
    assert clock.written(4_000_000_000) == "2026-11-22T23:59:58.000Z"
