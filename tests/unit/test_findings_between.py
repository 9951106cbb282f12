"""What left one node and never came in at the other: only where both were watched. Streams of two: test_join."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from k8snet.cluster.interfaces import Owner, Role
from k8snet.event import Encap, Event, FiveTuple, ProbeId
from k8snet.report import Finding
from unit.story import (
    CART,
    CLIENT,
    INVENTORY,
    NODE,
    OWNERS,
    codes,
    drop,
    event,
    findings,
    icmp_header,
    into,
    out,
)

FAR_NODE, WEB_3 = 2, 13
FAR = "10.244.2.11:8080"
WAY, BACK = f"{CLIENT} > {FAR}", f"{FAR} > {CLIENT}"
BOTH = {
    "owners": OWNERS
    | {FAR_NODE: Owner("node-2", role=Role.NODE), WEB_3: Owner("node-2", INVENTORY.pods[2], role=Role.POD)},
    "backend_netns": {IPv4Address("10.244.2.11"): WEB_3},
}
ANSWER = {"flags": 0x12, "ip_id": 0, "seq": 7000, "skb": 77}


def left(us: int = 1_000_000, **fields: object) -> list[Event]:
    """A SYN, up to the wire."""
    return [out(WAY, CART, "eth0", us=us, **fields), into(WAY, NODE, "veth-cart", us=us + 9, **fields),
            out(WAY, NODE, "eth0", us=us + 20, **fields)]  # fmt: skip


def arrived(us: int = 1_000_000) -> list[Event]:
    return [into(WAY, FAR_NODE, "eth0", us=us + 30), out(WAY, FAR_NODE, "veth", us=us + 40),
            into(WAY, WEB_3, "eth0", us=us + 50)]  # fmt: skip


def answered(us: int = 1_000_100) -> list[Event]:
    """The answer, up to the wire."""
    return [out(BACK, WEB_3, "eth0", us=us, **ANSWER), into(BACK, FAR_NODE, "veth", us=us + 10, **ANSWER),
            out(BACK, FAR_NODE, "eth0", us=us + 20, **ANSWER)]  # fmt: skip


def the(*events: Event, **around: object) -> Finding:
    (finding,) = findings(*events, **(BOTH | around))
    return finding


def test_a_request_that_left_and_never_came_in() -> None:
    finding = the(*left(), *left(us=2_000_000, ip_id=5190))
    assert (finding.code, finding.where.node, finding.where.device) == ("LOST_BETWEEN_NODES", "node-1", "eth0")
    assert finding.title == "LOST: the request left node-1 by eth0 and never reached node-2"
    assert finding.evidence[0].startswith("SYN was sent 2 times; ")


def test_an_answer_that_left_and_never_came_in() -> None:
    finding = the(*left(), *arrived(), *answered())
    assert (finding.code, finding.where.node, finding.direction) == ("LOST_BETWEEN_NODES", "node-2", "reply")


def test_in_a_tunnel_the_tunnels_addresses_are_what_to_look_for() -> None:
    outer = FiveTuple(IPv4Address("192.168.50.1"), IPv4Address("192.168.50.2"), 51000, 8472, 17)
    wrapped = left()
    wrapped[-1] = wrapped[-1]._replace(outer=outer, encap=Encap.VXLAN)
    finding = the(*wrapped)
    assert "inside a tunnel: 192.168.50.1 → 192.168.50.2, VXLAN, UDP port 8472" in finding.evidence
    assert any(line.endswith("ip route get 192.168.50.2") for line in finding.fix)


ELSEWHERE: dict[str, object] = {"backend_netns": {}}
UNREACHABLE = event(ProbeId.NETIF_RECEIVE_SKB, WAY, CART, "eth0", us=1_100_000, encap=Encap.ICMP_ERROR, icmp_type=3,
                    icmp_code=1, outer=icmp_header("192.168.50.9", "10.244.1.10"))  # fmt: skip


@pytest.mark.parametrize(
    ("story", "around", "code"),
    [
        pytest.param(left(), BOTH | ELSEWHERE, "LEFT_NODE", id="the-other-node-is-not-here"),
        pytest.param(left(), BOTH | {"lost": 1}, "LAST_SEEN", id="events-were-lost"),
        pytest.param(left(), BOTH | {"watched": {WEB_3: (1_500_000_000, 9_000_000_000)}}, "LEFT_NODE", id="too-late"),
        pytest.param(left(), BOTH | {"watched": {WEB_3: (0, 500_000_000)}}, "LEFT_NODE", id="no-longer"),
        pytest.param([*left(), *arrived()[:1]], BOTH, "LAST_SEEN", id="it-came-in"),
        pytest.param([*left(), *arrived()], BOTH, "NO_REPLY", id="it-arrived"),
        pytest.param(left()[:2], BOTH, "LAST_SEEN", id="it-never-left"),
        pytest.param(left()[:1], BOTH, "LAST_SEEN", id="it-left-no-more-than-its-pod"),
        pytest.param([*left(us=100_000), *arrived(us=100_000)[:1], *left(us=1_000_000, ip_id=5190)], BOTH, "LEFT_NODE",
                     id="another-try-came-in"),
        pytest.param([*left(), drop(WAY, NODE, "eth0", 65, "__dev_forward_skb2", us=1_000_030)], BOTH, "KERNEL_DROP",
                     id="it-died-at-the-device"),
        pytest.param([*left(), UNREACHABLE], BOTH, "REFUSED", id="somebody-said-no"),
    ],
)  # fmt: skip
def test_it_is_not_said_where(story: list[Event], around: dict[str, object], code: str) -> None:
    assert codes(*story, **around) == [code]


def test_one_try_that_was_watched_for_is_enough() -> None:
    late = {"watched": {WEB_3: (1_500_000_000, 9_000_000_000)}}
    assert codes(*left(), *left(us=2_000_000, ip_id=5190), **(BOTH | late)) == ["LOST_BETWEEN_NODES"]


def test_a_second_try_that_came_in_was_not_lost() -> None:
    assert codes(*left(us=100_000), *left(us=1_000_000, ip_id=5190), *[
        e._replace(ip_id=5190) for e in arrived()
    ], **BOTH) == ["NO_REPLY"]  # fmt: skip
