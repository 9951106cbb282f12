"""What an export says of flows is what the report says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k8snet.cluster.targets import Target
from k8snet.event import Event
from k8snet.journeys import told
from k8snet.judge import Observation, judge
from k8snet.path import Surface, hops
from unit import lookups, story
from unit.lookups import SERVFAIL, answer, query
from unit.observed import observation
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    DNAT_DONE,
    NETFILTER_DROP,
    NODE,
    VIP,
    drop,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
)

DROPPED = (
    out(f"{CLIENT} > {VIP}", CART, "eth0"),
    into(f"{CLIENT} > {VIP}", NODE, "veth-cart"),
    drop(
        f"{CLIENT} > {BACKEND}", NODE, "veth-cart", NETFILTER_DROP, "nft_do_chain",
        orig=f"{CLIENT} > {VIP}", reply=f"{BACKEND} > {CLIENT}", status=DNAT_DONE,
    ),
)  # fmt: skip


def of_dns(*events: list[Event]) -> Observation:
    """What a trace to the cluster's DNS has seen."""
    around = lookups.surroundings()
    seen = observation(*sorted((e for some in events for e in some), key=lambda e: e.ktime_ns))
    server = Target("svc/kube-system/kube-dns", story.addresses(lookups.SERVER), 53)
    return replace(
        seen,
        request=replace(seen.request, server=server, inventory=around.inventory),
        around=around,
        surface=Surface(around.owners, frozenset({CART, lookups.DNS})),
    )


@pytest.mark.parametrize(
    ("seen", "codes"),
    [
        pytest.param(observation(*syn_to_backend(), *syn_ack_to_client()), [], id="healthy"),
        pytest.param(observation(*DROPPED), ["KERNEL_DROP"], id="dropped"),
        pytest.param(of_dns(query(0), answer(0.01, rcode=SERVFAIL)), ["DNS_SERVFAIL"], id="dns"),
    ],
)
def test_findings_are_those_of_the_report(seen: Observation, codes: list[str]) -> None:
    assert [finding.code for flow in told(seen) for finding in flow.findings] == codes
    assert [finding.code for finding in judge(seen).findings] == codes


def test_sightings_are_the_hops_of_the_report_and_the_death_stands_alone() -> None:
    seen = observation(*DROPPED)
    (flow,) = told(seen)
    (journey,) = flow.journeys
    assert journey.death is not None
    assert [event for event, _ in journey.sightings] == [*DROPPED[:2], DROPPED[2], DROPPED[2]]  # NAT, and the drop
    drawn = hops(journey.packet, seen.surface, journey.death, None, flow.case.flow.original)
    assert drawn == judge(seen).paths[0].hops == tuple(hop for _, hop in journey.sightings)
    at_device = drop(f"{CLIENT} > {VIP}", NODE, "veth-cart", story.IP_RPFILTER, "ip_rcv_finish_core")
    seen = observation(*DROPPED[:2], at_device)
    ((journey,),) = (flow.journeys for flow in told(seen))
    assert [hop.verdict for _, hop in journey.sightings] == [None, None, "IP_RPFILTER"]
    assert [hop.verdict for hop in judge(seen).paths[0].hops] == [None, "IP_RPFILTER"]
