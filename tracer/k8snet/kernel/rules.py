"""A rule's text, owner and meaning, read lazily from the netns: of legacy the table, of nft the chain that is asked.

A step of `ruletrace` names a rule by handle (nft) or position (legacy). Here it becomes the line that `iptables-save`
or `nft` prints, and what that line is there for. Surprising: to list a legacy table that does not exist creates it,
and an old `iptables-nft -S` creates the built-in chains that a table lacks, so it is used only where there are all. A
rule set that changes between the packet and the look (kube-proxy syncs) can shift legacy positions, and takes a rule
away with its text: `read_ahead` reads as soon as the drop is known. Measured (`make bench`): among kube-proxy's rules
for 5,000 Services naming takes 0.04 s, in a single chain of 20,000 rules 0.5 s.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import getprotobyname
from typing import Final

from k8snet.errors import K8snetError
from k8snet.event import FiveTuple
from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import (
    Netlink,
    chains,
    denying_rules,
    generation,
    handles,
    has_rules,
    rule,
    tables_with_rules,
)
from k8snet.kernel.nfnetlink import chain as nfnetlink_chain
from k8snet.kernel.nftables import HANDLE, Nft, NftError, is_plain
from k8snet.kernel.policies import Denial, denial
from k8snet.kernel.ruletrace import TABLE, Engine, Kind, RuleStep
from k8snet.kernel.verdictmap import decided, is_bare

IPTABLES: Final = ("raw", "mangle", "nat", "filter", "security")
DENIES: Final = ("drop", "reject")
UNKNOWN: Final = "unknown"

_SAVE_SECONDS: Final = 20  # a guess: 20,000 rules take 1
_REST: Final = 20  # of its own time before a legacy table is read again
_ATTEMPTS: Final = 3  # a guess: how often to read a chain again because the rule set changed meanwhile
_BUILT_IN: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
NO_LOCAL_ENDPOINT: Final = "has no endpoint on this node"  # in the meaning of kube-proxy's DROP rule
_HANDLE: Final = re.compile(r"^\s*(?P<text>.*?) # handle (?P<handle>\d+)$")
_POLICY: Final = re.compile(r":(?P<chain>\S+) (?P<policy>\S+) \[(?P<packets>\d+):\d+\]")
_LISTED: Final = re.compile(r"-(?:N (?P<own>\S+)|P (?P<chain>\S+) (?P<policy>\S+))")  # of iptables -S
_RULE: Final = re.compile(r"(?:\[(?P<packets>\d+):\d+\] )?(?P<text>-A (?P<chain>\S+).*)")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a rule or policy is there for."""

    owner: str  # kube-proxy, docker, Calico, ...; "unknown"
    sentence: str = ""  # "Service shop/empty, port http, has no endpoints"
    service: str | None = None  # namespace/name
    port: str | None = None  # the Service port's name
    endpoint: str | None = None  # ip:port


@dataclass(frozen=True, slots=True)
class NamedRule:
    """The rule or policy that decided, and what named it."""

    by: str  # nftrace, nflog, counters
    table: str  # "ip filter", as nft names it, or "filter" for iptables-legacy
    chain: str
    text: str  # as iptables-save or nft prints it
    policy: bool
    rejects: bool = False
    meaning: str = ""
    owner: str = ""
    engine: str = ""  # legacy or nft
    candidates: tuple[str, ...] = ()  # other rules that fit as well (counters only)
    service: str | None = None
    hook: str | None = None  # prerouting, input, forward, output, postrouting
    denial: Denial | None = None  # it enforces a network policy
    handle: int | None = None  # of an nft rule that decided by itself


@dataclass(slots=True)
class _Saved:
    """One table as iptables-save prints it."""

    lines: dict[str, list[str]] = field(default_factory=dict)  # chain -> its -A lines
    counts: dict[str, list[int]] = field(default_factory=dict)  # chain -> packets, with -c
    policies: dict[str, tuple[str, int]] = field(default_factory=dict)  # chain -> policy ("-": none) and packets

    @classmethod
    def parse(cls, output: str) -> _Saved:
        """From the output of iptables-save for one table, or of `iptables -S` for one chain."""
        saved = cls()
        for line in output.splitlines():
            if policy := _POLICY.fullmatch(line):
                saved.policies[policy["chain"]] = policy["policy"], int(policy["packets"])
            elif listed := _LISTED.fullmatch(line):
                saved.policies[listed["own"] or listed["chain"]] = listed["policy"] or "-", 0
            elif rule := _RULE.fullmatch(line):
                saved.lines.setdefault(rule["chain"], []).append(rule["text"])
                saved.counts.setdefault(rule["chain"], []).append(int(rule["packets"] or 0))
        return saved


@dataclass(frozen=True, slots=True)
class _Listing:
    """One nf_tables chain as iptables-nft or nft prints it."""

    generation: int
    lines: list[str]
    texts: dict[int, str]  # handle -> line; of rules that are gone too
    policy: str | None = None  # as iptables-nft has it: "-P FORWARD DROP"


@dataclass(frozen=True, slots=True)
class _Read:
    """An iptables-legacy table as it was when it was read."""

    at: int  # CLOCK_MONOTONIC, ns
    took: int  # ns
    saved: _Saved


class RuleBook:
    """The rules of one netns.

    A rule of nf_tables that was read once is remembered: no other rule ever gets its handle. What is not known yet is
    looked for again when the rule set has changed. A rule of iptables-legacy is a position, and means something only
    as long as nobody changes the table.
    """

    def __init__(self, netns: Netns) -> None:
        self.netns = netns
        self._saved: dict[tuple[str, str], _Read] = {}
        self._told: dict[RuleStep, str] = {}
        self._listed: dict[tuple[str, str, str], _Listing] = {}
        self._elements: dict[tuple[str, str, str, int | None, FiveTuple | None], str | None] = {}

    def read_ahead(self, steps: Sequence[RuleStep]) -> None:
        """Read now what naming will need, while the rules still are as the packet met them."""
        for end, step in enumerate(steps, 1):
            if step.engine == "legacy":
                self._told.setdefault(step, self.text(step))
            elif step.verdict == "drop":
                self.name(steps[:end])

    # --- one step -----------------------------------------------------------------------------------------------------

    def text(self, step: RuleStep) -> str:
        """The rule as iptables-save or nft prints it, a policy as `-P FORWARD DROP` or `policy drop`."""
        if step.kind == "return":
            return "end of the chain"
        if step in self._told:
            return self._told[step]
        if step.engine == "nft":
            if step.kind == "policy" and step.table not in IPTABLES:
                return f"policy {step.verdict}"
            listing = self._listing(step)
            if step.kind == "policy":
                return listing.policy or f"policy {step.verdict}"
            unread = f"rule with handle {step.handle} of {place_of(step)} {step.chain}"
            return listing.texts.get(step.handle or 0, unread)
        saved = self._legacy(step)
        if step.kind == "policy":
            return f"-P {step.chain} {saved.policies[step.chain][0]}" if saved else f"policy {step.verdict}"
        lines, position = saved.lines.get(step.chain, []) if saved else [], (step.number or 0) - 1
        if 0 <= position < len(lines):
            return lines[position]
        return f"rule {step.number} of {step.table} {step.chain}"

    def verdict(self, step: RuleStep) -> str:
        """drop, reject, accept, jump, ...: from the step, and where the kernel does not say it from the rule's text."""
        if step.engine == "nft":
            return self._kind_of_drop(step) if (step.verdict, step.kind) == ("drop", "rule") else step.verdict
        text = self.text(step)
        if step.kind == "policy":
            return text.rpartition(" ")[2].lower()
        if step.kind == "return":
            return "return"
        saved = self._legacy(step)
        return _verdict_of(text, set(saved.policies) if saved else set())

    def explain(self, step: RuleStep) -> Meaning:
        """Whose rule it is and what for."""
        if step.kind == "policy":
            return _policy_meaning(step, self.verdict(step), self._chain_names(step))
        return explain(step.table, step.chain, self.text(step), self.lines(step, step.chain))

    def culprit(self, steps: Sequence[RuleStep]) -> RuleStep | None:
        """The step that ended the packet: the last one that drops or rejects. None: these steps do not say."""
        return next((s for s in reversed(steps) if s.netns == self.netns.inum and self.verdict(s) in DENIES), None)

    def name(self, steps: Sequence[RuleStep]) -> NamedRule | None:
        """The rule or policy that dropped or rejected the packet that these steps belong to."""
        step = self.culprit(steps)
        if step is None:
            return None
        if step.engine == "legacy":
            return self._named(step, "nflog")
        through = self._through(step, steps)
        return self._named(step, "nftrace") if through is None else self._named(step, "nftrace", *through)

    def _through(self, step: RuleStep, steps: Sequence[RuleStep]) -> tuple[str, str] | None:
        """The verdict map's element that dropped it, or sent it where everything is; and the chain of that lookup."""
        if step.kind != "rule":
            return None
        if own := self._element(step):
            return own, step.chain
        before = itertools.takewhile(lambda s: s is not step, steps)
        sent = [s for s in before if (s.trace_id, s.table, s.target) == (step.trace_id, step.table, step.chain)]
        if not sent or (found := self._element(sent[-1])) is None:
            return None
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
            return (found, sent[-1].chain) if is_bare(netlink, step) else None
        return None

    def _named(self, step: RuleStep, by: str, element: str | None = None, chain: str | None = None) -> NamedRule:
        text = element or self.text(step)
        meaning = explain(step.table, step.chain, element) if element else self.explain(step)
        return NamedRule(
            by=by,
            table=place_of(step),
            chain=chain or step.chain,
            text=text,
            policy=step.kind == "policy",
            rejects=self.verdict(step) == "reject",
            meaning=meaning.sentence,
            owner=meaning.owner,
            engine=step.engine,
            service=meaning.service,
            hook=step.hook,
            denial=denial(step.table, step.chain, self.text(step), lambda chain: self.lines(step, chain), step.packet)
            if step.kind == "rule"
            else None,
            handle=None if element else step.handle,
        )

    # --- by counters --------------------------------------------------------------------------------------------------

    def suspects(self, before: Snapshot, after: Snapshot, packet: FiveTuple | None, drops: int) -> list[NamedRule]:
        """Rules and policies that drop or reject, counted at least `drops` more packets, and fit the packet."""
        found = []
        for key, now in after.counts.items():
            then = before.counts.get(key)
            if now.packets - (then.packets if then is not None else 0) < max(drops, 1):
                continue
            named = self._named(now.step, "counters")
            if packet is None or not contradicts(named.text, packet):
                found.append(named)
        return found

    def name_by_counters(
        self, before: Snapshot, after: Snapshot, packet: FiveTuple | None, drops: int
    ) -> NamedRule | None:
        """The one rule whose counter rose; with `candidates` when several did; None when none did."""
        found = self.suspects(before, after, packet, drops)
        if len(found) < 2:
            return found[0] if found else None
        return replace(found[0], candidates=tuple(f"{s.table}: {s.text}" for s in found[1:]))

    # --- the whole netns ----------------------------------------------------------------------------------------------

    def backends(self) -> frozenset[Engine]:
        """Which of iptables-legacy and nf_tables have rules, or policies that are not accept, in this netns."""
        found: set[Engine] = set()
        for family, table in legacy_tables(self.netns):
            saved = self._table(family, table)
            if saved is not None and (saved.lines or any(p == "DROP" for p, _ in saved.policies.values())):
                found.add("legacy")
                break
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink, Netlink(self.netns.path) as other:
            if has_rules(netlink, TABLE) or any(c.policy == "drop" for c in chains(other)):
                found.add("nft")
        return frozenset(found)

    def mixed(self) -> dict[str, tuple[str, ...]]:
        """Where both iptables-legacy and nf_tables have rules here: the tables of "legacy" and of "nft" that do."""
        there = legacy_tables(self.netns)
        with contextlib.suppress(OSError):
            nft = (
                [f"{table.family} {table.name}" for table in tables_with_rules(self.netns.path, TABLE)] if there else []
            )
            # Dear where there are thousands of rules: asked last.
            saved = [(family, table, self._table(family, table)) for family, table in there] if nft else []
            legacy = [t if f == "ip" else f"{f} {t}" for f, t, s in saved if s is not None and s.lines]
            if legacy and nft:
                return {"legacy": tuple(legacy), "nft": tuple(nft)}
        return {}

    # --- reading ------------------------------------------------------------------------------------------------------

    def lines(self, step: RuleStep, chain: str) -> list[str]:
        """The rules of a chain of the step's table, as iptables-save or nft prints them."""
        if step.engine == "nft":
            return self._listing(replace(step, chain=chain, handle=None)).lines
        saved = self._legacy(step)
        return saved.lines.get(chain, []) if saved is not None else []

    def _chain_names(self, step: RuleStep) -> set[str]:
        if step.engine == "legacy":
            saved = self._legacy(step)
            return set(saved.policies) if saved is not None else set()
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
            return {c.name for c in chains(netlink) if (c.family, c.table) == (step.family, step.table)}
        return set()

    def _legacy(self, step: RuleStep) -> _Saved | None:
        """The step's table as iptables-legacy-save prints it; None without the tool, or when it has no such chain."""
        saved = self._table(step.family, step.table, step.ktime_ns)
        return saved if saved is not None and step.chain in saved.policies else None

    def _table(self, family: str, table: str, since: int = 0) -> _Saved | None:
        known, now = self._saved.get((family, table)), time.monotonic_ns()
        # A busy flow meets rules all the time: reading 20,000 of them must not take a CPU for itself.
        if known is not None and (known.at >= since or now - known.at < _REST * known.took):
            return known.saved
        there = (family, table) in legacy_tables(self.netns)
        output = save(self.netns, "legacy", family, table) if there else None
        if output is None:
            return None
        read = _Read(now, time.monotonic_ns() - now, _Saved.parse(output))
        self._saved[family, table] = read
        return read.saved

    def _listing(self, step: RuleStep) -> _Listing:
        """The step's chain, with its rule if that still is there."""
        key = step.family, step.table, step.chain
        known = self._listed.get(key)
        if known is not None and (step.handle in known.texts or known.generation == self._generation()):
            return known
        fresh = _Listing(0, [], {})
        for _ in range(_ATTEMPTS):
            now = self._generation()
            fresh = self._iptables(now, *key) or self._nft(now, *key)
            if self._generation() == now:
                break
        if known is not None:  # a rule that is gone by now may still be asked for
            fresh = replace(fresh, texts={**known.texts, **fresh.texts})
        self._listed[key] = fresh
        return fresh

    def _iptables(self, generation: int, family: str, table: str, chain: str) -> _Listing | None:
        """The chain as iptables-nft-save prints it; None when it is none of iptables'."""
        if family not in ("ip", "ip6") or table not in IPTABLES:
            return None
        saved = self._saved_chain(family, table, chain)
        if saved is None or chain not in saved.policies:
            return None
        lines, order = saved.lines.get(chain, []), list[int]()
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
            order = handles(netlink, family, table, chain)
        # Rules of a chain have the same order in the kernel's list of handles and in iptables-nft-save.
        texts = dict(zip(order, lines, strict=True)) if len(order) == len(lines) else {}
        policy = saved.policies[chain][0]
        return _Listing(generation, lines, texts, f"-P {chain} {policy}" if policy != "-" else None)

    def _saved_chain(self, family: str, table: str, chain: str) -> _Saved | None:
        output = None
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
            if all(nfnetlink_chain(netlink, family, table, name) for name in _BUILT_IN[table]):
                output = list_chain(self.netns, family, table, chain)
        output = output if output is not None else save(self.netns, "nft", family, table)
        return None if output is None else _Saved.parse(output)

    def _nft(self, generation: int, *place: str) -> _Listing:
        """The chain as nft prints it."""
        texts: dict[int, str] = {}
        if all(is_plain(name) for name in place):
            with contextlib.suppress(NftError, K8snetError, OSError), Nft(self.netns.path) as nft:
                for line in nft.run("list chain {} {} {}".format(*place), HANDLE).splitlines():
                    if found := _HANDLE.match(line):
                        texts[int(found["handle"])] = found["text"]
        return _Listing(generation, list(texts.values()), texts)

    def _kind_of_drop(self, step: RuleStep) -> str:
        """drop or reject: for the kernel's trace both are a drop."""
        with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
            found = rule(netlink, step.family, step.table, step.chain, step.handle or 0)
            if found is not None and found.verdict is not None:
                return "reject" if found.verdict == "reject" else "drop"
        return "reject" if _rejects(self.text(step)) else "drop"

    def _element(self, step: RuleStep) -> str | None:
        """The element of a verdict map by which the step's rule decided."""
        key = step.family, step.table, step.chain, step.handle, step.packet
        if key not in self._elements:
            self._elements[key] = None
            with contextlib.suppress(OSError), Netlink(self.netns.path) as netlink:
                self._elements[key] = decided(netlink, step)
        return self._elements[key]

    def _generation(self) -> int:
        try:
            with Netlink(self.netns.path) as netlink:
                return generation(netlink)
        except OSError:
            return 0


def place_of(step: RuleStep) -> str:
    """The table as a report names it: `ip filter` for nft, `filter` (`ip6 filter`) for iptables-legacy."""
    return step.table if step.engine == "legacy" and step.family == "ip" else f"{step.family} {step.table}"


# --- iptables-save ---------------------------------------------------------------------------------------------------


def legacy_tables(netns: Netns) -> list[tuple[str, str]]:
    """(family, table) of the iptables-legacy tables that exist in the netns. Reading these names creates none."""
    found = []
    with contextlib.suppress(OSError), entered(netns.path):  # it may be gone, with its pod
        for family, names in (("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")):
            with contextlib.suppress(FileNotFoundError):
                found += [(family, t) for t in (Path("/proc/thread-self/net") / names).read_text().split()]
    return found


def unreadable(netns: Netns) -> str | None:
    """Why the rules of iptables-legacy in that netns cannot be read; None: they can, or there are none."""
    families = dict.fromkeys(family for family, _ in legacy_tables(netns))
    lacking = next((family for family in families if save_tool("legacy", family) is None), None)
    if lacking is not None:
        return f"{'iptables' if lacking == 'ip' else 'ip6tables'}-legacy-save is not installed"
    if families:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()  # what the tool asks through
        except PermissionError:
            return "that takes CAP_NET_RAW, which is not held"
    return None


def save(netns: Netns, engine: Engine, family: str, table: str, *, counters: bool = False) -> str | None:
    """What iptables-save of that back end prints for a table that exists; None without the tool."""
    tool = save_tool(engine, family)
    return None if tool is None else _output(netns, [tool, "-t", table, *(["-c"] if counters else [])])


def list_chain(netns: Netns, family: str, table: str, chain: str) -> str | None:
    """One chain of iptables-nft as `iptables -S` prints it: each rule as iptables-save does. None without the tool."""
    tool = shutil.which((save_tool("nft", family) or "").removesuffix("-save"), path=_path())
    return None if tool is None else _output(netns, [tool, "-t", table, "-S", chain])


def _output(netns: Netns, command: list[str]) -> str | None:
    try:
        with entered(netns.path):  # the child starts in the netns of this thread
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SAVE_SECONDS, check=False, env=_environment()
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def save_tool(engine: Engine, family: str) -> str | None:
    """The iptables-save of a back end; None when it is not installed."""
    base = "iptables" if family == "ip" else "ip6tables"
    path = _path()
    if exact := shutil.which(f"{base}-{engine}-save", path=path):
        return exact
    plain = shutil.which(f"{base}-save", path=path)
    if plain is None:
        return None
    # Without the twin names there is one back end, and only the nft one says which it is in old releases.
    version = subprocess.run([plain, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    return plain if ("nf_tables" in version) == (engine == "nft") else None


def _path() -> str:
    # sudo and cron leave /usr/sbin out of PATH on some distributions.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _environment() -> dict[str, str]:
    return {"PATH": _path(), "LC_ALL": "C"}


# --- text to meaning -------------------------------------------------------------------------------------------------


def _rejects(text: str) -> bool:
    if text.startswith("-A "):
        return _option(text, "-j") == "REJECT"
    # A comment may hold the word as well.
    return re.search(r"\breject\b", re.sub(r'"[^"]*"', "", text)) is not None


def _verdict_of(text: str, chain_names: set[str]) -> str:
    if _option(text, "-g") is not None:
        return "goto"
    target = _option(text, "-j")
    if target is None:
        return "continue"
    return "jump" if target in chain_names else target.lower()


def words(text: str) -> list[str]:
    """The words of an iptables-save line."""
    try:
        return shlex.split(text)
    except ValueError:  # a lone quote in a comment
        return text.split()


def _option(text: str, *names: str) -> str | None:
    """The value of an option of an iptables-save line."""
    parts = words(text)
    return next((value for name, value in itertools.pairwise(parts) if name in names), None)


def comments(text: str) -> list[str]:
    """The comments of a rule, as iptables-save or nft prints them."""
    if text.startswith("-A "):
        parts = words(text)
        return [value for name, value in itertools.pairwise(parts) if name == "--comment"]
    return re.findall(r'\bcomment "([^"]*)"', text)


# Chains (or nft tables) by the start of their name. Longest first where one begins another.
_OWNERS: Final = (
    ("KUBE-ROUTER", "kube-router"),
    ("KUBE-NWPLCY", "kube-router"),
    ("KUBE-POD-FW", "kube-router"),
    ("KUBE-NFQUEUE", "kube-network-policies"),
    ("KUBE-KUBELET", "kubelet"),
    ("KUBE-", "kube-proxy"),
    ("cali", "Calico"),
    ("CILIUM", "Cilium"),
    ("OLD_CILIUM", "Cilium"),
    ("ANTREA", "Antrea"),
    ("WEAVE", "Weave Net"),
    ("FLANNEL", "flannel"),
    ("AWS-", "Amazon VPC CNI"),
    ("AZURE-NPM", "Azure NPM"),
    ("IP-MASQ", "ip-masq-agent"),
    ("OVN-KUBE", "OVN-Kubernetes"),
    ("CNI-", "CNI plugins"),
    ("ISTIO", "Istio"),
    ("DOCKER", "docker"),
    ("ufw-", "ufw"),
    ("ufw6-", "ufw"),
    ("ts-", "Tailscale"),
    ("LIBVIRT", "libvirt"),
    ("NETAVARK", "podman"),
    ("f2b-", "fail2ban"),
)
_TABLE_OWNERS: Final = (
    ("kube-proxy", "kube-proxy"),
    ("firewalld", "firewalld"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("antrea", "Antrea"),
    ("flannel", "flannel"),
    ("kube-network-policies", "kube-network-policies"),
    ("kindnet", "kindnet"),
    ("cni_", "CNI plugins"),
    ("docker-", "docker"),
    ("libvirt_", "libvirt"),
    ("netavark", "podman"),
    ("fail2ban", "fail2ban"),
)
# firewalld's iptables back end has no one prefix: IN_public_deny, FWDI_public, INPUT_ZONES, FORWARD_direct, ...
_FIREWALLD: Final = re.compile(
    r"(IN|FWD[IO]?|POST|PRE)_\w+|(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING)_(ZONES|direct)\w*"
)
_COMMENT_OWNERS: Final = (
    ("cali:", "Calico"),
    ("cilium", "Cilium"),
    ("flanneld", "flannel"),
    ("kube-router", "kube-router"),
    ("AWS", "Amazon VPC CNI"),
    ("NodeLocal DNS Cache", "node-local-dns"),
    ("kubernetes ", "kube-proxy"),
)

_OF_A_SERVICE: Final = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-")
_NAME: Final = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_SERVICE: Final = re.compile(rf"(?:^|(?<= ))(?P<service>{_NAME}/{_NAME})(?::(?P<port>{_NAME}))?(?=$| )")
_ENDPOINT: Final = re.compile(r"-> (?P<endpoint>\S+:\d+)$")
# service-KHN6ECMT-shop/web/tcp/http, endpoint-FAYF65XV-shop/web/tcp/http__10.244.1.11/8080 (kube-proxy's nftables mode)
_NFT_CHAIN: Final = re.compile(
    rf"(?P<kind>service|endpoint|external|firewall)-\w+-(?P<service>{_NAME}/{_NAME})/\w+/(?P<port>{_NAME})?"
    r"(?:__(?P<ip>[^/]+)/(?P<number>\d+))?"
)


def owner_of(table: str, chain: str, text: str = "") -> str:
    """Who made a rule, by its table's and chain's name, the chain it jumps to, and its comments; or "unknown"."""
    by_table = _starting(table, _TABLE_OWNERS)
    if by_table:
        return by_table
    names = [chain, _option(text, "-j", "-g") or ""] if text.startswith("-A ") else [chain]
    for name in names:
        if found := _starting(name, _OWNERS):
            return found
        if _FIREWALLD.fullmatch(name):
            return "firewalld"
    return next((found for c in comments(text) if (found := _starting(c, _COMMENT_OWNERS))), UNKNOWN)


def _starting(name: str, owners: Iterable[tuple[str, str]]) -> str:
    return next((owner for start, owner in owners if name.startswith(start)), "")


def explain(table: str, chain: str, text: str, lines: Sequence[str] = ()) -> Meaning:
    """What a rule is there for; `lines` are all rules of its chain (their comments tell the Service)."""
    owner = owner_of(table, chain, text)
    said = comments(text)
    if owner != "kube-proxy":
        told = [c for c in said if not c.startswith("cali:")]
        return Meaning(owner, told[0] if told else "")
    if named := _NFT_CHAIN.fullmatch(chain):
        endpoint = f"{_colons(named['ip'])}:{named['number']}" if named["ip"] else None
        return _kube_proxy(named["service"], named["port"], endpoint, said, chain, text)
    if chain == "reject-chain" or "@no-endpoint-" in text:
        return _nft_refused(text, said)
    # Only a chain that belongs to one Service lets another rule's comment speak for this one.
    more = (c for line in lines for c in comments(line)) if chain.startswith(_OF_A_SERVICE) else ()
    found = next((match for c in itertools.chain(said, more) if (match := _SERVICE.search(c))), None)
    endpoint = next((m["endpoint"] for c in said if (m := _ENDPOINT.search(c))), None)
    if chain.startswith("KUBE-SEP-"):
        endpoint = next((d for line in [text, *lines] if (d := _option(line, "--to-destination"))), endpoint)
    if found is None:
        return Meaning(owner, _kube_proxy_general(chain, text, said))
    return _kube_proxy(found["service"], found["port"], endpoint, said, chain, text)


def _colons(ip: str) -> str:
    """The address in a chain's name, where an IPv6 address has dots for its colons."""
    try:
        return f"[{ip_address(ip.replace('.', ':'))}]"
    except ValueError:
        return ip


def _nft_refused(text: str, said: Sequence[str]) -> Meaning:
    """nftables mode: an element of `no-endpoint-services` or `-nodeports`, named in its comment."""
    named = next((match for comment in said if (match := _SERVICE.fullmatch(comment))), None)
    if named is None:
        here = ", or none on this node" if "@no-endpoint-" in text else ""
        return Meaning("kube-proxy", f"kube-proxy refuses packets to a Service that has no endpoints{here}")
    # Endpoints elsewhere and a Local policy: dropped, since a load balancer may try another node (KEP-1669's reasons).
    what = "has no local endpoints" if text.endswith(": drop }") else "has no endpoints"
    return _kube_proxy(named["service"], named["port"], None, [what], "", text)


def _kube_proxy(
    service: str, port: str | None, endpoint: str | None, said: Sequence[str], chain: str, text: str
) -> Meaning:
    name = f"Service {service}" + (f", port {port}," if port else "")
    comment = " ".join(said)
    if "has no endpoints" in comment:
        sentence = f"{name} has no endpoints"
    elif "has no local endpoints" in comment:
        sentence = f"{name} {NO_LOCAL_ENDPOINT}, and its traffic policy is Local"
    elif chain.startswith(("KUBE-FW-", "KUBE-PROXY-FIREWALL", "firewall-")):
        sentence = f"{name} admits only its loadBalancerSourceRanges"
    elif "KUBE-MARK-MASQ" in text or "mark-for-masquerade" in text:
        sentence = f"marks packets of {name.rstrip(',')} for SNAT"
    elif endpoint is not None:
        sentence = f"sends packets of {name.rstrip(',')} to {endpoint}"
    elif chain.startswith(("KUBE-SVC-", "KUBE-SVL-", "service-")):
        sentence = f"chooses an endpoint of {name.rstrip(',')}"
    else:
        sentence = f"takes packets of {name.rstrip(',')}"
    return Meaning("kube-proxy", sentence, service, port, endpoint)


def _kube_proxy_general(chain: str, text: str, said: Sequence[str]) -> str:
    if "--ctstate INVALID" in text and _option(text, "-j") == "DROP":
        return "drops packets that conntrack calls INVALID (they belong to no connection it knows)"
    if chain == "KUBE-FIREWALL" and "127.0.0.0/8" in text:
        return "blocks packets to 127.0.0.0/8 that do not come from this node"
    if chain == "KUBE-MARK-DROP" or (chain == "KUBE-FIREWALL" and "0x8000" in text):
        return "drops packets that kube-proxy has marked to be dropped"
    if "@cluster-ips" in text:
        return "refuses packets to a ClusterIP that belong to no port of its Service"
    return said[0] if said else ""


def _policy_meaning(step: RuleStep, verdict: str, chain_names: set[str]) -> Meaning:
    owner = owner_of(step.table, "")
    if owner == UNKNOWN and step.chain == "FORWARD" and verdict == "drop":
        # Both set this policy themselves, and set it again when they start.
        if any(name.startswith("ufw") for name in chain_names):
            owner = "ufw"
        elif any(name.startswith("DOCKER") for name in chain_names):
            owner = "docker"
    if verdict not in DENIES:
        return Meaning(owner, f"no rule of {place_of(step)} {step.chain} decided, and the chain's policy is to accept")
    word = verdict.upper() if step.table in IPTABLES else verdict
    return Meaning(
        owner, f"no rule of {place_of(step)} {step.chain} accepted the packet, and the chain's policy is {word}"
    )


def dnat_of(steps: Iterable[RuleStep]) -> tuple[str, ...]:
    """The chains of kube-proxy that chose the endpoint, in order: KUBE-SVC-..., KUBE-SEP-... (full names)."""
    names = (n for s in steps if s.table in ("nat", "kube-proxy") for n in (s.chain, s.target or ""))
    return tuple(dict.fromkeys(n for n in names if n.startswith(_OF_A_SERVICE) or _NFT_CHAIN.fullmatch(n)))


def contradicts(text: str, packet: FiveTuple) -> bool:
    """An iptables-save line that cannot match the packet, as far as addresses, protocol and ports tell."""
    if not text.startswith("-A "):
        return False
    parts = words(text)
    tests: dict[str, Callable[[str], bool]] = {
        "-s": lambda value: _inside(packet.saddr, value),
        "-d": lambda value: _inside(packet.daddr, value),
        "-p": lambda value: _protocol(value) in (None, packet.protocol),
        "--sport": lambda value: _port_in(packet.sport, value),
        "--dport": lambda value: _port_in(packet.dport, value),
    }
    for position, (name, value) in enumerate(itertools.pairwise(parts)):
        if name in tests:
            negated = position > 0 and parts[position - 1] == "!"
            if tests[name](value) == negated:
                return True
    return False


def _inside(address: object, network: str) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return True


def _protocol(name: str) -> int | None:
    if name.isdigit():
        return int(name)
    try:
        return getprotobyname(name)
    except OSError:
        return None


def _port_in(port: int, ports: str) -> bool:
    low, colon, high = ports.partition(":")
    return int(low or 0) <= port <= int((high or 65535) if colon else low)


# --- counters --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """A rule or policy that drops or rejects, and how many packets it has seen."""

    step: RuleStep
    packets: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Packet counters of everything in a netns that drops or rejects, where it counts at all (nft: `counter`)."""

    counts: dict[tuple[object, ...], Counted]

    @classmethod
    def take(cls, netns: Netns) -> Snapshot:
        """Read them; changes nothing."""
        counts: dict[tuple[object, ...], Counted] = {}
        for family, table in legacy_tables(netns):
            output = save(netns, "legacy", family, table, counters=True)
            saved = _Saved.parse(output or "")
            names = set(saved.policies)
            seen: Counter[str] = Counter()
            for chain, lines in saved.lines.items():
                for position, (text, packets) in enumerate(zip(lines, saved.counts[chain], strict=True), 1):
                    if "DROP" not in text and "REJECT" not in text:
                        continue  # 20,000 rules: splitting each into words would take a second
                    seen[text] += 1
                    verdict = _verdict_of(text, names)
                    if verdict in DENIES:
                        step = _step(netns, "legacy", family, table, chain, "rule", verdict, number=position)
                        # By text: a rule keeps its counter when another one is inserted before it.
                        counts["legacy", family, table, text, seen[text]] = Counted(step, packets)
            for chain, (policy, packets) in saved.policies.items():
                if policy == "DROP":
                    step = _step(netns, "legacy", family, table, chain, "policy", "drop")
                    counts["legacy", family, table, chain] = Counted(step, packets)
        with contextlib.suppress(OSError), Netlink(netns.path) as netlink:
            for base in chains(netlink):
                if base.policy == "drop" and base.packets is not None:
                    step = _step(netns, "nft", base.family, base.table, base.name, "policy", "drop", hook=base.hook)
                    counts["nft", base.family, base.table, base.name] = Counted(step, base.packets)
            for rule in denying_rules(netlink):
                if rule.packets is not None:
                    step = _step(netns, "nft", rule.family, rule.table, rule.chain, "rule", "drop", handle=rule.handle)
                    counts["nft", rule.family, rule.table, rule.chain, rule.handle] = Counted(step, rule.packets)
        return cls(counts)


def _step(
    netns: Netns,
    engine: Engine,
    family: str,
    table: str,
    chain: str,
    kind: Kind,
    verdict: str,
    *,
    handle: int | None = None,
    number: int | None = None,
    hook: str | None = None,
) -> RuleStep:
    built_in = chain.lower() if chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING") else None
    return RuleStep(
        ktime_ns=0,
        netns=netns.inum,
        engine=engine,
        family=family,
        table=table,
        chain=chain,
        kind=kind,
        handle=handle,
        number=number,
        verdict=verdict,
        target=None,
        trace_id=0,
        packet=None,
        ip_id=None,
        seq=None,
        tcp_flags=0,
        iif=None,
        oif=None,
        hook=hook or built_in,
        base_chain=None,
        mark=0,
    )
