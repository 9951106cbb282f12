"""Raw netlink, as little as rule naming and counters need: a socket opened in a netns, messages out, attributes in.

No library does it: pyroute2 takes 0.2 s to import and has neither NFTRACE nor nfnetlink_log, and a reader of traces
must not stall on an event loop. Numbers are the kernel's UAPI (linux/netlink.h, nfnetlink.h, nf_tables.h). A socket
belongs for life to the netns in which it was opened, whatever its thread enters later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k8snet.kernel.netns import entered

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
SO_RCVBUFFORCE: Final = 33

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ATTR: Final = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF  # NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in the type

NFGENMSG: Final = struct.Struct("=BBH")  # family, version, resource id (big-endian)

SUBSYS_ULOG: Final = 4
SUBSYS_NFTABLES: Final = 10
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11

NFT_MSG_GETTABLE: Final = 1
NFT_MSG_DELTABLE: Final = 2
NFT_MSG_GETCHAIN: Final = 4
NFT_MSG_GETRULE: Final = 7
NFT_MSG_GETSET: Final = 10
NFT_MSG_GETSETELEM: Final = 13
NFT_MSG_GETGEN: Final = 16

# enum nf_inet_proto families as nft spells them.
FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
FAMILY_NUMBERS: Final = {name: number for number, name in FAMILIES.items()}

# enum nf_inet_hooks, in the kernel's order.
HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting", "ingress")

VERDICTS: Final = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    4: "repeat",
    5: "stop",
    0xFFFFFFFF: "continue",  # NFT_CONTINUE is -1, and so on down
    0xFFFFFFFE: "break",
    0xFFFFFFFD: "jump",
    0xFFFFFFFC: "goto",
    0xFFFFFFFB: "return",
}


def verdict_name(code: int) -> str:
    """nft's word for a verdict code; the upper half of a queue or drop carries its argument."""
    return VERDICTS.get(code) or VERDICTS.get(code & 0xFF) or str(code)


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs of a run of netlink attributes; a cut-off tail ends it."""
    offset, end = 0, len(data)
    while offset + _ATTR.size <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < _ATTR.size or offset + length > end:
            return
        yield kind & _TYPE_MASK, bytes(data[offset + _ATTR.size : offset + length])
        offset += (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded."""
    return _ATTR.pack(_ATTR.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def text(payload: bytes) -> str:
    """A name from the kernel. Not trusted: whoever prints it makes it harmless (`k8snet.render.safe`)."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def number(payload: bytes) -> int:
    """A big-endian integer of any width, as netfilter sends them."""
    return int.from_bytes(payload, "big")


class Netlink(contextlib.AbstractContextManager["Netlink"]):
    """A netlink socket in the netns at `path` (None: in this thread's)."""

    def __init__(
        self, path: str | Path | None, protocol: int = NETLINK_NETFILTER, *, group: int | None = None, rcvbuf: int = 0
    ) -> None:
        with entered(path) if path is not None else contextlib.nullcontext():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            if rcvbuf:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, rcvbuf)
            if group is not None:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the kernel ends whatever hung on it."""
        self._socket.close()

    def fileno(self) -> int:
        """For select and epoll."""
        return self._socket.fileno()

    def received(self) -> Iterator[tuple[int, int, bytes]]:
        """What has arrived: (type, flags, body), without waiting. ENOBUFS: messages were lost."""
        while True:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except InterruptedError:
                continue
            yield from ((kind, flags, body) for kind, flags, _, body in _messages(data))

    def request(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send one message and wait until the kernel has taken it; OSError says why it has not."""
        self._send([(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)])
        for _ in self._answers(self._sequence):
            pass

    def tell(self, kind: int, body: bytes) -> None:
        """Send one message; the kernel has done what it says when this returns, or answers with an error later."""
        self._send([(kind, NLM_F_REQUEST, body)])

    def get(self, kind: int, body: bytes) -> bytes:
        """Ask for one object: the body of the answer; OSError (ENOENT) when there is none."""
        self._send([(kind, NLM_F_REQUEST | NLM_F_ACK, body)])
        return next(iter([answer for _, answer in self._answers(self._sequence)]), b"")

    def dump(self, kind: int, body: bytes, attempts: int = 8) -> list[bytes]:
        """Ask for all objects: the bodies. Asked again when the list changed meanwhile (NLM_F_DUMP_INTR)."""
        for _ in range(attempts):
            self._send([(kind, NLM_F_REQUEST | NLM_F_DUMP, body)])
            answers = list(self._answers(self._sequence, done=True))
            if not any(flags & NLM_F_DUMP_INTR for flags, _ in answers):
                break
        return [answer for _, answer in answers]

    def stream(self, kind: int, body: bytes) -> Iterator[bytes]:
        """As `dump`, one after the other; who stops early must not use this socket again."""
        self._send([(kind, NLM_F_REQUEST | NLM_F_DUMP, body)])
        yield from (answer for _, answer in self._answers(self._sequence, done=True))

    def batch(self, kind: int, body: bytes) -> None:
        """One nf_tables change, in the batch that nf_tables wants around it."""
        frame = NFGENMSG.pack(socket.AF_UNSPEC, 0, socket.htons(SUBSYS_NFTABLES))
        self._send(
            [
                (_BATCH_BEGIN, NLM_F_REQUEST, frame),
                (SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | NLM_F_ACK, body),
                (_BATCH_END, NLM_F_REQUEST, frame),
            ]
        )
        for _ in self._answers(self._sequence - 1):
            pass

    def _send(self, messages: list[tuple[int, int, bytes]]) -> None:
        data = bytearray()
        for kind, flags, body in messages:
            self._sequence += 1
            data += _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body
            data += b"\0" * (-len(body) % 4)
        self._socket.sendto(data, (0, 0))

    def _answers(self, sequence: int, done: bool = False) -> Iterator[tuple[int, bytes]]:
        while True:
            for kind, flags, seq, body in _messages(self._socket.recv(1 << 20)):
                if seq != sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if kind == _NLMSG_DONE and done:
                    return
                yield flags, body


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


# --- nf_tables: what there is, seen without libnftables --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """One nf_tables table; `owner` is the netlink port of the socket that it dies with, None for an ordinary one."""

    family: str
    name: str
    owner: int | None


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain; `hook`, `policy` and `packets` only for a base chain (and `packets` only where it counts)."""

    family: str
    table: str
    name: str
    hook: str | None
    policy: str | None
    packets: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as far as it matters here: its verdict (drop, reject, accept, ... or None) and its counter."""

    family: str
    table: str
    chain: str
    handle: int
    verdict: str | None
    packets: int | None


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a verdict map: what it does with a packet, the chain that it sends it to, its comment."""

    verdict: str
    chain: str
    comment: str


Fields = dict[int, bytes]  # netlink attributes, by type


def tables(netlink: Netlink) -> list[Table]:
    """Every nf_tables table of the netns; OSError when the kernel has no nf_tables."""
    found = []
    for body in netlink.dump(SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, NFGENMSG.pack(0, 0, 0)):
        family = FAMILIES.get(body[0], str(body[0]))
        fields = dict(attributes(body[NFGENMSG.size :]))
        owner = fields.get(7)
        found.append(Table(family, text(fields.get(1, b"")), None if owner is None else number(owner)))
    return found


def delete_table(path: str | Path, family: str, name: str) -> bool:
    """Delete a table with all that is in it. False: there was none. OSError EPERM: a live socket owns it."""
    with Netlink(path) as netlink:
        body = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(1, name.encode() + b"\0")
        try:
            netlink.batch(NFT_MSG_DELTABLE, body)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
    return True


def chains(netlink: Netlink) -> list[Chain]:
    """Every chain of the netns."""
    return [_chain(body) for body in netlink.dump(SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, NFGENMSG.pack(0, 0, 0))]


def chain(netlink: Netlink, family: str, table: str, name: str) -> Chain | None:
    """One chain; None when it is gone."""
    body = NFGENMSG.pack(FAMILY_NUMBERS.get(family, 0), 0, 0)
    body += attribute(1, table.encode() + b"\0") + attribute(3, name.encode() + b"\0")
    try:
        return _chain(netlink.get(SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, body))
    except OSError:
        return None


def _chain(body: bytes) -> Chain:
    fields = dict(attributes(body[NFGENMSG.size :]))
    hook = policy = None
    packets = None
    if 4 in fields:
        hook_number = number(dict(attributes(fields[4])).get(1, b"\xff"))
        hook = HOOKS[hook_number] if hook_number < len(HOOKS) else str(hook_number)
    if 5 in fields:
        policy = verdict_name(number(fields[5]))
    if 8 in fields:
        packets = number(dict(attributes(fields[8])).get(2, b""))
    family = FAMILIES.get(body[0], str(body[0]))
    return Chain(family, text(fields.get(1, b"")), text(fields.get(3, b"")), hook, policy, packets)


def handles(netlink: Netlink, family: str, table: str, name: str) -> list[int]:
    """The handles of a chain's rules, in the kernel's order."""
    body = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0)
    body += attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
    found = []
    wanted = {1: table.encode() + b"\0", 2: name.encode() + b"\0"}
    for answer in netlink.dump(SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, body):
        # No further than the handle: of 20,000 rules, the expressions would take half a second.
        for kind, payload in attributes(memoryview(answer)[NFGENMSG.size :]):
            if kind == 3:
                found.append(number(payload))
                break
            # A kernel that does not know the filter attributes answers with everything.
            if wanted.get(kind, payload) != payload:
                break
    return found


def expressions(netlink: Netlink, family: str, table: str, name: str, handle: int) -> list[tuple[str, Fields]]:
    """What one rule consists of, (kind, attributes) each in the kernel's order; nothing when it is gone."""
    body = _ask_rule(netlink, family, table, name, handle)
    return list(_expressions(dict(attributes(body[NFGENMSG.size :])).get(4, b"")))


def rule(netlink: Netlink, family: str, table: str, name: str, handle: int) -> Rule | None:
    """One rule; None when it is gone."""
    body = _ask_rule(netlink, family, table, name, handle)
    return _rule(body) if body else None


def _ask_rule(netlink: Netlink, family: str, table: str, name: str, handle: int) -> bytes:
    body = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(1, table.encode() + b"\0")
    body += attribute(2, name.encode() + b"\0") + attribute(3, handle.to_bytes(8, "big"))
    try:
        return netlink.get(SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, body)
    except OSError:
        return b""


def _expressions(listed: bytes) -> Iterator[tuple[str, Fields]]:
    for _, expression in attributes(listed):
        parts = dict(attributes(expression))
        yield text(parts.get(1, b"")), dict(attributes(parts.get(2, b"")))


def element(netlink: Netlink, family: str, table: str, name: str, registers: bytes) -> Element | None:
    """The element of a verdict map whose key stands at the beginning of `registers`; None when there is none."""
    place = NFGENMSG.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(1, table.encode() + b"\0")
    place += attribute(2, name.encode() + b"\0")
    try:
        about = dict(attributes(netlink.get(SUBSYS_NFTABLES << 8 | NFT_MSG_GETSET, place)[NFGENMSG.size :]))
        if number(about.get(3, b"")) & _INTERVALS:
            return None  # found by a key that it does not have
        key = attribute(1, registers[: number(about.get(5, b""))])
        wanted = attribute(3, attribute(1, attribute(1, key)))
        answer = netlink.get(SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM, place + wanted)
    except OSError:
        return None
    fields = dict(attributes(next((e for _, e in attributes(_inside(answer[NFGENMSG.size :], 3))), b"")))
    verdict = dict(attributes(_inside(fields.get(2, b""), 2)))
    # struct nftnl_udata: type (0: a comment), length, value. Only user space reads it.
    said = fields.get(6, b"")
    comment = text(said[2 : 2 + said[1]]) if len(said) > 2 and said[0] == 0 else ""
    return Element(verdict_name(number(verdict.get(1, b""))), text(verdict.get(2, b"")), comment)


_INTERVALS: Final = 0x4  # NFT_SET_INTERVAL


def _inside(data: bytes, kind: int) -> bytes:
    return dict(attributes(data)).get(kind, b"")


def has_rules(netlink: Netlink, ours: str) -> bool:
    """There is a rule outside the tables whose name starts with `ours`. Reads no further than the first one."""
    for body in netlink.stream(SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, NFGENMSG.pack(0, 0, 0)):
        if not text(dict(attributes(body[NFGENMSG.size :])).get(1, b"")).startswith(ours):
            return True
    return False


def tables_with_rules(path: str | Path, ours: str) -> list[Table]:
    """The tables of the netns that have a rule, without those whose name starts with `ours`."""
    with Netlink(path) as netlink:
        every = [table for table in tables(netlink) if not table.name.startswith(ours)]
    found = []
    for table in every:
        named = attribute(1, table.name.encode() + b"\0")
        body = NFGENMSG.pack(FAMILY_NUMBERS.get(table.family, 0), 0, 0) + named
        with Netlink(path) as netlink:  # one for each: it reads no further than the first rule
            answers = netlink.stream(SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, body)
            # A kernel that does not know the filter attributes answers with everything.
            if any(a[0] == body[0] and a[NFGENMSG.size :].startswith(named) for a in answers):
                found.append(table)
    return found


def denying_rules(netlink: Netlink) -> list[Rule]:
    """Every rule of the netns that drops or rejects."""
    bodies = netlink.dump(SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, NFGENMSG.pack(0, 0, 0))
    # Taking 20,000 rules apart takes 2 s; to look for the bytes of a verdict first, a tenth of it.
    found = [_rule(body) for body in bodies if any(mark in body for mark in _DENYING)]
    return [rule for rule in found if rule.verdict in ("drop", "reject")]


_NESTED: Final = 0x8000  # NLA_F_NESTED, which the kernel does not set here, and may
_DROP: Final = attribute(1, b"\0\0\0\0")  # NFTA_VERDICT_CODE, NF_DROP: alone these bytes stand in most rules
_DENYING: Final = (
    *(attribute(2 | flag, attribute(2 | flag, _DROP)) for flag in (0, _NESTED)),  # of an immediate expression
    b"reject",
    b"REJECT",
)


def generation(netlink: Netlink) -> int:
    """A number that changes with each change of the nf_tables ruleset."""
    body = netlink.get(SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NFGENMSG.pack(0, 0, 0))
    return number(dict(attributes(body[NFGENMSG.size :])).get(1, b""))


def _rule(body: bytes) -> Rule:
    fields = dict(attributes(body[NFGENMSG.size :]))
    verdict, packets = None, None
    for name, data in _expressions(fields.get(4, b"")):
        if name == "counter":
            packets = number(data.get(2, b""))
        elif name == "reject":
            verdict = "reject"
        elif name == "target":  # an xtables target that has no nf_tables twin
            verdict = text(data.get(1, b"")).lower()
        elif name == "immediate":
            inner = dict(attributes(dict(attributes(data.get(2, b""))).get(2, b"")))
            if 1 in inner:
                verdict = verdict_name(number(inner[1]))
    family = FAMILIES.get(body[0], str(body[0]))
    return Rule(
        family, text(fields.get(1, b"")), text(fields.get(2, b"")), number(fields.get(3, b"")), verdict, packets
    )
