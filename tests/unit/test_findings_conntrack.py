"""What conntrack and NAT reported when connections met in the table, and what must be concluded from it.

The packets are those of the lab's races; `rivals` is what the connection table answered when it was asked about the
dropped packet's two tuples.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from k8snet.cluster.inventory import Endpoint, ServicePort
from k8snet.event import CtStatus, Event, FiveTuple
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.kernel.conntrack import Entry, Fill, Rivals
from k8snet.kernel.rules import NamedRule
from k8snet.kernel.ruletrace import RuleStep
from k8snet.report import Finding, Severity
from unit.story import (
    CART,
    CONFIRMED,
    DNAT_DONE,
    INVENTORY,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    WEB,
    codes,
    drop,
    findings,
    into,
    out,
    surroundings,
    told,
)

CLIENT, RIVAL, SERVER, SNAT = "10.244.1.10:4000", "10.244.1.11:4000", "198.51.100.1:80", "198.51.100.2:4000"
UNCONFIRMED = CtStatus.SRC_NAT | CtStatus.SRC_NAT_DONE | CtStatus.DST_NAT_DONE
BEHIND_DNAT = CtStatus.DST_NAT | CtStatus.SRC_NAT_DONE | CtStatus.DST_NAT_DONE
CLASHED = CONFIRMED | CtStatus.NAT_CLASH | CtStatus.FIXED_TIMEOUT
LOST = {"conntrack.insert_failed": 1, "conntrack.drop": 1}
UDP = socket.IPPROTO_UDP

SOCKET, DNS_VIP, OTHER_VIP = "10.244.1.10:4000", "10.96.0.10:53", "10.96.0.11:53"
DNS_1, DNS_2 = "10.244.1.11:53", "10.244.2.11:53"


def five(way: str, protocol: int = UDP) -> FiveTuple:
    (saddr, sport), (daddr, dport) = (end.strip().split(":") for end in way.split(">"))
    return FiveTuple(ip_address(saddr), ip_address(daddr), int(sport), int(dport), protocol)


def entry(orig: str, reply: str, protocol: int = UDP) -> Entry:
    return Entry(five(orig, protocol), five(reply, protocol), int(CONFIRMED), 30)


def lost_to_snat(
    protocol: int = UDP, snat: str = SNAT, symbol: str = "nf_hook_slow", ip_id: int = 1, **other: object
) -> list[Event]:
    """A packet to an outside server that dies behind the node's source NAT."""
    reason = NOT_SPECIFIED if symbol == "nfqnl_reinject" else NETFILTER_DROP
    fields: dict[str, object] = {"protocol": protocol, "ip_id": ip_id} | other
    ct = {"orig": f"{CLIENT} > {SERVER}", "reply": f"{SERVER} > {snat}", "status": UNCONFIRMED}
    return [
        out(f"{CLIENT} > {SERVER}", CART, "eth0", **fields),
        into(f"{CLIENT} > {SERVER}", NODE, "veth-cart", **fields),
        drop(f"{snat} > {SERVER}", NODE, "eth1", reason, symbol, **(fields | ct)),
    ]


def snat_owner(protocol: int = UDP, snat: str = SNAT) -> Rivals:
    """The other pod's connection has that port."""
    return Rivals(None, entry(f"{RIVAL} > {SERVER}", f"{SERVER} > {snat}", protocol), "the connection table", 3_000_000)


def answered_tcp(port: str = "198.51.100.2:61000") -> list[Event]:
    """The SYN again, a second later and from another port, and its SYN-ACK."""
    orig, reply = f"{CLIENT} > {SERVER}", f"{SERVER} > {port}"
    ct = {"orig": orig, "reply": reply, "status": CONFIRMED | CtStatus.SRC_NAT}
    syn = {"ip_id": 2}
    ack = {"flags": 0x12, "ip_id": 0, "seq": 9000, "skb": 7}
    return [
        out(orig, CART, "eth0", us=1_000_000, **syn),
        into(orig, NODE, "veth-cart", us=1_000_010, **syn),
        out(f"{port} > {SERVER}", NODE, "eth1", us=1_000_020, **(syn | ct)),
        into(reply, NODE, "eth1", us=1_000_100, **ack),
        out(f"{SERVER} > {CLIENT}", NODE, "veth-cart", us=1_000_110, **(ack | ct | {"info": 3})),
        into(f"{SERVER} > {CLIENT}", CART, "eth0", us=1_000_120, **ack),
    ]


def of_drops(events: list[Event], *rivals: Rivals) -> dict[Event, Rivals]:
    dead = [e for e in events if e.probe.name == "KFREE_SKB"]
    return dict(zip(dead, rivals * len(dead), strict=False))


def only(*events: Event, **other: object) -> Finding:
    (finding,) = findings(*events, **other)
    return finding


@pytest.mark.parametrize("symbol", ["nf_hook_slow", "nfqnl_reinject"])
def test_a_lost_snat_race_names_both_pods(symbol: str) -> None:
    story = lost_to_snat(symbol=symbol)
    finding = only(*story, rivals=of_drops(story, snat_owner()), rises={NODE: LOST})
    assert finding.code == "SNAT_PORT_CLASH"
    assert finding.title == "DROPPED on node-1: pod shop/web-1 got the SNAT port 198.51.100.2:4000 first"
    assert (finding.where.node, finding.where.hook, finding.direction) == ("node-1", "postrouting", "request")
    assert any(line.startswith(f"lost: pod shop/cart {CLIENT} → {SERVER}") for line in finding.evidence)
    assert any(line.startswith(f"won: pod shop/web-1 {RIVAL} → {SERVER}") for line in finding.evidence)
    assert "conntrack's counters rose: insert_failed by 1, drop by 1" in finding.evidence


def test_a_lost_snat_race_that_tcp_makes_good_is_told_as_the_delay_it_is() -> None:
    lost = lost_to_snat(socket.IPPROTO_TCP, us=10)
    story = [*lost, *answered_tcp()]
    found = findings(*story, rivals=of_drops(lost, snat_owner(socket.IPPROTO_TCP)), rises={NODE: LOST})
    (finding,) = [f for f in found if f.severity is Severity.FAIL]
    assert finding.code == "SNAT_PORT_CLASH"
    assert "it was sent again 1.0 s later and came through: the client has seen a delay" in finding.evidence


def test_a_rule_behind_source_nat_looks_the_same_but_nobody_owns_the_port() -> None:
    story = lost_to_snat(symbol="nft_do_chain")
    assert codes(*story, rivals=of_drops(story, Rivals(None, None, "the connection table"))) == ["KERNEL_DROP"]


def test_a_rule_that_was_traced_beats_every_owner() -> None:
    story = lost_to_snat(symbol="nft_do_chain")
    rule = NamedRule("nftrace", "ip late", "LATE", "drop # handle 4", policy=False, engine="nft")
    flows = told(*story).flows
    around = surroundings(rivals=of_drops(story, snat_owner()))
    around = replace(around, rules={id(d.packet): rule for f in flows for d in Case(f, around).deaths})
    assert [f.code for flow in flows for f in diagnose(Case(flow, around))] == ["RULE_DROP"]


def test_a_winner_that_is_gone_is_not_made_up() -> None:
    story = lost_to_snat()
    rivals = of_drops(story, Rivals(None, None, "the connection table"))
    assert codes(*story, rivals=rivals, rises={NODE: LOST}) == ["KERNEL_DROP"]


def test_a_drop_that_conntrack_was_not_asked_about_is_no_clash() -> None:
    assert codes(*lost_to_snat(), rises={NODE: LOST}) == ["KERNEL_DROP"]


def test_ports_are_exhausted_when_the_retry_ends_in_the_same_way() -> None:
    snat = "198.51.100.2:40000"
    first, again = (lost_to_snat(socket.IPPROTO_TCP, snat, ip_id=n, us=us) for n, us in ((1, 10), (2, 1_000_010)))
    story = [*first, *again]
    owner = snat_owner(socket.IPPROTO_TCP, snat)
    finding = only(*story, rivals=of_drops(story, owner, owner), rises={NODE: {"conntrack.drop": 2}})
    assert finding.code == "SNAT_PORTS_EXHAUSTED"
    assert finding.title == "DROPPED on node-1: no free SNAT port, 198.51.100.2:40000 is in use"
    assert "2 tries were lost in the same way" in finding.evidence


@pytest.mark.parametrize(
    ("snat", "found", "code"),
    [
        pytest.param("198.51.100.2:40000", 4, "SNAT_PORTS_EXHAUSTED", id="searched-in-vain"),
        pytest.param("198.51.100.2:40000", 0, "SNAT_PORT_CLASH", id="met-no-taken-port"),
        pytest.param(SNAT, 4, "SNAT_PORT_CLASH", id="kept-its-own-port"),
    ],
)
def test_a_single_datagram_tells_exhaustion_from_a_race(snat: str, found: int, code: str) -> None:
    story = lost_to_snat(snat=snat)
    rivals = of_drops(story, snat_owner(snat=snat))
    assert codes(*story, rivals=rivals, rises={NODE: LOST | {"conntrack.found": found}}) == [code]


def lost_to_itself() -> list[Event]:
    """A query that dies because the same socket has asked another Service of the same pods."""
    ct = {"orig": f"{SOCKET} > {OTHER_VIP}", "reply": f"{DNS_1} > {SOCKET}", "status": BEHIND_DNAT}
    return [
        out(f"{SOCKET} > {OTHER_VIP}", CART, "eth0", protocol=UDP),
        into(f"{SOCKET} > {OTHER_VIP}", NODE, "veth-cart", protocol=UDP),
        drop(f"{SOCKET} > {DNS_1}", NODE, "veth-dns", NETFILTER_DROP, "nf_hook_slow", protocol=UDP, **ct),
    ]


def test_two_connections_of_one_socket_that_exclude_each_other() -> None:
    story = lost_to_itself()
    owner = Rivals(None, entry(f"{SOCKET} > {DNS_VIP}", f"{DNS_1} > {SOCKET}"), "nf_ct_resolve_clash")
    finding = only(*story, rivals=of_drops(story, owner), rises={NODE: LOST})
    assert finding.code == "CT_CLASH_DROP"
    assert f"to {OTHER_VIP} and to {DNS_VIP}, and NAT sent both to {DNS_1}" in finding.why
    assert "the other one was named by nf_ct_resolve_clash" in finding.evidence


@pytest.mark.parametrize(("late_ms", "code"), [(5, "CT_CLASH_DROP"), (900, "KERNEL_DROP")])
def test_the_owner_of_the_original_tuple_may_be_the_packets_own_retry(late_ms: int, code: str) -> None:
    story = lost_to_itself()
    owner = entry(f"{SOCKET} > {OTHER_VIP}", f"{DNS_2} > {SOCKET}")
    rivals = of_drops(story, Rivals(owner, None, "the connection table", late_ms * 1_000_000))
    assert codes(*story, rivals=rivals, rises={NODE: LOST}) == [code]


def test_the_same_header_behind_nat_belongs_to_the_connection_that_conntrack_says() -> None:
    ct = {"orig": f"{SOCKET} > {DNS_VIP}", "reply": f"{DNS_1} > {SOCKET}", "status": CONFIRMED}
    winner = [
        out(f"{SOCKET} > {DNS_VIP}", CART, "eth0", protocol=UDP),
        out(f"{SOCKET} > {DNS_1}", NODE, "veth-dns", protocol=UDP, **ct),
    ]
    correlator = told(*winner, *lost_to_itself())
    assert {f.original.daddr: any(p.dropped for p in f.packets) for f in correlator.flows} == {
        ip_address("10.96.0.10"): False,
        ip_address("10.96.0.11"): True,
    }


def test_the_winners_answer_is_not_taken_for_the_losers() -> None:
    lost = lost_to_snat()
    correlator = told(*lost, into(f"{SERVER} > {SNAT}", NODE, "eth1", protocol=UDP, ip_id=77))
    (flow,) = correlator.flows
    assert not flow.replies


def test_the_rules_that_a_lost_packet_met_behind_source_nat_are_its_own() -> None:
    correlator = told(*lost_to_snat(ip_id=5189))
    correlator.attach_rules([replace(met("filter"), packet=five(f"{SNAT} > {SERVER}"))])
    assert [len(p.rules) for f in correlator.flows for p in f.packets] == [1]


@pytest.mark.parametrize(
    ("rises", "code"),
    [
        ({"conntrack.insert_failed": 3, "conntrack.chainlength": 3}, "CT_CHAIN_TOO_LONG"),
        ({"conntrack.insert_failed": 3}, "KERNEL_DROP"),
        ({"conntrack.chainlength": 3}, "KERNEL_DROP"),
    ],
)
def test_a_chain_is_too_long_when_nobody_owns_the_tuples_and_the_kernel_counts_it(
    rises: dict[str, int], code: str
) -> None:
    story = lost_to_itself()
    rivals = of_drops(story, Rivals(None, None, "the connection table"))
    assert codes(*story, rivals=rivals, rises={NODE: rises}) == [code]


def refused_by_the_table() -> list[Event]:
    """A SYN that dies in PREROUTING, before conntrack has anything for it."""
    way = f"{CLIENT} > 10.96.0.80:80"
    return [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        drop(way, NODE, "veth-cart", NETFILTER_DROP, "nf_hook_slow"),
    ]


@pytest.mark.parametrize(
    ("fill", "rises", "code"),
    [
        pytest.param(Fill(20, 20), {"conntrack.drop": 3}, "CT_TABLE_FULL", id="full"),
        pytest.param(Fill(19, 20), {"conntrack.drop": 3}, "CT_TABLE_FULL", id="one-was-freed-meanwhile"),
        pytest.param(Fill(9, 20), {"conntrack.drop": 3}, "KERNEL_DROP", id="room-enough"),
        pytest.param(Fill(20, 20), {}, "KERNEL_DROP", id="conntrack-dropped-nothing"),
        pytest.param(Fill(20, 0), {"conntrack.drop": 3}, "KERNEL_DROP", id="no-limit"),
        pytest.param(None, {"conntrack.drop": 3}, "KERNEL_DROP", id="not-known"),
    ],
)
def test_a_full_table(fill: Fill | None, rises: dict[str, int], code: str) -> None:
    fills = {NODE: fill} if fill else {}
    finding = only(*refused_by_the_table(), fills=fills, rises={NODE: rises})
    assert finding.code == code
    if fill and code == "CT_TABLE_FULL":
        assert f"({fill.entries} of {fill.maximum})" in finding.title


def asked_twice(status: CtStatus = CLASHED) -> list[Event]:
    """A DNS query that reached its pod, with its entry as the kernel has marked it."""
    ct = {"orig": f"{SOCKET} > {DNS_VIP}", "reply": f"{DNS_1} > {SOCKET}", "status": status}
    fields: dict[str, object] = {"protocol": UDP, "payload": 40, "seq": 0x00010000, "ip_id": 5}
    return [
        out(f"{SOCKET} > {DNS_VIP}", CART, "eth0", us=0, **fields),
        into(f"{SOCKET} > {DNS_VIP}", NODE, "veth-cart", us=10, **fields),
        out(f"{SOCKET} > {DNS_1}", NODE, "veth-dns", us=20, **(fields | ct)),
        into(f"{SOCKET} > {DNS_1}", WEB, "eth0", us=30, **fields),
    ]


def answer(us: int, source: str, *, refused: bool) -> list[Event]:
    """The answer as the client's netns sees it: from whom it was asked of, or from the pod itself."""
    fields: dict[str, object] = {"protocol": UDP, "payload": 60, "seq": 0x00018180, "ip_id": 6, "skb": 8}
    events = [
        out(f"{DNS_1} > {SOCKET}", WEB, "eth0", us=us, **fields),
        into(f"{source} > {SOCKET}", CART, "eth0", us=us + 50, **fields),
    ]
    died = drop(f"{source} > {SOCKET}", CART, "eth0", NO_SOCKET, "__udp4_lib_rcv", us=us + 60, **fields)
    return [*events, died] if refused else events


def first_query() -> Rivals:
    return Rivals(entry(f"{SOCKET} > {DNS_VIP}", f"{DNS_2} > {SOCKET}"), None, "the connection table", 2_000_000)


def test_a_clash_that_was_resolved_is_told_and_is_no_failure() -> None:
    query = asked_twice()
    finding = only(*query, *answer(5_000, DNS_VIP, refused=False), rivals={query[2]: first_query()})
    assert (finding.code, finding.severity) == ("CT_CLASH_RESOLVED", Severity.INFO)
    assert any(
        line.startswith(f"the other: pod shop/cart {SOCKET} → {DNS_VIP}, reply {DNS_2}") for line in finding.evidence
    )


def test_the_late_answer_of_a_clashs_loser() -> None:
    query = asked_twice()
    finding = only(
        *query,
        *answer(1_500_000, DNS_1, refused=True),
        rivals={query[2]: first_query()},
        rises={NODE: {"conntrack.clashres": 1}},
    )
    assert finding.code == "DNS_CLASH_LOST"
    assert finding.title == f"REPLY LOST in pod shop/cart: the DNS answer came from {DNS_1}, which was not asked"
    assert f"NAT chose {DNS_2} for the other and {DNS_1} for this one" in finding.why
    assert "The answer took 1.5 s" in finding.why
    assert finding.direction == "reply"


def test_an_untranslated_answer_without_a_clash_has_another_cause() -> None:
    story = [*asked_twice(CONFIRMED), *answer(1_500_000, DNS_1, refused=True)]
    assert codes(*story) == ["KERNEL_DROP"]


@pytest.mark.parametrize(
    ("entries", "early_drop", "code"),
    [(400, 90, "CT_EARLY_DROP"), (100, 90, "KERNEL_DROP"), (400, 0, "KERNEL_DROP")],
)
def test_an_untranslated_answer_of_a_connection_that_was_thrown_out(entries: int, early_drop: int, code: str) -> None:
    story = [*asked_twice(CONFIRMED), *answer(1_500_000, DNS_1, refused=True)]
    table = {"net.netfilter.nf_conntrack_count": entries, "net.netfilter.nf_conntrack_max": 400}
    rises = {"conntrack.early_drop": early_drop} if early_drop else {}
    finding = only(*story, rises={NODE: rises}, settings={NODE: table})
    assert finding.code == code
    assert ("the table at the end: 400 entries, nf_conntrack_max 400" in finding.evidence) == (code == "CT_EARLY_DROP")


def test_connections_of_others_that_are_thrown_out_are_no_finding() -> None:
    story = [*asked_twice(CONFIRMED), *answer(5_000, DNS_VIP, refused=False)]
    assert codes(*story, rises={NODE: {"conntrack.early_drop": 90, "conntrack.clashres": 7}}) == []


# --- an entry that has outlived its endpoint --------------------------------------------------------------------------

ECHO, GONE = "10.96.0.80:7", "10.244.9.9:7007"


def with_echo(*endpoints: Endpoint) -> object:
    """The stage with a UDP port on Service shop/web."""
    web, *others = INVENTORY.services
    echo = ServicePort("echo", "UDP", 7, "7007", endpoints=endpoints)
    return replace(INVENTORY, services=(replace(web, ports=(*web.ports, echo)), *others))


LIVING = Endpoint(ip_address("10.244.1.11"), 7007, "shop/web-1", "node-1", ready=True)
DEAD = Endpoint(ip_address("10.244.9.9"), 7007, None, None, ready=False, serving=True, terminating=True)


def sent_to_a_dead_pod(status: CtStatus) -> list[Event]:
    ct = {"orig": f"{CLIENT} > {ECHO}", "reply": f"{GONE} > {CLIENT}", "status": status}
    return [
        out(f"{CLIENT} > {ECHO}", CART, "eth0", protocol=UDP),
        into(f"{CLIENT} > {ECHO}", NODE, "veth-cart", protocol=UDP),
        out(f"{CLIENT} > {GONE}", NODE, "eth0", protocol=UDP, **ct),
    ]


def met(place: str) -> RuleStep:
    """The end of a base chain: "nat", or with the chain "kube-proxy nat-prerouting"."""
    packet = five(f"{CLIENT} > {ECHO}")
    table, _, chain = place.partition(" ")
    chain = chain or "PREROUTING"
    return RuleStep(
        1 << 62, NODE, "nft", "ip", table, chain, "policy", None, None, "accept", None, 1, packet, 5189, 1000, 0,
        None, None, "prerouting", chain, 0,
    )  # fmt: skip


def judged(inventory: object, status: CtStatus, *tables: str) -> list[Finding]:
    correlator = told(*sent_to_a_dead_pod(status))
    correlator.attach_rules([met(table) for table in tables])
    around = surroundings(inventory=inventory)
    return [f for flow in correlator.flows for f in diagnose(Case(flow, around))]


@pytest.mark.parametrize(
    ("status", "tables", "proof"),
    [
        (CONFIRMED, ("raw", "filter"), "no NAT rule was met: the entry was there before the packet"),
        (CONFIRMED, ("kube-proxy filter-forward",), "no NAT rule was met: the entry was there before the packet"),
        (CONFIRMED | CtStatus.SEEN_REPLY, (), "the entry has seen an answer, and in this trace there was none"),
    ],
)
def test_an_entry_that_has_outlived_its_endpoint(status: CtStatus, tables: tuple[str, ...], proof: str) -> None:
    (finding,) = judged(with_echo(LIVING), status, *tables)
    assert finding.code == "STALE_CT_ENTRY"
    assert proof in finding.evidence
    assert "conntrack -D -p udp -s 10.244.1.10 -d 10.96.0.80 --sport 4000 --dport 7" in finding.fix


@pytest.mark.parametrize(
    ("endpoints", "status", "tables"),
    [
        pytest.param((LIVING,), CONFIRMED, ("filter", "nat"), id="a-rule-sent-it-there"),
        pytest.param((LIVING,), CONFIRMED, ("kube-proxy nat-prerouting",), id="kube-proxys-own-table-sent-it-there"),
        pytest.param((LIVING,), CONFIRMED, ("filter", "cni-services"), id="a-table-that-may-translate"),
        pytest.param((LIVING,), CONFIRMED, (), id="not-known-whether-a-rule-did"),
        pytest.param((LIVING, DEAD), CONFIRMED | CtStatus.SEEN_REPLY, (), id="the-inventory-still-has-it"),
        pytest.param((), CONFIRMED | CtStatus.SEEN_REPLY, (), id="no-endpoint-is-another-finding"),
    ],
)
def test_an_entry_is_not_called_stale(
    endpoints: tuple[Endpoint, ...], status: CtStatus, tables: tuple[str, ...]
) -> None:
    assert "STALE_CT_ENTRY" not in [f.code for f in judged(with_echo(*endpoints), status, *tables)]


def test_a_target_that_dnat_has_not_chosen_is_not_stale() -> None:
    story = sent_to_a_dead_pod(CONFIRMED & ~CtStatus.DST_NAT)
    assert "STALE_CT_ENTRY" not in codes(*story, inventory=with_echo(LIVING))


def test_dnat_in_forward_is_not_the_table() -> None:
    story = lost_to_itself()
    forward = story[-1]._replace(ct_status=int(DNAT_DONE))
    assert codes(*story[:2], forward) == ["KERNEL_DROP"]
