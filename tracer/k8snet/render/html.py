"""A Report as one HTML file that can be attached to a ticket: no script, no network, nothing beside it.

In: a Report, and when it was seen. Out: the page. It is built as a tree, so that no text from outside can become
markup, and `inert_all` has made control characters and direction marks visible before. The policy in its head lets a
browser load nothing at all, and apply no style but the page's own. The drawings are `k8snet.render.drawing`'s.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element as Node

from k8snet import __version__
from k8snet.render.drawing import child, drawing
from k8snet.render.safe import inert_all
from k8snet.render.text import (
    LOUD,
    MARKS,
    NEXT,
    VERDICTS,
    arrow,
    counted,
    device,
    due,
    end,
    link,
    named,
    naming,
    outcome,
    resolv_conf,
    rule_place,
)
from k8snet.render.text import place as place_of
from k8snet.report import DnsView, Expected, Finding, FlowView, Path, Report, Severity, Step, Way

_TONES: Final = {"bad": "bad", "good": "good", "warn": "warn"}  # a span's style → a class; others have none


def page(report: Report, seen_ns: int | None = None) -> str:
    """The whole document; `seen_ns`: when the first packet was seen, in nanoseconds since 1970."""
    report = inert_all(report)
    root = Node("html", {"lang": "en"})
    _head(child(root, "head"), report)
    main = child(child(root, "body"), "main")
    loud = sorted((f for f in report.findings if f.severity in LOUD), key=lambda f: f.severity is not Severity.FAIL)
    quiet = [f for f in report.findings if f.severity not in LOUD]
    _verdict(main, report, loud, seen_ns)
    beside = _ways(main, report)
    if loud:
        # One drawing leaves room for what explains it.
        first = beside if beside is not None and len(report.paths) == 1 else main
        _finding(first, loud[0], report.connections, titled=False)
    for finding in (*loud[1:], *quiet):
        _finding(main, finding, report.connections, titled=True)
    if report.dns is not None:
        _dns(main, report.dns)
    if report.verdict in NEXT:
        _steps(_section(main, "Next"), NEXT[report.verdict])
    for path in report.paths:
        _table(main, path)
    if report.expected is not None:
        _expected(main, report.expected)
    if report.notes:
        listed = child(_section(main, "Notes"), "ul", cls="plain")
        for note in report.notes:
            child(listed, "li", note)
    child(child(root[1], "footer"), "p", f"k8snet {__version__}")
    ElementTree.indent(root, "")
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"


@cache
def style() -> str:
    """The page's style sheet."""
    return files("k8snet.render").joinpath("report.css").read_text(encoding="utf-8")


def _head(head: Node, report: Report) -> None:
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    child(head, "meta", charset="utf-8")
    child(head, "meta", **{"http-equiv": "Content-Security-Policy", "content": policy})
    child(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    child(head, "meta", name="color-scheme", content="light dark")
    child(head, "title", f"{_who(report.flow)}: {report.verdict.value}")
    child(head, "style", style())


def _who(flow: FlowView) -> str:
    return f"{named(flow.client) or flow.client.ip} → {named(flow.server) or flow.server.ip}"


# --- the answer ------------------------------------------------------------------------------------------------------


def _verdict(main: Node, report: Report, loud: Sequence[Finding], seen_ns: int | None) -> None:
    """Who to whom, and what is wrong, in one look."""
    mark, title = (MARKS[loud[0].severity], loud[0].title) if loud else VERDICTS[report.verdict]
    header = child(main, "header", cls=f"verdict {_TONES.get(mark.style, '')}")
    head = child(header, "div", cls="head")
    child(head, "span", mark.text, cls="mark")
    child(head, "h1", title)
    if loud:
        child(head, "code", loud[0].code, cls="code")
    parties = child(header, "dl", cls="parties")
    flow = report.flow
    rows = [("from", flow.client, None), ("to", flow.server, flow.server.port)]
    if flow.backend is not None:
        rows.append(("behind it", flow.backend, flow.backend.port))
    for label, party, port in rows:
        child(parties, "dt", label)
        said = child(parties, "dd")
        if name := named(party):
            child(said, "b", name)
        child(said, "code", end(party.ip, port))
    facts = [link(flow), *_counts(report)]
    if seen_ns is not None:
        when = datetime.fromtimestamp(seen_ns / 1e9, UTC)
        facts.append(f"seen {when:%Y-%m-%d %H:%M:%S} UTC")
    listed = child(header, "ul", cls="facts")
    for fact in facts:
        child(listed, "li", fact)


def _counts(report: Report) -> list[str]:
    lost = sum(report.lost.values())
    by_probe = ", ".join(f"{name} {count}" for name, count in report.lost.items() if count)
    return [
        counted(report.connections, "connection" if report.flow.protocol == "tcp" else "exchange"),
        f"{report.answered} answered",
        counted(lost, "event") + " lost" + (f" ({by_probe})" if lost else ""),
        naming(report),
    ]


def _ways(main: Node, report: Report) -> Node | None:
    """The path, drawn; a direction without a packet has at most a sentence. Returns where the drawings stand."""
    expected = report.expected.difference if report.expected else None
    figures = child(_section(main, "The way"), "div", cls="ways") if report.paths else None
    if figures is not None:
        for path in report.paths:
            figure = child(figures, "figure")
            child(figure, "figcaption", _caption(path))
            ahead = expected if expected and expected.direction == path.direction else None
            figure.append(drawing(path, ahead, lost=bool(sum(report.lost.values()))))
    if expected is not None and expected.direction not in {path.direction for path in report.paths}:
        problem = f"; {expected.step.problem}" if expected.step.problem else ""
        child(main, "p", f"{expected.direction}, expected next: {due(expected)}{problem}", cls="warn")
    return figures


def _caption(path: Path) -> str:
    return f"{path.direction}: {path.packet}" + (f", {path.number} of {path.total}" if path.total > 1 else "")


# --- why, and the fix ------------------------------------------------------------------------------------------------


def _finding(main: Node, finding: Finding, connections: int, *, titled: bool) -> None:
    """`titled`: it is not the one that the page begins with."""
    section = child(main, "section", cls="finding")
    mark = MARKS[finding.severity]
    if titled:
        head = child(section, "div", cls=f"head {_TONES.get(mark.style, '')}")
        child(head, "span", mark.text, cls="mark")
        child(head, "h2", finding.title)
        child(head, "code", finding.code, cls="code")
    else:
        child(section, "h2", "Why")
    child(section, "p", finding.why)
    where = finding.where
    same = f"{finding.named_by}: {where.table} {where.chain}: {where.rule}"
    evidence = [line for line in finding.evidence if line != same]  # the rule has its own place
    if connections > 1 and finding.times:
        evidence.append(f"in {finding.times} of {connections} connections")
    if evidence:
        listed = child(section, "ul", cls="evidence")
        for line in evidence:
            child(listed, "li", line)
    if where.rule:
        child(section, "h3", "The rule")
        child(child(section, "pre"), "code", where.rule)
        child(section, "p", rule_place(finding), cls="muted")
    if finding.also:
        child(section, "h3", "Or")
        for text in finding.also:
            child(section, "p", text)
    if finding.fix:
        child(section, "h3", "Fix")
        _steps(section, finding.fix)
    child(section, "p", f"More: {finding.doc}", cls="muted")


def _steps(section: Node, steps: Iterable[str]) -> None:
    """Commands, each to be selected by one click; `# advice` as sentences."""
    for step in steps:
        if step.startswith("#"):
            child(section, "p", step.lstrip("# "))
        else:
            child(child(section, "pre", cls="command"), "code", step)


def _dns(main: Node, view: DnsView) -> None:
    """A row for each query."""
    section = _section(main, "DNS")
    table = child(child(section, "div", cls="wide"), "table")
    row = child(child(table, "thead"), "tr")
    for title in ("type", "name", "answer", "took", "", "asked", "answered by"):
        child(row, "th", title)
    body = child(table, "tbody")
    for query in view.queries:
        row = child(body, "tr", cls="" if query.rcode == "NOERROR" else "warn")
        child(row, "td", query.type or "?", cls="short")
        child(row, "td", query.name or "(name not seen)", cls="mono")
        for text in outcome(query):
            child(row, "td", text, cls="short")
        for party in (query.server, query.answered_by):
            child(row, "td", "" if party is None else named(party) or end(party.ip, party.port))
    if len(view.queries) < view.total:
        child(section, "p", f"and {view.total - len(view.queries)} more", cls="muted")
    if view.resolver is not None:
        child(section, "p", resolv_conf(view.resolver), cls="muted")


# --- hop by hop ------------------------------------------------------------------------------------------------------


def _table(main: Node, path: Path) -> None:
    """All that is known of each hop; the drawing leaves out what repeats."""
    section = _section(main, f"Hops of the {path.direction}")
    table = child(child(section, "div", cls="wide"), "table")
    row = child(child(table, "thead"), "tr")
    child(row, "th", "µs", cls="number")
    for title in ("where", "device or hook", "header", "what happened"):
        child(row, "th", title)
    body = child(table, "tbody")
    for hop in path.hops:
        row = child(body, "tr", cls="bad" if hop.verdict else "")
        child(row, "td", f"{hop.us:.1f}", cls="number")
        where = child(row, "td")
        child(where, "b", place_of(hop))
        about = [hop.node] if hop.pod and hop.node else []
        child(where, "small", ", ".join([*about, f"netns {hop.netns}"]))
        child(row, "td", device(hop).strip(), cls="mono")
        child(row, "td", arrow(hop.header), cls="mono")
        happened = child(row, "td")
        for text, kind in ((hop.nat, "nat"), (hop.encap, "nat"), (hop.verdict, "bad"), (hop.detail, "muted")):
            if text:
                child(happened, "div", text.replace(" > ", " → "), cls=kind)


def _expected(main: Node, expected: Expected) -> None:
    """What the path should have been, folded away: it is for those who doubt."""
    if not any(way.request or way.reply for way in expected.ways):
        return
    details = child(_section(main, "What the path should be"), "details")
    difference = expected.difference
    # That none was found does not mean that there was none: events may have been lost.
    words = f" The first difference is in the {difference.direction}." if difference else ""
    child(details, "summary", f"By the objects and the node's state before the first packet.{words}")
    for way in expected.ways:
        for direction, steps in (("request", way.request), ("reply", way.reply)):
            if steps:
                child(details, "h3", f"{direction}{_end_of(way, direction)}")
                rows = child(child(child(details, "div", cls="wide"), "table"), "tbody")
                for step in steps:
                    here = difference is not None and (difference.direction, difference.step) == (direction, step)
                    _step(rows, step, difference.instead if difference and here else None)
        for allowance in way.policies:
            child(details, "p", str(allowance), cls="bad" if allowance.denied else "muted")
        for text in way.unknown:
            child(details, "p", f"not known: {text}", cls="warn")
    for text in expected.notes:
        child(details, "p", text, cls="muted")


def _end_of(way: Way, direction: str) -> str:
    if way.backend is None:
        return ""
    return f" {'to' if direction == 'request' else 'from'} {named(way.backend) or way.backend.ip}"


def _step(rows: Node, step: Step, instead: str | None) -> None:
    row = child(rows, "tr", cls="bad" if instead is not None or step.problem else "")
    child(child(row, "td"), "b", step.pod or step.node or f"netns {step.netns}")
    child(row, "td", f"{step.direction} {step.device}" if step.device else step.direction, cls="mono")
    said = child(row, "td")
    child(said, "div", ", ".join(t for t in (step.nat or step.address, "" if step.sure else "perhaps", step.why) if t))
    for text in (step.problem, f"first difference, instead: {instead}" if instead is not None else None):
        if text:
            child(said, "div", text, cls="bad")


def _section(main: Node, title: str) -> Node:
    section = child(main, "section")
    child(section, "h2", title)
    return section
