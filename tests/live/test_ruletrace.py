"""Rules named on real packets, for iptables-legacy, iptables-nft and nft; `iptables-save` is the second opinion.

A client, a node that forwards (routed, or a bridge with br_netfilter) and a server, in namespaces of this test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from k8snet.cluster.inventory import Inventory
from k8snet.event import FiveTuple
from k8snet.kernel import counters
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.kernel.nftables import Nft, NftError
from k8snet.kernel.rules import NamedRule, RuleBook, Snapshot, dnat_of, legacy_tables
from k8snet.kernel.ruletrace import AT_ONCE, PER_SECOND, Match, RuleStep, RuleTrace
from k8snet.lab import kubeproxy, kubeproxy_nft
from many import CLUSTER_CIDR, NODE, many

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

PREFIX = f"k8rules-{os.getpid()}-"  # not `k8snet-`: that is the lab's, and `lab down` removes it
VIP, PORT, TARGET = "10.96.0.80", 80, 8080
CLIENT, SERVER = {4: "10.77.1.2", 6: "fd77:1::2"}, {4: "10.77.2.2", 6: "fd77:2::2"}
BRIDGED_SERVER = "10.77.1.3"
ENGINES = ["legacy", "nft"]

KUBE = f"""*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-WEB0 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d {VIP}/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SVC-WEB -m comment --comment "shop/web:http -> {{server}}:{TARGET}" -j KUBE-SEP-WEB0
-A KUBE-SEP-WEB0 -s {{server}}/32 -m comment --comment "shop/web:http" -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-WEB0 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination {{server}}:{TARGET}
COMMIT
"""


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Net:
    """Client, node and server; the node's rules through one back end."""

    def __init__(self, *, bridged: bool = False) -> None:
        self.bridged = bridged
        self.server = BRIDGED_SERVER if bridged else SERVER[4]
        for name in ("client", "node", "server"):
            run("ip", "netns", "add", PREFIX + name)
            self.ip(name, "link", "set", "lo", "up")
        if bridged:
            self.ip("node", "link", "add", "cni0", "type", "bridge")
            self.ip("node", "addr", "add", "10.77.1.1/24", "dev", "cni0")
            self.ip("node", "link", "set", "cni0", "up")
        for name, net, host in (("client", 1, 2), ("server", 1, 3) if bridged else ("server", 2, 2)):
            veth = f"v{name}"
            run(
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                PREFIX + name,
                "type",
                "veth",
                "peer",
                veth,
                "netns",
                PREFIX + "node",
            )
            self.ip("node", "link", "set", veth, "up", *(["master", "cni0"] if bridged else []))
            self.ip(name, "addr", "add", f"10.77.{net}.{host}/24", "dev", "eth0")
            self.ip(name, "addr", "add", f"fd77:{net}::{host}/64", "dev", "eth0", "nodad")
            self.ip(name, "link", "set", "eth0", "up")
            self.ip(name, "route", "add", "default", "via", f"10.77.{net}.1")
            self.ip(name, "-6", "route", "add", "default", "via", f"fd77:{net}::1")
            if not bridged:
                self.ip("node", "addr", "add", f"10.77.{net}.1/24", "dev", veth)
                self.ip("node", "addr", "add", f"fd77:{net}::1/64", "dev", veth, "nodad")
        # A node has a default route: without one the packet to a VIP would die before FORWARD.
        self.ip("node", "route", "add", "default", "via", self.server)
        self.put("node", "net/ipv4/ip_forward", "1")
        self.put("node", "net/ipv6/conf/all/forwarding", "1")
        if bridged:
            try:
                self.put("node", "net/bridge/bridge-nf-call-iptables", "1")
            except FileNotFoundError:
                pytest.skip("this kernel has no br_netfilter: modprobe br_netfilter")

    def ip(self, name: str, *words: str) -> str:
        return run("ip", "-n", PREFIX + name, *words)

    def within(self, name: str, *command: str, stdin: str = "") -> str:
        return run("ip", "netns", "exec", PREFIX + name, *command, stdin=stdin)

    def put(self, name: str, sysctl: str, value: str) -> None:
        with entered(self.netns(name).path):
            Path("/proc/sys", sysctl).write_text(value)

    def netns(self, name: str) -> Netns:
        path = f"/run/netns/{PREFIX}{name}"
        return Netns(inum_of(path), path)

    def open(self, name: str, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        with entered(self.netns(name).path):
            return socket.socket(family, kind | socket.SOCK_NONBLOCK)

    def connect(self, to: str, port: int) -> int:
        """One SYN from the client: the source port."""
        with self.open("client", family=socket.AF_INET6 if ":" in to else socket.AF_INET) as connection:
            with contextlib.suppress(BlockingIOError):
                connection.connect((to, port))
            source: int = connection.getsockname()[1]
            time.sleep(0.02)
            return source

    def rules(self, engine: str, rules: str, *, where: str = "node", version: int = 4) -> None:
        self.within(where, tool(engine, "restore", version), "--noflush", stdin=rules)

    def saved(self, engine: str, where: str = "node", version: int = 4) -> list[str]:
        return self.within(where, tool(engine, "save", version)).splitlines()

    def match(self, protocol: int = socket.IPPROTO_TCP) -> Match:
        client, server = ip_address(CLIENT[4]), ip_address(self.server)
        both = ((server, TARGET), (ip_address(SERVER[6]), TARGET))
        return Match(protocol, (client, ip_address(CLIENT[6])), ((ip_address(VIP), PORT),), both)


def tool(engine: str, what: str, version: int = 4) -> str:
    name = f"{'iptables' if version == 4 else 'ip6tables'}-{engine}-{what}"
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt-get install iptables")
    return name


@pytest.fixture(params=[False, True], ids=["routed", "bridged"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    yield from built(bridged=request.param)


@pytest.fixture
def routed() -> Iterator[Net]:
    yield from built(bridged=False)


def built(*, bridged: bool) -> Iterator[Net]:
    made: list[Net] = []
    try:
        made.append(Net(bridged=bridged))
        yield made[0]
    finally:
        for name in ("client", "node", "server"):
            subprocess.run(["ip", "netns", "del", PREFIX + name], capture_output=True, check=False)


def steps_of(trace: RuleTrace, enough: Callable[[list[RuleStep]], object], seconds: float = 5.0) -> list[RuleStep]:
    """What was traced until `enough` is content with it."""
    steps: list[RuleStep] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        steps += trace.drain()
        if enough(steps):
            break
        time.sleep(0.01)
    return steps


def blamed(
    net: Net, traffic: Callable[[], int], *, where: str = "node", protocol: int = socket.IPPROTO_TCP
) -> tuple[NamedRule, list[RuleStep]]:
    """Trace while `traffic` runs: the rule that is to blame and the steps of that packet's socket."""
    netns = net.netns(where)
    book = RuleBook(netns)
    with Guardian() as guardian, RuleTrace(netns, net.match(protocol), guardian) as trace:
        assert trace.missing == []
        port = traffic()

        def its(steps: list[RuleStep]) -> list[RuleStep]:
            return [s for s in steps if s.packet is not None and port in (s.packet.sport, s.packet.dport)]

        steps = its(steps_of(trace, lambda seen: book.name(its(seen))))
        assert trace.lost == 0
    named = book.name(steps)
    assert named is not None, steps
    return named, steps


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forward_policy_is_blamed_and_the_dnat_before_it_is_told(net: Net, engine: str) -> None:
    rules = KUBE.format(server=net.server)
    net.rules(engine, rules + "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT\nCOMMIT\n")
    named, steps = blamed(net, lambda: net.connect(VIP, PORT))
    assert (named.text, named.policy, named.chain, named.hook) == ("-P FORWARD DROP", True, "FORWARD", "forward")
    assert named.table == ("filter" if engine == "legacy" else "ip filter")
    assert named.by == ("nflog" if engine == "legacy" else "nftrace")
    assert dnat_of(steps) == ("KUBE-SVC-WEB", "KUBE-SEP-WEB0")
    assert RuleBook(net.netns("node")).backends() == {engine}
    # The header is the one the packet had there: before DNAT, and after it.
    seen = [str(s.packet.daddr) for s in steps if s.packet]
    assert (seen[0], seen[-1]) == (VIP, net.server)
    assert len({(s.ip_id, s.seq) for s in steps}) == 1
    # Our own reading against the tool's.
    saved = net.saved(engine)
    texts = [RuleBook(net.netns("node")).text(s) for s in steps if s.kind == "rule"]
    assert len(texts) >= 4
    for text in texts:
        assert text in saved


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_rule_among_equals_behind_a_jump_is_blamed(routed: Net, engine: str, version: int) -> None:
    client, server = CLIENT[version], SERVER[version]
    full = 32 if version == 4 else 128
    lines = [f"-A MINE -s {client}/{full} -p tcp -m tcp --dport {port} -j DROP" for port in range(8070, 8090)]
    routed.rules(
        engine,
        "*filter\n:MINE - [0:0]\n-A FORWARD -p udp -j ACCEPT\n-A FORWARD -j MINE\n" + "\n".join(lines) + "\nCOMMIT\n",
        version=version,
    )
    # A rule that was inserted later has a high handle and a low place.
    routed.within(
        "node", tool(engine, "save", version).removesuffix("-save"), "-I", "MINE", "3", "-p", "icmp", "-j", "DROP"
    )
    named, _ = blamed(routed, lambda: routed.connect(server, TARGET))
    assert named.text == f"-A MINE -s {client}/{full} -p tcp -m tcp --dport {TARGET} -j DROP"
    assert named.text in routed.saved(engine, version=version)
    assert (named.hook, named.rejects, named.policy) == ("forward", False, False)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_service_without_endpoints_is_blamed_by_name(net: Net, engine: str) -> None:
    line = (
        f'-A KUBE-SERVICES -d {VIP}/32 -p tcp -m comment --comment "shop/empty:http has no endpoints" '
        "-m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable"
    )
    net.rules(engine, f"*filter\n:KUBE-SERVICES - [0:0]\n-A FORWARD -j KUBE-SERVICES\n{line}\nCOMMIT\n")
    named, _ = blamed(net, lambda: net.connect(VIP, PORT))
    assert (named.text, named.rejects, named.owner) == (line, True, "kube-proxy")
    assert (named.meaning, named.service) == ("Service shop/empty, port http, has no endpoints", "shop/empty")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_drop_in_the_pods_own_input_is_blamed_in_its_netns(routed: Net, engine: str) -> None:
    line = f"-A INPUT -p tcp -m tcp --dport {TARGET} -j DROP"
    routed.rules(engine, f"*filter\n{line}\nCOMMIT\n", where="server")
    named, _ = blamed(routed, lambda: routed.connect(routed.server, TARGET), where="server")
    assert (named.text, named.hook) == (line, "input")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lost_reply_is_blamed_too(routed: Net, engine: str) -> None:
    line = f"-A FORWARD -s {SERVER[4]}/32 -p tcp -m tcp --sport {TARGET} -j DROP"
    routed.rules(engine, f"*filter\n{line}\nCOMMIT\n")
    with routed.open("server") as server:
        server.bind((SERVER[4], TARGET))
        server.listen()
        named, steps = blamed(routed, lambda: routed.connect(SERVER[4], TARGET))
    assert named.text == line
    assert steps[-1].tcp_flags == 0x12  # SYN, ACK


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("protocol", [socket.IPPROTO_UDP, 0], ids=["udp", "any protocol"])
def test_a_datagram_is_traced(routed: Net, engine: str, protocol: int) -> None:
    line = f"-A FORWARD -p udp -m udp --dport {TARGET} -j REJECT --reject-with icmp-admin-prohibited"
    routed.rules(engine, f"*filter\n{line}\nCOMMIT\n")

    def query() -> int:
        with routed.open("client", socket.SOCK_DGRAM) as client:
            client.connect((SERVER[4], TARGET))
            client.send(b"\x12\x34\x01\x00 a query")
            return int(client.getsockname()[1])

    named, steps = blamed(routed, query, protocol=protocol)
    assert (named.text, named.rejects) == (line, True)
    assert steps[-1].seq == 0x12340100


def test_native_nft_rules_and_policies_are_blamed_as_nft_prints_them(routed: Net) -> None:
    routed.within(
        "node",
        "nft",
        "-f",
        "-",
        stdin=f"""
add table inet mine
add chain inet mine service-ABCDEFGH-shop/web/tcp/http
add rule inet mine service-ABCDEFGH-shop/web/tcp/http tcp dport {TARGET} counter drop comment "no # handle 1"
add chain inet mine ways {{ type filter hook forward priority 10; policy accept; }}
add rule inet mine ways ip saddr {CLIENT[4]} goto service-ABCDEFGH-shop/web/tcp/http
add table ip6 filter
add chain ip6 filter strict {{ type filter hook forward priority 5; policy drop; }}
""",
    )
    named, steps = blamed(routed, lambda: routed.connect(SERVER[4], TARGET))
    assert named.text == f'tcp dport {TARGET} counter packets 1 bytes 60 drop comment "no # handle 1"'
    assert (named.table, named.chain, named.hook) == (
        "inet mine",
        "service-ABCDEFGH-shop/web/tcp/http",
        "forward",
    )
    assert [s.verdict for s in steps][-2:] == ["goto", "drop"]
    named, _ = blamed(routed, lambda: routed.connect(SERVER[6], TARGET))
    assert (named.text, named.table, named.chain) == ("policy drop", "ip6 filter", "strict")


def test_a_chain_name_that_is_a_command_is_not_run(routed: Net) -> None:
    routed.within(
        "node",
        "nft",
        "add table ip precious; add table ip t; add chain ip t c { type filter hook forward priority 0; }",
    )
    # nft's JSON takes any name, as the kernel does.
    evil = "x; delete table ip precious"
    place = {"family": "ip", "table": "t"}
    document = [
        {"add": {"chain": {**place, "name": evil}}},
        {"add": {"rule": {**place, "chain": evil, "expr": [{"drop": None}]}}},
        {"add": {"rule": {**place, "chain": "c", "expr": [{"jump": {"target": evil}}]}}},
    ]
    routed.within("node", "nft", "-j", "-f", "-", stdin=json.dumps({"nftables": document}))
    named, _ = blamed(routed, lambda: routed.connect(SERVER[4], TARGET))
    assert named.chain == evil
    assert "rule with handle" in named.text
    assert "precious" in routed.within("node", "nft", "list", "tables")


def kube_proxys(net: Net, engine: str, inventory: Inventory) -> None:
    """Rules of all these Services on the node, as that back end's kube-proxy writes them."""
    if engine == "nftables":
        net.within("node", "nft", "-f", "-", stdin=kubeproxy_nft.rules(inventory, CLUSTER_CIDR, NODE))
    else:
        net.rules(engine, kubeproxy.rules(inventory, CLUSTER_CIDR, NODE))


@pytest.mark.skipif(
    "K8SNET_VM" in os.environ, reason="to load 20,000 rules takes minutes where the machine is emulated"
)
@pytest.mark.parametrize(("engine", "empty"), [("legacy", 1000), ("nft", 1000), ("nftables", 4900)])
def test_the_rule_of_one_service_among_thousands_is_named(routed: Net, engine: str, empty: int) -> None:
    """iptables: more than 20,000 rules; nftables: a map of 4,900 elements (and a slow load of the other Services)."""
    inventory = many(5000, empty)
    kube_proxys(routed, engine, inventory)
    service = inventory.services[-3]
    vip = service.cluster_ips[0]
    match = Match(socket.IPPROTO_TCP, (ip_address(CLIENT[4]),), ((vip, 80),))
    node = routed.netns("node")
    book = RuleBook(node)
    with Guardian() as guardian, RuleTrace(node, match, guardian) as trace:
        routed.connect(str(vip), 80)
        named = book.name(steps_of(trace, book.name))
    assert named is not None
    assert (named.service, named.rejects, named.owner) == (service.key, True, "kube-proxy")
    assert named.meaning == f"Service {service.key}, port http, has no endpoints"
    if engine == "nftables":
        place = f"{vip} . tcp . 80"
        listed = routed.within(
            "node", "nft", "get", "element", "ip", "kube-proxy", "no-endpoint-services", f"{{ {place} }}"
        )
        assert named.text.removeprefix("vmap @no-endpoint-services ") in listed
    else:
        saved = routed.saved(engine)
        assert len([line for line in saved if line.startswith("-A ")]) > 20_000
        assert named.text in saved
        assert f"-d {vip}/32 " in named.text


def test_an_element_of_a_verdict_map_is_named_with_its_map(routed: Net) -> None:
    """Keys of one part and of three, a verdict of its own and a jump to a chain that drops everything."""
    routed.within(
        "node",
        "nft",
        "-f",
        "-",
        stdin="""
table inet mine {
	map ports {
		type inet_service : verdict
		elements = { 8081 comment "no telnet" : drop }
	}

	map places {
		type inet_proto . inet_service . ipv4_addr : verdict
		elements = { tcp . 8082 . 10.77.2.2 : jump grave }
	}

	map places6 {
		type ipv6_addr . inet_service : verdict
		elements = { fd77:2::2 . 8083 : goto grave }
	}

	set here {
		type ipv4_addr
		elements = { 10.77.2.2 }
	}

	map doors {
		type inet_proto . inet_service : verdict
		elements = { tcp . 8086 : drop }
	}

	map ranges {
		type inet_service : verdict
		flags interval
		elements = { 8085-8090 : goto grave }
	}

	chain grave {
		counter drop
	}

	chain ways {
		type filter hook forward priority 10; policy accept;
		tcp dport vmap @ports
		meta l4proto . th dport . ip daddr vmap @places
		ip6 daddr . th dport vmap @places6
		tcp dport vmap { 8084 : goto grave }
		ip daddr @here meta l4proto . th dport vmap @doors
		tcp dport vmap @ranges
	}
}
""",
    )
    found, chains = {}, {}
    node, server = routed.netns("node"), ip_address(SERVER[4])
    places = tuple((ip_address(SERVER[6]) if port == 8083 else server, port) for port in range(8081, 8087))
    for address, port in places:
        book = RuleBook(node)
        match = Match(socket.IPPROTO_TCP, (ip_address(CLIENT[address.version]),), ((address, port),))
        with Guardian() as guardian, RuleTrace(node, match, guardian) as trace:
            routed.connect(str(address), port)
            named = book.name(steps_of(trace, book.name))
        assert named is not None
        assert (named.table, named.rejects) == ("inet mine", False)
        found[port] = named.text
        chains[port] = named.chain
    assert found[8081] == 'vmap @ports { 8081 comment "no telnet" : drop }'
    assert found[8082] == "vmap @places { tcp . 8082 . 10.77.2.2 : jump grave }"
    assert found[8083] == "vmap @places6 { fd77:2::2 . 8083 : goto grave }"
    assert found[8084] == "vmap { 8084 : goto grave }"
    assert found[8086] == "vmap @doors { tcp . 8086 : drop }"  # a shorter load leaves nothing of the longer before it
    # No element has the packet's port as its key: then it is the rule that dropped it.
    assert found[8085].startswith("counter packets ")
    assert chains == {8081: "ways", 8082: "ways", 8083: "ways", 8084: "ways", 8085: "grave", 8086: "ways"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rule_that_was_read_ahead_is_named_after_it_is_gone(routed: Net, engine: str) -> None:
    """kube-proxy writes its rules again at any moment."""
    line = f"-A FORWARD -p tcp -m tcp --dport {TARGET} -j DROP"
    routed.rules(engine, f"*filter\n{line}\nCOMMIT\n")
    node = routed.netns("node")
    book = RuleBook(node)
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian) as trace:
        routed.connect(SERVER[4], TARGET)
        steps = steps_of(trace, lambda seen: any(s.table == "filter" for s in seen))
    book.read_ahead(steps)
    other = "-A FORWARD -p udp -m comment --comment other -j DROP"
    routed.rules(engine, f"*filter\n-F FORWARD\n{other}\nCOMMIT\n")
    named = book.name(steps)
    assert named is not None
    assert named.text == line
    assert other in routed.saved(engine)


def test_reading_a_chain_of_iptables_nft_adds_none(routed: Net) -> None:
    """An old iptables-nft -S adds what is missing of a table's built-in chains."""
    line = f"-A FORWARD -p tcp -m tcp --dport {TARGET} -j DROP"
    chain = "chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }"
    routed.within("node", "nft", f"add table ip filter; add {chain}")
    routed.within("node", tool("nft", "save").removesuffix("-save"), *shlex.split(line))
    before = routed.within("node", "nft", "list", "chains")
    named, _ = blamed(routed, lambda: routed.connect(SERVER[4], TARGET))
    assert named.text == line
    assert routed.within("node", "nft", "list", "chains") == before


def test_two_runs_in_one_netns_do_not_disturb_each_other(routed: Net) -> None:
    routed.rules("nft", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")
    node = routed.netns("node")
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian) as first:
        with RuleTrace(node, routed.match(), guardian) as second:
            assert first.table != second.table
            routed.connect(SERVER[4], TARGET)
            for trace in (first, second):
                assert steps_of(trace, RuleBook(node).name)
        assert first.table in routed.within("node", "nft", "list", "tables")
    assert "k8snet" not in routed.within("node", "nft", "list", "tables")


def test_a_second_run_says_that_it_cannot_read_the_legacy_log(routed: Net) -> None:
    routed.rules("legacy", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")
    node = routed.netns("node")
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian) as first:
        with RuleTrace(node, routed.match(), guardian) as second:
            assert not second.legacy
            assert "taken by another program" in second.missing[0]
        routed.connect(SERVER[4], TARGET)
        assert RuleBook(node).name(steps_of(first, RuleBook(node).name)) is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_and_other_tools_work_meanwhile(routed: Net, engine: str) -> None:
    routed.rules(engine, KUBE.format(server=SERVER[4]))
    node = routed.netns("node")
    logger = Path("/proc/sys/net/netfilter/nf_log/2")
    with entered(node.path):
        before = logger.read_text()
    rules_before = [line for line in routed.saved(engine) if not line.startswith("#")]
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian):
        routed.rules(engine, KUBE.format(server=SERVER[4]).replace("-A PREROUTING", "-I PREROUTING"))
        if owned(node):
            routed.within("node", "nft", "flush", "ruleset")
        assert "k8snet_trace" in routed.within("node", "nft", "list", "tables")
    assert "k8snet" not in routed.within("node", "nft", "list", "tables")
    with entered(node.path):
        assert logger.read_text() == before
    assert rules_before  # the tables were there; flush took nft's, and ours did not come back as somebody's


def owned(node: Netns) -> bool:
    """Others cannot flush a table that has an owner; 5.10 knows none."""
    with Nft(node.path) as nft, contextlib.suppress(NftError):
        nft.run("create table inet owned { flags owner; }")
        return True
    return False


def test_a_busy_flow_is_sampled_and_not_traced_whole(routed: Net) -> None:
    routed.rules("nft", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")
    node = routed.netns("node")
    match = routed.match(socket.IPPROTO_UDP)
    with (
        Guardian() as guardian,
        RuleTrace(node, match, guardian) as trace,
        routed.open("client", socket.SOCK_DGRAM) as client,
    ):
        client.setblocking(True)
        client.connect((SERVER[4], TARGET))
        began = time.monotonic()
        for _ in range(3001):
            client.send(b"flood")
        seconds = time.monotonic() - began
        steps = steps_of(trace, lambda seen: False, 0.2)
        assert trace.lost == 0
        traced = len({s.ip_id for s in steps})
        assert 1 <= traced <= AT_ONCE + PER_SECOND * (seconds + 1)


def test_the_reader_survives_a_flood_and_counts_what_was_lost(routed: Net) -> None:
    routed.rules("nft", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")
    # Somebody else traces everything, and we read nothing meanwhile.
    routed.within(
        "node",
        "nft",
        "add table ip other; add chain ip other every { type filter hook prerouting priority -400; };"
        "add rule ip other every udp dport 9 meta nftrace set 1",
    )
    node = routed.netns("node")
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian) as trace:
        with routed.open("client", socket.SOCK_DGRAM) as client:
            client.setblocking(True)
            client.connect((SERVER[4], 9))
            for _ in range(8009):
                client.send(b"flood")
        trace.drain()
        assert trace.lost > 0
        port = routed.connect(SERVER[4], TARGET)
        book = RuleBook(node)
        steps = steps_of(trace, lambda seen: book.name([s for s in seen if s.packet and s.packet.sport == port]))
        assert book.name([s for s in steps if s.packet and s.packet.sport == port]) is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_counters_name_the_rule_without_writing_anything(routed: Net, engine: str) -> None:
    wanted = f"-A FORWARD -p tcp -m tcp --dport {TARGET} -j DROP"
    routed.rules(engine, f"*filter\n-A FORWARD -p udp -j DROP\n{wanted}\n:OUTPUT DROP [0:0]\nCOMMIT\n")
    node = routed.netns("node")
    rules_before = [line for line in routed.saved(engine) if not line.startswith("#")]
    book, before = RuleBook(node), Snapshot.take(node)
    source = routed.connect(SERVER[4], TARGET)
    packet = FiveTuple(ip_address(CLIENT[4]), ip_address(SERVER[4]), source, TARGET, socket.IPPROTO_TCP)
    named = book.name_by_counters(before, Snapshot.take(node), packet, 1)
    assert named is not None
    assert (named.text, named.by, named.candidates, named.policy) == (wanted, "counters", (), False)
    assert book.name_by_counters(before, before, packet, 1) is None
    assert [line for line in routed.saved(engine) if not line.startswith("#")] == rules_before


@pytest.mark.parametrize("engine", ENGINES)
def test_counters_say_when_several_rules_fit(routed: Net, engine: str) -> None:
    line = f"-A FORWARD -p tcp -m tcp --dport {TARGET} -j DROP"
    other = "-A INPUT -p udp -m udp --dport 9 -j DROP"
    routed.rules(engine, f"*filter\n{line}\n{other}\nCOMMIT\n")
    node = routed.netns("node")
    before = Snapshot.take(node)
    routed.connect(SERVER[4], TARGET)
    with routed.open("client", socket.SOCK_DGRAM) as client:
        client.sendto(b"discard", ("10.77.1.1", 9))
    named = RuleBook(node).name_by_counters(before, Snapshot.take(node), None, 1)
    assert named is not None
    assert {named.text, *(c.partition(": ")[2] for c in named.candidates)} == {line, other}


def test_reading_creates_no_legacy_table(routed: Net) -> None:
    node = routed.netns("node")
    before = legacy_tables(node)  # 5.10 and 6.1 give a fresh netns a filter table once the module is loaded
    with Guardian() as guardian, RuleTrace(node, routed.match(), guardian) as trace:
        assert trace.legacy == bool(before)
        RuleBook(node).backends()
        Snapshot.take(node)
    assert legacy_tables(node) == before


def test_counters_and_settings_are_the_netns_own(net: Net) -> None:
    node = net.netns("node")
    before = counters.Snapshot.take(node)
    net.put("node", "net/ipv4/ip_forward", "0")
    if not net.bridged:
        for _ in range(7):
            net.connect(SERVER[4], TARGET)
    after = counters.Snapshot.take(node)
    assert (before.settings["net.ipv4.ip_forward"], after.settings["net.ipv4.ip_forward"]) == (1, 0)
    assert "net.ipv4.conf.vclient.rp_filter" in after.settings
    if net.bridged:
        assert after.settings["bridge.vclient.hairpin_mode"] == 0
        net.within("node", "bridge", "link", "set", "dev", "vclient", "hairpin", "on")
        assert counters.Snapshot.take(node).settings["bridge.vclient.hairpin_mode"] == 1
        assert after.settings["net.bridge.bridge-nf-call-iptables"] == 1
    else:
        assert counters.delta(before, after)["Ip.InAddrErrors"] >= 7
