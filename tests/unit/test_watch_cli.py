"""The command line of a watch without a kernel: which pods, which budget, which exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from k8snet import cli
from k8snet.cli import watch
from k8snet.cli.source import Source
from k8snet.cluster.file import load
from k8snet.cluster.interfaces import Owner, Role, World
from k8snet.cluster.inventory import Inventory, Pod
from k8snet.cluster.needs import Wish, needed
from k8snet.errors import Exit, K8snetError
from k8snet.kernel.netns import Netns
from k8snet.lab.cluster import INVENTORY, objects
from k8snet.trace import Fixed
from k8snet.watch import budget
from k8snet.watch.engine import Counts, Limits
from k8snet.watch.live import Settings
from unit.test_watch_report import COUNTS, made, quiet

MI = 1 << 20


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(objects(INVENTORY)), encoding="utf-8")
    return load(str(file))


def arguments(*words: str) -> argparse.Namespace:
    return cli.parser().parse_args(["watch", *words])


def owner(pod: Pod) -> Owner:
    return Owner(node="node-1", pod=pod, role=Role.POD)


def world_of(pods: Sequence[Pod]) -> World:
    """A machine with these pods, each in a netns of its own."""
    owners = {inum: owner(pod) for inum, pod in enumerate(pods, 100)}
    netns = {inum: Netns(inum, f"/run/netns/{inum}") for inum in owners}
    return World(netns=netns, interfaces=(), owners=owners, host=1)


def settings(inventory: Inventory, *words: str, names: Fixed | None = None) -> Settings:
    args = arguments(*words)
    source = Source(names or Fixed(inventory), args.namespace)
    return watch.settings_of(args, source, world_of([pod for pod in inventory.pods if pod.node == "node-1"]))


def chosen(inventory: Inventory, *words: str) -> set[str]:
    picks = settings(inventory, *words).chosen
    return {pod.key for pod in inventory.pods if picks(owner(pod))}


# --- which pods


def test_all_pods_unless_it_is_said_otherwise(inventory: Inventory) -> None:
    assert chosen(inventory) == {pod.key for pod in inventory.pods}
    assert chosen(inventory, "-A") == chosen(inventory)
    assert settings(inventory).chosen(Owner(role=Role.POD)), "one that nobody has named"


def test_the_pods_of_a_namespace(inventory: Inventory) -> None:
    assert chosen(inventory, "-n", "shop") == {pod.key for pod in inventory.pods if pod.namespace == "shop"}
    assert not settings(inventory, "-n", "shop").chosen(Owner(role=Role.POD))


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["shop/cart"], {"shop/cart"}),
        (["shop/cart", "po/web-1", "-n", "shop"], {"shop/cart", "shop/web-1"}),
        (["10.244.1.10"], {"shop/cart"}),
    ],
    ids=["one", "two", "address"],
)
def test_pods_by_name(inventory: Inventory, words: list[str], keys: set[str]) -> None:
    assert chosen(inventory, *words) == keys


def test_a_pod_that_comes_back_is_chosen_again(inventory: Inventory) -> None:
    class Moving:
        """Names that change while the watch runs."""

        inventory = Inventory()
        notes: tuple[str, ...] = ()

    names = Moving()
    names.inventory = inventory
    args = arguments("shop/cart")
    source = Source(names, None)  # type: ignore[arg-type]  # the parts of Names that are asked here
    picks = watch.settings_of(args, source, world_of(inventory.pods)).chosen
    cart = next(pod for pod in inventory.pods if pod.key == "shop/cart")
    names.inventory = replace(inventory, pods=tuple(pod for pod in inventory.pods if pod is not cart))
    assert not picks(owner(next(pod for pod in inventory.pods if pod is not cart)))
    new = replace(cart, ips=(ip_address("10.244.1.99"),), uid="new")
    names.inventory = replace(inventory, pods=(*(pod for pod in inventory.pods if pod is not cart), new))
    assert picks(owner(new))


@pytest.mark.parametrize(
    ("word", "problem", "remedy"),
    [
        ("shop/crat", "no pod named 'crat'", "shop/po/cart"),
        ("shop/web-3", "shop/web-3 is not on this node: it runs on node-2", "run it there: k8snet watch shop/web-3"),
        ("192.0.2.7", "192.0.2.7 is not on this node: it runs elsewhere", "run it there"),
        ("shop/svc/web", "a service opens no connections", "shop/po/web-1"),
    ],
)
def test_what_cannot_be_watched_here(inventory: Inventory, word: str, problem: str, remedy: str) -> None:
    with pytest.raises(K8snetError) as refused:
        settings(inventory, word)
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy


def test_what_is_asked_of_the_api() -> None:
    """This node's pods, and of the rest what kube-proxy asks."""
    queries = {(query.resource, query.namespace) for query in needed(Wish(services=True), Inventory())}
    assert queries == {("nodes", ""), ("services", ""), ("endpointslices", ""), ("networkpolicies", "")}
    assert not {query.resource for query in needed(Wish(), Inventory())} - {"nodes"}


# --- which budget


def test_the_defaults_are_the_engines() -> None:
    assert Limits(flows=budget.FLOWS) == Limits()
    assert (Settings().events_per_second, Settings().ring_bytes) == (budget.RATE, budget.RING)
    assert Settings().cpu == budget.CPU / 100
    assert settings(Inventory()) == Settings(chosen=settings(Inventory()).chosen)


@pytest.mark.parametrize(
    ("text", "size"), [("160Mi", 160 * MI), ("1Gi", 1024 * MI), ("300M", 300_000_000), ("400000000", 400_000_000)]
)
def test_memory_is_written_as_in_a_pods_resources(text: str, size: int) -> None:
    assert budget.memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "100Mi", "1Ti", "17Gi", "-1Gi", "256 Mi", "256MiB", "1e9", "²Gi", "9" * 30])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        budget.memory(text)


@pytest.mark.parametrize("size", ["160Mi", "256Mi", "448Mi", "1Gi", "16Gi"])
def test_what_is_shared_out_fits(size: str) -> None:
    whole = budget.memory(size)
    ring, limits = budget.ring_of(whole), budget.limits_of(None, whole, 3.0)
    assert ring & (ring - 1) == 0
    assert ring >= MI
    assert limits.flows >= 1000
    assert budget.BASE + ring + limits.flows * budget.FLOW <= whole


def test_a_number_of_flows_goes_before_memory() -> None:
    made = settings(Inventory(), "--memory", "1Gi", "--max-flows", "500", "--max-rate", "7000", "--wait", "1s")
    assert made.limits == Limits(flows=500, wait=1.0)
    assert (made.events_per_second, made.ring_bytes) == (7000, 64 * MI)


@pytest.mark.parametrize(
    "words", [["--max-rate", "1"], ["--max-flows", "0"], ["--max-cpu", "101"], ["--max-rate", "²"], ["--wait", "0"]]
)
def test_numbers_out_of_bounds_are_refused(words: list[str]) -> None:
    with pytest.raises(K8snetError):
        arguments(*words)


# --- how it ends


def test_exit_codes() -> None:
    assert watch.exit_code(made()) is Exit.PROBLEM
    assert watch.exit_code(made(quiet())) is Exit.OK
    assert watch.exit_code(made(quiet(), until="SLOW_CONNECT")) is Exit.PROBLEM
    assert watch.exit_code(made(quiet(), Counts())) is Exit.INCONCLUSIVE
    assert watch.exit_code(made(quiet(), replace(COUNTS, lost=1000))) is Exit.INCONCLUSIVE
    assert watch.exit_code(made(counts=replace(COUNTS, lost=1000))) is Exit.PROBLEM


def test_a_code_that_there_is_not_would_never_come() -> None:
    watch.check_codes(["NO_REPLY", "RETRANSMIT_BURST"])
    with pytest.raises(K8snetError, match="no finding has this code") as refused:
        watch.check_codes(["no_reply"])
    assert refused.value.remedy == "--until NO_REPLY"


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ([], "all pods of this node"),
        (["-n", "shop"], "pods of namespace shop"),
        (["cart", "web", "-n", "shop"], "cart, web"),
    ],
)
def test_the_title(words: list[str], title: str) -> None:
    assert watch.title_of(arguments(*words)) == title
