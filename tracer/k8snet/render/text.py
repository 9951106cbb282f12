"""A Report as text: who to whom, what is wrong in one line, the way, why, the fix.

In: a Report and a width. Out: lines of styled spans, which become plain text here and colours only in `styled`, so
that rich is imported for a terminal and for nothing else. Everything stands on one gutter: labels (`from`, `why`,
`fix`) and the microseconds of the hops on its left, what they say on its right. Commands are never wrapped or cut,
because they are there to be copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

from k8snet.event import Address, FiveTuple
from k8snet.render.cells import cells, cut, pad, wrap
from k8snet.render.safe import inert, inert_all
from k8snet.report import (
    Difference,
    DnsQuery,
    DnsResolver,
    DnsView,
    Expected,
    Finding,
    FlowView,
    Hop,
    Party,
    Path,
    Report,
    Severity,
    Step,
    Verdict,
    Way,
)

if TYPE_CHECKING:
    from rich.text import Text

WIDTH: Final = 100
_NARROWEST: Final = 40
_WAYS: Final = 3  # a guess: more expected ways than this are not read, they are searched
_QUERIES: Final = 12  # a guess: of a search list of five, all
_ICMP: Final = (1, 58)  # ICMP and ICMPv6: no ports
_ARROW: Final = {"in": ("→ ", "  "), "out": ("  ", " →")}  # into the netns, out of it; the names stand in one column


class Span(NamedTuple):
    """Some text in one style; the styles are the keys of `STYLES`."""

    text: str
    style: str = ""


Line = list[Span]

STYLES: Final = {
    "": "",
    "bad": "bold red",
    "good": "bold green",
    "warn": "bold yellow",
    "label": "dim",
    "dim": "dim",
    "name": "bold",
    "nat": "cyan",
    "command": "bold cyan",
}
MARKS: Final = {
    Severity.FAIL: Span("✗", "bad"),
    Severity.UNKNOWN: Span("?", "warn"),
    Severity.WARN: Span("!", "warn"),
    Severity.INFO: Span("·", "dim"),
    Severity.PASS: Span("✓", "good"),
}
LOUD: Final = (Severity.FAIL, Severity.UNKNOWN)
# For a report that no finding explains.
VERDICTS: Final = {
    Verdict.DELIVERED: (Span("✓", "good"), "DELIVERED: the request arrived and the answer came back"),
    Verdict.DROPPED: (Span("✗", "bad"), "DROPPED: a packet of the request died, no finding explains it"),
    Verdict.REJECTED: (Span("✗", "bad"), "REJECTED: the client was told no, no finding explains it"),
    Verdict.NO_REPLY: (Span("✗", "bad"), "NO REPLY: the request was not answered, no finding explains it"),
    Verdict.REPLY_LOST: (Span("✗", "bad"), "REPLY LOST: the answer died on its way back, no finding explains it"),
    Verdict.LOST_EVENTS: (Span("?", "warn"), "INCONCLUSIVE: too many events were lost to say what happened"),
    Verdict.NOTHING_SEEN: (Span("?", "warn"), "NOTHING SEEN: no packet of this flow passed while the trace ran"),
}
NEXT: Final = {
    Verdict.LOST_EVENTS: (
        "# What is missing above may have happened unseen. One connection makes fewer events: run the same command "
        "again with --count 1, and name the port.",
    ),
    Verdict.NOTHING_SEEN: (
        "# Run the same command again with --send 3: k8snet then makes the connections itself, from inside the "
        "client's netns.",
        "# If the client did send: it may use another address, port or protocol, or run on another node. These are "
        "the pods of this node:",
        "k8snet map",
    ),
}
# One column each, so that nothing moves on a terminal without UTF-8.
_ASCII: Final = str.maketrans(
    {"→": ">", "✗": "x", "✓": "+", "·": "-", "…": "~", "µ": "u", "\N{MULTIPLICATION SIGN}": "x"}
)


def render(report: Report, width: int = WIDTH, wide: bool = False) -> str:
    """The report as plain text of `width` columns; `wide` shows netns and every header, and cuts nothing."""
    return plain(lines(report, width, wide))


def plain(page: Iterable[Line]) -> str:
    """Lines of spans as text, without colours."""
    return "".join(_plain(line).rstrip() + "\n" for line in page)


def styled(report: Report, width: int = WIDTH, wide: bool = False) -> Text:
    """The same in colours, for a rich Console."""
    return coloured(lines(report, width, wide))


def coloured(page: Iterable[Line]) -> Text:
    """Lines of spans as rich's text; their content never becomes markup."""
    from rich.text import Text

    text = Text(end="")
    for line in page:
        for span in line:
            text.append(span.text, STYLES[span.style])
        text.append("\n")
    return text


def show(report: Report, stream: TextIO, wide: bool = False) -> None:
    """Print the report on `stream`: as wide as the terminal, in colours on a terminal that wants them (NO_COLOR)."""
    show_page(lambda width: lines(report, width, wide), stream, wide)


def show_expected(flow: FlowView, expected: Expected, stream: TextIO, wide: bool = False) -> None:
    """Print what the path should be, likewise."""
    show_page(lambda width: expected_lines(flow, expected, width, wide), stream, wide)


def show_page(page: Callable[[int], list[Line]], stream: TextIO, wide: bool = False) -> None:
    """Print any page likewise; it is asked for with the width that there is."""
    columns = shutil.get_terminal_size((WIDTH, 24)).columns
    # Sentences wider than this are hard to read; `wide` is for those who want all of it.
    width = columns if wide else min(columns, WIDTH)
    if stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        console = Console(file=stream, width=columns, highlight=False, markup=False, emoji=False)
        console.print(coloured(page(width)), soft_wrap=True, end="")
        return
    stream.write(encodable(plain(page(width)), stream))


def encodable(text: str, stream: TextIO) -> str:
    """`text` with other signs where the stream has none of ours."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def lines(report: Report, width: int = WIDTH, wide: bool = False) -> list[Line]:
    """The report as lines of spans."""
    report = inert_all(report)
    page = _Page(report.paths, width, wide, report.connections, sum(report.lost.values()))
    loud = [f for f in report.findings if f.severity in LOUD]
    quiet = [f for f in report.findings if f.severity not in LOUD]
    loud.sort(key=lambda f: f.severity is not Severity.FAIL)
    blocks = [
        page.parties(report.flow),
        page.finding_title(loud[0]) if loud else page.verdict(report.verdict),
        *([*page.path(path), *page.difference(report.expected, path.direction)] for path in report.paths),
        page.difference(report.expected, *{"request", "reply"} - {path.direction for path in report.paths}),
        *([page.dns(report.dns)] if report.dns else []),
        *(page.expected(report.expected) if wide and report.expected else ()),
        *([page.finding_body(loud[0])] if loud else []),
        page.steps("next", NEXT.get(report.verdict, ())),
        *([*page.finding_title(f), [], *page.finding_body(f)] for f in loud[1:]),
        *([*page.finding_title(f), *page.finding_summary(f)] for f in quiet),
        [*page.notes(report.notes), *page.foot(report)],
    ]
    return _joined(blocks)


def expected_lines(flow: FlowView, expected: Expected, width: int = WIDTH, wide: bool = False) -> list[Line]:
    """What the path should be, as lines of spans: no packet, no verdict."""
    flow, expected = inert_all(flow), inert_all(expected)
    page = _Page((), width, wide)
    return _joined([page.parties(flow), *page.expected(expected)])


def _joined(blocks: Iterable[list[Line]]) -> list[Line]:
    """Blocks with an empty line between them."""
    out: list[Line] = []
    for block in blocks:
        if block:
            out += [[], *block] if out else block
    return out


def ways(paths: Sequence[Path], width: int = WIDTH) -> list[Line]:
    """Only the ways, one below the other: what the live view shows while they grow."""
    paths = inert_all(tuple(paths))
    page = _Page(paths, width)
    return [line for path in paths for line in ([], *page.path(path))]


def arrow(header: FiveTuple) -> str:
    """`10.244.1.10:50508 → 10.96.0.80:80`; no ports for ICMP, brackets around an IPv6 address with a port."""
    if header.protocol in _ICMP:
        return f"{header.saddr} → {header.daddr}"
    return f"{end(header.saddr, header.sport)} → {end(header.daddr, header.dport)}"


def end(address: Address | str, port: int | None) -> str:
    """An address with its port; port None is none."""
    text = inert(str(address))
    if port is None:
        return text
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def place(hop: Hop) -> str:
    """Whose netns the hop was in: the pod, else the node, else the netns' number."""
    return hop.pod or hop.node or f"netns {hop.netns}"


def device(hop: Hop) -> str:
    """`→ veth3f2a` into the netns, `  eth0 →` out of it, `  forward` for a decision of a hook."""
    before, after = _ARROW.get(hop.direction, ("  ", ""))
    if hop.direction in _ARROW:
        return f"{before}{hop.device or '(no device)'}{after}"
    return f"{before}{hop.direction}" + (f" {hop.device}" if hop.device else "")


class _Page:
    """Where things stand: the width, the gutter, and how much is to be shown."""

    def __init__(
        self, paths: Sequence[Path], width: int, wide: bool = False, connections: int = 0, lost: int = 0
    ) -> None:
        self.width = max(width, _NARROWEST)
        self.wide = wide
        self.connections = connections
        self.lost = lost
        self.digits = 1 if wide else 0
        hops = [hop for path in paths for hop in path.hops]
        self.gutter = max([6, *(len(self._us(hop)) + 2 for hop in hops)])
        self.room = self.width - self.gutter
        self.column = max((cells(device(hop)) for hop in hops), default=0)

    # --- who to whom ---

    def parties(self, flow: FlowView) -> list[Line]:
        """Client, server as it was addressed, the pod behind it; protocol and node at the end."""
        rows = [
            ("from", named(flow.client), end(flow.client.ip, None)),
            ("to", named(flow.server), end(flow.server.ip, flow.server.port)),
        ]
        if flow.backend is not None:
            rows.append(("→".rjust(4), named(flow.backend), end(flow.backend.ip, flow.backend.port)))
        column = max(cells(name) for _, name, _ in rows)
        column = column + 3 if column else 0
        beside = all(column + cells(address) <= self.room for _, _, address in rows)
        out: list[Line] = []
        for label, name, address in rows:
            if beside:
                out.append([self._label(label), Span(pad(name, column), "name"), Span(address)])
                continue
            if name:
                out.append([self._label(label), Span(self._fit(name), "name")])
                label = ""
            out.append([self._label(label), Span(("  " if name else "") + address)])
        about = link(flow)
        if cells(_plain(out[-1])) + 3 + cells(about) <= self.width:
            out[-1].append(Span("   " + about, "dim"))
        else:
            out += self._said("", about, "dim")
        return out

    # --- what is wrong ---

    def finding_title(self, finding: Finding) -> list[Line]:
        """`✗ DROPPED on node-1 in FORWARD: ...` with the code on the right."""
        return self._title(MARKS[finding.severity], finding.title, finding.code)

    def verdict(self, verdict: Verdict) -> list[Line]:
        """The same for a report without findings."""
        return self._title(*VERDICTS[verdict])

    def _title(self, mark: Span, text: str, code: str = "") -> list[Line]:
        room = self.width - 2 - (cells(code) + 3 if code else 0)
        below = bool(code) and room < 48 and cells(text) > room
        wrapped = wrap(text, self.width - 2 if below else room)
        style = "" if mark.style == "dim" else mark.style
        out: list[Line] = [[mark, Span(" " + wrapped[0], style)], *([Span("  " + t, style)] for t in wrapped[1:])]
        if below:
            out.append([Span("  " + cut(code, self.width - 2), "dim")])
        elif code:
            space = self.width - cells(_plain(out[0])) - cells(code)
            out[0].append(Span(" " * space + code, "dim"))
        return out

    # --- the way ---

    def path(self, path: Path) -> list[Line]:
        """One packet's hops, under the name of the pod or node where they are."""
        which = f", {path.number} of {path.total}" if path.total > 1 else ""
        title = self._fit(f"{path.direction}: {path.packet}{which}")
        out: list[Line] = [[Span("µs".rjust(self.gutter - 2) + "  ", "dim"), Span(title)]]
        before: Hop | None = None
        for index, hop in enumerate(path.hops):
            if before is None or (before.node, before.pod, before.netns) != (hop.node, hop.pod, hop.netns):
                out.append(self._heading(hop))
            items = list(self._items(hop, before))
            if index == len(path.hops) - 1 and not hop.verdict:
                items += _ENDS.get(path.ended, [])
            out += self._hop(hop, items)
            before = hop
        if path.never_reached is not None:
            # What was not seen may have happened when events were lost: then it is no statement.
            verdict = Span("  not seen there", "warn") if self.lost else Span("  never reached", "bad")
            name = cut(path.never_reached, self.room - cells(verdict.text))
            out.append([Span(" " * self.gutter), Span(name, "name"), verdict])
        return out

    # --- what was asked of DNS ---

    def dns(self, view: DnsView) -> list[Line]:
        """A line for each query: type, rcode, how long it took, who answered, the name."""
        drawn = view.queries if self.wide else view.queries[:_QUERIES]
        rows = [(query.type or "?", *outcome(query)) for query in drawn]
        widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
        servers = list(dict.fromkeys(query.server for query in view.queries))
        answering = list(dict.fromkeys(q.answered_by for q in view.queries if q.answered_by is not None))
        same = len(answering) == 1 and all(q.answered_by for q in view.queries)
        who = ", ".join(f"{named(s)} {end(s.ip, s.port)}".strip() for s in servers)
        by = f", answered by {named(answering[0]) or answering[0].ip}" if same else ""
        out = self._said("dns", f"asked {who}{by}")
        start = sum(widths) + 3 * len(widths)
        beside = self.room - start >= 24
        for query, row in zip(drawn, rows, strict=True):
            style = "" if query.rcode == "NOERROR" else "warn"
            said = [query.name or "(name not seen)"]
            if query.answered_by is not None and not same:
                said.append(f"by {named(query.answered_by) or query.answered_by.ip}")
            if not beside:
                out += [[self._label(""), Span(text, style)] for text in wrap([x for x in row if x], self.room)]
                out += [[self._label(""), Span("  " + text)] for text in wrap(said, self.room - 2)]
                continue
            first, *more = wrap(said, self.room - start) if not self.wide else ["   ".join(said)]
            left = "   ".join(pad(text, width) for text, width in zip(row, widths, strict=True))
            out.append([self._label(""), Span(left, style), Span("   " + first)])
            out += [[self._label(""), Span(" " * start + text)] for text in more]
        if len(drawn) < view.total:
            hint = ": -o wide shows them" if not self.wide and len(view.queries) == view.total else ""
            out += self._said("", f"and {view.total - len(drawn)} more{hint}", "dim")
        if view.resolver is not None:
            out += self._said("", resolv_conf(view.resolver), "dim")
        return out

    # --- what it should be ---

    def difference(self, expected: Expected | None, *directions: str) -> list[Line]:
        """One sentence below the way: what should have come next, and why."""
        found = expected.difference if expected else None
        if found is None or found.direction not in directions:
            return []
        problem = f"; {found.step.problem}" if found.step.problem else ""
        wrapped = wrap(f"expected next: {due(found)}{problem}", self.room)
        return [[Span(" " * self.gutter), Span(text, "warn")] for text in wrapped]

    def expected(self, expected: Expected) -> list[list[Line]]:
        """Every way with its steps, the marked ones with the difference."""
        blocks = []
        drawn = expected.ways if self.wide else expected.ways[:_WAYS]
        for way in drawn:
            for direction, steps in (("request", way.request), ("reply", way.reply)):
                if steps:
                    blocks.append(self._steps_of(way, direction, steps, expected.difference))
            blocks.append([line for text in way.unknown for line in self._said("", f"not known: {text}", "warn")])
            blocks += [
                self._said("", f"✗ {said}", "bad") if said.denied else self._said("", str(said), "dim")
                for said in way.policies
            ]
        rest = list(expected.notes)
        if expected.fate == "served" and len(expected.ways) > 1:
            rest.insert(0, f"kube-proxy chooses one of {counted(expected.endpoints, 'endpoint')}")
        if len(drawn) < len(expected.ways):
            rest.append(f"{len(expected.ways) - len(drawn)} more ways: -o wide shows them")
        return [*blocks, [line for text in rest for line in self._said("note", text)]]

    def _steps_of(self, way: Way, direction: str, steps: Sequence[Step], difference: Difference | None) -> list[Line]:
        to = (
            f" {'to' if direction == 'request' else 'from'} {named(way.backend) or way.backend.ip}"
            if way.backend
            else ""
        )
        out: list[Line] = [[self._label(""), Span(self._fit(f"expected {direction}{to}"))]]
        column = max(cells(spot(step)) for step in steps)
        before: Step | None = None
        for step in steps:
            if before is None or (before.node, before.pod, before.netns) != (step.node, step.pod, step.netns):
                out.append([self._label(""), Span(self._fit(step.pod or step.node or f"netns {step.netns}"), "name")])
            said = [step.nat] if step.nat else []
            said += (
                [step.address]
                if step.address and not step.nat and (before is None or before.address != step.address)
                else []
            )
            said += [] if step.sure else ["perhaps"]
            said += [step.why] if step.why else []
            start = self.gutter + 2 + column + 3
            words = wrap(", ".join(said), max(self.width - start, 8))
            for index, text in enumerate(words):
                left = Span("  " + pad(spot(step), column) + "   ") if not index else Span(" " * (column + 5))
                out.append([self._label(""), left, Span(text, "nat" if step.nat else "" if step.sure else "dim")])
            if step.problem:
                out += self._beneath(column, f"✗ {step.problem}", "bad")
            if difference is not None and (difference.direction, difference.step) == (direction, step):
                out += self._beneath(column, f"✗ first difference, instead: {difference.instead}", "bad")
            before = step
        return out

    def _beneath(self, column: int, text: str, style: str) -> list[Line]:
        start = column + 5
        wrapped = wrap(text, max(self.width - self.gutter - start, 8))
        return [[self._label(""), Span(" " * start), Span(part, style)] for part in wrapped]

    def _heading(self, hop: Hop) -> Line:
        about = []
        if self.wide:
            about = [hop.node] if hop.pod and hop.node else []
            about += [f"netns {hop.netns}"] if hop.pod or hop.node else []
        line = [Span(" " * self.gutter), Span(self._fit(place(hop)), "name")]
        return [*line, Span("  " + ", ".join(about), "dim")] if about else line

    def _items(self, hop: Hop, before: Hop | None) -> Iterator[Span]:
        """What is to be said of a hop beside its device; the header only where it is new."""
        changed = before is None or before.header != hop.header
        if self.wide or (changed and not hop.nat):
            yield Span(arrow(hop.header))
        if hop.nat:
            yield Span(hop.nat, "nat")
        if hop.encap and (before is None or before.encap != hop.encap):
            yield Span(hop.encap.replace(" > ", " → "), "nat")
        if hop.verdict:
            yield Span(f"✗ {hop.verdict}", "bad")
        if hop.detail:
            yield Span(hop.detail.replace(" > ", " → "), "dim")

    def _hop(self, hop: Hop, items: Sequence[Span]) -> list[Line]:
        time = self._us(hop).rjust(self.gutter - 2)
        line = [Span(f"{time}  ", "dim"), Span("  " + pad(cut(device(hop), self.room - 2), self.column))]
        start = self.gutter + 2 + self.column + 3
        room = self.width - start
        if room < 24:  # a long device name in a narrow window: go on beneath it
            start = self.gutter + 6
            room = self.width - start
            out: list[Line] = [line]
            line = [Span(" " * (start - 3))]
        else:
            out = []
        used = 0
        for item in items:
            if used and used + 3 + cells(item.text) > room:
                out.append(line)
                line, used = [Span(" " * (start - 3))], 0
            for index, text in enumerate(wrap(_words(item.text), room)):
                if index:
                    out.append(line)
                    line, used = [Span(" " * (start - 3))], 0
                line.append(Span("   " + text, item.style))
                used += cells(text) + (3 if used else 0)
        return [*out, line] if _plain(line).strip() else out

    # --- why, and the fix ---

    def finding_body(self, finding: Finding) -> list[Line]:
        """Why with evidence, the rule, the fix, what else it could be, the page that explains it."""
        out = self._said("why", finding.why)
        for line in self._evidence(finding):
            first, *more = wrap(line, self.room - 2)
            out.append([self._label(""), Span("· " + first, "dim")])
            out += [[self._label(""), Span("  " + text, "dim")] for text in more]
        if finding.where.rule:
            out += [[], *self._said("rule", finding.where.rule, "name"), *self._said("", rule_place(finding), "dim")]
        if self.wide:
            out += self._said("at", _where(finding), "dim")
        for index, text in enumerate(finding.also):
            out += [*([] if index else [[]]), *self._said("" if index else "or", text)]
        if finding.fix:
            out += [[], *self.steps("fix", finding.fix)]
        if not any(finding.doc in text for text in finding.fix):
            out += self._said("more", finding.doc, "dim")
        return out

    def finding_summary(self, finding: Finding) -> list[Line]:
        """A finding of lower severity: why and the fix, without evidence (`wide` shows that too)."""
        if self.wide:
            return self.finding_body(finding)
        return [*self._said("why", finding.why), *self.steps("fix", finding.fix)]

    def steps(self, label: str, entries: Iterable[str]) -> list[Line]:
        """Commands as they are, a line each and further in; `# advice` as plain sentences."""
        out: list[Line] = []
        for entry in entries:
            if entry.startswith("#"):
                out += self._said("" if out else label, entry.lstrip("# "))
                continue
            if not out:
                # The label stands alone, so that the whole line of a command can be selected and pasted.
                out.append([self._label(label)])
            out.append([Span(" " * (self.gutter + 2)), Span(entry, "command")])
        return out

    def _evidence(self, finding: Finding) -> Iterator[str]:
        where = finding.where
        rule = f"{finding.named_by}: {where.table} {where.chain}: {where.rule}"
        yield from (line for line in finding.evidence if line != rule)  # the rule has its own lines
        if self.connections > 1 and finding.times:
            yield f"in {finding.times} of {self.connections} connections"

    # --- the foot ---

    def notes(self, notes: Iterable[str]) -> list[Line]:
        """What the reader should know of the trace itself."""
        return [line for note in notes for line in self._said("note", note)]

    def foot(self, report: Report) -> list[Line]:
        """`3 connections, 0 answered, 0 events lost, rule named by nftrace`."""
        lost = self.lost
        by_probe = ", ".join(f"{name} {count}" for name, count in report.lost.items() if count)
        parts = [
            counted(report.connections, "connection" if report.flow.protocol == "tcp" else "exchange"),
            f"{report.answered} answered",
            counted(lost, "event") + " lost" + (f" ({by_probe})" if lost else ""),
            naming(report),
        ]
        whole = [part + "," for part in parts[:-1]] + parts[-1:]
        return [[Span(text, "warn" if lost else "dim")] for text in wrap(whole, self.width)]

    # --- parts ---

    def _us(self, hop: Hop) -> str:
        return f"{hop.us:.{self.digits}f}"

    def _label(self, label: str) -> Span:
        return Span(label.ljust(self.gutter), "label")

    def _said(self, label: str, text: str, style: str = "") -> list[Line]:
        wrapped = wrap(text, self.room)
        return [[self._label("" if index else label), Span(part, style)] for index, part in enumerate(wrapped)]

    def _fit(self, name: str) -> str:
        return name if self.wide else cut(name, self.room)


_ENDS: Final = {"delivered": [Span("✓ arrived", "good")], "last seen": [Span("last seen here", "warn")]}


def named(party: Party) -> str:
    """The party as `--from` and `--to` take it; empty when it is an address and no more."""
    if party.service:
        return f"svc/{party.service}"
    if party.pod:
        return f"pod/{party.pod}"
    return f"node/{party.node}" if party.node else ""


def spot(step: Step) -> str:
    """`→ veth3f2a`, `  eth0 →`, `  prerouting`: as `device` writes it of a hop."""
    before, after = _ARROW.get(step.direction, ("  ", ""))
    return f"{before}{step.device or step.direction}{after}"


def due(difference: Difference) -> str:
    """What should have come next, in words."""
    step = difference.step
    place = step.pod or step.node or f"netns {step.netns}"
    if step.nat:
        return f"{step.nat} on {place} ({step.why})"
    if step.device:
        return f"{step.direction} by {step.device} of {place}" + (f" ({step.why})" if step.why else "")
    if step.direction in ("refused", "dropped"):
        return f"{step.direction} on {place} ({step.why})"
    return f"{step.why}, of {place}"


def link(flow: FlowView) -> str:
    """`tcp, same node`."""
    protocol = "any protocol" if flow.protocol == "any" else flow.protocol
    far = flow.backend or flow.server
    if flow.same_node:
        return f"{protocol}, same node"
    if flow.same_node is False and flow.client.node and far.node:
        return f"{protocol}, {flow.client.node} → {far.node}"
    return protocol


def rule_place(finding: Finding) -> str:
    where = finding.where
    named = f"named by {finding.named_by}" if finding.named_by else "deduced"
    return ", ".join(part for part in (" ".join(t for t in (where.table, where.chain) if t), named) if part)


def _where(finding: Finding) -> str:
    where = finding.where
    parts = (
        where.pod,
        where.node,
        f"netns {where.netns}" if where.netns else None,
        f"device {where.device}" if where.device else None,
        where.hook,
        f"table {where.table}" if where.table else None,
        f"chain {where.chain}" if where.chain else None,
    )
    return ", ".join(part for part in parts if part)


def naming(report: Report) -> str:
    named = next((f.named_by for f in report.findings if f.named_by), None)
    if named is not None:
        return f"rule named by {named}"
    return "rule naming off" if report.rule_naming == "off" else f"rule naming: {report.rule_naming}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def outcome(query: DnsQuery) -> tuple[str, str, str]:
    """What the answer said, how long it took, and what else is worth a word."""
    more = [f"{query.tries} tries"] if query.tries > 1 else []
    more += ["over TCP"] if query.protocol == "tcp" else []
    more += ["truncated"] if query.truncated else []
    if query.rcode is None or query.seconds is None:
        return "no answer" if query.answered_by is None else "not taken", "", ", ".join(more)
    took = f"{query.seconds:.2f} s" if query.seconds >= 1 else f"{query.seconds * 1e3:.1f} ms"
    return query.rcode, took, ", ".join(more)


def resolv_conf(resolver: DnsResolver) -> str:
    said = [f"nameserver {' '.join(resolver.nameservers)}" if resolver.nameservers else "no nameserver"]
    said += [f"search {' '.join(resolver.search)}"] if resolver.search else []
    said += [f"options {resolver.options}"] if resolver.options else []
    return f"/etc/resolv.conf: {', '.join(said)}"


def _words(text: str) -> list[str]:
    """Words between which a line may break: an arrow stays with what it points to."""
    # Inert text has no no-break space of its own.
    return [word.replace("\xa0", " ") for word in text.replace("→ ", "→\xa0").split(" ")]


def _plain(line: Line) -> str:
    return "".join(span.text for span in line)
