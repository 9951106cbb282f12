"""What C and Python both say must be the same: the record, the probe numbers, the catalogue and the programs.

The C side is read from the compiled object's own BTF, so that a comment or a stale header cannot lie. Opening an object
asks nothing of the kernel.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8snet import event
from k8snet.event import LAYOUT, PAYLOAD_MAX, Encap, Event, ProbeId
from k8snet.kernel.libbpf import Object
from k8snet.kernel.loader import MAX_CLIENTS, MAX_PEERS, MAX_PORTS, OBJECT
from k8snet.probes import FALLBACKS, PROBES, Probe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Object]:
    """The object that the wheel ships."""
    with Object(OBJECT) as opened:
        yield opened


def python_fields() -> list[tuple[str, int, int]]:
    """(name, offset, size) of each field of Event, as its format strings have them; padding left out."""
    formats = re.findall(r"\d*[A-Za-z]", event._HEAD + event._TAIL.format.removeprefix("="))
    fields, offset, names = [], 0, iter(Event._fields)
    for code in formats:
        size = struct.calcsize("=" + code)
        # A count before a letter other than `s` and `x` repeats the field.
        single = code[-1] if code[-1] not in "sx" else code
        for _ in range(size // struct.calcsize("=" + single)):
            width = struct.calcsize("=" + single)
            if code[-1] != "x":
                fields.append((next(names), offset, width))
            offset += width
    assert list(names) == ["payload"], "Event has fields that the format does not"  # which follows the record
    return fields


def test_event_is_the_same_record_in_c_and_python(compiled: Object) -> None:
    c_fields = [(name, offset, size) for name, offset, size in compiled.btf.members("event") if name != "pad"]
    assert c_fields == python_fields()


def test_record_has_no_bytes_beyond_the_last_field(compiled: Object) -> None:
    name, offset, size = compiled.btf.members("event")[-1]
    assert (name, offset + size) == ("table", LAYOUT.size)


def test_payload_follows_the_record(compiled: Object) -> None:
    """One call sends both, so nothing may lie between them."""
    members = {name: (offset, size) for name, offset, size in compiled.btf.members("work")}
    offset, size = members["event"]
    assert size == LAYOUT.size
    assert members["payload"] == (offset + size, PAYLOAD_MAX)


def test_tuple_is_the_same_in_c_and_python(compiled: Object) -> None:
    members = compiled.btf.members("tuple")
    assert [(name, size) for name, _, size in members] == [
        ("saddr", 16),
        ("daddr", 16),
        ("sport", 2),
        ("dport", 2),
        ("protocol", 1),
        ("family", 1),
        ("pad", 2),
    ]
    assert members[-1][1] + members[-1][2] == event._TUPLE.size


def test_probe_numbers_are_the_same(compiled: Object) -> None:
    in_c = {name.removeprefix("PROBE_"): value for value, name in compiled.btf.enum("probe_id").items()}
    del in_c["MAX"]
    assert in_c == {probe.name: probe.value for probe in ProbeId}


def test_encapsulations_are_the_same(compiled: Object) -> None:
    in_c = {name.removeprefix("ENCAP_"): value for value, name in compiled.btf.enum("encap").items()}
    assert in_c == {encap.name: encap.value for encap in Encap}


def test_catalogue_lists_every_program_and_no_other(compiled: Object) -> None:
    listed = {program for probe in PROBES for program in (*probe.programs, *probe.fallback)}
    assert listed == set(compiled.programs)


def test_catalogue_says_where_each_program_attaches(compiled: Object) -> None:
    listed = {probe.name: probe.section for probe in PROBES}
    listed |= {f"{probe.name}_exit": probe.exit_section for probe in PROBES if probe.exit_section}
    ways = ("kretprobe", "kprobe")
    listed |= {p: f"{way}/{probe.target}" for probe in PROBES for way, p in zip(ways, probe.fallback, strict=False)}
    assert listed == {name: program.section for name, program in compiled.programs.items()}


def test_catalogue_lists_every_probe_once_in_order() -> None:
    assert [probe.id for probe in PROBES] == list(ProbeId)
    assert [probe.name for probe in PROBES] == [probe.name.lower() for probe in ProbeId]


def test_catalogue_lists_every_source_file_and_no_other() -> None:
    assert {*(probe.source for probe in PROBES), FALLBACKS} == {path.name for path in (ROOT / "probes").glob("*.bpf.c")}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_source_file_holds_the_program_that_the_catalogue_says(probe: Probe) -> None:
    text = (ROOT / "probes" / probe.source).read_text()
    assert f'SEC("{probe.section}")' in text


def test_limits_are_the_same() -> None:
    text = (ROOT / "bpf" / "filter.h").read_text()
    assert f"#define MAX_CLIENTS {MAX_CLIENTS}\n" in text
    assert f"#define MAX_PORTS {MAX_PORTS}\n" in text
    assert re.search(rf"max_entries, {MAX_PEERS}\)[^}}]*}} peers ", text)


def test_no_probe_costs_a_wakeup() -> None:
    text = (ROOT / "bpf" / "emit.h").read_text()
    assert re.findall(r"bpf_ringbuf_\w+\(.*BPF_RB.*?\)", text) == [
        "bpf_ringbuf_output(&events, e, sizeof(*e) + payload, BPF_RB_NO_WAKEUP)"
    ]
    for source in (ROOT / "probes").glob("*.bpf.c"):
        assert "bpf_ringbuf" not in source.read_text(), source.name
