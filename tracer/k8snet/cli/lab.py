"""`k8snet lab`: a small cluster in network namespaces that can be broken on purpose."""

from __future__ import annotations

import argparse
import sys

from k8snet.cli import output
from k8snet.errors import Exit, K8snetError

# As in k8snet.lab.lab, which is too heavy to import for --help; tests/unit/test_lab_data.py compares them.
BACKENDS = ("iptables-nft", "iptables-legacy", "nftables", "ipvs")
TOPOLOGIES = ("bridge", "routed", "vxlan", "ipip")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` and its subcommands to the command line."""
    parser = commands.add_parser(
        "lab",
        help="a breakable network to try things in",
        description="Nodes, pods and Services in network namespaces of their own, with kube-proxy's rules. The host's "
        "rules and sysctls are never touched.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="build the lab and leave it up", description="Build the lab and leave it up.")
    down = actions.add_parser(
        "down",
        help="take the lab down, and what a crash left",
        description="Take the lab down, whoever built it, and remove what a crash left.",
    )
    listing = actions.add_parser("list", help="the scenarios", description="The scenarios that `lab run` knows.")
    one = actions.add_parser(
        "run",
        help="build a lab, break it, trace it, take it down",
        description="Build a lab, break it as the scenario says, trace the scenario's traffic and print the report. "
        "Exit code 0: the report has the finding that had to come out; 1: it has not.",
        epilog="example: k8snet lab run forward-policy-drop --backend iptables-legacy",
    )
    one.add_argument("scenario", metavar="SCENARIO", help="see `k8snet lab list`")
    output.add_options(one)
    for builder in (up, one):
        builder.add_argument("--backend", choices=BACKENDS, help=f"default: {BACKENDS[0]}")
    up.add_argument("--topology", choices=TOPOLOGIES, default=TOPOLOGIES[0], help="default: %(default)s")
    one.add_argument("--topology", choices=TOPOLOGIES, help="default: the scenario's own")
    up.set_defaults(run=_up)
    down.set_defaults(run=_down)
    listing.set_defaults(run=_list)
    one.set_defaults(run=_run)


def _up(args: argparse.Namespace) -> Exit:
    from k8snet.lab.lab import Lab
    from k8snet.lab.namespaces import PINS, PREFIX

    lab = Lab.up(args.backend or BACKENDS[0], args.topology, persist=True)
    print(
        f"the lab is up: {lab.backend}, {lab.topology}, network namespaces {PINS}/{PREFIX}*\n"
        f"  k8snet map --inventory {lab.inventory_file}\n"
        f"  k8snet trace --inventory {lab.inventory_file} --from shop/cart --to shop/svc/web:80 --send 3\n"
        f"  ip netns exec {PREFIX}node-1 {lab.iptables} -P FORWARD DROP\n"
        "  k8snet lab down"
    )
    return Exit.OK


def _down(_args: argparse.Namespace) -> Exit:
    from k8snet.lab import lab

    print("the lab is down" if lab.down() else "there was no lab")
    return Exit.OK


def _list(_args: argparse.Namespace) -> Exit:
    import textwrap

    from k8snet.lab.scenarios import SCENARIOS

    for scenario in SCENARIOS:
        print(f"{scenario.name}  ({scenario.expected.code or 'no finding'})")
        print(textwrap.fill(scenario.about, 100, initial_indent="    ", subsequent_indent="    "))
    return Exit.OK


def _run(args: argparse.Namespace) -> Exit:
    from k8snet.judge import judge
    from k8snet.lab.lab import Lab
    from k8snet.lab.needs import missing
    from k8snet.lab.play import seen_in
    from k8snet.lab.scenarios import by_name, differences
    from k8snet.render.live import Live

    output.check(args)
    scenario = by_name(args.scenario)
    if why := missing(scenario.needs):
        raise K8snetError(f"{scenario.name} cannot be played here: {why}", "k8snet lab list")
    backend = args.backend or (scenario.backends or BACKENDS)[0]
    with Lab.up(backend, args.topology or scenario.topology) as lab:
        for where, command in scenario.steps_with(backend):
            print(f"{where}# {command}", file=sys.stderr)
        scenario.break_it(lab)
        with Live(f"{scenario.traffic.client} → {scenario.traffic.target}") as watcher:
            seen = seen_in(lab, scenario, watcher=watcher)
            report = judge(seen)
        if not lab.is_up:
            raise K8snetError("the lab was taken down while it was traced", f"k8snet lab run {scenario.name}")
        wrong = differences(lab, scenario.expected, report)
    output.show(seen, report, args)
    sys.stdout.flush()
    for line in wrong:
        print(line, file=sys.stderr)
    wanted = scenario.expected.code or "no finding"
    print(f"{scenario.name}: expected {wanted}, {'the report differs' if wrong else 'as reported'}", file=sys.stderr)
    return Exit.PROBLEM if wrong else Exit.OK
