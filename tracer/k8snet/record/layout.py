"""What stands where in a record, written down, so that records of another version can be read.

In: the description that came with a recording. Out: its records as records of this version: fields are found by name,
those that this version does not know are left out, those that the other one did not have are zero.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from k8snet.event import FORMAT, BadRecordError, Event

_CODE: Final = re.compile(r"(\d*)([QIiHBsx])")
_FIELD: Final = re.compile(r"(\w{1,32}):(\d{0,4}[QIiHBsx])")
_PAD: Final = "_"
_LARGEST: Final = 4096  # bytes; no record is
_MOST: Final = 256  # fields


def _fields() -> Iterator[tuple[str, str]]:
    names = iter(Event._fields)
    for count, code in _CODE.findall(FORMAT):
        if code == "x":
            yield _PAD, f"{count}x"
        elif code == "s":
            yield next(names), f"{count}s"
        else:
            yield from ((next(names), code) for _ in range(int(count or 1)))


FIELDS: Final = tuple(_fields())
DESCRIPTION: Final = " ".join(f"{name}:{code}" for name, code in FIELDS)
_OURS: Final = struct.Struct(f"={FORMAT}")


class Layout:
    """The records of the version that wrote `description`. Raises ValueError when it describes nothing."""

    def __init__(self, description: str) -> None:
        found = [_FIELD.fullmatch(word) for word in description[: _LARGEST * 2].split()]
        fields = [(match[1], match[2]) for match in found if match is not None]
        if not fields or len(fields) < len(found) or len(fields) > _MOST:
            raise ValueError("a record without a description")
        self._struct = struct.Struct("=" + "".join(code for _, code in fields))
        if not 0 < self._struct.size <= _LARGEST:
            raise ValueError(f"records of {self._struct.size} bytes")
        self.size = self._struct.size
        self._same = description == DESCRIPTION
        theirs = {name: (code, number) for number, (name, code) in enumerate(f for f in fields if f[1][-1] != "x")}
        # Text of another length is another thing; a number of another width is the same one.
        self._from = [
            number if number is not None and (code[-1] != "s" or their_code == code) else None
            for name, code in FIELDS
            if code[-1] != "x"
            for their_code, number in [theirs.get(name, ("", None))]
        ]
        self._none = [b"" if code[-1] == "s" else 0 for _, code in FIELDS if code[-1] != "x"]

    def ours(self, record: bytes) -> bytes:
        """The same as a record of this version, with its payload. Raises BadRecordError when a number does not fit."""
        if self._same:
            return record
        values = self._struct.unpack_from(record)
        fitting = (none if n is None else values[n] for n, none in zip(self._from, self._none, strict=True))
        try:
            return _OURS.pack(*fitting) + record[self.size :]
        except (struct.error, TypeError) as error:
            raise BadRecordError(f"a record of another version: {error}") from None
