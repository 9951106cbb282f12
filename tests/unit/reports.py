"""Reports written by hand, one for each thing that a reader may meet: what the golden texts and documents show.

The stage is the lab's: pod shop/cart, Service shop/payments 10.96.0.80:80 → 8080, pod shop/payments-5c9b on node-1.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from k8snet.cluster.allowance import Allowance
from k8snet.event import FiveTuple
from k8snet.report import (
    Difference,
    DnsQuery,
    DnsResolver,
    DnsView,
    Expected,
    Finding,
    FlowView,
    Hop,
    Party,
    Path,
    Place,
    Report,
    Severity,
    Step,
    Verdict,
    Way,
)

TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP

NODE, CART, PAYMENTS = 4026531840, 4026532301, 4026532377  # netns
CLIENT = Party("10.244.1.10", 50508, pod="shop/cart-7d4f", node="node-1")
SERVER = Party("10.96.0.80", 80, service="shop/payments")
BACKEND = Party("10.244.1.11", 8080, pod="shop/payments-5c9b", node="node-1")
NAMES: Final = {CART: ("node-1", "shop/cart-7d4f"), PAYMENTS: ("node-1", "shop/payments-5c9b"), NODE: ("node-1", None)}


def five(way: str, protocol: int = TCP) -> FiveTuple:
    """A header from `10.244.1.10:50508 > 10.96.0.80:80`."""
    (saddr, sport), (daddr, dport) = (
        end.rsplit(":", 1) if protocol != ICMP else (end, "0") for end in way.split(" > ")
    )
    return FiveTuple(ip_address(saddr.strip("[]")), ip_address(daddr.strip("[]")), int(sport), int(dport), protocol)


ASKED = five("10.244.1.10:50508 > 10.96.0.80:80")
TRANSLATED = five("10.244.1.10:50508 > 10.244.1.11:8080")
ANSWER = TRANSLATED.reversed()
ANSWERED = ASKED.reversed()
FORWARD = "table ip filter chain FORWARD"
CHAINS = "KUBE-SVC-NPX46M4PTMTKRN6Y > KUBE-SEP-2XZ7QKRUOEDKOXAB"


def hop(
    us: float,
    netns: int,
    direction: str,
    device: str | None,
    header: FiveTuple,
    *,
    nat: str | None = None,
    encap: str | None = None,
    verdict: str | None = None,
    detail: str | None = None,
    names: dict[int, tuple[str | None, str | None]] | None = None,
) -> Hop:
    """A hop in the netns of one of the parties."""
    node, pod = (names or NAMES).get(netns, (None, None))
    return Hop(us, netns, node, pod, device, direction, header, nat, encap, verdict, detail)


DNAT = hop(50, NODE, "prerouting", None, TRANSLATED, nat="DNAT to 10.244.1.11:8080", detail=CHAINS)
SYN_TO_NODE = (hop(0, CART, "out", "eth0", ASKED), hop(11, NODE, "in", "veth3f2a", ASKED))
SYN_TO_POD = (
    *SYN_TO_NODE,
    DNAT,
    hop(69, NODE, "out", "veth91c0", TRANSLATED),
    hop(75, PAYMENTS, "in", "eth0", TRANSLATED),
)
SYN_ACK_TO_POD = (
    hop(0, PAYMENTS, "out", "eth0", ANSWER),
    hop(6, NODE, "in", "veth91c0", ANSWER),
    hop(21, NODE, "postrouting", None, ANSWERED, nat="DNAT undone: from 10.96.0.80:80"),
    hop(22, NODE, "out", "veth3f2a", ANSWERED),
    hop(27, CART, "in", "eth0", ANSWERED),
)
SERVICE = FlowView(CLIENT, SERVER, BACKEND, "tcp", ASKED, ANSWER, True)


def request(hops: tuple[Hop, ...], ended: str = "dropped", never: str | None = "shop/payments-5c9b") -> Path:
    """A SYN's way, the last of three that the client sent."""
    return Path("request", "SYN", 3, 3, hops, ended, never)


def failed(verdict: Verdict, finding: Finding, *paths: Path, flow: FlowView = SERVICE) -> Report:
    """Three connections, none answered, one cause."""
    return Report(verdict, flow, paths, (replace(finding, times=3),), 3, 0, {}, finding.named_by or "nftrace")


def fail(code: str, title: str, where: Place, why: str, **more: object) -> Finding:
    """A FAIL of the catalogue."""
    rest = {"evidence": (), "fix": (), "direction": "request"} | more
    return Finding(code, Severity.FAIL, title, where, why, **rest)  # type: ignore[arg-type]  # named by the caller


def forward_policy_drop() -> Report:
    """The story of the README."""
    rule = "-P FORWARD DROP"
    return failed(
        Verdict.DROPPED,
        fail(
            "FORWARD_POLICY_DROP",
            "DROPPED on node-1 in FORWARD: the chain's policy is DROP",
            Place(NODE, "node-1", hook="forward", table="ip filter", chain="FORWARD", rule=rule),
            "No rule of ip filter FORWARD accepted the packet, and the chain's policy is DROP.",
            evidence=(
                f"nftrace: ip filter FORWARD: {rule}",
                "kfree_skb: NETFILTER_DROP at nft_do_chain, device veth91c0",
                "conntrack: DNAT done, not confirmed",
            ),
            fix=(
                "iptables-nft -P FORWARD ACCEPT",
                "# Who set it may set it again: docs/findings/FORWARD_POLICY_DROP.md says how to make it last.",
            ),
            named_by="nftrace",
            also=("docker sets this policy when it switches IP forwarding on; firewalld has it while it reloads",),
        ),
        request(
            (
                *SYN_TO_NODE,
                DNAT,
                hop(63, NODE, "forward", None, TRANSLATED, verdict="policy DROP", detail=FORWARD),
            )
        ),
    )


def rule_reject() -> Report:
    """A rule says no, and an ICMP error tells the client."""
    rule = "-A FORWARD -s 10.244.1.10/32 -p tcp -m tcp --dport 8080 -j REJECT --reject-with icmp-port-unreachable"
    return failed(
        Verdict.REJECTED,
        fail(
            "RULE_REJECT",
            "REJECTED on node-1 in FORWARD: a rule in FORWARD",
            Place(NODE, "node-1", hook="forward", table="filter", chain="FORWARD", rule=rule),
            "The rule stands in filter FORWARD and matched this packet.",
            evidence=(
                f"nflog: filter FORWARD: {rule}",
                "kfree_skb: NETFILTER_DROP at nf_hook_slow, device veth91c0",
                "the client was told: ICMP port unreachable",
            ),
            fix=(f"iptables-legacy -D {rule[3:]}",),
            named_by="nflog",
        ),
        request(
            (
                *SYN_TO_NODE,
                DNAT,
                hop(58, NODE, "forward", None, TRANSLATED, verdict="REJECT", detail="table filter chain FORWARD"),
            )
        ),
        Path(
            "reply",
            "ICMP port unreachable",
            3,
            3,
            (hop(0, NODE, "out", "veth3f2a", ANSWERED), hop(9, CART, "in", "eth0", ANSWERED)),
            "delivered",
        ),
    )


def no_endpoints() -> Report:
    """Nobody behind the Service, so nobody in the third line either."""
    rule = (
        '-A KUBE-SERVICES -d 10.96.0.81/32 -p tcp -m comment --comment "shop/empty:http has no endpoints" '
        "-m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable"
    )
    header = five("10.244.1.10:50508 > 10.96.0.81:80")
    flow = FlowView(CLIENT, Party("10.96.0.81", 80, service="shop/empty"), None, "tcp", header, header.reversed())
    return failed(
        Verdict.REJECTED,
        fail(
            "NO_ENDPOINTS",
            "REJECTED on node-1: Service shop/empty:http has no ready endpoints",
            Place(NODE, "node-1", device="cni0", hook="forward", table="ip filter", chain="KUBE-SERVICES", rule=rule),
            "No ready pod stands behind shop/empty:http (2 are not ready), so kube-proxy has nothing to send the "
            "connection to.",
            evidence=(
                f"nftrace: ip filter KUBE-SERVICES: {rule}",
                "kfree_skb: NETFILTER_DROP at nft_do_chain, device cni0",
                "conntrack: no DNAT rule matched, not confirmed",
                "the client was told: ICMP port unreachable",
                "inventory: shop/empty:http has 2 endpoints, 0 ready",
            ),
            fix=(
                "kubectl -n shop get endpointslices -l kubernetes.io/service-name=empty",
                "kubectl -n shop get service empty -o jsonpath='{.spec.selector}'",
                "# Compare the selector with the labels of the pods, and the pods' readiness probes with their state.",
            ),
            named_by="nftrace",
        ),
        request(
            (
                hop(0, CART, "out", "eth0", header),
                hop(10, NODE, "in", "veth3f2a", header),
                hop(19, NODE, "in", "cni0", header),
                hop(31, NODE, "forward", None, header, verdict="REJECT", detail="table ip filter chain KUBE-SERVICES"),
            ),
            never=None,
        ),
        flow=flow,
    )


def dnat_miss() -> Report:
    """The Service's address leaves the node as it is."""
    flow = FlowView(CLIENT, SERVER, None, "tcp", ASKED, ASKED.reversed())
    return failed(
        Verdict.NO_REPLY,
        fail(
            "DNAT_MISS",
            "NOT TRANSLATED on node-1: the packet to Service shop/payments:http left by eth0 to 10.96.0.80",
            Place(NODE, "node-1", device="eth0"),
            "10.96.0.80 exists only in kube-proxy's rules, and none of them matched this packet, although the Service "
            "has 1 ready endpoint.",
            evidence=(
                "10.244.1.10:50508 → 10.96.0.80:80 left by eth0 of node-1",
                "conntrack: no DNAT rule matched, confirmed",
            ),
            fix=(
                "iptables-save -t nat | grep -e '-A PREROUTING' -e 10.96.0.80",
                "nft list table ip kube-proxy",
                "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide",
                "# kube-proxy writes its rules again when it starts: restart it if it runs and the rules are missing.",
            ),
            also=("another component than kube-proxy handles Services here, and did not handle this one",),
        ),
        request(
            (
                *SYN_TO_NODE,
                hop(19, NODE, "in", "cni0", ASKED),
                hop(34, NODE, "out", "eth0", ASKED),
            ),
            ended="last seen",
            never=None,
        ),
        flow=flow,
    )


def not_listening() -> Report:
    """The pod's kernel answers with a reset."""
    return failed(
        Verdict.REJECTED,
        fail(
            "NOT_LISTENING",
            "REJECTED by pod shop/payments-5c9b: nothing listens on tcp port 8080",
            Place(PAYMENTS, "node-1", "shop/payments-5c9b", "eth0"),
            "The request arrived in the pod, and the kernel answered with a reset: no process has port 8080 open "
            "there.",
            evidence=("kfree_skb: NO_SOCKET at tcp_v4_rcv, device eth0", "RST left eth0"),
            fix=(
                "nsenter --net=/run/netns/payments ss -Htlnp 'sport = :8080'",
                "kubectl -n shop get service payments -o jsonpath='{.spec.ports}'",
                "# Its targetPort sends port 80 to 8080: compare with what the container listens on.",
            ),
            also=("the process listens on 127.0.0.1 only, or on the other address family",),
        ),
        Path(
            "request",
            "SYN",
            1,
            1,
            (*SYN_TO_POD, hop(88, PAYMENTS, "in", "eth0", TRANSLATED, verdict="NO_SOCKET", detail="in tcp_v4_rcv")),
            "dropped",
        ),
        Path("reply", "RST", 1, 1, SYN_ACK_TO_POD, "delivered"),
    )


def pod_firewall_drop() -> Report:
    """A rule in the backend's own netns."""
    rule = "-A INPUT -p tcp -m tcp --dport 8080 -j DROP"
    return failed(
        Verdict.DROPPED,
        fail(
            "POD_FIREWALL_DROP",
            "DROPPED in pod shop/payments-5c9b, INPUT: rule of the pod's own firewall",
            Place(
                PAYMENTS, "node-1", "shop/payments-5c9b", "eth0", "input", table="ip filter", chain="INPUT", rule=rule
            ),
            "The packet died inside the pod's network namespace: something in the pod (a sidecar, an init container, "
            "the image's own firewall) has put packet filter rules there.",
            evidence=(
                f"nftrace: ip filter INPUT: {rule}",
                "kfree_skb: NETFILTER_DROP at nft_do_chain, device eth0",
                "conntrack: DNAT done, confirmed",
            ),
            fix=(f"nsenter --net=/run/netns/payments iptables-nft -D {rule[3:]}",),
            named_by="nftrace",
        ),
        request(
            (
                *SYN_TO_POD,
                hop(97, PAYMENTS, "input", None, TRANSLATED, verdict="DROP", detail="table ip filter chain INPUT"),
            ),
            never=None,
        ),
    )


def udp_no_reply() -> Report:
    """Delivered, never answered."""
    asked, translated = (
        five(way, UDP) for way in ("10.244.1.10:41812 > 10.96.0.90:514", "10.244.1.10:41812 > 10.244.1.11:5514")
    )
    return Report(
        Verdict.NO_REPLY,
        FlowView(
            replace(CLIENT, port=41812),
            Party("10.96.0.90", 514, service="shop/syslog"),
            replace(BACKEND, port=5514, pod="shop/syslog-0"),
            "udp",
            asked,
            translated.reversed(),
            True,
        ),
        (
            Path(
                "request",
                "32 bytes",
                1,
                1,
                tuple(
                    replace(h, header=translated if h.header == TRANSLATED else asked)
                    for h in SYN_TO_POD
                    if h is not DNAT
                ),
                "delivered",
            ),
        ),
        (
            fail(
                "NO_REPLY",
                "NO REPLY from pod shop/syslog-0: the request arrived, the application did not answer",
                Place(PAYMENTS, "node-1", "shop/syslog-0", "eth0"),
                "The packet was delivered to the pod. What happens from there on is the application's doing.",
                evidence=(
                    "10.244.1.10:41812 → 10.244.1.11:5514 came in by eth0 of pod shop/syslog-0",
                    "no packet left the pod in answer, and nothing was dropped on the way there",
                    "a socket has udp port 5514 open, 768 bytes wait unread",
                ),
                fix=(
                    "nsenter --net=/run/netns/syslog ss -uanp 'sport = :5514'",
                    "kubectl -n shop logs syslog-0 --tail=50",
                ),
            ),
        ),
        1,
        0,
        {},
        "nftrace",
    )


def rp_filter() -> Report:
    """The answer comes back by the wrong device of the client's node."""
    away = "shop/payments-x2x7k"
    names: dict[int, tuple[str | None, str | None]] = {**NAMES, 9: (None, None)}
    translated = five("10.244.1.10:50508 > 10.244.2.11:8080")
    answer = translated.reversed()
    return failed(
        Verdict.REPLY_LOST,
        fail(
            "RP_FILTER",
            "REPLY LOST on node-1 at eth0: reverse-path filter, the reply came in by the wrong device",
            Place(NODE, "node-1", device="eth0"),
            "The node's route to 10.244.2.11 does not lead out of eth0, and rp_filter is strict.",
            evidence=(
                "kfree_skb: IP_RPFILTER at ip_rcv_finish_core, device eth0",
                "sysctl net.ipv4.conf.all.rp_filter = 1",
                "sysctl net.ipv4.conf.eth0.rp_filter = 0",
                "TcpExt.IPReversePathFilter rose by 5",
            ),
            fix=(
                "ip route get 10.244.2.11",
                "# Mend the route to or from 10.244.2.11, so that both directions use one device. If the asymmetry is "
                "meant:",
                "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.eth0.rp_filter=2",
            ),
            direction="reply",
        ),
        Path(
            "request",
            "SYN",
            1,
            1,
            (
                *SYN_TO_NODE,
                hop(44, NODE, "prerouting", None, translated, nat="DNAT to 10.244.2.11:8080", detail=CHAINS),
                hop(57, NODE, "out", "flannel.1", translated),
                hop(66, NODE, "out", "eth0", translated, encap="vxlan 192.168.50.1 > 192.168.50.2"),
            ),
            "delivered",
        ),
        Path(
            "reply",
            "SYN-ACK",
            2,
            2,
            (
                hop(0, NODE, "in", "eth0", answer, names=names),
                hop(4, NODE, "in", "eth0", answer, verdict="IP_RPFILTER", detail="in ip_rcv_finish_core"),
            ),
            "dropped",
            "shop/cart-7d4f",
        ),
        flow=FlowView(CLIENT, SERVER, Party("10.244.2.11", 8080, away, "node-2"), "tcp", ASKED, answer, False),
    )


def ip_forward_off() -> Report:
    """The node does not route, and the rule tracer had no say in it."""
    return failed(
        Verdict.DROPPED,
        fail(
            "IP_FORWARD_OFF",
            "DROPPED on node-1: net.ipv4.ip_forward is 0, the node does not route",
            Place(NODE, "node-1", device="cni0"),
            "The packet is for another host, and this node is not allowed to forward.",
            evidence=(
                "kfree_skb: IP_INADDRERRORS at ip_error, device cni0",
                "conntrack: DNAT done, not confirmed",
                "sysctl net.ipv4.ip_forward = 0",
            ),
            fix=(
                "sysctl -w net.ipv4.ip_forward=1",
                "# To make it last: echo 'net.ipv4.ip_forward = 1' > /etc/sysctl.d/99-kubernetes.conf",
            ),
        ),
        request(
            (
                *SYN_TO_NODE,
                DNAT,
                hop(52, NODE, "in", "cni0", TRANSLATED),
                hop(59, NODE, "in", "cni0", TRANSLATED, verdict="IP_INADDRERRORS", detail="in ip_error"),
            )
        ),
    )


def hairpin_off() -> Report:
    """A pod that asks for itself."""
    own = five("10.244.1.10:50508 > 10.244.1.10:8080")
    return failed(
        Verdict.DROPPED,
        fail(
            "HAIRPIN_OFF",
            "DROPPED on node-1 at veth3f2a: hairpin mode is off, the pod cannot reach itself through its Service",
            Place(NODE, "node-1", device="veth3f2a"),
            "The Service sent the connection back to the pod that made it, and the bridge does not send a frame out of "
            "the port it came in by.",
            evidence=(
                "kfree_skb: NOT_SPECIFIED at br_handle_frame_finish, device veth3f2a",
                "hairpin_mode of veth3f2a = 0",
            ),
            fix=(
                "bridge link set dev veth3f2a hairpin on",
                "# To make it last: kubelet --hairpin-mode=hairpin-veth, or hairpinMode: true in the CNI's bridge "
                "plug-in.",
            ),
        ),
        request(
            (
                *SYN_TO_NODE,
                hop(40, NODE, "prerouting", None, own, nat="DNAT to 10.244.1.10:8080", detail=CHAINS),
                hop(48, NODE, "in", "veth3f2a", own, verdict="NOT_SPECIFIED", detail="in br_handle_frame_finish"),
            ),
            never="shop/cart-7d4f",
        ),
        flow=replace(SERVICE, backend=replace(CLIENT, port=8080)),
    )


def healthy_tcp() -> Report:
    """Nothing to say, and the NAT shown both ways."""
    return Report(
        Verdict.DELIVERED,
        SERVICE,
        (
            Path("request", "SYN", 1, 1, SYN_TO_POD, "delivered"),
            Path("reply", "SYN-ACK", 1, 1, SYN_ACK_TO_POD, "delivered"),
        ),
        (),
        3,
        3,
        {},
        "nftrace",
        ("sent 3 from the client's netns: 3 connected",),
    )


def healthy_dns() -> Report:
    """A query to the cluster's DNS on another node, through the tunnel."""
    asked, translated = (
        five(way, UDP) for way in ("10.244.1.10:39014 > 10.96.0.10:53", "10.244.1.10:39014 > 10.244.2.7:53")
    )
    answer, answered = translated.reversed(), asked.reversed()
    return Report(
        Verdict.DELIVERED,
        FlowView(
            replace(CLIENT, port=39014),
            Party("10.96.0.10", 53, service="kube-system/kube-dns"),
            Party("10.244.2.7", 53, "kube-system/coredns-7db6d8ff4d-x8w2p", "node-2"),
            "udp",
            asked,
            answer,
            False,
        ),
        (
            Path(
                "request",
                "DNS query",
                1,
                1,
                (
                    hop(0, CART, "out", "eth0", asked),
                    hop(12, NODE, "in", "veth3f2a", asked),
                    hop(40, NODE, "prerouting", None, translated, nat="DNAT to 10.244.2.7:53", detail=CHAINS),
                    hop(52, NODE, "out", "flannel.1", translated),
                    hop(61, NODE, "out", "eth0", translated, encap="vxlan 192.168.50.1 > 192.168.50.2"),
                ),
                "delivered",
            ),
            Path(
                "reply",
                "DNS answer",
                1,
                1,
                (
                    hop(0, NODE, "in", "eth0", answer, encap="vxlan 192.168.50.2 > 192.168.50.1"),
                    hop(8, NODE, "in", "flannel.1", answer),
                    hop(25, NODE, "postrouting", None, answered, nat="DNAT undone: from 10.96.0.10:53"),
                    hop(27, NODE, "out", "veth3f2a", answered),
                    hop(33, CART, "in", "eth0", answered),
                ),
                "delivered",
            ),
        ),
        (),
        1,
        1,
        {},
        "off",
    )


def nothing_seen() -> Report:
    """Nobody sent anything."""
    return Report(
        Verdict.NOTHING_SEEN, FlowView(replace(CLIENT, port=None), SERVER, None, "tcp"), rule_naming="nftrace"
    )


def lost_events() -> Report:
    """Too much went by."""
    return Report(
        Verdict.LOST_EVENTS,
        SERVICE,
        (Path("request", "SYN", 1, 1, SYN_TO_NODE, "last seen", "shop/payments-5c9b"),),
        (),
        211,
        170,
        {"device": 48112, "drop": 19, "route": 0},
        "nftrace",
        ("probe neighbour not attached (no BTF id): a next hop that does not answer ARP is not seen",),
    )


def ipv6() -> Report:
    """Long addresses, brackets around them where there are ports."""
    asked = five("[fd00:10:244:1::10]:50508 > [fd00:10:96::80]:80")
    translated = five("[fd00:10:244:1::10]:50508 > [fd00:10:244:1::11]:8080")
    names = {ASKED: asked, TRANSLATED: translated}
    way = tuple(replace(h, header=names[h.header]) for h in SYN_TO_POD if h is not DNAT)
    dnat = hop(50, NODE, "prerouting", None, translated, nat="DNAT to [fd00:10:244:1::11]:8080", detail=CHAINS)
    rule = "ip6 saddr fd00:10:244:1::10 tcp dport 8080 drop # handle 7"
    dead = hop(66, NODE, "forward", None, translated, verdict="DROP", detail="table inet firewall chain fwd")
    return failed(
        Verdict.DROPPED,
        fail(
            "RULE_DROP",
            "DROPPED on node-1 in FORWARD: a rule in fwd",
            Place(NODE, "node-1", hook="forward", table="inet firewall", chain="fwd", rule=rule),
            "The rule stands in inet firewall fwd and matched this packet.",
            evidence=("kfree_skb: NETFILTER_DROP at nft_do_chain, device veth91c0",),
            fix=("nft delete rule inet firewall fwd handle 7",),
            named_by="nftrace",
        ),
        request((*way[:2], dnat, dead)),
        flow=FlowView(
            replace(CLIENT, ip="fd00:10:244:1::10"),
            replace(SERVER, ip="fd00:10:96::80"),
            replace(BACKEND, ip="fd00:10:244:1::11"),
            "tcp",
            asked,
            translated.reversed(),
            True,
        ),
    )


EVIL = "shop/[red]x[/]\x1b[31m\x1b]0;owned\x07"


def hostile_names() -> Report:
    """Terminal codes, rich's markup, newlines, direction marks and wide letters in everything from outside."""
    party = replace(CLIENT, pod=EVIL, node="no\nde\u202e1")
    way = tuple(
        replace(h, device="ve\x1b[2Jth", pod=EVIL if h.netns == CART else "shop/支払い-5c9b", node="no\nde\u202e1")
        for h in SYN_TO_NODE
    )
    return failed(
        Verdict.DROPPED,
        fail(
            "RULE_DROP",
            "DROPPED on no\nde\u202e1 in FORWARD: a rule in [bold]evil[/bold]",
            Place(NODE, "no\nde\u202e1", hook="forward", table="ip filter", chain="[bold]", rule="-A \x1b[5m -j DROP"),
            "The rule's comment is \x9b31m[link=http://example.com]this[/link]\r.",
            evidence=("nftrace: \x1b]8;;http://example.com\x07link\x1b]8;;\x07",),
            fix=("iptables -D '[bold]' \x1b[8m-j DROP\nreboot", "# [blink]careful[/blink]\x07"),
            named_by="nftrace",
            also=("\u2066rlo\u202e",),
        ),
        request(way, never="shop/支払い-5c9b"),
        flow=replace(SERVICE, client=party, backend=replace(BACKEND, pod="shop/支払い-5c9b")),
    )


def several_findings() -> Report:
    """Two causes in one trace, a warning and a remark beside them."""
    first = forward_policy_drop()
    second = not_listening().findings[0]
    warning = Finding(
        "RETRANSMITTED",
        Severity.WARN,
        "SLOW: 2 of 5 connections needed a retransmission",
        Place(NODE, "node-1"),
        "The answer came only to the second SYN, a second later.",
        ("tcp_retransmit_skb: 2",),
        ("nstat -az TcpRetransSegs",),
    )
    remark = Finding("READ_ONLY", Severity.INFO, "rules were named by counters", Place(), "It was asked for.", (), ())
    return replace(
        first,
        findings=(warning, first.findings[0], remark, replace(second, times=2)),
        connections=5,
        answered=0,
    )


def pod_output_drop() -> Report:
    """The first thing seen is the death: no hop before it, no names, no tuple of conntrack."""
    header = five("10.244.1.10 > 192.0.2.7", ICMP)
    dead = hop(0, CART, "output", None, header, verdict="DROP", names={CART: (None, None)})
    return Report(
        Verdict.DROPPED,
        FlowView(Party("10.244.1.10"), Party("192.0.2.7"), None, "icmp", header, header.reversed()),
        (Path("request", "echo request", 1, 1, (dead,), "dropped", "192.0.2.7"),),
        (
            fail(
                "KERNEL_DROP",
                f"DROPPED on netns {CART} in OUTPUT: a netfilter rule or policy that could not be named",
                Place(CART, hook="output"),
                "A packet filter dropped it. Which rule is not known: rule tracing was off, or came too late for this "
                "packet.",
                evidence=(
                    "kfree_skb: NETFILTER_DROP at nf_hook_slow, no device",
                    "hook output: deduced from device and conntrack state",
                ),
                fix=("iptables-save -c", "nft -a list ruleset"),
            ),
        ),
        1,
        0,
        {},
        "off (--read-only)",
    )


def step(netns: int, direction: str, device: str | None = None, why: str = "", **more: object) -> Step:
    """A place where a packet should come by, in the netns of one of the parties."""
    node, pod = NAMES[netns]
    return Step(netns, node, pod, device, direction, why=why, **more)  # type: ignore[arg-type]  # by field name


def expected_path() -> Expected:
    """What the way to shop/payments should be, on a bridge, with a veth that is down."""
    asked, backend = {"address": "10.96.0.80:80"}, {"address": "10.244.1.11:8080"}
    behind = "10.244.1.11 is behind this port of cni0"
    down = {"problem": "veth91c0 is down"}
    dnat, undone = {"nat": "DNAT to 10.244.1.11:8080"}, {"nat": "DNAT undone: from 10.96.0.80:80"}
    there = (
        step(CART, "out", "eth0", "route default via 10.244.1.1 dev eth0", **asked),
        step(NODE, "in", "veth3f2a", "the other end of eth0", **asked),
        step(NODE, "prerouting", None, "an endpoint of svc/shop/payments", **backend, **dnat),
        step(NODE, "out", "cni0", "route 10.244.1.0/24 dev cni0", **backend, sure=False),
        step(NODE, "out", "veth91c0", behind, **backend, **down),
        step(PAYMENTS, "in", "eth0", "the other end of veth91c0", **backend),
        step(PAYMENTS, "input", None, "a socket on port 8080", **backend),
    )
    back = (
        step(PAYMENTS, "out", "eth0", "route 10.244.1.0/24 dev eth0", **backend),
        step(NODE, "in", "veth91c0", "the other end of eth0", **backend, **down),
        step(NODE, "postrouting", None, "where it was translated", **asked, **undone),
        step(NODE, "out", "veth3f2a", "cni0 joins it with veth91c0", **asked),
        step(CART, "in", "eth0", "the other end of veth3f2a", **asked),
        step(CART, "input", None, "the client's socket", **asked),
    )
    client, server, port = "shop/cart-7d4f", "shop/payments-5c9b", "port 8080/TCP"
    said = (
        Allowance("egress", client, f"pod {server} (app=payments)", port, ("shop/quiet", "shop/web"), ("shop/web",)),
        Allowance("ingress", server, f"pod {client} (app=cart)", port, ("shop/web-only",)),
    )
    return Expected("served", "shop/payments", 1, (Way(BACKEND, there, back, policies=said),))


def last_seen() -> Report:
    """The SYN comes to the node, and what became of it there nobody saw."""
    found = expected_path()
    finding = fail(
        "LAST_SEEN",
        "NO ANSWER: the request was last seen on node-1 at veth3f2a",
        Place(NODE, "node-1", device="veth3f2a"),
        "What happened after that could not be observed. This is not a statement that nothing was dropped.",
        fix=("k8snet check",),
    )
    seen = failed(
        Verdict.NO_REPLY,
        replace(finding, severity=Severity.UNKNOWN),
        request((*SYN_TO_NODE, DNAT), ended="last seen"),
    )
    return replace(
        seen,
        expected=replace(
            found, difference=Difference("request", found.ways[0].request[4], "nothing more was seen of it")
        ),
    )


def dns_lookups() -> Report:
    """Queries of every kind: answered by two pods, sent twice, over TCP, not answered, not read, of a hostile name."""
    server = Party("10.96.0.10", 53, service="kube-system/kube-dns")
    pods = tuple(Party(f"10.244.1.{n}", None, pod=f"kube-system/coredns-{n}", node="node-1") for n in (20, 21))

    def query(at: float, name: str | None, kind: str | None, rcode: str | None, **other: object) -> DnsQuery:
        fields: dict[str, object] = {
            "protocol": "udp", "server": server, "seconds": 0.0012 if rcode else None, "tries": 1,
            "answered_by": pods[0] if rcode else None, "truncated": False,
        }  # fmt: skip
        return DnsQuery(at, name, kind, rcode=rcode, **(fields | other))  # type: ignore[arg-type]  # by field name

    queries = (
        query(0, "web.shop.shop.svc.cluster.local", "A", "NXDOMAIN"),
        query(0.002, "web.shop.svc.cluster.local", "A", "NOERROR", seconds=5.0031, tries=2, answered_by=pods[1]),
        query(0.002, "large.example", "TXT", "NOERROR", truncated=True),
        query(0.004, "large.example", "TXT", "NOERROR", protocol="tcp"),
        query(0.01, "late.example", "AAAA", None, answered_by=pods[1]),
        query(0.02, "\x1b[31mred.example", "TYPE65280", None, tries=3),
        query(0.03, None, None, None),
        query(0.04, "a-name-that-goes-on." * 8 + "example", "A", "SERVFAIL"),
    )
    resolver = DnsResolver(("10.96.0.10",), ("shop.svc.cluster.local", "svc.cluster.local"), "ndots:5 single-request")
    return replace(healthy_dns(), dns=DnsView(queries, 40, resolver))


ALL: Final = {
    made.__name__: made
    for made in (
        forward_policy_drop, rule_reject, no_endpoints, dnat_miss, not_listening, pod_firewall_drop, udp_no_reply,
        rp_filter, ip_forward_off, hairpin_off, healthy_tcp, healthy_dns, dns_lookups, nothing_seen, lost_events, ipv6,
        hostile_names, several_findings, pod_output_drop, last_seen,
    )
}  # fmt: skip
