"""Connections that stand: who resets them, and where data is sent again and again.

In: what sockets say (tcp_send_reset, tcp_receive_reset, tcp_retransmit_skb), from both ends as far as they are here.
Out: `Reset` and `Burst`. The socket that a reset reaches decides whether it is one worth telling: in ESTABLISHED its
process has not been told of any end and reads ECONNRESET; in all other states the connection was over already, and
resets are how many programs end theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from k8snet.event import Address, Event, FiveTuple, ProbeId

ESTABLISHED: Final = 1  # net/tcp_states.h
_OPENING: Final = (2, 3, 12)  # SYN_SENT, SYN_RECV, NEW_SYN_RECV: a handshake's business

SENT_AGAIN: Final = 4  # times the same segment: with the usual timers 3 s without an acknowledgement
BURST: Final = 50  # segments within BURST_NS; a guess: a wire that loses one in a hundred makes some ten a second
BURST_NS: Final = 5_000_000_000
TOLD_AGAIN_NS: Final = 60_000_000_000
_BOTH_ENDS_NS: Final = 200_000_000  # so much later may the other end's event come
_KEPT_NS: Final = 2_000_000_000
_MOST: Final = 4096  # of each kind at once


@dataclass(frozen=True, slots=True)
class Reset:
    """A standing connection was reset, and the process at this end has not expected it."""

    ktime_ns: int
    here: FiveTuple  # as the socket sees it: its own end first
    netns: int
    here_is_client: bool
    by: Event | None  # tcp_send_reset at the other end; None: it is on another machine, or the kernel does not say


@dataclass(frozen=True, slots=True)
class Burst:
    """One connection sends much again."""

    ktime_ns: int
    here: FiveTuple  # of the socket that sends
    netns: int
    times: int  # that the same segment was sent again; 0: they were different ones
    segments: int
    seconds: float


@dataclass(slots=True)
class _Resend:
    here: FiveTuple
    netns: int
    first_ns: int
    last_ns: int
    seq: int = 0
    seq_ns: int = 0  # when this segment was first sent again
    times: int = 0
    recent: list[int] = field(default_factory=list)  # when; the last BURST of them
    told_ns: int | None = None


class Streams:
    """Hears what sockets say. Bounded; no clock."""

    def __init__(self) -> None:
        self._sent: OrderedDict[tuple[Address, int], Event] = OrderedDict()  # by the end that it was sent to
        self._reset: list[tuple[Event, FiveTuple]] = []
        self._resends: OrderedDict[FiveTuple, _Resend] = OrderedDict()
        self._bursts: list[Burst] = []

    def hear(self, event: Event) -> None:
        """Take one event; others than the three are passed over."""
        header = event.packet
        if header is None:
            return
        if event.probe is ProbeId.TCP_SEND_RESET:
            to = (header.saddr, header.sport) if event.skb else (header.daddr, header.dport)
            _put(self._sent, to, event)
        elif event.probe is ProbeId.TCP_RECEIVE_RESET and event.code == ESTABLISHED and len(self._reset) < _MOST:
            self._reset.append((event, header))
        elif event.probe is ProbeId.TCP_RETRANSMIT_SKB and event.code not in _OPENING:
            self._resent(event, header)

    def _resent(self, event: Event, header: FiveTuple) -> None:
        now = event.ktime_ns
        known = self._resends.get(header)
        if known is None or now - known.last_ns > TOLD_AGAIN_NS:
            known = _Resend(header, event.netns, now, now)
            _put(self._resends, header, known)
        known.last_ns = now
        self._resends.move_to_end(header)
        if event.seq != known.seq or not known.times:
            known.seq, known.seq_ns, known.times = event.seq, now, 0
        known.times += 1
        known.recent = [when for when in known.recent[-BURST:] if now - when <= BURST_NS] + [now]
        stuck, many = known.times >= SENT_AGAIN, len(known.recent) >= BURST
        if not (stuck or many) or (known.told_ns is not None and now - known.told_ns < TOLD_AGAIN_NS):
            return
        known.told_ns = now
        began = known.seq_ns if stuck else known.recent[0]
        self._bursts.append(
            Burst(now, header, event.netns, known.times if stuck else 0, len(known.recent), (now - began) / 1e9)
        )

    def due(self, now_ns: int) -> tuple[list[Reset], list[Burst]]:
        """What is to be told, each once."""
        ripe = [pair for pair in self._reset if now_ns - pair[0].ktime_ns >= _BOTH_ENDS_NS]
        self._reset = [pair for pair in self._reset if now_ns - pair[0].ktime_ns < _BOTH_ENDS_NS]
        resets = [reset for pair in ripe if (reset := self._judged(*pair)) is not None]
        while self._sent and now_ns - next(iter(self._sent.values())).ktime_ns > _KEPT_NS:
            self._sent.popitem(last=False)
        while self._resends and now_ns - next(iter(self._resends.values())).last_ns > TOLD_AGAIN_NS:
            self._resends.popitem(last=False)
        bursts, self._bursts = self._bursts, []
        return resets, bursts

    def _judged(self, event: Event, here: FiveTuple) -> Reset | None:
        by = self._sent.get((here.saddr, here.sport))
        if by is not None and abs(by.ktime_ns - event.ktime_ns) > _BOTH_ENDS_NS:
            by = None
        # The end with the higher port is the client, as far as ports can say; a server's mostly is below 32768.
        here_is_client = here.sport > here.dport
        # A client that closes hard is how many health checks and benchmarks hang up.
        aborted = by is not None and not by.skb
        if not here_is_client and (by is None or aborted):
            return None
        return Reset(event.ktime_ns, here, event.netns, here_is_client, by)


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _put(table: OrderedDict[K, V], key: K, value: V) -> None:
    """As the newest; the oldest makes room."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MOST:
        table.popitem(last=False)
