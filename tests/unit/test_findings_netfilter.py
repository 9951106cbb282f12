"""Packet filters and what they enforce: each story was seen in the lab, beside one that only looks like it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k8snet.cluster.inventory import Inventory, NetworkPolicy, PolicyPort, PolicyRule, Selector
from k8snet.event import CtStatus, Encap, Event
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.kernel.policies import Denial, Policy
from k8snet.kernel.rules import NamedRule
from k8snet.kernel.ruletrace import RuleStep
from k8snet.report import Finding, Severity
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    DNAT_DONE,
    INVENTORY,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    VIP,
    WEB,
    cases,
    codes,
    drop,
    findings,
    icmp_header,
    into,
    out,
    surroundings,
    syn_ack_to_client,
    syn_to_backend,
    told,
)  # fmt: skip

NATTED = f"{CLIENT} > {BACKEND}"
DNAT = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": DNAT_DONE}
REPLY = {"flags": 0x12, "ip_id": 0, "seq": 7000}
DATA = {"flags": 0x18, "payload": 100, "seq": 2000, "ip_id": 9}


def named(*events: Event, rule: NamedRule, **other: object) -> list[Finding]:
    """The story's findings when `rule` is what dropped its packets."""
    flows = told(*events).flows
    dead = [d for f in flows for d in Case(f, surroundings(**other)).deaths]
    around = surroundings(rules={id(d.packet): rule for d in dead}, **other)
    return [f for flow in flows for f in diagnose(Case(flow, around))]


def rule(text: str, chain: str = "FORWARD", **other: object) -> NamedRule:
    fields: dict[str, object] = {"by": "nftrace", "table": "ip filter", "chain": chain, "text": text, "engine": "nft"}
    fields |= {"policy": text.startswith(("-P", "policy")), "rejects": "REJECT" in text or "reject" in text}
    return NamedRule(**(fields | other))  # type: ignore[arg-type]  # a builder by field name


def syn_dropped(symbol: str = "nft_do_chain") -> list[Event]:
    """A SYN that dies in FORWARD, after DNAT."""
    return [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, symbol, **DNAT)]


def syn_ack_dropped(**conntrack: object) -> list[Event]:
    """The answer dies in FORWARD."""
    back = f"{BACKEND} > {CLIENT}"
    died = drop(back, NODE, "veth-cart", NETFILTER_DROP, "nft_do_chain", **REPLY, **conntrack)
    return [*syn_to_backend(), *syn_ack_to_client()[:2], died]


def data_dropped(**conntrack: object) -> list[Event]:
    """The handshake has succeeded, and what the client sends then dies in FORWARD."""
    handshake = [*syn_to_backend(), *syn_ack_to_client(), out(f"{CLIENT} > {VIP}", CART, "eth0", **DATA)]
    return [*handshake, drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, "nft_do_chain", **DATA, **conntrack)]


# --- network policies ------------------------------------------------------------------------------------------------

END_OF_TIER = '-A cali-tw-veth1 -m comment --comment "Drop if no policies passed packet" -j DROP'


def test_a_policy_that_does_not_allow_it_is_named_with_pod_and_command() -> None:
    denial = Denial("Calico", "ingress", (Policy("shop/web-only"),))
    (finding,) = named(*syn_dropped(), rule=rule(END_OF_TIER, "cali-tw-veth1", owner="Calico", denial=denial))
    assert finding.code == "NETPOL_DENY"
    assert finding.title == "DROPPED on node-1: NetworkPolicy shop/web-only does not allow ingress to pod shop/web-1"
    assert finding.fix[0] == "kubectl -n shop describe networkpolicy web-only"
    assert "from pod shop/cart" in finding.fix[1]
    assert "port 8080/TCP" in finding.fix[1]


def test_egress_is_the_clients_policy() -> None:
    denial = Denial("Calico", "egress", (Policy("shop/a"), Policy("shop/b"), Policy("shop/c")))
    (finding,) = named(*syn_dropped(), rule=rule(END_OF_TIER, "cali-fw-veth1", denial=denial))
    assert finding.title == "DROPPED on node-1: none of 3 network policies allows egress from pod shop/cart"
    assert "policies asked: shop/a, shop/b, shop/c" in finding.evidence
    assert sum(line.startswith("kubectl") for line in finding.fix) == 3


def test_a_policy_that_denies_by_itself_is_told_from_one_that_does_not_allow() -> None:
    denial = Denial("Calico", "egress", (Policy("no-metadata", "GlobalNetworkPolicy"),), explicit=True)
    (finding,) = named(*syn_dropped(), rule=rule("-A cali-po-_x -j DROP", "cali-po-_x", denial=denial))
    assert "GlobalNetworkPolicy no-metadata denies egress from pod shop/cart" in finding.title
    assert finding.fix[0] == "kubectl get globalnetworkpolicy no-metadata -o yaml"


def test_policies_without_a_name_are_known_by_their_chain() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("drop", "cali-tw-veth1", denial=Denial("Calico", "ingress")))
    assert finding.title.endswith("the network policies in cali-tw-veth1 do not allow ingress to pod shop/web-1")
    assert finding.fix[0] == "kubectl -n shop get networkpolicy"


@pytest.mark.parametrize(
    ("pod", "toward"),
    [
        pytest.param("shop/web-1", "ingress to pod shop/web-1", id="to-it"),
        pytest.param("shop/cart", "egress from pod shop/cart", id="from-it"),
        pytest.param("shop/gone", "traffic of pod shop/gone", id="unknown"),
    ],
)
def test_a_rule_that_names_its_pod_tells_the_way_even_when_a_counter_named_it(pod: str, toward: str) -> None:
    denial = Denial("kube-router", None, (Policy("shop/web-only"),), pod=pod)
    other = rule("-A KUBE-POD-FW-X -j REJECT", by="counters", denial=denial, candidates=("filter: -A FORWARD -j DROP",))
    (finding,) = named(*syn_dropped(), rule=other)
    assert finding.title.endswith(f"NetworkPolicy shop/web-only does not allow {toward}")
    assert "filter: -A FORWARD -j DROP" in finding.also


def test_a_policy_that_rejects_is_a_rejection() -> None:
    denial = Denial("kube-router", "ingress", (Policy("shop/web-only"),), pod="shop/web-1")
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    told_no = into(f"{CLIENT} > {VIP}", CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, outer=outer)
    (finding,) = named(*syn_dropped(), told_no, rule=rule("-A KUBE-POD-FW-X -j REJECT", denial=denial))
    assert finding.code == "NETPOL_DENY"
    assert finding.title.startswith("REJECTED on node-1: NetworkPolicy shop/web-only")


def test_a_names_policy_cannot_run_in_the_shell() -> None:
    denial = Denial("", "ingress", (Policy("shop/$(reboot)"),))
    (finding,) = named(*syn_dropped(), rule=rule("drop", denial=denial))
    assert finding.fix[0] == "kubectl -n shop describe networkpolicy '$(reboot)'"


def test_a_rule_of_calico_that_enforces_no_policy_stays_a_rule() -> None:
    text = '-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP'
    (finding,) = named(*syn_dropped(), rule=rule(text, "cali-from-wl-dispatch", owner="Calico"))
    assert finding.code == "RULE_DROP"


def queued(table: str) -> list[Finding]:
    """A program in user space has dropped what a rule of `table` gave to it."""
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", NOT_SPECIFIED, "nfqnl_reinject", **DNAT)]
    (flow,) = told(*story).flows
    step = RuleStep(
        0, NODE, "nft", "inet", table, "postrouting", "rule", 7, None, "queue", None, 1, None, None, None, 0,
        None, None, "postrouting", None, 0,
    )  # fmt: skip
    flow.packets[0].rules.append(step)
    return diagnose(Case(flow, surroundings()))


def test_a_program_that_enforces_policies_from_a_queue_is_named() -> None:
    (finding,) = queued("kube-network-policies")
    assert finding.code == "NETPOL_DENY"
    assert (finding.where.table, finding.where.chain) == ("inet kube-network-policies", "postrouting")
    assert finding.where.hook == "postrouting"


def test_another_program_behind_a_queue_is_no_policy() -> None:
    (finding,) = queued("suricata")
    assert finding.code == "KERNEL_DROP"


WEB_POD = next(pod for pod in INVENTORY.pods if pod.key == "shop/web-1")


def selecting(name: str, *rules: PolicyRule, port: int | None = None) -> NetworkPolicy:
    """A policy of shop/web-1, that allows no ingress but what these rules, or this port, say."""
    allowed = (*rules, *((PolicyRule(ports=(PolicyPort("TCP", port),)),) if port else ()))
    return NetworkPolicy("shop", name, Selector((("app", "web"),)), ingress=True, egress=False, ingress_rules=allowed)


def with_policies(*policies: NetworkPolicy) -> dict[str, Inventory]:
    """The stage with these objects, and the label that they select."""
    pods = tuple(replace(p, labels=(("app", "web"),)) if p is WEB_POD else p for p in INVENTORY.pods)
    return {"inventory": replace(INVENTORY, pods=pods, policies=policies)}


def test_the_objects_say_why_the_rule_is_there() -> None:
    denial = Denial("Calico", "ingress", (Policy("shop/web-only"),))
    end = rule(END_OF_TIER, "cali-tw-veth1", owner="Calico", denial=denial)
    (finding,) = named(*syn_dropped(), rule=end, **with_policies(selecting("web-only", port=9090)))
    assert finding.evidence[-1] == (
        "inventory: no NetworkPolicy allows ingress to pod shop/web-1 from pod shop/cart, port 8080/TCP, "
        "and NetworkPolicy shop/web-only selects it for ingress"
    )
    (finding,) = named(*syn_dropped(), rule=end, **with_policies(selecting("web-only", port=8080)))
    assert finding.evidence[-1].startswith("inventory: NetworkPolicy shop/web-only allows ingress to pod shop/web-1")
    assert finding.also[0].startswith("the NetworkPolicies allow it by now")


def test_policies_that_no_rule_names_are_named_by_the_objects() -> None:
    denied = rule("drop", "postrouting", denial=Denial("kube-network-policies", "ingress"))
    (finding,) = named(*syn_dropped(), rule=denied, **with_policies(selecting("web-only"), selecting("other", port=1)))
    assert finding.title.endswith(
        "NetworkPolicy shop/web-only and NetworkPolicy shop/other do not allow ingress to pod shop/web-1"
    )
    (finding,) = named(*syn_dropped(), rule=denied, **with_policies(selecting("web-only", PolicyRule())))
    assert finding.title.endswith("the network policies in postrouting do not allow ingress to pod shop/web-1")


def test_a_drop_without_a_name_may_be_a_policys() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("drop", "x"), **with_policies(selecting("web-only")))
    assert (finding.code, finding.also) == ("RULE_DROP", ())
    (finding,) = findings(*syn_dropped(), **with_policies(selecting("web-only")))
    assert finding.code == "KERNEL_DROP"
    assert finding.also == (
        "no NetworkPolicy allows ingress to pod shop/web-1 from pod shop/cart, port 8080/TCP, "
        "and NetworkPolicy shop/web-only selects it for ingress",
    )


def test_a_served_flow_hears_nothing_of_policies() -> None:
    assert findings(*syn_to_backend(), *syn_ack_to_client(), **with_policies(selecting("web-only"))) == []


# --- conntrack's INVALID ---------------------------------------------------------------------------------------------

INVALID = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"


@pytest.mark.parametrize("text", [INVALID, 'ct state invalid counter drop comment "x"'])
def test_an_answer_to_a_syn_that_conntrack_never_saw_is_invalid(text: str) -> None:
    (finding,) = named(*syn_ack_dropped(), rule=rule(text, "KUBE-FORWARD"), rises={NODE: {"conntrack.invalid": 3}})
    assert finding.code == "CT_INVALID"
    assert finding.direction == "reply"
    assert finding.title.startswith("REPLY LOST on node-1: conntrack calls the SYN-ACK INVALID")
    assert "conntrack.invalid rose by 3" in finding.evidence
    assert not any("tcp_loose" in line for line in finding.fix)


def test_data_of_a_connection_that_conntrack_has_forgotten_is_invalid() -> None:
    settings = {NODE: {"net.netfilter.nf_conntrack_tcp_loose": 0}}
    (finding,) = named(*data_dropped(), rule=rule(INVALID, "KUBE-FORWARD"), settings=settings)
    assert finding.code == "CT_INVALID"
    assert "conntrack calls a packet of 100 bytes INVALID" in finding.title
    assert finding.fix[-1].endswith("sysctl -w net.netfilter.nf_conntrack_tcp_loose=1")


def test_a_packet_that_conntrack_knows_is_not_invalid() -> None:
    entry = DNAT | {"status": CONFIRMED | CtStatus.SEEN_REPLY}
    (finding,) = named(*data_dropped(**entry), rule=rule("-A KUBE-FORWARD -j DROP", "KUBE-FORWARD"))
    assert finding.code == "RULE_DROP"
    (finding,) = named(*data_dropped(**entry), rule=rule(INVALID, "KUBE-FORWARD"))
    assert finding.code == "RULE_DROP", "the rule was named by a counter, and another packet had moved it"


def test_a_late_packet_of_a_closed_connection_that_is_dropped_as_invalid_is_no_finding() -> None:
    reset = {"flags": 0x04, "ip_id": 12, "seq": 3000}
    late = [
        out(f"{CLIENT} > {VIP}", CART, "eth0", **reset),
        drop(f"{CLIENT} > {VIP}", NODE, "cni0", NETFILTER_DROP, "nft_do_chain", **reset),
    ]
    assert named(*syn_to_backend(), *syn_ack_to_client(), *late, rule=rule(INVALID, "KUBE-FORWARD")) == []


# --- policies of chains, rules ---------------------------------------------------------------------------------------


def syn_to_node() -> list[Event]:
    """A SYN for the node itself, which dies in INPUT."""
    way = f"{CLIENT} > 192.168.50.1:10250"
    entry = {"orig": way, "reply": f"192.168.50.1:10250 > {CLIENT}", "status": CtStatus.DST_NAT_DONE}
    return [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        into(way, NODE, "cni0"),
        drop(way, NODE, "cni0", NETFILTER_DROP, "nft_do_chain", **entry),
    ]


def test_the_policy_of_input_is_named_with_its_command() -> None:
    (finding,) = named(*syn_to_node(), rule=rule("-P INPUT DROP", "INPUT", hook="input"))
    assert finding.code == "CHAIN_POLICY_DROP"
    assert finding.where.hook == "input"
    assert finding.title == "DROPPED on node-1 in INPUT: the chain's policy is DROP"
    assert finding.fix == ("iptables-nft -P INPUT ACCEPT",)


def test_the_policy_of_an_nftables_chain_has_nfts_command() -> None:
    (finding,) = named(*syn_to_node(), rule=rule("policy drop", "guard", table="inet site"))
    assert finding.code == "CHAIN_POLICY_DROP"
    assert finding.fix[-1] == "nft chain inet site guard '{ policy accept ; }'"


def test_the_policy_of_forward_is_another_finding() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("-P FORWARD DROP"))
    assert finding.code == "FORWARD_POLICY_DROP"


def test_a_rule_of_an_nftables_table_is_deleted_by_its_handle() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("tcp dport 8080 drop", "guard", table="inet site", handle=4))
    assert finding.code == "RULE_DROP"
    assert finding.fix == ("nft -a list chain inet site guard", "nft delete rule inet site guard handle 4")


def test_a_rule_that_somebody_writes_again_is_not_deleted() -> None:
    owned = rule("drop", "cluster-ips-check", table="ip kube-proxy", handle=4, owner="kube-proxy")
    (finding,) = named(*syn_dropped(), rule=owned)
    assert not any("delete" in line for line in finding.fix)


def test_a_drop_of_an_answered_connection_that_came_through_again_is_no_finding() -> None:
    entry = DNAT | {"status": CONFIRMED | CtStatus.SEEN_REPLY}
    lost = data_dropped(**entry)
    again = into(NATTED, WEB, "eth0", **(DATA | {"ip_id": 10}))
    assert named(*lost, again, rule=rule("-A FORWARD -m limit -j DROP")) == []


RESET = {"flags": 0x14, "ip_id": 0, "seq": 0, "skb": 0xFFFF_0000_0000_6790}


def reset_from(source: str) -> list[Event]:
    """The node's REJECT answers with a reset, bridged traffic: it comes from `source`."""
    way = f"{source} > {CLIENT}"
    return [
        out(way, NODE, "veth-cart", **RESET),
        into(way, CART, "eth0", **RESET),
        drop(way, CART, "eth0", NO_SOCKET, "tcp_v4_rcv", **RESET),
    ]


REJECT = "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset"


def test_a_reset_that_nat_did_not_see_is_not_believed() -> None:
    (finding,) = named(*syn_dropped(), *reset_from(BACKEND), rule=rule(REJECT))
    assert finding.code == "RULE_REJECT"
    assert (
        finding.title == "DROPPED on node-1 in FORWARD: a rule in FORWARD rejects, and the client does not believe it"
    )
    assert f"the RST that reached the client: {BACKEND} → {CLIENT}" in finding.evidence


def test_a_reset_from_the_services_address_is_believed() -> None:
    (finding,) = named(*syn_dropped(), *reset_from(VIP)[:2], rule=rule(REJECT))
    assert finding.code == "RULE_REJECT"
    assert finding.title == "REJECTED on node-1 in FORWARD: a rule in FORWARD"
    assert "the client was told: RST" in finding.evidence


def test_what_the_pod_itself_drops_on_its_way_out_is_the_pods_firewall() -> None:
    died = drop(f"{CLIENT} > {VIP}", CART, "", NETFILTER_DROP, "nft_do_chain")  # no device yet
    (finding,) = named(died, rule=rule("-A OUTPUT -p tcp -j DROP", "OUTPUT", hook="output"))
    assert finding.code == "POD_FIREWALL_DROP"
    assert finding.where.hook == "output"
    assert finding.where.pod == "shop/cart"


# --- both back ends --------------------------------------------------------------------------------------------------

BOTH = {NODE: {"legacy": ("filter", "nat"), "nft": ("inet site",)}}


def test_a_node_with_both_back_ends_is_warned_of_beside_a_healthy_flow() -> None:
    (finding,) = findings(*syn_to_backend(), *syn_ack_to_client(), tables=BOTH)
    assert (finding.code, finding.severity) == ("MIXED_BACKENDS", Severity.WARN)
    assert finding.where.node == "node-1"
    assert finding.title == "MIXED on node-1: iptables-legacy has rules in filter, nat, nf_tables in inet site"
    assert "nf_tables has rules in: inet site" in finding.evidence


def test_the_warning_stands_beside_what_dropped_the_packet() -> None:
    found = named(*syn_dropped(), rule=rule("-A FORWARD -j DROP", engine="legacy", table="filter"), tables=BOTH)
    assert [f.code for f in found] == ["RULE_DROP", "MIXED_BACKENDS"]


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param({}, id="one-back-end"),
        pytest.param({NODE: {"legacy": ("filter",), "nft": ()}}, id="nft-empty"),
        pytest.param({NODE: {"legacy": (), "nft": ("inet site",)}}, id="legacy-empty"),
        pytest.param({CART: {"legacy": ("nat",), "nft": ("inet x",)}}, id="inside-a-pod"),
    ],
)
def test_no_warning_without_a_mixed_node(tables: object) -> None:
    assert codes(*syn_to_backend(), *syn_ack_to_client(), tables=tables) == []


# --- said by others --------------------------------------------------------------------------------------------------


def answered_from_outside(flags: int = 0x14) -> list[Event]:
    """A SYN leaves the node, and something behind tun0 answers."""
    way, back = f"{CLIENT} > 203.0.113.50:443", f"203.0.113.50:443 > {CLIENT}"
    sent = [out(way, CART, "eth0"), into(way, NODE, "veth-cart"), out(way, NODE, "tun0")]
    fields = {"flags": flags, "ip_id": 0, "seq": 0}
    return [*sent, into(back, NODE, "tun0", **fields), out(back, NODE, "veth-cart", **fields),
            into(back, CART, "eth0", **fields)]  # fmt: skip


def test_a_reset_from_outside_is_a_refusal_by_somebody_else() -> None:
    (finding,) = findings(*answered_from_outside())
    assert finding.code == "REFUSED"
    assert finding.title == "REJECTED: RST came from 203.0.113.50"
    assert finding.where.device == "tun0"


def test_an_icmp_error_from_outside_is_a_refusal_with_its_senders_address() -> None:
    way, outer = f"{CLIENT} > 203.0.113.50:443", icmp_header("198.51.100.1", "10.244.1.10")
    error = {"encap": Encap.ICMP_ERROR, "icmp_type": 3, "icmp_code": 10, "outer": outer}
    story = [*answered_from_outside()[:3], into(way, NODE, "tun0", **error), into(way, CART, "eth0", **error)]
    (finding,) = findings(*story)
    assert finding.code == "REFUSED"
    assert finding.title == "REJECTED: ICMP host prohibited came from 198.51.100.1"


def test_an_answer_from_outside_is_no_refusal() -> None:
    assert codes(*answered_from_outside(flags=0x12)) == []


def test_a_refusal_that_quotes_what_the_client_never_sent_refuses_nothing() -> None:
    outer = icmp_header("10.244.1.1", "10.244.1.10")
    error = {"encap": Encap.ICMP_ERROR, "icmp_type": 3, "icmp_code": 3, "outer": outer}
    (case,) = cases(*syn_to_backend(), into(NATTED, CART, "eth0", **error))
    assert case.refused_by is None
    assert case.unbelieved is not None
