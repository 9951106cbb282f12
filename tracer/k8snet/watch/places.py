"""What the kernel says of places where something goes wrong: asked seldom, and remembered for a moment.

In: flows that are to be judged, or may soon be. Out: the parts of a `Surroundings` that only the kernel knows. Nothing
is asked while all goes well, but for the counters of the nodes' netns. Of a place where something begins to go wrong
the counters are read at once, so that a rise can be told a few seconds later, when it has come to nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from k8snet.event import ProbeId
from k8snet.findings.case import Case, Surroundings
from k8snet.flow.model import Flow
from k8snet.kernel import counters, devices, lookups
from k8snet.kernel.netns import Netns
from k8snet.kernel.sockets import backlogs, queues

FRESH: Final = 1.0  # seconds; so old may an answer be
COMPARED: Final = 12.0  # seconds; so long is a beginning kept to compare with
NODES_EVERY: Final = 5.0
AT_ONCE: Final = 16  # netns that are asked in one go; each takes some milliseconds


@dataclass(slots=True)
class _Place:
    """What was read in one netns."""

    begun: counters.Snapshot
    begun_at: float
    last: counters.Snapshot
    asked_at: float
    listening: dict[tuple[str, int], int]
    backlogs: dict[tuple[str, int], tuple[int, int]]


class Places:
    """Remembers what was asked. Give it the newest netns with each question."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}
        self._answers = lookups.Answers()
        self._answered: dict[int, float] = {}

    def look(self, flows: Iterable[Flow], around: Surroundings, there: Mapping[int, Netns]) -> None:
        """Something may be going wrong with these: note how it is where they go."""
        for inum in _netns_of(flows, around)[:AT_ONCE]:
            if inum not in self._places:
                self._read(inum, there)

    def nodes(self, inums: Iterable[int], there: Mapping[int, Netns]) -> None:
        """Of these the counters are read all the time."""
        for inum in inums:
            known = self._places.get(inum)
            if known is None or time.monotonic() - known.asked_at >= NODES_EVERY:
                self._read(inum, there)

    def known(self, flows: Collection[Flow], around: Surroundings, there: Mapping[int, Netns]) -> Surroundings:
        """`around` with all that these flows ask."""
        now = time.monotonic()
        for inum in _netns_of(flows, around)[:AT_ONCE]:
            known = self._places.get(inum)
            if known is None or now - known.asked_at >= FRESH:
                self._read(inum, there)
        self._forget(now)
        if flows:
            around = self._asked(flows, around, there)
        places = self._places
        return replace(
            around,
            settings={inum: place.last.settings for inum, place in places.items()},
            rises={inum: counters.delta(place.begun, place.last) for inum, place in places.items()},
            listening={(i, *socket): queue for i, place in places.items() for socket, queue in place.listening.items()},
            backlogs={(i, *socket): queue for i, place in places.items() for socket, queue in place.backlogs.items()},
        )

    def _read(self, inum: int, there: Mapping[int, Netns]) -> None:
        if inum not in there:
            return
        now = time.monotonic()
        with contextlib.suppress(OSError):  # it is going
            read = counters.Snapshot.take(there[inum])
            known = self._places.get(inum)
            if known is None:
                known = self._places[inum] = _Place(read, now, read, now, {}, {})
            elif now - known.begun_at > COMPARED:
                known.begun, known.begun_at = known.last, known.asked_at
            known.last, known.asked_at = read, now
            known.listening, known.backlogs = queues(there[inum]), backlogs(there[inum])

    def _forget(self, now: float) -> None:
        self._places = {i: place for i, place in self._places.items() if now - place.asked_at < COMPARED}
        if any(now - when >= FRESH for when in self._answered.values()):
            self._answers, self._answered = lookups.Answers(), {}

    def _asked(self, flows: Collection[Flow], around: Surroundings, there: Mapping[int, Netns]) -> Surroundings:
        cases = [Case(flow, replace(around, client_netns=_client(flow, around))) for flow in flows]
        answers = self._answers
        questions = {q for case in cases for q in case.questions} - answers.routes.keys()
        wires = [around.wires[a] for f in flows for a in (f.original.saddr, f.original.daddr) if a in around.wires]
        ends = {n for wire in wires for n in (wire.netns, wire.far_netns) if n is not None} - self._answered.keys()
        if questions or ends:
            new = lookups.ask(questions, ends, there)
            answers.routes |= new.routes
            answers.neighbours |= new.neighbours
            answers.links |= new.links
            answers.forwarding |= new.forwarding
            answers.addresses |= new.addresses
            self._answered |= dict.fromkeys((*(q.netns for q in questions), *ends), time.monotonic())
        attached: dict[tuple[int, str], tuple[devices.Attached, ...]] = {}
        for inum, names in _spots(cases).items():
            with contextlib.suppress(OSError):
                if inum in there:
                    found = devices.attached(there[inum], sorted(names))
                    attached |= {(inum, name): things for name, things in found.items()}
        return replace(
            around,
            routes=answers.routes,
            neighbours=answers.neighbours,
            forwarding=answers.forwarding,
            links=answers.links,
            addresses=answers.addresses,
            attached=attached,
        )


def _client(flow: Flow, around: Surroundings) -> int | None:
    return around.backend_netns.get(flow.original.saddr)


def _netns_of(flows: Iterable[Flow], around: Surroundings) -> list[int]:
    """Where these flows go: the ends' netns, and where a packet died or was last seen."""
    found: dict[int, None] = {}
    for flow in flows:
        ends = (flow.dnat or (flow.original.daddr, 0))[0], flow.original.saddr
        found |= dict.fromkeys(around.backend_netns[end] for end in ends if end in around.backend_netns)
        found |= dict.fromkeys(packet.last.netns for packet in flow.packets if packet.last.netns)
    return list(found)


def _spots(cases: Iterable[Case]) -> dict[int, set[str]]:
    """Devices at which something died or was last seen."""
    spots: dict[int, set[str]] = {}
    for event in (e for c in cases for p in c.flow.packets for e in (p.last, *(d.event for d in c.deaths))):
        if event.ifname and (event.probe is ProbeId.KFREE_SKB or event.probe is ProbeId.NETIF_RECEIVE_SKB):
            spots.setdefault(event.netns, set()).add(event.ifname)
    return dict(list(spots.items())[:AT_ONCE])
