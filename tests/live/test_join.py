"""Two agents on two nodes of the lab, joined: the same report as one machine gives that sees both nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from k8snet.agent import lines
from k8snet.agent.join import join, read
from k8snet.lab import topology
from k8snet.lab.lab import Lab
from k8snet.lab.needs import missing
from k8snet.lab.play import WAIT, play
from k8snet.lab.scenarios import Expected, Scenario, Traffic, by_name, differences
from k8snet.render.text import render
from k8snet.report import Report, Verdict
from live.conftest import about_processes, patience
from live.machines import Agent, agents, clocked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

BOOTED_LATER_NS = 86_400_000_000_000  # so much later is node-2's kernel made to look as if booted
_FAR = Traffic("shop/svc/remote:80")
SCENARIOS = (
    by_name("healthy-tcp-remote"),
    by_name("healthy-icmp-remote"),
    by_name("rp-filter"),
    by_name("no-return-route"),
    Scenario(
        "forward-drop-far",
        "A rule of the other node drops it.",
        _FAR,
        Expected(
            Verdict.DROPPED,
            "RULE_DROP",
            node="node-2",
            device="eth0",
            hook="forward",
            chain="FORWARD",
            rule="-A FORWARD -d 10.244.2.11/32 -j DROP",
            direction="request",
        ),
        (("node-2", "iptables -I FORWARD -d 10.244.2.11/32 -j DROP"),),
    ),
    Scenario(
        "not-listening-far",
        "Nobody listens on that port of the pod on the other node.",
        Traffic("shop/pod/web-3:9090"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/web-3", direction="request"),
    ),
    Scenario(
        "healthy-masquerade-far",
        "node-1 hides its pods behind its own address (kube-proxy's --masquerade-all): node-2 never sees the client's.",
        _FAR,
        steps=(("node-1", "iptables -t nat -A POSTROUTING -s 10.244.1.0/24 -d 10.244.2.0/24 -j MASQUERADE"),),
    ),
    by_name("healthy-tcp-remote-vxlan"),
    by_name("vxlan-blocked"),
    by_name("vxlan-no-peer"),
    by_name("lost-between-nodes"),
    by_name("reply-lost-between-nodes"),
)


def words(scenario: Scenario) -> list[str]:
    traffic = scenario.traffic
    return ["--from", traffic.client, "--to", traffic.target, "--protocol", str(traffic.protocol),
            "--wait", f"{WAIT * patience():.3g}s"]  # fmt: skip


def seen_by_two(lab: Lab, scenario: Scenario, where: Path) -> tuple[str, str]:
    """What both agents wrote, node-2's as if by a clock of its own."""
    flow = words(scenario)
    with (
        scenario.company(lab) if scenario.company else nullcontext(),
        agents(lab, where, flow, [*flow, "--send", str(scenario.traffic.connections)]) as (here, there),
    ):
        first = here.finish(60 * patience(), end_stdin=False)
        return first, clocked(there.finish(60 * patience()), BOOTED_LATER_NS)


def ways(report: Report, lab: Lab) -> dict[str, object]:
    """Each direction's packet and hops, as far as they are on the two nodes, without times and ports."""
    machines = {lab.netns_of(name).inum for name in (*topology.NODES, *(pod.key for pod in lab.inventory.pods))}
    return {
        path.direction: [
            (h.node, h.pod, h.netns, h.device, h.direction, h.encap, h.verdict, h.nat and h.nat.split(":")[0], h.detail)
            for h in path.hops
            if h.netns in machines
        ]
        for path in report.paths
    }


def told(report: Report) -> str:
    return f"\n{render(report, 110)}"


# Not called "scenario": conftest.py shares out those of the lab, and some of these are our own.
@pytest.mark.parametrize("played", SCENARIOS, ids=lambda played: played.name)
def test_two_agents_joined_say_what_one_machine_says(played: Scenario, tmp_path: Path) -> None:
    if why := missing(played.needs):
        pytest.skip(why)
    with Lab.up(topology=played.topology) as lab:
        played.break_it(lab)
        one = play(lab, played, patience=patience())
        streams = seen_by_two(lab, played, tmp_path)
        report = join([text.splitlines() for text in streams])
        assert not report.lost, told(report)
        assert not differences(lab, played.expected, one), told(one)
        assert not differences(lab, played.expected, report), told(report)
        assert ways(report, lab) == ways(one, lab), told(one) + told(report)
    assert report.verdict is one.verdict
    assert [p.ended for p in report.paths] == [p.ended for p in one.paths]
    assert [(f.title, f.why, f.severity, f.where) for f in report.findings] == [
        (f.title, f.why, f.severity, f.where) for f in one.findings
    ]
    assert (report.connections, report.answered) == (one.connections, one.answered)
    assert (report.flow.backend, report.flow.same_node) == (one.flow.backend, one.flow.same_node)


def test_an_agent_sees_its_own_node_only_and_the_clocks_are_told_apart(tmp_path: Path) -> None:
    scenario = by_name("healthy-tcp-remote")
    with Lab.up() as lab:
        here, there = seen_by_two(lab, scenario, tmp_path)
        inums = {
            node: {lab.netns_of(n).inum for n in (node, *(p.key for p in lab.inventory.pods if p.node == node))}
            for node in topology.NODES
        }
    for node, text in (("node-1", here), ("node-2", there)):
        half = read(text.splitlines())
        assert set(half.fact("owners")) <= inums[node]
        assert {event.netns for event in half.events.values()} <= inums[node]
        assert half.bye is not None
        assert half.bye.strangers > 0, "both nodes share this kernel: there must have been something to leave out"
    assert "10.96.0.87" not in "".join(line for line in there.splitlines() if '"line":"rules"' in line)
    report = join([here.splitlines(), there.splitlines()])
    (clock,) = (note for note in report.notes if "clock" in note)
    # One kernel, so the truth is known to the nanosecond: what was added.
    ahead, within = (float(clock.split(word)[0].split()[-1]) for word in (" ms ahead of node-1's", " ms, by"))
    assert abs(ahead - BOOTED_LATER_NS / 1e6) <= within + 0.001, clock
    assert within < 20, clock
    for path in report.paths:
        assert [hop.us for hop in path.hops] == sorted(hop.us for hop in path.hops)
    files = []
    for number, text in enumerate((here, there)):
        files.append(str(tmp_path / f"{number}.jsonl"))
        Path(files[-1]).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "k8snet", "join", *files],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "pod/shop/web-3" in done.stdout
    assert "node-2" in done.stdout


@about_processes
@pytest.mark.parametrize("how", ["stdin", "SIGTERM", "SIGINT"])
def test_an_agent_that_is_told_to_end_says_all_and_undoes_all(how: str, tmp_path: Path) -> None:
    with Lab.up() as lab:
        agent = Agent(lab, "node-1", tmp_path, words(by_name("healthy-tcp-remote")))
        try:
            agent.wait_until_ready()
            tables = lab.run_in("node-1", ["nft", "list", "tables"]).stdout
            if how != "stdin":
                children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
                os.kill(int(children[0]), signal.Signals[how])
            text = agent.finish(end_stdin=how == "stdin")
        finally:
            agent.process.kill()
        assert "k8snet_trace" in tables
        assert "k8snet_trace" not in lab.run_in("node-1", ["nft", "list", "tables"]).stdout
    assert isinstance(lines.understood(text.splitlines()[-1]), lines.Bye)


def test_a_client_that_is_nowhere_here_cannot_be_sent_from(tmp_path: Path) -> None:
    with Lab.up() as lab:
        agent = Agent(lab, "node-2", tmp_path, [*words(by_name("healthy-tcp-remote")), "--send", "1"])
        assert agent.process.wait(30 * patience()) == 2
        assert agent.process.stderr is not None
        assert "is not on this node" in agent.process.stderr.read()
    last = lines.understood(agent.text.splitlines()[-1])
    assert isinstance(last, lines.Error)
    assert "is not on this node" in last.problem
