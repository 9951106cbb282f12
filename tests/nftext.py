"""An nft table's text as a value that can be compared: what `nft list table` prints, without its order."""

from __future__ import annotations

import re

Objects = dict[str, list[str]]  # "chain services", "map service-ips" -> its lines; elements are lines of their own

_HEAD = re.compile(r"\t((?:chain|map|set) \S+) \{")
# Not behind a comma inside of a comment: kube-proxy's have none.
_ELEMENTS = re.compile(r"elements = \{ (.*) \}")


def objects(text: str) -> Objects:
    """The sets, maps and chains of one table. Rules keep their order, elements (which have none) are sorted."""
    found: Objects = {}
    lines: list[str] = []
    for line in re.sub(r",\n\s+", ", ", text).splitlines():
        if head := _HEAD.fullmatch(line):
            lines = found[head[1]] = []
        elif line.startswith("\t\t"):
            elements = _ELEMENTS.fullmatch(line.strip())
            lines += sorted(elements[1].split(", ")) if elements else [line.strip()]
    return found
