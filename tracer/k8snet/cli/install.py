"""`k8snet install --print`: what a cluster needs for `kubectl k8snet`, as YAML for `kubectl apply -f -`."""

from __future__ import annotations

import argparse

from k8snet.errors import Exit, K8snetError


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `install` to the command line."""
    from k8snet.cli.remote import NAMESPACE

    parser = commands.add_parser(
        "install",
        help="print what a cluster needs for kubectl k8snet",
        description="Print a namespace for agent pods and the rights to start them, for kubectl apply -f -; with "
        "--watch also a DaemonSet that watches every node.",
        epilog="example: k8snet install --print --image registry.example/k8snet:1 | kubectl apply -f -",
    )
    parser.add_argument("--print", dest="printing", action="store_true", help="on stdout; nothing is changed")
    parser.add_argument("--image", metavar="IMAGE", help="noted in the namespace, as the image of its agents")
    parser.add_argument(
        "--watch", action="store_true", help="also a DaemonSet that runs k8snet watch on every node (needs --image)"
    )
    parser.add_argument(
        "-n", "--namespace", default=NAMESPACE, metavar="NS", help=f"of the agent pods (default {NAMESPACE})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Print it."""
    from k8snet.cli.remote import check_namespace
    from k8snet.remote.manifests import manifests

    if not args.printing:
        raise K8snetError(
            "k8snet changes nothing in a cluster by itself", "k8snet install --print | kubectl apply -f -"
        )
    check_namespace(args.namespace)
    if args.watch and not args.image:
        raise K8snetError("--watch runs pods, and no image is named", "add --image registry.example/k8snet:0.1.0")
    print(manifests(args.namespace, args.image, watch=args.watch), end="")
    return Exit.OK
