"""What real packets look like in our exports, as tshark, a receiver of spans and a browser see it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from browser import browser, needs_browser
from k8snet.lab.lab import Lab
from k8snet.lab.play import seen_in
from k8snet.lab.scenarios import by_name
from k8snet.render.pcapng import blocks
from live.conftest import about_processes, patience
from tshark import faults, fields, needs_tshark
from unit.test_otel import Receiver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")
ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
# What stays the same however a packet is cut, and is never guessed.
HEADER: Final = ("ip.src", "ip.dst", "ip.id", "ip.ttl", "ip.len", "ip.flags.df", "tcp.seq_raw", "tcp.ack_raw",
                 "tcp.flags", "tcp.hdr_len", "tcp.len")  # fmt: skip


def lab_run(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "k8snet", "lab", "run", *words],
        capture_output=True, check=False, timeout=60 * patience(), env=ENVIRONMENT,
    )  # fmt: skip


@needs_tshark
def test_the_headers_are_those_that_tcpdump_captures(tmp_path: Path) -> None:
    scenario = by_name("healthy-tcp-remote-vxlan")
    real, made = tmp_path / "tcpdump.pcap", tmp_path / "k8snet.pcapng"
    with Lab.up(topology=scenario.topology) as lab:
        enter = ["nsenter", f"--net={lab.netns_of('shop/cart').path}"]
        dump = subprocess.Popen(
            [*enter, "tcpdump", "--immediate-mode", "-i", "eth0", "-U", "-w", str(real), "-Z", "root", "tcp port 80"]
        )
        try:
            deadline = time.monotonic() + 10 * patience()
            while not real.exists() or not real.stat().st_size:
                assert time.monotonic() < deadline, "tcpdump has not begun"
                time.sleep(0.05)
            seen = seen_in(lab, scenario, patience=patience())
            time.sleep(0.2 * patience())
        finally:
            dump.send_signal(signal.SIGINT)
            dump.wait(10 * patience())
    made.write_bytes(b"".join(blocks(seen)))
    assert not faults(made)
    captured = fields(real, *HEADER)
    assert captured
    assert fields(made, *HEADER, where='frame.interface_name == "shop/cart:eth0"') == captured
    # Within the tunnel, on both nodes.
    wire = fields(made, "frame.interface_name", "frame.protocols", where="vxlan && tcp.flags.syn == 1")
    assert [place for place, _ in wire] == ["node-1:eth0", "node-2:eth0", "node-2:eth0", "node-1:eth0"]


@needs_tshark
def test_a_drop_is_explained_where_it_happened(tmp_path: Path) -> None:
    done = lab_run("forward-policy-drop", "-o", "pcapng")
    assert done.returncode == 0, done.stderr
    capture = tmp_path / "drop.pcapng"
    capture.write_bytes(done.stdout)
    assert not faults(capture)
    rows = fields(capture, "frame.interface_name", "frame.comment", "frame.time_epoch", "tcp.dstport")
    ((place, said, when, port),) = (row for row in rows if "FAIL FORWARD_POLICY_DROP" in row[1])
    assert (place, port) == ("node-1:forward", "8080")
    assert "prerouting: DNAT to 10.244.1." in said
    assert "DROPPED here: policy DROP; table ip filter chain FORWARD; rule -P FORWARD DROP; kfree_skb: " in said
    assert abs(time.time() - float(when)) < 60 * patience()


@about_processes
@needs_browser
def test_a_report_is_a_page_and_a_trace_at_once(tmp_path: Path) -> None:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, args=(0.01,), daemon=True).start()
        done = lab_run("forward-rule-reject", "-o", "html", "--otlp", receiver.url)
        receiver.shutdown()
        spans = receiver.spans
    assert done.returncode == 0, done.stderr
    failed = {span.name for _, span in spans if span.status.code == 2}
    assert "forward" in failed
    assert {resource.get("k8s.pod.name") for resource, _ in spans} >= {"cart", None}
    (tmp_path / "report.html").write_bytes(done.stdout)
    with browser(tmp_path / "browser") as shown:
        shown.show(tmp_path / "report.html")
        assert shown.clutter() == []
        assert (shown.complaints, len(shown.requests)) == ([], 1)
        assert "RULE_REJECT" in shown.ask("document.querySelector('header').innerText")
        assert shown.ask("document.querySelectorAll('svg .dead').length") == 1
