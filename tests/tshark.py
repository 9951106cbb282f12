"""tshark as the judge of our capture files: what it reads from them, field by field."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

needs_tshark: Final = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark: apt-get install tshark")
ERROR: Final = "8388608"  # a severity of tshark's expert: PI_ERROR
# What is wrong with a packet, in tshark's opinion; that a packet is cut is not.
_WRONG: Final = "_ws.malformed || _ws.expert.severity == error"


def fields(capture: Path, *names: str, where: str = "") -> list[list[str]]:
    """For each packet the values of these fields, as tshark prints them; several of one name with `|` between them."""
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "aggregator=|", "-d", "udp.port==8472,vxlan"]
    command += ["-Y", where] if where else []
    done = subprocess.run(
        command + [word for name in names for word in ("-e", name)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def faults(capture: Path) -> list[list[str]]:
    """Packets that tshark finds malformed or wrong, and why."""
    return fields(capture, "frame.number", "_ws.expert.message", "_ws.malformed", where=_WRONG)


def about(capture: Path) -> str:
    """What capinfos says of the file."""
    return subprocess.run(["capinfos", str(capture)], capture_output=True, text=True, check=True, timeout=60).stdout
