"""DNS queries and their answers, from the events of port 53: who asked whom for what, and what became of it.

In: events in the order of time, of any of the hops that a packet makes. Out: `DnsExchange`, one for each query however
often the resolver sent it and wherever it was seen. Queries are matched by client, port and transaction id and not by
the five-tuple, because an answer from an address that was not asked is just what one is looking for.

Of UDP the first four bytes of the message are in every event (`Event.seq`), so a query is followed even where its
payload was not copied; its name is unknown then. The parser takes the header and the question apart and nothing else,
so that 288 bytes are enough (12 + 255 + 4, and a TCP prefix). It is our own because it runs for each query of a node:
it takes a sixth of the time of dnspython's from_wire(question_only=True): 6 us to 42, on a busy machine. What
it makes of any bytes is compared with another library's reading in tests/unit/test_dns_parser.py.
"""

from __future__ import annotations

import functools
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from k8snet.event import DNS_PORT, PAYLOAD_MAX, Address, CtStatus, Encap, Event, FiveTuple, ProbeId
from k8snet.flow.correlate import IP_CT_IS_REPLY, SAME_PACKET_NS
from k8snet.flow.model import AT_DEVICE, Flow

# How long a query stays open without an answer: glibc asks three times at most, 5 s apart, musl within 5 s in all.
WAIT_NS: Final = 15_000_000_000
# After its answer, so that what the client makes of it (a port unreachable) still comes in.
SETTLE_NS: Final = 100_000_000
# Answered queries are remembered so long: glibc sends both of a pair again after 5 s, the answered one too.
AGAIN_NS: Final = 6_000_000_000
# Queries of one client that belong to one lookup begin within this time: ten of a search list, and a retry of 5 s.
LOOKUP_NS: Final = 12_000_000_000
LIMIT: Final = 16384  # queries that are open or remembered; some 1 KiB each
CLIENTS: Final = 512  # whose last queries are remembered ...
COMPANY: Final = 24  # ... so many of each: a search list of ten makes 22
SERVERS: Final = 3  # that are asked at once with one query (resolv.conf(5) has no more; musl asks all of them)
ANSWERS: Final = 4  # of one query: the last
TRIES: Final = 16  # likewise: the first

TYPES: Final = {  # RFC 1035, 3596, 2782, 3403, 9460, 8659, 8482
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR",
    64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA",
}  # fmt: skip
RCODES: Final = {  # RFC 1035, 2136
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
}  # fmt: skip

NAT_NS: Final = 30_000_000_000  # nf_conntrack_udp_timeout by default
PACKET_OTHERHOST: Final = 3  # linux/if_packet.h

_HEADER: Final = struct.Struct("!HHHHHH")
_PREFIX: Final = 2  # bytes: over TCP the length stands before the message (RFC 7766, section 8)
_QR, _TC, _RCODE = 0x8000, 0x0200, 0x000F
_PORT_UNREACHABLE = ((3, 3), (1, 4))  # ICMP, ICMPv6
_CLASHED: Final = int(CtStatus.CONFIRMED | CtStatus.NAT_CLASH)  # of flags it would be a new one for each event


class Message(NamedTuple):
    """What is read of a DNS message."""

    txid: int
    flags: int
    name: str  # of the question: lower case, made inert, without the final dot; "" when there is none, or it was cut
    type: str


@functools.lru_cache(maxsize=4096)
def parse(message: bytes) -> Message | None:
    """The header and the question of a message or of its beginning; None when there is no whole header. Never raises.

    Cached by its bytes, because the same message is seen at every hop.
    """
    if len(message) < _HEADER.size:
        return None
    txid, flags, questions, *_ = _HEADER.unpack_from(message)
    if not questions:
        return Message(txid, flags, "", "")
    labels: list[str] = []
    at, end = _HEADER.size, len(message)
    while at < end and (length := message[at]):
        at += 1 + length
        # A question is the first name there is, so it can have no pointer to an earlier one (RFC 1035, 4.1.4).
        if length > 63 or at > end or at - _HEADER.size > 254:
            return Message(txid, flags, "", "")
        labels.append(_label(message[at - length : at]))
    if at + 5 > end:
        return Message(txid, flags, "", "")
    number = int.from_bytes(message[at + 1 : at + 3], "big")
    return Message(txid, flags, ".".join(labels) or ".", TYPES.get(number, f"TYPE{number}"))


_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_*/")


def _label(raw: bytes) -> str:
    """A label as in a zone file (RFC 1035, section 5.1), in lower case: some resolvers mix cases (0x20) for safety."""
    raw = raw.lower()
    if _PLAIN.issuperset(raw):
        return raw.decode("ascii")
    return "".join(chr(b) if b in _PLAIN else f"\\{b:03}" for b in raw)


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """One answer to a query."""

    sent_ns: int  # where it was first seen, CLOCK_MONOTONIC ...
    sender: Address  # ... and from whom: the backend, when its netns or the wire to it is here
    arrived_ns: int | None  # in the netns of the client; None: it was never seen there
    source: Address  # as the client saw it, or as it was last seen
    flags: int
    refused: bool = False  # the client's kernel said "port unreachable": nobody waited for it any more, or for this
    drop: tuple[int, int] | None = None  # in the client's netns: reason and location, as in kfree_skb

    @property
    def rcode(self) -> str:
        """In words."""
        return RCODES.get(self.flags & _RCODE, f"RCODE{self.flags & _RCODE}")

    @property
    def truncated(self) -> bool:
        """It did not fit: the client is to ask again over TCP."""
        return bool(self.flags & _TC)


@dataclass(frozen=True, slots=True)
class DnsExchange:
    """One query, all its copies, and its answers."""

    client: Address
    port: int
    txid: int
    protocol: str  # "udp" or "tcp"
    netns: int  # where it was first seen: the client's own, when that is on this machine
    device: str  # likewise
    name: str  # inert; "" when it could not be read
    type: str  # "A", "TYPE65280"; "" when it could not be read
    server: Address  # the one that was asked (a Service's); where several were, the first
    server_port: int
    backend: Address | None  # who NAT sent it to
    tries: tuple[int, ...]  # when each copy left the client, CLOCK_MONOTONIC ns
    last: Event  # where the newest copy was last seen
    answers: tuple[DnsAnswer, ...] = ()
    others: tuple[Address, ...] = ()  # servers that were asked the same from the same socket (musl asks all at once)
    clash: bool = False  # it lost a race in conntrack and got an entry that lives for a second
    unreachable: bool = False  # an ICMP error said that it could not be delivered
    died: bool = False  # the kernel freed its newest copy where that was last seen: another finding's business
    seen_ns: int = 0  # the last event of all
    near: tuple[DnsExchange, ...] = field(default=(), repr=False)  # before and after it; of these it is empty

    @property
    def company(self) -> list[DnsExchange]:
        """Other queries of the same client that began shortly before or after."""
        began, netns = self.tries[0], self.netns
        return [q for q in self.near if q.netns == netns and abs(q.tries[0] - began) <= LOOKUP_NS]

    @property
    def answer(self) -> DnsAnswer | None:
        """The first answer that the client could take: from the server that it asked, while it still waited."""
        return next((a for a in self.answers if self._taken(a)), None)

    def _taken(self, answer: DnsAnswer) -> bool:
        return answer.arrived_ns is not None and not answer.refused and answer.source in (self.server, *self.others)

    @property
    def seconds(self) -> float | None:
        """How long the client waited for its answer, from its first try."""
        answer = self.answer
        return (answer.arrived_ns - self.tries[0]) / 1e9 if answer and answer.arrived_ns is not None else None

    @property
    def tcp(self) -> bool:
        """It was asked over TCP."""
        return self.protocol == "tcp"

    @property
    def rcode(self) -> str | None:
        """Of the answer."""
        return self.answer.rcode if self.answer else None

    @property
    def question(self) -> str:
        """For a sentence: `AAAA web.shop.svc.cluster.local`."""
        return f"{self.type} {self.name}" if self.name else f"query {self.txid:#06x}"


@dataclass(slots=True)
class _Answer:
    sent_ns: int
    sender: Address
    source: Address
    flags: int
    arrived_ns: int | None = None
    refused: bool = False
    drop: tuple[int, int] | None = None
    spots: set[tuple[ProbeId, int, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Open:
    client: Address
    port: int
    txid: int
    protocol: str
    netns: int
    spot: tuple[ProbeId, int, int]
    device: str
    name: str
    type: str
    server: Address
    server_port: int
    last: Event
    tries: list[int]
    seen_ns: int
    freed: Event | None = None
    backend: Address | None = None
    answers: list[_Answer] = field(default_factory=list)
    others: tuple[Address, ...] = ()
    clash: bool = False
    unreachable: bool = False
    told: bool = False

    @property
    def answered(self) -> bool:
        return any(a.arrived_ns is not None for a in self.answers)

    @property
    def died(self) -> bool:
        freed = self.freed
        return freed is not None and freed.ktime_ns >= self.last.ktime_ns and freed.pkt_type != PACKET_OTHERHOST

    def exchange(self) -> DnsExchange:
        answers = tuple(
            DnsAnswer(a.sent_ns, a.sender, a.arrived_ns, a.source, a.flags, a.refused, a.drop) for a in self.answers
        )
        return DnsExchange(
            self.client,
            self.port,
            self.txid,
            self.protocol,
            self.netns,
            self.device,
            self.name,
            self.type,
            self.server,
            self.server_port,
            self.backend,
            tuple(self.tries),
            self.last,
            answers,
            self.others,
            self.clash,
            self.unreachable,
            self.died,
            self.seen_ns,
        )


_Key = tuple[Address, int, int, int]  # client, port, protocol, txid
_End = tuple[Address, int]


class DnsTable:
    """Queries that are under way, and what has become of them. Bounded in memory; no clock and no I/O.

    `forgotten` counts queries that had to make room before anything could be said of them.
    """

    def __init__(self, limit: int = LIMIT, wait_ns: int = WAIT_NS) -> None:
        self.forgotten = 0
        self._limit = limit
        self._wait_ns = wait_ns
        self._open: OrderedDict[_Key, _Open] = OrderedDict()  # the oldest first
        self._answered: dict[int, _Open] = {}  # by id(): not told yet
        self._behind: OrderedDict[_End, tuple[_End, int]] = (
            OrderedDict()
        )  # source NAT: what others see → the client, when
        self._recent: OrderedDict[Address, list[DnsExchange]] = OrderedDict()
        self._prefixed: OrderedDict[tuple[_End, _End], None] = OrderedDict()  # TCP: the length came by itself

    def __len__(self) -> int:
        return len(self._open)

    def feed(self, event: Event) -> None:
        """Take one event; whatever is not about a DNS message is passed over."""
        header = event.packet
        if header is None or header.protocol not in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            return
        if event.encap is Encap.ICMP_ERROR:
            self._unreachable(event, header)
            return
        message = self._message(event, header)
        if message is None:
            return
        if message.flags & _QR:
            self._answer(event, header, message)
        else:
            self._query(event, header, message)

    def due(self, now_ns: int) -> list[DnsExchange]:
        """Queries that have come to their end since the last call, in order of time: answered, or given up waiting."""
        over = [q for q in self._answered.values() if now_ns - q.seen_ns >= SETTLE_NS]
        gone = []
        for key, query in self._open.items():
            if now_ns - query.tries[0] < AGAIN_NS:
                break  # whatever follows began later
            quiet = now_ns - query.seen_ns
            if query.told:
                gone += [key] if quiet >= AGAIN_NS else []
            elif not query.answered and quiet >= self._wait_ns:
                over.append(query)
        for key in gone:
            del self._open[key]
        return self._told(over)

    def rest(self) -> list[DnsExchange]:
        """All that `due` has not given yet, for when nothing more will come."""
        return self._told([query for query in self._open.values() if not query.told])

    def _told(self, over: list[_Open]) -> list[DnsExchange]:
        by_client: dict[Address, list[DnsExchange]] = {}
        for query in over:
            query.told = True
            self._answered.pop(id(query), None)
            by_client.setdefault(query.client, []).append(query.exchange())
        told = []
        for client, fresh in by_client.items():
            around = sorted([*self._recent.pop(client, ()), *fresh], key=_began)
            self._recent[client] = around[-COMPANY:]
            new = set(map(id, fresh))
            told += [replace(e, near=_near(around, i)) for i, e in enumerate(around) if id(e) in new]
        while len(self._recent) > CLIENTS:
            self._recent.popitem(last=False)
        return sorted(told, key=_began)

    def _message(self, event: Event, header: FiveTuple) -> Message | None:
        """What the packet carries; of UDP at least the first four bytes are known."""
        if header.protocol == socket.IPPROTO_UDP:
            if event.payload_len < _HEADER.size:
                return None
            return parse(event.payload) or Message(event.seq >> 16, event.seq & 0xFFFF, "", "")
        if not event.payload:
            return None
        way = ((header.saddr, header.sport), (header.daddr, header.dport))
        if event.payload_len == _PREFIX:
            self._prefixed[way] = None
            if len(self._prefixed) > CLIENTS:
                self._prefixed.popitem(last=False)
            return None
        if way in self._prefixed and int.from_bytes(event.payload[:_PREFIX], "big") != event.payload_len - _PREFIX:
            return parse(event.payload)
        return parse(event.payload[_PREFIX:])

    def _query(self, event: Event, header: FiveTuple, message: Message) -> None:
        end, server = (header.saddr, header.sport), (header.daddr, header.dport)
        orig = event.ct_orig if event.encap is Encap.NONE and event.ct_info < IP_CT_IS_REPLY else None
        if orig is not None and orig.protocol == header.protocol:
            if (orig.saddr, orig.sport) != end:
                self._translated(end, (orig.saddr, orig.sport), event.ktime_ns)
            end, server = (orig.saddr, orig.sport), (orig.daddr, orig.dport)
        end = self._own(end, event.ktime_ns)
        key = (*end, header.protocol, message.txid)
        query = self._open.get(key)
        spot = (event.probe, event.netns, event.ifindex)
        if query is None or self._is_another(query, event, spot, message):
            if event.probe not in AT_DEVICE or server[1] != DNS_PORT or not _is_question(event, message):
                return
            query = self._begin(key, event, spot, server, message)
        elif spot == query.spot and server == (query.server, query.server_port):
            query.tries.append(event.ktime_ns)
            del query.tries[TRIES:]
        elif spot == query.spot and server[0] not in query.others:
            query.others = (*query.others, server[0])[:SERVERS]
        if event.probe is ProbeId.KFREE_SKB:
            query.freed = event
        elif event.probe in AT_DEVICE:
            query.seen_ns = event.ktime_ns
            # A bridge floods what it does not know: these copies are seen, and die, in pods that they are not for.
            if event.pkt_type != PACKET_OTHERHOST or event.probe is ProbeId.NET_DEV_QUEUE:
                query.last = event
        if event.ct_reply is not None and orig is not None:
            query.backend = event.ct_reply.saddr
        if event.ct_status & _CLASHED == _CLASHED:
            query.clash = True

    def _is_another(self, query: _Open, event: Event, spot: tuple[ProbeId, int, int], message: Message) -> bool:
        """The socket asks something else with the same number, or its port is another client's by now."""
        if spot != query.spot:
            return False
        if message.name and query.name and (message.name, message.type) != (query.name, query.type):
            return True
        return query.told and event.ktime_ns - query.seen_ns >= AGAIN_NS

    def _begin(self, key: _Key, event: Event, spot: tuple[ProbeId, int, int], server: _End, message: Message) -> _Open:
        client, port, protocol, txid = key
        self._forget(self._open.pop(key, None))
        query = self._open[key] = _Open(
            client,
            port,
            txid,
            "udp" if protocol == socket.IPPROTO_UDP else "tcp",
            event.netns,
            spot,
            event.ifname,
            message.name,
            message.type,
            *server,
            last=event,
            tries=[event.ktime_ns],
            seen_ns=event.ktime_ns,
        )
        if len(self._open) > self._limit:
            self._forget(self._open.popitem(last=False)[1])
        return query

    def _forget(self, query: _Open | None) -> None:
        if query is not None and not query.told:
            self.forgotten += 1
            self._answered.pop(id(query), None)

    def _translated(self, seen: _End, own: _End, ktime_ns: int) -> None:
        self._behind[seen] = own, ktime_ns
        if len(self._behind) > self._limit:
            self._behind.popitem(last=False)

    def _own(self, seen: _End, ktime_ns: int) -> _End:
        """Whose address and port that is; ports are given to others once conntrack has forgotten the first (30 s)."""
        own, since_ns = self._behind.get(seen, (seen, ktime_ns))
        return own if ktime_ns - since_ns <= NAT_NS else seen

    def _asked(self, header: FiveTuple, txid: int, ktime_ns: int) -> _Open | None:
        """The query that a packet with this header would answer."""
        end = (header.daddr, header.dport)
        query = self._open.get((*end, header.protocol, txid))
        return query or self._open.get((*self._own(end, ktime_ns), header.protocol, txid))

    def _answer(self, event: Event, header: FiveTuple, message: Message) -> None:
        query = self._asked(header, message.txid, event.ktime_ns)
        if query is None or (message.name and query.name and (message.name, message.type) != (query.name, query.type)):
            return
        spot = (event.probe, event.netns, event.ifindex)
        answer = query.answers[-1] if query.answers else None
        if event.probe is ProbeId.KFREE_SKB:
            # In the client's own netns only: what dies elsewhere did not come, and somebody else says why.
            if answer is not None and event.netns == query.netns and answer.arrived_ns is not None:
                answer.drop = event.reason, event.location
            return
        if event.probe not in AT_DEVICE:
            return
        if answer is None or spot in answer.spots or event.ktime_ns - answer.sent_ns > SAME_PACKET_NS:
            answer = _Answer(event.ktime_ns, header.saddr, header.saddr, message.flags)
            query.answers.append(answer)
            del query.answers[:-ANSWERS]
        answer.spots.add(spot)
        if answer.arrived_ns is None:
            answer.source = header.saddr
            if _came_home(query, event):
                answer.arrived_ns = event.ktime_ns
                if not query.told:
                    self._answered[id(query)] = query
        query.seen_ns = event.ktime_ns

    def _unreachable(self, event: Event, header: FiveTuple) -> None:
        """An ICMP error quotes an answer that nobody waits for, or a query that nobody takes."""
        txid = event.seq >> 16
        if header.protocol != socket.IPPROTO_UDP or event.payload_len < _HEADER.size:
            return
        answered = self._asked(header, txid, event.ktime_ns)
        if answered is not None:
            if answered.answers and (event.icmp_type, event.icmp_code) in _PORT_UNREACHABLE:
                answered.answers[-1].refused = True
            return
        end = (header.saddr, header.sport)
        query = self._open.get((*self._own(end, event.ktime_ns), header.protocol, txid))
        if query is not None:
            query.unreachable = True


def _began(exchange: DnsExchange) -> int:
    return exchange.tries[0]


def _near(around: list[DnsExchange], index: int) -> tuple[DnsExchange, ...]:
    return (*around[max(0, index - COMPANY) : index], *around[index + 1 : index + COMPANY + 1])


def _is_question(event: Event, message: Message) -> bool:
    """It has a name, or what would say so was not copied; anything may be sent to port 53."""
    cut = len(event.payload) < min(event.payload_len, PAYLOAD_MAX)
    return bool(message.name) or (cut and message.type == "" and event.packet is not None and not _is_tcp(event.packet))


def _is_tcp(header: FiveTuple) -> bool:
    return header.protocol == socket.IPPROTO_TCP


def _came_home(query: _Open, event: Event) -> bool:
    """It is back where the query was first seen: in the netns that sent it, or at the device that it came in by."""
    probe, netns, ifindex = query.spot
    if event.netns != netns:
        return False
    if probe is ProbeId.NET_DEV_QUEUE:
        return event.probe is ProbeId.NETIF_RECEIVE_SKB
    return event.probe is ProbeId.NET_DEV_QUEUE and event.ifindex == ifindex


def exchanges(flows: Iterable[Flow]) -> list[DnsExchange]:
    """The queries that these flows are, or carry."""
    table = DnsTable(limit=sys.maxsize)
    packets = (p for flow in flows if _may_be_dns(flow) for p in flow.packets)
    for event in sorted((e for p in packets for e in p.events), key=lambda e: e.ktime_ns):
        table.feed(event)
    return table.rest()


def _may_be_dns(flow: Flow) -> bool:
    return flow.original.dport == DNS_PORT and flow.original.protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)


def by_socket(queries: Iterable[DnsExchange]) -> dict[tuple[Address, int, bool], list[DnsExchange]]:
    """The same by the client's address and port, and whether it was TCP."""
    found: dict[tuple[Address, int, bool], list[DnsExchange]] = {}
    for query in queries:
        found.setdefault((query.client, query.port, query.tcp), []).append(query)
    return found
