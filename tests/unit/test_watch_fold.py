"""The first is told at once, the same thing again at growing intervals, and a storm stays within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k8snet.report import Severity
from k8snet.watch.fold import OF_A_CODE, QUIET, SECOND, Fold, Told, sorted_by_weight
from unit.anomalies import POLICY_DROP, anomaly, found, stranger


def told_over(fold: Fold, seconds: int, *, each_ms: int) -> list[Told]:
    """One anomaly of the same pair every `each_ms` milliseconds; all that is told, looked at ten times a second."""
    lines: list[Told] = []
    for at in range(0, seconds * 1000, 100):
        for ms in range(at, at + 100, each_ms):
            line = fold.add(anomaly(ms / 1000))
            lines += [line] if line else []
        lines += fold.due((at + 100) * SECOND // 1000)
    return lines


def test_the_first_is_told_at_once() -> None:
    told = Fold().add(anomaly())
    assert told is not None
    assert (told.count, told.ns, told.total, told.repeated, told.first_of_code) == (1, 0, 1, False, True)


def test_repeats_are_told_at_growing_intervals_and_every_one_is_counted() -> None:
    fold = Fold()
    lines = told_over(fold, 200, each_ms=50)
    assert [line.ns / SECOND for line in lines] == pytest.approx([0, 10, 30, 60], abs=0.2)
    assert [line.total for line in lines] == pytest.approx([1, 200, 800, 2000], abs=5)
    [last] = fold.rest(200 * SECOND)
    assert sum(line.count for line in (*lines, last)) == 4000 == last.total


def test_the_intervals_grow_and_end_with_the_longest() -> None:
    """Once a minute for five hours."""
    fold, waits = Fold(), []
    for minute in range(300):
        fold.add(anomaly(60 * minute))
        waits += [line.ns // SECOND for line in fold.due(60 * minute * SECOND)]
    assert waits == [60, 60, 60, 300, 900, 3600, 3600, 3600, 3600]


def test_nothing_is_told_twice() -> None:
    fold = Fold()
    fold.add(anomaly())
    assert fold.due(100 * SECOND) == []
    assert fold.rest(100 * SECOND) == []


def test_what_comes_again_after_a_long_quiet_is_told_at_once() -> None:
    fold = Fold()
    fold.add(anomaly())
    assert fold.add(anomaly(1)) is None
    fold.due(20 * SECOND)
    told = fold.add(anomaly(QUIET / SECOND + 2))
    assert told is not None
    assert (told.count, told.total, told.first_of_code) == (1, 3, False)


def test_other_parties_are_another_thing_and_the_explanation_comes_once() -> None:
    fold = Fold()
    lines = [fold.add(anomaly(client=pod)) for pod in ("shop/a", "shop/b", "shop/a")]
    assert [line.first_of_code if line else None for line in lines] == [True, False, None]
    other = fold.add(anomaly(finding=found()))
    assert other is not None
    assert other.first_of_code


def test_the_same_drop_before_another_endpoint_is_the_same_thing() -> None:
    fold = Fold()
    for device in ("vethweb-1", "vethweb-2"):
        fold.add(anomaly(finding=replace(POLICY_DROP, where=replace(POLICY_DROP.where, device=device))))
    assert [entry.count for entry in fold.entries()] == [2]


def test_what_concerns_the_node_has_no_parties() -> None:
    fold = Fold()
    assert fold.add(anomaly(flow=None)) is not None
    assert fold.add(anomaly(1, flow=None)) is None
    assert [entry.count for entry in fold.entries()] == [2]


def test_a_storm_of_parties_has_so_many_lines_and_entries_and_an_exact_count() -> None:
    """A port scan, or a Service that everybody uses and that is gone."""
    fold = Fold()
    lines = [fold.add(anomaly(n / 1000, flow=stranger(n), client="")) for n in range(20_000)]
    entries = list(fold.entries())
    assert len(entries) == OF_A_CODE + 1
    assert len([line for line in lines if line]) == OF_A_CODE + 1
    assert sum(entry.count for entry in entries) == 20_000
    assert dict(fold.by_code) == {("FORWARD_POLICY_DROP", Severity.FAIL): 20_000}
    [shared] = fold.due(20 * SECOND)[-1:]
    assert shared.others == 20_000 - OF_A_CODE
    # Another code has room of its own.
    assert fold.add(anomaly(20, found())) is not None


def test_an_entry_that_has_been_quiet_gives_way() -> None:
    fold = Fold()
    for n in range(OF_A_CODE):
        fold.add(anomaly(n, flow=stranger(n), client=""))
    late = QUIET / SECOND + OF_A_CODE
    told = fold.add(anomaly(late, flow=stranger(999), client=""))
    assert told is not None
    assert told.others == 0
    assert len(list(fold.entries())) == OF_A_CODE
    assert fold.by_code["FORWARD_POLICY_DROP", Severity.FAIL] == OF_A_CODE + 1


def test_the_slowest_is_kept() -> None:
    fold = Fold()
    for seconds in (1.0, 7.0, 3.0, None):
        fold.add(anomaly(seconds=seconds))
    assert [entry.slowest for entry in fold.entries()] == [7.0]


def test_what_is_active_has_shown_itself_lately() -> None:
    fold = Fold()
    fold.add(anomaly(0, found("NO_REPLY")))
    fold.add(anomaly(400, found("SLOW_CONNECT", Severity.WARN)))
    assert fold.active(500 * SECOND, 300 * SECOND) == {("SLOW_CONNECT", Severity.WARN)}


def test_what_is_worst_comes_first_and_then_what_is_most_frequent() -> None:
    fold = Fold()
    for n, made in enumerate(
        (found("SLOW_CONNECT", Severity.WARN), found("NO_REPLY"), found("REFUSED"), found("REFUSED"))
    ):
        fold.add(anomaly(n, made))
    codes = [entry.anomaly.finding.code for entry in sorted_by_weight(fold.entries())]
    assert codes == ["REFUSED", "NO_REPLY", "SLOW_CONNECT"]
