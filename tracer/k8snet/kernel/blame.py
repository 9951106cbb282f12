"""Which rule did it: the ladder of ways to name a rule, over every netns on the flow's way.

First, traced rules (`RuleTrace`: a table of our own marks the flow's packets, the kernel reports each rule they meet).
Second, with --read-only or where that cannot be had, rule counters before and after. The third rung, engine and hook
from the place of the drop, needs nothing and is in the findings' evidence. Which rung spoke is always said.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from k8snet.errors import K8snetError
from k8snet.event import Address, Event
from k8snet.kernel import counters, devices
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.netns import Netns, own
from k8snet.kernel.rules import NamedRule, RuleBook, Snapshot, unreadable
from k8snet.kernel.ruletrace import Match, RuleStep, RuleTrace
from k8snet.kernel.sockets import backlogs, queues


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet that a netfilter hook dropped, and the rules that were traced for it."""

    packet: int  # id() of the packet, to give the answer back by
    event: Event
    steps: Sequence[RuleStep]


@dataclass(slots=True)
class Facts:
    """What the places on the way are set to, and what moved there during the trace."""

    settings: dict[int, dict[str, int]] = field(default_factory=dict)  # netns -> name -> value
    rises: dict[int, dict[str, int]] = field(default_factory=dict)  # netns -> counter -> by how much
    listening: dict[tuple[int, str, int], int] = field(default_factory=dict)  # (netns, protocol, port) -> queue
    backlogs: dict[tuple[int, str, int], tuple[int, int]] = field(default_factory=dict)  # ... -> waiting, at most
    tables: dict[int, dict[str, tuple[str, ...]]] = field(default_factory=dict)  # netns -> as `RuleBook.mixed` says
    # What hangs at a device and may drop there: (netns, device) -> programs and filters.
    attached: dict[tuple[int, str], tuple[devices.Attached, ...]] = field(default_factory=dict)
    enter: dict[int, str] = field(default_factory=dict)  # netns -> what to put before a command


class Blame:
    """Watches the rules of several netns while a trace runs; afterwards names the one behind each drop."""

    def __init__(self, places: Iterable[Netns], match: Match, guardian: Guardian, *, read_only: bool) -> None:
        self.steps: list[RuleStep] = []
        self.notes: list[str] = []
        self._places = {netns.inum: netns for netns in places}
        self._match = match
        self._guardian = guardian
        self._read_only = read_only
        self._stack = ExitStack()
        self._traces: dict[int, RuleTrace] = {}
        self._rules_before: dict[int, Snapshot] = {}
        self._counters_before: dict[int, counters.Snapshot] = {}
        self._books: dict[int, RuleBook] = {inum: RuleBook(netns) for inum, netns in self._places.items()}
        self._unread: list[RuleStep] = []
        # A drop may be in the way of the next reading of 20,000 rules, never of the events.
        self._reader = ThreadPoolExecutor(1, "k8snet-rules")
        self._reading: Future[None] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for inum, netns in self._places.items():
                with contextlib.suppress(OSError):  # it is going away: its packets are still followed
                    self._counters_before[inum] = counters.Snapshot.take(netns)
                    self._watch(undo, netns)
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._stack.close()

    def _watch(self, undo: ExitStack, netns: Netns) -> None:
        if not self._read_only:
            try:
                trace = undo.enter_context(RuleTrace(netns, self._match, self._guardian))
            except K8snetError as why:
                self.notes.append(f"{why.problem}: rules are named by counters there")
            else:
                self._traces[netns.inum] = trace
                self.notes += trace.missing
                if not trace.missing:
                    return
        self._rules_before[netns.inum] = Snapshot.take(netns)

    @property
    def how(self) -> str:
        """How rules are named in this trace."""
        if self._traces:
            return "nftrace"
        return "counters (read-only)" if self._read_only else "counters"

    def insist(self, client: Address, port: int) -> None:
        """A packet of this TCP connection has died in a packet filter: its next one is to be traced for certain."""
        for trace in self._traces.values():
            trace.insist(client, port)

    def drain(self) -> None:
        """Take what the kernel has reported; of what was dropped, begin to read the rules."""
        for trace in self._traces.values():
            new = trace.drain()
            self.steps += new
            if any(step.engine == "legacy" or step.verdict == "drop" for step in new):
                self._unread += new
        if self._unread and (self._reading is None or self._reading.done()):
            unread, self._unread = self._unread, []
            self._reading = self._reader.submit(self._read, unread)

    def _read(self, steps: Sequence[RuleStep]) -> None:
        for inum, book in self._books.items():
            book.read_ahead([step for step in steps if step.netns == inum])

    def lost(self) -> dict[str, int]:
        """Rule messages that were not seen."""
        lost = sum(trace.lost for trace in self._traces.values())
        return {"rule messages": lost} if lost else {}

    def facts(self, spots: Collection[tuple[int, str]] = ()) -> Facts:
        """Settings and counters of every place on the way, and what hangs at the devices in `spots` (netns, name)."""
        facts = Facts()
        for inum, before in self._counters_before.items():
            netns = self._places[inum]
            if inum != own():
                facts.enter[inum] = f"nsenter --net={shlex.quote(netns.path)} "
            with contextlib.suppress(OSError):
                after = counters.Snapshot.take(netns)
                facts.settings[inum] = dict(after.settings)
                if both := RuleBook(netns).mixed():
                    facts.tables[inum] = both
                facts.rises[inum] = counters.delta(before, after)
                facts.listening |= {(inum, *socket): depth for socket, depth in queues(netns).items()}
                facts.backlogs |= {(inum, *socket): depth for socket, depth in backlogs(netns).items()}
                here = sorted({name for where, name in spots if where == inum})
                facts.attached |= {(inum, name): things for name, things in devices.attached(netns, here).items()}
        return facts

    def name(self, drops: Sequence[Drop]) -> dict[int, NamedRule]:
        """The rule behind each drop that can be named, by the packet's id."""
        if self._reading is not None:
            self._reading.result()
        named: dict[int, NamedRule] = {}
        for drop in drops:
            book = self._books.get(drop.event.netns)
            rule = book.name(drop.steps) if book is not None else None
            if rule is not None:
                named[drop.packet] = rule
        for inum in set(self._rules_before):
            unnamed = [d for d in drops if d.event.netns == inum and d.packet not in named]
            if not unnamed:
                continue
            after = Snapshot.take(self._places[inum])
            for drop in unnamed:
                alike = sum(d.event.packet == drop.event.packet for d in unnamed)
                rule = RuleBook(self._places[inum]).name_by_counters(
                    self._rules_before[inum], after, drop.event.packet, alike
                )
                if rule is not None:
                    named[drop.packet] = rule
        self._say_what_lacks({drop.event.netns for drop in drops if drop.packet not in named})
        return named

    def _say_what_lacks(self, places: Collection[int]) -> None:
        """Why a drop there may have no rule: the tool for one of the two kinds is missing, or may not look."""
        for inum in sorted(self._books.keys() & places):
            if why := unreadable(self._places[inum]):
                note = f"rules of iptables-legacy in netns {inum} cannot be read, and one may be to blame: {why}"
                self.notes += [] if note in self.notes else [note]
