"""The scenarios of vagrant/ on the namespace lab, by the runner and the interface that a real cluster has too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from k8snet.lab import lab
from live.conftest import about_processes

pytestmark = about_processes
RUNNER = Path(__file__).parents[2] / "vagrant" / "run.py"
PLAYED = 12  # what every machine can play with iptables-nft; the rest changes the whole machine


def runner(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"K8SNET_PYTHON": sys.executable, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(RUNNER), "--lab", "namespaces", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_every_scenario_finds_what_it_expects_and_is_mended() -> None:
    with runner() as process:
        printed, said = process.communicate()
    assert process.returncode == 0, printed + said
    assert f"{PLAYED} played, {PLAYED} as expected" in printed, printed
    assert re.search(r"^mended +none +none +ok", printed, re.MULTILINE), printed
    assert lab.leftovers() == []


@pytest.mark.parametrize(
    ("sign", "status", "told"),
    [
        pytest.param(signal.SIGINT, 130, "what was broken is mended", id="ctrl-c"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, "", id="sigkill"),
    ],
)
def test_a_runner_that_is_stopped_leaves_no_lab(sign: signal.Signals, status: int, told: str) -> None:
    with runner("forward-drop") as process:
        assert process.stdout is not None
        process.stdout.readline()  # the head of the table: the lab is up, and the scenario begins
        time.sleep(1)  # somewhere in it
        process.send_signal(sign)
        _, said = process.communicate()
    assert process.returncode == status
    assert told in said
    deadline = time.monotonic() + 20
    while lab.leftovers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lab.leftovers() == []
