"""Which rule drops a connection's SYN: looked for only where one has died, and only for a while.

A watch does not trace the rules of all pods: that would cost each packet something. When a SYN dies in a packet filter,
a table of our own comes into that netns and marks this one connection; TCP sends its SYN again a second later, and the
kernel tells which rules that one meets (`k8snet.kernel.blame`). After some quiet seconds the table goes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from k8snet.errors import K8snetError
from k8snet.event import Address, TcpFlag
from k8snet.findings.case import Case, Death, Surroundings
from k8snet.flow.model import Flow, Packet
from k8snet.kernel.blame import Blame, Drop
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.netns import Netns
from k8snet.kernel.rules import NamedRule
from k8snet.kernel.ruletrace import INSIST_MOST, Match, RuleStep

QUIET: Final = 5.0  # seconds without a death after which the table goes
LONGEST: Final = 60.0  # and after so many in any case ...
PAUSE: Final = 60.0  # ... for so many
AT_ONCE: Final = 2  # netns
KEPT_STEPS: Final = 4096


@dataclass(slots=True)
class _Here:
    """One netns whose rules are being traced."""

    blame: Blame
    stack: ExitStack
    began: float
    last: float
    insisted: set[tuple[Address, int, int]] = field(default_factory=set)


class Namer:
    """A context manager: at its end all tables are gone."""

    def __init__(self, guardian: Guardian, *, read_only: bool) -> None:
        self._guardian = guardian
        self._read_only = read_only
        self._here: dict[int, _Here] = {}
        self._paused: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inum in list(self._here):
            self._end(inum)

    def begin(self, flows: Iterable[Flow], around: Surroundings, there: Mapping[int, Netns]) -> None:
        """Of these a packet may have died in a packet filter: have the next one traced."""
        now = time.monotonic()
        for flow in (flow for flow in flows if any(packet.dropped for packet in flow.packets)):
            deaths = _deaths((flow,), around)
            here = self._traced(deaths[0].event.netns, flow, there, now) if deaths else None
            if here is None:
                continue
            here.last = now
            # Again after each death: the one before may have died before the table was there.
            key = flow.original.saddr, flow.original.sport, len(deaths)
            if key not in here.insisted and len(here.insisted) < INSIST_MOST:
                here.insisted.add(key)
                here.blame.insist(flow.original.saddr, flow.original.sport)

    def drain(self) -> None:
        """Take what the kernel has reported; end what is not needed any more."""
        now = time.monotonic()
        for inum, here in list(self._here.items()):
            here.blame.drain()
            del here.blame.steps[:-KEPT_STEPS]
            if now - here.last >= QUIET or now - here.began >= LONGEST:
                self._end(inum)
                if now - here.began >= LONGEST:
                    self._paused[inum] = now + PAUSE

    def name(self, flows: Collection[Flow], around: Surroundings) -> dict[int, NamedRule]:
        """The rules that dropped packets of these flows, by id(packet); gives the packets what was traced of them."""
        named: dict[int, NamedRule] = {}
        deaths = _deaths(flows, around) if self._here else []
        for inum, here in self._here.items():
            mine = [death for death in deaths if death.event.netns == inum]
            if not mine:
                continue
            here.blame.drain()
            for death in mine:
                if not death.packet.rules:
                    death.packet.rules = _steps_of(death.packet, here.blame.steps)
            # What died before we looked is in no counter's rise.
            counted = [d for d in mine if self._read_only and d.event.ktime_ns > here.began * 1e9]
            drops = counted if self._read_only else [d for d in mine if d.packet.rules]
            with contextlib.suppress(OSError, K8snetError):  # the netns is going
                named |= here.blame.name([Drop(id(d.packet), d.event, d.packet.rules) for d in drops])
        return named

    def _traced(self, inum: int, flow: Flow, there: Mapping[int, Netns], now: float) -> _Here | None:
        if inum in self._here:
            return self._here[inum]
        if inum not in there or len(self._here) >= AT_ONCE or now < self._paused.get(inum, 0.0):
            return None
        original = flow.original
        match = Match(original.protocol, (original.saddr,), ((original.daddr, original.dport),))
        with contextlib.suppress(OSError, K8snetError), ExitStack() as stack:
            blame = stack.enter_context(Blame((there[inum],), match, self._guardian, read_only=self._read_only))
            began = time.monotonic()
            self._here[inum] = _Here(blame, stack.pop_all(), began, began)
        return self._here.get(inum)

    def _end(self, inum: int) -> None:
        self._here.pop(inum).stack.close()


def _deaths(flows: Iterable[Flow], around: Surroundings) -> list[Death]:
    """Of SYNs and their answers, which are sent again, in a packet filter."""
    deaths = [death for flow in flows for death in Case(flow, around).deaths]
    return [death for death in deaths if death.netfilter and death.packet.has(TcpFlag.SYN)]


def _steps_of(packet: Packet, steps: Sequence[RuleStep]) -> list[RuleStep]:
    headers = {event.packet for event in packet.events}
    numbers = packet.key.ip_id, packet.key.seq
    return [s for s in steps if s.packet in headers and (s.ip_id == numbers[0] if s.ip_id else s.seq == numbers[1])]
