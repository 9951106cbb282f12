"""Every kind of document and line that we print has a published schema, and keeps to it.

The schemas of reports, maps and watches have tests of their own beside those of their documents.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator, ValidationError

from k8snet.agent import lines
from k8snet.cli.check import document
from k8snet.kernel.abilities import Abilities, Fact, Tracing
from k8snet.kernel.loader import ProbeStatus
from k8snet.probes import PROBES
from unit.streams import stream, syn, syn_ack

ROOT: Final = Path(__file__).parents[2]
SCHEMAS: Final = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "docs/schema").glob("*.schema.json"))
}
_KIND: Final = re.compile(r'"apiVersion": (?:API_VERSION|"k8snet[^"]+"),\s+"kind": "(\w+)"')
LINES: Final[dict[str, Any]] = SCHEMAS["agent-line"]
CHECK: Final[dict[str, Any]] = SCHEMAS["check-report"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_a_schema_and_says_where_it_lives(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"https://k8snet.io/schema/v1alpha1/{name}.schema.json"


def test_every_kind_of_document_that_is_printed_has_a_schema() -> None:
    printed = {
        kind
        for path in (ROOT / "tracer/k8snet").rglob("*.py")
        for kind in _KIND.findall(path.read_text(encoding="utf-8"))
    }
    known = {part["title"] for part in SCHEMAS.values()}
    known |= {name for part in SCHEMAS.values() for name, one in part["$defs"].items() if "kind" in one["properties"]}
    assert printed >= {"TraceReport", "TraceHop", "ExpectedPath", "CheckReport", "InterfaceMap"}
    assert printed <= known


@pytest.mark.parametrize("kind", lines.KINDS)
def test_every_field_of_a_line_is_in_the_schema_and_no_other(kind: str) -> None:
    assert set(LINES["$defs"][kind]["properties"]) == {"line", *(f.name for f in fields(lines.KINDS[kind]))}


def test_a_line_of_each_kind_keeps_to_the_schema() -> None:
    (there, _), (back, _) = syn(), syn_ack()
    written = [json.loads(line) for line in stream("node-1", [*there, *back]).splitlines()]
    others = (lines.Error("no BTF", "k8snet check"), lines.Counts(1, 1, 0), lines.Rules(()))
    written += [json.loads(lines.written(line)) for line in others]
    for line in written:
        Draft202012Validator(LINES).validate(line)
    assert {line["line"] for line in written} >= set(lines.KINDS) - {"names"}


@pytest.mark.parametrize(
    "line",
    [{"line": "ready"}, {"line": "ready", "ktime_ns": "1"}, {"line": "counts", "connections": 1}, {"line": "what"}],
)
def test_the_schema_refuses_what_is_no_line(line: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(LINES).validate(line)


@pytest.mark.parametrize("ok", [True, False])
def test_what_check_prints_keeps_to_the_schema(ok: bool) -> None:
    found = Abilities(
        "6.12.1",
        (Fact("root", ok, "uid 1000", required=True, loss="everything", fix="sudo k8snet check"),),
        tuple(ProbeStatus(probe, ok, "" if ok else "no BTF id") for probe in PROBES),
    )
    made = document(found)
    Draft202012Validator(CHECK).validate(made)
    assert {name for probe in made["probes"] for name in probe} <= set(CHECK["$defs"]["Probe"]["properties"])
    assert {name for fact in made["checks"] for name in fact} <= set(CHECK["$defs"]["Check"]["properties"])
    assert set(made) == set(CHECK["required"])
    assert set(CHECK["properties"]["tracing"]["enum"]) == {str(word) for word in Tracing}
