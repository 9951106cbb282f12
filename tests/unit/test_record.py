"""A recording: the report of the trace again, whatever happens to the file, and never an event that was not written."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8snet.agent import lines
from k8snet.agent.join import join
from k8snet.cli import execute
from k8snet.cli.trace import ring
from k8snet.errors import K8snetError
from k8snet.event import LAYOUT, PAYLOAD_MAX, BadRecordError, Event, FiveTuple
from k8snet.judge import Observation, judge
from k8snet.record import file as files
from k8snet.record.file import HEADER, MAGIC, Kind, Recording, Segment, packed, segments_of, unpacked
from k8snet.record.layout import DESCRIPTION, Layout
from k8snet.record.recorder import Known, Recorder, recorder
from k8snet.record.replay import Chosen, opened, replayed
from k8snet.render.document import report_of
from k8snet.report import Report
from unit import story
from unit.story import CART, NODE, drop
from unit.streams import NATTED, REQUEST, record_of, stream, syn, syn_ack, told

HEALTHY: Sequence[Event] = [*syn()[0], *syn_ack()[0]]
DROPPED: Sequence[Event] = [
    *syn(2000, ip_id=7)[0],
    drop(NATTED, NODE, "eth0", story.NETFILTER_DROP, "nft_do_chain", us=2040, ip_id=7),
]


def record(path: Path, events: Sequence[Event], *, lost: int = 0, ring: int = 0, node: str = "node-1") -> Observation:
    """Write a recording of a trace on that node; what the trace itself has to judge."""
    with Recording(path, ring, Known() if ring else None) as file:
        writer = Recorder(file, story.Kernel())
        writer.hello(node)
        writer.asked(REQUEST)
        return writer.complete(told(writer, node, events, lost=lost), REQUEST.inventory)


def written(path: Path, count: int, *, ring: int = 0, payload: bytes = b"") -> list[bytes]:
    """A recording of that many random records, a few at a time."""
    chance = random.Random(count)  # noqa: S311 (nothing is to be kept secret)
    records = [chance.randbytes(LAYOUT.size) + payload * (n % 3 == 0) for n in range(count)]
    with Recording(path, ring, Known() if ring else None) as file:
        file.line(hello())
        for start in range(0, count, 7):
            file.records(start, records[start : start + 7])
            file.line(lines.Counts(start, 0, 0))
    return records


def hello(version: int = lines.VERSION, record: str = DESCRIPTION) -> lines.Hello:
    return lines.Hello(version, "9.9", lines.LAYOUT_ID, "node-1", "6.1.0", 0, 0, whole=True, record=record)


def read(path: Path) -> dict[int, bytes]:
    """The records in one file by their number, as far as they can be read."""
    found: dict[int, bytes] = {}
    with path.open("rb") as opened_file:
        for frame in Segment(str(path), opened_file).frames():
            if frame.kind == Kind.EVENTS:
                first, records = unpacked(frame.data, LAYOUT.size)
                found |= dict(enumerate(records, first))
    return found


def again(*paths: Path) -> Report:
    return replayed(paths)[1]


def without_origin(report: Report) -> Report:
    return replace(report, notes=tuple(note for note in report.notes if not note.startswith("replayed from")))


# --- the same report -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "lost"),
    [
        pytest.param(HEALTHY, 0, id="healthy"),
        pytest.param(DROPPED, 0, id="dropped"),
        pytest.param([*HEALTHY, *DROPPED], 0, id="both"),
        pytest.param(DROPPED, 3, id="events-lost"),
        pytest.param([], 0, id="silence"),
    ],
)
def test_the_report_of_a_recording_is_that_of_the_trace(events: Sequence[Event], lost: int, tmp_path: Path) -> None:
    seen = record(tmp_path / "r", events, lost=lost)
    assert without_origin(again(tmp_path / "r")) == judge(seen)


def test_it_says_from_where_and_when_it_is(tmp_path: Path) -> None:
    record(tmp_path / "r", HEALTHY)
    (note,) = again(tmp_path / "r").notes
    assert note.startswith(f"replayed from {tmp_path / 'r'}: recorded on node-1 at 20")


def test_the_payload_of_a_packet_is_kept(tmp_path: Path) -> None:
    records = written(tmp_path / "r", 50, payload=b"www.example.com" * 9)
    assert read(tmp_path / "r") == dict(enumerate(records))


@given(st.lists(st.tuples(st.binary(max_size=PAYLOAD_MAX), st.integers(0, 255)), max_size=40), st.integers(0, 2**63))
def test_records_come_back(some: list[tuple[bytes, int]], first: int) -> None:
    records = [bytes([fill]) * LAYOUT.size + payload for payload, fill in some]
    assert unpacked(packed(first, records), LAYOUT.size) == (first, records)


@given(st.binary(max_size=400), st.integers(1, 300))
def test_any_bytes_are_records_or_a_bad_frame(data: bytes, size: int) -> None:
    try:
        _, records = unpacked(data, size)
    except files.BadFrameError:
        return
    assert all(len(one) >= size for one in records)


def test_lines_of_an_agent_carry_payloads_too() -> None:
    records = [record_of(e) + bytes([n % 256]) * (n % 5) * 60 for n, e in enumerate([*HEALTHY, *DROPPED] * 40)]
    found = [one for some in lines.batches(records) for one in lines.unpacked(lines.packed(0, some))]
    assert found == records
    assert max(len(lines.written(lines.packed(0, some))) for some in lines.batches(records)) < 16 * 1024


def test_two_nodes_recordings_are_one_report_without_what_is_nobodys(tmp_path: Path) -> None:
    (here, there), (back_here, back_there) = syn(), syn_ack()
    stranger = here[1]._replace(netns=4711)  # another node's, on the same kernel
    record(tmp_path / "1", [*here, stranger, *back_here])
    record(tmp_path / "2", [*there, *back_there], node="node-2")
    report = again(tmp_path / "2", tmp_path / "1")
    agents = join(
        [stream("node-1", [*here, *back_here]).splitlines(), stream("node-2", [*there, *back_there]).splitlines()]
    )
    assert (report.verdict, report.paths, report.findings) == (agents.verdict, agents.paths, agents.findings)
    assert report.lost == {}
    assert sum(note.startswith("replayed from") for note in report.notes) == 2


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, dict[int, bytes]]:
    """A place to write to, a file with some frames of events, and what is in it."""
    place = tmp_path_factory.mktemp("some")
    with Recording(place / "whole") as file:
        file.line(hello())
        for n in range(6):
            file.records(2 * n, [record_of(HEALTHY[n])] * 2)
            file.line(lines.Counts(n, 0, 0))
    found = read(place / "whole")
    assert len(found) == 12
    return place / "damaged", (place / "whole").read_bytes(), found


def is_no_more_than(path: Path, data: bytes, found: dict[int, bytes]) -> int:
    """How many events can be read of `data`; each of them was written."""
    path.write_bytes(data)
    try:
        left = read(path)
    except K8snetError:
        return 0
    assert left.items() <= found.items()
    return len(left)


def test_cut_at_every_byte_what_came_before_is_read(some: tuple[Path, bytes, dict[int, bytes]]) -> None:
    path, data, found = some
    counts = [is_no_more_than(path, data[:end], found) for end in range(len(data) + 1)]
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_of_any_flipped_byte_the_damage_is_one_frame(some: tuple[Path, bytes, dict[int, bytes]]) -> None:
    path, data, found = some
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        left = is_no_more_than(path, flipped, found)
        assert left >= 10 or at < HEADER.size + 4, at


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_done_to_it_no_event_appears(
    some: tuple[Path, bytes, dict[int, bytes]], data: st.DataObject
) -> None:
    path, whole, found = some
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    instead = data.draw(st.binary(max_size=40) | st.just(whole[start:end] * 2) | st.just(whole[: end - start][::-1]))
    is_no_more_than(path, whole[:start] + instead + whole[end:], found)


def test_a_torn_end_is_reported_with_its_size(tmp_path: Path) -> None:
    seen = record(tmp_path / "r", HEALTHY)
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "torn").write_bytes(data[:-9])
    report = again(tmp_path / "torn")
    assert "torn and were skipped" in " ".join(report.notes)
    assert "has no end" in " ".join(report.notes)
    assert report.lost["end of the stream"] == 1
    assert report.connections == judge(seen).connections


def test_damage_in_the_middle_is_counted_as_lost(some: tuple[Path, bytes, dict[int, bytes]]) -> None:
    path, data, _ = some
    second = data.index(files.MARK, data.index(files.MARK) + 1)
    path.write_bytes(data[: second + 40] + b"\0\0\0\0" + data[second + 44 :])
    with ExitStack() as stack:
        (content,) = opened([path], stack)
        list(content)
    assert content.damaged == 1
    assert any(f"bytes at byte {second} are damaged" in note for note in content.notes), content.notes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_trace_is_judged_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole"
    if not whole.exists():
        record(whole, [*HEALTHY, *DROPPED])
    raw = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "r").write_bytes(raw[: data.draw(st.integers(at, len(raw)))])
    try:
        report = again(tmp_path / "r")
    except K8snetError:
        return
    assert report.lost, "something of it is missing"


def test_frames_of_another_recording_are_none_of_this_one(tmp_path: Path) -> None:
    ours = dict(enumerate(written(tmp_path / "a", 20)))
    written(tmp_path / "b", 21)
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    middle = a.index(files.MARK, len(a) // 2)
    (tmp_path / "c").write_bytes(a[:middle] + b[HEADER.size + 4 :] + a[middle:])
    assert read(tmp_path / "c") == ours


def test_events_twice_are_once(tmp_path: Path) -> None:
    ours = dict(enumerate(written(tmp_path / "a", 20)))
    a = (tmp_path / "a").read_bytes()
    (tmp_path / "c").write_bytes(a + a[HEADER.size + 4 :])
    assert read(tmp_path / "c") == ours


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(K8snetError):
        again(tmp_path / "r")


# --- versions --------------------------------------------------------------------------------------------------------


def remade(path: Path, major: int) -> None:
    """The same file with another version in its header."""
    data = path.read_bytes()
    head = MAGIC + struct.pack("<H", major) + data[len(MAGIC) + 2 : HEADER.size]
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + data[HEADER.size + 4 :])


def test_a_newer_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    record(tmp_path / "r", HEALTHY)
    remade(tmp_path / "r", files.MAJOR + 1)
    with pytest.raises(K8snetError, match="is of format 2, and this k8snet reads up to 1"):
        again(tmp_path / "r")


def test_a_newer_language_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with Recording(tmp_path / "r") as file:
        file.line(hello(lines.VERSION + 1))
    with pytest.raises(K8snetError, match=r"written by k8snet 9\.9"):
        again(tmp_path / "r")


def test_unknown_kinds_are_skipped_and_counted(tmp_path: Path) -> None:
    with Recording(tmp_path / "r") as file:
        writer = Recorder(file, story.Kernel())
        writer.hello("node-1")
        writer.asked(REQUEST)
        seen = told(writer, "node-1", HEALTHY)
        time.sleep(2 * files.EVERY)
        file._frame(77, b"from the future")  # type: ignore[arg-type]  # that is the point
        writer.complete(seen, REQUEST.inventory)
    report = again(tmp_path / "r")
    assert "1 parts of a kind that only a newer k8snet knows" in " ".join(report.notes)
    assert not report.lost


OLDER = "ktime_ns:Q gone:I netns:I seq:I reason:H _:3x probe:B encap:B packet:40s outer:40s ct_orig:40s ct_reply:40s " \
    "ifname:16s table:16s"  # fmt: skip


def test_records_of_another_version_are_read_by_the_names_of_their_fields() -> None:
    event = DROPPED[-1]
    tail = record_of(event)[LAYOUT.size - 192 :]
    theirs = struct.pack(
        "=QIIIH3xBB", event.ktime_ns, 99, event.netns, event.seq, event.reason, event.probe, event.encap
    )
    layout = Layout(OLDER)
    assert layout.size == len(theirs + tail)
    ours = Event.decode(layout.ours(theirs + tail))
    assert (ours.ktime_ns, ours.netns, ours.seq, ours.reason, ours.probe) == (
        event.ktime_ns, event.netns, event.seq, event.reason, event.probe,
    )  # fmt: skip
    assert (ours.packet, ours.ifname, ours.skb, ours.payload) == (event.packet, event.ifname, 0, b"")


@given(st.text(alphabet="abcdefgQIiHBsx:_ 0123456789", max_size=60))
def test_any_description_is_a_layout_or_none(description: str) -> None:
    try:
        layout = Layout(description)
    except ValueError:
        return
    with pytest.raises(BadRecordError):
        Event.decode(layout.ours(bytes(layout.size)))


def test_the_description_is_of_the_whole_record() -> None:
    assert Layout(DESCRIPTION).size == LAYOUT.size
    assert Layout(DESCRIPTION + " more:Q").size == LAYOUT.size + 8
    raw = record_of(HEALTHY[0])
    assert Layout(DESCRIPTION + " more:Q").ours(raw + bytes(8)) == raw


# --- the ring --------------------------------------------------------------------------------------------------------

RING = files.SMALLEST_RING


class Measured(Recording):
    """Looks at the disk after each write, in the thread that writes."""

    most = 0

    def _append(self, data: bytes) -> None:
        super()._append(data)
        self.most = max(self.most, sum(part.stat().st_size for part in self._path.parent.iterdir()))


def test_a_ring_never_takes_more_than_it_may_and_keeps_the_newest(tmp_path: Path) -> None:
    records = [os.urandom(LAYOUT.size) for _ in range(500)]
    count = 0
    with Measured(tmp_path / "r", RING, Known()) as file:
        file.line(hello())
        file.line(lines.Names({5: "SOME_REASON"}))
        for _ in range(30):
            file.records(count, records)
            count += len(records)
            time.sleep(0.005)
        assert not file.close()
        most = file.most
    parts = segments_of(tmp_path / "r")
    assert most <= RING
    assert RING * 3 // 4 <= sum(part.stat().st_size for part in parts) <= RING
    left = {number: one for part in parts for number, one in read(part).items()}
    assert sorted(left) == list(range(count - len(left), count))
    assert all(one == records[number % 500] for number, one in left.items())


def test_each_part_of_a_ring_can_be_read_alone(tmp_path: Path) -> None:
    events = [e._replace(ktime_ns=e.ktime_ns + n) for n in range(4000) for e in DROPPED]
    random.Random(1).shuffle(events)  # noqa: S311 (so that they take room)
    events = [
        e._replace(seq=hash((n, "a")) & 0xFFFFFFFF, ack=hash((n, "b")) & 0xFFFFFFFF) for n, e in enumerate(events)
    ]
    record(tmp_path / "r", events, ring=RING)
    parts = segments_of(tmp_path / "r")
    assert len(parts) > 1
    for part in parts:
        with ExitStack() as stack:
            (content,) = opened([part], stack)
            first, facts, names, ready = [item for item in content if not isinstance(item, tuple)][:4]
        assert isinstance(first, lines.Hello)
        if content.segments[0].number == 1:
            continue
        assert isinstance(facts, lines.Facts)
        assert facts.request == REQUEST
        assert facts.owners[CART].pod == REQUEST.client.pod
        assert isinstance(names, lines.Names)
        assert names.reasons == {story.NETFILTER_DROP: "NETFILTER_DROP"}
        assert isinstance(ready, lines.Ready)


def test_what_a_ring_has_dropped_is_lost_and_no_finding_rests_on_it(tmp_path: Path) -> None:
    written(tmp_path / "r", 6000, ring=RING)
    with ExitStack() as stack:
        (content,) = opened([tmp_path / "r"], stack)
        numbers = [item[0] for item in content if isinstance(item, tuple)]
    assert numbers[0] > 0
    assert "what was recorded before it is gone" in content.notes[0]
    assert content.damaged == 0


def test_a_part_that_is_missing_in_the_middle_is_said(tmp_path: Path) -> None:
    written(tmp_path / "r", 3000, ring=RING)
    segments_of(tmp_path / "r")[2].unlink()
    with ExitStack() as stack:
        (content,) = opened([tmp_path / "r"], stack)
        list(content)
    assert content.damaged > 0


def test_a_part_that_a_crash_has_left_empty_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "r", 3000, ring=RING)
    newest = segments_of(tmp_path / "r")[-1]
    newest.with_name("r.9999").touch()
    with ExitStack() as stack:
        (content,) = opened([tmp_path / "r"], stack)
        assert any(isinstance(item, tuple) for item in content)
    assert f"{tmp_path / 'r.9999'} is no recording: left out" in content.notes


def test_a_ring_that_is_too_small_for_its_beginnings_says_so(tmp_path: Path) -> None:
    with Recording(tmp_path / "r", 5000, Known()) as file:
        file.line(hello())
        file.line(lines.Names({n: os.urandom(20).hex() for n in range(400)}))
        for n in range(10):
            file.records(n * 7, [os.urandom(LAYOUT.size)] * 7)
        assert "has no room for what each part begins with" in file.close()


# --- the file --------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    was = os.umask(0)
    try:
        record(tmp_path / "r", HEALTHY)
        written(tmp_path / "ring", 100, ring=RING)
    finally:
        os.umask(was)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    for name, size in (("r", 0), ("ring", RING)):
        written(tmp_path / name, 10, ring=size)
        with pytest.raises(K8snetError, match="there is a file"):
            Recording(tmp_path / name, size)
        with Recording(tmp_path / name, size, overwrite=True) as file:
            file.line(hello())
    assert not read(tmp_path / "r")


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_link_is_never_followed(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(K8snetError):
            Recording(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(K8snetError, match="cannot be written: No such file or directory"):
        Recording(tmp_path / "nowhere" / "r")


@pytest.mark.parametrize("size", [0, RING], ids=["file", "ring"])
def test_a_trace_that_cannot_begin_leaves_no_file(size: int, tmp_path: Path) -> None:
    def fail() -> None:
        with recorder(tmp_path / "r", REQUEST, size):
            raise K8snetError("no probe can be attached", "k8snet check")

    for _ in range(2):  # the second is not told of the first one's file
        with pytest.raises(K8snetError, match="no probe"):
            fail()
    assert not list(tmp_path.iterdir())


def test_a_ring_does_not_hide_behind_a_file_of_its_name(tmp_path: Path) -> None:
    written(tmp_path / "r", 10)
    with pytest.raises(K8snetError, match="there is a file"):
        Recording(tmp_path / "r", RING)


def test_why_a_trace_ended_is_said_again(tmp_path: Path) -> None:
    def fail() -> None:
        with recorder(tmp_path / "r", REQUEST) as writer:
            told(writer, "node-1", HEALTHY)
            raise K8snetError("the pod went away", "k8snet map")

    with pytest.raises(K8snetError):
        fail()
    with pytest.raises(K8snetError, match="the pod went away"):
        again(tmp_path / "r")


def in_another_process(path: Path, body: str) -> subprocess.Popen[str]:
    code = f"from unit.test_record import *\nfrom pathlib import Path\npath = Path({str(path)!r})\n{body}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_full_disk_ends_the_recording_and_not_the_trace(tmp_path: Path) -> None:
    limit = 3000
    body = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nprint(full_disk(path))"
    with in_another_process(tmp_path / "r", body) as process:
        assert process.stdout is not None
        told_by_it = process.stdout.read()
    assert process.returncode == 0
    assert told_by_it == f"the recording {tmp_path / 'r'} is incomplete: File too large\n"
    assert (tmp_path / "r").stat().st_size <= limit
    report = again(tmp_path / "r")
    assert not any("torn" in note for note in report.notes)
    assert report.lost


def full_disk(path: Path) -> str:
    """What the trace's own report says of the recording."""
    return record(path, [e._replace(seq=n * 7919) for n, e in enumerate([*HEALTHY, *DROPPED] * 200)]).notes[-1]


def test_what_is_a_second_old_survives_a_kill(tmp_path: Path) -> None:
    body = "endless(path)"
    with in_another_process(tmp_path / "r", body) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert len(read(tmp_path / "r")) == 100


def endless(path: Path) -> None:
    """Record a hundred events, say so a second later, and do not end."""
    with Recording(path) as file:
        file.line(hello())
        file.records(0, [record_of(HEALTHY[0])] * 100)
        time.sleep(1.0)
        print("now", flush=True)
        time.sleep(60)


def test_a_disk_that_hangs_costs_events_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_WAITING", 100 * LAYOUT.size)
    file = Recording(tmp_path / "r")
    file.line(hello())
    for n in range(4):  # before anybody writes
        file.records(30 * n, [record_of(HEALTHY[0])] * 30)
    with file:
        pass
    assert file.failure == f"the recording {tmp_path / 'r'} has gaps: events came faster than they could be written"
    assert len(read(tmp_path / "r")) == 90


# --- filters ---------------------------------------------------------------------------------------------------------


def moved(five: FiveTuple | None) -> FiveTuple | None:
    """The same of another connection of that client."""
    if five is None:
        return None
    sport, dport = (40_000 if port == 50_508 else port for port in (five.sport, five.dport))
    return five._replace(sport=sport, dport=dport)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A healthy connection, and one that a rule has dropped."""
    other = [e._replace(packet=moved(e.packet), ct_orig=moved(e.ct_orig), ct_reply=moved(e.ct_reply)) for e in DROPPED]
    record(tmp_path / "r", [*HEALTHY, *other])
    return tmp_path / "r"


def chosen(path: Path, **by: str) -> Report:
    return replayed([path], choose=Chosen(**by))[1]


def test_flows_are_chosen_by_what_is_wrong_with_them(two: Path) -> None:
    everything = again(two)
    assert everything.connections == 2
    report = chosen(two, finding=everything.findings[0].code)
    assert (report.connections, report.answered, report.findings) == (1, 0, everything.findings)


@pytest.mark.parametrize(
    ("by", "connections"),
    [
        pytest.param({"client": "shop/cart"}, 2, id="client"),
        pytest.param({"client": "10.244.1.10", "server": "svc/shop/remote:80"}, 2, id="both"),
        pytest.param({"protocol": "tcp"}, 2, id="protocol"),
        pytest.param({"server": "10.96.0.87:81"}, 0, id="other-port"),
        pytest.param({"client": "shop/web-3"}, 0, id="other-client"),
        pytest.param({"protocol": "udp"}, 0, id="other-protocol"),
        pytest.param({"finding": "MTU_BLACK_HOLE"}, 0, id="other-finding"),
    ],
)
def test_flows_are_chosen_by_their_ends(two: Path, by: dict[str, str], connections: int) -> None:
    if connections:
        assert chosen(two, **by).connections == connections
        return
    with pytest.raises(K8snetError, match="none of the 2 flows"):
        chosen(two, **by)


def test_a_finding_that_does_not_exist_is_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["replay", str(two), "--finding", "RULE_DROPP"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "  --finding RULE_DROP"


@pytest.mark.parametrize("output", ["text", "wide", "json", "jsonl"])
def test_the_command_prints_what_trace_prints(two: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["replay", str(two), "-o", output]) == 1
    printed = capsys.readouterr().out
    if output in ("json", "jsonl"):
        assert report_of(json.loads(printed)) == again(two)
    else:
        assert "replayed from" in printed


@pytest.mark.parametrize("words", [["--ring", "1M"], ["--overwrite"], ["--expect", "--record", "r"]], ids=" ".join)
def test_options_that_mean_nothing_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["trace", "--from", "10.0.0.1", "--to", "10.0.0.2", *words]) == 2
    assert "record" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0M", "1", "1023K", "-1M", "1.5G", "M", "9999999999G"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        ring(text)


def test_sizes() -> None:
    assert [ring(text) for text in ("1M", "64M", "2G", "1024K", "1MiB")] == [
        1 << 20,
        64 << 20,
        2 << 30,
        1 << 20,
        1 << 20,
    ]
