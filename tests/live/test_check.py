"""`k8snet check` on the running kernel: it says the truth, leaves nothing behind, and is clear when it may not look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from k8snet.kernel.libbpf import KERNEL_BTF
from k8snet.kernel.loader import Filter, Tracer
from k8snet.probes import PROBES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")


# The interpreter may live where only root can read: everything is imported before root is given up.
WITHOUT_ROOT = """
import os, sys
import k8snet.kernel.abilities
from k8snet.cli import main, parser
parser()
sys.argv = ["k8snet", "check"]
os.setgid(65534)
os.setuid(65534)
sys.exit(main())
"""


def python(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a Python of its own."""
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_check_says_what_a_trace_then_gets() -> None:
    code, out, err = python("-m", "k8snet", "check", "-o", "json")
    said: dict[str, Any] = json.loads(out)
    assert err == ""
    assert code == {"whole": 0, "partial": 1, "impossible": 2}[said["tracing"]]
    with Tracer(Filter((ip_address("192.0.2.1"),)), also=[probe.id for probe in PROBES]) as tracer:
        got = {status.probe.name: status.attached for status in tracer.start()}
    assert {probe["name"]: probe["ok"] for probe in said["probes"]} == got


def test_check_agrees_with_the_kernel_about_types() -> None:
    said = json.loads(python("-m", "k8snet", "check", "-o", "json")[1])
    [types] = [fact["ok"] for fact in said["checks"] if fact["name"] == "kernel types (BTF)"]
    assert types == Path(KERNEL_BTF, "vmlinux").exists()


def test_check_without_root_names_everything_that_is_missing() -> None:
    code, out, _ = python("-c", WITHOUT_ROOT)
    assert code == 2
    for line in ("root: uid 65534", "capability BPF: not held", "fix:  sudo k8snet check", "Nothing can be traced"):
        assert line in out
    assert "Traceback" not in out
