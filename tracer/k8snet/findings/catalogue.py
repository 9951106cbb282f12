"""The catalogue of findings: one entry a code, the most specific first.

An entry's function looks at a `Case` and returns a `Match` or None. The first entry of severity FAIL that matches
explains the flow; no entry knows of the others, and none guesses: what the evidence does not show is left to
KERNEL_DROP and LAST_SEEN at the end, which say where and leave the cause open. `docs/findings/CODE.md` has a page
for each, and a lab scenario makes each happen.
"""

from __future__ import annotations

from typing import Final

from k8snet.findings import application, general, link, netfilter, routing, service
from k8snet.findings.entry import Entry
from k8snet.report import Severity, Verdict

FINDINGS: Final = (
    Entry("NO_ENDPOINTS", Severity.FAIL, "the Service has no ready endpoints", service.no_endpoints),
    Entry(
        "HAIRPIN_OFF", Severity.FAIL, "a pod reaches itself through its Service, hairpin mode is off", link.hairpin_off
    ),
    Entry("IP_FORWARD_OFF", Severity.FAIL, "the node does not forward", routing.ip_forward_off),
    Entry("RP_FILTER", Severity.FAIL, "the reverse-path filter dropped it", routing.rp_filter),
    Entry("POD_FIREWALL_DROP", Severity.FAIL, "a packet filter inside the pod dropped it", netfilter.pod_firewall_drop),
    Entry(
        "FORWARD_POLICY_DROP",
        Severity.FAIL,
        "the policy of the node's FORWARD chain is DROP",
        netfilter.forward_policy_drop,
    ),
    Entry("CHAIN_POLICY_DROP", Severity.FAIL, "the policy of another base chain is DROP", netfilter.chain_policy_drop),
    Entry("RULE_REJECT", Severity.FAIL, "a rule rejected it", netfilter.rule_reject),
    Entry("RULE_DROP", Severity.FAIL, "a rule dropped it", netfilter.rule_drop),
    Entry("NOT_LISTENING", Severity.FAIL, "nothing listens on the port", application.not_listening),
    Entry(
        "DNAT_MISS",
        Severity.FAIL,
        "the Service's address was not translated",
        service.dnat_miss,
        verdict=Verdict.NO_REPLY,
    ),
    Entry("KERNEL_DROP", Severity.FAIL, "the kernel dropped it for another reason", general.kernel_drop),
    Entry(
        "NO_REPLY",
        Severity.FAIL,
        "the request arrived, the application did not answer",
        application.no_reply,
        by_absence=True,
    ),
    Entry("REFUSED", Severity.FAIL, "another host refused it", general.refused),
    Entry(
        "LEFT_NODE",
        Severity.FAIL,
        "the request left the node and nothing came back",
        general.left_node,
        by_absence=True,
    ),
    Entry("LAST_SEEN", Severity.UNKNOWN, "no answer, and nothing that explains it was seen", general.last_seen),
)
