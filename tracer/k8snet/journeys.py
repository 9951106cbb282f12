"""Every packet of every flow with its way: what an export tells that the report, which draws one flow, has no room for.

In: an `Observation`. Out: each flow with its findings and with the sightings of its packets. Lazy: of ten thousand
flows one is looked at after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from k8snet.event import Event
from k8snet.findings.case import Case, Death
from k8snet.findings.diagnose import diagnose
from k8snet.flow.model import Packet
from k8snet.judge import Observation, cases_of
from k8snet.kernel.rules import dnat_of
from k8snet.path import sightings
from k8snet.report import Finding, Hop
from k8snet.summary import own_header

INUM: Final = (
    0xFFFF_FFFF  # of a netns's number, what its kernel calls it; above it, `k8snet.agent.join` has the machine
)


@dataclass(frozen=True)
class Journey:
    """One packet, and where it was seen."""

    packet: Packet
    sightings: Sequence[tuple[Event, Hop]]
    death: Death | None


@dataclass(frozen=True)
class Told:
    """One flow."""

    case: Case
    findings: Sequence[Finding]
    journeys: Sequence[Journey]


def told(seen: Observation) -> Iterator[Told]:
    """The flows that were asked for, in the order in which they began."""
    for case in cases_of(seen)[1]:
        yield Told(case, diagnose(case), [_journey(case, packet, seen) for packet in case.flow.packets])


def _journey(case: Case, packet: Packet, seen: Observation) -> Journey:
    death = next((d for d in case.deaths if d.packet is packet), None)
    chains = " > ".join(dnat_of(packet.rules)) or None
    return Journey(packet, sightings(packet, seen.surface, death, chains, own_header(case, packet)), death)
