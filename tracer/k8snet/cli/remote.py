"""`kubectl k8snet trace` and `cleanup`: from a laptop, by a pod that runs on the node for as long as the trace."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from k8snet.cli import source
from k8snet.cli.output import REPORTS, print_report
from k8snet.cli.trace import add_flow_options, duration, exit_code, request_of, watcher_for
from k8snet.errors import Exit, K8snetError
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.cluster.api import Api

NAMESPACE: Final = "k8snet"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` and `cleanup` to the command line."""
    parser = commands.add_parser(
        "trace",
        help="follow one flow and say where it died",
        description="Follow one flow through the client's node and the server's, by pods that are started there and "
        "deleted afterwards. Ends on --count, --timeout (1h) or Ctrl-C with the report.",
        epilog="example: kubectl k8snet trace --from shop/cart --to svc/shop/payments:http --send 3",
    )
    add_flow_options(parser)
    parser.add_argument("-o", "--output", choices=REPORTS, default="text")
    source.add_options(parser, "namespace of names that have none; default: the context's", only_api=True)
    group = parser.add_argument_group("agent", "the pod that looks")
    _add_namespace(group)
    group.add_argument(
        "--image",
        metavar="IMAGE",
        default=os.environ.get("K8SNET_IMAGE") or None,
        help="default: $K8SNET_IMAGE, else the one that install has noted in the namespace",
    )
    group.add_argument("--node", metavar="NODE", help="where to look, for a client that is no pod and no node")
    group.add_argument("--privileged", action="store_true", help="not with eight capabilities but with all privileges")
    group.add_argument(
        "--pod-running-timeout",
        type=duration,
        default=60.0,
        metavar="1m",
        help="give up when the pod does not run after this time (default 1m)",
    )
    parser.set_defaults(run=trace)
    parser = commands.add_parser(
        "cleanup",
        help="delete agent pods that killed commands have left",
        description="Delete agent pods that have ended, or whose command on this machine was killed. Those that may "
        "belong to somebody else's running trace are left alone.",
    )
    _add_namespace(parser)
    source.add_options(parser, "", only_api=True)
    parser.add_argument("--force", action="store_true", help="delete the agents of running traces as well")
    parser.set_defaults(run=cleanup)


def _add_namespace(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--agent-namespace", default=NAMESPACE, metavar="NS", help=f"namespace of the agent pods (default {NAMESPACE})"
    )


def trace(args: argparse.Namespace) -> Exit:
    """Start an agent, show what it sees, delete it."""
    from k8snet.cluster import names
    from k8snet.cluster.lookup import thing_of
    from k8snet.cluster.needs import Wish
    from k8snet.remote import spec
    from k8snet.remote import trace as remote
    from k8snet.remote.agents import Agents, started_by
    from k8snet.remote.pods import Pods

    check_namespace(args.agent_namespace)
    wish = Wish(names.parse(args.from_), names.parse(args.to))
    with source.opened(args, wish, once=True) as known:
        if known.cluster is None:
            raise _unconfigured(known)
        request = request_of(args, known)
        node = remote.node_of(request, args.node)
        client = names.taken_here(request.client, lambda pod: pod.node == node)
        # What is said of the other names the agents say, too.
        chosen = client.notes[len(request.client.notes) :]
        spelled = thing_of(client.pod).spelled if client.workload and client.pod else args.from_
        known.tell()
        api = known.cluster.api
        image = args.image or Pods(api, args.agent_namespace).image()
        if image is None:
            raise K8snetError(
                f"no image is named, and namespace {args.agent_namespace} has none noted",
                "name it: --image REGISTRY/k8snet:TAG (deploy/Dockerfile makes it), or once for all: "
                "kubectl k8snet install --print --image REGISTRY/k8snet:TAG | kubectl apply -f -",
            )
        far = remote.far_node_of(request, node)
        inventory, missing = remote.names(api, known.cluster.queries, [node, far] if far else [node])
        namespace = known.namespace
    if missing:
        print(f"k8snet: {missing} objects do not fit into the agent's pod: the report lacks names", file=sys.stderr)
    where = spec.Place(args.agent_namespace, image, args.privileged, started_by())
    within = args.pod_running_timeout
    # The pods are gone before the report is there, so that not even reading it in a pager keeps them.
    life = remote.lifetime(args, within * (2 if far else 1))
    with Agents(api, where, within) as agents, watcher_for(args, request) as watcher:
        if far:
            report = remote.gather(
                agents,
                agents.start(far, remote.far_words(args, spelled, namespace, far), inventory, life),
                lambda: agents.start(node, remote.near_words(args, spelled, namespace, node), inventory, life),
                watcher,
            )
        else:
            agent = agents.start(node, remote.words(args, spelled, namespace), inventory, life)
            report = remote.follow(agents, agent, watcher)
    report = replace(report, notes=(*chosen, *report.notes))
    print_report(report, args.output)
    return exit_code(report)


def cleanup(args: argparse.Namespace) -> Exit:
    """Delete what nobody needs any more, and say what it was."""
    from k8snet.remote.pods import Pods
    from k8snet.remote.spec import STARTED_BY

    check_namespace(args.agent_namespace)
    pods = Pods(_api(args), args.agent_namespace)
    done = 0
    for pod in pods.agents():
        metadata = pod["metadata"]
        owner = str((metadata.get("annotations") or {}).get(STARTED_BY) or "somebody")
        name, node = metadata["name"], (pod.get("spec") or {}).get("nodeName")
        words = f"pod {name} on node {node}, started by {owner} at {metadata.get('creationTimestamp')}"
        if not (args.force or _is_left(pod, owner)):
            print(inert(f"left alone: {words} (--force deletes it)"), file=sys.stderr)
        elif pods.delete(name):
            print(inert(f"deleted: {words}"))
            done += 1
    if not done:
        print("nothing to clean up")
    return Exit.OK


def _is_left(pod: dict[str, Any], owner: str) -> bool:
    """Nobody reads it any more, as far as that can be known from here."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        made = datetime.fromisoformat(str(pod["metadata"]["creationTimestamp"]))
        # Its report may be on the way to somebody.
        return (datetime.now(UTC) - made).total_seconds() > 30
    match = re.fullmatch(r"(.*) pid ([0-9]+)", owner)
    return bool(match and match[1] == platform.node() and not _is_alive(int(match[2])))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _api(args: argparse.Namespace) -> Api:
    from k8snet.cluster.api import Api
    from k8snet.cluster.kubeconfig import access, advice_for

    options = source.options_of(args)
    found = access(options)
    if found is None:
        raise K8snetError("there is no kubeconfig", advice_for())
    return Api(options, found)


def _unconfigured(known: source.Source) -> K8snetError:
    return K8snetError(known.missing or "there is no API to ask", "pass --kubeconfig FILE, or set KUBECONFIG")


def check_namespace(name: str) -> None:
    """Raise K8snetError for what cannot be one."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise K8snetError(f"{name!r} is no name of a namespace", "write small letters, digits and dashes")
