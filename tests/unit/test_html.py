"""The page that is attached to a ticket, as text and in a real browser: whole, harmless, nothing on top of another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

from browser import Browser, browser, needs_browser
from k8snet.render.html import page, style
from k8snet.report import Report, Verdict
from unit.reports import ALL, forward_policy_drop, healthy_tcp, hostile_names, last_seen, lost_events, several_findings

REPORTS = pytest.mark.parametrize("name", ALL)
SEEN_NS: Final = 1_800_000_000_000_000_000
EVIL: Final = (
    "<script>document.title='owned'</script>", "<img src=http://192.0.2.1/x onerror=\"document.title='owned'\">",
    "</style></svg></title><b>", "'\"><svg onload=document.title=1>", "&lt;script&gt;", "]]><!--",
)  # fmt: skip
LONG: Final = "x" * 253


class _Text(HTMLParser):
    """What a reader sees, and which elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.seen.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.seen)


def with_names(report: Report, name: str) -> Report:
    """The report with `name` wherever a name from outside may stand."""
    client = replace(report.flow.client, pod=f"shop/{name}", node=name)
    hops = tuple(replace(h, pod=name, node=name, device=name, nat=name, detail=name) for h in report.paths[0].hops)
    (finding,) = report.findings
    where = replace(finding.where, node=name, chain=name, rule=name)
    return replace(
        report,
        flow=replace(report.flow, client=client, backend=client),
        paths=(replace(report.paths[0], hops=hops, never_reached=name, packet=name),),
        findings=(replace(finding, title=name, why=name, where=where, evidence=(name,), fix=(name, f"# {name}")),),
        notes=(name,),
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser, once for all tests here."""
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def load(shown: Browser, where: Path, report: Report, width: int = 1080, *, dark: bool = False) -> None:
    path = where / "report.html"
    path.write_text(page(report, SEEN_NS), encoding="utf-8")
    shown.show(path, width, dark=dark)


# --- as text ----------------------------------------------------------------------------------------------------------


@REPORTS
def test_a_page_loads_nothing_and_runs_nothing(name: str) -> None:
    read = _Text(page(ALL[name](), SEEN_NS))
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "image", "use"}
    attributes = {attribute for _, given in read.tags for attribute in given}
    assert not {a for a in attributes if a.startswith("on") or a in ("href", "src", "style", "xlink:href")}
    (policy,) = (given["content"] for _, given in read.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"url\(|@import|@font-face", style())


def test_the_page_answers_in_the_order_of_the_report() -> None:
    text = _Text(page(forward_policy_drop(), SEEN_NS)).text
    order = ("DROPPED on node-1 in FORWARD: the chain's policy is DROP", "FORWARD_POLICY_DROP", "pod/shop/cart-7d4f",
             "svc/shop/payments", "seen 2027-01-15 08:00:00 UTC", "request: SYN, 3 of 3", "host network",
             "DNAT to 10.244.1.11:8080", "✗ policy DROP", "never reached", "Why", "nft_do_chain", "-P FORWARD DROP",
             "Fix", "iptables-nft -P FORWARD ACCEPT", "Hops of the request", "4026531840")  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@REPORTS
def test_nothing_of_a_finding_is_left_out(name: str) -> None:
    report = ALL[name]()
    text = _Text(page(report)).text
    for finding in report.findings:
        for part in (finding.code, finding.doc, *(line for line in finding.fix if line.isprintable())):
            assert part.lstrip("# ") in text, part
    for path in report.paths:
        for hop in path.hops:
            assert str(hop.header.saddr) in text


def test_what_was_not_seen_is_no_statement_when_events_were_lost() -> None:
    text = _Text(page(lost_events())).text
    assert "not seen there" in text
    assert "never reached" not in text


def test_what_should_have_come_next_is_at_the_end_of_the_line() -> None:
    text = _Text(page(last_seen())).text
    assert "expected next: out by veth91c0 of node-1" in " ".join(text.split())
    assert "first difference, instead: nothing more was seen of it" in text


@pytest.mark.parametrize("evil", EVIL)
def test_names_from_outside_are_text(evil: str) -> None:
    report = with_names(forward_policy_drop(), evil)
    made, plain = _Text(page(report, SEEN_NS)), _Text(page(with_names(forward_policy_drop(), "name"), SEEN_NS))
    # A long name takes more lines of a drawing, and nothing else.
    assert {tag for tag, _ in made.tags} == {tag for tag, _ in plain.tags}
    assert made.text.count(evil) >= 5


def test_control_characters_and_direction_marks_are_shown_and_not_obeyed() -> None:
    made = page(hostile_names(), SEEN_NS)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", made)
    assert "\\u202e" in made


# --- in a browser -----------------------------------------------------------------------------------------------------


@needs_browser
def test_the_browser_finds_what_is_wrong_with_a_page(shown: Browser, tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<script>1</script><svg width=100 height=50><text x=10 y=20>one</text><text x=12 y=22>another one</text>"
        "<text x=60 y=40>that is too long</text></svg><pre style='width:50px'>out of its box</pre>",
        encoding="utf-8",
    )
    shown.show(bad)
    assert {what.split(":")[0] for what in shown.clutter()} >= {"overlap", "outside"}
    assert any("Content Security Policy" in said for said in shown.complaints)


@needs_browser
@pytest.mark.parametrize("width", [360, 800, 1400])
@REPORTS
def test_no_text_lies_on_another_or_sticks_out(shown: Browser, tmp_path: Path, name: str, width: int) -> None:
    load(shown, tmp_path, ALL[name](), width)
    shown.ask("document.querySelectorAll('details').forEach(folded => { folded.open = true })")
    assert shown.clutter() == []
    assert shown.complaints == []
    assert [url.rsplit("/", 1)[1] for url in shown.requests] == ["report.html"]


@needs_browser
@pytest.mark.parametrize("evil", [*EVIL, LONG, "支払い" * 40, "W" * 60, f"{'deployment-' * 8}7d4f"])
def test_no_name_breaks_the_page(shown: Browser, tmp_path: Path, evil: str) -> None:
    for width in (400, 1080):
        load(shown, tmp_path, with_names(forward_policy_drop(), evil), width)
        assert shown.clutter() == []
    assert shown.ask("document.title").startswith("pod/shop/")
    assert "owned" not in str(shown.ask("document.title.replace(/<.*>/g, '')"))
    assert (shown.complaints, len(shown.requests)) == ([], 1)


@needs_browser
def test_it_is_dark_where_the_reader_likes_it_dark(shown: Browser, tmp_path: Path) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    load(shown, tmp_path, healthy_tcp())
    light = shown.ask(paper)
    load(shown, tmp_path, healthy_tcp(), dark=True)
    assert [light, shown.ask(paper)] == ["rgb(247, 246, 243)", "rgb(21, 23, 26)"]


@needs_browser
def test_a_click_selects_a_whole_command(shown: Browser, tmp_path: Path) -> None:
    load(shown, tmp_path, forward_policy_drop())
    assert shown.ask("getComputedStyle(document.querySelector('pre.command code')).userSelect") == "all"


@needs_browser
def test_the_place_of_death_is_drawn_where_the_line_ends(shown: Browser, tmp_path: Path) -> None:
    load(shown, tmp_path, forward_policy_drop())
    question = """(() => {
      const at = e => e.getBoundingClientRect(), dead = at(document.querySelector('svg .dead'));
      const solid = [...document.querySelectorAll('svg .rail:not(.unseen)')].map(e => at(e).bottom);
      return Math.abs(Math.max(...solid) - (dead.top + dead.bottom) / 2);
    })()"""
    assert shown.ask(question) < 1
    assert shown.ask("document.querySelectorAll('svg .rail.unseen').length") == 1


@needs_browser
def test_a_report_of_many_findings_has_them_all_below_each_other(shown: Browser, tmp_path: Path) -> None:
    load(shown, tmp_path, several_findings())
    tops = shown.ask("[...document.querySelectorAll('.finding')].map(e => e.getBoundingClientRect().top)")
    assert tops == sorted(tops)
    assert len(tops) == len(several_findings().findings)
    assert several_findings().verdict is Verdict.DROPPED
