"""Bridge ports and other devices that do not pass a packet on."""

from __future__ import annotations

from typing import Final

from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

SCENARIOS: Final = (
    Scenario(
        "hairpin-off",
        "A pod calls its own Service: the SYN is translated to the pod itself and must leave the bridge by the port it "
        "came in by, which only hairpin mode allows.",
        Traffic("shop/svc/cart:80"),
        Expected(Verdict.DROPPED, "HAIRPIN_OFF", node="node-1", device="vethcart", direction="request"),
        (("node-1", "bridge link set dev vethcart hairpin off"),),
    ),
)
