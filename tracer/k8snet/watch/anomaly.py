"""What `k8snet watch` finds: an `Anomaly` is one thing that went wrong once.

Its finding is of the catalogue (`k8snet.findings.catalogue`) or one of those that only a watch can have
(`k8snet.watch.catalogue`); both have a page in docs/findings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from k8snet.report import Finding, FlowView, Place

Key = tuple[str, str, str, Place]


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that went wrong once."""

    ktime_ns: int  # CLOCK_MONOTONIC, when it showed itself
    finding: Finding
    flow: FlowView | None  # None: it is about the node, not about two parties
    seconds: float | None = None  # how long it took, or was waited for in vain
    subject: str | None = None  # what it is about besides the parties: the name that was asked for

    @property
    def key(self) -> Key:
        """Anomalies with the same key are the same thing again: 41 times in 5 min."""
        # The same rule drops it before this endpoint's device and before that one's.
        where = replace(self.finding.where, device=None)
        if self.flow is None:
            return self.finding.code, "", "", self.finding.where
        client, server = self.flow.client, self.flow.server
        to = server.service or server.pod or server.ip
        return self.finding.code, client.pod or client.ip, f"{to}:{server.port or ''}", where
