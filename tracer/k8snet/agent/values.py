"""Values as JSON and back, by their types: dataclasses, tuples, mappings, addresses, enums.

In: a value of a type that is written down in annotations. Out: what `json.dumps` takes. Back it goes only when every
part has the type that was promised, because it comes from another machine: everything else is a `BadValueError`. A
field that the other side did not send has its default; one that nobody here knows is left out.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class BadValueError(ValueError):
    """It is not of the type that it should be."""


def plain(value: object) -> Any:
    """`value` in lists, dicts and scalars; a mapping whose keys are no text becomes a list of pairs."""
    if value is None or isinstance(value, (bool, float)) or type(value) in (int, str):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (IPv4Address, IPv6Address)):
        return str(value)
    if dataclasses.is_dataclass(value):
        given = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {f.name: plain(v) for f, v in given if not _is_default(f, v)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: plain(v) for key, v in value.items()}
        return [[plain(key), plain(v)] for key, v in value.items()]
    if isinstance(value, (tuple, list, frozenset)):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} cannot be written down")


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is not dataclasses.MISSING and type(value) is type(field.default) and value == field.default


def read(kind: type[T], raw: object) -> T:
    """The value of that type which `plain` made `raw` from. Raises BadValueError."""
    value: T = _read(kind, raw)
    return value


def _read(kind: Any, raw: Any) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(inside, raw)
    if origin is Literal:
        return _scalar(raw in inside and isinstance(raw, str), kind, raw)
    if origin is tuple:
        items = _scalar(isinstance(raw, list), kind, raw)
        kinds = [inside[0]] * len(items) if inside[-1] is Ellipsis else list(inside)
        _scalar(len(kinds) == len(items), kind, raw)
        return tuple(_read(k, item) for k, item in zip(kinds, items, strict=True))
    if origin is frozenset:
        return frozenset(_read(inside[0], item) for item in _scalar(isinstance(raw, list), kind, raw))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(inside, raw)
    if not isinstance(kind, type):
        raise TypeError(f"{kind} cannot be read")
    if issubclass(kind, (IPv4Address, IPv6Address)):
        return _address(kind, raw)
    if issubclass(kind, Enum):
        return _enum(kind, raw)
    if issubclass(kind, tuple):  # a NamedTuple
        items = _scalar(isinstance(raw, list), kind, raw)
        hints = list(_hints(kind).values())
        _scalar(len(hints) == len(items), kind, raw)
        return kind(*(_read(k, item) for k, item in zip(hints, items, strict=True)))
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, raw)
    if kind is float:
        return float(_scalar(type(raw) in (int, float), kind, raw))
    return _scalar(kind is object or type(raw) is kind, kind, raw)


def _scalar(fits: bool, kind: object, raw: Any) -> Any:
    if not fits:
        raise BadValueError(f"{str(raw)[:40]!r} is no {getattr(kind, '__name__', kind)}")
    return raw


def _one_of(kinds: tuple[Any, ...], raw: Any) -> Any:
    if raw is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _read(kind, raw)
            except BadValueError as error:
                last = error
    raise last


def _mapping(inside: tuple[Any, ...], raw: Any) -> dict[Any, Any]:
    key, value = inside
    if isinstance(raw, dict):
        return {_read(key, k): _read(value, v) for k, v in raw.items()}
    pairs = _scalar(isinstance(raw, list) and all(isinstance(p, list) and len(p) == 2 for p in raw), dict, raw)
    return {_read(key, k): _read(value, v) for k, v in pairs}


def _address(kind: type, raw: Any) -> Any:
    make = ip_interface if issubclass(kind, (IPv4Interface, IPv6Interface)) else ip_address
    try:
        found = make(_scalar(isinstance(raw, str), kind, raw))
    except ValueError:
        raise BadValueError(f"{str(raw)[:40]!r} is no IP address") from None
    return _scalar(isinstance(found, kind), kind, found)


def _enum(kind: type[Enum], raw: Any) -> Any:
    try:
        return kind(raw)
    except ValueError as error:
        raise BadValueError(str(error)) from None


def _dataclass(kind: Any, raw: Any) -> Any:
    given = _scalar(isinstance(raw, dict), kind, raw)
    hints = _hints(kind)
    try:
        return kind(
            **{f.name: _read(hints[f.name], given[f.name]) for f in dataclasses.fields(kind) if f.name in given}
        )
    except TypeError as error:  # a field without a default is missing
        raise BadValueError(f"{kind.__name__}: {error}") from None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
