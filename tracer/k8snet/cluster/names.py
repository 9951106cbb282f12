"""Names looked up: `[ns/][kind/]name[:port]`, addresses and DNS names, with what they mean as client and as server.

In: the text behind --from or --to, the Inventory, the default namespace (`-n`). Out: a `Target`, or a K8snetError
that lists what was meant perhaps, spelled so that it can be copied: what it lists has been looked up the same way, and
found. What each form means is in docs/names.md.

Surprising: without -n, a name that the namespace `default` lacks is looked for in all the others, as long as only
one of them has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from k8snet.cluster.client import Client
from k8snet.cluster.inventory import Inventory, Pod, Protocol
from k8snet.cluster.lookup import behind_dns, listed, thing_of
from k8snet.cluster.server import Server
from k8snet.cluster.spelling import Name, parse
from k8snet.cluster.targets import Target
from k8snet.errors import K8snetError

__all__ = ["Name", "behind_dns", "parse", "resolve_from", "resolve_to", "taken_here"]


def resolve_from(
    text: str, inventory: Inventory, namespace: str | None = None, protocol: Protocol | None = None
) -> Target:
    """The client that `text` names; raises K8snetError. `namespace` is -n's, None when it was not given.

    A workload's `Target` is the best of its pods: `taken_here` chooses again, when it is known which are here.
    """
    return Client(parse(text), inventory, namespace, protocol).target()


def resolve_to(
    text: str, inventory: Inventory, namespace: str | None = None, protocol: Protocol | None = None
) -> Target:
    """The server that `text` names, as the client addresses it; raises K8snetError.

    `namespace` is -n's, None when it was not given; `protocol` chooses between ports of one number (DNS: 53).
    """
    return Server(parse(text), inventory, namespace, protocol).target()


def taken_here(client: Target, is_here: Callable[[Pod], bool]) -> Target:
    """A workload's pod on this node, with a note on the others; raises K8snetError when none is here."""
    if not client.pods:
        return client
    here = [pod for pod in client.pods if is_here(pod)]
    if not here:
        places: dict[str, list[str]] = {}
        for pod in client.pods:
            places.setdefault(pod.node or "another node", []).append(thing_of(pod).spelled)
        raise K8snetError(
            f"no pod of {client.workload} runs on this node",
            "run the same command there: " + "; ".join(f"{node} ({listed(pods)})" for node, pods in places.items()),
        )
    taken, others = here[0], [pod for pod in client.pods if pod is not here[0]]
    versions = {address.version for address in client.addresses}
    note = f"{client.workload} has {len(client.pods)} running pods, taken: {thing_of(taken).spelled}"
    if others:
        note += "; others: "
        note += listed(thing_of(pod).spelled + ("" if pod in here else f" on {pod.node}") for pod in others)
    return replace(
        client,
        text=f"pod/{taken.key}",
        pod=taken,
        addresses=tuple(address for address in taken.ips if address.version in versions),
        notes=(*client.notes, note) if others else client.notes,
    )
