"""A watch, recorded and run again: the engine is told the same and finds the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from k8snet.cli import execute
from k8snet.cluster.interfaces import Owner
from k8snet.errors import K8snetError
from k8snet.event import Event, ProbeId
from k8snet.findings.case import Kernel, Surroundings
from k8snet.kernel.conntrack import Fill, Rivals
from k8snet.kernel.rules import NamedRule
from k8snet.record.file import SMALLEST_RING, Recording, segments_of
from k8snet.record.moments import Memory
from k8snet.record.replay import Chosen, opened
from k8snet.record.retell import retold
from k8snet.record.watch import _NAMED, Recorder, Rewatch
from k8snet.render.watch import Silent
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts, Engine, Limits
from k8snet.watch.live import Usage
from k8snet.watch.report import WatchReport
from unit.story import drop, surroundings
from unit.streams import record_of
from unit.test_watch_engine import SECOND, answer, dead_syn, numbers_of, syn

NUMBERS = numbers_of(200)
UNANSWERED = syn(40_001, NUMBERS[0], 1.05)
DEAD = [*dead_syn(40_002, NUMBERS[1], 1.2), *dead_syn(40_002, NUMBERS[1], 2.2, ip_id=9)]
HEALTHY = [e for n in range(100) for e in (*syn(41_000 + n, NUMBERS[n + 2], 1 + n / 100),
                                           *answer(41_000 + n, NUMBERS[n + 2], 1.001 + n / 100))]  # fmt: skip
ALL = [*UNANSWERED, *DEAD, *HEALTHY]
RULE = NamedRule("nftrace", "ip filter", "FORWARD", "-A FORWARD -j DROP", policy=False, hook="forward")


class Everything:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.anomalies: list[Anomaly] = []
        self.notes: list[str] = []
        self.last = Counts()

    def ready(self, usage: Usage) -> None:
        self.pods = usage.pods

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        self.anomalies += anomalies

    def asked(self, exchanges: Sequence[object]) -> None:
        """Nobody asks here."""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def counts(self, counts: Counts, usage: Usage) -> None:
        self.last = counts

    def ended(self) -> bool:
        return False


def watched(path: Path, events: Iterable[Event], until: float = 8.0, ring: int = 0, sampled: int = 70) -> Everything:
    """Watch, and record it, as `k8snet.watch.live` does; what was found."""
    todo = sorted(events, key=lambda e: e.ktime_ns)
    heard = Everything()
    with Recording(path, ring, Memory() if ring else None) as file:
        recorder = Recorder(file)
        recorder.begin("node-1", Limits())
        watcher = recorder.overhearing(heard)
        engine = Engine()
        watcher.ready(Usage(0.5, 1000, 3))
        for tick in range(1, round(until * 10) + 1):
            now = tick * SECOND // 10
            records = [record_of(e) for e in todo if e.ktime_ns < now]
            todo = [e for e in todo if e.ktime_ns >= now]
            if records:
                recorder.saw(records)
                engine.feed(records)
            if tick == sampled:
                recorder.lost(0, 5, 1)
                engine.sample(1)
                engine.lose(0, 5)
                watcher.note("one of two")
            engine.young(now)
            due = engine.due(now)
            around = around_at(tick, due)
            recorder.moment(now, around, due)
            if found := engine.tick(now, around):
                watcher.found(found)
            watcher.counts(engine.counts, Usage(1.0, 2000, 4))
        assert not recorder.finish(engine.counts, ["a name is missing"])
    return heard


def around_at(tick: int, due: Sequence[object]) -> Surroundings:
    """What is known changes while time passes; rules are of packets."""
    known = surroundings(client_netns=None)
    owners = dict(known.owners)
    if tick > 50:
        owners = {**owners, 77: Owner("node-1")}
    if tick > 60:
        del owners[77]
    rules = {id(p): RULE for f in due for p in f.packets if p.events[-1].probe is ProbeId.KFREE_SKB}  # type: ignore[attr-defined]  # flows
    return replace(known, owners=owners, rules=rules, fills={1: Fill(tick, 100_000)})


def again(path: Path) -> tuple[Everything, Rewatch]:
    from contextlib import ExitStack

    heard = Everything()
    with ExitStack() as stack:
        (content,) = opened([path], stack)
        rewatch = Rewatch(content, lambda clock, memory: heard)
        rewatch.run()
    return heard, rewatch


def test_a_replay_finds_what_the_watch_has_found(tmp_path: Path) -> None:
    live = watched(tmp_path / "r", ALL)
    codes = {anomaly.finding.code for anomaly in live.anomalies}
    assert len(codes) >= 2, codes
    assert any(a.finding.where.rule == RULE.text for a in live.anomalies), "the rule's name has to come through"
    replayed, rewatch = again(tmp_path / "r")
    assert replayed.anomalies == live.anomalies
    assert (replayed.last, replayed.notes) == (live.last, live.notes)
    assert rewatch.notes == ["a name is missing"]
    assert rewatch.content.notes == []


def test_what_the_engine_is_told_is_the_same_at_each_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Surroundings] = []
    real = Engine.tick

    def listening(self: Engine, now_ns: int, around: Surroundings) -> list[Anomaly]:
        told.append(around)
        return real(self, now_ns, around)

    monkeypatch.setattr(Engine, "tick", listening)
    watched(tmp_path / "r", ALL)
    live, told[:] = list(told), []
    again(tmp_path / "r")
    assert len(live) == len(told)
    for before, after in zip(live, told, strict=True):
        assert named(before) == named(after)


def named(around: Surroundings) -> object:
    """Without who says the names, and with rules by their text: a packet is another object each time."""
    kernel: Kernel = around.kernel
    return replace(around, kernel=type("Same", (), {})(), rules={}).__dict__ | {
        "kernel": kernel.drop_reason(0),
        "rules": sorted(rule.text for rule in around.rules.values()),
        "policies": around.inventory.policies,
    }


def test_a_rival_of_a_packet_is_found_again(tmp_path: Path) -> None:
    event = DEAD[2]
    rivals = Rivals(None, None, "the connection table", 5)
    with Recording(tmp_path / "r") as file:
        recorder = Recorder(file)
        recorder.begin("node-1", Limits())
        recorder.saw([record_of(event)])
        around = replace(surroundings(client_netns=None), rivals={event: rivals})
        recorder.moment(event.ktime_ns, around, [])
        recorder.finish(Counts())
    _, rewatch = again(tmp_path / "r")
    key = (event.ktime_ns, event.skb, int(event.probe))
    assert rewatch._events == {key: event}
    moment = next(item for item in items(tmp_path / "r") if type(item).__name__ == "Moment")
    assert rewatch.memory.surroundings(moment, [], rewatch._events).rivals == {event: rivals}  # type: ignore[arg-type]  # chosen by name


def items(path: Path) -> list[object]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        return list(opened([path], stack)[0])


def test_events_that_the_recording_lacks_leave_what_is_under_way_in_doubt(tmp_path: Path) -> None:
    with Recording(tmp_path / "r") as file:
        recorder = Recorder(file)
        recorder.begin("node-1", Limits())
        engine_time = 0
        for tick in range(1, 80):
            engine_time = tick * SECOND // 10
            if tick == 11:
                recorder.saw([record_of(e) for e in UNANSWERED])
            if tick == 12:
                recorder._count += 7  # they were never written
                recorder.saw([record_of(e) for e in HEALTHY[:8]])
            recorder.moment(engine_time, surroundings(client_netns=None), [])
        recorder.finish(Counts())
    heard, _ = again(tmp_path / "r")
    assert heard.anomalies == []
    assert heard.last.lost == 7


def test_a_ring_of_a_watch_is_read_from_any_part(tmp_path: Path) -> None:
    crowd = [e._replace(skb=hash((n, e.ktime_ns)) & 0xFFFF_FFFF_FFFF, location=hash((e, n)) & 0xFFFF_FFFF)
             for n in range(60) for e in HEALTHY]  # fmt: skip
    watched(tmp_path / "r", [*crowd, *(later(e) for e in DEAD)], until=14.0, ring=SMALLEST_RING, sampled=999)
    parts = segments_of(tmp_path / "r")
    assert len(parts) > 2
    heard, rewatch = again(parts[-1])
    assert rewatch.memory.hello is not None
    assert rewatch.memory.inventory == surroundings().inventory
    assert [a.finding.where.rule for a in heard.anomalies] == [RULE.text]


def later(event: Event) -> Event:
    return event._replace(ktime_ns=event.ktime_ns + 8 * SECOND)


@pytest.mark.parametrize("end", [0.2, 0.5, 0.9])
def test_a_torn_recording_is_told_as_far_as_it_goes(end: float, tmp_path: Path) -> None:
    live = watched(tmp_path / "r", ALL)
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "torn").write_bytes(data[: int(len(data) * end)])
    try:
        heard, rewatch = again(tmp_path / "torn")
    except K8snetError:
        return
    assert heard.anomalies == live.anomalies[: len(heard.anomalies)]
    assert any("has no end" in note for note in rewatch.content.notes)


# --- told again ------------------------------------------------------------------------------------------------------


def report(path: Path, **by: str) -> WatchReport:
    import io

    return retold([path], Silent(io.StringIO(), "r"), Chosen(**by))


def test_a_report_has_the_times_and_the_cost_of_then(tmp_path: Path) -> None:
    watched(tmp_path / "r", ALL)
    whole = report(tmp_path / "r")
    assert whole.pods == 4
    assert whole.cost.cpu_seconds == 0.5  # from the beginning to the end
    assert "a name is missing" in whole.notes
    assert any(note.startswith("replayed from") for note in whole.notes)
    assert sum(whole.by_code.values()) == whole.counts.anomalies == 2


def test_anomalies_are_chosen(tmp_path: Path) -> None:
    watched(tmp_path / "r", ALL)
    codes = report(tmp_path / "r").by_code
    for code, number in codes.items():
        assert report(tmp_path / "r", finding=code).by_code == {code: number}
    assert report(tmp_path / "r", client="shop/cart", protocol="tcp").by_code == codes
    assert report(tmp_path / "r", server="svc/shop/web").by_code == codes
    for none in ({"client": "shop/web-1"}, {"protocol": "udp"}, {"server": "svc/shop/empty:80"}):
        with pytest.raises(K8snetError, match="none of the 2 anomalies"):
            report(tmp_path / "r", **none)
    for unknown in ("shop/nobody", "svc/shop/web:81"):
        with pytest.raises(K8snetError, match=r"nobody|no port 81"):
            report(tmp_path / "r", server=unknown)


def test_of_a_healthy_watch_nothing_is_chosen_and_nothing_was_wrong(tmp_path: Path) -> None:
    watched(tmp_path / "r", HEALTHY)
    assert report(tmp_path / "r", protocol="udp").by_code == {}


@pytest.mark.parametrize("output", ["text", "wide", "json", "jsonl"])
def test_the_command_tells_a_watch(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched(tmp_path / "r", ALL)
    assert execute(["replay", str(tmp_path / "r"), "-o", output]) == 1
    printed = capsys.readouterr().out
    if output in ("json", "jsonl"):
        last = json.loads(printed if output == "json" else printed.splitlines()[-1])
        assert (last["kind"], last["counts"]["anomalies"]) == ("WatchReport", 2)
    else:
        assert "RULE_DROP" in printed


def test_a_watch_has_no_single_flow_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched(tmp_path / "r", ALL)
    assert execute(["replay", str(tmp_path / "r"), "-o", "html"]) == 2
    assert "no single flow" in capsys.readouterr().err


def test_the_numbers_of_a_drop_are_read_where_they_stand() -> None:
    event = drop("10.0.0.1:1 > 10.0.0.2:2", 1, "eth0", 12, "nf_hook_slow")
    assert _NAMED.unpack_from(record_of(event)) == (event.location, event.reason, event.probe)
