"""Names that could be meant by the beginning of one: what a shell offers when Tab is pressed.

In: what stands before the cursor, the Inventory, the default namespace. Out: whole words. One step at a time, as
kubectl's completion does: namespaces and kinds end in `/` and are completed further, ports come after the `:`.

Surprising: a name that is no proper name of Kubernetes is never offered, whatever the inventory says: a shell would
run what it holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from k8snet.cluster.inventory import Inventory
from k8snet.cluster.lookup import WORKLOADS, things
from k8snet.cluster.names import resolve_to
from k8snet.cluster.near import Thing
from k8snet.cluster.spelling import EXTERNAL, SPELLINGS
from k8snet.cluster.workloads import pods_by_workload
from k8snet.errors import K8snetError

# Nothing in it means anything to a shell.
HARMLESS: Final = re.compile(r"[a-z0-9][a-z0-9./:-]*")
_CLIENTS: Final = ("po", "no", *WORKLOADS)  # what opens connections
_BARE: Final = ("po", "svc")  # what a name without a kind may be


def complete(begun: str, inventory: Inventory, namespace: str | None = None, *, client: bool) -> list[str]:
    """Words that begin with `begun`, for --from (`client`) or --to; `namespace` is -n's."""
    found = _ports(begun, inventory, namespace) if ":" in begun else _names(begun, inventory, namespace, client)
    return sorted({word for word in found if word.startswith(begun) and HARMLESS.fullmatch(word)})


def namespaces(begun: str, inventory: Inventory) -> list[str]:
    """Namespaces that begin with `begun`."""
    found = {thing.namespace for thing in things(inventory) if thing.namespace.startswith(begun)}
    return sorted(space for space in found if HARMLESS.fullmatch(space))


def _names(begun: str, inventory: Inventory, namespace: str | None, client: bool) -> Iterator[str]:
    kinds = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}
    offered = [
        thing
        for thing in things(inventory, pods_by_workload(inventory))
        if thing.kind in (_CLIENTS if client else SPELLINGS)
    ]
    spaces = {thing.namespace for thing in offered if thing.namespace}
    own = [thing for thing in offered if thing.namespace == (namespace or "default")]
    # Where the default namespace is empty, a name is looked for in all of them.
    here = own or ([] if namespace else offered)
    match begun.split("/"):
        case [_]:
            yield from (f"{space}/" for space in spaces)
            yield from (f"{thing.kind}/" for thing in offered)
            yield from _bare(here)
            if not client:
                yield EXTERNAL
        case [first, _]:
            yield from _within(first, offered)
            kind = kinds.get(first)
            yield from (f"{first}/{thing.name}" for thing in (offered if kind == "no" else here) if thing.kind == kind)
            if kind and kind != "no" and not own:  # as reports print it: pod/shop/cart
                yield from (f"{first}/{thing.namespace}/" for thing in offered if thing.kind == kind)
        case [first, second, _]:
            kind = kinds.get(second)
            pairs = {(first, kind), (second, kinds.get(first))}
            yield from (f"{first}/{second}/{t.name}" for t in offered if (t.namespace, t.kind) in pairs)


def _within(space: str, offered: list[Thing]) -> Iterator[str]:
    for thing in offered:
        if thing.namespace == space:
            yield f"{space}/{thing.kind}/"
    yield from (f"{space}/{name}" for name in _bare(t for t in offered if t.namespace == space))


def _bare(offered: Iterable[Thing]) -> Iterator[str]:
    """Names that say enough without their kind: a service and a pod of one name do not."""
    counts = Counter(thing.name for thing in offered if thing.kind in _BARE)
    return (name for name, count in counts.items() if count == 1)


def _ports(begun: str, inventory: Inventory, namespace: str | None) -> Iterator[str]:
    name = begun.rpartition(":")[0]
    try:
        target = resolve_to(name, inventory, namespace)
    except K8snetError:
        return
    if target.service:
        ports = [(port.name, port.port) for port in target.service.ports]
    elif target.node and not target.pod:
        ports = [("", port.node_port) for service in inventory.services for port in service.ports if port.node_port]
    else:
        meant = {*target.addresses}
        pods = [target.pod] if target.pod else [pod for pod in inventory.pods if pod.ips and {*pod.ips} <= meant]
        ports = [(port, number) for pod in pods for port, _, number in pod.named_ports]
        ports += [("", end.port) for end in target.all_endpoints]
    for port, number in ports:
        yield f"{name}:{number}"
        if port:
            yield f"{name}:{port}"
