"""`-o` and `--otlp` on the command line: what goes to stdout, what is refused, and before what."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tshark import faults, fields, needs_tshark
from unit.streams import BOOTED, stream, syn, syn_ack
from unit.test_record import DROPPED, record

ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def streams(tmp_path: Path) -> list[str]:
    """What the agents of two nodes have written of a healthy connection."""
    (here, there), (back_here, back_there) = syn(), syn_ack()
    texts = {"node-1": stream("node-1", [*here, *back_here]), "node-2": stream("node-2", [*there, *back_there])}
    for node, text in texts.items():
        (tmp_path / f"{node}.jsonl").write_text(text, encoding="utf-8")
    return [str(tmp_path / f"{node}.jsonl") for node in texts]


def join(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return k8snet("join", *words, **environment)


def k8snet(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "k8snet", *words],
        capture_output=True,
        check=False,
        timeout=60,
        env=ENVIRONMENT | environment,
    )


@needs_tshark
def test_a_capture_of_two_nodes_has_the_interfaces_of_both(streams: list[str], tmp_path: Path) -> None:
    done = join(*streams, "-o", "pcapng")
    assert (done.returncode, done.stderr) == (0, b"")
    capture = tmp_path / "both.pcapng"
    capture.write_bytes(done.stdout)
    assert not faults(capture)
    places = [place for (place,) in fields(capture, "frame.interface_name", where="tcp.flags.ack == 0")]
    assert places == ["shop/cart:eth0", "node-1:veth-cart", "node-1:eth0", "node-2:eth0", "node-2:veth-web-3",
                      "shop/web-3:eth0"]  # fmt: skip
    described = {about for (about,) in fields(capture, "frame.interface_description")}
    # The number that its own kernel has for it, which is the same on both.
    assert {"device eth0 of node node-1, netns 1", "device eth0 of node node-2, netns 1"} <= described
    times = [float(time) for (time,) in fields(capture, "frame.time_epoch")]
    assert times == sorted(times)
    assert int(times[0]) == BOOTED["node-1"] // 10**9


@needs_tshark
def test_a_recording_is_a_capture_and_a_page(tmp_path: Path) -> None:
    record(tmp_path / "trace.k8snet", DROPPED)
    done = k8snet("replay", str(tmp_path / "trace.k8snet"), "-o", "pcapng")
    assert (done.returncode, done.stderr) == (1, b"")
    (tmp_path / "trace.pcapng").write_bytes(done.stdout)
    assert not faults(tmp_path / "trace.pcapng")
    said = [comment for (comment,) in fields(tmp_path / "trace.pcapng", "frame.comment")]
    assert "DROPPED here" in said[-1]
    assert b"DROPPED" in k8snet("replay", str(tmp_path / "trace.k8snet"), "-o", "html").stdout


def test_a_page_is_utf8_in_any_locale(streams: list[str]) -> None:
    done = join(*streams, "-o", "html", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    page = done.stdout.decode()
    assert page.startswith("<!doctype html>\n")
    assert "pod/shop/cart → svc/shop/remote: delivered" in page
    assert "seen 2027-01-15" in page


def test_a_terminal_gets_no_capture(streams: list[str]) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "k8snet", "join", *streams, "-o", "pcapng"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"pcapng is no text for a terminal" in done.stderr
    assert b"> flow.pcapng" in done.stderr


def test_what_cannot_be_sent_is_said_before_anything_is_read(tmp_path: Path) -> None:
    done = join(str(tmp_path / "is-not-there"), "--otlp", "localhost:4318")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'localhost:4318' is not a URL of a collector" in done.stderr


def test_the_report_is_there_though_the_spans_did_not_arrive(streams: list[str]) -> None:
    done = join(*streams, "--otlp", "http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="1")
    assert done.returncode == 2
    assert b"DELIVERED" in done.stdout
    assert b"the spans were not taken by http://127.0.0.1:1" in done.stderr


def test_what_is_only_expected_cannot_be_exported() -> None:
    done = k8snet("trace", "--from", "a", "--to", "b", "--expect", "-o", "html")
    assert done.returncode == 2
    assert b"--expect traces nothing that could be exported" in done.stderr
