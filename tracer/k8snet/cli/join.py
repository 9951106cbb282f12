"""`k8snet join`: one report from what the agents of one or two nodes have written down."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from contextlib import ExitStack

from k8snet.cli import output
from k8snet.errors import Exit, K8snetError


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `join` to the command line."""
    parser = commands.add_parser(
        "join",
        help="one report from the lines of two nodes' agents",
        description="Read what k8snet agent has written on the client's node and on the server's, and report as if "
        "both had been one machine. Needs neither root nor Kubernetes. With one file: what that node has seen.",
        epilog="example: k8snet join node-1.jsonl node-2.jsonl",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="output of k8snet agent, at most two; -: stdin")
    parser.add_argument("--inventory", metavar="FILE", help="names from what kubectl get -o json printed")
    output.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Join, print the report, and say by the exit code how it went."""
    from k8snet.agent.join import halves_of, seen_and_judged
    from k8snet.cli.trace import exit_code
    from k8snet.cluster.file import load

    output.check(args)
    with ExitStack() as stack:
        streams = [_opened(name, stack) for name in args.files]
        seen, report = seen_and_judged(halves_of(streams), load(args.inventory) if args.inventory else None)
    output.show(seen, report, args)
    return exit_code(report)


def _opened(name: str, stack: ExitStack) -> Iterable[str]:
    if name == "-":
        return sys.stdin
    with contextlib.suppress(IsADirectoryError):
        try:
            return stack.enter_context(open(name, encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            raise K8snetError(f"there is no file {name}", "k8snet agent --help  # its output is what is read") from None
        except PermissionError:
            raise K8snetError(f"{name} may not be read", f"sudo k8snet join {' '.join(sys.argv[2:])}") from None
    raise K8snetError(f"{name} is a directory", "name the file in it")
