"""How much room text takes on a terminal, and how to make it fit: pad, cut in the middle, wrap at spaces.

Width is counted in cells and not in characters: a name may hold wide (CJK) or combining characters, and
one miscounted name would push every column behind it out of line. All text here is inert already.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def cells(text: str) -> int:
    """Columns that `text` takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_cells(c) for c in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def pad(text: str, width: int) -> str:
    """`text` filled with spaces on the right."""
    return text + " " * (width - cells(text))


def head(text: str, width: int) -> str:
    """As many characters from the front as fit in `width` columns."""
    if text.isascii():
        return text[: max(width, 0)]
    used = 0
    for index, char in enumerate(text):
        used += _cells(char)
        if used > width:
            return text[:index]
    return text


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, with … in the middle when something had to go: both ends tell pods apart."""
    if cells(text) <= width:
        return text
    tail = head(text[::-1], width // 2)[::-1]
    return head(text, width - 1 - cells(tail)) + "…" + tail


def wrap(text: str | Iterable[str], width: int) -> list[str]:
    """Lines of at most `width` columns, broken between words; a word that is longer than a line is broken anywhere."""
    width = max(width, 2)
    lines: list[str] = []
    line = ""
    for whole in text.split(" ") if isinstance(text, str) else text:
        word = whole
        if line and cells(line) + 1 + cells(word) <= width:
            line += " " + word
            continue
        if line:
            lines.append(line)
        while cells(word) > width:
            part = head(word, width)
            lines.append(part)
            word = word[len(part) :]
        line = word
    return [*lines, line]
