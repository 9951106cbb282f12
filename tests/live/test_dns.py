"""DNS from real sockets: what the kernel copies of a message, however it was written; what a pod's resolv.conf says."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from k8snet.cluster.interfaces import look
from k8snet.event import PAYLOAD_MAX, Encap, Event, ProbeId
from k8snet.flow.dns import DnsExchange, DnsTable, parse
from k8snet.kernel import netns
from k8snet.kernel.loader import Filter, Tracer
from k8snet.kernel.netns import Netns
from k8snet.kernel.resolver import Resolver
from k8snet.kernel.rootfs import resolver_of
from k8snet.lab import nameserver
from k8snet.lab.lab import Lab, current, down
from k8snet.lab.namespaces import Report, answer, enter_own, fork, mount_own
from k8snet.lab.resolvers import Lookup, waiting
from k8snet.send import dns_query
from k8snet.trace import Fixed
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts
from k8snet.watch.live import Settings, Usage, observe
from live.conftest import about_processes, patience

NAME: Final = f"dns-{os.getpid()}"  # not the lab's prefix: its clean-up would take it away
WEB: Final = dns_query("web.shop.svc.cluster.local", 4711)
LONG: Final = dns_query(".".join(["a" * 63] * 3 + ["b" * 61]), 4712)
ZEROCOPY: Final = 0x4000000  # MSG_ZEROCOPY
SO_ZEROCOPY: Final = 60


@pytest.fixture(scope="module")
def there() -> Iterator[str]:
    """A netns with a loopback."""
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        subprocess.run(["ip", "-n", NAME, "link", "set", "lo", "up"], check=True)
        yield f"/run/netns/{NAME}"
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)


@pytest.fixture(scope="module")
def tracer() -> Iterator[Tracer]:
    """Sees all of every loopback."""
    with Tracer(Filter((ip_address("127.0.0.1"), ip_address("::1"))), tiers=(1,)) as started:
        started.start()
        yield started


def recorded(tracer: Tracer, there: str, do: Callable[[], None]) -> list[Event]:
    """What the devices of the netns saw of it."""
    tracer.drain()
    with netns.entered(there):
        do()
    time.sleep(0.05 * patience())
    events = [Event.decode(record) for record in tracer.drain()]
    at_device = (ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB)
    mine = (e for e in events if e.netns == netns.inum_of(there) and e.probe in at_device)
    return [e for e in mine if e.payload_len and e.encap is Encap.NONE]


def at_once(sock: socket.socket, query: bytes) -> None:
    sock.send(query)


def in_pieces(sock: socket.socket, query: bytes) -> None:
    sock.send(query[:12], socket.MSG_MORE)
    sock.send(query[12:])


def from_a_file(sock: socket.socket, query: bytes) -> None:
    file = os.memfd_create("query")
    try:
        os.write(file, query)
        os.sendfile(sock.fileno(), file, 0, len(query))
    finally:
        os.close(file)


def without_a_copy(sock: socket.socket, query: bytes) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    sock.send(query, ZEROCOPY)


@pytest.mark.parametrize("write", [at_once, in_pieces, from_a_file, without_a_copy])
@pytest.mark.parametrize("query", [pytest.param(WEB, id="short"), pytest.param(LONG, id="longest")])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_query_is_copied_whole_or_said_to_be_cut(
    tracer: Tracer, there: str, address: str, query: bytes, write: Callable[[socket.socket, bytes], None]
) -> None:
    """However it was written; where only a part can be reached, that part is right."""

    def ask() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as sock:
            server.bind((address, 53))
            sock.connect((address, 53))
            write(sock, query)
            assert server.recv(512) == query

    events = recorded(tracer, there, ask)
    assert {e.probe for e in events} == {ProbeId.NET_DEV_QUEUE, ProbeId.NETIF_RECEIVE_SKB}
    for event in events:
        assert event.payload_len == len(query)
        assert query.startswith(event.payload)
        if write is at_once or tracer.reads_fragments:
            assert event.payload == query


def test_a_message_longer_than_a_question_can_be_is_cut(tracer: Tracer, there: str) -> None:
    answer = WEB[:2] + b"\x81\x80" + WEB[4:] + bytes(1000)

    def say() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 53))
            sock.sendto(answer, ("127.0.0.1", 9))

    events = recorded(tracer, there, say)
    assert events
    assert {e.payload for e in events} == {answer[:PAYLOAD_MAX]}
    assert {e.payload_len for e in events} == {len(answer)}


def test_other_ports_carry_no_payload(tracer: Tracer, there: str) -> None:
    def say() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(WEB, ("127.0.0.1", 54))

    events = recorded(tracer, there, say)
    assert events
    assert {e.payload for e in events} == {b""}


def test_over_tcp_a_query_and_its_answer_are_matched(tracer: Tracer, there: str) -> None:
    """The length and the message in one segment, and in two."""

    def talk() -> None:
        with socket.create_server(("127.0.0.1", 53)) as listener:
            for whole in (True, False):
                with socket.create_connection(("127.0.0.1", 53)) as client:
                    server, _ = listener.accept()
                    with server:
                        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        length = len(WEB).to_bytes(2, "big")
                        for part in (length + WEB,) if whole else (length, WEB):
                            client.sendall(part)
                            time.sleep(0.02)
                        server.sendall(length + WEB[:2] + b"\x81\x83" + WEB[4:])
                        client.recv(512)

    table = DnsTable()
    for event in sorted(recorded(tracer, there, talk), key=lambda e: e.ktime_ns):
        table.feed(event)
    found = [(q.protocol, q.name, q.type, q.rcode) for q in table.rest()]
    # TCP keeps what it sends in fragments: where they cannot be read, nothing is known, and nothing is guessed.
    one = ("tcp", "web.shop.svc.cluster.local", "A", "NXDOMAIN")
    assert found == ([one, one] if tracer.reads_fragments else [])


def test_the_question_of_what_was_copied_can_be_read(tracer: Tracer, there: str) -> None:
    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(LONG, ("127.0.0.1", 53))

    for event in recorded(tracer, there, ask):
        read = parse(event.payload)
        assert read is not None
        assert len(read.name) == 3 * 64 + 61


# --- the lab's server -------------------------------------------------------------------------------------------------


@about_processes
@pytest.mark.skipif(not nameserver.is_installed(), reason="dnsmasq is not installed: apt-get install dnsmasq-base")
@pytest.mark.parametrize("killed", [False, True], ids=["down", "killed"])
def test_dnsmasq_ends_with_its_lab(killed: bool) -> None:
    lab = Lab.up()
    try:
        inside = netns.scan()[lab.netns_of("kube-system/dns").inum].pids
        servers = [pid for pid in inside if Path(f"/proc/{pid}/comm").read_text() == "dnsmasq\n"]
        assert servers
        ends = [os.pidfd_open(pid) for pid in servers]
        if killed and (state := current()) is not None:
            os.kill(state.keeper, signal.SIGKILL)
    finally:
        lab.down()
        down()
    for end in ends:
        assert select.select([end], [], [], 5 * patience())[0], "dnsmasq is still there"
        os.close(end)


class Ear:
    """Sets the look-ups off, and notes what a watch says of them."""

    def __init__(self, go: Sequence[Callable[[], None]], wanted: set[tuple[str, str]]) -> None:
        self.told: set[tuple[str, str]] = set()
        self.names: set[str] = set()
        self.evidence: list[str] = []
        self._go = go
        self._wanted = wanted
        self._deadline = time.monotonic() + 30 * patience()
        self._complete = 0.0

    def ready(self, usage: Usage) -> None:
        for go in self._go:
            go()

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        self.told |= {(a.finding.code, a.subject or "") for a in anomalies}
        self.evidence += [line for a in anomalies for line in a.finding.evidence]

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        self.names |= {exchange.name for exchange in exchanges}

    def note(self, text: str) -> None:
        """Not about DNS."""

    def counts(self, counts: Counts, usage: Usage) -> None:
        if not self._complete and self.told >= self._wanted:
            self._complete = time.monotonic()

    def ended(self) -> bool:
        """A moment after the last was told, so that what should not be told has time to be."""
        now = time.monotonic()
        return now > self._deadline or bool(self._complete and now > self._complete + 0.5)


@pytest.mark.skipif("K8SNET_VM" in os.environ, reason="about queries, not about the kernel")
@pytest.mark.skipif(not nameserver.is_installed(), reason="dnsmasq is not installed: apt-get install dnsmasq-base")
def test_a_watch_tells_what_goes_wrong_and_nothing_else() -> None:
    healthy = ("web.shop.svc.cluster.local", nameserver.LARGE)
    lookups = {
        "DNS_PAIR_TIMEOUT": Lookup((f"{nameserver.HALF}.",), "timeout:1"),
        "DNS_SLOW": Lookup((f"{nameserver.SLOW}.",)),
        "DNS_LATE": Lookup((f"{nameserver.LATE}.",), "timeout:1 attempts:1"),
        "DNS_SERVFAIL": Lookup((f"{nameserver.BROKEN}.",), "attempts:1"),
        "DNS_REFUSED": Lookup((f"{nameserver.UNKNOWN}.",), "attempts:1"),
        "DNS_SEARCH_STORM": Lookup((nameserver.PLAIN,), "ndots:5", nameserver.SEARCH),
    }
    wanted = {(code, lookup.names[0].rstrip(".")) for code, lookup in lookups.items()}
    with Lab.up() as lab, ExitStack() as stack:
        all_of_them = [*lookups.values(), Lookup(tuple(f"{name}." for name in healthy))]
        ear = Ear([stack.enter_context(waiting(lab, "shop/cart", one)) for one in all_of_them], wanted)
        observe(Settings(read_only=True, cpu=math.inf), look(lab.inventory), Fixed(lab.inventory), ear)
    assert ear.told == wanted
    assert ear.names >= set(healthy)
    # The pod has a resolver of each kind; the first of them speaks for it.
    assert "/etc/resolv.conf of pod shop/cart: options timeout:1" in ear.evidence


# --- /etc/resolv.conf -------------------------------------------------------------------------------------------------


def _live(report: Report, *, root: Path) -> None:
    """A container's process, as far as it matters here."""
    enter_own()
    mount_own({})
    os.chroot(root)
    os.chdir("/")
    report(None)
    signal.pause()


def resolver_in(root: Path) -> Resolver | None:
    """What is read of a process whose root that is, and whose netns and mounts are its own."""
    child, read = fork("k8snet-test", partial(_live, root=root), dies_with_parent=signal.SIGKILL)
    try:
        answer(read)
        path = f"/proc/{child}/ns/net"
        return resolver_of(Netns(netns.inum_of(path), path, (child,)))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory, and beside it a file that a pod must not make us read."""
    (tmp_path / "outside").write_text("search outside.example\n")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


def test_the_pods_own_file_is_read(root: Path) -> None:
    (root / "etc/resolv.conf").write_text("nameserver 10.96.0.10\nsearch shop.svc.cluster.local\noptions ndots:5\n")
    assert resolver_in(root) == Resolver(("10.96.0.10",), ("shop.svc.cluster.local",), ndots=5)


def test_a_link_is_followed_within_the_pod(root: Path) -> None:
    (root / "run").mkdir()
    (root / "run/resolv.conf").write_text("search inside.example\n")
    (root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    assert resolver_in(root) == Resolver(search=("inside.example",))


@pytest.mark.parametrize("how", ["absolute", "upwards", "directory"])
def test_no_link_leads_out_of_the_pod(root: Path, how: str) -> None:
    outside = root.parent / "outside"
    if how == "directory":
        (root / "etc").rmdir()
        (root / "etc").symlink_to(root.parent)
        outside.rename(root.parent / "resolv.conf")
    else:
        (root / "etc/resolv.conf").symlink_to(outside if how == "absolute" else "../../outside")
    assert resolver_in(root) is None


def test_a_pipe_blocks_nobody(root: Path) -> None:
    os.mkfifo(root / "etc/resolv.conf")
    assert resolver_in(root) is None


def test_of_an_endless_file_the_beginning_is_read(root: Path) -> None:
    with (root / "etc/resolv.conf").open("wb") as file:
        file.write(b"search big.example\n\xff\xfe\n")
        file.truncate(1 << 40)
    assert resolver_in(root) == Resolver(search=("big.example",))


def test_a_process_with_the_nodes_mounts_says_nothing_of_the_pod(there: str) -> None:
    with netns.entered(there):
        sleeper = subprocess.Popen(["sleep", "60"])
    try:
        path = f"/proc/{sleeper.pid}/ns/net"
        assert netns.inum_of(path) == netns.inum_of(there)
        assert resolver_of(Netns(netns.inum_of(path), path, (sleeper.pid,))) is None
    finally:
        sleeper.kill()
        sleeper.wait()
