"""Where a command has its names from: a file, the API, what lies on this node's disk, in that order.

In: the command line. Out: a `Source`, whose `names` give the newest Inventory at any time. --inventory asks no API,
--no-api neither; without a kubeconfig the node itself is all there is. What the API refuses is told on stderr, once,
with the rule to add, and is an error only when something cannot be named without it.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from k8snet.errors import K8snetError
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.cluster.inventory import Inventory, Pod
    from k8snet.cluster.kubeconfig import Options
    from k8snet.cluster.needs import Wish
    from k8snet.cluster.watch import Cluster
    from k8snet.trace import Names

T = TypeVar("T")
TOLD_AFTER = 1.0  # seconds of silence
SOON = 3.0  # seconds; a guess: so long do those wait for the API who can do without names


@dataclass(frozen=True)
class Source:
    """Where names come from, for one run of a command."""

    names: Names
    namespace: str | None  # of names that have none: -n's, else the context's
    cluster: Cluster | None = None
    missing: str = ""  # why nobody can be asked, and ...
    advice: str = ""  # ... what to do about it

    def resolved(self, attempt: Callable[[Inventory], T]) -> T:
        """What `attempt` makes of the inventory. When it fails, its error says what may have been meant, and why."""
        try:
            return attempt(self.names.inventory)
        except K8snetError as unknown:
            if self.cluster is None:
                if not self.missing:
                    raise
                raise K8snetError(f"{unknown.problem.split(': no pods')[0]}; {self.missing}", self.advice) from None
            if self.cluster.obstacle is not None:
                raise self.cluster.obstacle from None
            self.cluster.widen()
            return attempt(self.cluster.inventory)

    def tell(self) -> None:
        """On stderr: what could not be had, and that it goes on without."""
        failure = self.cluster.failure if self.cluster else None
        if failure is not None:
            lines = (f"k8snet: some names are missing: {failure.problem}", failure.remedy, *failure.more)
            print("\n  ".join(inert(line) for line in lines), file=sys.stderr)
        elif self.cluster is None:
            for note in self.names.notes:
                print(f"k8snet: {inert(note)}", file=sys.stderr)


def add_options(
    parser: argparse.ArgumentParser, namespace: str, everywhere: str = "", *, only_api: bool = False
) -> None:
    """kubectl's options, as kubectl spells them; `namespace`: what -n is good for here, `everywhere`: -A.

    `only_api`: nothing works without the API here. Without `namespace` there is no -n.
    """
    group = parser.add_argument_group(
        "names", "asked of the Kubernetes API" + ", unless a file is given" * (not only_api)
    )
    if namespace:
        either = group.add_mutually_exclusive_group()
        either.add_argument("-n", "--namespace", metavar="NS", help=namespace)
        if everywhere:
            either.add_argument("-A", "--all-namespaces", action="store_true", help=everywhere)
    if only_api:
        parser.set_defaults(inventory=None, no_api=False)
    else:
        group.add_argument(
            "--inventory",
            metavar="FILE",
            default=os.environ.get("K8SNET_INVENTORY") or None,
            help="names from a file instead: what kubectl get -o json printed (default: $K8SNET_INVENTORY)",
        )
        group.add_argument(
            "--no-api", action="store_true", help="ask no API; names are then those that this node knows"
        )
    group.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, ~/.kube/config, service account")
    group.add_argument("--context", metavar="NAME", help="of the kubeconfig; default: its current one")
    group.add_argument(
        "--request-timeout",
        type=timeout,
        default=10.0,
        metavar="10s",
        help="for each answer; 0: no limit (default 10s)",
    )
    group.add_argument("--as", dest="as_user", metavar="USER", help="ask as this user (impersonation)")
    group.add_argument("--as-group", dest="as_groups", action="append", default=[], metavar="GROUP", help="likewise")


def timeout(text: str) -> float:
    """Seconds, as kubectl takes them; 0 is no limit."""
    from k8snet.cli.trace import duration

    return 0.0 if text in ("0", "0s") else duration(text)


def options_of(args: argparse.Namespace) -> Options:
    """What the command line says of the API."""
    from k8snet.cluster.kubeconfig import Options

    if args.as_groups and not args.as_user:
        raise K8snetError("--as-group says of what groups a user is, and no user is named", "add --as USER")
    return Options(args.kubeconfig, args.context, args.request_timeout, args.as_user, tuple(args.as_groups))


@contextmanager
def _patience(server: str) -> Iterator[None]:
    """A person at a terminal is told what takes so long."""
    words = f"k8snet: waiting for the API at {inert(server)}"
    timer = threading.Timer(TOLD_AFTER, lambda: print(words, file=sys.stderr, flush=True))
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def opened(
    args: argparse.Namespace, wish: Wish, local: tuple[Pod, ...] = (), *, needed: bool = True, once: bool = False
) -> Iterator[Source]:
    """The source that the command line asks for, loaded. Raises K8snetError when it cannot be had and is `needed`.

    `local`: the pods that this node names by itself; `once`: nothing will be watched.
    """
    from k8snet.cluster.file import load
    from k8snet.cluster.inventory import Inventory
    from k8snet.trace import Fixed

    if args.inventory:
        yield Source(Fixed(load(args.inventory)), args.namespace)
        return
    here = Inventory(pods=local, source="this node's own files")
    if args.no_api:
        advice = "leave out --no-api, pass --inventory FILE, or name IP addresses"
        yield Source(Fixed(here), args.namespace, missing="--no-api asks nobody", advice=advice)
        return
    from k8snet.cluster.api import Api
    from k8snet.cluster.kubeconfig import access, advice_for
    from k8snet.cluster.watch import Cluster

    options = options_of(args)
    try:
        found = access(options)
        api = Api(options, found) if found is not None else None
    except K8snetError as error:
        if needed or options.given:
            raise
        yield Source(Fixed(here, (f"no names from the API: {error.problem}",)), args.namespace)
        return
    if api is None:
        yield Source(Fixed(here), args.namespace, missing="there is no kubeconfig", advice=advice_for())
        return
    wish = replace(wish, namespace=args.namespace or api.access.namespace)
    with Cluster(api, wish, local, once=once) as cluster:
        with _patience(api.access.server):
            cluster.load(None if needed or options.given else min(SOON, options.request_timeout or SOON))
        if options.given and cluster.failure is not None and not cluster.reached:
            raise cluster.failure
        yield Source(cluster, wish.namespace, cluster)
