"""What the lab's traces see, recorded and replayed: the same report, on a machine that has nothing to do with them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from k8snet.judge import judge
from k8snet.lab.lab import Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import seen_in
from k8snet.lab.scenarios import Scenario, by_name
from k8snet.record.replay import replayed
from k8snet.render.document import document
from k8snet.render.text import render
from live.conftest import patience
from live.test_cli import NOBODY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

SCENARIOS = tuple(
    by_name(name)
    for name in (
        "healthy-tcp-service",
        "forward-policy-drop",
        "no-endpoints",
        "lost-between-nodes",
        "snat-port-clash-tcp",
        "dns-servfail",
    )
)
# Another machine, as far as one kernel can be one: no network, no BTF, no namespaces of others, no root.
_ELSEWHERE: Final = """
set -e
mount -t tmpfs tmpfs /sys; mount -t tmpfs tmpfs /run
exec "$@"
"""


def elsewhere(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `k8snet replay` there."""
    return subprocess.run(
        [
            *("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", _ELSEWHERE, "sh"),
            *(*NOBODY, sys.executable, "-m", "k8snet", "replay", *map(str, words)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/nonexistent", "COLUMNS": "110"},
    )


def traced(lab: Lab, *words: str | Path) -> subprocess.Popen[str]:
    """A running `k8snet trace` of the lab's cart."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "k8snet", "trace", "--inventory", str(lab.inventory_file), "--from", "shop/cart"),
            *map(str, words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "110"},
    )


def without_origin(printed: str) -> dict[str, Any]:
    """The JSON of a report without what only a replay says."""
    report: dict[str, Any] = json.loads(printed)
    report["notes"] = [note for note in report["notes"] if not note.startswith("replayed from")]
    return report


# Not called "scenario": conftest.py shares out those of the lab, and these are few.
@pytest.mark.parametrize("played", SCENARIOS, ids=lambda played: played.name)
def test_a_replay_says_what_the_trace_said(played: Scenario, tmp_path: Path) -> None:
    if why := missing(played.needs):
        pytest.skip(why)
    with Lab.up(topology=played.topology) as lab:
        played.break_it(lab)
        seen = seen_in(lab, played, patience=patience(), record=tmp_path / "r")
        live = judge(seen)
    _, again = replayed([tmp_path / "r"])
    said, *notes = again.notes
    assert said.startswith("replayed from ")
    replay = document(again) | {"notes": notes}
    assert json.dumps(replay, indent=1) == json.dumps(document(live), indent=1), render(live, 110) + render(again, 110)


def test_a_watch_is_told_again_as_it_was(tmp_path: Path) -> None:
    played = by_name("forward-policy-drop")
    with Lab.up() as up:
        played.break_it(up)
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "k8snet", "watch", "--inventory", str(up.inventory_file), "-o", "json"),
                *("--duration", f"{8 * patience():g}s", "--record", str(tmp_path / "r")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stderr is not None
            assert "watching" in process.stderr.readline()
            for port in (80, 81):
                up.run_in("shop/cart", ["curl", "-s", "-m", "1.5", f"http://10.96.0.80:{port}/"])
            live, complaints = process.communicate(timeout=60 * patience())
    assert process.returncode == 1, complaints
    again = elsewhere(tmp_path / "r", "-o", "json")
    assert again.returncode == 1, again.stderr
    then, now = without_origin(live), without_origin(again.stdout)
    assert then["anomalies"]
    for name in ("anomalies", "by_code", "counts", "dns", "pods", "node", "notes"):
        assert now[name] == then[name], name


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as up:
        yield up


def test_nobody_on_another_machine_sees_what_root_saw(lab: Lab, tmp_path: Path) -> None:
    with traced(lab, "--to", "svc/shop/web:80", "--send", "3", "--record", tmp_path / "r", "-o", "json") as process:
        live, complaints = process.communicate(timeout=60 * patience())
    assert process.returncode == 0, complaints
    again = elsewhere(tmp_path / "r", "-o", "json")
    assert again.returncode == 0, again.stderr
    assert without_origin(again.stdout) == without_origin(live)
    for form in ("text", "wide"):
        shown = elsewhere(tmp_path / "r", "-o", form)
        assert shown.returncode == 0
        assert "pod/shop/cart" in shown.stdout


def test_a_killed_trace_leaves_what_it_had_seen(lab: Lab, tmp_path: Path) -> None:
    with traced(lab, "--to", "svc/shop/web:80", "--record", tmp_path / "r", "-o", "jsonl") as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 30 * patience()
        seen = False
        while not seen:
            assert process.poll() is None
            assert time.monotonic() < deadline
            lab.run_in("shop/cart", ["curl", "-s", "-m", "2", "http://10.96.0.80/"])
            seen = bool(select.select([process.stdout], [], [], 0.2)[0])
        time.sleep(1.5)
        process.kill()
    again = elsewhere(tmp_path / "r", "-o", "json")
    report = json.loads(again.stdout)
    assert report["connections"] == report["answered"] >= 1, again.stdout + again.stderr
    assert "end of the stream" in report["lost"]
    assert any("has no end" in note for note in report["notes"])


def test_a_full_disk_does_not_end_the_trace(lab: Lab, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], check=True)
    try:
        with traced(lab, "--to", "svc/shop/web:80", "--send", "20", "--record", small / "r", "-o", "json") as process:
            live, complaints = process.communicate(timeout=60 * patience())
        assert process.returncode == 0, complaints
        report = json.loads(live)
        assert report["answered"] == 20
        assert report["notes"][-1] == f"the recording {small / 'r'} is incomplete: No space left on device"
        assert json.loads(elsewhere(small / "r", "-o", "json").stdout)["lost"]
    finally:
        subprocess.run(["umount", small], check=True)
