"""What a rule's line means, whose it is, and which packets it cannot match: on the lines that kube-proxy wrote."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from socket import IPPROTO_TCP, IPPROTO_UDP

import pytest

from k8snet.event import FiveTuple
from k8snet.kernel.rules import Meaning, comments, contradicts, explain, owner_of
from nftext import objects

SAVED = (Path(__file__).parents[1] / "data/kube-proxy/iptables-nft-save.txt").read_text().splitlines()


def chain(name: str) -> list[str]:
    """The lines of one chain of kube-proxy's rules."""
    return [line for line in SAVED if line.startswith(f"-A {name} ")]


def the(*needles: str) -> str:
    """The first saved line that holds all of these."""
    return next(line for line in SAVED if all(needle in line for needle in needles))


def means(line: str, table: str = "nat") -> Meaning:
    name = line.split()[1]
    return explain(table, name, line, chain(name))


def test_a_service_without_endpoints_is_named() -> None:
    assert means(the("shop/empty:http"), "filter") == Meaning(
        "kube-proxy", "Service shop/empty, port http, has no endpoints", "shop/empty", "http"
    )


def test_a_local_traffic_policy_without_a_local_endpoint_is_named() -> None:
    meaning = means(the("shop/int-local:http has no local"), "filter")
    assert meaning.service == "shop/int-local"
    assert "no endpoint on this node" in meaning.sentence


def test_an_endpoint_chain_gives_the_endpoint_although_only_another_rule_of_it_has_the_address() -> None:
    mark, dnat = chain("KUBE-SEP-EPVTA2RHFPHQF37H")
    assert means(dnat).endpoint == "10.244.1.11:8080"
    assert means(mark).endpoint == "10.244.1.11:8080"
    assert means(mark).sentence == "marks packets of Service shop/web, port http for SNAT"


def test_a_service_chain_says_where_it_sends() -> None:
    line = the("-A KUBE-SVC-67NZLRHBNDSAWJRO", "10.244.2.11:8080")
    assert means(line).sentence == "sends packets of Service shop/web, port http to 10.244.2.11:8080"


def test_a_comment_of_many_words_is_not_taken_for_a_service() -> None:
    meaning = means("-A KUBE-SERVICES " + the("NOTE: this must be the last").split(" ", 2)[2])
    assert meaning.service is None
    assert meaning.owner == "kube-proxy"


def test_the_invalid_rule_is_explained() -> None:
    assert "INVALID" in means(the("--ctstate INVALID"), "filter").sentence


def test_every_line_of_kube_proxy_is_kube_proxys() -> None:
    rules = [line for line in SAVED if line.startswith("-A ")]
    assert len(rules) > 80
    for line in rules:
        assert owner_of("filter", line.split()[1], line) == "kube-proxy", line


@pytest.mark.parametrize(
    ("table", "name", "text", "owner"),
    [
        ("filter", "FORWARD", "-A FORWARD -j DOCKER-USER", "docker"),
        ("filter", "DOCKER-ISOLATION-STAGE-2", "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP", "docker"),
        ("filter", "ufw-user-input", "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT", "ufw"),
        ("filter", "cali-tw-cali1234", '-A cali-tw-cali1234 -m comment --comment "cali:x" -j DROP', "Calico"),
        ("filter", "FORWARD", '-A FORWARD -m comment --comment "cali:wUH" -j ACCEPT', "Calico"),
        ("filter", "KUBE-NWPLCY-ABC", "-A KUBE-NWPLCY-ABC -j REJECT", "kube-router"),
        ("filter", "KUBE-POD-FW-ABC", "-A KUBE-POD-FW-ABC -j REJECT", "kube-router"),
        ("filter", "FORWARD", '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD', "flannel"),
        ("filter", "IN_public_deny", "-A IN_public_deny -j DROP", "firewalld"),
        ("firewalld", "filter_FORWARD", "reject with icmpx admin-prohibited", "firewalld"),
        ("kube-proxy", "reject-chain", "reject", "kube-proxy"),
        ("filter", "FORWARD", "-A FORWARD -s 10.0.0.1/32 -j DROP", "unknown"),
        ("mine", "polfwd", 'ip daddr 10.0.0.1 drop comment "cali:wUH"', "Calico"),
    ],
)
def test_the_owner_is_told_by_chain_table_or_comment(table: str, name: str, text: str, owner: str) -> None:
    assert owner_of(table, name, text) == owner


def test_a_chain_of_the_nftables_mode_carries_its_service() -> None:
    meaning = explain("kube-proxy", "endpoint-FAYF65XV-shop/web/tcp/http__10.244.1.11/8080", "meta l4proto tcp dnat to")
    assert (meaning.service, meaning.port, meaning.endpoint) == ("shop/web", "http", "10.244.1.11:8080")


NFT = (Path(__file__).parents[1] / "data/kube-proxy/nftables.txt").read_text()


def nft_rules() -> list[tuple[str, str]]:
    """(chain, rule) of the table that kube-proxy wrote in nftables mode."""
    table = objects(NFT)
    chains = {name.removeprefix("chain "): lines for name, lines in table.items() if name.startswith("chain ")}
    return [(chain, line) for chain, lines in chains.items() for line in lines if not line.startswith("type ")]


def test_every_rule_of_the_nftables_mode_is_kube_proxys_and_those_of_a_service_name_it() -> None:
    rules = nft_rules()
    assert len(rules) > 60
    for name, text in rules:
        meaning = explain("kube-proxy", name, text)
        assert meaning.owner == "kube-proxy"
        if "/" in name:
            assert meaning.service == "/".join(name.split("-", 2)[2].split("/")[:2]), name
            assert meaning.sentence


def test_an_endpoint_chain_of_the_ipv6_table_has_its_address_back() -> None:
    chain = "endpoint-FAYF65XV-shop/web/tcp/http__fd00.10.244.1..12/8080"
    assert explain("kube-proxy", chain, "meta l4proto tcp dnat to").endpoint == "[fd00:10:244:1::12]:8080"


@pytest.mark.parametrize(
    ("chain", "text", "sentence", "service"),
    [
        (
            "reject-chain",
            'vmap @no-endpoint-services { 10.96.0.81 . tcp . 80 comment "shop/empty:http" : goto reject-chain }',
            "Service shop/empty, port http, has no endpoints",
            "shop/empty",
        ),
        (
            "reject-chain",
            'vmap @no-endpoint-services { 10.96.0.81 . udp . 53 comment "shop/unnamed" : goto reject-chain }',
            "Service shop/unnamed has no endpoints",
            "shop/unnamed",
        ),
        (
            "service-endpoints-check",
            'vmap @no-endpoint-services { 10.96.0.85 . tcp . 80 comment "shop/int-local:http" : drop }',
            "Service shop/int-local, port http, has no endpoint on this node, and its traffic policy is Local",
            "shop/int-local",
        ),
        (
            "nodeport-endpoints-check",
            'vmap @no-endpoint-nodeports { tcp . 30081 comment "shop/np-local:http" : drop }',
            "Service shop/np-local, port http, has no endpoint on this node, and its traffic policy is Local",
            "shop/np-local",
        ),
        ("reject-chain", "reject", "kube-proxy refuses packets to a Service that has no endpoints", None),
        (
            "cluster-ips-check",
            'ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',
            "refuses packets to a ClusterIP that belong to no port of its Service",
            None,
        ),
        (
            "firewall-NDKYHIMW-shop/lb/tcp/",
            'vmap @firewall-ips { 192.0.2.10 . tcp . 80 comment "shop/lb" : goto firewall-NDKYHIMW-shop/lb/tcp/ }',
            "Service shop/lb admits only its loadBalancerSourceRanges",
            "shop/lb",
        ),
    ],
)
def test_an_element_says_what_its_service_lacks(chain: str, text: str, sentence: str, service: str | None) -> None:
    meaning = explain("kube-proxy", chain, text)
    assert (meaning.sentence, meaning.service, meaning.owner) == (sentence, service, "kube-proxy")


def test_a_comment_with_quotes_and_options_in_it_does_not_confuse() -> None:
    line = '-A FORWARD -m comment --comment "say \\"-j ACCEPT\\" twice" -j DROP'
    assert comments(line) == ['say "-j ACCEPT" twice']
    assert owner_of("filter", "FORWARD", line) == "unknown"


PACKET = FiveTuple(ip_address("10.1.0.5"), ip_address("10.2.0.6"), 40000, 8080, IPPROTO_TCP)


@pytest.mark.parametrize(
    ("text", "impossible"),
    [
        ("-A F -j DROP", False),
        ("-A F -s 10.1.0.0/16 -p tcp -m tcp --dport 8080 -j DROP", False),
        ("-A F -s 10.9.0.0/16 -j DROP", True),
        ("-A F ! -s 10.1.0.0/16 -j DROP", True),
        ("-A F -d 10.2.0.6/32 -p udp -j DROP", True),
        ("-A F -p 6 -m tcp --dport 8000:8100 -j DROP", False),
        ("-A F -p tcp -m tcp --dport 8081 -j DROP", True),
        ("-A F -p tcp -m tcp ! --dport 8080 -j DROP", True),
        ("-A F -p tcp -m tcp --sport 40000: -j DROP", False),
        ("-A F -s fd00::/8 -j DROP", True),
        ("ip saddr 10.9.0.0/16 drop", False),  # nft's own text is not read: kept as a candidate
    ],
)
def test_a_rule_that_cannot_match_the_packet_is_no_suspect(text: str, impossible: bool) -> None:
    assert contradicts(text, PACKET) is impossible


def test_the_protocol_alone_can_rule_a_line_out() -> None:
    assert contradicts("-A F -p tcp -j DROP", PACKET._replace(protocol=IPPROTO_UDP))
