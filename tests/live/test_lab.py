"""The lab by itself: it works, each scenario breaks what it says, and nothing is left, whatever ends it.

Nothing here is asked of k8snet's own eyes: real sockets, /proc, ip, and the counters of iptables-save and the kernel.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered, inum_of, own, scan
from k8snet.lab import kubeproxy, kubeproxy_nft, nameserver
from k8snet.lab import lab as labs
from k8snet.lab.cluster import CLUSTER_CIDR, CLUSTER_CIDR6, INVENTORY
from k8snet.lab.lab import BACKENDS, Lab
from k8snet.lab.scenarios import SCENARIOS, Scenario
from k8snet.report import Verdict
from live.conftest import about_processes
from nftext import objects

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")

EVERYWHERE = ("node-1", "node-2", "internet", *(pod.key for pod in INVENTORY.pods))
ANSWER_S = 20.0  # what is to be answered may take its time in an emulated machine
SILENCE_S = 0.4  # the first SYN has long died
GONE_S = 20.0


@pytest.fixture(scope="class", params=BACKENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab.up(request.param) as lab:
        yield lab


# --- how to look at it --------------------------------------------------------------------------------------------


def family_of(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def get(lab: Lab, client: str, ip: str, port: int, timeout: float = ANSWER_S) -> str:
    """The body of an HTTP answer."""
    with entered(lab.netns_of(client).path), socket.socket(family_of(ip)) as sock:
        sock.settimeout(timeout)
        sock.connect((ip, port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        received = b""
        while chunk := sock.recv(4096):
            received += chunk
    head, _, body = received.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    return body.strip()


def ask(lab: Lab, client: str, ip: str, port: int, datagram: bytes, timeout: float = ANSWER_S) -> bytes:
    """The answer to one datagram."""
    with entered(lab.netns_of(client).path), socket.socket(family_of(ip), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect((ip, port))
        sock.send(datagram)
        return sock.recv(4096)


def echo(lab: Lab, client: str, ip: str, timeout: float = ANSWER_S) -> int:
    """The ICMP type of the answer to an echo request; pods may send them from a datagram socket."""
    ask, icmp = (128, socket.IPPROTO_ICMPV6) if ":" in ip else (8, socket.IPPROTO_ICMP)
    with entered(lab.netns_of(client).path), socket.socket(family_of(ip), socket.SOCK_DGRAM, icmp) as sock:
        sock.settimeout(timeout)
        sock.sendto(struct.pack("!BBHHH", ask, 0, 0, 0, 1) + b"k8snet", (ip, 0))
        return sock.recv(4096)[0]


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 23, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def by_chain(text: str) -> dict[tuple[str, str], list[str]]:
    """The rules of each chain, in order; how tables and chains are ordered is the back end's affair."""
    rules: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith("-A "):
            rules.setdefault((table, line.split()[1]), []).append(line)
    return rules


# --- what a scenario breaks ------------------------------------------------------------------------------------------


def snmp(lab: Lab, name: str, group: str, counter: str) -> int:
    """A counter of /proc/net/snmp or netstat, as the netns `name` has it."""
    for file in ("snmp", "netstat"):
        text = lab.run_in(name, ["cat", f"/proc/thread-self/net/{file}"], check=True).stdout
        lines = [line.split() for line in text.splitlines() if line.startswith(f"{group}:")]
        if lines and counter in lines[0]:
            return int(lines[1][lines[0].index(counter)])
    raise LookupError(counter)


def hits(lab: Lab, name: str, rule: str) -> int:
    """Packets that `rule` has seen."""
    saved = lab.run_in(name, ["iptables-save", "-c"], check=True).stdout
    found = re.findall(rf"^\[(\d+):\d+\] {re.escape(rule)}$", saved, re.MULTILINE)
    assert len(found) == 1, f"{rule} in {saved}"
    return int(found[0])


def policy_drops(lab: Lab) -> int:
    saved = lab.run_in("node-1", ["iptables-save", "-c", "-t", "filter"], check=True).stdout
    found = re.search(r"^:FORWARD DROP \[(\d+):", saved, re.MULTILINE)
    assert found, saved
    return int(found[1])


def received(lab: Lab, name: str, device: str) -> int:
    text = lab.run_in(name, ["cat", "/proc/thread-self/net/dev"], check=True).stdout
    return int(next(line for line in text.splitlines() if line.strip().startswith(f"{device}:")).split()[2])


def hairpins(lab: Lab) -> int:
    """Packets to a pod from itself by way of its Service: the rule that kube-proxy has for them."""
    service = next(s for s in INVENTORY.services if s.key == "shop/cart")
    chain = kubeproxy.endpoint_chain(service, service.ports[0], service.ports[0].endpoints[0])
    return hits(lab, "node-1", f'-A {chain} -s 10.244.1.10/32 -m comment --comment "shop/cart:http" -j KUBE-MARK-MASQ')


# What proves, by another road than a trace, that the packet died where the scenario says: a count that rises.
PROOF: dict[str, Callable[[Lab, Scenario], int]] = {
    "forward-policy-drop": lambda lab, _: policy_drops(lab),
    "forward-rule-drop": lambda lab, s: hits(lab, "node-1", s.expected.rule or ""),
    "forward-rule-reject": lambda lab, s: hits(lab, "node-1", s.expected.rule or ""),
    "no-endpoints": lambda lab, s: hits(lab, "node-1", s.expected.rule or ""),
    "dnat-miss": lambda lab, _: received(lab, "internet", "eth0"),
    "not-listening": lambda lab, _: snmp(lab, "shop/payments", "Tcp", "OutRsts"),
    "pod-firewall-drop": lambda lab, s: hits(lab, "shop/payments", s.expected.rule or ""),
    "udp-silent": lambda lab, _: snmp(lab, "shop/payments", "Udp", "InDatagrams"),
    "rp-filter": lambda lab, _: snmp(lab, "node-1", "TcpExt", "IPReversePathFilter"),
    "ip-forward-off": lambda lab, _: snmp(lab, "node-1", "Ip", "InAddrErrors"),
    "hairpin-off": lambda lab, _: hairpins(lab),
}


# In nftables mode kube-proxy's rules do not count.
PROOF_NFTABLES: dict[str, Callable[[Lab, Scenario], int]] = {
    "no-endpoints": lambda lab, _: snmp(lab, "node-1", "Icmp", "OutDestUnreachs"),
    "dnat-miss": lambda lab, _: snmp(lab, "node-1", "Icmp", "OutDestUnreachs"),
    "hairpin-off": lambda lab, _: received(lab, "node-1", "vethcart"),
}


def outcome(lab: Lab, scenario: Scenario) -> str:
    """What the client sees: answered, refused or silence."""
    from k8snet.cluster import names

    traffic = scenario.traffic
    client = traffic.client.removeprefix("no/")
    target = names.resolve_to(traffic.target, lab.inventory, "default")
    ip, port = str(target.addresses[0]), target.port or 0
    timeout = ANSWER_S if scenario.expected.verdict in (Verdict.DELIVERED, Verdict.REJECTED) else SILENCE_S
    try:
        match traffic.protocol:
            case "tcp":
                get(lab, client, ip, port, timeout)
            case "udp":
                ask(lab, client, ip, port, query(traffic.dns or "x"), timeout)
            case "icmp":
                echo(lab, client, ip, timeout)
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    return "answered"


def test_a_proof_is_of_a_broken_scenario() -> None:
    assert set(PROOF) <= {s.name for s in SCENARIOS if s.expected.code}


@about_processes
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.name in PROOF], ids=lambda s: s.name)
def test_a_scenario_breaks_what_it_says(scenario: Scenario, backend: str) -> None:
    with Lab.up(backend) as lab:
        scenario.break_it(lab)
        proof = (PROOF_NFTABLES if backend == "nftables" else {}).get(scenario.name) or PROOF[scenario.name]
        before = proof(lab, scenario)
        seen = outcome(lab, scenario)
        assert seen == ("refused" if scenario.expected.with_backend(backend).verdict is Verdict.REJECTED else "silence")
        assert proof(lab, scenario) > before


class TestHealthy:
    """One lab a back end for all of these."""

    def test_pods_answer_each_other(self, lab: Lab) -> None:
        assert get(lab, "shop/cart", "10.244.1.11", 8080) == "shop/web-1"
        assert get(lab, "shop/cart", "10.244.2.11", 8080) == "shop/web-3"
        assert get(lab, "shop/web-3", "10.244.1.10", 8080) == "shop/cart"
        assert echo(lab, "shop/cart", "10.244.1.12") == 0
        assert echo(lab, "shop/cart", "10.244.2.11") == 0

    def test_pods_answer_each_other_over_ipv6(self, lab: Lab) -> None:
        assert get(lab, "shop/cart", "fd00:10:244:1::11", 8080) == "shop/web-1"
        assert get(lab, "shop/cart", "fd00:10:244:2::11", 8080) == "shop/web-3"
        assert get(lab, "shop/web-3", "fd00:10:244:1::10", 8080) == "shop/cart"
        assert echo(lab, "shop/cart", "fd00:10:244:1::12") == 129
        assert echo(lab, "shop/cart", "fd00:10:244:2::11") == 129

    @pytest.mark.parametrize("vip", ["10.96.0.80", "fd00:10:96::80"])
    def test_a_service_leads_to_each_of_its_pods(self, lab: Lab, vip: str) -> None:
        answers = {get(lab, "shop/cart", vip, 80) for _ in range(61)}
        assert answers == {"shop/web-1", "shop/web-2", "shop/web-3"}  # one in 5e10 runs misses one

    def test_a_pod_reaches_itself_through_its_service(self, lab: Lab) -> None:
        assert get(lab, "shop/cart", "10.96.0.86", 80) == "shop/cart"

    def test_services_work_from_the_other_node_too(self, lab: Lab) -> None:
        assert get(lab, "shop/web-3", "10.96.0.82", 80) == "shop/payments"

    def test_udp_services_answer(self, lab: Lab) -> None:
        assert ask(lab, "shop/cart", "10.96.0.85", 7, b"twenty-three") == b"twenty-three"
        reply = ask(lab, "shop/cart", "10.96.0.10", 53, query("web.shop.svc.cluster.local"))
        assert socket.inet_ntoa(reply[-4:]) == "10.96.0.80"

    def test_dns_answers_over_tcp(self, lab: Lab) -> None:
        with entered(lab.netns_of("shop/cart").path), socket.create_connection(("10.96.0.10", 53), ANSWER_S) as sock:
            whole = query("empty.shop.svc.cluster.local")
            framed = struct.pack("!H", len(whole)) + whole
            sock.sendall(framed[:5])  # in two pieces, as TCP may
            sock.sendall(framed[5:])
            reply = b""
            while chunk := sock.recv(4096):
                reply += chunk
        assert len(reply) == 2 + int.from_bytes(reply[:2], "big")
        assert socket.inet_ntoa(reply[-4:]) == "10.96.0.81"

    def test_the_kernel_has_the_rules_that_were_written(self, lab: Lab) -> None:
        if lab.backend == "nftables":
            for node, (family, cidr) in product(INVENTORY.nodes, (("ip", CLUSTER_CIDR), ("ip6", CLUSTER_CIDR6))):
                listed = lab.run_in(node.name, ["nft", "list", "table", family, "kube-proxy"], check=True).stdout
                assert objects(listed) == objects(kubeproxy_nft.rules(INVENTORY, cidr, node))
            return
        for tool, cidr in (("iptables-save", CLUSTER_CIDR), ("ip6tables-save", CLUSTER_CIDR6)):
            for node in INVENTORY.nodes:
                written = by_chain(kubeproxy.rules(INVENTORY, cidr, node))
                assert by_chain(lab.run_in(node.name, [tool], check=True).stdout) == written

    def test_every_netns_is_pinned_and_lived_in(self, lab: Lab) -> None:
        known = scan()
        for name in EVERYWHERE:
            netns = lab.netns_of(name)
            assert netns.path.startswith("/run/netns/k8snet-")
            # dnsmasq lives there too, and who sees to its end.
            served = name == labs.DNS_POD and nameserver.is_installed()
            assert len(known[netns.inum].pids) == (3 if served else 1)
            assert netns.inum != own()

    def test_a_name_that_the_lab_lacks_is_refused(self, lab: Lab) -> None:
        with pytest.raises(K8snetError, match="shop/nobody"):
            lab.netns_of("shop/nobody")

    def test_kubectls_list_is_written(self, lab: Lab) -> None:
        from k8snet.cluster.file import load

        assert load(lab.inventory_file) == lab.inventory

    @pytest.mark.parametrize(
        "scenario",
        [
            s
            for s in SCENARIOS
            if not (s.expected.code or s.steps or s.company or s.traffic.lookup) and s.topology == "bridge"
        ],
        ids=lambda s: s.name,
    )
    def test_a_healthy_scenario_is_answered(self, lab: Lab, scenario: Scenario) -> None:
        assert outcome(lab, scenario) == "answered"


# --- what it leaves --------------------------------------------------------------------------------------------------


def host() -> dict[str, str]:
    """The host's rules, links, addresses, routes, neighbours' devices and network sysctls."""
    commands = {
        "nft": ["nft", "list", "ruleset"],
        "legacy": ["iptables-legacy-save"],
        "legacy6": ["ip6tables-legacy-save"],
        "links": ["ip", "-o", "-br", "link"],
        "addresses": ["ip", "-o", "-br", "addr"],
        "routes": ["ip", "route", "show", "table", "all"],
        "rules": ["ip", "rule"],
    }
    state = {what: subprocess.run(c, capture_output=True, text=True, check=True).stdout for what, c in commands.items()}
    # A module that loads adds keys, and some keys count something; neither is a setting that changed.
    counts = ("nf_conntrack_count", "nf_conntrack_buckets")
    for directory, _, files in os.walk("/proc/sys/net"):
        for file in files:
            path = Path(directory, file)
            if file not in counts and path.stat().st_mode & 0o444:
                state[str(path)] = readable(path)
    return state


def readable(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # some keys refuse to be read until they are set
        return ""


def ours() -> list[str]:
    """Processes of a lab that live (one that ended may wait to be reaped by whoever inherited it)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = file.read_text()
        except OSError:
            continue
        name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat.rpartition(") ")[2][0]
        if name in ("k8snet-lab", "k8snet-pod") and state not in "ZX":
            found.append(f"{file.parent.name} {name}")
    return found


def wait_until_gone() -> None:
    deadline = time.monotonic() + GONE_S
    while labs.leftovers() or ours():
        assert time.monotonic() < deadline, (labs.leftovers(), ours())
        time.sleep(0.01)


@pytest.fixture
def alone() -> Iterator[None]:
    """No lab before the test, none of ours after it."""
    assert labs.current() is None, "a lab is up: k8snet lab down"
    wait_until_gone()
    STARTED[:] = [os.getpid()]
    yield
    state = labs.current()
    if state is None or state.owner in STARTED:
        labs.down()


STARTED: list[int] = []  # processes that may own a lab of the running test

PROGRAM = """
import signal, sys
from k8snet.lab.lab import Lab
lab = Lab.up(sys.argv[1], persist=len(sys.argv) > 2)
print("up", flush=True)
if len(sys.argv) == 2:
    with lab:
        signal.pause()
"""


def other(*arguments: str) -> subprocess.Popen[str]:
    """Another command with a lab."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *(arguments or ("iptables-nft",))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    STARTED.append(process.pid)
    return process


def is_up(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_the_host_changes(alone: None, backend: str) -> None:
    before = host()
    for _ in range(2):
        with Lab.up(backend) as lab:
            get(lab, "shop/cart", "10.96.0.80", 80)
            during = host()
        assert not labs.leftovers()
        assert not ours()
    after = host()
    assert {key: during[key] for key in before} == before
    assert {key: after[key] for key in before} == before


@about_processes
def test_two_at_once_are_refused_and_the_first_lives_on(alone: None) -> None:
    with Lab.up() as lab:
        with pytest.raises(K8snetError) as refused:
            Lab.up()
        assert refused.value.remedy.endswith("k8snet lab down")
        assert get(lab, "shop/cart", "10.96.0.82", 80) == "shop/payments"


@about_processes
def test_down_twice_is_down(alone: None) -> None:
    lab = Lab.up()
    lab.down()
    lab.down()
    assert not labs.leftovers()
    assert not labs.down()


@about_processes
@pytest.mark.parametrize(("backend", "topology"), [("ebpf", "bridge"), ("iptables-nft", "torus")])
def test_what_the_lab_cannot_be_is_refused(alone: None, backend: str, topology: str) -> None:
    with pytest.raises(K8snetError, match=r"ebpf|torus"):
        Lab.up(backend, topology)
    assert not labs.leftovers()


@about_processes
def test_a_lab_that_was_left_up_outlives_its_command_and_others_take_it_down(alone: None) -> None:
    process = other("iptables-nft", "persist")
    is_up(process)
    assert process.wait(GONE_S) == 0
    state = labs.current()
    assert state is not None
    assert state.persist
    assert inum_of("/run/netns/k8snet-shop-cart") != own()
    assert labs.down()
    assert not labs.leftovers()
    assert not ours()


@about_processes
def test_a_lab_knows_that_another_command_took_it_down(alone: None) -> None:
    with Lab.up() as lab:
        assert lab.is_up
        labs.down()
        assert not lab.is_up
    assert not labs.leftovers()


@about_processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_the_lab_goes_with_its_command(alone: None, how: signal.Signals) -> None:
    process = other()
    is_up(process)
    process.send_signal(how)
    assert process.wait(GONE_S) != 0
    wait_until_gone()


@about_processes
@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_at_any_moment_it_leaves_nothing(alone: None, how: signal.Signals, after_s: float) -> None:
    process = other()
    time.sleep(after_s)
    process.send_signal(how)
    process.wait(GONE_S)
    wait_until_gone()


@about_processes
def test_the_next_lab_need_not_wait_for_a_killed_one(alone: None) -> None:
    process = other()
    is_up(process)
    process.kill()
    process.wait()
    with Lab.up() as lab:
        assert get(lab, "shop/cart", "10.96.0.82", 80) == "shop/payments"


@about_processes
def test_what_a_killed_keeper_leaves_the_next_lab_removes(alone: None) -> None:
    process = other("iptables-nft", "persist")
    is_up(process)
    process.wait(GONE_S)
    state = labs.current()
    assert state is not None
    os.kill(state.keeper, signal.SIGKILL)
    deadline = time.monotonic() + GONE_S
    while ours():
        assert time.monotonic() < deadline, ours()
        time.sleep(0.01)
    assert labs.leftovers()
    assert labs.current() is None
    with Lab.up("iptables-legacy") as lab:
        assert get(lab, "shop/cart", "10.96.0.82", 80) == "shop/payments"
    assert not labs.leftovers()
