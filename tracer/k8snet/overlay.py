"""The real path laid over the expected one: which way the packets took, and the first place where it is another.

In: an `Expected` from before the packets, and the Report on them. Out: the same `Expected` with the way to the backend
that was chosen, and a `Difference` if there is one. It is information and no finding: what it says to a person is said
by the catalogue. Hops that nobody expected are no difference as long as the packet comes back to its way in a netns
that is on it: bridges and bonds show one packet at several devices.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from k8snet.cluster.inventory import Inventory
from k8snet.event import end_of
from k8snet.report import Difference, Expected, Hop, Path, Report, Step, Verdict, Way

_ICMP: Final = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
_ENDS: Final = ("refused", "dropped")
_DEVICE: Final = ("in", "out")


def laid_over(found: Expected, report: Report, inventory: Inventory) -> Expected:
    """`found` with the way of the report's packets alone, and the first difference; `inventory`: the newest."""
    view = report.flow
    backend = view.backend or view.server
    taken = next(
        (w for w in found.ways if w.backend and (w.backend.ip, w.backend.port) == (backend.ip, backend.port)), None
    )
    way = taken or next(iter(found.ways), None)
    if way is None:
        return found
    if not report.paths:
        # Without a packet it is only known that nothing came when the client's own kernel refused to send.
        first = next((step for step in way.request if step.sure), None)
        if first is None or report.verdict is not Verdict.REJECTED:
            return found
        return replace(found, difference=Difference("request", first, "no packet was sent"))
    shown = replace(found, ways=(way,))
    if any(report.lost.values()):
        return shown  # what was not seen may have been there
    if taken is None and view.backend is not None and found.fate == "served":
        return replace(shown, ways=(), difference=_another_backend(found, way, report, inventory))
    difference = _first(way, report)
    if difference is not None and taken is None and found.endpoints > 1 and difference.step.nat:
        step = replace(difference.step, nat=f"DNAT to one of {found.endpoints} endpoints")
        difference = replace(difference, step=step)
    return replace(shown, difference=difference)


def _another_backend(found: Expected, way: Way, report: Report, inventory: Inventory) -> Difference | None:
    """It went to somebody who was not drawn: a difference if that is no endpoint."""
    backend = report.flow.backend
    if backend is None or found.endpoints > len(found.ways):
        return None
    ends = (e for s in inventory.services if s.key == found.service for port in s.ports for e in port.endpoints)
    if any((str(end.ip), end.port) == (backend.ip, backend.port) for end in ends):
        return None  # it has become one since
    step = next((s for s in way.request if s.nat and s.nat.startswith("DNAT to")), None)
    if step is None:
        return None
    step = replace(step, nat=f"DNAT to one of {found.endpoints} endpoints" if found.endpoints > 1 else step.nat)
    return Difference(
        "request", step, f"DNAT to {end_of(backend.ip, backend.port)}, which is no endpoint of svc/{found.service}"
    )


def _first(way: Way, report: Report) -> Difference | None:
    request = next((p for p in report.paths if p.direction == "request"), None)
    reply = next((p for p in report.paths if p.direction == "reply"), None)
    if request is not None and (difference := _along(way.request, request, whole=way.reply != ())) is not None:
        return difference
    first = next((step for step in way.reply if step.sure), None)
    if first is None:
        return None
    if reply is not None:
        return _along(way.reply, reply, whole=True)
    well = report.verdict in (Verdict.DELIVERED, Verdict.REJECTED)
    if request is not None and request.ended == "delivered" and way.reply[0].sure and not well:
        return Difference("reply", first, "no packet of the reply was seen")
    return None


def _along(steps: Sequence[Step], path: Path, *, whole: bool) -> Difference | None:
    """The first step that this packet did not do; `whole`: the steps lead to its end."""
    reply = path.direction == "reply"
    places = {step.netns for step in steps}
    at = 0
    if path.hops and steps and path.hops[0].netns != steps[0].netns:
        return None  # of a refusal by somebody on the way, or of a packet that goes in circles, this is not the start
    strange: Hop | None = None  # the first hop since the last step that is not on the way
    for hop in path.hops:
        if hop.direction not in _DEVICE or hop.device is None:
            continue
        key = (hop.netns, hop.device, hop.direction)
        found = next((n for n, s in enumerate(steps[at:], at) if (s.netns, s.device, s.direction) == key), None)
        if found is None:
            strange = strange or hop
            continue
        step = steps[found]
        if not step.sure and not _fits(step, hop, reply=reply):
            continue  # it may still have to be translated, by a step that is sure
        # Translated earlier than expected (by a socket's BPF program) is as well; later is not.
        if step.sure and not any(_fits(later, hop, reply=reply) for later in steps[found:]):
            late = next((s for s in reversed(steps[at:found]) if s.nat), step)
            return Difference(path.direction, late, _words(strange or hop, reply=reply))
        missed = next((s for s in steps[at:found] if s.sure and s.device), None)
        if missed is not None or (strange is not None and strange.netns not in places):
            return Difference(path.direction, missed or step, _words(strange or hop, reply=reply))
        at, strange = found + 1, None
    return _rest(steps[at:], path, strange, whole=whole)


def _rest(steps: Sequence[Step], path: Path, strange: Hop | None, *, whole: bool) -> Difference | None:
    """What should have come after the last step that the packet did."""
    reply = path.direction == "reply"
    last = path.hops[-1]
    due = [step for step in steps if step.sure]
    while due and due[0].nat and _fits(due[0], last, reply=reply):
        due = due[1:]
    if not due:
        return None
    died = last.verdict is not None
    if due[0].direction in _ENDS:
        gone_on = strange is not None and (strange.direction == "out" or strange.netns != due[0].netns)
        return Difference(path.direction, due[0], _words(strange, reply=reply)) if strange and gone_on else None
    if path.ended == "delivered" and (strange is None or due[0].direction == "input"):
        return None
    if died:
        return Difference(
            path.direction, due[0], _words(strange if strange and not strange.verdict else last, reply=reply)
        )
    if strange is not None:
        return Difference(path.direction, due[0], _words(strange, reply=reply))
    return (
        Difference(path.direction, due[0], "nothing more was seen of it")
        if due[0].direction != "input" or whole
        else None
    )


def _fits(step: Step, hop: Hop, *, reply: bool) -> bool:
    header = hop.header
    ip, port = (header.saddr, header.sport) if reply else (header.daddr, header.dport)
    if step.address is None or step.address == str(ip):
        return True
    return step.address == end_of(str(ip), port) or (header.protocol in _ICMP and step.address.startswith(str(ip)))


def _words(hop: Hop, *, reply: bool) -> str:
    place = hop.pod or hop.node or f"netns {hop.netns}"
    where = f"{hop.direction} {hop.device}" if hop.device else hop.direction
    if hop.verdict:
        return f"{hop.verdict} ({where} of {place})"
    header = hop.header
    end = (
        f"from {end_of(str(header.saddr), header.sport)}" if reply else f"to {end_of(str(header.daddr), header.dport)}"
    )
    return f"{where} of {place}, {end}"
