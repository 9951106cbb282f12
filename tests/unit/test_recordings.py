"""Recordings that a real trace and a real watch of the lab have made, once: every later version replays them.

The golden files are what `k8snet replay` printed on the day they were made. When the words of a report change, they are
made anew, by `K8SNET_UPDATE_GOLDEN=1`; the recordings never are.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from datetime import UTC
from pathlib import Path
from typing import Final

import pytest

from k8snet.cli import execute

RECORDINGS: Final = Path(__file__).parents[1] / "recordings"
NAMES: Final = sorted(path.name for path in RECORDINGS.glob("*.k8snet"))


def test_there_is_one_of_each_kind() -> None:
    assert len(NAMES) >= 2
    assert any(name.startswith("watch") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_replays_to_its_golden_text(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(RECORDINGS)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("k8snet.render.watch.ZONE", UTC)
    execute(["replay", name, "-o", "wide"])
    printed = capsys.readouterr().out
    golden = RECORDINGS / f"{name.removesuffix('.k8snet')}.txt"
    if "K8SNET_UPDATE_GOLDEN" in os.environ:
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_with_nothing_but_the_page(name: str) -> None:
    """As docs/replay.md has it, and without a line of k8snet."""
    data = (RECORDINGS / name).read_bytes()
    assert data[:8] == bytes.fromhex("896b38736e65740a")
    major, minor, part, own, number, check = struct.unpack("<HHI8sQI", data[8:36])
    assert (major, minor, part, number, check) == (1, 0, 1, 0, zlib.crc32(data[:32]))
    seed, at, text, events = zlib.crc32(own), 36, "", 0
    while at < len(data):
        kind, zero, length, frame, body_check, head_check = struct.unpack("<HHIQII", data[at + 4 : at + 28])
        body = data[at + 28 : at + 28 + length]
        assert data[at : at + 4] == bytes.fromhex("f56b388f")
        assert (zero, frame) == (0, number)
        assert (body_check, head_check) == (zlib.crc32(body, seed), zlib.crc32(data[at : at + 24], seed))
        plain = zlib.decompress(body)
        if kind == 1:
            text += plain.decode() + "\n"
        else:
            assert kind == 2
            first, count, size = struct.unpack("<QIH", plain[:14])
            assert first == events
            events += count
            rest = plain[14 + count * size :]
            while rest:
                of, more = struct.unpack("<IH", rest[:6])
                assert of < count
                rest = rest[6 + more :]
            assert size == sum(struct.calcsize("=" + field.split(":")[1]) for field in layout_of(text))
        at, number = at + 28 + length, number + 1
    last = json.loads(text.splitlines()[-1])
    assert (last["line"], last["events"]) == ("bye", events)


def layout_of(text: str) -> list[str]:
    fields: list[str] = json.loads(text.splitlines()[0])["record"].split()
    return fields
