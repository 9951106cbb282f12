"""A Report as a document: the JSON of `-o json`, and the lines of `-o jsonl`.

Field names are those of `k8snet.report`, plus `apiVersion` and `kind`; an address pair becomes an object, `doc` of a
finding is written out. The published schema is docs/schema/trace-report.schema.json; fields may be added within
v1alpha1, none is left out when it is empty. JSON escapes what a terminal would act upon, so names stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import NoneType, UnionType
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

from k8snet.event import Address, FiveTuple
from k8snet.report import Expected, Finding, FlowView, Hop, Report

if TYPE_CHECKING:
    from k8snet.watch.report import Seen, WatchReport

API_VERSION: Final = "k8snet.io/v1alpha1"


def document(report: Report) -> dict[str, Any]:
    """The `TraceReport`, made of dictionaries, lists, strings and numbers only."""
    return {"apiVersion": API_VERSION, "kind": "TraceReport", **_plain(report)}


def hop_document(direction: str, packet: str, hop: Hop) -> dict[str, Any]:
    """A `TraceHop`: one packet was seen at one more place."""
    return {
        "apiVersion": API_VERSION, "kind": "TraceHop", "direction": direction, "packet": packet, "hop": _plain(hop)
    }  # fmt: skip


def dumps(report: Report, *, one_line: bool = False) -> str:
    """The document as ASCII-only JSON text, without a newline at its end."""
    return json.dumps(document(report), indent=None if one_line else 2)


def report_of(document: Mapping[str, Any]) -> Report:
    """The Report that `document` was made of, perhaps by another version. Raises ValueError when it is none."""
    if document.get("kind") != "TraceReport":
        raise ValueError(f"kind is {document.get('kind')!r}")
    report: Report = _built(Report, document)
    return report


def hop_of(document: Mapping[str, Any]) -> tuple[str, str, Hop]:
    """Direction, packet and Hop of a `TraceHop`. Raises ValueError when it is none."""
    if document.get("kind") != "TraceHop":
        raise ValueError(f"kind is {document.get('kind')!r}")
    return _built(str, document.get("direction")), _built(str, document.get("packet")), _built(Hop, document.get("hop"))


def dumps_expected(flow: FlowView, expected: Expected, *, one_line: bool = False) -> str:
    """An `ExpectedPath` as ASCII-only JSON text: what the path should be, without any packet."""
    made = {"apiVersion": API_VERSION, "kind": "ExpectedPath", "flow": _plain(flow), "expected": _plain(expected)}
    return json.dumps(made, indent=None if one_line else 2)


def dumps_anomaly(seen: Seen) -> str:
    """A `WatchAnomaly` as one line of ASCII-only JSON text: it went wrong, so many times since the line before."""
    return json.dumps({"apiVersion": API_VERSION, "kind": "WatchAnomaly", **_plain(seen)})


def dumps_watch(report: WatchReport, *, one_line: bool = False) -> str:
    """The `WatchReport` as ASCII-only JSON text."""
    made = {"apiVersion": API_VERSION, "kind": "WatchReport", **_plain(report)}
    return json.dumps(made, indent=None if one_line else 2)


class HopLines:
    """Looks on while a trace runs and writes each hop as one line of JSON; the report is the caller's last line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def ready(self) -> None:
        """Nothing: every line is a hop or the report."""

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """One line, at once: whoever reads the pipe wants to see it now."""
        self._stream.write(json.dumps(hop_document(direction, packet, hop)) + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Nothing: notes stand in the report."""

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """Nothing: the counts stand in the report."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, FiveTuple):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {**plain, "doc": value.doc} if isinstance(value, Finding) else plain
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _built(kind: Any, value: Any) -> Any:
    """What `_plain` made into `value`, which should be a `kind`; a field that is missing has its default."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind == Address:
        return ip_address(_of(str, value))
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _built(next(one for one in inner if one is not NoneType), value)
    if origin is tuple:
        return tuple(_built(inner[0], item) for item in _of(list, value))
    if origin is dict:
        return {_of(str, key): _built(inner[1], item) for key, item in _of(dict, value).items()}
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{value!r:.40} is none of {', '.join(map(str, inner))}")
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is FiveTuple or is_dataclass(kind):
        given, types, make = _of(dict, value), get_type_hints(kind), cast(Callable[..., Any], kind)
        try:
            return make(**{name: _built(types[name], given[name]) for name in types if name in given})
        except TypeError as error:
            raise ValueError(str(error)) from None
    if kind is float:
        return float(_of(int | float, value))
    return _of(kind, value)


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r:.40} is no {kind}")
    return value
