"""What an agent of two sees, shown while it sees it: hops as `k8snet trace` shows them on its own node.

In: the lines of one agent. Out: calls of a Watcher. The two halves become one in the report only: until both clocks can
be compared nobody knows whose hop came first.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from k8snet.agent import lines
from k8snet.cluster.interfaces import Owner
from k8snet.event import BadRecordError, Event
from k8snet.findings.words import label
from k8snet.flow.correlate import Correlator
from k8snet.flow.model import AT_DEVICE
from k8snet.path import Surface, hops

if TYPE_CHECKING:
    from k8snet.trace import Watcher


class Preview:
    """One agent's packets. `number`: which agent; two kernels give their netns the same numbers."""

    def __init__(self, watcher: Watcher, number: int) -> None:
        self._watcher = watcher
        self._number = number
        self._correlator: Correlator | None = None
        self._owners: dict[int, Owner] = {}
        self._parties: frozenset[int] = frozenset()

    def hear(self, line: lines.Line) -> None:
        """Show what is new in it. What is damaged is left out here; the report counts it."""
        if isinstance(line, lines.Facts):
            self._owners.update(line.owners)
            self._parties |= line.parties
            if line.request is not None:
                self._correlator = Correlator(line.request.client.addresses)
        elif isinstance(line, lines.Events) and self._correlator is not None:
            with suppress(lines.BadLineError):
                for record in lines.unpacked(line):
                    self._see(self._correlator, record)

    def _see(self, correlator: Correlator, record: bytes) -> None:
        try:
            event = Event.decode(record)
        except BadRecordError:
            return
        packet = correlator.feed(event)
        if packet is None or event.probe not in AT_DEVICE:
            return
        way = hops(packet, Surface(self._owners, self._parties))
        if way:
            hop = replace(way[-1], netns=way[-1].netns | self._number << 32)
            self._watcher.hop(packet.direction.value, label(packet), hop)
