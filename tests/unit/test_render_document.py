"""The document says what the report says, and the published schema says what the document is."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from k8snet import report as model
from k8snet.event import FiveTuple
from k8snet.render.document import HopLines, document, dumps, dumps_expected
from unit.reports import (
    ALL,
    SERVICE,
    SYN_TO_POD,
    expected_path,
    forward_policy_drop,
    hostile_names,
    last_seen,
    rp_filter,
)

SCHEMA: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "docs/schema/trace-report.schema.json").read_text("utf-8")
)
HOP_SCHEMA: Final = {"$ref": "#/$defs/TraceHop", "$defs": SCHEMA["$defs"]}
REPORTS = pytest.mark.parametrize("name", ALL)
OBJECTS: Final[dict[str, tuple[str, ...]]] = {
    "Report": ("apiVersion", "kind", *(f.name for f in fields(model.Report))),
    "Finding": (*(f.name for f in fields(model.Finding)), "doc"),
    "FiveTuple": FiveTuple._fields,
    **{
        kind.__name__: tuple(f.name for f in fields(kind))
        for kind in (
            model.Party,
            model.Hop,
            model.Path,
            model.Place,
            model.FlowView,
            model.Expected,
            model.Way,
            model.Step,
            model.Difference,
            model.DnsView,
            model.DnsQuery,
            model.DnsResolver,
        )
    },
}


def schema_of(kind: str) -> dict[str, Any]:
    """The part of the schema that describes one class of `k8snet.report`."""
    part: dict[str, Any] = SCHEMA if kind == "Report" else SCHEMA["$defs"][kind]
    return part


def words_of(part: dict[str, Any]) -> set[object]:
    return set(part["enum"])


def values_of(words: type[StrEnum]) -> set[str]:
    return {word.value for word in words}


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@REPORTS
def test_every_document_is_valid(name: str) -> None:
    Draft202012Validator(SCHEMA).validate(json.loads(dumps(ALL[name]())))


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_field_is_in_the_schema_and_required_and_no_other(kind: str) -> None:
    part = schema_of(kind)
    assert set(part["properties"]) == set(OBJECTS[kind])
    assert set(part["required"]) == set(OBJECTS[kind])


def test_the_schema_has_the_words_of_the_enums() -> None:
    assert words_of(SCHEMA["properties"]["verdict"]) == values_of(model.Verdict)
    assert words_of(SCHEMA["$defs"]["Finding"]["properties"]["severity"]) == values_of(model.Severity)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "lost"),
        (("kind",), "Report"),
        (("connections",), "3"),
        (("flow", "client", "port"), 70000),
        (("paths", 0, "hops", 0, "header", "saddr"), None),
        (("findings", 0, "severity"), "fail"),
        (("findings", 0, "fix"), "iptables -P FORWARD ACCEPT"),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    whole: Any = json.loads(dumps(forward_policy_drop()))
    part = whole
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert [list(e.absolute_path) for e in Draft202012Validator(SCHEMA).iter_errors(whole)] == [list(path)]


def test_nothing_is_lost_on_the_way_to_json() -> None:
    made = document(rp_filter())
    assert json.loads(dumps(rp_filter())) == made
    assert (made["apiVersion"], made["kind"], made["verdict"]) == ("k8snet.io/v1alpha1", "TraceReport", "reply-lost")
    assert made["flow"]["original"] == {
        "saddr": "10.244.1.10", "daddr": "10.96.0.80", "sport": 50508, "dport": 80, "protocol": 6
    }  # fmt: skip
    (finding,) = made["findings"]
    assert finding["doc"] == "docs/findings/RP_FILTER.md"
    assert finding["where"]["device"] == "eth0"
    assert finding["severity"] == "FAIL"
    assert [len(path["hops"]) for path in made["paths"]] == [5, 2]


def test_json_holds_nothing_that_a_terminal_acts_upon_and_still_the_true_name() -> None:
    text = dumps(hostile_names(), one_line=True)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["flow"]["client"]["pod"] == hostile_names().flow.client.pod


def test_each_hop_is_one_valid_line_as_it_comes() -> None:
    stream = io.StringIO()
    watcher = HopLines(stream)
    watcher.note("not a line")
    watcher.counts(1, 0, 0)
    for hop in SYN_TO_POD:
        watcher.hop("request", "SYN", hop)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["hop"]["device"] for line in lines] == ["eth0", "veth3f2a", None, "veth91c0", "eth0"]
    for line in lines:
        Draft202012Validator(HOP_SCHEMA).validate(line)
        assert (line["kind"], line["direction"], line["packet"]) == ("TraceHop", "request", "SYN")


def test_what_the_path_should_be_is_a_document_of_its_own() -> None:
    made = json.loads(dumps_expected(SERVICE, expected_path()))
    Draft202012Validator({"$ref": "#/$defs/ExpectedPath", "$defs": SCHEMA["$defs"]}).validate(made)
    assert made["kind"] == "ExpectedPath"
    assert [step["device"] for step in made["expected"]["ways"][0]["request"]][3:5] == ["cni0", "veth91c0"]
    assert "\n" not in dumps_expected(SERVICE, expected_path(), one_line=True)


def test_a_difference_is_in_the_document_of_the_report() -> None:
    made = document(last_seen())["expected"]["difference"]
    assert (made["step"]["device"], made["instead"]) == ("veth91c0", "nothing more was seen of it")
    assert document(rp_filter())["expected"] is None


def test_the_report_fits_on_the_last_line() -> None:
    assert "\n" not in dumps(forward_policy_drop(), one_line=True)
