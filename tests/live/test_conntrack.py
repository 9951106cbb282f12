"""The connection table, asked by ctnetlink in the lab; and both ways to hear of a clash, which say the same."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from k8snet.event import CtStatus, FiveTuple
from k8snet.kernel.conntrack import Table
from k8snet.kernel.netns import entered
from k8snet.lab.lab import Lab
from k8snet.lab.needs import IPV6, missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import Scenario, Traffic, by_name, differences
from k8snet.render.text import render
from k8snet.report import Verdict
from live.conftest import patience


@pytest.mark.parametrize("name", ["snat-port-clash-udp", "ct-clash-drop", "dns-clash-lost"])
def test_the_table_and_the_function_name_the_same_winner(name: str) -> None:
    """Tier 1 asks the table after the drop; tier 2 hears it from the kernel at the clash."""
    scenario = by_name(name)
    if why := missing(scenario.needs):
        pytest.skip(why)
    reports = []
    for tiers in ((1,), (1, 2)):
        with Lab.up() as lab:
            scenario.break_it(lab)
            reports.append(play(lab, scenario, tiers=tiers, patience=patience()))
            assert not differences(lab, scenario.expected, reports[-1]), render(reports[-1])
    by_table, by_function = (next(f for f in r.findings if f.code == scenario.expected.code) for r in reports)
    assert any("named by the connection table" in line for line in by_table.evidence), by_table.evidence
    if not any("named by nf_ct_resolve_clash" in line for line in by_function.evidence):
        pytest.skip("this kernel does not let us attach to nf_ct_resolve_clash")
    assert _shape(by_table.evidence) == _shape(by_function.evidence)


def _shape(evidence: tuple[str, ...]) -> list[str]:
    """Who lost and who won, without the ports, which differ between two runs."""
    lines = [line for line in evidence if line.startswith(("lost: ", "won: "))]
    assert len(lines) == 2
    return [" ".join(word.partition(":")[0] for word in line.split()) for line in lines]


@pytest.mark.parametrize("read_only", [False, True], ids=["traced", "read-only"])
def test_a_rule_behind_source_nat_is_no_clash(read_only: bool) -> None:
    """It drops a packet in the same state; but nobody else has the port, and conntrack counts nothing."""
    scenario = Scenario(
        "late-rule",
        "A rule of nftables that stands behind source NAT.",
        Traffic("198.51.100.1:7007", "udp"),
        steps=(
            ("node-1", "iptables -t nat -A POSTROUTING -s 10.244.0.0/16 -d 198.51.100.1/32 -j MASQUERADE"),
            ("node-1", "nft add table ip late"),
            ("node-1", "nft add chain ip late post { type filter hook postrouting priority 150; }"),
            ("node-1", "nft add rule ip late post ip daddr 198.51.100.1 drop"),
        ),
    )
    with Lab.up() as lab:
        scenario.break_it(lab)
        report = play(lab, scenario, read_only=read_only, patience=patience())
    assert report.verdict is Verdict.DROPPED, render(report)
    finding = report.findings[0]
    assert finding.code in (("KERNEL_DROP", "RULE_DROP") if read_only else ("RULE_DROP",)), render(report)
    assert finding.where.hook == "postrouting"


# Below, since there can be one lab at a time.
@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as lab:
        yield lab


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_a_connection_is_found_by_either_of_its_tuples(lab: Lab, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and (why := missing((IPV6,))):
        pytest.skip(why)
    service = next(s for s in lab.inventory.services if s.key == "shop/payments")
    vip = next(ip for ip in service.cluster_ips if (ip.version == 6) == (family == socket.AF_INET6))
    with entered(lab.netns_of("shop/cart").path):
        client = socket.socket(family, socket.SOCK_STREAM)
    with client, Table(lab.netns_of("node-1").path) as table:
        client.settimeout(10 * patience())
        client.connect((str(vip), 80))
        address, port = client.getsockname()[:2]
        orig = FiveTuple(ip_address(address), vip, port, 80, socket.IPPROTO_TCP)
        found = table.owner(orig)
        assert found is not None
        assert found.orig == orig
        assert (found.reply.sport, found.reply.dport) == (8080, port)
        assert found.reply.saddr in [e.ip for e in service.ports[0].endpoints]
        assert CtStatus.DST_NAT | CtStatus.CONFIRMED in CtStatus(found.status)
        other = table.owner(found.reply)
        assert other is not None
        assert (other.orig, other.reply) == (found.orig, found.reply)
        assert table.owner(orig._replace(sport=1)) is None
        fill = table.fill()
        assert 0 < fill.entries <= fill.maximum


def test_a_protocol_without_ports_has_no_owner(lab: Lab) -> None:
    with Table(lab.netns_of("node-1").path) as table:
        echo = FiveTuple(ip_address("10.244.1.10"), ip_address("10.244.1.11"), 1, 0, socket.IPPROTO_ICMP)
        assert table.owner(echo) is None


def test_asking_is_cheap(lab: Lab) -> None:
    """A packet that is asked about waits for two questions and an answer to each: below a millisecond apiece."""
    nobody = FiveTuple(ip_address("10.244.1.10"), ip_address("10.244.1.11"), 1, 2, socket.IPPROTO_UDP)
    with Table(lab.netns_of("node-1").path) as table:
        start = time.monotonic()
        for _ in range(100):
            assert table.owner(nobody) is None
        assert time.monotonic() - start < 0.1 * patience()
