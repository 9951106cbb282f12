"""What a watch counts, under the names that Prometheus has for it.

In: anomalies and counts. Out: `k8snet.metrics`. Names are prefix, base unit, `_total`
(https://prometheus.io/docs/practices/naming/). Labels are codes, reasons and namespaces; pods only for who asks for
them, since there is no end of pods' names; addresses and ports never.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from typing import Final

from k8snet import __version__
from k8snet.kernel.counters import conntrack
from k8snet.kernel.netns import Netns
from k8snet.metrics import Metric, Metrics
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts
from k8snet.watch.fold import SECOND, Fold
from k8snet.watch.live import Usage

ACTIVE: Final = 300 * SECOND  # so long is a finding active after it has shown itself

_DROPPED: Final = Metric(
    "k8snet_dropped_packets_total",
    "counter",
    "Packets of watched pods whose drop was found to be wrong, by the kernel's reason",
    ("reason", "hook", "namespace", "pod"),
)
_DNS: Final = Metric(
    "k8snet_dns_request_duration_seconds",
    "histogram",
    "From a pod's first try to the answer that it could take",
    ("rcode",),
    # A cluster's own answer, one from outside, and the retries of resolvers: glibc's 5 s, musl's 2.5 s.
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
METRICS: Final = (
    Metric("k8snet_build_info", "gauge", "The version that runs; always 1", ("version",)),
    Metric("k8snet_anomalies_total", "counter", "Things that went wrong, by the code of the finding", ("code",)),
    Metric(
        "k8snet_finding_active",
        "gauge",
        "1 while the finding has shown itself within the last 5 minutes",
        ("code", "severity"),
    ),
    _DROPPED,
    Metric("k8snet_connections_total", "counter", "Handshakes of watched pods that came to an end, good or bad"),
    Metric("k8snet_connections_answered_total", "counter", "Handshakes of watched pods that were answered"),
    Metric("k8snet_dns_requests_total", "counter", "DNS queries of watched pods"),
    _DNS,
    Metric("k8snet_conntrack_insert_failed_total", "counter", "Entries that conntrack could not insert, on this node"),
    Metric("k8snet_conntrack_entries", "gauge", "Entries in conntrack's table, on this node"),
    Metric("k8snet_conntrack_entries_limit", "gauge", "Entries that conntrack's table has room for, on this node"),
    Metric("k8snet_events_total", "counter", "Events that were looked at"),
    Metric("k8snet_lost_events_total", "counter", "Events that were lost: what they showed is missing"),
    Metric("k8snet_held_drops_total", "counter", "Drops that were counted and not looked at one by one"),
    Metric("k8snet_unjudged_connections_total", "counter", "Connections that came to nothing and were not judged"),
    Metric("k8snet_sampled_one_in", "gauge", "One in so many connections is looked at; 1 is all of them"),
    Metric("k8snet_flows", "gauge", "Connections in the table"),
    Metric("k8snet_watched_pods", "gauge", "Pods that are watched"),
    # The names that every exporter has for these two.
    Metric("process_cpu_seconds_total", "counter", "CPU time of k8snet"),
    Metric("process_resident_memory_bytes", "gauge", "Memory of k8snet"),
)
_REASON: Final = re.compile(r"kfree_skb: (\w+)")


class Meter:
    """Keeps the numbers."""

    def __init__(self, nodes: Iterable[Netns], *, pods: bool = False) -> None:
        """`nodes`: the network namespaces whose conntrack counts; `pods`: with the pods' names as a label."""
        self.metrics = Metrics(METRICS, refresh=self._read_conntrack)
        self._nodes = tuple(nodes)
        self._pods = pods
        self._shown: set[tuple[str, str]] = set()
        self.metrics.set("k8snet_build_info", 1, __version__)
        for name in ("k8snet_lost_events_total", "k8snet_events_total"):
            self.metrics.set(name, 0)

    def found(self, anomaly: Anomaly) -> None:
        """One thing went wrong."""
        finding = anomaly.finding
        self.metrics.add("k8snet_anomalies_total", 1, finding.code)
        reason = next((match[1] for line in finding.evidence if (match := _REASON.search(line))), None)
        if reason is not None:
            whose = finding.where.pod or (anomaly.flow.client.pod if anomaly.flow else None) or ""
            namespace = whose.partition("/")[0]
            pod = whose.partition("/")[2] if self._pods else ""
            self.metrics.add(_DROPPED.name, 1, reason, finding.where.hook or "", namespace, pod)

    def asked(self, seconds: float, rcode: str) -> None:
        """One DNS query was answered."""
        self.metrics.observe(_DNS.name, seconds, rcode)

    def counted(self, counts: Counts, usage: Usage, fold: Fold, now_ns: int) -> None:
        """How far it has got."""
        active = {(code, severity.value) for code, severity in fold.active(now_ns, ACTIVE)}
        for labels in self._shown - active:
            self.metrics.set("k8snet_finding_active", 0, *labels)
        for labels in active:
            self.metrics.set("k8snet_finding_active", 1, *labels)
        self._shown |= active
        for name, value in (
            ("k8snet_connections_total", counts.connections),
            ("k8snet_connections_answered_total", counts.answered),
            ("k8snet_dns_requests_total", counts.queries),
            ("k8snet_events_total", counts.events),
            ("k8snet_lost_events_total", counts.lost),
            ("k8snet_held_drops_total", counts.held),
            ("k8snet_unjudged_connections_total", counts.unjudged + counts.evicted),
            ("k8snet_sampled_one_in", counts.one_in),
            ("k8snet_flows", counts.flows),
            ("k8snet_watched_pods", usage.pods),
            ("process_cpu_seconds_total", usage.cpu),
            ("process_resident_memory_bytes", usage.memory),
        ):
            self.metrics.set(name, value)

    def _read_conntrack(self) -> None:
        """Asked by whoever fetches, in that thread: the watch is not to wait for it."""
        sums: dict[str, int] = {}
        for netns in self._nodes:
            with contextlib.suppress(OSError):  # the lab's nodes may go
                for name, value in conntrack(netns).items():
                    sums[name] = sums.get(name, 0) + value
        for metric, name in (
            ("k8snet_conntrack_insert_failed_total", "insert_failed"),
            ("k8snet_conntrack_entries", "count"),
            ("k8snet_conntrack_entries_limit", "max"),
        ):
            if name in sums:
                self.metrics.set(metric, sums[name])
