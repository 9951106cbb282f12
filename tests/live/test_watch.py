"""A watch over a lab: healthy crowds give nothing, each broken thing gives its own anomaly and nothing else."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from k8snet.cluster.interfaces import look
from k8snet.flow.dns import DnsExchange
from k8snet.kernel.netns import entered
from k8snet.lab.lab import Lab
from k8snet.trace import Fixed
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts, Limits
from k8snet.watch.live import Settings, Usage, observe
from live.conftest import patience
from live.test_crowd import MANY, big, rate, start

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo pytest tests/live")

CROWD = Path(__file__).with_name("crowd.py")
WEB = "--host 10.96.0.80 --port 80"
FIRST_PORT = 20_000
LATE = f"watch-{os.getpid()}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for all watches."""
    with Lab.up() as lab:
        yield lab


class Seen:
    """A watcher that remembers; `wait_for` is how a test waits."""

    def __init__(self) -> None:
        self.anomalies: list[Anomaly] = []
        self.notes: list[str] = []
        self.now = Counts()
        self.usage = Usage(0, 0, 0)
        self.is_ready = threading.Event()
        self.is_enough = threading.Event()

    def ready(self, usage: Usage) -> None:
        self.usage = usage
        self.is_ready.set()

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        self.anomalies += anomalies

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        """Queries are counted, too."""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def counts(self, counts: Counts, usage: Usage) -> None:
        self.now, self.usage = counts, usage

    def ended(self) -> bool:
        return self.is_enough.is_set()

    @property
    def codes(self) -> list[str]:
        return [anomaly.finding.code for anomaly in self.anomalies]

    def wait_for(self, true: Callable[[], bool], seconds: float = 8) -> None:
        """Fails when it does not become true."""
        end = time.monotonic() + seconds * patience()
        while not true():
            assert time.monotonic() < end, (self.codes, [a.finding.title for a in self.anomalies], self.now)
            time.sleep(0.02)

    def settle(self) -> None:
        """Until nothing is under way any more, and a moment longer."""
        self.wait_for(lambda: self.now.flows == 0)
        time.sleep(0.3)


@contextmanager
def watched(lab: Lab, settings: Settings | None = None) -> Iterator[Seen]:
    """A watch of all pods while the body runs; what goes wrong in it fails the test."""
    seen, failed = Seen(), []
    # Where the machine is emulated anything is too much for its processor.
    mine = replace(settings or Settings(limits=Limits(wait=3 * patience())), cpu=math.inf)

    def body() -> None:
        try:
            observe(mine, look(lab.inventory), Fixed(lab.inventory), seen)
        except BaseException as error:  # told to the test's own thread
            failed.append(error)
            seen.is_ready.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert seen.is_ready.wait(30 * patience())
        assert not failed, failed
        yield seen
    finally:
        seen.is_enough.set()
        thread.join()
    assert not failed, failed


def connected(lab: Lab, pod: str, host: str, port: int, timeout: float = 3) -> str:
    """What connect() said: ok, or its error."""
    with entered(lab.netns_of(pod).path):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with sock:
        sock.settimeout(timeout * patience())
        try:
            sock.connect((host, port))
        except OSError as error:
            return os.strerror(error.errno) if error.errno else "timed out"
    return "ok"


def crowd(lab: Lab, pod: str, words: str) -> int:
    """Run a program of crowd.py; how many connections it was content with."""
    process = start(lab, pod, words)
    said, _ = process.communicate(timeout=60 * patience())
    assert process.returncode == 0, said
    return int(said)


def address_of(lab: Lab, pod: str) -> str:
    return str(next(p for p in lab.inventory.pods if p.key == pod).ips[0])


# --- healthy ----------------------------------------------------------------------------------------------------------


# First, while there is no other lab.
@pytest.mark.parametrize("topology", ["vxlan", "routed"])
def test_handshakes_in_tunnels_and_over_ipv6_are_healthy(topology: str) -> None:
    with Lab.up(topology=topology) as other, watched(other) as seen:
        hosts = [str(ip) for p in other.inventory.pods if p.key in ("shop/web-1", "shop/web-3") for ip in p.ips]
        assert {connected(other, "shop/cart", host, 8080) for host in hosts} == {"ok"}
        seen.settle()
    assert seen.anomalies == []
    assert seen.now.answered == len(hosts)


def test_a_crowd_of_healthy_connections_gives_nothing(lab: Lab) -> None:
    n = big(1201)
    with watched(lab) as seen:
        done = crowd(lab, "shop/cart", f"browse {WEB} --number {n} --rate {rate(400)}")
        seen.settle()
    assert seen.anomalies == []
    assert done == n
    assert (seen.now.connections, seen.now.answered, seen.now.lost, seen.now.evicted) == (n, n, 0, 0)


def test_data_of_a_connection_that_stands_does_not_leave_the_kernel(lab: Lab) -> None:
    with ExitStack() as stack:
        server = start(lab, "shop/web-1", "serve --port 9000")
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        with watched(lab) as seen:
            to = f"--host {address_of(lab, 'shop/web-1')} --port 9000"
            assert crowd(lab, "shop/cart", f"load {to} --number 3 --rate 10") == 3
            seen.settle()
    assert seen.anomalies == []
    assert seen.now.connections == 3
    assert seen.now.events < 3 * 30, "twelve megabytes, and only their handshakes are seen"


# --- broken -----------------------------------------------------------------------------------------------------------


def test_of_a_crowd_only_the_broken_ones_are_told_and_the_rule_is_named(lab: Lab) -> None:
    n, faults = big(503), 3
    drop = f"-p tcp -m tcp --sport {FIRST_PORT}:{FIRST_PORT + faults - 1} -j DROP".split()
    lab.run_in("node-1", ["iptables", "-I", "FORWARD", *drop], check=True)
    try:
        with watched(lab) as seen:
            broken = start(
                lab,
                "shop/cart",
                f"browse {WEB} --number {faults} --rate 5 --first {FIRST_PORT} --timeout {2.5 * patience()}",
            )
            assert crowd(lab, "shop/cart", f"browse {WEB} --number {n} --rate {rate(100)}") == n
            assert broken.communicate(timeout=60 * patience())[0].strip() == "0"
            seen.wait_for(lambda: len(seen.codes) >= faults)
            time.sleep(0.3)
    finally:
        lab.run_in("node-1", ["iptables", "-D", "FORWARD", *drop], check=True)
    assert seen.codes == ["RULE_DROP"] * faults, [a.finding.title for a in seen.anomalies]
    for told in seen.anomalies:
        assert told.flow is not None
        assert (told.flow.client.pod, told.flow.server.service) == ("shop/cart", "shop/web")
        assert told.finding.where.rule is not None
        assert f"--sport {FIRST_PORT}" in told.finding.where.rule
    assert (seen.now.connections, seen.now.answered) == (n + faults, n)


def test_read_only_the_rule_is_named_by_its_counter(lab: Lab) -> None:
    web = address_of(lab, "shop/web-1")
    drop = f"-d {web}/32 -p tcp -m tcp --dport 8080 -j DROP".split()
    lab.run_in("node-1", ["iptables", "-I", "FORWARD", *drop], check=True)
    try:
        with watched(lab, Settings(read_only=True)) as seen:
            assert connected(lab, "shop/cart", web, 8080, timeout=2.5) == "timed out"
            seen.wait_for(lambda: bool(seen.anomalies))
            tables = lab.run_in("node-1", ["nft", "list", "tables"], check=True).stdout
    finally:
        lab.run_in("node-1", ["iptables", "-D", "FORWARD", *drop], check=True)
    assert "k8snet_trace" not in tables
    assert seen.codes == ["RULE_DROP"]
    assert seen.anomalies[0].finding.named_by == "counters"


def test_what_is_refused_is_told_with_who_refused(lab: Lab) -> None:
    with watched(lab) as seen:
        assert connected(lab, "shop/cart", address_of(lab, "shop/web-1"), 9999) == "Connection refused"
        assert connected(lab, "shop/cart", "10.96.0.81", 80) == "Connection refused"
        seen.wait_for(lambda: len(seen.codes) >= 2)
        time.sleep(0.3)
    assert sorted(seen.codes) == ["NOT_LISTENING", "NO_ENDPOINTS"]


def test_a_full_accept_queue_is_told(lab: Lab) -> None:
    with entered(lab.netns_of("shop/web-2").path):
        listener = socket.socket()
    with listener, ExitStack() as stack:
        listener.bind(("", 9100))
        listener.listen(0)
        for _ in range(2):  # a backlog of 0 has room for one; the next is the first that finds none
            with entered(lab.netns_of("shop/cart").path):
                client = stack.enter_context(socket.socket())
            client.settimeout(0.2 * patience())
            with suppress(TimeoutError):
                client.connect((address_of(lab, "shop/web-2"), 9100))
        with watched(lab) as seen:
            assert connected(lab, "shop/cart", address_of(lab, "shop/web-2"), 9100, timeout=4) == "timed out"
            seen.wait_for(lambda: "ACCEPT_QUEUE_FULL" in seen.codes)
    assert set(seen.codes) == {"ACCEPT_QUEUE_FULL"}


def test_a_server_that_resets_a_standing_connection_is_told(lab: Lab) -> None:
    with entered(lab.netns_of("shop/web-1").path):
        listener = socket.socket()
    with entered(lab.netns_of("shop/cart").path):
        client = socket.socket()
    with watched(lab) as seen, listener, client:
        listener.bind(("", 9200))
        listener.listen()
        client.connect((address_of(lab, "shop/web-1"), 9200))
        server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        seen.wait_for(lambda: bool(seen.anomalies))
    assert seen.codes == ["CONNECTION_RESET"]
    assert seen.anomalies[0].finding.where.pod == "shop/web-1"


def test_pods_that_come_are_watched_and_that_go_are_no_anomaly(lab: Lab) -> None:
    node = Path(lab.netns_of("node-1").path).name

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    with watched(lab) as seen:
        before = seen.usage.pods
        try:
            ip("netns", "add", LATE)
            ip("link", "add", "eth0", "netns", LATE, "type", "veth", "peer", "name", "vethlate", "netns", node)
            ip("-n", LATE, "addr", "add", "10.244.1.200/24", "dev", "eth0")
            ip("-n", LATE, "link", "set", "eth0", "up")
            ip("-n", node, "link", "set", "vethlate", "master", "cni0", "up")
            seen.wait_for(lambda: seen.usage.pods == before + 1)
            with entered(f"/run/netns/{LATE}"):
                sock = socket.socket()
            with sock, pytest.raises(ConnectionRefusedError):
                sock.connect((address_of(lab, "shop/web-1"), 9999))
            seen.wait_for(lambda: bool(seen.anomalies))
        finally:
            ip("netns", "del", LATE)
        seen.wait_for(lambda: seen.usage.pods == before)
        assert connected(lab, "shop/cart", "10.96.0.80", 80) == "ok"
        seen.settle()
    assert seen.codes == ["NOT_LISTENING"]
    assert seen.anomalies[0].flow is not None
    assert seen.anomalies[0].flow.client.ip == "10.244.1.200"


def test_of_named_pods_only_those_are_watched(lab: Lab) -> None:
    mine = Settings(chosen=lambda owner: owner.pod is not None and owner.pod.key == "shop/cart")
    web = address_of(lab, "shop/web-1")
    with watched(lab, mine) as seen:
        assert seen.usage.pods == 1
        assert connected(lab, "shop/web-2", web, 9999) == "Connection refused"
        assert connected(lab, "shop/cart", web, 9998) == "Connection refused"
        seen.wait_for(lambda: bool(seen.anomalies))
        time.sleep(0.3)
    assert seen.codes == ["NOT_LISTENING"]
    assert seen.anomalies[0].flow is not None
    assert seen.anomalies[0].flow.server.port == 9998


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_over_budget_it_samples_and_says_so_and_nothing_healthy_is_told(lab: Lab) -> None:
    n = max(100, big(503))  # some of them come when it samples already
    with watched(lab, Settings(events_per_second=max(20, int(500 * MANY)))) as seen:
        assert crowd(lab, "shop/cart", f"browse {WEB} --number {n} --rate {rate(300)}") == n
        seen.settle()
    assert seen.anomalies == []
    assert seen.now.one_in > 1
    assert any("of 2" in note or "of 4" in note or "of 8" in note for note in seen.notes), seen.notes
    assert 0 < seen.now.connections < n
    assert seen.now.answered == seen.now.connections


def test_it_leaves_nothing_on_the_node(lab: Lab) -> None:
    tables = lab.run_in("node-1", ["nft", "list", "tables"], check=True).stdout
    assert "k8snet_trace" not in tables
