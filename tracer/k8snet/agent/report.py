"""The writing side: what a trace sees on this node, as lines.

In: the calls of a `k8snet.trace.Listener`, all from one thread. Out: lines, flushed at least every 50 ms. Surprising:
some kernels carry several nodes (Kubernetes in containers, the lab), and every probe sees all of them. What comes from
a netns that this node does not show is kept for a moment, in case it is a new pod's, and then left out.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, TypeVar

from k8snet import __version__
from k8snet.agent import lines
from k8snet.cluster.interfaces import Owner, World
from k8snet.cluster.inventory import Inventory
from k8snet.event import Address, CtStatus, Event, ProbeId
from k8snet.findings.case import Case, Kernel
from k8snet.record.layout import DESCRIPTION

if TYPE_CHECKING:
    from k8snet.judge import Observation
    from k8snet.kernel.ruletrace import RuleStep
    from k8snet.report import Hop
    from k8snet.trace import Request

T = TypeVar("T")
NEW_POD_NS: Final = 2_000_000_000  # a guess: so long may it take to find a netns that is new
COUNTS_EVERY: Final = 1.0  # seconds
# What an Observation's surroundings have under the same name.
_AROUND: Final = (
    "settings", "rises", "listening", "backlogs", "attached", "tables", "enter", "wires", "routes", "neighbours",
    "forwarding", "links", "addresses", "fills", "send_errors",
    "resolvers",
)  # fmt: skip


class Carrier(Protocol):
    """Where lines go."""

    def line(self, line: lines.Line) -> None:
        """Take a line that is no `Events`."""

    def records(self, first: int, records: Sequence[bytes]) -> None:
        """Take the records of events; `first` is the number of the first of them."""


class Text:
    """Lines as text, each on its way at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def line(self, line: lines.Line) -> None:
        """Write it."""
        self._out.write(lines.written(line) + "\n")
        self._out.flush()

    def records(self, first: int, records: Sequence[bytes]) -> None:
        """Write as many lines as they need."""
        for some in lines.batches(records):
            self.line(lines.packed(first, some))
            first += len(some)


class Reporter:
    """Tells a carrier what it is told; a `Listener` and a `Watcher` at once.

    `whole`: of this machine nothing is left out, and all names are told; what comes of it is judged as the trace itself
    would be.
    """

    def __init__(
        self, carrier: Carrier, kernel: Kernel, ended: Callable[[], bool] = lambda: False, *, whole: bool = False
    ) -> None:
        self._carrier = carrier
        self._write = carrier.line
        self._kernel = kernel
        self._whole = whole
        self._is_over = ended
        self._world: World | None = None
        self._owners: dict[int, Owner] = {}  # as they were written last
        self._mentioned: set[int] = set()  # netns
        self._reasons: dict[int, str] = {}
        self._symbols: dict[int, str] = {}
        self._records: list[bytes] = []
        self._unwritten: list[Event] = []
        self._strangers: list[tuple[Event, bytes]] = []
        self._strange = 0
        self._count = 0
        self._numbers: dict[Event, int] = {}  # of events that something will be said about
        self._steps = 0
        self._counted: tuple[float, tuple[int, int, int]] = (0.0, (0, 0, 0))

    def hello(self, node: str) -> None:
        """The first line."""
        self._write(
            lines.Hello(
                lines.VERSION,
                __version__,
                lines.LAYOUT_ID,
                node,
                platform.release(),
                time.monotonic_ns(),
                time.time_ns(),
                self._whole,
                DESCRIPTION if self._whole else "",
            )
        )

    def asked(self, request: Request) -> None:
        """What was asked for, once its names mean something."""
        known = request.inventory
        # What slices say is in the services, too.
        inventory = replace(known, slices=()) if self._whole else part_of(known, (), request)
        self._write(lines.Facts(request=replace(request, inventory=inventory)))

    def fail(self, problem: str, remedy: str, more: tuple[str, ...] = ()) -> None:
        """It cannot go on."""
        self._write(lines.Error(problem, remedy, more))

    def finish(self, seen: Observation, inventory: Inventory) -> None:
        """All that is known at the end, and the last line."""
        around = seen.around
        self._flush()
        self._strange += len(self._strangers)
        rules = {
            self._numbers[death.event]: around.rules[id(death.packet)]
            for flow in seen.flows
            for death in Case(flow, around).deaths
            if id(death.packet) in around.rules and death.event in self._numbers
        }
        addresses = {a for flow in seen.flows for t in (flow.original, flow.ct_reply) if t for a in (t.saddr, t.daddr)}
        # Of a number that two pods had in turn it is known only now whose it was.
        owners = {n: o for n, o in seen.surface.owners.items() if n in self._mentioned and self._owners.get(n) != o}
        # A line each: container runtimes cut long ones.
        facts: list[dict[str, Any]] = [{name: getattr(around, name)} for name in _AROUND if getattr(around, name)]
        facts += [
            {"owners": owners},
            {"client_netns": around.client_netns, "backend_netns": around.backend_netns},
            {"parties": seen.surface.parties, "ports": seen.ports, "rule_naming": seen.rule_naming},
            {"rivals": {self._numbers[e]: r for e, r in around.rivals.items() if e in self._numbers}},
            {"rules": rules},
            {"notes": seen.notes},
            {"expected": seen.expected},
            {"inventory": self._names_of(seen, inventory, addresses)},
        ]
        for some in facts:
            line = lines.Facts(**some)
            if line != lines.Facts():
                self._write(line)
        self._write(lines.Bye(time.monotonic_ns(), self._count, dict(seen.lost), self._strange))

    def _names_of(self, seen: Observation, inventory: Inventory, addresses: Collection[Address]) -> Inventory | None:
        if not self._whole:
            return part_of(inventory, addresses, seen.request)
        return None if inventory == seen.request.inventory else replace(inventory, slices=())

    # --- as a Listener -----------------------------------------------------------------------------------------------

    def begun(self, world: World, client_netns: int | None, backend_netns: Mapping[Address, int]) -> None:
        """All probes are attached."""
        self._world = world
        parties = frozenset(backend_netns.values()) | ({client_netns} if client_netns is not None else frozenset())
        self._mentioned |= parties | {world.host}
        self._write(lines.Facts(client_netns=client_netns, backend_netns=backend_netns, parties=parties))
        self._flush()
        self._write(lines.Ready(time.monotonic_ns()))

    def saw(self, event: Event, record: bytes) -> None:
        """An event."""
        stranger = self._world is None or (event.netns and event.netns not in self._world.netns)
        if stranger and not self._whole:
            self._strangers.append((event, record))
            return
        self._take(event, record)

    def moment(self, world: World, steps: Sequence[RuleStep]) -> None:
        """Time to write."""
        if world is not self._world:
            self._world = world
            known = [pair for pair in self._strangers if pair[0].netns in world.netns]
            self._strangers = [pair for pair in self._strangers if pair[0].netns not in world.netns]
            for event, record in known:
                self._take(event, record)
        now = time.monotonic_ns()
        young = [pair for pair in self._strangers if now - pair[0].ktime_ns < NEW_POD_NS]
        self._strange += len(self._strangers) - len(young)
        self._strangers = young
        self._flush()
        for start in range(self._steps, len(steps), lines.STEPS):
            self._write(lines.Rules(tuple(steps[start : start + lines.STEPS])))
        self._steps = len(steps)

    def ended(self) -> bool:
        """Somebody has said that it is enough."""
        return self._is_over()

    # --- as a Watcher ------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """`begun` says it, with more."""

    def hop(self, direction: str, packet: str, hop: Hop) -> None:
        """Whoever reads the events can draw it."""

    def note(self, text: str) -> None:
        """Notes come at the end."""

    def counts(self, connections: int, answered: int, lost: int) -> None:
        """How far it has got."""
        now, counts = time.monotonic(), (connections, answered, lost)
        if now - self._counted[0] >= COUNTS_EVERY and counts != self._counted[1]:
            self._counted = now, counts
            self._write(lines.Counts(*counts))

    # -----------------------------------------------------------------------------------------------------------------

    def _take(self, event: Event, record: bytes) -> None:
        if event.probe is ProbeId.KFREE_SKB or event.ct_status & CtStatus.NAT_CLASH:
            self._numbers[event] = self._count
        self._count += 1
        self._records.append(record)
        self._unwritten.append(event)

    def _flush(self) -> None:
        owners = self._world.owners if self._world is not None else {}
        self._mentioned |= owners.keys() if self._whole else {event.netns for event in self._unwritten}
        news = {n: owners[n] for n in self._mentioned if n in owners and self._owners.get(n) != owners[n]}
        if news:
            self._owners |= news
            self._write(lines.Facts(owners=news))
        drops = [event for event in self._unwritten if event.probe is ProbeId.KFREE_SKB]
        reasons = {e.reason: self._kernel.drop_reason(e.reason) for e in drops if e.reason not in self._reasons}
        symbols = {e.location: self._kernel.symbol(e.location) for e in drops if e.location not in self._symbols}
        if reasons or symbols:
            self._reasons |= reasons
            self._symbols |= symbols
            self._write(lines.Names(reasons, symbols))
        if self._records:
            self._carrier.records(self._count - len(self._records), self._records)
        self._records, self._unwritten = [], []


def part_of(inventory: Inventory, addresses: Collection[Address], request: Request) -> Inventory:
    """What a report on this flow may name: of a cluster with thousands of pods a few."""
    wanted = {*addresses, *request.client.addresses, *request.server.addresses}
    wanted |= {endpoint.ip for endpoint in request.server.all_endpoints}
    pods = _known(inventory.pod_by_ip, wanted)
    named = [pod for pod in (request.client.pod, request.server.pod) if pod is not None and pod not in pods]
    nodes = {pod.node for pod in (*pods, *named)}
    return Inventory(
        pods=(*pods, *named),
        services=tuple(
            dict.fromkeys(
                (
                    *_known(inventory.service_by_ip, wanted),
                    *(s for some in _known(inventory.service_by_outer_ip, wanted) for s in some),
                    *((request.server.service,) if request.server.service else ()),  # of a NodePort
                )
            )
        ),
        nodes=tuple(n for n in inventory.nodes if n.name in nodes or wanted & set(n.ips)),
        policies=tuple(dict.fromkeys(policy for pod in pods for policy in inventory.policies_of(pod))),
        source=inventory.source,
    )


def _known(table: Mapping[Address, T], wanted: Iterable[Address]) -> list[T]:
    return list(dict.fromkeys(table[address] for address in sorted(wanted, key=str) if address in table))
