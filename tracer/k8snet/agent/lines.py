"""The lines that an agent writes: one JSON object each, `"line"` says which kind. docs/agent.md is its description.

In: a value of one of the classes here. Out: a line; and back, from lines that may have been cut, mixed with others (a
pod's log has stderr in it) or written by another version: `read` returns None for what is none of ours and raises
`BadLineError` for what was one and is damaged.

Events go as the kernel's records, packed. Measured for 4000 events: 0.9 us and 45 bytes each, as JSON 8.5 us and 353.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from k8snet.agent.values import BadValueError, plain, read
from k8snet.cluster.interfaces import Owner
from k8snet.cluster.inventory import Inventory
from k8snet.event import LAYOUT, Address
from k8snet.findings.case import Wire
from k8snet.kernel.conntrack import Fill, Rivals
from k8snet.kernel.devices import Attached
from k8snet.kernel.resolver import Resolver
from k8snet.kernel.rtnetlink import InterfaceAddress, Link, Neighbour, Route, RouteQuestion
from k8snet.kernel.rules import NamedRule
from k8snet.kernel.ruletrace import RuleStep
from k8snet.report import Expected
from k8snet.trace import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
VERSION: Final = 1
LAYOUT_ID: Final = f"{LAYOUT.size}-{zlib.crc32(LAYOUT.format.encode()):08x}"
# So many in a line, which then stays below the 16 KiB at which container runtimes cut lines.
BATCH: Final = 256  # records
PAYLOADS: Final = 4096  # bytes of payload, likewise
STEPS: Final = 32  # rules


class BadLineError(ValueError):
    """A line of ours that was damaged on its way."""


@dataclass(frozen=True)
class Hello:
    """The first line. The two clocks are read at the same moment."""

    version: int
    k8snet: str
    layout: str  # of the records: their size and a checksum of what stands where
    node: str
    kernel: str
    monotonic_ns: int
    realtime_ns: int
    whole: bool = False  # nothing was left out: this is all that a trace's own judgement had (a recording)
    record: str = ""  # the fields of a record, so that a version that has others can read it (`k8snet.record.layout`)


@dataclass(frozen=True)
class Ready:
    """Every probe is attached: from here on everything is seen."""

    ktime_ns: int


@dataclass(frozen=True)
class Names:
    """What this kernel calls the numbers in the events that follow; empty: it has no name."""

    reasons: Mapping[int, str] = field(default_factory=dict)
    symbols: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """Records, one after the other; `first` is the number of the first of them in the whole stream."""

    first: int
    count: int
    records: str  # base64 of zlib
    payloads: Mapping[int, int] = field(default_factory=dict)  # which of them have how many bytes more, at the end


@dataclass(frozen=True)
class Rules:
    """Rules that packets met."""

    steps: tuple[RuleStep, ...]


@dataclass(frozen=True)
class Counts:
    """How far it has got; at most once a second."""

    connections: int
    answered: int
    lost: int


@dataclass(frozen=True)
class Facts:
    """What is known of this node; later lines add to earlier ones. Fields as in `k8snet.findings.case.Surroundings`."""

    request: Request | None = None  # with no more names than this flow needs
    inventory: Inventory | None = None  # likewise, at the end
    client_netns: int | None = None
    backend_netns: Mapping[Address, int] = field(default_factory=dict)
    parties: frozenset[int] = frozenset()  # netns
    owners: Mapping[int, Owner] = field(default_factory=dict)
    ports: frozenset[int] | None = None  # of our own sockets
    send_errors: tuple[int, ...] = ()
    settings: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    rises: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    listening: Mapping[tuple[int, str, int], int] = field(default_factory=dict)
    backlogs: Mapping[tuple[int, str, int], tuple[int, int]] = field(default_factory=dict)
    attached: Mapping[tuple[int, str], tuple[Attached, ...]] = field(default_factory=dict)
    tables: Mapping[int, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    enter: Mapping[int, str] = field(default_factory=dict)
    wires: Mapping[Address, Wire] = field(default_factory=dict)
    routes: Mapping[RouteQuestion, Route] = field(default_factory=dict)
    neighbours: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    forwarding: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    links: Mapping[int, Mapping[str, Link]] = field(default_factory=dict)
    addresses: Mapping[int, Mapping[str, tuple[InterfaceAddress, ...]]] = field(default_factory=dict)
    fills: Mapping[int, Fill] = field(default_factory=dict)
    resolvers: Mapping[int, Resolver] = field(default_factory=dict)
    rivals: Mapping[int, Rivals] = field(default_factory=dict)  # by the number of the event
    rules: Mapping[int, NamedRule] = field(default_factory=dict)  # by the number of the event that dropped
    rule_naming: str = ""
    notes: tuple[str, ...] = ()
    expected: Expected | None = None


@dataclass(frozen=True)
class Error:
    """It cannot go on: what is wrong, and what to do."""

    problem: str
    remedy: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bye:
    """The last line."""

    ktime_ns: int
    events: int  # so many were written
    lost: Mapping[str, int] = field(default_factory=dict)  # not seen, by probe
    strangers: int = 0  # of netns that are not this node's: another node shares the kernel


Line = Hello | Ready | Names | Events | Rules | Counts | Facts | Error | Bye
KINDS: Final[dict[str, type[Line]]] = {
    kind.__name__.lower(): kind for kind in (Hello, Ready, Names, Events, Rules, Counts, Facts, Error, Bye)
}


def written(line: object) -> str:
    """The line's text, without its end."""
    return json.dumps({"line": type(line).__name__.lower()} | plain(line), separators=(",", ":"))


def understood(text: str) -> Line | None:
    """The line that `text` is; None for what no agent wrote, or a newer one did. Raises BadLineError."""
    return parsed(text, KINDS)


def parsed(text: str, kinds: Mapping[str, type[T]]) -> T | None:
    """The same for lines of these kinds."""
    text = text.strip()
    if not text.startswith('{"line":'):
        return None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLineError(f"cut or damaged: {text[:40]}") from None
    kind = kinds.get(str(raw.get("line")))
    if kind is None:
        return None
    try:
        return read(kind, raw)
    except BadValueError as error:
        raise BadLineError(f"{raw['line']}: {error}") from None


def packed(first: int, records: Sequence[bytes]) -> Events:
    """Records as a line; level 1, because more takes twice the time for a quarter less."""
    size = LAYOUT.size
    payloads = {n: len(record) - size for n, record in enumerate(records) if len(record) > size}
    raw = b"".join(records) if not payloads else b"".join([r[:size] for r in records] + [r[size:] for r in records])
    return Events(first, len(records), base64.b64encode(zlib.compress(raw, 1)).decode(), payloads)


def batches(records: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """So many at a time as one line can hold."""
    start = payload = 0
    for number, record in enumerate(records):
        payload += len(record) - LAYOUT.size
        if number > start and (number - start == BATCH or payload > PAYLOADS):
            yield records[start:number]
            start, payload = number, len(record) - LAYOUT.size
    if start < len(records):
        yield records[start:]


def unpacked(line: Events) -> Iterable[bytes]:
    """The records of a line. Raises BadLineError when they are not as many as it says."""
    if not 0 <= line.count <= BATCH:
        raise BadLineError(f"events: {line.count} records in a line")
    if not all(0 <= n < line.count and 0 < more < 1 << 16 for n, more in line.payloads.items()):
        raise BadLineError("events: payloads of no record, or of no length")
    plain_size = line.count * LAYOUT.size
    size = plain_size + sum(line.payloads.values())
    try:
        # Bounded: few bytes can be made to grow to very many.
        raw = zlib.decompressobj().decompress(base64.b64decode(line.records, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise BadLineError(f"events: {error}") from None
    if len(raw) != size:
        raise BadLineError(f"events: {line.count} records of {LAYOUT.size} bytes promised, {len(raw)} bytes found")
    return _cut(raw, plain_size, line.payloads)


def _cut(raw: bytes, payload_at: int, payloads: Mapping[int, int]) -> Iterator[bytes]:
    for number, at in enumerate(range(0, payload_at, LAYOUT.size)):
        more = payloads.get(number, 0)
        yield raw[at : at + LAYOUT.size] + raw[payload_at : payload_at + more]
        payload_at += more
