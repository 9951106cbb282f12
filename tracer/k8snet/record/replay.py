"""What was recorded, judged again: files in, an Observation and a Report out. Nothing here asks the machine it runs on.

Surprising: the frames of a file may lack some in the middle (a bad disk) or at the end (a crash), and a ring lacks its
beginning. What lacks is counted as lost, so that no finding rests on it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.agent import lines
from k8snet.agent.join import Half, seen_and_judged, take
from k8snet.errors import Exit, K8snetError
from k8snet.event import BadRecordError, Event
from k8snet.record.file import BadFrameError, Kind, Segment, segments_of, unpacked
from k8snet.record.layout import Layout
from k8snet.record.moments import Told, Watching, understood

if TYPE_CHECKING:
    from k8snet.cluster.inventory import Inventory
    from k8snet.flow.model import Flow
    from k8snet.judge import Observation
    from k8snet.report import Report


@dataclass
class Content:
    """What the segments of one recording hold, in the order in which it was written; then what they lack."""

    segments: Sequence[Segment]  # in order
    notes: list[str] = field(default_factory=list)
    damaged: int = 0  # frames and lines
    unknown: int = 0  # frames
    bad: int = 0  # records

    @property
    def name(self) -> str:
        """For people."""
        return self.segments[0].name

    def __iter__(self) -> Iterator[lines.Line | Told | tuple[int, list[bytes]]]:
        """Lines, and the records of events with the number of the first. Raises K8snetError for a newer language."""
        layout: Layout | None = None
        before: Segment | None = None
        if self.segments[0].number > 1:
            self.notes.append(f"{self.name} is part {self.segments[0].number}: what was recorded before it is gone")
        for segment in self.segments:
            if before is not None:
                # What is between two segments' numbers was in one that is not here.
                segment.missing += max(0, segment.expected - before.expected)
            for frame in segment.frames():
                if frame.kind == Kind.LINES:
                    for line in self._lines(frame.data):
                        if isinstance(line, lines.Hello):
                            layout = layout or self._layout(line)
                        yield line
                elif frame.kind != Kind.EVENTS:
                    self.unknown += 1
                elif layout is None:
                    self.damaged += 1
                else:
                    yield from self._records(frame.data, layout)
            self._note(segment)
            before = segment
        if self.damaged > sum(segment.missing for segment in self.segments):
            self.notes.append(f"{self.name}: {self.damaged} lines or parts of it are damaged")
        if self.unknown:
            self.notes.append(f"{self.name} has {self.unknown} parts of a kind that only a newer k8snet knows")

    def _lines(self, data: bytes) -> Iterator[lines.Line | Told]:
        for text in data.decode("utf-8", "replace").split("\n"):
            try:
                line = understood(text)
            except lines.BadLineError:
                self.damaged += 1
                continue
            if line is not None:
                yield line

    def _records(self, data: bytes, layout: Layout) -> Iterator[tuple[int, list[bytes]]]:
        try:
            first, records = unpacked(data, layout.size)
        except BadFrameError:
            self.damaged += 1
            return
        ours: list[bytes] = []
        for number, record in enumerate(records, first):
            try:
                ours.append(layout.ours(record))
            except BadRecordError:
                self.bad += 1
                yield first, ours
                first, ours = number + 1, []
        yield first, ours

    def _layout(self, hello: lines.Hello) -> Layout:
        if hello.version > lines.VERSION:
            raise K8snetError(
                f"{self.name} was written by k8snet {hello.k8snet}, in a language that this one does not know",
                f"use k8snet {hello.k8snet} or a newer one",
            )
        try:
            return Layout(hello.record)
        except ValueError as error:
            raise K8snetError(f"{self.name} does not say what its records are: {error}", "record it again") from None

    def _note(self, segment: Segment) -> None:
        self.damaged += segment.missing
        for at, size in segment.skipped:
            self.notes.append(f"{segment.name}: {size} bytes at byte {at} are damaged and were skipped")
        if segment.missing:
            self.notes.append(f"{segment.name}: {segment.missing} parts are missing")
        if segment.torn:
            self.notes.append(f"{segment.name}: the last {segment.torn} bytes are torn and were skipped")


def opened(paths: Sequence[Path], stack: ExitStack) -> list[Content]:
    """Each recording among these files; a ring's name stands for all its segments."""
    found: dict[bytes, dict[int, Segment]] = {}
    notes: list[str] = []
    for path in paths:
        parts = [] if path.exists() else segments_of(path)
        for file in parts or [path]:
            try:
                segment = _segment(file, stack)
            except K8snetError as error:
                # A ring has others: a crash may leave its newest one empty.
                if len(parts) < 2:
                    raise
                notes.append(f"{error.problem}: left out")
                continue
            found.setdefault(segment.recording, {})[segment.number] = segment
    contents = [Content([some[number] for number in sorted(some)]) for some in found.values()]
    if not contents:
        raise K8snetError(f"{paths[0]}: none of its parts can be read", "see whether there is a copy")
    contents[0].notes += notes
    return contents


def _segment(path: Path, stack: ExitStack) -> Segment:
    try:
        return Segment(str(path), stack.enter_context(path.open("rb")))
    except FileNotFoundError:
        raise K8snetError(f"there is no file {path}", "k8snet trace --help  # --record makes one") from None
    except IsADirectoryError:
        raise K8snetError(f"{path} is a directory", "name the file in it") from None
    except PermissionError:
        raise K8snetError(f"{path} may not be read", f"sudo chown $USER {shlex.quote(str(path))}") from None


def is_of_watch(path: Path) -> bool:
    """It is the recording of a watch. Raises K8snetError when it is none at all."""
    with ExitStack() as stack:
        return any(isinstance(item, Watching) for item in islice(opened([path], stack)[0], 2))


def half_of(content: Content) -> Half:
    """All of one recording of a trace. Raises K8snetError when there is none in it, or one that could not begin."""
    half: Half | None = None
    for item in content:
        if isinstance(item, lines.Hello):
            half = half or Half(item, on_the_way="events not in the recording")
        elif half is None:
            content.damaged += 1
        elif isinstance(item, lines.Error):
            raise K8snetError(f"on {half.node}: {item.problem}", item.remedy, more=item.more)
        elif isinstance(item, tuple):
            first, records = item
            for number, record in enumerate(records, first):
                try:
                    half.events[number] = Event.decode(record)
                except BadRecordError:
                    half.bad += 1
        elif isinstance(item, Watching):
            raise K8snetError(f"{content.name} is a recording of a watch, not of a trace", "replay it alone")
        elif isinstance(item, lines.Line) and not take(half, item):
            content.damaged += 1
    if half is None:
        raise K8snetError(f"{content.name} holds nothing: it ended before its first line", "record it again")
    half.bad += content.bad
    if content.damaged:
        half.lacks["damaged parts of the recording"] = content.damaged
    if half.bye is None:
        content.notes.append(
            f"{content.name} has no end: k8snet was killed, or the disk was full, or it is still being written"
        )
    return half


def replayed(
    paths: Sequence[Path],
    inventory: Inventory | None = None,
    choose: Callable[[Observation], Observation] = lambda seen: seen,
) -> tuple[Observation, Report]:
    """What was recorded, and the report on it; of two nodes' recordings one, as `k8snet.agent.join` makes it.

    `inventory`: other names than the recorded ones; `choose`: what to judge of it. Raises K8snetError.
    """
    with ExitStack() as stack:
        contents = opened(paths, stack)
        if len(contents) > 2:
            raise K8snetError(f"{len(contents)} recordings: a flow has one node or two", "name those of its ends only")
        halves = [half_of(content) for content in contents]
    notes = [
        note
        for half, content in zip(halves, contents, strict=True)
        for note in (origin(content.name, half.hello), *content.notes)
    ]
    return seen_and_judged(halves, inventory, lambda seen: replace(choose(seen), notes=(*notes, *seen.notes)))


def origin(name: str, hello: lines.Hello) -> str:
    """Where a recording comes from, as a note."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(hello.realtime_ns / 1e9))
    return f"replayed from {name}: recorded on {hello.node} at {when} by k8snet {hello.k8snet}, Linux {hello.kernel}"


@dataclass(frozen=True)
class Chosen:
    """Which flows to judge; what is empty chooses all."""

    client: str = ""
    server: str = ""
    protocol: str = ""
    finding: str = ""
    namespace: str | None = None

    def __call__(self, seen: Observation) -> Observation:
        """The same with those flows only. Raises K8snetError when there are none."""
        from k8snet.cluster import names
        from k8snet.findings.case import Case
        from k8snet.findings.diagnose import diagnose
        from k8snet.flow.dns import by_socket, exchanges
        from k8snet.judge import servers_of
        from k8snet.summary import PROTOCOLS

        request, inventory = seen.request, seen.around.inventory
        if self.client:
            request = replace(request, client=names.resolve_from(self.client, inventory, self.namespace))
        if self.server:
            server = names.resolve_to(self.server, inventory, self.namespace)
            request = replace(request, server=server)
        if self.protocol:
            request = replace(request, protocol=self.protocol)
        around = replace(seen.around, queries=by_socket(exchanges(seen.flows)))
        clients, servers, port = request.client.addresses, servers_of(request), request.server.port

        def fits(flow: Flow) -> bool:
            first = flow.original
            return (
                (not self.client or first.saddr in clients)
                and (not self.server or ((not servers or first.daddr in servers) and port in (None, first.dport)))
                and self.protocol in ("", PROTOCOLS.get(first.protocol))
                and (not self.finding or any(f.code == self.finding for f in diagnose(Case(flow, around))))
            )

        flows = [flow for flow in seen.flows if fits(flow)]
        if seen.flows and not flows:
            raise K8snetError(
                f"none of the {len(seen.flows)} flows in the recording is one of those",
                "leave out --from, --to, --protocol and --finding to see them all",
                Exit.INCONCLUSIVE,
            )
        return replace(seen, request=request, flows=flows)
