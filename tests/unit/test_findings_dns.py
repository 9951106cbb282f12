"""What is said of DNS queries, in a trace and in a watch; and what looks like a fault and is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k8snet.event import CtStatus, Event
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.findings.dns import understood
from k8snet.flow.correlate import Correlator
from k8snet.flow.dns import by_socket
from k8snet.flow.dns import exchanges as exchanges_of_flows
from k8snet.kernel.resolver import Resolver
from k8snet.report import Finding, Severity
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.dns import anomalies
from unit import story
from unit.lookups import (
    BACKEND,
    DNS,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    TRUNCATED,
    answer,
    exchanges,
    query,
    surroundings,
    turned_away,
)

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lab.internal")


def traced(*events: list[Event], **around: object) -> list[Finding]:
    """What a trace of these says."""
    correlator = Correlator(story.addresses("10.244.1.10"))
    for event in sorted((e for some in events for e in some), key=lambda e: e.ktime_ns):
        correlator.feed(event)
    known = surroundings(**around)
    queries = [understood(q, known) for q in exchanges_of_flows(correlator.flows)]
    known = replace(known, queries=by_socket(queries))
    return [found for flow in correlator.flows for found in diagnose(Case(flow, known))]


def watched(*events: list[Event], **around: object) -> list[Anomaly]:
    """What a watch says of them."""
    return anomalies(exchanges(*events), surroundings(**around))


def codes(*events: list[Event], **around: object) -> tuple[list[str], list[str]]:
    """Of both."""
    return [f.code for f in traced(*events, **around)], [a.finding.code for a in watched(*events, **around)]


def lookup(at: float, name: str, rcode: int = 0, port: int = 40000, txid: int = 1) -> list[Event]:
    """A and AAAA of one name, answered within milliseconds."""
    return [
        *query(at, name, port=port, txid=txid),
        *query(at + 0.0001, name, "AAAA", port=port, txid=txid + 1),
        *answer(at + 0.002, name, port=port, txid=txid, rcode=rcode),
        *answer(at + 0.003, name, "AAAA", port=port, txid=txid + 1, rcode=rcode),
    ]


def searched(name: str, domains: tuple[str, ...], last: int = 0) -> list[Event]:
    """A look-up with a search list: each domain in vain, then the name as it stands."""
    names = [*(f"{name}.{domain}" for domain in domains), name]
    return [
        event
        for i, one in enumerate(names)
        for event in lookup(i / 100, one, last if one == name else NXDOMAIN, port=40000 + i, txid=2 * i + 1)
    ]


# --- healthy ---------------------------------------------------------------------------------------------------------

HEALTHY = {
    "lookup": lookup(0, "web.shop"),
    "nxdomain": lookup(0, "nope.example", NXDOMAIN),
    "two-search-domains": searched("web.shop", SEARCH[:2]),
    "another-name-of-three-domains": [
        *(e for i, d in enumerate(SEARCH) for e in lookup(i / 100, f"a{i}.{d}", NXDOMAIN, 40000 + i, 2 * i + 1)),
        *lookup(0.1, "www.example.com", port=40010, txid=90),
    ],
    "nearly-slow": [*query(0), *answer(0.9)],
    "truncated-then-tcp": [
        *query(0), *answer(0.001, flags=TRUNCATED),
        *query(0.002, port=40001, tcp=True), *answer(0.9, port=40001, tcp=True),
    ],
    "two-servers-at-once": [
        *query(0), *query(0, server="10.96.0.11"), *answer(0.002), *answer(0.004, server="10.96.0.11"),
    ],
    "asked-again-though-answered": [*query(0), *answer(0.001), *query(5), *answer(5.001)],
    "hung-up-at-once": [*query(0), *answer(0.003), *turned_away(0.003)],
    "the-same-name-twice": [*lookup(0, "web.shop"), *lookup(1, "web.shop", port=40001, txid=11)],
    "many-names": [e for i in range(30) for e in lookup(i / 100, f"n{i}.example", NXDOMAIN, 40000 + i, 2 * i + 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_gives_no_finding(name: str) -> None:
    assert codes(HEALTHY[name]) == ([], [])


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_slow_server_is_named_with_its_share_of_the_time() -> None:
    (found,) = traced(query(0), answer(1.5))
    assert (found.code, found.severity, found.where.pod) == ("DNS_SLOW", Severity.WARN, "kube-system/dns")
    assert found.title == "SLOW: pod kube-system/dns took 1.50 s to answer A web.shop"
    assert "of 1.50 s, 1.50 s went by in pod kube-system/dns" in found.why
    (seen,) = watched(query(0), answer(1.5))
    assert (seen.finding.title, seen.subject) == (found.title, "web.shop")
    assert seen.seconds == pytest.approx(1.5)
    assert seen.flow is not None
    assert (seen.flow.client.pod, seen.flow.server.service) == ("shop/cart", "kube-system/kube-dns")


def test_an_answer_after_the_client_gave_up_is_late() -> None:
    story_of_it = query(0), query(1), answer(2.5), turned_away(2.5)
    assert codes(*story_of_it) == (["DNS_LATE"], ["DNS_LATE"])
    (found,) = traced(*story_of_it)
    assert found.title == "LATE: the answer to A web.shop took 2.50 s, and pod shop/cart had given up"
    assert found.severity is Severity.FAIL
    assert any("again" in line for line in found.evidence)


def test_without_the_icmp_error_the_drop_says_that_it_is_late() -> None:
    assert codes(query(0), answer(2.5), turned_away(2.5)[:1]) == (["DNS_LATE"], ["DNS_LATE"])


def test_kernels_without_reasons_say_so_by_the_function() -> None:
    freed = turned_away(2.5)[0]._replace(reason=0)
    assert codes(query(0), answer(2.5), [freed])[1] == ["DNS_LATE"]


@pytest.mark.parametrize(
    ("rcode", "code"),
    [pytest.param(SERVFAIL, "DNS_SERVFAIL", id="servfail"), pytest.param(REFUSED, "DNS_REFUSED", id="refused")],
)
def test_a_server_that_says_no_is_named(rcode: int, code: str) -> None:
    assert codes(query(0), answer(0.01, rcode=rcode)) == ([code], [code])
    (found,) = traced(query(0), answer(0.01, rcode=rcode))
    assert (found.where.pod, found.severity) == ("kube-system/dns", Severity.FAIL)
    assert "kubectl -n kube-system logs dns --tail=50" in found.fix


def test_over_tcp_too() -> None:
    flow = query(0, tcp=True), answer(0.01, tcp=True, rcode=SERVFAIL)
    assert "DNS_SERVFAIL" in codes(*flow)[0]
    assert codes(*flow)[1] == ["DNS_SERVFAIL"]


def test_of_a_pair_one_is_not_answered_and_both_are_sent_again() -> None:
    """The five seconds of glibc."""
    story_of_it = (
        query(0, txid=1), query(0.0001, kind="AAAA", txid=2), answer(0.002, txid=1),
        query(5.005, txid=1), query(5.005, kind="AAAA", txid=2),
        answer(5.006, txid=1), answer(5.007, kind="AAAA", txid=2),
    )  # fmt: skip
    in_trace, in_watch = codes(*story_of_it)
    assert in_trace == ["DNS_PAIR_TIMEOUT", "SLOW_CONNECT"]
    assert in_watch == ["DNS_PAIR_TIMEOUT"]
    found = traced(*story_of_it)[0]
    assert found.title == "SLOW: pod shop/cart waited 5.00 s for AAAA of web.shop, though A was answered at once"
    assert found.severity is Severity.WARN


def test_one_after_the_other_the_retry_has_another_port() -> None:
    """single-request."""
    story_of_it = (
        query(0, txid=1), answer(0.002, txid=1), query(0.003, kind="AAAA", txid=2),
        query(5.003, port=40001, txid=1), answer(5.004, port=40001, txid=1),
        query(5.005, kind="AAAA", port=40001, txid=2), answer(5.006, kind="AAAA", port=40001, txid=2),
    )  # fmt: skip
    assert [a.finding.code for a in watched(*story_of_it)] == ["DNS_PAIR_TIMEOUT"]


def test_both_of_a_pair_without_an_answer_are_no_pair() -> None:
    story_of_it = (
        query(0, txid=1), query(0.0001, kind="AAAA", txid=2),
        query(5, txid=1), query(5, kind="AAAA", txid=2),
        answer(5.006, txid=1), answer(5.007, kind="AAAA", txid=2),
    )  # fmt: skip
    assert codes(*story_of_it) == (["SLOW_CONNECT"] * 2, ["SLOW_CONNECT"] * 2)


def test_the_options_of_the_pod_are_shown_where_they_are_known() -> None:
    resolver = Resolver(("10.96.0.10",), SEARCH, ndots=5, timeout=1)
    events = (
        query(0, txid=1), query(0.0001, kind="AAAA", txid=2), answer(0.002, txid=1),
        query(1, kind="AAAA", txid=2), answer(1.001, kind="AAAA", txid=2),
    )  # fmt: skip
    found = traced(*events, resolvers={story.CART: resolver})[0]
    assert any("ndots:5 timeout:1" in line for line in found.evidence)


def test_a_name_that_is_tried_with_every_search_domain() -> None:
    story_of_it = searched("www.example.com", SEARCH)
    assert codes(story_of_it) == (["DNS_SEARCH_STORM"], ["DNS_SEARCH_STORM"])
    (found,) = traced(story_of_it)
    assert found.severity is Severity.INFO
    assert found.title == "10 queries for one name: www.example.com was tried with 4 search domains first"
    assert found.evidence[0] == "A www.example.com.shop.svc.cluster.local: NXDOMAIN"
    assert any("ndots" in line and '"2"' in line for line in found.fix)


def test_a_name_that_exists_nowhere_is_a_storm_too() -> None:
    assert codes(searched("nope.example", SEARCH, NXDOMAIN)) == (["DNS_SEARCH_STORM"], ["DNS_SEARCH_STORM"])


def test_the_loser_of_a_clash_has_its_answer_from_an_address_that_it_did_not_ask() -> None:
    clashed = story.CONFIRMED | CtStatus.NAT_CLASH
    (found,) = watched(query(0, status=clashed), answer(1.5, server=BACKEND), turned_away(1.5, source=BACKEND))
    assert found.finding.code == "DNS_CLASH_LOST"
    assert "10.244.1.13" in found.finding.why


def test_an_answer_from_elsewhere_without_a_clash_is_no_clash() -> None:
    assert watched(query(0), answer(1.5, server=BACKEND), turned_away(1.5, source=BACKEND)) == []


def test_a_query_that_the_server_has_and_does_not_answer() -> None:
    story_of_it = query(0), query(5)
    assert codes(*story_of_it) == (["NO_REPLY"], ["NO_REPLY"])
    (found,) = watched(*story_of_it)
    assert found.finding.where.pod == "kube-system/dns"


def test_a_query_that_leaves_the_node_and_is_not_answered() -> None:
    (found,) = watched(query(0, upto=3))
    assert (found.finding.code, found.finding.where.node, found.finding.where.device) == (
        "LEFT_NODE",
        "node-1",
        "veth-dns",
    )


def test_an_answer_that_never_arrives_is_last_seen_somewhere() -> None:
    (found,) = watched(query(0), answer(0.01, upto=2))
    assert found.finding.code == "LAST_SEEN"
    assert found.finding.severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    "events", [pytest.param([query(0)], id="silence"), pytest.param([query(0), answer(1, upto=2)], id="half")]
)
def test_nothing_rests_on_absence_while_events_are_lost(events: list[list[Event]]) -> None:
    assert watched(*events, lost=1) == []


def test_a_query_that_died_is_somebody_elses_finding() -> None:
    last = query(0, upto=3)[-1]
    way = "10.244.1.10:40000 > 10.244.1.13:53"
    freed = story.drop(way, story.NODE, "veth-dns", story.NETFILTER_DROP, "nft_do_chain", protocol=17, seq=last.seq)
    freed = freed._replace(ktime_ns=last.ktime_ns + 1, payload=last.payload, payload_len=last.payload_len)
    assert watched([*query(0, upto=3), freed]) == []


def test_everybody_is_named_by_address_where_there_are_no_names() -> None:
    found = anomalies(exchanges(query(0), answer(1.5)), replace(story.surroundings(), owners={}))
    assert found[0].finding.title == "SLOW: 10.96.0.10 took 1.50 s to answer A web.shop"
    assert found[0].finding.where.netns == DNS
