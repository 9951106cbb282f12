"""The element of a verdict map that decided: what a rule such as `ip daddr . meta l4proto . th dport vmap @x` hides.

kube-proxy's nftables mode has one such rule for all Services, so the rule alone says nothing. The kernel is asked for
the rule's expressions and for the one element with the packet's key: two small questions, however big the map is
(`nft list chain` reads all sets of the table, 0.6 s for 5,000 Services). Where a key has a part that a packet's
addresses and ports do not give, there is no answer rather than a guess.
"""

from __future__ import annotations

import socket
from typing import Final

from k8snet.event import FiveTuple
from k8snet.kernel.nfnetlink import Fields, Netlink, element, expressions, number, text
from k8snet.kernel.ruletrace import RuleStep

_META_L4PROTO: Final = 16
_NETWORK, _TRANSPORT = 1, 2
_PROTOCOLS: Final = {
    socket.IPPROTO_TCP: "tcp",
    socket.IPPROTO_UDP: "udp",
    socket.IPPROTO_SCTP: "sctp",
    socket.IPPROTO_ICMP: "icmp",
    socket.IPPROTO_ICMPV6: "ipv6-icmp",
}
# They test and count, but put nothing into the key.
_WITHOUT_RESULT: Final = ("cmp", "counter", "lookup")


def decided(netlink: Netlink, step: RuleStep) -> str | None:
    """The element by which the rule of `step` decided, after nft's manner; None: it uses no verdict map."""
    if step.packet is None or step.handle is None:
        return None
    registers, parts = bytearray(80), dict[int, str | None]()  # None: something that is not known here
    for kind, fields in expressions(netlink, step.family, step.table, step.chain, step.handle):
        if kind in ("payload", "meta"):
            target = _slot(fields.get(1, b""))
            if target is None:  # it does not load, it sets something
                return None
            loaded, parts[target] = _load(kind, fields, step.packet)
            padded = loaded.ljust(-(-len(loaded) // 4) * 4, b"\0")  # a load fills whole registers, of four bytes each
            registers[target : target + len(padded)] = padded
        elif kind == "lookup" and 3 in fields:
            name, start = text(fields.get(1, b"")), _slot(fields.get(2, b"")) or 0
            key = [parts[at] for at in sorted(parts) if at >= start]
            found = element(netlink, step.family, step.table, name, bytes(registers[start:]))
            if found is None or not key or None in key:
                return None
            comment = f' comment "{found.comment}"' if found.comment else ""
            verdict = f"{found.verdict} {found.chain}".strip()
            named = "" if name.startswith("__map") else f"@{name} "  # the kernel's name for one that has none
            return f"vmap {named}{{ {' . '.join(map(str, key))}{comment} : {verdict} }}"
        elif kind in _WITHOUT_RESULT:
            parts.clear()
        else:
            return None
    return None


def is_bare(netlink: Netlink, step: RuleStep) -> bool:
    """The rule of `step` has no condition: whoever was sent to its chain is dropped or rejected by it."""
    if step.handle is None:
        return False
    found = expressions(netlink, step.family, step.table, step.chain, step.handle)
    return bool(found) and all(kind in ("counter", "reject", "immediate") for kind, _ in found)


def _slot(register: bytes) -> int | None:
    """Where a register begins, in bytes: 1 to 4 are of 16 bytes, 8 to 23 the same memory in pieces of four."""
    value = number(register)
    if 1 <= value <= 4:
        return (value - 1) * 16
    return (value - 8) * 4 if 8 <= value <= 23 else None


def _load(kind: str, fields: Fields, packet: FiveTuple) -> tuple[bytes, str | None]:
    """What an expression reads from this packet, as bytes and as nft prints it."""
    unknown = b"", None
    protocol = bytes([packet.protocol]), _PROTOCOLS.get(packet.protocol, str(packet.protocol))
    if kind == "meta":
        return protocol if number(fields.get(2, b"")) == _META_L4PROTO else unknown
    base, offset, length = (number(fields.get(attribute, b"")) for attribute in (2, 3, 4))
    source, destination = (12, 16) if packet.saddr.version == 4 else (8, 24)
    size = len(packet.saddr.packed)
    return {
        (_NETWORK, source, size): (packet.saddr.packed, str(packet.saddr)),
        (_NETWORK, destination, size): (packet.daddr.packed, str(packet.daddr)),
        (_TRANSPORT, 0, 2): (packet.sport.to_bytes(2, "big"), str(packet.sport)),
        (_TRANSPORT, 2, 2): (packet.dport.to_bytes(2, "big"), str(packet.dport)),
    }.get((base, offset, length), unknown)
