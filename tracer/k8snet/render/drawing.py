"""One packet's way as a drawing: a line from top to bottom, with a stop for each device and each decision of a hook.

In: a `Path` whose text is inert already. Out: an SVG element for a page of HTML. A box stands for a network namespace,
the box around it for its node. Text is wrapped by counting columns of a monospaced font, so nothing is cut and nothing
overlaps, whatever a name is made of. Colours are classes of report.css.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from xml.etree.ElementTree import Element as Node

from k8snet.render.cells import cells, wrap
from k8snet.render.text import arrow, device, due, place
from k8snet.report import Difference, Hop, Path

_WIDTH: Final = 470
_CELL: Final = 7.9  # the widest of the usual monospaced fonts, at 13px
_SMALL: Final = 7.3  # at 12px
_EDGE: Final = 12  # from a box to what is in it
_LINE: Final = 18  # from one line of text to the next
_STOP: Final = 12  # between two stops
_ENDS: Final = {"delivered": ("✓ arrived", "good"), "last seen": ("last seen here", "warn")}


def child(parent: Node, tag: str, text: str = "", cls: str = "", **attributes: str) -> Node:
    """A new element at the end of `parent`; `text` is text, whatever is in it."""
    made = Node(tag, {**({"class": cls} if cls else {}), **attributes})
    made.text = text or None
    parent.append(made)
    return made


def drawing(path: Path, expected: Difference | None, *, lost: bool) -> Node:
    """The whole of it. `expected`: what should have come after the last stop; `lost`: not everything was seen."""
    svg = Node("svg", {"role": "img", "class": "way"})
    child(svg, "title", f"The way of the {path.direction}, {path.packet}, from top to bottom")
    boxes, rails, stops = child(svg, "g"), child(svg, "g"), child(svg, "g")
    pen = _Pen(path, boxes, rails, stops)
    before: Hop | None = None
    for _, on_node in groupby(path.hops, lambda hop: hop.node):
        hops = list(on_node)
        pen.enter_node(hops[0].node)
        for _, inside in groupby(hops, lambda hop: (hop.netns, hop.pod)):
            same = list(inside)
            pen.enter("host network" if same[0].node and not same[0].pod else place(same[0]))
            for hop in same:
                said = list(_said(hop, before))
                if hop is path.hops[-1] and not hop.verdict and path.ended in _ENDS:
                    said.append(_ENDS[path.ended])
                pen.stop(hop, said, arrived=hop is path.hops[-1] and path.ended == "delivered")
                before = hop
            pen.leave()
        pen.leave_node()
    if expected is not None:
        problem = f"; {expected.step.problem}" if expected.step.problem else ""
        pen.ghost(f"expected next: {due(expected)}{problem}", "warn")
    if path.never_reached is not None:
        pen.ghost(path.never_reached, "name", "not seen there" if lost else "never reached")
    svg.set("viewBox", f"0 0 {_WIDTH} {pen.y:.0f}")
    svg.set("width", str(_WIDTH))
    svg.set("height", f"{pen.y:.0f}")
    return svg


def _said(hop: Hop, before: Hop | None) -> Iterator[tuple[str, str]]:
    """Lines beneath a stop, with their style; the header only where it is new."""
    if (before is None or before.header != hop.header) and not hop.nat:
        yield arrow(hop.header), "muted"
    if hop.nat:
        yield hop.nat, "nat"
    if hop.encap and (before is None or before.encap != hop.encap):
        yield hop.encap.replace(" > ", " → "), "nat"
    if hop.verdict:
        yield f"✗ {hop.verdict}", "bad"
    if hop.detail:
        yield hop.detail.replace(" > ", " → "), "muted"


@dataclass
class _Box:
    top: float
    element: Node


class _Pen:
    """Where the drawing has got to, from top to bottom."""

    def __init__(self, path: Path, boxes: Node, rails: Node, stops: Node) -> None:
        self.y = 2.0
        self._boxes, self._rails, self._stops = boxes, rails, stops
        widest = max((cells(_us(hop)) for hop in path.hops), default=1)
        self._time = 2 * _EDGE + max(widest, 2) * _SMALL  # its right edge
        self._rail = self._time + 20
        self._text = self._rail + 18
        self._last: float | None = None  # where the line ends
        self._node: _Box | None = None
        self._netns: _Box | None = None

    def enter_node(self, name: str | None) -> None:
        """What follows is on this node."""
        self._node = self._box("node", 1, 8)
        if name:
            self._label(f"node {name}", "node")
        self.y += 8

    def leave_node(self) -> None:
        """The node ends here."""
        self._close(self._node, 0)
        self.y += 18

    def enter(self, name: str) -> None:
        """What follows is in this network namespace."""
        self._netns = self._box("netns", 8, 6)
        self.y += 3
        self._label(name, "name")
        self.y += 6

    def leave(self) -> None:
        """The network namespace ends here."""
        self._close(self._netns, 4)
        self.y += 10

    def stop(self, hop: Hop, said: list[tuple[str, str]], *, arrived: bool) -> None:
        """One hop: a disc for a device, a diamond for a hook, a cross where the packet died."""
        self.y += _LINE
        middle = self.y - 4.5
        self._rail_to(middle, "rail")
        kind = "dead" if hop.verdict else "arrived" if arrived else "device" if hop.device else "hook"
        x = self._rail
        if kind == "dead":
            child(self._stops, "circle", cls="stop dead", cx=_n(x), cy=_n(middle), r="10")
            for sign in (1, -1):
                child(self._stops, "line", cls="cross", x1=_n(x - 4), y1=_n(middle - 4 * sign),
                      x2=_n(x + 4), y2=_n(middle + 4 * sign))  # fmt: skip
        elif kind == "hook":
            points = " ".join(f"{_n(x + a)},{_n(middle + b)}" for a, b in ((0, -7), (7, 0), (0, 7), (-7, 0)))
            child(self._stops, "polygon", cls="stop hook", points=points)
        else:
            child(self._stops, "circle", cls=f"stop {kind}", cx=_n(x), cy=_n(middle), r="6")
        time = self._write(self._stops, _us(hop), "time", self._time, self.y)
        time.set("text-anchor", "end")
        self._lines(device(hop).strip(), "hook" if kind == "hook" else "device", _CELL, first=True)
        for text, style in said:
            self._lines(text, style, _SMALL)
        self.y += _STOP

    def ghost(self, text: str, style: str, more: str = "") -> None:
        """What was not seen: at the end of a dotted line."""
        self.y += _LINE + 4
        middle = self.y - 4.5
        self._rail_to(middle, "rail unseen")
        child(self._stops, "circle", cls="stop unseen", cx=_n(self._rail), cy=_n(middle), r="6")
        self._lines(text, style, _CELL if style == "name" else _SMALL, first=True)
        if more:
            self._lines(more, "bad" if more == "never reached" else "warn", _SMALL)
        self.y += _STOP

    def _rail_to(self, y: float, cls: str) -> None:
        if self._last is not None:
            child(self._rails, "line", cls=cls, x1=_n(self._rail), y1=_n(self._last), x2=_n(self._rail), y2=_n(y))
        self._last = y

    def _box(self, cls: str, inset: float, corner: int) -> _Box:
        element = child(self._boxes, "rect", cls=f"box {cls}", x=_n(inset), y=_n(self.y), rx=str(corner),
                        width=_n(_WIDTH - 2 * inset))  # fmt: skip
        return _Box(self.y, element)

    def _close(self, box: _Box | None, below: float) -> None:
        if box is not None:
            self.y += below
            box.element.set("height", _n(self.y - box.top))

    def _label(self, text: str, cls: str) -> None:
        for line in wrap(text, self._room(_CELL)):
            self.y += _LINE
            self._write(self._boxes, line, cls, self._text, self.y)

    def _room(self, cell: float) -> int:
        return int((_WIDTH - 8 - _EDGE - self._text) / cell)

    def _lines(self, text: str, cls: str, cell: float, *, first: bool = False) -> None:
        room = self._room(cell)
        for line in wrap(text.replace("→ ", "→\xa0").split(" "), room):
            if not first:
                self.y += _LINE - 1
            first = False
            self._write(self._stops, line.replace("\xa0", " "), cls, self._text, self.y)

    @staticmethod
    def _write(parent: Node, text: str, cls: str, x: float, y: float) -> Node:
        return child(parent, "text", text, cls=cls, x=_n(x), y=_n(y))


def _us(hop: Hop) -> str:
    return f"{hop.us:.0f}"


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
