"""`k8snet cleanup`: undo what crashed runs have left on this node, in every netns. Prints what it removed.

In: the journals of guardians that were killed too, and every netns. It never touches what a living run uses, unless
--force. Running it again does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from k8snet.errors import Exit, K8snetError

if TYPE_CHECKING:
    from collections.abc import Iterator


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `cleanup` to the command line."""
    parser = commands.add_parser(
        "cleanup",
        help="undo what crashed runs have left on this node",
        description="Undo what crashed runs have left on this node: rule tracing tables, log settings, the lab. "
        "What a living run uses is left alone.",
    )
    parser.add_argument("--force", action="store_true", help="undo what living runs have changed as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Undo and say what was undone."""
    if os.geteuid() != 0:
        raise K8snetError("cleanup needs root", "sudo k8snet cleanup")
    done = 0
    for line in (*_journals(args.force), *_tables(), *_lab(args.force)):
        done += 1
        print(line)
    if not done:
        print("nothing to clean up")
    return Exit.OK


def _journals(force: bool) -> Iterator[str]:
    from k8snet.kernel.guardian import Sysctl, left, undo_left

    for item in left():
        if item.running and not force:
            print(f"left alone: process {item.owner} is running (--force undoes its changes)", file=sys.stderr)
            continue
        for change in undo_left(item):
            yield f"{'set back' if isinstance(change, Sysctl) else 'removed'}: {change}"


def _tables() -> Iterator[str]:
    """Tables without a journal: of a kernel that has no `flags owner`, after a crash that took the journal along."""
    from k8snet.kernel.guardian import NftTable, left
    from k8snet.kernel.netns import scan
    from k8snet.kernel.nfnetlink import Netlink, tables
    from k8snet.kernel.ruletrace import TABLE

    used = {(c.netns, c.name) for item in left() for c in item.changes if isinstance(c, NftTable)}
    for netns in scan().values():
        found = []
        with contextlib.suppress(OSError), Netlink(netns.path) as netlink:  # gone meanwhile, or no nf_tables
            found = tables(netlink)
        for table in found:
            if not table.name.startswith(TABLE) or (netns.inum, table.name) in used:
                continue
            if table.owner is not None:
                print(
                    f"left alone: table {table.family} {table.name} in netns {netns.inum} belongs to a living socket "
                    f"(netlink port {table.owner}); it goes when that process ends",
                    file=sys.stderr,
                )
                continue
            change = NftTable(netns.inum, netns.path, table.family, table.name)
            if change.undo(netns.path):
                yield f"removed: {change}"


def _lab(force: bool) -> Iterator[str]:
    from k8snet.lab import lab

    found = lab.leftovers()
    if not found:
        return
    try:
        if lab.current() is None or force:
            lab.down()
            yield from (f"removed: {path}" for path in found)
            return
    except K8snetError:
        pass  # it is being built right now
    print("left alone: a lab is up (k8snet lab down takes it down)", file=sys.stderr)
