"""The lab's kube-proxy rules against those that a real kube-proxy 1.30 wrote for the same API objects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from k8snet.cluster.file import inventory
from k8snet.cluster.inventory import Inventory
from k8snet.lab import kubeproxy
from k8snet.lab.cluster import CLUSTER_CIDR, INVENTORY

DATA = Path(__file__).parent.parent / "data"

# An Inventory knows nothing of session affinity, external IPs and Local traffic policies.
NOT_EXPRESSIBLE = ("shop/sticky", "shop/ext", "shop/np-local", "shop/int-local")

Rules = dict[tuple[str, str], list[str]]  # (table, chain) to the chain's rules

# kube-proxy walks a Go map, whose order is random, to fill these.
UNORDERED = (("nat", "KUBE-SERVICES"), ("filter", "KUBE-SERVICES"), ("nat", "KUBE-NODEPORTS"))


def parse(text: str) -> Rules:
    rules: Rules = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            rules[table, line[1:].split()[0]] = []
        elif line.startswith("-A "):
            rules[table, line.split()[1]].append(line)
    return rules


def without(rules: Rules, services: tuple[str, ...]) -> Rules:
    """`rules` without those of `services`, and without the chains that only these lead to."""
    named = re.compile(rf"\b({'|'.join(services)}):")
    about = [rule for chain in rules.values() for rule in chain if named.search(rule)]
    chains = {target for rule in about for target in re.findall(r"-j (KUBE-(?:SVC|SEP|EXT)-\w+)", rule)}
    return {
        (table, name): [rule for rule in chain if rule not in about]
        for (table, name), chain in rules.items()
        if name not in chains
    }


@pytest.fixture(scope="module")
def recorded() -> Rules:
    return parse((DATA / "kube-proxy" / "iptables-nft-save.txt").read_text())


@pytest.fixture(scope="module")
def written() -> Rules:
    kinds = ("pods", "services", "endpointslices", "nodes")
    documents = [json.loads((DATA / "kube-api" / f"{kind}.json").read_text()) for kind in kinds]
    known = inventory(documents, "recorded")
    services = tuple(service for service in known.services if service.key not in NOT_EXPRESSIBLE)
    return parse(kubeproxy.rules(Inventory(known.pods, services, known.nodes), CLUSTER_CIDR))


def test_every_chain_is_there_and_no_other(recorded: Rules, written: Rules) -> None:
    assert set(written) == set(without(recorded, NOT_EXPRESSIBLE))
    assert len([name for _, name in written if name.startswith("KUBE-SEP-")]) == 12


def test_every_rule_is_as_kube_proxy_wrote_it(recorded: Rules, written: Rules) -> None:
    expected = without(recorded, NOT_EXPRESSIBLE)
    for chain, rules in expected.items():
        if chain in UNORDERED:
            assert sorted(written[chain]) == sorted(rules), chain
        else:
            assert written[chain] == rules, chain


def test_node_ports_come_last(recorded: Rules, written: Rules) -> None:
    assert written["nat", "KUBE-SERVICES"][-1] == recorded["nat", "KUBE-SERVICES"][-1]


def test_a_service_without_endpoints_is_rejected_and_has_no_nat_rule() -> None:
    rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR))
    about = [(chain, rule) for chain, of_chain in rules.items() for rule in of_chain if "shop/empty" in rule]
    assert [chain for chain, _ in about] == [("filter", "KUBE-SERVICES")]
    assert about[0][1].endswith("-j REJECT --reject-with icmp-port-unreachable")


def test_chances_are_even() -> None:
    rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR))
    web = next(s for s in INVENTORY.services if s.key == "shop/web")
    jumps = rules["nat", kubeproxy.service_chain(web, web.ports[0])][1:]
    assert len(jumps) == 3
    left = 1.0
    for jump in jumps:
        found = re.search(r"--probability ([\d.]+)", jump)
        taken = left * float(found[1]) if found else left
        assert taken == pytest.approx(1 / 3, abs=1e-6)
        left -= taken
    assert left == 0
