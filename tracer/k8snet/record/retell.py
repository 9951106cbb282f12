"""A watch's recording told again: the lines, and the report at the end, as `k8snet watch` has told them.

In: a recording, which anomalies to tell, and a `Reader`. Out: a `WatchReport`. Times are those of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet.cluster import names
from k8snet.errors import Exit, K8snetError
from k8snet.record.replay import Chosen, opened, origin
from k8snet.record.watch import Clock, Rewatch
from k8snet.watch.audience import Audience, Reader, View

if TYPE_CHECKING:
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.targets import Target
    from k8snet.record.moments import Memory
    from k8snet.report import Party
    from k8snet.watch.anomaly import Anomaly
    from k8snet.watch.fold import Told
    from k8snet.watch.report import Clock as Times
    from k8snet.watch.report import WatchReport


@dataclass
class _Again:
    """A reader to whom nothing is said that is only true while it happens."""

    reader: Reader

    def ready(self, pods: int) -> None:
        """It was."""

    def told(self, told: Told, clock: Times) -> None:
        self.reader.told(told, clock)

    def note(self, text: str) -> None:
        self.reader.note(text)

    def view(self, view: View) -> None:
        """It passes faster than anybody can look."""

    def ended(self) -> bool:
        return False


class Picked:
    """Whether an anomaly is one of the chosen, by the names that there were at its time."""

    def __init__(self, chosen: Chosen, memory: Memory) -> None:
        self._chosen, self._memory = chosen, memory
        self._known: Inventory | None = None
        self._client: Target | None = None
        self._server: Target | None = None
        self.unknown: dict[str, K8snetError] = {}  # names that have meant nothing up to now, and why
        self.left_out = self.kept = 0

    def __call__(self, anomaly: Anomaly) -> bool:
        """Counts what it is asked."""
        fits = self._fits(anomaly)
        self.kept += fits
        self.left_out += not fits
        return fits

    def _fits(self, anomaly: Anomaly) -> bool:
        """What is about no flow has no ends to be chosen by."""
        chosen, flow = self._chosen, anomaly.flow
        if chosen.finding not in ("", anomaly.finding.code):
            return False
        if not (chosen.client or chosen.server or chosen.protocol):
            return True
        if flow is None or chosen.protocol not in ("", flow.protocol):
            return False
        self._resolve(self._memory.inventory)
        return (not chosen.client or _is(flow.client, self._client)) and (
            not chosen.server or _is(flow.server, self._server) or _is(flow.backend, self._server)
        )

    def _resolve(self, inventory: Inventory) -> None:
        if inventory is self._known:
            return
        known, self._known = self._known, inventory
        self._client = self._target(names.resolve_from, self._chosen.client, first=known is None)
        self._server = self._target(names.resolve_to, self._chosen.server, first=known is None)

    def _target(self, resolve: Callable[..., Target], text: str, *, first: bool) -> Target | None:
        if not text:
            return None
        try:
            target = resolve(text, self._known, self._chosen.namespace)
        except K8snetError as error:  # it was not there yet, or is gone
            if first:
                self.unknown[text] = error
            return None
        self.unknown.pop(text, None)
        return target


def _is(party: Party | None, target: Target | None) -> bool:
    if party is None or target is None:
        return False
    return party.ip in map(str, target.addresses) and target.port in (None, party.port)


@dataclass
class _Choosing(Audience):
    picked: Picked | None = None

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        """Those that were chosen."""
        super().found([a for a in anomalies if self.picked is None or self.picked(a)])


ALL: Final = Chosen()


def retold(paths: Sequence[Path], reader: Reader, chosen: Chosen = ALL) -> WatchReport:
    """Tell `reader` what the recording holds, and report. Raises K8snetError."""
    with ExitStack() as stack:
        content, *more = opened(paths, stack)
        if more:
            raise K8snetError(f"{len(more) + 1} recordings, and the first is of a watch", "replay them one by one")
        made: list[_Choosing] = []

        def audience_of(clock: Clock, memory: Memory) -> Audience:
            node = memory.hello.node if memory.hello else None
            made.append(
                _Choosing(_Again(reader), node, now_ns=clock.now_ns, wall=clock.wall, picked=Picked(chosen, memory))
            )
            return made[0]

        rewatch = Rewatch(content, audience_of)
        counts = rewatch.run()
        hello = rewatch.memory.hello
        for picked in (audience.picked for audience in made if audience.picked is not None):
            for error in picked.unknown.values():
                raise error
            if picked.left_out and not picked.kept:
                raise K8snetError(
                    f"none of the {picked.left_out} anomalies in the recording is one of those",
                    "leave out --from, --to, --protocol and --finding to see them all",
                    Exit.INCONCLUSIVE,
                )
        if not made or hello is None:
            raise K8snetError(f"{content.name} ended before anything was watched", "record it again")
        return made[0].finish(counts, (*rewatch.notes, origin(content.name, hello), *content.notes))
