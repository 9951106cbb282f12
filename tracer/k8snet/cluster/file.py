"""An `Inventory` from a file that kubectl wrote: `kubectl get pods,services,endpointslices,nodes,... -A -o json`.

In: a file (or `-`, standard input) with one JSON document or several after one another, each a List, a PodList and
the like, or one object. Out: the Inventory that `k8snet.cluster.objects` makes of them. Kinds that are not needed are
skipped; pods, services, endpointslices and nodes alone will do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from k8snet.cluster.inventory import Inventory
from k8snet.cluster.objects import KUBECTL, READERS, REMEDY, Value, joined, read
from k8snet.errors import K8snetError


def load(path: str | Path) -> Inventory:
    """The inventory in the file at `path` ("-": standard input); raises K8snetError when it is no inventory."""
    source = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise K8snetError(f"inventory {source}: no such file", f"make it: {KUBECTL} > {source}") from None
    except OSError as error:
        raise K8snetError(f"inventory {source}: {error.strerror}", REMEDY) from None
    return inventory(_documents(raw, source), source)


def inventory(documents: Iterable[Any], source: str) -> Inventory:
    """The inventory in decoded Kubernetes objects or lists of them; `source` says in messages where they came from.

    Raises K8snetError for the first object that is not as Kubernetes makes them: a file can be made anew.
    """
    values: list[Value] = []
    unknown: set[str] = set()
    recognised = False
    for document in documents:
        for number, (body, kind) in enumerate(_items(document, source)):
            value = read(body, kind, source, number)
            if value is None:
                unknown.add(kind)
            else:
                values.append(value)
        recognised |= _list_of(document) in READERS
    if unknown and not values and not recognised:
        raise K8snetError(f"inventory {source}: holds {', '.join(sorted(unknown))}, no pod, service or node", REMEDY)
    return joined(values, source)


def _documents(raw: bytes, source: str) -> Iterator[Any]:
    """Each JSON document in `raw`; PowerShell writes UTF-16, so the encoding is guessed as RFC 8259's parsers do."""
    decoder = json.JSONDecoder()
    try:
        text = raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        raise K8snetError(f"inventory {source}: not text (byte {error.start}), so not JSON", REMEDY) from None
    at = _blank(text, 0)
    if at == len(text):
        raise K8snetError(f"inventory {source}: empty", REMEDY)
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise K8snetError(
                f"inventory {source}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}", REMEDY
            ) from None
        except RecursionError:
            raise K8snetError(f"inventory {source}: nested too deeply to be Kubernetes objects", REMEDY) from None
        yield document
        at = _blank(text, at)


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _list_of(document: object) -> str:
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind.removesuffix("List") if isinstance(kind, str) and kind != "List" else ""


def _items(document: object, source: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    if not isinstance(document, dict):
        raise K8snetError(f"inventory {source}: holds {type(document).__name__}, expected Kubernetes objects", REMEDY)
    kind = document.get("kind")
    if not isinstance(kind, str):
        raise K8snetError(f"inventory {source}: no kind, so not a Kubernetes object", REMEDY)
    if kind == "Status":
        raise K8snetError(f"inventory {source}: holds an error of the API: {document.get('message')}", REMEDY)
    if "items" not in document:
        if kind == "List" or (kind.endswith("List") and _list_of(document) in READERS):
            raise K8snetError(f"inventory {source}: {kind} has no items", REMEDY)
        yield document, kind
        return
    items = document["items"]
    if not isinstance(items, list):
        raise K8snetError(f"inventory {source}: items is {type(items).__name__}, expected a list", REMEDY)
    for number, item in enumerate(items):
        # In a List each item says what it is; in a PodList none does.
        own = item.get("kind") if isinstance(item, dict) else None
        said = own or _list_of(document)
        if not isinstance(item, dict) or not isinstance(said, str) or not said:
            raise K8snetError(f"inventory {source}: items[{number}] is no Kubernetes object (no kind)", REMEDY)
        yield item, said
