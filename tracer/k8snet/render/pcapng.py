"""What was seen as a capture file (pcapng), for Wireshark and tshark: one packet a sighting, one interface a place.

In: an `Observation`. Out: the file's blocks. The probes keep fields and no bytes, so the packets are rebuilt from these
(`k8snet.render.headers`) and are as short as what is known. Findings, translations and drops are the packets' comments;
the id that the format has for a packet that is captured more than once says which sightings are one packet's.

Written here because of what libraries lack: scapy's writer (2.8) has microseconds only, and neither descriptions of
interfaces nor packet ids nor names; python-pcapng (2.1) is not maintained. The format is
draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from k8snet import __version__
from k8snet.cluster.inventory import Inventory
from k8snet.event import Address, Event
from k8snet.findings.words import label
from k8snet.journeys import INUM, Journey, Told, told
from k8snet.judge import Observation
from k8snet.render import text
from k8snet.render.headers import Lengths, Rebuilt, lengths, rebuilt
from k8snet.render.safe import inert
from k8snet.report import Hop

_SECTION, _INTERFACE, _NAMES, _PACKET = 0x0A0D0D0A, 1, 4, 6
_RAW_IP: Final = 101  # LINKTYPE_RAW: every packet begins with its IP header
_NANOSECONDS: Final = 9  # if_tsresol
_INBOUND, _OUTBOUND = 1, 2  # epb_flags
_LONGEST: Final = 8000  # bytes of one comment; a guess: what somebody reads
ABOUT: Final = (
    "Made by k8snet from the fields that its probes keep of a packet: there are no captured bytes. A packet ends where "
    "nothing more is known of it; its original length is the true one. Zero because they are not known: checksums, "
    "type of service, flow label. Written as 65535 because zero would mean something: the TCP window, the checksum of "
    "UDP over IPv6. "
    "A packet is here once for each place where it was seen: choose one interface before you look for retransmissions."
)


@dataclass(slots=True)
class _Shown:
    """One packet of the file, as long as it waits for its turn: its bytes are made when they are written."""

    event: Event
    hop: Hop
    direction: str  # "request" or "reply"
    number: int  # of the packet among all packets
    known: Lengths
    comments: list[str]

    @property
    def spot(self) -> tuple[int, str, bool]:
        """Where it was seen: the netns, the device or the hook, and whether it is a device."""
        return self.hop.netns, self.hop.device or self.hop.direction, self.hop.device is not None


def blocks(seen: Observation) -> Iterator[bytes]:
    """The file, in the order of time."""
    shown = _shown(seen)
    first = {one.spot: one for one in reversed(shown)}
    interfaces = {spot: number for number, spot in enumerate(dict.fromkeys(one.spot for one in shown))}
    yield _section()
    for spot in interfaces:
        yield _interface(first[spot])
    headers = {header for one in shown for header in (one.event.packet, one.event.outer) if header is not None}
    yield from _resolved({a for header in headers for a in (header.saddr, header.daddr)}, seen.around.inventory)
    for one in shown:
        made = rebuilt(one.event, one.known)
        if made is not None:
            yield _packet(one, made, interfaces[one.spot], seen.boot_ns)


def _shown(seen: Observation) -> list[_Shown]:
    found: list[_Shown] = []
    number = 0
    for flow in told(seen):
        of_flow: list[_Shown] = []
        for journey in flow.journeys:
            number += 1
            of_flow += _of(journey, number)
        _explain(flow, of_flow)
        found += of_flow
    return sorted(found, key=lambda one: one.event.ktime_ns)


def _of(journey: Journey, number: int) -> list[_Shown]:
    """A packet's sightings; what happened between two of them is said with the second."""
    known = lengths(journey.packet.events)
    shown: list[_Shown] = []
    between: list[str] = []
    for event, hop in journey.sightings:
        if hop.nat:
            between.append(f"{hop.direction}: {hop.nat}" + (f", chosen by {hop.detail}" if hop.detail else ""))
            continue
        if hop.verdict:
            between.append(_died(hop, journey))
        if journey.packet.is_sctp:
            between.append(f"SCTP {label(journey.packet)}")  # of a chunk that is cut, Wireshark says nothing
        if event.gso_segs > 1:
            between.append(f"{event.gso_segs} segments of {event.gso_size} bytes, not yet cut (GSO)")
        shown.append(_Shown(event, hop, journey.packet.direction.value, number, known, list(map(inert, between))))
        between = []
    if shown:
        shown[-1].comments += map(inert, between)
    return shown


def _died(hop: Hop, journey: Journey) -> str:
    said = [f"DROPPED here: {hop.verdict}", hop.detail or ""]
    if journey.death is not None:
        rule, symbol = journey.death.rule, journey.death.symbol
        said += [f"rule {rule.text}" if rule is not None else ""]
        said += [f"kfree_skb: {journey.death.reason or 'no reason'}" + (f" at {symbol}" if symbol else "")]
    return "; ".join(filter(None, said))


def _explain(flow: Told, shown: Sequence[_Shown]) -> None:
    """Each finding stands where it says that something is wrong: at the last packet there, a dead one if there is."""
    for finding in flow.findings:
        here = [one for one in shown if one.direction == finding.direction] or list(shown)
        here = [one for one in here if one.hop.netns == finding.where.netns] or here
        here = [one for one in here if one.hop.verdict] or here
        here = [one for one in here if finding.where.device in (None, one.hop.device)] or here
        if here:
            lines = (f"{finding.severity} {finding.code}: {finding.title}", finding.why, *finding.fix)
            here[-1].comments.insert(0, "\n".join(map(inert, lines)))


# --- blocks: draft-ietf-opsawg-pcapng-03 -----------------------------------------------------------------------------


def _section() -> bytes:
    body = struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(_SECTION, body + _options((4, f"k8snet {__version__}"), (1, ABOUT)))


def _interface(one: _Shown) -> bytes:
    hop = one.hop
    whose = f"pod {hop.pod} on {hop.node}" if hop.pod and hop.node else hop.pod and f"pod {hop.pod}"
    place = f"{whose or (f'node {hop.node}' if hop.node else 'nobody known')}, netns {hop.netns & INUM}"
    if hop.device:
        name, about = f"{text.place(hop)}:{hop.device}", f"device {hop.device} of {place}"
    else:
        name, about = f"{text.place(hop)}:{hop.direction}", f"netfilter hook {hop.direction} of {place}: drops"
    described = _options((2, inert(name)), (3, inert(about)), (9, bytes([_NANOSECONDS])))
    return _block(_INTERFACE, struct.pack("=HHI", _RAW_IP, 0, 0) + described)


def _resolved(addresses: Iterable[Address], inventory: Inventory) -> Iterator[bytes]:
    """Names for addresses, of what Kubernetes calls them."""
    records = b""
    for address in sorted(addresses, key=lambda a: (a.version, a)):
        pod, node = inventory.pod_by_ip.get(address), inventory.node_by_ip.get(address)
        service = inventory.service_by_ip.get(address)
        name = f"pod/{pod.key}" if pod else f"svc/{service.key}" if service else f"node/{node.name}" if node else ""
        if name:
            records += _option(1 if address.version == 4 else 2, address.packed + _utf8(inert(name)) + b"\0")
    if records:
        yield _block(_NAMES, records + struct.pack("=HH", 0, 0))


def _packet(one: _Shown, made: Rebuilt, interface: int, boot_ns: int) -> bytes:
    when = one.event.ktime_ns + boot_ns
    body = struct.pack("=IIIII", interface, when >> 32, when & 0xFFFF_FFFF, len(made.data), made.length)
    comments = [*one.comments, *([f"not known: {', '.join(made.unknown)}"] if made.unknown else [])]
    way = {"in": _INBOUND, "out": _OUTBOUND}.get(one.hop.direction, 0)
    return _block(
        _PACKET,
        body
        + _padded(made.data)
        + _options(
            *((1, comment) for comment in comments), (2, struct.pack("=I", way)), (5, struct.pack("=Q", one.number))
        ),
    )


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def _options(*options: tuple[int, str | bytes]) -> bytes:
    return b"".join(_option(code, _utf8(v) if isinstance(v, str) else v) for code, v in options) + bytes(4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:_LONGEST].decode("utf-8", "ignore").encode()
