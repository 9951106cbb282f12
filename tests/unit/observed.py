"""From a story of events to what a trace ends in: the `Observation` that exports are made from."""

from __future__ import annotations

from k8snet.cluster.targets import Target
from k8snet.event import Event
from k8snet.flow.correlate import Correlator
from k8snet.judge import Observation
from k8snet.path import Surface
from k8snet.trace import Request
from unit import story
from unit.story import CART, OWNERS, WEB, addresses, told

BOOT_NS = 1_800_000_000_123_456_789  # the story's clock began on 15 January 2027, some time after eight


def observation(*events: Event, correlator: Correlator | None = None, **around: object) -> Observation:
    """What a trace from shop/cart to svc/shop/web has seen. `around`: fields of its Surroundings."""
    surroundings = story.surroundings(**around)
    return Observation(
        request=Request(
            Target("pod/shop/cart", addresses("10.244.1.10")),
            Target("svc/shop/web", addresses("10.96.0.80"), 80),
            surroundings.inventory,
        ),
        flows=(correlator or told(*events)).flows,
        around=surroundings,
        surface=Surface({**OWNERS, **surroundings.owners}, frozenset({CART, WEB})),
        lost={},
        rule_naming="off",
        boot_ns=BOOT_NS,
    )
