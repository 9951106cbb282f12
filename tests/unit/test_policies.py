"""What a rule that drops says of network policies, in the words of each program that enforces them."""

from __future__ import annotations

import re
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

import k8snet.lab
from k8snet.event import FiveTuple
from k8snet.kernel.policies import Denial, Policy, comments, denial, queue_of_policies

RULES = Path(k8snet.lab.__file__).parent / "policies"
CART_TO_PAYMENTS = FiveTuple(ip_address("10.244.1.10"), ip_address("10.244.1.14"), 40000, 8080, socket.IPPROTO_TCP)


def table(name: str) -> dict[str, list[str]]:
    """The chains of a file that iptables-restore takes."""
    chains: dict[str, list[str]] = {}
    for line in (RULES / name).read_text().splitlines():
        if rule := re.match(r"-A (\S+)", line):
            chains.setdefault(rule[1], []).append(line)
    return chains


def of(name: str, chain: str, last: str, packet: FiveTuple | None = CART_TO_PAYMENTS) -> Denial | None:
    """What the rule of `chain` that ends with `last` enforces."""
    chains = table(name)
    text = next(line for line in chains[chain] if line.endswith(last))
    return denial("filter", chain, text, lambda other: chains.get(other, []), packet)


END_OF_TIER = 'Drop if no policies passed packet" -m mark --mark 0x0/0x20000 -j DROP'


def test_calicos_end_of_tier_is_the_policies_that_were_asked() -> None:
    found = of("calico-ingress.rules", "cali-tw-vethpayments", END_OF_TIER)
    assert found == Denial("Calico", "ingress", (Policy("shop/web-only"),))


def test_calicos_older_names_lose_what_kubernetes_does_not_know() -> None:
    found = of("calico-egress.rules", "cali-fw-vethcart", END_OF_TIER)
    assert found == Denial("Calico", "egress", (Policy("shop/allow-dns"), Policy("shop/default-deny")))


def test_calicos_profiles_are_no_policies_by_name() -> None:
    found = of("calico-ingress.rules", "cali-tw-vethpayments", 'Drop if no profiles matched" -j DROP', None)
    assert found is not None
    assert found.way == "ingress"


@pytest.mark.parametrize(
    ("chain", "last"),
    [
        pytest.param("cali-fw-vethcart", "--ctstate INVALID -j DROP", id="invalid"),
        pytest.param("cali-fw-vethcart", "-m multiport --dports 4789 -j DROP", id="vxlan-out-of-a-pod"),
        pytest.param("cali-fw-vethcart", 'Drop IPinIP encapped packets originating in workloads" -j DROP', id="ipip"),
    ],
)
def test_calico_drops_for_other_reasons_in_the_same_chain(chain: str, last: str) -> None:
    assert of("calico-ingress.rules", chain, last) is None


def test_a_pod_that_calico_does_not_know_is_no_policy() -> None:
    text = '-A cali-from-wl-dispatch -m comment --comment "cali:x" -m comment --comment "Unknown interface" -j DROP'
    assert denial("filter", "cali-from-wl-dispatch", text, lambda chain: []) is None


@pytest.mark.parametrize(
    ("comment", "policy"),
    [
        pytest.param("GlobalNetworkPolicy deny-metadata egress", Policy("deny-metadata", "GlobalNetworkPolicy")),
        pytest.param("Policy default.deny-metadata egress", Policy("default.deny-metadata", "GlobalNetworkPolicy")),
        pytest.param("Policy shop/default.no-metadata egress", Policy("shop/default.no-metadata")),
    ],
)
def test_a_calico_policy_that_denies_itself_is_explicit(comment: str, policy: Policy) -> None:
    chain = "cali-po-_abc"
    first = f'-A {chain} -d 169.254.169.254/32 -m comment --comment "cali:y" -m comment --comment "{comment}" -j MARK'
    drop = f'-A {chain} -m comment --comment "cali:z" -m mark --mark 0x80000/0x80000 -j DROP'
    found = denial("filter", chain, drop, lambda other: [first, drop] if other == chain else [])
    assert found == Denial("Calico", "egress", (policy,), explicit=True)


def test_calicos_nftables_chains_have_the_old_tables_name_in_front() -> None:
    chains = {
        "filter-cali-tw-cali1": [
            'meta mark & 0x00020000 == 0 counter jump filter-cali-gi-_g comment "cali:a;"',
            'meta mark & 0x00020000 == 0 counter drop comment "cali:b; Drop if no policies passed packet"',
        ],
        "filter-cali-gi-_g": ['counter jump filter-cali-pi-_p comment "cali:c;"'],
        "filter-cali-pi-_p": [
            'ip saddr 10.0.0.1 counter meta mark set 1 comment "cali:d; NetworkPolicy shop/web ingress"'
        ],
    }
    drop = chains["filter-cali-tw-cali1"][-1]
    found = denial("calico", "filter-cali-tw-cali1", drop, lambda chain: chains.get(chain, []))
    assert found == Denial("Calico", "ingress", (Policy("shop/web"),))


KUBE_ROUTER = "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable"


def test_kube_router_names_pod_and_policy() -> None:
    found = of("kube-router-ingress.rules", "KUBE-POD-FW-XJZ5NPUYGYG3P2L6", KUBE_ROUTER)
    assert found == Denial("kube-router", "ingress", (Policy("shop/web-only"),), pod="shop/payments")


def test_kube_routers_older_comments_name_them_too() -> None:
    found = of("kube-router-egress.rules", "KUBE-POD-FW-3WLOVMWIGFNGVVRV", KUBE_ROUTER)
    assert found == Denial("kube-router", "egress", (Policy("shop/dns-only"),), pod="shop/cart")


def test_without_the_packet_kube_routers_rules_do_not_tell_the_way() -> None:
    found = of("kube-router-ingress.rules", "KUBE-POD-FW-XJZ5NPUYGYG3P2L6", KUBE_ROUTER, None)
    assert found == Denial("kube-router", None, (Policy("shop/web-only"),), pod="shop/payments")


def test_kube_routers_nftables_chains_are_read_alike() -> None:
    chains = {
        "KUBE-POD-FW-A": [
            'fib saddr type local ip daddr 10.244.1.14 counter accept comment "from local node"',
            'ip daddr 10.244.1.14 counter jump KUBE-NWPLCY-B comment "shop/web-only policy"',
            'ip saddr 10.244.1.14 counter jump KUBE-NWPLCY-C comment "shop/dns-only policy"',
            'meta mark & 0x00010000 != 0x00010000 counter reject comment "shop/payments reject"',
        ]
    }
    rule = chains["KUBE-POD-FW-A"][-1]
    found = denial("kube-router-filter-ipv4", "KUBE-POD-FW-A", rule, lambda c: chains.get(c, []), CART_TO_PAYMENTS)
    assert found == Denial("kube-router", "ingress", (Policy("shop/web-only"),), pod="shop/payments")


def test_kube_routers_invalid_state_is_no_policy() -> None:
    assert of("kube-router-ingress.rules", "KUBE-NWPLCY-COMMON", "--ctstate INVALID -j DROP") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            'drop comment "NetworkPolicy shop/web-only ingress of pod shop/payments"',
            Denial("", "ingress", (Policy("shop/web-only"),), pod="shop/payments"),
            id="policy-way-pod",
        ),
        pytest.param(
            '-A POLICIES -m comment --comment "Network Policy shop/web-only: egress" -j DROP',
            Denial("", "egress", (Policy("shop/web-only"),)),
            id="iptables",
        ),
        pytest.param(
            'drop comment "ClusterNetworkPolicy tenants, ingress and egress"',
            Denial("", None, (Policy("tenants", "ClusterNetworkPolicy"),)),
            id="both-ways",
        ),
        pytest.param('drop comment "no policy for this"', None, id="a-policy-of-another-kind"),
        pytest.param("-A FORWARD -j DROP", None, id="no-comment"),
    ],
)
def test_a_comment_that_names_a_policy_is_enough(text: str, expected: Denial | None) -> None:
    assert denial("filter", "forward", text, lambda chain: []) == expected


def test_a_table_for_policies_needs_no_comment() -> None:
    assert denial("kube-network-policies", "postrouting", "drop", lambda chain: []) == Denial("kube-network-policies")
    assert queue_of_policies("kube-network-policies") == Denial("kube-network-policies")
    assert queue_of_policies("suricata") is None


def test_a_comment_match_is_not_a_comment() -> None:
    assert comments('-A F -m comment --comment "a b" -m comment --comment c -j DROP') == ["a b", "c"]
    assert comments('ip saddr 10.0.0.1 drop comment "a b"') == ["a b"]
