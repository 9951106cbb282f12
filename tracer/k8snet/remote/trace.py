"""One trace from afar: on which nodes, what the agents are told, what becomes of their lines.

In: the command line and the names that the API gave. Out: a Report. One node makes it itself and it is read here; when
the two ends are on two nodes, an agent on each writes down what it sees and the report is made here (`k8snet.agent`).
Agents ask no API: what they have to know of names they are given, and that is what we were allowed to see.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from k8snet.cluster.api import Api, Query
from k8snet.errors import K8snetError
from k8snet.remote import spec
from k8snet.remote.agents import Agent, Agents, Ended, Line, said
from k8snet.render.document import hop_of, report_of
from k8snet.render.safe import inert

if TYPE_CHECKING:
    from k8snet.report import Report
    from k8snet.trace import Request, Watcher

LONGEST: Final = 3600.0  # seconds for a trace that has no --timeout: a pod that nobody looks at is not to stay
SLACK: Final = 60.0  # seconds that an agent may need beside its trace
ATTENTION: Final = 0.1  # seconds between two looks at Ctrl-C
TOLD_AFTER: Final = 1.0  # seconds; as `k8snet.cli.source` has it
_WORDS: Final = 50  # lines of an agent's stderr that are kept


def node_of(request: Request, chosen: str | None) -> str:
    """The node to trace on: the client's, else, for a client from outside, the server's. Raises K8snetError."""
    client, server = request.client, request.server
    own = client.pod.node if client.pod else client.node.name if client.node else None
    if own and chosen not in (None, own):
        raise K8snetError(f"{client.text} is on node {own}, not on {chosen}", "leave out --node")
    if client.pod and not own:
        raise K8snetError(f"pod {client.pod.key} runs on no node yet", f"see: kubectl describe pod {client.pod.name}")
    if own or chosen:
        return str(own or chosen)
    ends = {end.node for end in server.all_endpoints}
    nodes = {server.pod.node} if server.pod else {server.node.name} if server.node else ends
    if len(nodes) == 1 and (only := next(iter(nodes))):
        return only
    among = ", ".join(sorted(node for node in nodes if node))
    raise K8snetError(
        f"on which node is {client.text}? No pod or node has that address",
        f"say where to look: --node NODE{f' (the server is on {among})' if among else ''}",
    )


def far_node_of(request: Request, near: str) -> str | None:
    """The node of the other end, when that is another one and there is only one."""
    server = request.server
    ends = {end.node for end in server.all_endpoints if end.ready}
    nodes = {server.pod.node} if server.pod else {server.node.name} if server.node else ends
    others = [node for node in nodes if node and node != near]
    return others[0] if len(others) == 1 else None


def names(api: Api, queries: Sequence[Query], nodes: Sequence[str]) -> tuple[str, int]:
    """What agents have to know, as `--inventory` takes it, and how many objects were too many. Raises ApiError."""
    lookups = [query for query in queries if query.fields or query.labels]
    rest = [query for query in queries if query not in lookups]
    own = [Query("nodes", fields=f"metadata.name={node}") for node in nodes]
    here = [Query("pods", fields=f"spec.nodeName={node}") for node in nodes]
    return spec.inventory(item for query in (*own, *lookups, *here, *rest) for item in _items(api, query))


def _items(api: Api, query: Query) -> Iterator[dict[str, Any]]:
    for page in api.pages(query):
        for item in page.items:
            yield {**item, "kind": query.kind}


def words(args: argparse.Namespace, client: str, namespace: str | None) -> list[str]:
    """The command line of an agent that reports by itself: ours, with what only the node can do.

    `client`: the one that was chosen, spelled; a workload means another pod on another node.
    """
    return ["trace", *_flow(args, client, namespace), *_traffic(args), "-o", "jsonl"]


def near_words(args: argparse.Namespace, client: str, namespace: str | None, node: str) -> list[str]:
    """That of the client's node, when another one looks from the other end."""
    return ["agent", "--node", node, *_flow(args, client, namespace), *_traffic(args)]


def far_words(args: argparse.Namespace, client: str, namespace: str | None, node: str) -> list[str]:
    """And the other one's: it sends nothing, and ends when it is told to."""
    return ["agent", "--node", node, *_flow(args, client, namespace)]


def _flow(args: argparse.Namespace, client: str, namespace: str | None) -> list[str]:
    found = ["--inventory", spec.FILE, "--from", client, "--to", args.to]
    options = {
        "--namespace": namespace,
        "--protocol": args.protocol,
        "--timeout": f"{args.timeout or LONGEST:g}s",
        "--wait": f"{args.wait:g}s",
    }
    found += [f"--ipv{args.family}"] if args.family else []
    return found + _given(options) + (["--read-only"] if args.read_only else [])


def _traffic(args: argparse.Namespace) -> list[str]:
    return _given({"--count": args.count, "--send": args.send, "--dns": args.dns, "--size": args.size})


def _given(options: Mapping[str, Any]) -> list[str]:
    return [word for option, value in options.items() if value is not None for word in (option, str(value))]


def lifetime(args: argparse.Namespace, start_within: float) -> int:
    """Seconds after which the kubelet ends the agent, were we to vanish now."""
    seconds: float = (args.timeout or LONGEST) + args.wait + start_within + SLACK
    return math.ceil(seconds)


class Patience:
    """Ctrl-C asks the agents for what they have; another one, or too long a silence then, ends it."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._asked: float | None = None

    @property
    def interrupted(self) -> bool:
        """Somebody has asked."""
        return self._asked is not None

    def look(self) -> None:
        """Raises KeyboardInterrupt when nothing more is waited for."""
        count = self._agents.interrupts.count
        if count and self._asked is None:
            self._asked = time.monotonic()
            self._agents.finish()
        if count > 1 or (self._asked is not None and time.monotonic() - self._asked > spec.GRACE + SLACK):
            raise KeyboardInterrupt


def follow(agents: Agents, agent: Agent, watcher: Watcher) -> Report:
    """The report that an agent ends with; hops are shown as they come.

    Raises K8snetError when there is none, KeyboardInterrupt when it is not waited for.
    """
    told, patience = Progress(), Patience(agents)
    printed: list[str] = []
    while True:
        patience.look()
        happened = agents.next(ATTENTION)
        if isinstance(happened, Line):
            document = _document(happened.text)
            if document is None:
                printed = [*printed, happened.text.decode("utf-8", "replace")][-_WORDS:]
                continue
            try:
                if document.get("kind") == "TraceReport":
                    return report_of(document)
                watcher.hop(*hop_of(document))
            except ValueError as error:
                raise _foreign(agent, str(error)) from None
        elif isinstance(happened, Ended):
            if patience.interrupted:
                raise KeyboardInterrupt
            raise agent.error or said(printed) or _silent(agent, printed)
        else:
            told.tell(agent)


def gather(agents: Agents, far: Agent, start_near: Callable[[], Agent], watcher: Watcher) -> Report:
    """The report on what two agents have seen: the far one first, so that it misses nothing of what the near one sends.

    Without the far one it is half a report, and says so: perhaps that node is what is wrong. Raises as `follow` does.
    """
    from k8snet.agent.join import Reader, joined
    from k8snet.agent.lines import Bye, Counts, Error, Ready
    from k8snet.remote.preview import Preview

    told, patience = Progress(), Patience(agents)
    readers, previews = {far: Reader(1)}, {far: Preview(watcher, 1)}
    printed: dict[Agent, list[str]] = {far: []}
    over: set[Agent] = set()
    near: Agent | None = None
    missing: tuple[str, ...] = ()
    while near is None or not over.issuperset(readers):
        patience.look()
        happened = agents.next(ATTENTION)
        if happened is None:
            for agent in readers:
                told.tell(agent)
            continue
        agent = happened.agent
        if isinstance(happened, Ended):
            lost = agent.error or said(printed[agent]) or _silent(agent, printed[agent])
            if near is None and not patience.interrupted:
                missing = (f"node {far.node} was not looked at: {lost.problem}",)
                near = start_near()
                readers, previews[near], printed[near] = {near: Reader(0)}, Preview(watcher, 0), []
            elif near is None or (agent is near and agent not in over):
                raise KeyboardInterrupt if patience.interrupted else lost
            over.add(agent)
            continue
        line = readers[agent].hear(happened.text)
        if line is not None:
            previews[agent].hear(line)
        if line is None:
            printed[agent] = [*printed[agent], happened.text.decode("utf-8", "replace")][-_WORDS:]
        elif isinstance(line, Ready) and near is None:
            near = start_near()
            readers = {near: Reader(0), far: readers[far]}
            previews[near], printed[near] = Preview(watcher, 0), []
        elif isinstance(line, Ready):
            watcher.ready()
        elif isinstance(line, Counts) and agent is near:
            watcher.counts(line.connections, line.answered, line.lost)
        elif isinstance(line, Error):
            readers[agent].half()  # raises it
        elif isinstance(line, Bye):
            over.add(agent)
            if agent is near:
                far.finish()
    report = joined([reader.half() for reader in readers.values()])
    return replace(report, notes=(*missing, *report.notes))


class Progress:
    """Tells a person at a terminal what takes so long, each thing once."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = ""

    def tell(self, agent: Agent) -> None:
        """Nothing, once the agent runs."""
        late = time.monotonic() - self._began > TOLD_AFTER
        if late and not agent.running and agent.state != self._told and sys.stderr.isatty():
            self._told = agent.state
            words = f"k8snet: pod {agent.pod_name} on node {agent.node}: {agent.state}"
            print(inert(words), file=sys.stderr, flush=True)


def _document(line: bytes) -> dict[str, Any] | None:
    """None for what is no document: the log has stderr in it, too."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and str(found.get("apiVersion", "")).startswith("k8snet.io/") else None


def _foreign(agent: Agent, why: str) -> K8snetError:
    return K8snetError(
        f"the agent on node {agent.node} says what this k8snet does not understand: {why}",
        "use an image of the same version: --image REGISTRY/k8snet:VERSION",
    )


def _silent(agent: Agent, printed: Sequence[str]) -> K8snetError:
    last = next((line for line in reversed(printed) if line.strip()), "")
    return K8snetError(
        f"the agent on node {agent.node} has ended without a report: {agent.ended or 'nobody knows why'}"
        + (f"; its last words: {last}" if last else ""),
        "try again; if it was OOMKilled or refused something: --privileged",
    )
