"""What NetworkPolicies say of a connection: which of them select its pods, and whether one allows it.

In: an Inventory, and the two ends as pods see them, behind any Service. Out: an `Allowance` for each pod that is
selected: egress of the client, ingress of the server. By the words of networking.k8s.io/v1; a plugin may do otherwise,
so it is an expectation, and never the verdict on a packet. What it rests on may not be known (labels of namespaces are
not asked for): then it says so, instead of yes or no.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, Literal

from k8snet.cluster.inventory import Inventory, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, Selector
from k8snet.event import Address

Way = Literal["ingress", "egress"]

_NAMED: Final = 3  # a guess: so many policies are named in one sentence
# The API server gives every namespace this label (KEP-2161).
_NAMESPACE: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the policies that select one pod say of a connection."""

    way: Way
    pod: str  # namespace/name, whose policies they are
    peer: str  # the other end: "pod shop/cart (app=cart)", an address
    port: str  # "port 8080/TCP"; empty: any
    selecting: tuple[str, ...]  # namespace/name of the policies that select the pod for this way
    allowing: tuple[str, ...] = ()  # those of them that allow the connection; one is enough
    unknown: str | None = None  # none is known to allow it, and this is why one of them may

    @property
    def denied(self) -> bool:
        """No policy allows it, and one selects the pod."""
        return not self.allowing and self.unknown is None

    def __str__(self) -> str:
        """One sentence."""
        toward = {"ingress": f"ingress to pod {self.pod} from", "egress": f"egress from pod {self.pod} to"}[self.way]
        what = f"{toward} {self.peer}" + (f", {self.port}" if self.port else "")
        if self.allowing:
            return f"{_names(self.allowing)} {'allows' if len(self.allowing) == 1 else 'allow'} {what}"
        if self.unknown is not None:
            return f"it is not known whether {_names(self.selecting)} allows {what}: {self.unknown}"
        select = f"{'selects' if len(self.selecting) == 1 else 'select'} it for {self.way}"
        return f"no NetworkPolicy allows {what}, and {_names(self.selecting)} {select}"


def _names(policies: tuple[str, ...]) -> str:
    more = f" and {len(policies) - _NAMED} more" if len(policies) > _NAMED else ""
    return f"NetworkPolicy {', '.join(policies[:_NAMED])}{more}"


def allowances(
    inventory: Inventory, client: Address, server: Address, port: int | None, protocol: str | None
) -> tuple[Allowance, ...]:
    """Of a connection to `server`, a pod's own address; `protocol`: tcp, udp, sctp, icmp; None of both: any."""
    source, target = inventory.pod_by_ip.get(client), inventory.pod_by_ip.get(server)
    if source is not None and source is target:
        return ()  # no policy keeps a pod from itself
    found = []
    way: Way
    for way, pod, other in (("egress", source, server), ("ingress", target, client)):
        node = inventory.node_by_ip.get(other)
        if pod is None or (node is not None and node.name == pod.node):
            continue  # nor from its own node
        chosen = [p for p in inventory.policies_of(pod) if (p.ingress if way == "ingress" else p.egress)]
        if chosen:
            asked = _Connection(inventory, other, target, port, protocol.upper() if protocol else None)
            found.append(_allowance(way, pod, chosen, asked))
    return tuple(found)


Answer = bool | str  # a text: not known, and why


@dataclass(frozen=True, slots=True)
class _Connection:
    """What a rule is held against."""

    inventory: Inventory
    other: Address  # the end that the policy does not select
    target: Pod | None  # whose port it is, and whose names of ports count
    port: int | None
    protocol: str | None

    def fits(self, policy: NetworkPolicy, rule: PolicyRule) -> Answer:
        """The rule allows it: one of its peers and one of its ports; with none, all are meant."""
        peers = _any(self.is_peer(policy, peer) for peer in rule.peers) if rule.peers else True
        ports = _any(self.is_port(port) for port in rule.ports) if rule.ports else True
        return _all((peers, ports))

    def is_peer(self, policy: NetworkPolicy, peer: PolicyPeer) -> Answer:
        """The other end is what the rule names."""
        if peer.block is not None:
            inside = self.other in ip_network(peer.block)
            return inside and not any(self.other in ip_network(part) for part in peer.excepted)
        pod = self.inventory.pod_by_ip.get(self.other)
        if pod is None and self.other in self.inventory.node_by_ip:
            return f"{self.other} is a node, and plugins differ in what they take hostNetwork pods for"
        if pod is None:
            inside = any(self.other in network for network in self.inventory.pod_networks)
            return f"which pod has {self.other} is not known" if inside else False
        own = pod.namespace == policy.namespace
        spaces = own if peer.namespaces is None else _is_namespace(peer.namespaces, pod.namespace)
        return _all((spaces, peer.pods is None or peer.pods.matches(dict(pod.labels))))

    def is_port(self, allowed: PolicyPort) -> Answer:
        """The port is one of those that the rule names."""
        if self.protocol not in (None, "TCP", "UDP", "SCTP"):
            return f"NetworkPolicies say nothing of {self.protocol.lower() if self.protocol else ''}"
        if self.protocol is not None and self.protocol != allowed.protocol:
            return False
        if allowed.port is None:
            return self.protocol is not None or "it depends on the protocol"
        if self.port is None:
            return "it depends on the port"
        if isinstance(allowed.port, int):
            return allowed.port <= self.port <= (allowed.end or allowed.port)
        if self.target is None:
            return f"its port {allowed.port!r} is a name, and only pods have those"
        return (allowed.port, allowed.protocol, self.port) in self.target.named_ports


def _allowance(way: Way, pod: Pod, policies: list[NetworkPolicy], asked: _Connection) -> Allowance:
    said = {}
    for policy in policies:
        rules = policy.ingress_rules if way == "ingress" else policy.egress_rules
        said[policy.key] = _any(asked.fits(policy, rule) for rule in rules)
    peer = asked.inventory.pod_by_ip.get(asked.other)
    labels = ", ".join(f"{key}={value}" for key, value in peer.labels) if peer else ""
    return Allowance(
        way=way,
        pod=pod.key,
        peer=(f"pod {peer.key}" + (f" ({labels})" if labels else "")) if peer else str(asked.other),
        port=f"port {asked.port}/{asked.protocol}" if asked.port and asked.protocol else "",
        selecting=tuple(said),
        allowing=tuple(key for key, answer in said.items() if answer is True),
        unknown=next((answer for answer in said.values() if isinstance(answer, str)), None),
    )


def _is_namespace(selector: Selector, name: str) -> Answer:
    """The namespace has these labels: only the one that all have is known."""
    known = Selector(
        tuple((key, value) for key, value in selector.labels if key == _NAMESPACE),
        tuple(part for part in selector.expressions if part[0] == _NAMESPACE),
    )
    if not known.matches({_NAMESPACE: name}):
        return False
    return known == selector or f"it asks for labels of namespace {name}, which k8snet does not read"


def _any(answers: Iterable[Answer]) -> Answer:
    """Kleene's or: a yes outweighs what is not known."""
    given = list(answers)
    return True if True in given else next((answer for answer in given if isinstance(answer, str)), False)


def _all(answers: Iterable[Answer]) -> Answer:
    """Kleene's and: a no outweighs what is not known."""
    given = list(answers)
    return False if False in given else next((answer for answer in given if isinstance(answer, str)), True)
