"""Which NetworkPolicy a packet filter's rule stands for: read back from the chains and comments that name it.

In: a rule that drops or rejects, and a way to read other chains of its table, in the words of iptables-save or of nft.
Out: a `Denial`, or None for a rule that enforces no policy. What decides is the name of a chain or a comment that only
such a program writes. Surprising: the rule that drops seldom names a policy. It stands at the end of the pod's own
chain, and the policies are those whose chains were asked before it and did not accept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from k8snet.event import FiveTuple

Way = Literal["ingress", "egress"]
Lines = Callable[[str], list[str]]  # a chain's name -> its rules as text


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as the rules name it."""

    name: str  # namespace/name, or a name alone where it has no namespace
    kind: str = "NetworkPolicy"


@dataclass(frozen=True, slots=True)
class Denial:
    """Network policies do not let a packet through."""

    by: str  # Calico, kube-router, ...; empty: not known
    way: Way | None = None  # of the pod that is meant; None: the rules do not say
    policies: tuple[Policy, ...] = ()  # those that were asked; empty: the rules do not name them
    explicit: bool = False  # a rule of the policy itself denies; else none of them allows
    pod: str | None = None  # namespace/name, where a comment has it


def denial(table: str, chain: str, text: str, lines: Lines, packet: FiveTuple | None = None) -> Denial | None:
    """What a rule that drops or rejects enforces. `lines` reads other chains of the same table."""
    said = comments(text)
    if _INVALID.search(text):
        return None
    if calico := _CALICO.match(chain):
        return _calico(calico["kind"], said, lines, chain)
    if chain.startswith("KUBE-POD-FW-"):
        return _kube_router(chain, said, lines, packet)
    if chain == "KUBE-NWPLCY-TAIL":
        return Denial("kube-router")
    return _plain(table, chain, said)


def queue_of_policies(table: str) -> Denial | None:
    """A program in user space decides about what this table queues for it, and it enforces network policies."""
    return Denial(table) if _ENFORCERS.search(table) else None


_INVALID: Final = re.compile(r"--ctstate INVALID\b|\bct state invalid\b")


def comments(text: str) -> list[str]:
    """The comments of a rule, as iptables-save or nft prints them."""
    return [quoted or bare for quoted, bare in _comment(text).findall(text)]


def _target(text: str) -> str:
    """The chain that a rule jumps or goes to; empty: none."""
    found = _TARGET.search(_comment(text).sub("", text))
    return found[1] if found else ""


def _comment(text: str) -> re.Pattern[str]:
    # "-m comment --comment X" of iptables is not a comment "--comment" of nft.
    return _IPTABLES_COMMENT if text.startswith("-A ") else _NFT_COMMENT


_IPTABLES_COMMENT: Final = re.compile(r' --comment (?:"([^"]*)"|([^\s"]\S*))')
_NFT_COMMENT: Final = re.compile(r'\bcomment (?:"([^"]*)"|([^\s"]\S*))')
_TARGET: Final = re.compile(r"(?:^| )(?:-j|-g|jump|goto) (\S+)")


# --- Calico ----------------------------------------------------------------------------------------------------------

# felix/rules/rule_defs.go names the chains: to and from a workload, to and from a host endpoint; policy and profile,
# inbound and outbound; groups of policies. In nftables mode the old table's name comes first: filter-cali-tw-...
_CALICO: Final = re.compile(r"(?:filter-)?cali-(?P<kind>tw|fw|th|fh|thfw|fhfw|pi|po|pri|pro)-")
_CALICO_GROUP: Final = re.compile(r"(?:filter-)?cali-g[io]-")
_CALICO_WAY: Final[dict[str, Way]] = {
    "tw": "ingress",
    "fw": "egress",
    "fh": "ingress",
    "fhfw": "ingress",
    "th": "egress",
    "thfw": "egress",
    "pi": "ingress",
    "pri": "ingress",
    "po": "egress",
    "pro": "egress",
}
# felix/rules/policy.go: "Policy shop/knp.default.web ingress", since v3.31 "NetworkPolicy shop/web ingress".
_CALICO_NAME: Final = re.compile(r"(?:^|; )(?P<kind>\w*Policy|Profile) (?P<name>\S+) (?:ingress|egress)$")


def _calico(kind: str, said: list[str], lines: Lines, chain: str) -> Denial | None:
    way = _CALICO_WAY[kind]
    if kind in ("pi", "po", "pri", "pro"):
        return Denial("Calico", way, _calico_policies([chain], lines), explicit=True)
    # The same chain drops for other reasons too: tunnels out of a pod, endpoints that are down, rates.
    if not any(comment.endswith(("if no policies passed packet", "if no profiles matched")) for comment in said):
        return None
    asked = [target for line in lines(chain) if (target := _target(line))]
    groups = [t for group in asked if _CALICO_GROUP.match(group) for line in lines(group) if (t := _target(line))]
    chains = [c for c in (*asked, *groups) if (m := _CALICO.match(c)) and m["kind"] in ("pi", "po")]
    return Denial("Calico", way, _calico_policies(chains, lines))


def _calico_policies(chains: Iterable[str], lines: Lines) -> tuple[Policy, ...]:
    """A policy's chain has its name in the comments of the first rule."""
    found = []
    for chain in chains:
        named = (_CALICO_NAME.search(c) for c in comments(next(iter(lines(chain)), "")))
        if match := next((m for m in named if m), None):
            found.append(_calico_policy(match["kind"], match["name"]))
    return tuple(dict.fromkeys(found))


def _calico_policy(kind: str, name: str) -> Policy:
    namespace, slash, short = name.partition("/")
    if kind == "Profile":
        return Policy(name, kind)
    if not slash:
        return Policy(name, "GlobalNetworkPolicy" if kind == "Policy" else kind)
    if short.startswith("knp.default."):
        return Policy(f"{namespace}/{short.removeprefix('knp.default.')}")
    if kind in ("Policy", "KubernetesNetworkPolicy"):
        # Calico's own policies have their tier in front ("default.web"): Kubernetes' have not.
        return Policy(name, "NetworkPolicy")
    return Policy(name, kind)


# --- kube-router -----------------------------------------------------------------------------------------------------

_ROUTER_POD: Final = re.compile(r"^(?P<pod>\S+/\S+) reject$")
_ROUTER_POD_OLD: Final = re.compile(
    r"rule to REJECT traffic destined for POD name:(?P<name>\S+) namespace: (?P<ns>\S+)"
)
_ROUTER_POLICY: Final = re.compile(r"^(?P<name>\S+/\S+) policy$")
_ROUTER_POLICY_OLD: Final = re.compile(r"^run through nw policy (?P<name>\S+)$")
_NOT_A_POLICY: Final = ("KUBE-NWPLCY-DEFAULT", "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-TAIL")
_ADDRESS: Final = re.compile(r"(?: -|ip6? )(?P<end>[sd])(?:addr)? (?P<address>[0-9a-f.:]+)")
_FROM_NODE: Final = re.compile(r"--src-type LOCAL|fib saddr type local")


def _kube_router(chain: str, said: list[str], lines: Lines, packet: FiveTuple | None) -> Denial | None:
    pod = namespace = None
    for comment in said:
        if new := _ROUTER_POD.match(comment):
            pod, namespace = new["pod"], new["pod"].partition("/")[0]
        elif old := _ROUTER_POD_OLD.search(comment):
            pod, namespace = f"{old['ns']}/{old['name']}", old["ns"]
    if pod is None:
        return None
    rules = lines(chain)
    # "-d POD" of the rule that lets the node itself in is the pod's address, whatever the policies say.
    own = next((m["address"] for r in rules if _FROM_NODE.search(r) for m in _ADDRESS.finditer(r)), None)
    way: Way | None = None
    if own is not None and packet is not None:
        way = "ingress" if str(packet.daddr) == own else "egress"
    asked = []
    for rule in rules:
        if not _target(rule).startswith("KUBE-NWPLCY-") or _target(rule) in _NOT_A_POLICY:
            continue
        end = _ADDRESS.search(rule)
        if end is not None and way is not None and (end["end"] == "d") != (way == "ingress"):
            continue
        for comment in comments(rule):
            if new := _ROUTER_POLICY.match(comment):
                asked.append(Policy(new["name"]))
            elif old := _ROUTER_POLICY_OLD.match(comment):
                asked.append(Policy(f"{namespace}/{old['name']}"))
    return Denial("kube-router", way, tuple(dict.fromkeys(asked)), pod=pod)


# --- others ----------------------------------------------------------------------------------------------------------

_PLAIN: Final = re.compile(
    r"\b(?P<kind>(?:Global|Cluster|Admin)*Network ?Policy)[: ]+"
    r"(?P<name>[a-z0-9][-a-z0-9.]*(?:/[a-z0-9][-a-z0-9.]*)?)(?=[\s:;,]|$)"
)
_PLAIN_POD: Final = re.compile(r"\bpod[: ]+(?P<pod>[a-z0-9][-a-z0-9.]*/[a-z0-9][-a-z0-9.]*)", re.IGNORECASE)
_PLAIN_WAY: Final = re.compile(r"\b(ingress|egress)\b", re.IGNORECASE)
_ENFORCERS: Final = re.compile(r"network-?polic(?:y|ies)\b", re.IGNORECASE)


def _plain(table: str, chain: str, said: list[str]) -> Denial | None:
    """A rule whose comment names a policy, or whose table is made for policies and nothing else."""
    text = " ".join(said)
    named = [Policy(m["name"], m["kind"].replace(" ", "")) for m in _PLAIN.finditer(text)]
    if not named and not _ENFORCERS.search(table):
        return None
    ways = {way.lower() for way in _PLAIN_WAY.findall(f"{text} {chain}")}
    pod = _PLAIN_POD.search(text)
    return Denial(
        by=table if _ENFORCERS.search(table) else "",
        way=("ingress" if "ingress" in ways else "egress") if len(ways) == 1 else None,
        policies=tuple(dict.fromkeys(named)),
        pod=pod["pod"] if pod else None,
    )
