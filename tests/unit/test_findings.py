"""What the kernel reported, and what must be concluded from it. Each story is one that was seen in the lab."""

from __future__ import annotations

import socket

import pytest

from k8snet.cluster.interfaces import Owner, Role
from k8snet.cluster.inventory import Inventory
from k8snet.event import CtStatus, Encap, Event, ProbeId
from k8snet.findings.case import Case
from k8snet.findings.diagnose import diagnose
from k8snet.kernel.rules import NamedRule
from k8snet.report import Finding, Severity
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    CONFIRMED,
    DNAT_DONE,
    EMPTY,
    IP_INADDRERRORS,
    IP_RPFILTER,
    NETFILTER_DROP,
    NO_SOCKET,
    NODE,
    NOT_SPECIFIED,
    OTHERHOST,
    QUEUE_PURGE,
    TCP_ABORT_ON_DATA,
    VIP,
    WEB,
    cases,
    codes,
    drop,
    event,
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


def syn_dropped(symbol: str = "nft_do_chain") -> list[Event]:
    """A SYN that dies in FORWARD, after DNAT."""
    return [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-web-1", NETFILTER_DROP, symbol, **DNAT)]


def named(*events: Event, rule: NamedRule, **other: object) -> list[Finding]:
    """The story's findings when `rule` is what dropped its packets."""
    flows = told(*events).flows
    around = surroundings(**other)
    dead = [d for f in flows for d in Case(f, around).deaths]
    around = surroundings(rules={id(d.packet): rule for d in dead}, **other)
    return [f for flow in flows for f in diagnose(Case(flow, around))]


def rule(text: str, chain: str = "FORWARD", **other: object) -> NamedRule:
    fields: dict[str, object] = {"by": "nftrace", "table": "ip filter", "chain": chain, "text": text, "engine": "nft"}
    fields |= {"policy": text.startswith("-P"), "rejects": "-j REJECT" in text}
    return NamedRule(**(fields | other))  # type: ignore[arg-type]  # a builder by field name


def test_a_healthy_handshake_gives_no_finding() -> None:
    story = [*syn_to_backend(), *syn_ack_to_client()]
    assert codes(*story) == []
    assert cases(*story)[0].answered


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(drop(f"{VIP} > {CLIENT}", CART, "eth0", QUEUE_PURGE, "skb_queue_purge", flags=0x10), id="purge"),
        pytest.param(drop(NATTED, 77, "eth0", OTHERHOST, "ip_rcv_core"), id="flooded-copy"),
        pytest.param(drop(NATTED, WEB, "eth0", NOT_SPECIFIED, "tcp_v4_rcv"), id="duplicate-syn"),
    ],
)
def test_the_kernels_bookkeeping_is_no_finding(noise: Event) -> None:
    assert codes(*syn_to_backend(), noise, *syn_ack_to_client()) == []


def test_data_for_a_socket_that_the_server_has_closed_is_no_loss() -> None:
    late = {"flags": 0x18, "payload_len": 69, "seq": 2, "ip_id": 9, "skb": 0xFFFF_0000_0000_7777}
    sent = [out(f"{CLIENT} > {VIP}", CART, "eth0", **late), into(NATTED, WEB, "eth0", **late)]
    died = drop(NATTED, WEB, "", TCP_ABORT_ON_DATA, "tcp_v4_rcv", **late)
    assert codes(*syn_to_backend(), *syn_ack_to_client(), *sent, died) == []
    assert codes(*syn_to_backend(), *syn_ack_to_client(), *sent, died._replace(reason=NETFILTER_DROP))


@pytest.mark.parametrize("reason", [OTHERHOST, 0], ids=["with-reasons", "without-reasons"])
def test_a_frame_for_another_mac_is_a_loss_where_it_is_no_flooded_copy(reason: int) -> None:
    story = [*syn_to_backend(), drop(NATTED, WEB, "eth0", reason, "ip_rcv_core", pkt_type=3)]
    (finding,) = findings(*story)
    assert finding.code == "KERNEL_DROP"
    assert finding.where.pod == "shop/web-1"


def test_a_pod_without_a_name_that_does_not_answer_has_no_logs_to_look_at() -> None:
    story = syn_to_backend()
    (finding,) = findings(*story, owners={CART: Owner(role=Role.POD), WEB: Owner(role=Role.POD), NODE: Owner("n")})
    assert finding.code == "NO_REPLY"
    assert not any("kubectl" in line for line in finding.fix)


@pytest.mark.parametrize("symbol", ["ping_rcv", "icmp_rcv"])
@pytest.mark.parametrize("reason", [NO_SOCKET, NOT_SPECIFIED])
def test_an_echo_reply_that_finds_no_ping_socket_was_read_by_a_raw_one(symbol: str, reason: int) -> None:
    echo = {"protocol": socket.IPPROTO_ICMP, "seq": 1, "payload": 16}
    there, back = "10.244.1.10:77 > 10.244.1.11", "10.244.1.11:77 > 10.244.1.10"
    story = [out(there, CART, "eth0", **echo), into(there, WEB, "eth0", **echo)]
    story += [out(back, WEB, "eth0", **echo), into(back, CART, "eth0", **echo)]
    story += [drop(back, CART, "eth0", reason, symbol, **echo)]
    assert codes(*story) == []
    assert cases(*story)[0].answered


@pytest.mark.parametrize(("reason", "expected"), [(NOT_SPECIFIED, []), (NETFILTER_DROP, ["POD_FIREWALL_DROP"])])
def test_an_echo_request_that_the_kernel_has_answered_is_freed_like_a_loss(reason: int, expected: list[str]) -> None:
    echo = {"protocol": socket.IPPROTO_ICMP, "seq": 1, "payload": 16}
    there, back = "10.244.1.10:77 > 10.244.1.11", "10.244.1.11:77 > 10.244.1.10"
    story = [out(there, CART, "eth0", **echo), into(there, WEB, "eth0", **echo)]
    story += [drop(there, WEB, "eth0", reason, "icmp_rcv", **echo)]
    story += [out(back, WEB, "eth0", **echo), into(back, CART, "eth0", **echo)]
    assert codes(*story) == expected


def test_forward_policy_drop_is_named_with_its_command() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("-P FORWARD DROP"))
    assert finding.code == "FORWARD_POLICY_DROP"
    assert finding.title == "DROPPED on node-1 in FORWARD: the chain's policy is DROP"
    assert finding.where.rule == "-P FORWARD DROP"
    assert finding.where.hook == "forward"
    assert finding.fix[0] == "iptables-nft -P FORWARD ACCEPT"


def test_a_rule_that_drops_is_named_and_can_be_deleted() -> None:
    (finding,) = named(*syn_dropped(), rule=rule("-A FORWARD -s 10.244.1.10/32 -j DROP", engine="legacy"))
    assert finding.code == "RULE_DROP"
    assert finding.fix == ("iptables-legacy -D FORWARD -s 10.244.1.10/32 -j DROP",)


def test_a_rule_that_rejects_is_told_apart_from_one_that_drops() -> None:
    (finding,) = named(
        *syn_dropped(), icmp_error(VIP), rule=rule("-A FORWARD -j REJECT --reject-with icmp-port-unreachable")
    )
    assert finding.code == "RULE_REJECT"
    assert "the client was told: ICMP port unreachable" in finding.evidence


def test_a_drop_whose_rule_is_not_known_says_so() -> None:
    (finding,) = findings(*syn_dropped())
    assert finding.code == "KERNEL_DROP"
    assert finding.where.hook == "forward"
    assert "could not be named" in finding.title


def icmp_error(to: str, source: str = "10.244.1.1") -> Event:
    outer = icmp_header(source, "10.244.1.10")
    return into(f"{CLIENT} > {to}", CART, "eth0", encap=Encap.ICMP_ERROR, icmp_type=3, icmp_code=3, outer=outer)


def empty_service_rejected() -> list[Event]:
    way = f"{CLIENT} > {EMPTY}"
    entry = {"orig": way, "reply": f"{EMPTY} > {CLIENT}", "status": CtStatus.DST_NAT_DONE}
    return [
        out(way, CART, "eth0"),
        into(way, NODE, "veth-cart"),
        drop(way, NODE, "cni0", NETFILTER_DROP, "nft_do_chain", **entry),
        icmp_error(EMPTY),
    ]


def test_a_service_without_endpoints_is_named() -> None:
    (finding,) = findings(*empty_service_rejected())
    assert finding.code == "NO_ENDPOINTS"
    assert finding.title == "REJECTED on node-1: Service shop/empty:http has no ready endpoints"


def test_a_service_without_endpoints_is_named_by_its_rule_when_no_inventory_knows_it() -> None:
    text = '-A KUBE-SERVICES -d 10.96.0.81/32 -m comment --comment "shop/empty:http has no endpoints" -j REJECT'
    (finding,) = named(
        *empty_service_rejected(), rule=rule(text, "KUBE-SERVICES", service="shop/empty"), inventory=Inventory()
    )
    assert finding.code == "NO_ENDPOINTS"
    assert finding.title == "REJECTED on node-1: Service shop/empty:80 has no ready endpoints"
    assert finding.fix[0].startswith("kubectl -n shop get endpointslices")


def test_missing_rules_show_as_the_services_address_leaving_the_node() -> None:
    way = f"{CLIENT} > {VIP}"
    entry = {"orig": way, "reply": f"{VIP} > {CLIENT}", "status": 0x188}
    story = [out(way, CART, "eth0"), into(way, NODE, "veth-cart"), out(way, NODE, "eth0", **entry)]
    (finding,) = findings(*story)
    assert finding.code == "DNAT_MISS"
    assert finding.where.device == "eth0"


def test_a_closed_port_is_not_listening() -> None:
    story = [*syn_to_backend(), drop(NATTED, WEB, "eth0", NO_SOCKET, "tcp_v4_rcv"), *syn_ack_to_client(flags=0x14)]
    (finding,) = findings(*story)
    assert finding.code == "NOT_LISTENING"
    assert finding.where.pod == "shop/web-1"
    assert finding.title == "REJECTED by pod shop/web-1: nothing listens on tcp port 8080"


def test_a_closed_port_is_found_by_the_reset_alone_on_kernels_without_reasons() -> None:
    assert codes(*syn_to_backend(), *syn_ack_to_client(flags=0x14)) == ["NOT_LISTENING"]


def test_a_drop_in_the_pods_own_input_is_the_pods_firewall() -> None:
    story = [*syn_to_backend(), drop(NATTED, WEB, "eth0", NETFILTER_DROP, "nf_hook_slow")]
    (finding,) = findings(*story)
    assert finding.code == "POD_FIREWALL_DROP"
    assert finding.where.pod == "shop/web-1"
    assert finding.where.hook == "input"


UDP = {"protocol": socket.IPPROTO_UDP, "payload": 14, "seq": 0x6B387320}


def udp_to_backend() -> list[Event]:
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": CONFIRMED}
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0", **UDP),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart", **UDP),
        out(NATTED, NODE, "veth-web-1", **UDP, **entry),
        into(NATTED, WEB, "eth0", **UDP),
    ]


def test_a_silent_application_is_no_reply_and_its_queue_is_shown() -> None:
    (finding,) = findings(*udp_to_backend(), listening={(WEB, "udp", 8080): 512})
    assert finding.code == "NO_REPLY"
    assert "a socket has udp port 8080 open, 512 bytes wait unread" in finding.evidence


def test_no_reply_is_withheld_when_events_were_lost() -> None:
    (finding,) = findings(*udp_to_backend(), lost=1)
    assert finding.code == "LAST_SEEN"
    assert finding.severity is Severity.UNKNOWN


def test_the_reverse_path_filter_is_named_with_its_direction() -> None:
    story = [*syn_to_backend(), *syn_ack_to_client()[:2]]
    reply = {"flags": 0x12, "ip_id": 0, "seq": 7000}
    story += [drop(f"{BACKEND} > {CLIENT}", NODE, "eth0", IP_RPFILTER, "ip_rcv_finish_core", **reply)]
    (finding,) = findings(*story, rises={NODE: {"TcpExt.IPReversePathFilter": 1}})
    assert finding.code == "RP_FILTER"
    assert finding.direction == "reply"
    assert finding.where.device == "eth0"
    assert finding.title.startswith("REPLY LOST on node-1")


def test_a_node_that_does_not_forward() -> None:
    story = [*syn_to_backend()[:2], drop(NATTED, NODE, "veth-cart", IP_INADDRERRORS, "ip_error", **DNAT)]
    assert codes(*story, settings={NODE: {"net.ipv4.ip_forward": 0}}) == ["IP_FORWARD_OFF"]
    assert codes(*story, settings={NODE: {"net.ipv4.ip_forward": 1}}) == ["KERNEL_DROP"], "the sysctl is not to blame"


def test_hairpin_off_needs_the_pod_to_be_its_own_backend() -> None:
    itself = "10.244.1.10:8080"
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{itself} > {CLIENT}", "status": DNAT_DONE}
    begun = syn_to_backend()[:2]
    died = drop(f"{CLIENT} > {itself}", NODE, "veth-cart", NOT_SPECIFIED, "br_handle_frame_finish", **entry)
    assert codes(*begun, died) == ["HAIRPIN_OFF"]
    elsewhere = drop(NATTED, NODE, "veth-cart", NOT_SPECIFIED, "br_handle_frame_finish", **DNAT)
    assert codes(*begun, elsewhere) == ["KERNEL_DROP"]


def test_a_reason_that_no_entry_knows_is_reported_as_it_is() -> None:
    begun = syn_to_backend()[:2]
    died = drop(f"{CLIENT} > {VIP}", NODE, "veth-cart", 65, "ip_rcv_core")
    (finding,) = findings(*begun, died)
    assert finding.code == "KERNEL_DROP"
    assert finding.title == "DROPPED on node-1: PKT_TOO_SMALL at ip_rcv_core"
    assert finding.where.device == "veth-cart"


def test_a_lost_reply_is_not_a_lost_request() -> None:
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "info": 3}
    fields = {"flags": 0x12, "ip_id": 0, "seq": 7000} | entry
    died = drop(f"{BACKEND} > {CLIENT}", NODE, "veth-web-1", NETFILTER_DROP, "nf_hook_slow", **fields)
    (finding,) = named(
        *syn_to_backend(), *syn_ack_to_client()[:2], died, rule=rule("-A FORWARD -p tcp --sport 8080 -j DROP")
    )
    assert finding.code == "RULE_DROP"
    assert finding.direction == "reply"
    assert finding.title.startswith("REPLY LOST")


def test_an_answer_from_the_wrong_address_is_no_answer() -> None:
    # bridge-nf off: the SYN-ACK reaches the client with the pod's address, and no socket there knows it.
    way = f"{BACKEND} > {CLIENT}"
    fields = {"flags": 0x12, "ip_id": 0, "seq": 7000}
    back = [out(way, WEB, "eth0", **fields), into(way, CART, "eth0", **fields)]
    story = [*syn_to_backend(), *back, drop(way, CART, "eth0", NO_SOCKET, "tcp_v4_rcv", **fields)]
    assert not cases(*story)[0].answered
    (finding,) = findings(*story)
    assert finding.direction == "reply"
    assert finding.where.pod == "shop/cart"


def test_a_request_that_left_the_node_unanswered() -> None:
    way = f"{CLIENT} > 203.0.113.9:443"
    assert codes(out(way, CART, "eth0"), into(way, NODE, "veth-cart"), out(way, NODE, "eth0")) == ["LEFT_NODE"]


def test_what_was_last_seen_is_not_called_lost() -> None:
    (finding,) = findings(*syn_to_backend()[:2])
    assert finding.code == "LAST_SEEN"
    assert finding.severity is Severity.UNKNOWN


def test_a_retransmission_that_came_through_makes_a_drop_good() -> None:
    data = {"flags": 0x18, "payload": 100, "seq": 2000}
    lost = [out(f"{CLIENT} > {VIP}", CART, "eth0", ip_id=9, **data),
            drop(NATTED, NODE, "veth-web-1", 65, "ip_rcv_core", ip_id=9, **data)]  # fmt: skip
    again = [out(f"{CLIENT} > {VIP}", CART, "eth0", ip_id=10, **data), into(NATTED, WEB, "eth0", ip_id=10, **data)]
    handshake = [*syn_to_backend(), *syn_ack_to_client()]
    assert codes(*handshake, *lost, *again) == []
    assert codes(*handshake, *lost) == ["KERNEL_DROP"]


def test_a_packet_without_a_header_breaks_nothing() -> None:
    blank = event(ProbeId.NET_DEV_XMIT, f"{CLIENT} > {VIP}", NODE, "eth0")._replace(packet=None)
    assert codes(*syn_to_backend(), blank, *syn_ack_to_client()) == []


def test_a_rules_comment_cannot_run_in_the_shell_that_the_fix_is_pasted_into() -> None:
    text = '-A FORWARD -m comment --comment "$(reboot) `reboot`" -j DROP'
    (finding,) = named(*syn_dropped(), rule=rule(text))
    assert finding.where.rule == text
    assert finding.fix == ("iptables-nft -D FORWARD -m comment --comment '$(reboot) `reboot`' -j DROP",)
