"""Which rules a packet met: an own nft table marks the flow's first packets, the kernel reports every rule they meet.

In one netns: a table `k8snet_trace` (priority -450, before everybody's) sets nftrace on SYN, SYN-ACK and RST, and on
a few other segments or datagrams a second. nf_tables (and so iptables-nft) then reports over NFTRACE; the same bit
makes iptables-legacy log `TRACE: table:chain:rule:n`, read through nfnetlink_log. A step carries the header the packet
had *there*, because the trace id changes within one packet's path: joining steps to packets goes by header and is the
caller's work.
While it runs, `-j LOG` rules of a netns with legacy tables log to us and not to the kernel log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Literal

from k8snet.errors import K8snetError
from k8snet.event import Address, FiveTuple
from k8snet.kernel.guardian import Guardian, NftTable, Sysctl, sysctl
from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import (
    FAMILIES,
    HOOKS,
    NFGENMSG,
    SUBSYS_NFTABLES,
    SUBSYS_ULOG,
    Netlink,
    attribute,
    attributes,
    chain,
    number,
    tables,
    text,
    verdict_name,
)
from k8snet.kernel.nftables import Nft, NftError

TABLE: Final = "k8snet_trace"
PRIORITY: Final = -450  # before raw (-300) and conntrack (-200)
# Packets marked of each direction: so many at once, then so many a second. A packet makes 10 to 40 messages, and taking
# one costs more than taking an event: of a busy flow at 20 a second they took half of the tracer's time.
AT_ONCE: Final = 20
PER_SECOND: Final = 5
LATER_PER_SECOND: Final = 5  # of a TCP connection after its SYN: what retransmits because a rule drops it comes by
INSIST_MOST: Final = 64  # connections in a netns: each makes some forty messages a second or two
COPY_BYTES: Final = 128  # of each logged packet: IPv6 with an extension header and TCP

_RCVBUF: Final = 8 << 20  # a message takes 0.7 to 2 KiB of it
_NFNLGRP_NFTRACE: Final = 9
_NFT_MSG_TRACE: Final = SUBSYS_NFTABLES << 8 | 17
_NFULNL_MSG_PACKET: Final = SUBSYS_ULOG << 8
_NFULNL_MSG_CONFIG: Final = SUBSYS_ULOG << 8 | 1
_PF_BIND, _BIND = 3, 1
_NFULNL_COPY_PACKET: Final = 2
_GROUP: Final = 0  # where the kernel's own TRACE goes; it cannot be chosen
_HEADERS_KEPT: Final = 4096

# The names of the chains that every iptables has, and so of iptables-nft's base chains.
_BUILT_IN: Final = {name.upper(): name for name in HOOKS[:5]}

_IPV4: Final = struct.Struct("!BxHHHBB2x4s4s")
_IPV6: Final = struct.Struct("!B3xHBB16s16s")
_FRAGMENT: Final = 44
_ICMP_ERRORS: Final = (3, 4, 5, 11, 12)  # RFC 792
_EXTENSIONS: Final = (0, 43, _FRAGMENT, 60)  # hop-by-hop, routing, destination options (RFC 8200, section 4)

Engine = Literal["nft", "legacy"]
Kind = Literal["rule", "policy", "return"]
Place = tuple[Address, int | None]  # an address and a port; None: any port


@dataclass(frozen=True, slots=True)
class Match:
    """Whose packets to follow, in both directions.

    `clients`: every source address a request may carry (the pod's; the node's own after SNAT); empty: any.
    `servers`: where the client sends to; empty, with no `backends`: anywhere. `backends`: where DNAT may send it on.
    `protocol`: IPPROTO_*; 0: TCP, UDP and ICMP echo.
    """

    protocol: int
    clients: tuple[Address, ...]
    servers: tuple[Place, ...]
    backends: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleStep:
    """One rule that a packet met, or the policy at a chain's end."""

    ktime_ns: int  # CLOCK_MONOTONIC when it was read, later than the packet
    netns: int
    engine: Engine
    family: str  # the table's: ip, ip6, inet, bridge
    table: str
    chain: str
    kind: Kind
    handle: int | None  # nft: the rule's handle
    number: int | None  # legacy: the N-th -A line of that chain
    verdict: str  # accept, drop, continue, jump, goto, return, ...; legacy: unknown, its message has none
    target: str | None  # the chain that a jump or goto goes to
    trace_id: int  # legacy: 0
    packet: FiveTuple | None  # as it was when it entered this base chain
    ip_id: int | None  # 0 for IPv6; None: header unknown
    seq: int | None  # as in Event: TCP sequence, ICMP echo sequence, UDP first four payload bytes
    tcp_flags: int
    iif: int | None
    oif: int | None
    hook: str | None  # prerouting, input, forward, output, postrouting
    base_chain: str | None  # where this traversal began
    mark: int


class RuleTrace(contextlib.AbstractContextManager["RuleTrace"]):
    """Follows rules in one netns while it is open.

    Raises K8snetError on entering when nothing can be traced here. What could not be had beside that is in `missing`,
    one sentence each; `lost` counts the times the kernel had to drop messages.
    """

    def __init__(self, netns: Netns, match: Match, guardian: Guardian) -> None:
        self.netns = netns
        self.match = match
        self.table = TABLE
        self.missing: list[str] = []
        self.lost = 0
        self.legacy = False  # iptables-legacy is read too
        self._guardian = guardian
        self._stack = contextlib.ExitStack()
        self._trace: Netlink | None = None
        self._log: Netlink | None = None
        self._ask: Netlink | None = None
        self._nft: Nft | None = None
        self._insisted = 0
        self._headers: OrderedDict[int, _Traversal] = OrderedDict()
        self._hooks: dict[tuple[str, str, str], str | None] = {}

    def __enter__(self) -> RuleTrace:
        with contextlib.ExitStack() as stack:
            try:
                self._trace = Netlink(self.netns.path, group=_NFNLGRP_NFTRACE, rcvbuf=_RCVBUF)
                stack.callback(self._trace.close)
                self._ask = stack.enter_context(Netlink(self.netns.path))
                for family in legacy_families(self.netns.path):
                    self._read_legacy(stack, family)
                self._add_table(stack)
            except OSError as error:
                raise K8snetError(
                    f"rules cannot be traced in netns {self.netns.inum}: {error}",
                    "use --read-only to name rules by their counters",
                ) from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def filenos(self) -> list[int]:
        """The sockets to wait on."""
        return [s.fileno() for s in (self._trace, self._log) if s is not None]

    def drain(self) -> list[RuleStep]:
        """What was reported since the last call, without waiting. Call it often: several times a second."""
        now = time.monotonic_ns()
        steps: list[RuleStep] = []
        for reader, kind, decode in (
            (self._trace, _NFT_MSG_TRACE, self._nft_step),
            (self._log, _NFULNL_MSG_PACKET, self._legacy_step),
        ):
            if reader is None:
                continue
            while True:
                try:
                    for message, _, body in reader.received():
                        if message == kind and (step := decode(body, now)) is not None:
                            steps.append(step)
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self.lost += 1
        return steps

    def insist(self, client: Address, port: int) -> None:
        """Mark the connection's next SYN for certain: a busy flow's retransmissions would miss the rate limit."""
        if self._nft is None or self._insisted >= INSIST_MOST:
            return
        self._insisted += 1
        # Refused (an old nft, a netns that is going), it has the same chance as the others.
        with contextlib.suppress(NftError, OSError):
            self._nft.run(f"add element inet {self.table} again{client.version} {{ {client} . {port} }}")

    # --- setting up ---------------------------------------------------------------------------------------------------

    def _add_table(self, stack: contextlib.ExitStack) -> None:
        nft = stack.enter_context(Nft(self.netns.path))
        problem = ""
        # Another run may hold the name, or have left it; a kernel or an nft may not know `owner` (5.10).
        taken = {table.name for table in tables(self._ask)} if self._ask is not None else set()
        for name in (TABLE, *(f"{TABLE}_{n}" for n in range(2, 10))):
            if name in taken:
                continue
            change = NftTable(self.netns.inum, self.netns.path, "inet", name)
            for owner in (True, False):
                if not owner:
                    self._guardian.will_change(change)
                    stack.callback(self._guardian.undo, change)
                try:
                    nft.run(script(name, self.match, owner=owner))
                except NftError as error:
                    problem = str(error)
                    if not owner:
                        self._guardian.forget(change)
                    if os.strerror(errno.EPERM) in problem or os.strerror(errno.EEXIST) in problem:
                        break
                    continue
                self.table, self._nft = name, nft
                return
            else:
                break
        said = problem.splitlines()[0] if problem else "every name is taken"
        raise K8snetError(
            f"rules cannot be traced in netns {self.netns.inum}: {said}",
            "k8snet cleanup, and try again; or --read-only to name rules by their counters",
        )

    def _read_legacy(self, stack: contextlib.ExitStack, family: int) -> None:
        name = f"net/netfilter/nf_log/{family}"
        try:
            with entered(self.netns.path):
                file = sysctl(name)
                was = file.read_text().strip()
                # netlink sets it, but only a write sets it back.
                if was != "nfnetlink_log" and not os.access(file, os.W_OK):
                    raise OSError(errno.EROFS, "what is changed for it could not be undone", str(file))
            if self._log is None:
                self._log = Netlink(self.netns.path, rcvbuf=_RCVBUF)
                stack.callback(self._log.close)
                self._configure(socket.AF_UNSPEC, attribute(1, bytes([_BIND])))
                mode = struct.pack("!IBx", COPY_BYTES, _NFULNL_COPY_PACKET)
                # A threshold of 1: each message at once, not after a hundred of them or a second.
                self._configure(socket.AF_UNSPEC, attribute(2, mode) + attribute(5, struct.pack("!I", 1)))
            if was != "nfnetlink_log":
                change = Sysctl(self.netns.inum, self.netns.path, name, was, "nfnetlink_log")
                self._guardian.will_change(change)
                stack.callback(self._guardian.undo, change)
                self._configure(family, attribute(1, bytes([_PF_BIND])))
            self.legacy = True
        except (OSError, K8snetError) as error:
            reason = error.problem if isinstance(error, K8snetError) else str(error)
            if isinstance(error, PermissionError | FileExistsError) or getattr(error, "errno", 0) == errno.EBUSY:
                reason = f"log group {_GROUP} is taken by another program ({error})"
            self.missing.append(f"iptables-legacy rules are not traced in netns {self.netns.inum}: {reason}")

    def _configure(self, family: int, body: bytes) -> None:
        if self._log is not None:
            self._log.request(_NFULNL_MSG_CONFIG, NFGENMSG.pack(family, 0, socket.htons(_GROUP)) + body)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _nft_step(self, body: bytes, now: int) -> RuleStep | None:
        step, traversal = decode_nft(body, now, self.netns.inum)
        if step is None or step.table.startswith(TABLE):
            return None
        if traversal is not None:
            hook = self._hook(step)
            self._headers[step.trace_id] = replace(traversal, hook=hook)
            self._headers.move_to_end(step.trace_id)
            if len(self._headers) > _HEADERS_KEPT:
                self._headers.popitem(last=False)
        known = self._headers.get(step.trace_id)
        return step if known is None else known.put(step)

    def _hook(self, step: RuleStep) -> str | None:
        if step.family in ("ip", "ip6") and step.chain in _BUILT_IN:
            return _BUILT_IN[step.chain]
        key = step.family, step.table, step.chain
        if key not in self._hooks:
            found = chain(self._ask, *key) if self._ask is not None else None
            self._hooks[key] = found.hook if found is not None else None
        return self._hooks[key]

    def _legacy_step(self, body: bytes, now: int) -> RuleStep | None:
        return decode_legacy(body, now, self.netns.inum)


def legacy_families(path: str) -> list[int]:
    """AF_INET, AF_INET6: for which of them this netns has iptables-legacy tables. Creates none."""
    with entered(path):
        found = []
        for family, names in ((socket.AF_INET, "ip_tables_names"), (socket.AF_INET6, "ip6_tables_names")):
            with contextlib.suppress(OSError):
                if (Path("/proc/thread-self/net") / names).read_text().strip():
                    found.append(int(family))
        return found


# --- the table -------------------------------------------------------------------------------------------------------


def script(table: str, match: Match, *, owner: bool = True) -> str:
    """The nft script that creates the table; `create` so that a table of another run is never touched."""
    rules = _rules(match)
    if not rules:
        raise K8snetError("rules cannot be traced: no address of this flow is known", "name the client or the server")
    # One line each, because `create` drops the chains of a block (measured with nft 1.0.6). Still one transaction.
    lines = [f"create table inet {table} {'{ flags owner; }' if owner else ''}"]
    tcp = match.protocol in (0, socket.IPPROTO_TCP)
    if tcp:
        lines += [f"add set inet {table} again{v} {{ type ipv{v}_addr . inet_service; }}" for v in (4, 6)]
    for hook in ("prerouting", "output"):
        lines.append(f"add chain inet {table} {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}")
        lines += [f"add rule inet {table} {hook} {rule}" for rule in (*(_AGAIN if tcp else ()), *rules)]
    return "\n".join(lines) + "\n"


def _rules(match: Match) -> list[str]:
    limit = f"limit rate {PER_SECOND}/second burst {AT_ONCE} packets meta nftrace set 1"
    later = f"limit rate {LATER_PER_SECOND}/second burst {LATER_PER_SECOND} packets meta nftrace set 1"
    protocols = (match.protocol,) if match.protocol else (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP)
    places = {*match.servers, *match.backends}
    rules = []
    for protocol in protocols:
        for version, family in ((4, "ip"), (6, "ip6")):
            clients = sorted({a for a in match.clients if a.version == version})
            theirs = {p for p in places if p[0].version == version}
            if (match.clients and not clients) or (places and not theirs) or not (clients or theirs):
                continue
            for there, here, kind in (("saddr", "daddr", "request"), ("daddr", "saddr", "reply")):
                only = f"{family} {there} {_set(clients)} " if clients else ""
                rules += [
                    f"{only}{place}{_first_packet(protocol, version, kind)} {limit}"
                    for place in _places(theirs, protocol, family, here)
                ]
                if protocol == socket.IPPROTO_TCP:
                    rules += [f"{only}{place}{_LATER} {later}" for place in _places(theirs, protocol, family, here)]
    wrapped = (where for client in match.clients for where in (*_in_tunnel(client, protocols), *_quoted(client)))
    return [*rules, *(f"{where} {limit}" for where in wrapped)]


_AGAIN: Final = tuple(
    f"{family} {side}addr . tcp {side}port @again{version} tcp flags & (syn | rst) != 0 meta nftrace set 1"
    for version, family in ((4, "ip"), (6, "ip6"))
    for side in ("s", "d")
)
_LATER: Final = "tcp flags & (syn | rst) == 0"
# Where an IP header has its protocol, its two addresses, and where the next header begins, in bytes.
_INNER: Final = {4: (9, 12, 16, 20), 6: (6, 8, 24, 40)}
# What an outer packet is known by, and how many bytes after its transport header's start the inner IP header begins.
_TUNNELS: Final = (("udp dport { 4789, 8472 }", 8 + 8 + 14), ("meta l4proto { 4, 41 }", 0))
_ERRORS: Final = {
    4: "icmp type { destination-unreachable, time-exceeded }",
    6: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded }",
}


def _in_tunnel(client: Address, protocols: tuple[int, ...]) -> Iterable[str]:
    """nft's condition for the outer packet of a tunnel with one of the client's first packets inside."""
    protocol, *addresses, end = _INNER[client.version]
    for outer, start in _TUNNELS:
        for wanted in protocols:
            first = f"{_at(start + end + 13, 1)} & 6 != 0 " if wanted == socket.IPPROTO_TCP else ""
            inside = socket.IPPROTO_ICMPV6 if (wanted, client.version) == (socket.IPPROTO_ICMP, 6) else wanted
            for address in addresses:
                inner = f"{_at(start + protocol, 1)} {inside} {_at(start + address, client.max_prefixlen // 8)}"
                yield f"{outer} {inner} {int(client):#x} {first}".rstrip()


def _quoted(client: Address) -> Iterable[str]:
    """nft's condition for an ICMP error about one of the client's packets."""
    _, *addresses, _ = _INNER[client.version]
    for address in addresses:
        yield f"{_ERRORS[client.version]} {_at(8 + address, client.max_prefixlen // 8)} {int(client):#x}"


def _at(offset: int, length: int) -> str:
    return f"@th,{offset * 8},{length * 8}"


def _places(places: set[Place], protocol: int, family: str, address: str) -> list[str]:
    """nft's condition for "one of these", one for those with a port and one for those with any; [""] for no places."""
    name = _PORTS.get(protocol)
    any_port = sorted({a for a, port in places if port is None or name is None})
    # An address that is wanted with any port needs no second entry with one.
    with_port = sorted((a, port) for a, port in places if a not in any_port and port is not None)
    conditions = []
    if any_port:
        conditions.append(f"{family} {address} {_set(any_port)} ")
    if with_port:
        port_field = f"{name} {'dport' if address == 'daddr' else 'sport'}"
        conditions.append(f"{family} {address} . {port_field} {_set(f'{a} . {port}' for a, port in with_port)} ")
    return conditions or [""]


_PORTS: Final = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_SCTP: "sctp"}


def _first_packet(protocol: int, version: int, kind: str) -> str:
    if protocol == socket.IPPROTO_TCP:
        return "tcp flags & (syn | rst) != 0"
    if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        return f"{'icmp' if version == 4 else 'icmpv6'} type echo-{kind}"
    return f"meta l4proto {protocol}"


def _set(elements: Iterable[object]) -> str:
    return "{ " + ", ".join(str(e) for e in elements) + " }"


# --- decoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Traversal:
    """What only the first message of a base chain's traversal tells."""

    packet: FiveTuple | None
    ip_id: int | None
    seq: int | None
    tcp_flags: int
    base_chain: str
    iif: int | None = None
    oif: int | None = None
    hook: str | None = None

    def put(self, step: RuleStep) -> RuleStep:
        """`step` with what is known of its traversal."""
        return replace(
            step,
            packet=self.packet,
            ip_id=self.ip_id,
            seq=self.seq,
            tcp_flags=self.tcp_flags,
            base_chain=self.base_chain,
            iif=self.iif if step.iif is None else step.iif,
            oif=self.oif if step.oif is None else step.oif,
            hook=self.hook,
        )


def decode_nft(body: bytes, now: int, netns: int) -> tuple[RuleStep | None, _Traversal | None]:
    """One NFTRACE message (enum nft_trace_attributes): the step, and its traversal when it is the first of one."""
    if len(body) < NFGENMSG.size:
        return None, None
    fields = dict(attributes(body[NFGENMSG.size :]))
    if 1 not in fields or 2 not in fields:
        return None, None
    kinds: dict[int, Kind] = {1: "policy", 2: "return", 3: "rule"}
    kind = kinds.get(number(fields.get(4, b"")), "rule")
    verdict = dict(attributes(fields.get(5, b"")))
    code = verdict_name(number(verdict[1])) if 1 in verdict else "continue"
    handle = number(fields[3]) if 3 in fields else None
    if kind == "policy" and 16 in fields:
        code = verdict_name(number(fields[16]))
    elif kind == "rule" and handle is None:
        # The end of a chain: 6.12 and later say "rule" where 5.10 and 6.1 say "return" (measured).
        kind = "return"
    iif, oif = (number(fields[a]) if a in fields else None for a in (10, 12))
    name = text(fields[2])
    step = RuleStep(
        ktime_ns=now,
        netns=netns,
        engine="nft",
        family=FAMILIES.get(body[0], str(body[0])),
        table=text(fields[1]),
        chain=name,
        kind=kind,
        handle=handle,
        number=None,
        verdict=code,
        target=text(verdict[2]) if 2 in verdict else None,
        trace_id=number(fields.get(6, b"")),
        packet=None,
        ip_id=None,
        seq=None,
        tcp_flags=0,
        iif=iif,
        oif=oif,
        hook=None,
        base_chain=None,
        mark=number(fields.get(14, b"")),
    )
    if 8 not in fields:
        return step, None
    header = parse_header(fields[8], fields.get(9))
    if header is None:
        return step, _Traversal(None, None, None, 0, name, iif, oif)
    return step, _Traversal(header.packet, header.ip_id, header.seq, header.tcp_flags, name, iif, oif)


def decode_legacy(body: bytes, now: int, netns: int) -> RuleStep | None:
    """One nfnetlink_log message (enum nfulnl_attr_type) that iptables-legacy's TRACE wrote; None for any other."""
    if len(body) < NFGENMSG.size:
        return None
    fields = dict(attributes(body[NFGENMSG.size :]))
    # net/ipv4/netfilter/ip_tables.c, trace_packet(): "TRACE: %s:%s:%s:%u ". No name may hold a colon but a chain's.
    prefix = text(fields.get(10, b"")).strip()
    if not prefix.startswith("TRACE: ") or prefix.count(":") < 4:
        return None
    table, _, rest = prefix.removeprefix("TRACE: ").partition(":")
    name, comment, position = rest.rsplit(":", 2)
    kinds: dict[str, Kind] = {"rule": "rule", "policy": "policy", "return": "return"}
    if comment not in kinds or not position.isdigit():
        return None
    header = parse_header(fields.get(9, b""), None)
    hook = number(fields.get(1, b"")[2:3] or b"\xff")
    hook_name = HOOKS[hook] if hook < len(HOOKS) else None
    return RuleStep(
        ktime_ns=now,
        netns=netns,
        engine="legacy",
        family="ip6" if body[0] == socket.AF_INET6 else "ip",
        table=table,
        chain=name,
        kind=kinds[comment],
        handle=None,
        number=int(position),
        verdict="unknown",
        target=None,
        trace_id=0,
        packet=header.packet if header else None,
        ip_id=header.ip_id if header else None,
        seq=header.seq if header else None,
        tcp_flags=header.tcp_flags if header else 0,
        iif=number(fields[4]) if 4 in fields else None,
        oif=number(fields[5]) if 5 in fields else None,
        hook=hook_name,
        base_chain=hook_name.upper() if hook_name else None,
        mark=number(fields.get(2, b"")),
    )


@dataclass(frozen=True, slots=True)
class Header:
    """What identifies a packet, as `k8snet.event.Event` names it."""

    packet: FiveTuple
    ip_id: int
    seq: int
    tcp_flags: int


def parse_header(network: bytes, transport: bytes | None) -> Header | None:
    """The identity in an IP header and what follows it; `transport` when the two came apart. None: not IP."""
    if not network:
        return None
    saddr: Address
    daddr: Address
    if network[0] >> 4 == 4 and len(network) >= _IPV4.size:
        _, _, ip_id, fragment, _, protocol, source, destination = _IPV4.unpack_from(network)
        saddr, daddr = IPv4Address(source), IPv4Address(destination)
        offset = (network[0] & 0xF) * 4
        if fragment & 0x1FFF:
            return Header(FiveTuple(saddr, daddr, 0, 0, protocol), ip_id, 0, 0)
    elif network[0] >> 4 == 6 and len(network) >= _IPV6.size:
        _, _, protocol, _, source, destination = _IPV6.unpack_from(network)
        saddr, daddr, ip_id, offset = IPv6Address(source), IPv6Address(destination), 0, 40
        while protocol in _EXTENSIONS and offset + 8 <= len(network):
            if protocol == _FRAGMENT and struct.unpack_from("!H", network, offset + 2)[0] >> 3:
                return Header(FiveTuple(saddr, daddr, 0, 0, network[offset]), ip_id, 0, 0)
            length = 8 if protocol == _FRAGMENT else (network[offset + 1] + 1) * 8
            protocol, offset = network[offset], offset + length
    else:
        return None
    payload = network[offset:] if transport is None else transport
    sport = dport = seq = flags = 0
    if protocol == socket.IPPROTO_TCP and len(payload) >= 14:
        sport, dport, seq = struct.unpack_from("!HHI", payload)
        flags = payload[13]
    elif protocol in (socket.IPPROTO_UDP, socket.IPPROTO_SCTP) and len(payload) >= 4:
        sport, dport = struct.unpack_from("!HH", payload)
        if protocol == socket.IPPROTO_UDP and len(payload) >= 12:
            seq = struct.unpack_from("!I", payload, 8)[0]
    elif protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6) and len(payload) >= 8:
        echo = (8, 0) if protocol == socket.IPPROTO_ICMP else (128, 129)
        if payload[0] in echo:
            sport, seq = struct.unpack_from("!HH", payload, 4)
        elif protocol == socket.IPPROTO_ICMP and payload[0] in _ICMP_ERRORS and len(payload) >= 14:
            # The id of the packet that it quotes, as in Event: its own says nothing.
            (ip_id,) = struct.unpack_from("!H", payload, 12)
    return Header(FiveTuple(saddr, daddr, sport, dport, protocol), ip_id, seq, flags)
