"""`k8snet replay`: judge a recording again, on any machine: no root, no Kubernetes, no kernel is asked."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.cli import output, trace
from k8snet.errors import Exit, K8snetError

if TYPE_CHECKING:
    from k8snet.record.replay import Chosen


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay` to the command line."""
    parser = commands.add_parser(
        "replay",
        help="the report again, from what --record has written",
        description="Read what k8snet trace --record or watch --record has written, and report as it did "
        "(docs/replay.md). Needs neither root nor Kubernetes. Of two nodes' recordings of a flow: one report.",
        epilog="example: k8snet replay cart.k8snet --to svc/shop/payments -o wide",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings; of a ring its name, or parts of it")
    parser.add_argument("--from", dest="from_", metavar="A", help="only flows of this client")
    parser.add_argument("--to", metavar="B[:PORT]", help="only flows to this server")
    parser.add_argument("--protocol", choices=trace.PROTOCOLS, help="only flows of this protocol")
    parser.add_argument("--finding", metavar="CODE", help="only flows with this finding: NOT_LISTENING, RULE_DROP")
    parser.add_argument("-n", "--namespace", metavar="NS", help="namespace of names that have none")
    parser.add_argument("--inventory", metavar="FILE", help="other names: what kubectl get -o json printed")
    output.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Judge, print the report, and say by the exit code how it went."""
    from k8snet.cli.watch import check_codes
    from k8snet.cluster.file import load
    from k8snet.record.replay import Chosen, is_of_watch, replayed

    check_codes([args.finding] if args.finding else [], "--finding")
    chosen = Chosen(args.from_ or "", args.to or "", args.protocol or "", args.finding or "", args.namespace)
    paths = [Path(name) for name in args.files]
    if is_of_watch(paths[0]):
        return _of_watch(args, paths, chosen)
    output.check(args)
    seen, report = replayed(paths, load(args.inventory) if args.inventory else None, chosen)
    output.show(seen, report, args)
    return trace.exit_code(report)


def _of_watch(args: argparse.Namespace, paths: list[Path], chosen: Chosen) -> Exit:
    from k8snet.cli.watch import exit_code, print_report
    from k8snet.record.retell import retold
    from k8snet.render.watch import JsonLines, Lines, Silent

    readers = {"text": Lines, "wide": Lines, "jsonl": JsonLines, "json": Silent}
    if args.output not in readers or args.otlp is not None or args.inventory is not None:
        raise K8snetError(
            f"{paths[0]} is the recording of a watch: no single flow to draw, and its names change with time",
            f"k8snet replay {shlex.quote(str(paths[0]))} -o text, json or jsonl",
        )
    report = retold(paths, readers[args.output](sys.stdout, str(paths[0])), chosen)
    print_report(report, args.output)
    return exit_code(report)
