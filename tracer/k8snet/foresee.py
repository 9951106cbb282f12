"""Ask the kernel what `k8snet.expected` needs to know: the near end of the expected path.

In: a `Pair` and the World. Out: an `Expected`, before anything is sent or changed. Only routes, neighbours
and forwarding entries are read, and whether kube-proxy's chains are there. Each answer opens the next question (the
next netns on the way), so it takes a few rounds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from k8snet.cluster.interfaces import World
from k8snet.cluster.inventory import Inventory
from k8snet.expected import Pair, Terrain, expected
from k8snet.kernel.lookups import Answers, ask
from k8snet.kernel.netns import Netns
from k8snet.kernel.nfnetlink import Netlink, chain
from k8snet.kernel.rules import legacy_tables
from k8snet.report import Expected

if TYPE_CHECKING:
    from k8snet.trace import Request

_ROUNDS: Final = 24  # a guess: of both directions of a way over four nodes
# Of its iptables and IPVS modes, and of its nftables mode.
_CHAINS: Final = (("nat", "KUBE-POSTROUTING"), ("kube-proxy", "masquerading"))


def pair_of(request: Request, netns: int | None) -> Pair | None:
    """The addresses that a request's first packet will have; None for `external`, or without a common IP family."""
    own = {a.version: a for a in reversed(request.client.addresses)}
    server = next((a for a in request.server.addresses if a.version in own), None)
    return Pair(own[server.version], netns, server, request.server.port, request.protocol) if server else None


def foresee(pair: Pair, world: World, inventory: Inventory) -> Expected:
    """What should become of a packet of this pair. Reads only; what cannot be asked stays unknown."""
    nodes = {name: world.netns.get(inum) for name, inum in world.nodes.items()}
    kept = {node.name for node in inventory.nodes} or nodes.keys()
    version = pair.server.version
    proxied = (n.inum for name, n in nodes.items() if n is not None and name in kept and has_kube_proxy(n, version))
    terrain = Terrain(world, inventory, frozenset(proxied))
    answers = Answers()
    asked: set[object] = set()
    for _ in range(_ROUNDS):
        found, wanted = expected(pair, terrain, answers)
        if not wanted - asked:
            break
        asked |= wanted
        more = ask(wanted, (), world.netns)
        answers.routes |= more.routes
        answers.neighbours |= more.neighbours
        answers.forwarding |= more.forwarding
    return found


def has_kube_proxy(place: Netns, version: int) -> bool:
    """kube-proxy has written its chains there; of iptables-legacy: there is a NAT table, to read it all takes long."""
    family = "ip" if version == 4 else "ip6"
    with suppress(OSError), Netlink(place.path) as netlink:
        if any(chain(netlink, family, table, name) for table, name in _CHAINS):
            return True
    return (family, "nat") in legacy_tables(place)
