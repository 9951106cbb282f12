"""Who owns a tuple in the connection table, asked while it can still be told: right after a suspicious packet.

In: events, as they are taken. Out: `Rivals` for each packet whose entry met another one, and how full the tables were
when a packet died without an entry. Only a few packets are worth a question (0.7 ms each): those that died between
source NAT and the table, and those whose entry the kernel has marked as the loser of a clash. A minute later the winner
may be gone, and the loser's own retry stands there in its place: the report at the end of a trace would ask too late.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Final, Self

from k8snet.event import CT_INFO_NONE, CtStatus, Event, FiveTuple, ProbeId
from k8snet.kernel.netns import Netns, opened
from k8snet.kernel.nfnetlink import NFGENMSG, Netlink, attribute, attributes, number

_SUBSYS_CTNETLINK: Final = 1
_CT_GET, _CT_GET_STATS = 1, 5  # enum cntl_msg_types
_NESTED: Final = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _TIMEOUT, _ZONE = 1, 2, 3, 7, 18  # enum ctattr_type
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_GLOBAL_ENTRIES, _GLOBAL_MAX = 1, 2
_WITH_PORTS: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, socket.IPPROTO_UDPLITE)

_CONFIRMED: Final = int(CtStatus.CONFIRMED)
_SRC_NAT_DONE: Final = int(CtStatus.SRC_NAT_DONE)
_LOST_CLASH: Final = int(CtStatus.CONFIRMED | CtStatus.NAT_CLASH)
_PRESSURE_EVERY_NS: Final = 100_000_000
# By now others may have the ports. It also bounds the work when thousands of packets die: they are taken again in time.
_TOO_LATE_NS: Final = 3_000_000_000
_FORGOTTEN_NS: Final = 30_000_000_000  # a client that tries again for so long has been judged long ago
_REMEMBERED: Final = 10_000  # a guess


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection of the table."""

    orig: FiveTuple
    reply: FiveTuple
    status: int  # CtStatus
    timeout: int | None = None  # seconds left; None: not known


@dataclass(frozen=True, slots=True)
class Rivals:
    """The other connections that own the tuples of a packet's own entry; None: nobody does."""

    of_original: Entry | None
    of_reply: Entry | None
    by: str  # who said so
    late_ns: int = 0  # after the packet


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a connection table was."""

    entries: int
    maximum: int

    @property
    def full(self) -> bool:
        """No room: entries that are freed on one CPU are counted a moment longer."""
        return 0 < self.maximum <= self.entries


class Table(Netlink):
    """The connection table of one netns, by ctnetlink."""

    def __enter__(self) -> Self:
        return self

    def owner(self, wanted: FiveTuple, zone: int = 0) -> Entry | None:
        """The connection that has this tuple in either of its directions; None for protocols without ports."""
        if wanted.protocol not in _WITH_PORTS:
            return None
        family = socket.AF_INET6 if wanted.saddr.version == 6 else socket.AF_INET
        body = NFGENMSG.pack(family, 0, 0) + _packed(wanted)
        if zone:
            body += attribute(_ZONE, struct.pack("!H", zone))
        try:
            answer = self.get(_SUBSYS_CTNETLINK << 8 | _CT_GET, body)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        fields = dict(attributes(answer[NFGENMSG.size :]))
        orig, reply = (_unpacked(fields.get(kind, b"")) for kind in (_TUPLE_ORIG, _TUPLE_REPLY))
        if orig is None or reply is None:
            return None
        left = number(fields[_TIMEOUT]) if _TIMEOUT in fields else None
        return Entry(orig, reply, number(fields.get(_STATUS, b"")), left)

    def fill(self) -> Fill:
        """How full it is."""
        answer = self.get(_SUBSYS_CTNETLINK << 8 | _CT_GET_STATS, NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))
        fields = dict(attributes(answer[NFGENMSG.size :]))
        return Fill(number(fields.get(_GLOBAL_ENTRIES, b"")), number(fields.get(_GLOBAL_MAX, b"")))


def _packed(wanted: FiveTuple) -> bytes:
    six = wanted.saddr.version == 6
    addresses = attribute(_V6_SRC if six else _V4_SRC, wanted.saddr.packed)
    addresses += attribute(_V6_DST if six else _V4_DST, wanted.daddr.packed)
    ports = attribute(_PROTO_NUM, bytes([wanted.protocol])) + attribute(_PROTO_SPORT, struct.pack("!H", wanted.sport))
    ports += attribute(_PROTO_DPORT, struct.pack("!H", wanted.dport))
    return attribute(
        _TUPLE_ORIG | _NESTED, attribute(_TUPLE_IP | _NESTED, addresses) + attribute(_TUPLE_PROTO | _NESTED, ports)
    )


def _unpacked(body: bytes) -> FiveTuple | None:
    parts = dict(attributes(body))
    addresses, ports = (dict(attributes(parts.get(kind, b""))) for kind in (_TUPLE_IP, _TUPLE_PROTO))
    sport, dport = (number(ports.get(kind, b"")) for kind in (_PROTO_SPORT, _PROTO_DPORT))
    protocol = number(ports.get(_PROTO_NUM, b""))
    if _V4_SRC in addresses and _V4_DST in addresses:
        return FiveTuple(IPv4Address(addresses[_V4_SRC]), IPv4Address(addresses[_V4_DST]), sport, dport, protocol)
    if _V6_SRC in addresses and _V6_DST in addresses:
        return FiveTuple(IPv6Address(addresses[_V6_SRC]), IPv6Address(addresses[_V6_DST]), sport, dport, protocol)
    return None


class Witness:
    """Hears every event of a trace, and asks the kernel about the few that need it. A context manager."""

    def __init__(self, places: Mapping[int, Netns]) -> None:
        self.rivals: dict[Event, Rivals] = {}
        self.fills: dict[int, Fill] = {}  # netns -> the fullest moment
        self._places = places
        self._stack = ExitStack()
        self._tables: dict[int, Table | None] = {}
        self._told: dict[tuple[int, int, FiveTuple | None], Entry] = {}
        self._asked: set[tuple[int, FiveTuple, FiveTuple]] = set()
        self._filled_ns: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def hear(self, event: Event) -> bool:
        """Take note of one event. False: it was meant for us alone, and is about no packet of a flow."""
        orig, reply, status = event.ct_orig, event.ct_reply, event.ct_status
        if event.probe is ProbeId.NF_CT_RESOLVE_CLASH:
            if orig is not None and reply is not None:
                self._told[event.netns, event.skb, event.packet] = Entry(orig, reply, status)
            return False
        if orig is None or reply is None:
            if event.probe is ProbeId.KFREE_SKB and event.ct_info == CT_INFO_NONE:
                self._fill(event)
            return True
        if event.probe is ProbeId.KFREE_SKB:
            if status & (_CONFIRMED | _SRC_NAT_DONE) == _SRC_NAT_DONE:
                self._ask(event, orig, reply)
        elif status & _LOST_CLASH == _LOST_CLASH and (event.netns, orig, reply) not in self._asked:
            self._asked.add((event.netns, orig, reply))
            self._ask(event, orig, reply)
        return True

    def forget(self, now_ns: int) -> None:
        """For who listens for hours: what was told of packets that are judged by now is not kept."""
        old = now_ns - _FORGOTTEN_NS
        self.rivals = {event: rivals for event, rivals in self.rivals.items() if event.ktime_ns >= old}
        self.fills = {inum: fill for inum, fill in self.fills.items() if self._filled_ns.get(inum, old) >= old}
        if len(self._told) > _REMEMBERED:
            self._told.clear()
        if len(self._asked) > _REMEMBERED:
            self._asked.clear()

    def _ask(self, event: Event, orig: FiveTuple, reply: FiveTuple) -> None:
        told = self._told.get((event.netns, event.skb, event.packet))
        if told is not None:
            of_original, of_reply = (told, None) if told.orig == orig else (None, told)
            self.rivals[event] = Rivals(of_original, of_reply, "nf_ct_resolve_clash")
            return
        if orig.protocol not in _WITH_PORTS or time.monotonic_ns() - event.ktime_ns > _TOO_LATE_NS:
            return
        table = self._table(event.netns)
        if table is None:
            return
        try:
            owners = [table.owner(wanted, event.ct_zone) for wanted in (orig, reply)]
        except OSError:  # the netns is going, or this kernel has no ctnetlink: nothing is known
            return
        # The same tuples: the packet's own entry, or a retry of it that got through meanwhile.
        of_original, of_reply = (None if o is not None and (o.orig, o.reply) == (orig, reply) else o for o in owners)
        late = time.monotonic_ns() - event.ktime_ns
        self.rivals[event] = Rivals(of_original, of_reply, "the connection table", late)

    def _fill(self, event: Event) -> None:
        if event.ktime_ns - self._filled_ns.get(event.netns, -_PRESSURE_EVERY_NS) < _PRESSURE_EVERY_NS:
            return
        self._filled_ns[event.netns] = event.ktime_ns
        table = self._table(event.netns)
        if table is None:
            return
        try:
            fill = table.fill()
        except OSError:
            return
        if fill.entries >= self.fills.get(event.netns, fill).entries:
            self.fills[event.netns] = fill

    def _table(self, inum: int) -> Table | None:
        if inum not in self._tables:
            self._tables[inum] = None
            netns = self._places.get(inum)
            if netns is not None:
                try:
                    there = opened(netns)
                except OSError:  # it went away
                    return None
                try:
                    self._tables[inum] = table = Table(f"/proc/self/fd/{there}")
                    self._stack.callback(table.close)
                finally:
                    os.close(there)
        return self._tables[inum]
