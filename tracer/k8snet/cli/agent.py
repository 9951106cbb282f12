"""`k8snet agent`: observe one flow on this node, and write down what is seen for `k8snet join`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from k8snet.cli import source, trace
from k8snet.errors import Exit, K8snetError

if TYPE_CHECKING:
    from k8snet.agent.report import Reporter
    from k8snet.trace import Request


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `agent` to the command line."""
    parser = commands.add_parser(
        "agent",
        help="write down what one flow does on this node, for k8snet join",
        description="Observe one flow on this node and write JSON lines to stdout (docs/agent.md). The judgement is "
        "that of k8snet join, which also takes the lines of the node of the other end. Ends on --count, --timeout, "
        "SIGTERM, Ctrl-C, or the end of a pipe at stdin.",
        epilog="example: k8snet agent --from shop/cart --to svc/shop/payments:http --timeout 30s > node-1.jsonl",
    )
    trace.add_flow_options(parser)
    parser.add_argument(
        "--node",
        metavar="NAME",
        default=os.environ.get("NODE_NAME") or None,
        help="what this node is called (default: $NODE_NAME, else the hostname)",
    )
    source.add_options(parser, "namespace of names that have none; default: the context's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Observe until somebody says that it is enough."""
    from k8snet.agent.report import Reporter, Text
    from k8snet.trace import KernelNames

    enough = threading.Event()
    reporter = Reporter(Text(sys.stdout), KernelNames(), enough.is_set)
    reporter.hello(args.node or socket.gethostname())
    try:
        with _heeding_signals(enough):
            _observe(args, reporter, enough)
    except K8snetError as error:
        reporter.fail(error.problem, error.remedy, error.more)
        raise
    return Exit.OK


def _observe(args: argparse.Namespace, reporter: Reporter, enough: threading.Event) -> None:
    from k8snet.trace import client_netns_of, observe

    with trace.prepared(args, "agent", changes=not args.read_only) as ready:
        if _tells_its_end(sys.stdin.fileno()):
            threading.Thread(target=_read_to_end, args=(enough,), name="k8snet-stdin", daemon=True).start()
        if ready.known.cluster is not None:
            ready.known.cluster.watch()
        reporter.asked(ready.request)
        request = ready.request
        if client_netns_of(ready.world, request) is None:
            request = _as_seen_from_afar(request)
        names = ready.known.names
        seen = observe(request, ready.world, reporter, names, ready.guardian, reporter)
        reporter.finish(seen, names.inventory)


def _as_seen_from_afar(request: Request) -> Request:
    """On other nodes a packet of the client may have its node's address: where that node masquerades."""
    pod = request.client.pod
    nodes = [node for node in request.inventory.nodes if pod is not None and node.name == pod.node]
    versions = {address.version for address in request.client.addresses}
    more = [ip for node in nodes for ip in node.ips if ip.version in versions]
    addresses = tuple(dict.fromkeys((*request.client.addresses, *more)))
    return replace(request, client=replace(request.client, addresses=addresses[:MOST_CLIENTS]))


MOST_CLIENTS = 4  # of the filter in the kernel (bpf/filter.h, MAX_CLIENTS)


@contextmanager
def _heeding_signals(enough: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the observation, and never what has to be said of it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda *_: enough.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tells_its_end(fd: int) -> bool:
    """A pipe or socket does; /dev/null, which a container without stdin has, is at its end from the beginning."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read_to_end(enough: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    enough.set()
