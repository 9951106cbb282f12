"""The value that everything ends in: what is rendered as text or JSON, kept, and compared in tests.

Nothing here knows the kernel or a terminal. Field names are the field names of the JSON document
(`apiVersion: k8snet.io/v1alpha1`, `kind: TraceReport`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from k8snet.cluster.allowance import Allowance
from k8snet.event import FiveTuple


class Verdict(StrEnum):
    """How the flow ended, in one word."""

    DELIVERED = "delivered"  # the answer reached the client
    DROPPED = "dropped"  # a packet of the request died on this node
    REJECTED = "rejected"  # the client was told no (RST, ICMP error, or by its own kernel)
    NO_REPLY = "no-reply"  # the request arrived, nobody answered
    REPLY_LOST = "reply-lost"  # the answer left the server and died on the way back
    LOST_EVENTS = "lost-events"  # too many events were lost to say
    NOTHING_SEEN = "nothing-seen"  # no packet of this flow was seen


class Severity(StrEnum):
    """As in every k8snet document; only FAIL makes the exit code 1."""

    PASS = "PASS"
    INFO = "INFO"
    WARN = "WARN"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Party:
    """One end of the flow."""

    ip: str
    port: int | None = None
    pod: str | None = None  # namespace/name
    node: str | None = None
    service: str | None = None  # namespace/name, when `ip` is a service's, or it is a NodePort


@dataclass(frozen=True, slots=True)
class Hop:
    """One place where one packet was seen."""

    us: float  # microseconds since the packet's first hop
    netns: int
    node: str | None
    pod: str | None  # the netns is this pod's
    device: str | None
    direction: str  # "in", "out", or a netfilter hook's name when the hop is a decision and no device
    header: FiveTuple  # addresses as seen there
    nat: str | None = None  # "DNAT to 10.244.1.11:8080" when the header changed since the hop before
    encap: str | None = None  # "vxlan 192.168.50.1 > 192.168.50.2" on the wire between nodes
    verdict: str | None = None  # "policy DROP" where the packet died
    detail: str | None = None  # "KUBE-SVC-NPX4… > KUBE-SEP-2XZ7…", "table ip filter"


@dataclass(frozen=True, slots=True)
class Path:
    """One packet's way in one direction."""

    direction: str  # "request" or "reply"
    packet: str  # "SYN", "SYN-ACK", "DNS query", "echo request", "42 bytes"
    number: int  # this one is number ...
    total: int  # ... of so many of its kind (a SYN that was sent three times: 3 of 3)
    hops: tuple[Hop, ...]
    ended: str  # "delivered", "dropped", "last seen"
    never_reached: str | None = None  # the place that should have come next, as the report prints it


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is wrong. Only what is known is set."""

    netns: int | None = None
    node: str | None = None
    pod: str | None = None
    device: str | None = None
    hook: str | None = None  # prerouting, input, forward, output, postrouting
    table: str | None = None  # as nft or iptables-save names it: "ip filter", "filter"
    chain: str | None = None
    rule: str | None = None  # as iptables-save or nft prints it


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, in one entry of the catalogue (`k8snet.findings.catalogue`)."""

    code: str
    severity: Severity
    title: str  # one line: "DROPPED on node-1 in FORWARD: the chain's policy is DROP"
    where: Place
    why: str  # one or two sentences
    evidence: tuple[str, ...]
    fix: tuple[str, ...]  # commands to copy; a line starting with "# " is advice
    direction: str | None = None  # "request" or "reply", where it matters
    named_by: str | None = None  # what named the rule: nftrace, nflog, counters, location
    also: tuple[str, ...] = ()  # what else it could be
    times: int = 1  # in so many connections

    @property
    def doc(self) -> str:
        """The page that explains it."""
        return f"docs/findings/{self.code}.md"


@dataclass(frozen=True, slots=True)
class FlowView:
    """Who talked to whom, as tuples and names."""

    client: Party
    server: Party  # as the client addressed it
    backend: Party | None  # the pod behind the service, once DNAT has shown it
    protocol: str  # "tcp", "udp", "icmp"
    original: FiveTuple | None = None  # conntrack's, on the node
    reply: FiveTuple | None = None
    same_node: bool | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One place where a packet should come by, known before there is one."""

    netns: int
    node: str | None
    pod: str | None
    device: str | None
    direction: (
        str  # "in", "out", a netfilter hook's name, "route" where there is none, "refused" or "dropped" at the end
    )
    address: str | None = None  # the server's end of the header there: with the Service's address, or the backend's
    nat: str | None = None  # "DNAT to 10.244.1.11:8080": what is rewritten here
    why: str = ""  # what says so: the route, the bridge's port, the Service's endpoints
    problem: str | None = None  # what the node's state has against it: "vethweb-1 is down"
    sure: bool = True  # False: it may come by here, or not


@dataclass(frozen=True, slots=True)
class Way:
    """The way to one backend and back, as far as it is known."""

    backend: Party | None  # None: nobody is to get it
    request: tuple[Step, ...] = ()
    reply: tuple[Step, ...] = ()
    unknown: tuple[str, ...] = ()  # what is not known of it, and why
    policies: tuple[Allowance, ...] = ()  # what the NetworkPolicies of the two pods say of such a connection


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a real packet did not do what was expected of it."""

    direction: str  # "request" or "reply"
    step: Step  # what should have come next
    instead: str  # what came, in words


@dataclass(frozen=True, slots=True)
class Expected:
    """What the path should be, by the objects and the node's state before the first packet."""

    fate: str  # "direct", "served", "rejected" or "dropped" (by kube-proxy), "unknown"
    service: str | None = None  # namespace/name
    endpoints: int = 0  # so many to choose from
    ways: tuple[Way, ...] = ()  # to each endpoint; in a report on packets: to the one that they went to
    difference: Difference | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DnsQuery:
    """One DNS query, however often it was sent."""

    at: float  # seconds since the first query of the report
    name: str | None  # in lower case; what is not printable, and dots within labels, as in a zone file
    type: str | None
    protocol: str  # "udp" or "tcp"
    server: Party  # who was asked
    rcode: str | None  # of the answer that the client could take; None: there was none
    seconds: float | None  # from the first try to that answer, at the client
    tries: int
    answered_by: Party | None  # who sent an answer, whether or not the client could take it
    truncated: bool  # the answer did not fit: the client is to ask again over TCP


@dataclass(frozen=True, slots=True)
class DnsResolver:
    """What the client's /etc/resolv.conf says."""

    nameservers: tuple[str, ...]
    search: tuple[str, ...]
    options: str  # without those that are the default


@dataclass(frozen=True, slots=True)
class DnsView:
    """What was asked of DNS, and what became of it."""

    queries: tuple[DnsQuery, ...]
    total: int  # so many there were
    resolver: DnsResolver | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A flow, its path and its findings."""

    verdict: Verdict
    flow: FlowView
    paths: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()
    connections: int = 0
    answered: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # events not seen, by probe
    rule_naming: str = "off"  # "nftrace", "nflog", "counters", "off", or why it could not be had
    notes: tuple[str, ...] = ()  # what the reader should know of the trace itself ("attached late", "read-only")
    expected: Expected | None = None  # None: nothing could be said beforehand
    dns: DnsView | None = None  # None: no query of DNS was seen
