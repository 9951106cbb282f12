"""Text from outside (pod names, DNS names, device names, rules) made harmless for a terminal.

A name may hold escape sequences, or rich's markup. `inert` leaves printable characters alone and shows the rest
as escapes; renderers hand the result to rich as `Text`, never as markup. `inert_all` does it for a whole value, so that
a renderer need not remember it for each field.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar, cast

T = TypeVar("T")


def inert(text: str) -> str:
    """`text` with every control and other non-printable character shown as an escape (newlines too)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def inert_all(value: T) -> T:
    """A copy of `value` in which every string is inert; looks into dataclasses, tuples and dictionaries."""
    return cast(T, _inert(value))


def _inert(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Enum):
        return inert(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _inert(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {_inert(key): _inert(item) for key, item in value.items()}
    if type(value) is tuple:  # a named tuple is a header: addresses and numbers
        return tuple(_inert(item) for item in value)
    return value
