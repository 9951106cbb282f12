"""What a person reads: whole texts, written out in tests/golden/render, and what holds for all of them.

`K8SNET_UPDATE_GOLDEN=1` writes the golden texts anew; read the diff before you believe it.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8snet.render.cells import cells, cut, wrap
from k8snet.render.safe import inert
from k8snet.render.text import expected_lines, plain, render, show, styled
from k8snet.report import Finding, Hop, Place, Report, Severity, Verdict
from k8snet.report import Path as Way
from unit.reports import (
    ALL,
    ANSWER,
    CLIENT,
    SERVICE,
    expected_path,
    forward_policy_drop,
    healthy_tcp,
    hop,
    hostile_names,
    ipv6,
    last_seen,
    lost_events,
    no_endpoints,
    nothing_seen,
    pod_output_drop,
    several_findings,
)  # fmt: skip

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "render"
WIDTHS = pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
REPORTS = pytest.mark.parametrize("name", ALL)
MARKS: Final = "✗?✓!·"


def commands(report: Report) -> list[str]:
    """What is there to be copied."""
    return [line for finding in report.findings for line in finding.fix if not line.startswith("#")]


@REPORTS
def test_the_whole_text_is_as_agreed(name: str) -> None:
    text = render(ALL[name]())
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("K8SNET_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_wide_shows_netns_and_each_header() -> None:
    text = render(forward_policy_drop(), 140, wide=True)
    golden = GOLDEN / "wide" / "forward_policy_drop.txt"
    if os.environ.get("K8SNET_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_wide_lays_the_way_over_what_it_should_be() -> None:
    text = render(last_seen(), 110, wide=True)
    golden = GOLDEN / "wide" / "last_seen.txt"
    if os.environ.get("K8SNET_UPDATE_GOLDEN"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_what_the_path_should_be_is_told_without_a_packet() -> None:
    text = plain(expected_lines(SERVICE, expected_path()))
    golden = GOLDEN / "expected" / "service.txt"
    if os.environ.get("K8SNET_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_of_many_ways_the_first_are_drawn_and_wide_draws_all() -> None:
    found = expected_path()
    many = replace(found, endpoints=5, ways=found.ways * 5)
    text = plain(expected_lines(SERVICE, many))
    assert text.count("expected request") == 3
    assert "2 more ways: -o wide shows them" in text
    assert "kube-proxy chooses one of 5 endpoints" in text
    assert plain(expected_lines(SERVICE, many, wide=True)).count("expected request") == 5


@WIDTHS
def test_what_it_should_be_fits_the_terminal(width: int) -> None:
    for line in plain(expected_lines(SERVICE, expected_path(), width)).splitlines():
        assert cells(line) <= width


def test_no_golden_text_is_left_over() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(ALL)


@WIDTHS
@REPORTS
def test_nothing_is_wider_than_the_terminal_but_commands(name: str, width: int) -> None:
    report = ALL[name]()
    whole = {inert(command) for command in commands(report)}
    for line in render(report, width).splitlines():
        assert cells(line) <= width or line.strip() in whole
        assert line == line.rstrip()


@WIDTHS
@REPORTS
def test_commands_can_be_copied_at_any_width(name: str, width: int) -> None:
    report = ALL[name]()
    lines = [line.strip() for line in render(report, width).splitlines()]
    for command in commands(report):
        assert inert(command) in lines


@WIDTHS
@REPORTS
def test_the_answer_comes_before_the_way(name: str, width: int) -> None:
    lines = render(ALL[name](), width).splitlines()
    verdict = next(i for i, line in enumerate(lines) if line[:1] in MARKS and line)
    way = next((i for i, line in enumerate(lines) if line.strip().startswith("µs")), len(lines))
    assert lines[0].startswith("from")
    assert verdict < way
    assert verdict <= 8


@REPORTS
def test_blank_lines_are_single_and_inside(name: str) -> None:
    text = render(ALL[name]())
    assert "\n\n\n" not in text
    assert not text.startswith("\n")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


@WIDTHS
@REPORTS
def test_colours_change_no_letter(name: str, width: int) -> None:
    report = ALL[name]()
    coloured = "".join(line.rstrip() + "\n" for line in styled(report, width).plain.splitlines())
    assert coloured == render(report, width)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_hostile_names_come_out_inert(width: int) -> None:
    text = render(hostile_names(), width)
    assert all(c.isprintable() for c in text.replace("\n", ""))
    joined = re.sub(r"\s+", "", text)
    assert r"[red]x[/]\x1b[31m\x1b]0;owned\x07" in joined
    assert r"no\nde\u202e1" in joined


def test_hostile_names_are_no_markup_in_colour() -> None:
    shown = Terminal()
    show(hostile_names(), shown)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())  # rich's own colours
    assert "\x1b" not in plain
    assert "[red]x[/]" in plain
    assert "[blink]careful[/blink]" in plain
    assert "\x1b[5m" not in shown.getvalue()
    assert "\x1b[8m" not in shown.getvalue()


def test_ipv6_has_brackets_only_with_a_port() -> None:
    text = render(ipv6())
    assert "[fd00:10:244:1::10]:50508 → [fd00:10:96::80]:80" in text
    assert "from  pod/shop/cart-7d4f       fd00:10:244:1::10\n" in text


def test_icmp_has_no_ports() -> None:
    assert "10.244.1.10 → 192.0.2.7   ✗ DROP" in render(pod_output_drop())


def test_the_header_is_shown_where_it_changed_and_not_again() -> None:
    text = render(healthy_tcp())
    assert text.count("10.244.1.10:50508 → 10.96.0.80:80") == 1
    assert text.count("10.244.1.11:8080 → 10.244.1.10:50508") == 1
    assert text.count("DNAT to 10.244.1.11:8080") == 1
    assert text.count("DNAT undone: from 10.96.0.80:80") == 1


def test_a_healthy_flow_is_told_no_why_and_no_fix() -> None:
    text = render(healthy_tcp())
    assert "✓ DELIVERED" in text
    assert not re.search(r"^(why|fix|rule|or) ", text, re.MULTILINE)


def test_failures_come_before_warnings_whatever_their_order() -> None:
    report = several_findings()
    assert report.findings[0].severity is Severity.WARN
    codes = re.findall(r"([A-Z_]+)$", render(report), re.MULTILINE)
    assert [c for c in codes if "_" in c or c == "RETRANSMITTED"] == [
        "FORWARD_POLICY_DROP", "NOT_LISTENING", "RETRANSMITTED", "READ_ONLY"
    ]  # fmt: skip


def test_lost_events_forbid_the_word_never() -> None:
    text = render(lost_events())
    assert "never reached" not in text
    assert "not seen there" in text
    assert "48131 events lost (device 48112, drop 19)" in text
    assert "next  " in text


def test_nothing_seen_says_what_to_do() -> None:
    text = render(nothing_seen())
    assert "--send 3" in text
    assert "\n        k8snet map\n" in text


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.DELIVERED])
def test_no_verdict_without_a_finding_looks_healthy(verdict: Verdict) -> None:
    text = render(replace(healthy_tcp(), verdict=verdict, paths=()))
    assert "✓" not in text
    assert re.search(r"^[✗?] [A-Z]", text, re.MULTILINE)


def test_a_rule_stands_once_and_as_it_is() -> None:
    rule = no_endpoints().findings[0].where.rule
    assert rule is not None
    text = re.sub(r"\s+", " ", render(no_endpoints()))
    assert text.count(rule) == 1
    assert "ip filter KUBE-SERVICES, named by nftrace" in text


def test_long_waits_keep_the_columns() -> None:
    slow = replace(hop(3_001_234.5, 1, "in", "eth0", ANSWER), verdict="NEIGH_FAILED")
    way = Way("request", "SYN", 1, 1, (hop(0, 1, "in", "veth3f2a", ANSWER), slow), "dropped")
    lines = render(Report(Verdict.DROPPED, SERVICE, (way,))).splitlines()
    (title,) = (line for line in lines if "µs" in line)
    (late,) = (line for line in lines if "NEIGH_FAILED" in line)
    (first,) = (line for line in lines if "veth3f2a" in line)
    assert late.index("3001234") + 7 == title.index("µs") + 2 == first.index(" 0 ") + 2
    assert late.index("→ eth0") == first.index("→ veth3f2a")


def test_a_long_pod_name_is_cut_in_the_middle_only_where_it_must_be() -> None:
    name = "payments-production/payments-backend-canary-deployment-7d4f8b6c9f-x2x7k"
    report = replace(healthy_tcp(), flow=replace(SERVICE, client=replace(CLIENT, pod=name)))
    assert f"pod/{name}   10.244.1.10" in render(report, 100)
    assert f"pod/{name}\n" in render(report, 90)
    narrow = render(report, 60)
    assert "pod/payments-production/p" in narrow
    assert "…" in narrow
    assert "-x2x7k\n" in narrow
    assert f"pod/{name}" in render(report, 60, wide=True)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(report: Report) -> str:
    """What `show` writes to a terminal."""
    stream = Terminal()
    show(report, stream)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def test_a_terminal_gets_colours_and_the_same_text() -> None:
    text = shown(forward_policy_drop())
    assert "\x1b[1;31m✗" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert [line.rstrip() for line in plain.splitlines()] == render(forward_policy_drop()).splitlines()


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")], ids=lambda v: v[0])
def test_colours_can_be_declined(monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]) -> None:
    monkeypatch.setenv(*variable)
    assert shown(forward_policy_drop()) == render(forward_policy_drop())


def test_a_pipe_gets_plain_text() -> None:
    stream = io.StringIO()
    show(forward_policy_drop(), stream)
    assert stream.getvalue() == render(forward_policy_drop())


def test_sentences_stay_readable_on_a_very_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert max(cells(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", shown(no_endpoints())).splitlines()) <= 100


def test_a_command_is_one_line_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    (command,) = commands(ALL["rule_reject"]())
    assert command in re.sub(r"\x1b\[[0-9;]*m", "", shown(ALL["rule_reject"]()))


@pytest.mark.parametrize("name", ALL)
def test_a_terminal_without_utf8_gets_the_same_columns(name: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", newline="\n")
    show(ALL[name](), stream)
    stream.flush()
    text = raw.getvalue().decode("ascii")
    if name != "hostile_names":
        assert [len(line) for line in text.splitlines()] == [len(line) for line in render(ALL[name]()).splitlines()]
    assert "\\u" not in text or name == "hostile_names"


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40), st.integers(2, 40))
def test_cut_fits(text: str, width: int) -> None:
    assert cells(cut(text, width)) <= width


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)), st.integers(2, 40))
def test_wrap_fits_and_loses_nothing(words: list[str], width: int) -> None:
    lines = wrap(words, width)
    assert all(cells(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(words)


MAYBE: Final = st.none() | st.text()
WAYS: Final = st.builds(
    Way,
    direction=st.sampled_from(["request", "reply"]),
    packet=st.text(),
    number=st.integers(1, 9),
    total=st.integers(1, 9),
    ended=st.sampled_from(["delivered", "dropped", "last seen"]),
    never_reached=MAYBE,
    hops=st.lists(
        st.builds(
            Hop,
            us=st.floats(0, 1e8),
            netns=st.integers(0, 2**32),
            node=MAYBE,
            pod=MAYBE,
            device=st.none() | st.text(max_size=15),  # IFNAMSIZ
            direction=st.sampled_from(["in", "out", "forward"]),
            header=st.sampled_from([ANSWER, ipv6().flow.original or ANSWER]),
            nat=MAYBE,
            encap=MAYBE,
            verdict=MAYBE,
            detail=MAYBE,
        ),
        max_size=4,
    ).map(tuple),
)
FOUND: Final = st.builds(
    Finding,
    code=st.from_regex(r"[A-Z][A-Z_]{2,24}", fullmatch=True),
    severity=st.sampled_from(Severity),
    title=st.text(),
    where=st.builds(Place, node=MAYBE, table=MAYBE, chain=MAYBE, rule=MAYBE),
    why=st.text(),
    evidence=st.lists(st.text(), max_size=2).map(tuple),
    fix=st.just(()),
    named_by=MAYBE,
    also=st.lists(st.text(), max_size=2).map(tuple),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.builds(
        Report,
        verdict=st.sampled_from(Verdict),
        flow=st.just(SERVICE),
        paths=st.lists(WAYS, max_size=2).map(tuple),
        findings=st.lists(FOUND, max_size=2).map(tuple),
        notes=st.lists(st.text(), max_size=2).map(tuple),
        rule_naming=st.text(),
        lost=st.dictionaries(st.text(), st.integers(0, 5), max_size=2),
    ),
    st.integers(0, 200),
)
def test_no_text_from_outside_breaks_the_page(report: Report, width: int) -> None:
    text = render(report, width)
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert all(cells(line) <= max(width, 40) for line in text.splitlines())


def test_the_picture_of_the_readme_is_of_today() -> None:
    from picture import PICTURE, picture

    def words(svg: str) -> list[str]:
        return re.findall(r">([^<>]+)</text>", svg)

    assert words(PICTURE.read_text("utf-8")) == words(picture()), "run: python tests/picture.py"
