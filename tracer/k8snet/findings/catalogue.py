"""The catalogue of findings: one entry a code, the most specific first.

An entry's function looks at a `Case` and returns a `Match` or None. The first entry of severity FAIL that matches
explains the flow; no entry knows of the others, and none guesses: what the evidence does not show is left to
KERNEL_DROP and LAST_SEEN at the end, which say where and leave the cause open. `docs/findings/CODE.md` has a page
for each, and a lab scenario makes each happen.
"""

from __future__ import annotations

from typing import Final

from k8snet.findings import (
    application,
    between,
    conntrack,
    delay,
    device,
    dns,
    general,
    link,
    mtu,
    netfilter,
    routing,
    service,
    tunnel,
)
from k8snet.findings.entry import Entry
from k8snet.report import Severity, Verdict

FINDINGS: Final = (
    Entry(
        "NO_LOCAL_ENDPOINTS",
        Severity.FAIL,
        "the Service has no endpoint on this node, and its traffic policy is Local",
        service.no_local_endpoints,
    ),
    Entry("NO_ENDPOINTS", Severity.FAIL, "the Service has no ready endpoints", service.no_endpoints),
    Entry(
        "DNAT_MISS",
        Severity.FAIL,
        "the Service's address was not translated",
        service.dnat_miss,
        verdict=Verdict.NO_REPLY,
    ),
    Entry(
        "HAIRPIN_OFF", Severity.FAIL, "a pod reaches itself through its Service, hairpin mode is off", link.hairpin_off
    ),
    Entry("IP_FORWARD_OFF", Severity.FAIL, "the node does not forward", routing.ip_forward_off),
    Entry("RP_FILTER", Severity.FAIL, "the reverse-path filter dropped it", routing.rp_filter),
    Entry("VETH_DOWN", Severity.FAIL, "the link between a pod and its node is down", link.veth_down, silent=True),
    Entry("LINK_DOWN", Severity.FAIL, "the device that it was to leave by has no carrier", link.link_down),
    Entry("BRIDGE_NF_OFF", Severity.FAIL, "the bridge does not show its frames to netfilter", link.bridge_nf_off),
    Entry(
        "MTU_BLACKHOLE",
        Severity.FAIL,
        "a packet was too big, and the ICMP error that would have told its sender was dropped",
        mtu.mtu_blackhole,
    ),
    Entry("MTU_EXCEEDED", Severity.FAIL, "a packet was too big for a device, and may not be cut", mtu.mtu_exceeded),
    Entry(
        "SNAT_PORTS_EXHAUSTED",
        Severity.FAIL,
        "source NAT finds no free port for it, however often it tries",
        conntrack.snat_ports_exhausted,
    ),
    Entry(
        "SNAT_PORT_CLASH",
        Severity.FAIL,
        "its source was translated, and another connection got the same SNAT port first",
        conntrack.snat_port_clash,
    ),
    Entry(
        "CT_CLASH_DROP",
        Severity.FAIL,
        "its source is its own, and another connection of the same socket was in the table first",
        conntrack.ct_clash_drop,
    ),
    Entry("CT_CHAIN_TOO_LONG", Severity.FAIL, "conntrack's hash is overfull at its place", conntrack.ct_chain_too_long),
    Entry("CT_TABLE_FULL", Severity.FAIL, "conntrack's table has no room", conntrack.ct_table_full),
    Entry(
        "DNS_CLASH_LOST",
        Severity.FAIL,
        "after a clash the answer came too late to be translated back",
        conntrack.dns_clash_lost,
    ),
    Entry(
        "CT_EARLY_DROP",
        Severity.FAIL,
        "its entry was thrown out of conntrack's full table before the answer came",
        conntrack.ct_early_drop,
    ),
    Entry(
        "CT_CLASH_RESOLVED",
        Severity.INFO,
        "two packets of one socket clashed in conntrack, and nothing was lost",
        conntrack.ct_clash_resolved,
    ),
    Entry(
        "STALE_CT_ENTRY",
        Severity.FAIL,
        "an old conntrack entry sends datagrams to an address that is no endpoint any more",
        conntrack.stale_ct_entry,
        verdict=Verdict.NO_REPLY,
        by_absence=True,
    ),
    Entry(
        "VXLAN_NO_PEER",
        Severity.FAIL,
        "the VXLAN device has no forwarding entry for the next hop's MAC address",
        tunnel.vxlan_no_peer,
    ),
    Entry(
        "TUNNEL_MISMATCH",
        Severity.FAIL,
        "the tunnel's packet arrived, and no tunnel device there takes it",
        tunnel.tunnel_mismatch,
    ),
    Entry("NEIGH_FAILED", Severity.FAIL, "the next hop does not answer ARP", routing.neigh_failed),
    Entry("ADDRESS_CONFLICT", Severity.FAIL, "the node has the pod's address itself", routing.address_conflict),
    Entry(
        "ROUTING_LOOP", Severity.FAIL, "routers send it to each other until its TTL is used up", routing.routing_loop
    ),
    Entry(
        "ROUTE_BLACKHOLE",
        Severity.FAIL,
        "the route to the destination is a blackhole, unreachable or prohibit",
        routing.route_blackhole,
        silent=True,
    ),
    Entry("NETPOL_DENY", Severity.FAIL, "network policies do not allow it", netfilter.netpol_deny),
    Entry("CT_INVALID", Severity.FAIL, "conntrack calls the packet INVALID, and a rule drops it", netfilter.ct_invalid),
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
    Entry("XDP_DROP", Severity.FAIL, "an XDP program of the device dropped it", device.xdp_drop),
    Entry("TC_DROP", Severity.FAIL, "a filter or program at a device's tc hook dropped it", device.tc_drop),
    Entry("QDISC_DROP", Severity.FAIL, "the queue in front of a device dropped it", device.qdisc_drop),
    Entry(
        "ACCEPT_QUEUE_FULL",
        Severity.FAIL,
        "the accept queue is full",
        application.accept_queue_full,
        verdict=Verdict.DROPPED,
    ),
    Entry("UDP_BUFFER_FULL", Severity.FAIL, "the receive buffer of a UDP socket is full", application.udp_buffer_full),
    Entry("NOT_LISTENING", Severity.FAIL, "nothing listens on the port", application.not_listening),
    Entry(
        "DNS_LATE",
        Severity.FAIL,
        "the answer of the DNS server came when the client had given up",
        dns.dns_late,
        verdict=Verdict.REPLY_LOST,
    ),
    Entry(
        "DNS_SERVFAIL",
        Severity.FAIL,
        "the DNS server could not find out",
        dns.dns_servfail,
        verdict=Verdict.REJECTED,
    ),
    Entry(
        "DNS_REFUSED",
        Severity.FAIL,
        "the DNS server will not answer such queries",
        dns.dns_refused,
        verdict=Verdict.REJECTED,
    ),
    Entry(
        "DNS_PAIR_TIMEOUT",
        Severity.WARN,
        "of A and AAAA one was not answered, and the resolver waited for its time-out",
        dns.dns_pair_timeout,
    ),
    Entry("NO_ROUTE", Severity.FAIL, "there is no route to the destination", routing.no_route, silent=True),
    Entry("SLOW_CONNECT", Severity.WARN, "the first try was lost, a later one came through", delay.slow_connect),
    Entry("DNS_SLOW", Severity.WARN, "the DNS server took long to answer", dns.dns_slow),
    Entry(
        "DNS_SEARCH_STORM",
        Severity.INFO,
        "a name was tried with each search domain before it was asked as it stands",
        dns.dns_search_storm,
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
        "DATA_STALLED",
        Severity.FAIL,
        "the connection stands, and its data is never acknowledged",
        mtu.data_stalled,
        verdict=Verdict.NO_REPLY,
        by_absence=True,
    ),
    Entry("PMTU_DISCOVERED", Severity.INFO, "a packet was too big, and its sender was told", mtu.pmtu_discovered),
    Entry(
        "LOST_BETWEEN_NODES",
        Severity.FAIL,
        "it left one node and never came in at the other, and both were observed",
        between.lost_between_nodes,
        by_absence=True,
    ),
    Entry(
        "LEFT_NODE",
        Severity.FAIL,
        "the request left the node and nothing came back",
        general.left_node,
        by_absence=True,
    ),
    Entry(
        "MIXED_BACKENDS",
        Severity.WARN,
        "a node has rules of iptables-legacy and of nf_tables at once",
        netfilter.mixed_backends,
    ),
    Entry("LAST_SEEN", Severity.UNKNOWN, "no answer, and nothing that explains it was seen", general.last_seen),
)
