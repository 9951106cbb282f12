"""The expected path on the running kernel: no difference while all is well is asserted by test_scenarios; here, where
it differs in broken labs, and that `--expect` alone sends and changes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from k8snet.lab import topology
from k8snet.lab.cluster import INVENTORY, objects
from k8snet.lab.lab import Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import play
from k8snet.lab.scenarios import by_name
from k8snet.render.text import render
from k8snet.report import Step
from live.conftest import patience

DNAT: Final = "node-1 prerouting DNAT to 10.244.1.14:8080"


def said(step: Step) -> str:
    return f"{step.pod or step.node} {step.direction} {step.device or step.nat or ''}".rstrip()


@pytest.mark.parametrize(
    ("scenario", "direction", "step", "problem"),
    [
        pytest.param("dnat-miss", "request", DNAT, None, id="dnat-miss"),
        pytest.param("forward-policy-drop", "request", "node-1 out vethpayments", None, id="forward-policy-drop"),
        pytest.param("no-route", "request", "node-1 route", "Network is unreachable", id="no-route"),
        pytest.param("veth-down", "request", "node-1 out vethpayments", "is down", id="veth-down"),
        pytest.param("hairpin-off", "request", "node-1 out vethcart", None, id="hairpin-off"),
        pytest.param("rp-filter", "reply", "node-1 route", "rp_filter", id="rp-filter"),
        pytest.param("last-seen", "request", DNAT, None, id="last-seen"),
        pytest.param("pod-firewall-drop", "request", "shop/payments input", None, id="pod-firewall-drop"),
        pytest.param("pod-without-route", "request", "shop/cart route", "unreachable", id="pod-without-route"),
    ],
)
def test_a_broken_lab_differs_where_it_is_broken(scenario: str, direction: str, step: str, problem: str | None) -> None:
    broken = by_name(scenario)
    with Lab.up(topology=broken.topology) as lab:
        broken.break_it(lab)
        report = play(lab, broken, patience=patience())
    assert report.expected is not None
    difference = report.expected.difference
    assert difference is not None, render(report, wide=True)
    assert (difference.direction, said(difference.step)) == (direction, step), render(report, wide=True)
    assert (problem or "") in (difference.step.problem or ""), render(report, wide=True)
    assert (problem is None) == (difference.step.problem is None), render(report, wide=True)


def test_a_refusal_for_want_of_endpoints_was_expected() -> None:
    with Lab.up() as lab:
        report = play(lab, by_name("no-endpoints"), patience=patience())
    assert report.expected is not None
    assert (report.expected.fate, report.expected.difference) == ("rejected", None), render(report, wide=True)


def expect(tmp_path: Path, *arguments: str) -> Any:
    """What `k8snet trace --expect -o json` prints in the lab that is up."""
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps(objects(INVENTORY)), "utf-8")
    command = [sys.executable, "-m", "k8snet", "trace", "--inventory", str(inventory), "--expect", "-o", "json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", topology.TOPOLOGIES)
def test_the_expected_path_alone_is_whole_in_every_topology(name: str, tmp_path: Path) -> None:
    if why := missing(topology.TOPOLOGIES[name].needs):
        pytest.skip(why)
    with Lab.up(topology=name) as lab:
        before = lab.run_in("node-1", ["nft", "--stateless", "list", "ruleset"], check=True).stdout
        sent = counted(lab)
        made = expect(tmp_path, "--from", "shop/cart", "--to", "shop/svc/remote:80")
        assert counted(lab) == sent, "it sends nothing"
        assert lab.run_in("node-1", ["nft", "--stateless", "list", "ruleset"], check=True).stdout == before
    (way,) = made["expected"]["ways"]
    assert (made["kind"], made["expected"]["fate"], way["unknown"]) == ("ExpectedPath", "served", [])
    assert (way["request"][-1]["pod"], way["reply"][-1]["pod"]) == ("shop/web-3", "shop/cart")


def counted(lab: Lab) -> list[str]:
    """What the client's pod has sent by IPv4: of all its counters those that nobody but a sender of ours moves."""
    shown = lab.run_in("shop/cart", ["cat", "/proc/net/snmp"], check=True).stdout.splitlines()
    pairs = [(a.split(), b.split()) for a, b in zip(shown[::2], shown[1::2], strict=True)]
    own = {f"{names[0]}{name}": value for names, values in pairs for name, value in zip(names, values, strict=True)}
    return [own[name] for name in ("Tcp:ActiveOpens", "Tcp:OutSegs", "Udp:OutDatagrams", "Icmp:OutMsgs")]


def test_expect_and_send_contradict_each_other() -> None:
    command = [sys.executable, "-m", "k8snet", "trace", "--no-api", "--from", "192.0.2.1", "--to", "192.0.2.2:80"]
    done = subprocess.run([*command, "--expect", "--send", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--expect sends nothing" in done.stderr
