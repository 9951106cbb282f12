"""The half of the interface to the namespace lab that a shell cannot do: `vagrant/lib/namespaces.sh` calls it.

In: `up`, which holds a lab until its standard input ends; the rest speak to the lab that is up. `race` has the lab's
own scenario (k8snet.lab.scenarios.races) hold packets back until its input ends; its rules stay until `proxy` writes
them anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import NoReturn

from k8snet.cluster.inventory import Inventory
from k8snet.errors import K8snetError
from k8snet.lab.cluster import objects
from k8snet.lab.lab import INVENTORY_FILE, Lab, current
from k8snet.lab.needs import missing
from k8snet.lab.scenarios import by_name

NOT_HERE = 77  # as vagrant/lib/lab.sh has it
# The scenarios whose rules and rivals make a race come out as it must.
RACES = {"dns": "dns-clash-resolved", "snat": "snat-port-clash-tcp", "conntrack": "ct-table-full"}


def standing() -> Lab:
    """The lab that is up; it stays up. Raises K8snetError when there is none."""
    state = current()
    if state is None:
        raise K8snetError("there is no lab", "vagrant/run.py builds one; by hand: k8snet lab up")
    return Lab(state.backend, state.topology, state.keeper)


def up(backend: str, topology: str) -> None:
    """Hold a lab; says "up" when it is. The end of the input, which comes with the caller's death, takes it down."""
    with Lab.up(backend, topology):
        print("up", flush=True)
        sys.stdin.read()


def select(lab: Lab, service: str, label: str) -> None:
    """Let the pods with `label` be those behind a Service, as kube-proxy of both nodes will have it."""
    key, _, value = label.partition("=")
    pods = {pod.key for pod in lab.inventory.pods if (key, value) in pod.labels}
    services = []
    for known in lab.inventory.services:
        if known.key == service:
            ports = (replace(port, endpoints=tuple(e for e in port.endpoints if e.pod in pods)) for port in known.ports)
            known = replace(known, selector=((key, value),), ports=tuple(ports))
        services.append(known)
    publish(lab, replace(lab.inventory, services=tuple(services)))


def publish(lab: Lab, inventory: Inventory) -> None:
    """Let everybody know of a changed cluster: kube-proxy of each node, and who reads the inventory."""
    for node in inventory.nodes:
        lab.sync(node.name, inventory)
    INVENTORY_FILE.write_text(json.dumps(objects(inventory), indent=4) + "\n", encoding="utf-8")


def race(lab: Lab, which: str) -> int:
    """Keep a race on until the input ends; says "on" when it is. 77: this machine or back end cannot have it."""
    scenario = by_name(RACES[which])
    why = missing(scenario.needs)
    if scenario.backends and lab.backend not in scenario.backends:
        why = f"{scenario.name} is for {' and '.join(scenario.backends)}"
    if why:
        print(why, file=sys.stderr)
        return NOT_HERE
    scenario.break_it(lab)
    with scenario.company(lab) if scenario.company else nullcontext():
        print("on", flush=True)
        sys.stdin.read()
    return 0


def main() -> int:
    """0, or 77 when a race cannot be had here."""
    parser = argparse.ArgumentParser(description="Reach into the namespace lab.")
    actions = parser.add_subparsers(dest="action", required=True)
    holder = actions.add_parser("up")
    holder.add_argument("backend")
    holder.add_argument("topology")
    actions.add_parser("facts")
    actions.add_parser("proxy")
    chooser = actions.add_parser("select")
    chooser.add_argument("service")
    chooser.add_argument("label")
    racer = actions.add_parser("race")
    racer.add_argument("which", choices=sorted(RACES))
    args = parser.parse_args()
    if args.action == "up":
        up(args.backend, args.topology)
        return 0
    lab = standing()
    if args.action == "facts":
        print(lab.backend, lab.topology)
    elif args.action == "proxy":
        publish(lab, lab.inventory)
    elif args.action == "select":
        select(lab, args.service, args.label)
    else:
        return race(lab, args.which)
    return 0


def leave(error: K8snetError) -> NoReturn:
    """Say what is wrong and what to do, as k8snet does."""
    print(f"{error.problem}\n  {error.remedy}", file=sys.stderr)
    sys.exit(int(error.code))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except K8snetError as error:
        leave(error)
    except KeyboardInterrupt:
        sys.exit(130)
