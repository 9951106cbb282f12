"""The lab's kube-proxy rules against those that a real kube-proxy 1.30 wrote for the same API objects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from k8snet.cluster.file import inventory
from k8snet.cluster.inventory import Inventory, Node
from k8snet.lab import kubeproxy, kubeproxy_nft
from k8snet.lab.cluster import CLUSTER_CIDR, CLUSTER_CIDR6, INVENTORY, twin
from nftext import objects

DATA = Path(__file__).parent.parent / "data"

# The lab has no session affinity: not every kernel has iptables' match for it (recent).
NOT_EXPRESSIBLE = ("shop/sticky",)
NODE_1, NODE_2 = INVENTORY.nodes

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
def everything() -> Inventory:
    kinds = ("pods", "services", "endpointslices", "nodes")
    return inventory([json.loads((DATA / "kube-api" / f"{kind}.json").read_text()) for kind in kinds], "recorded")


@pytest.fixture(scope="module")
def known(everything: Inventory) -> Inventory:
    """What the rules can be written from."""
    services = tuple(service for service in everything.services if service.key not in NOT_EXPRESSIBLE)
    return Inventory(everything.pods, services, everything.nodes)


@pytest.fixture(scope="module")
def written(known: Inventory) -> Rules:
    return parse(kubeproxy.rules(known, CLUSTER_CIDR, NODE_1))


def test_every_chain_is_there_and_no_other(recorded: Rules, written: Rules) -> None:
    assert set(written) == set(without(recorded, NOT_EXPRESSIBLE))
    assert len([name for _, name in written if name.startswith("KUBE-SEP-")]) == 14


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
    rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR, NODE_1))
    about = [(chain, rule) for chain, of_chain in rules.items() for rule in of_chain if "shop/empty" in rule]
    assert [chain for chain, _ in about] == [("filter", "KUBE-SERVICES")]
    assert about[0][1].endswith("-j REJECT --reject-with icmp-port-unreachable")


@pytest.mark.parametrize(
    ("node", "endpoints"), [pytest.param(NODE_1, 2, id="two-here"), pytest.param(NODE_2, 1, id="one-here")]
)
def test_the_internal_policy_local_leaves_the_endpoints_of_the_node(node: Node, endpoints: int) -> None:
    rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR, node))
    nearest = next(s for s in INVENTORY.services if s.key == "shop/nearest")
    chain = kubeproxy.local_chain(nearest, nearest.ports[0])
    assert [rule for rule in rules["nat", "KUBE-SERVICES"] if rule.endswith(f"-j {chain}")]
    assert len(rules["nat", chain]) == 1 + endpoints
    assert ("nat", kubeproxy.service_chain(nearest, nearest.ports[0])) not in rules
    table = objects(kubeproxy_nft.rules(INVENTORY, CLUSTER_CIDR, node))
    (choice,) = (
        line for line in table[f"chain {kubeproxy_nft.local_chain(nearest, nearest.ports[0])}"] if "vmap" in line
    )
    assert choice.startswith(f"numgen random mod {endpoints} ")


def test_a_node_port_of_the_policy_local_is_closed_only_where_no_endpoint_is() -> None:
    for node, is_closed in ((NODE_1, True), (NODE_2, False)):
        rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR, node))
        dropped = [rule for rule in rules["filter", "KUBE-EXTERNAL-SERVICES"] if "shop/far-door:http" in rule]
        assert bool(dropped) == is_closed
        door = next(s for s in INVENTORY.services if s.key == "shop/far-door")
        table = objects(kubeproxy_nft.rules(INVENTORY, CLUSTER_CIDR, node))
        assert any("shop/far-door" in line for line in table["map no-endpoint-nodeports"]) == is_closed
        (external,) = (
            lines for name, lines in table.items() if name.startswith("chain external-") and "far-door" in name
        )
        assert (external[-1] == f"goto {kubeproxy_nft.local_chain(door, door.ports[0])}") != is_closed


def test_the_rules_for_ipv6_are_those_for_ipv4_with_other_addresses() -> None:
    def nameless(rules: str) -> str:
        return re.sub(r"KUBE-SEP-\w+", "KUBE-SEP", rules)  # a hash of the address

    four = kubeproxy.rules(INVENTORY, CLUSTER_CIDR, NODE_1).splitlines()
    expected = "\n".join(line for line in four if "127.0.0.0/8" not in line)
    expected = expected.replace(CLUSTER_CIDR, CLUSTER_CIDR6).replace("icmp-port", "icmp6-port")
    expected = re.sub(r"([\d.]{7,}):(\d+)", lambda m: f"[{twin(m[1])}]:{m[2]}", expected)
    expected = re.sub(r"([\d.]{7,})/32", lambda m: f"{twin(m[1])}/128", expected)
    written = kubeproxy.rules(INVENTORY, CLUSTER_CIDR6, NODE_1)
    assert sorted(nameless(written).splitlines()) == sorted(nameless(expected).splitlines())
    assert len(re.findall(r"--to-destination \[fd00:10:244:", written)) > 7


def test_chances_are_even() -> None:
    rules = parse(kubeproxy.rules(INVENTORY, CLUSTER_CIDR, NODE_1))
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


# --- nftables mode ----------------------------------------------------------------------------------------------------


def test_the_nftables_table_is_as_kube_proxy_wrote_it(everything: Inventory, known: Inventory) -> None:
    left_out = [s for s in everything.services if s.key in NOT_EXPRESSIBLE]
    names = [*NOT_EXPRESSIBLE, *(str(ip) for s in left_out for ip in s.cluster_ips)]
    about = re.compile("|".join(rf"{re.escape(name)}\b" for name in names))
    recorded = objects((DATA / "kube-proxy" / "nftables.txt").read_text())
    expected = {
        name: [line for line in lines if not about.search(line)]
        for name, lines in recorded.items()
        if not about.search(name)
    }
    node = next(node for node in everything.nodes if node.name == "node-1")
    written = objects(kubeproxy_nft.rules(known, CLUSTER_CIDR, node))
    assert set(written) == set(expected)
    for name, lines in expected.items():
        assert written[name] == lines, name
    assert len([name for name in written if name.startswith("chain endpoint-")]) == 14


def test_a_service_without_endpoints_is_an_element_of_no_endpoint_services() -> None:
    table = objects(kubeproxy_nft.rules(INVENTORY, CLUSTER_CIDR, NODE_1))
    about = [(name, line) for name, lines in table.items() for line in lines if "shop/empty" in line]
    element = '10.96.0.81 . tcp . 80 comment "shop/empty:http" : goto reject-chain'
    assert about == [("map no-endpoint-services", element)]


def test_the_ipv6_table_has_no_ipv4_in_it() -> None:
    text = kubeproxy_nft.rules(INVENTORY, CLUSTER_CIDR6, NODE_1)
    assert text.startswith("table ip6 kube-proxy {")
    assert not re.search(r"(?<![\w.])10\.\d|\bip (?:saddr|daddr)|ipv4_addr", text)
    table = objects(text)
    assert {name.split()[1] for name in table if "endpoint-" in name} >= {"no-endpoint-services"}
    dnats = [line for lines in table.values() for line in lines if " dnat to " in line]
    assert len(dnats) > 7
    assert all(re.search(r" dnat to \[fd00:[0-9a-f:]+\]:\d+$", line) for line in dnats)
    # A chain's name cannot hold a colon: the address in it has dots.
    assert not [name for name in table if ":" in name]
