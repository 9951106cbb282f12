"""`make bench`: what tracing costs, against `tcpdump -i any` with a filter in the node's netns. Ratios first.

In: root, and a few network namespaces that it makes and removes. Out: a few lines on stdout. The packets are UDP
datagrams of 64 bytes, sent by one thread through a forwarding netns to a socket that is full, so that each also ends in
a kfree_skb; what is measured is that thread's CPU time, because a veth carries a packet to its end in the sender's
context. Everything is interleaved round by round: on a shared machine only the comparison within one run counts.
Last comes a soak of `k8snet watch`: minutes of short connections, and what becomes of its memory.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from k8snet.cluster.interfaces import look
from k8snet.cluster.inventory import Inventory
from k8snet.event import Event
from k8snet.flow.dns import WAIT_NS, DnsExchange, DnsTable
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.loader import Filter, Tracer
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.kernel.rules import RuleBook
from k8snet.kernel.ruletrace import Match, RuleTrace
from k8snet.lab import kubeproxy, kubeproxy_nft
from k8snet.lab.lab import BACKENDS
from k8snet.record.file import Recording
from k8snet.trace import Fixed
from k8snet.watch.anomaly import Anomaly
from k8snet.watch.engine import Counts, Engine
from k8snet.watch.live import DRAIN_EVERY, Settings, Usage, observe
from many import CLUSTER_CIDR, NODE, many
from unit.lookups import answer, query

PREFIX = "k8sbench-"
CLIENT, SERVER, STRANGER, PORT = "10.213.1.2", "10.213.2.2", "10.213.9.9", 9000
PACKETS, BLASTS = 500, 20  # short, and many: 2 ms undisturbed are found on a busy machine too, 50 ms are not
START = "from k8snet.kernel.loader import *;import ipaddress as i;t=Tracer(Filter((i.ip_address('{}'),)));t.start()"


def ip(*arguments: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """client -- node (forwards) -- server, gone afterwards."""
    names = [PREFIX + name for name in ("client", "node", "server")]
    client, node, server = names
    remove(names)
    try:
        for name in names:
            ip("netns", "add", name)
        for pod, peer, address, gateway in (
            (client, "to-client", CLIENT, "10.213.1.1"),
            (server, "to-server", SERVER, "10.213.2.1"),
        ):
            ip("link", "add", "eth0", "netns", pod, "type", "veth", "peer", "name", peer, "netns", node)
            ip("-n", pod, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", node, "addr", "add", f"{gateway}/24", "dev", peer)
            ip("-n", node, "link", "set", peer, "up")
            ip("-n", pod, "link", "set", "eth0", "up")
            ip("-n", pod, "route", "add", "default", "via", gateway)
        with entered(f"/run/netns/{node}"), open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
        yield
    finally:
        remove(names)


def remove(names: list[str]) -> None:
    """Delete the namespaces that exist."""
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def tcpdump(expression: str) -> Iterator[None]:
    """A running `tcpdump -i any` in the node's netns that writes what matches to nowhere."""
    command = ["ip", "netns", "exec", PREFIX + "node", "tcpdump", "-i", "any", "-nn", "-w", "/dev/null", expression]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening on" in line:
                break
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def traced(client: str, how: str = "--trace") -> Iterator[None]:
    """A process that has the probes attached and takes what comes, as `k8snet trace` (or `watch`) does."""
    command = [sys.executable, __file__, how, client]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            sys.exit("k8snet bench: the tracer did not start")
        try:
            yield
        finally:
            process.stdin.close()


def trace_until_eof(client: str) -> None:
    """What the process of `traced` does."""
    with Tracer(Filter((ip_address(client),))) as tracer:
        tracer.start()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            for record in tracer.drain():
                Event.decode(record)


def watch_until_eof(pod: str) -> None:
    """The same for a watch of one pod."""
    with Tracer(Filter((), peers=(ip_address(pod),), watch=True)) as tracer:
        tracer.start()
        engine = Engine()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], DRAIN_EVERY)[0]:
            engine.feed(tracer.drain())


@contextmanager
def full_socket() -> Iterator[socket.socket]:
    """A socket in the client's netns, connected to one in the server's that nobody reads."""
    with (
        socket_in("server") as sink,
        socket_in("client") as sender,
    ):
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sink.bind(("", PORT))
        sender.connect((SERVER, PORT))
        yield sender


def socket_in(name: str) -> socket.socket:
    """A UDP socket that lives in a netns of the network."""
    with entered(f"/run/netns/{PREFIX}{name}"):
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def blast(sender: socket.socket) -> list[float]:
    """Send PACKETS datagrams BLASTS times from one CPU; for each, the CPU time per packet in microseconds."""
    payload, send, cpus = b"x" * 64, sender.send, os.sched_getaffinity(0)
    times = []
    os.sched_setaffinity(0, {min(cpus)})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        for _ in range(BLASTS):
            start = time.thread_time_ns()
            for _ in range(PACKETS):
                send(payload)
            times.append((time.thread_time_ns() - start) / PACKETS / 1000)
        return times
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)


def overhead(rounds: int) -> dict[str, float]:
    """Microseconds per forwarded packet for each set-up: the fifth percentile over all rounds."""
    setups: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "nothing": nullcontext,
        "k8snet, no match": lambda: traced(STRANGER),
        "tcpdump, no match": lambda: tcpdump(f"host {STRANGER}"),
        "k8snet, all match": lambda: traced(CLIENT),
        "tcpdump, all match": lambda: tcpdump(f"host {CLIENT}"),
        "watch, other pods": lambda: traced(STRANGER, "--watch"),
        "watch, its own data": lambda: traced(CLIENT, "--watch"),
    }
    times: dict[str, list[float]] = {name: [] for name in setups}
    with network(), full_socket() as sender:
        blast(sender)
        for _ in range(rounds):
            for name, setup in setups.items():
                with setup():
                    times[name] += blast(sender)
    # Not the very best, which is one lucky blast, but what the quiet moments of a busy machine agree on.
    return {name: sorted(values)[len(values) // 20] for name, values in times.items()}


def decoded_without_loss() -> tuple[float, int]:
    """Events that one CPU drains and decodes in a second of its time, and how many were lost."""
    with network(), full_socket() as sender, Tracer(Filter((ip_address(CLIENT),))) as tracer:
        tracer.start()
        count, spent = 0, 0.0
        for _ in range(20):
            for _ in range(2000):  # 5 events each: inside the ring
                sender.send(b"x" * 64)
            start = time.thread_time()
            for record in tracer.drain():
                Event.decode(record)
                count += 1
            spent += time.thread_time() - start
        return count / spent, sum(tracer.lost().values())


class Soaked:
    """A watcher that writes down what the watch has cost."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.told = 0
        self.samples: list[tuple[float, float, int]] = []  # when, CPU seconds, bytes
        self.now = Counts()

    def ready(self, usage: Usage) -> None:
        print("ready", flush=True)

    def found(self, anomalies: Sequence[Anomaly]) -> None:
        self.told += len(anomalies)

    def asked(self, exchanges: Sequence[DnsExchange]) -> None:
        """There are none."""

    def note(self, text: str) -> None:
        print(f"note {text}", flush=True)

    def counts(self, counts: Counts, usage: Usage) -> None:
        self.now = counts
        self.samples.append((time.monotonic(), usage.cpu, usage.memory))

    def ended(self) -> bool:
        return time.monotonic() >= self.end


def soak_here(seconds: float) -> None:
    """What the process of `soak` does: watch all pods, and print the cost as one line."""
    soaked = Soaked(seconds)
    observe(Settings(), look(Inventory()), Fixed(Inventory()), soaked)
    whole, late = soaked.samples, soaked.samples[len(soaked.samples) // 3 :]
    slope, _ = statistics.linear_regression([when for when, _, _ in late], [memory for _, _, memory in late])
    cpu = (whole[-1][1] - whole[0][1]) / (whole[-1][0] - whole[0][0])
    counts = soaked.now
    print(
        f"soak          {counts.connections:,} connections in {seconds:.0f} s, {counts.lost} events lost, "
        f"one in {counts.one_in}, {soaked.told} anomalies, {cpu * 100:.1f} % of one CPU, "
        f"{whole[-1][2] / (1 << 20):.0f} MiB, growing by {slope * 3600 / (1 << 20):+.2f} MiB an hour"
    )


def soak(seconds: float, rate: int) -> None:
    """A watch of all pods beside so many connections a second; its own process prints what it has cost."""
    with network(), ExitStack() as stack:
        for where, what in (("server", "--accept"), ("client", "--connect")):
            with entered(f"/run/netns/{PREFIX}{where}"):
                process = subprocess.Popen([sys.executable, __file__, what, str(rate)])
            stack.callback(process.wait)
            stack.callback(process.kill)
        subprocess.run([sys.executable, __file__, "--soak-here", str(seconds)], check=True)


def accept_forever() -> None:
    """Take connections and close them."""
    with socket.create_server(("", PORT), backlog=1024) as listener:
        while True:
            listener.accept()[0].close()


def connect_forever(rate: int) -> None:
    """Open so many connections a second, and let the server close them."""
    time.sleep(1)  # until it listens
    began, number = time.monotonic(), 0
    while True:
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        number += 1
        with socket.socket() as client, suppress(OSError):
            client.settimeout(5)
            client.connect((SERVER, PORT))
            client.recv(1)


def recorded(seconds: float, rate: int) -> tuple[float, float, float]:
    """Of a watch's events: how many in a connection, bytes in a recording, microseconds of CPU to write one."""
    taken: list[list[bytes]] = []
    with network(), ExitStack() as stack:
        for where, what in (("server", "--accept"), ("client", "--connect")):
            with entered(f"/run/netns/{PREFIX}{where}"):
                process = subprocess.Popen([sys.executable, __file__, what, str(rate)])
            stack.callback(process.wait)
            stack.callback(process.kill)
        tracer = stack.enter_context(Tracer(Filter((), peers=(ip_address(CLIENT),), watch=True)))
        tracer.start()
        end = time.monotonic() + seconds + 1  # until they have begun
        while time.monotonic() < end:
            time.sleep(DRAIN_EVERY)
            taken.append(tracer.drain())
    count = sum(map(len, taken))
    with TemporaryDirectory() as directory:
        file = Path(directory) / "bench.k8snet"
        start, first = time.process_time(), 0
        with Recording(file) as recording:
            for records in taken:
                recording.records(first, records)
                first += len(records)
        spent = time.process_time() - start
        return count / seconds / rate, file.stat().st_size / count, spent / count * 1e6


def dns_matched(queries: int) -> float:
    """Microseconds of CPU for a DNS query and its answer, each seen at four places, from events to an exchange."""
    events = [
        event
        for i in range(queries)
        for some in (query, answer)
        for event in some(i / 1000, f"n{i}.example", port=20000 + i % 40000, txid=i % 65536)
    ]
    table, start = DnsTable(), time.thread_time()
    for event in events:
        table.feed(event)
    table.due(events[-1].ktime_ns + WAIT_NS)
    return (time.thread_time() - start) / queries * 1e6


def start_up(times: int) -> tuple[float, float]:
    """Seconds from process start to all probes attached (and the process gone): the median, and the best."""
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", START.format(CLIENT)], check=True)
        measured.append(time.perf_counter() - start)
    return statistics.median(measured), min(measured)


def naming(backend: str, inventory: Inventory, times: int) -> tuple[float, float]:
    """Seconds from a drop by one kube-proxy rule among those of all Services to its name: the median, and the worst."""
    node = Netns(inum_of(f"/run/netns/{PREFIX}node"), f"/run/netns/{PREFIX}node")
    load(node, backend, inventory)
    ip("-n", PREFIX + "node", "route", "add", "default", "via", SERVER)  # else it dies before the rule
    measured = []
    for number in range(times):
        # Another Service each time, nothing remembered from the last, and the SYN rejected as it is sent.
        vip = inventory.services[-1 - number].cluster_ips[0]
        with Guardian() as guardian, RuleTrace(node, Match(6, (), ((vip, 80),)), guardian) as trace:
            with entered(f"/run/netns/{PREFIX}client"):
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.settimeout(1)
            with client, suppress(OSError):
                client.connect((str(vip), 80))
            start = time.perf_counter()
            named = RuleBook(node).name(trace.drain())
            measured.append(time.perf_counter() - start)
        if named is None or named.service != inventory.services[-1 - number].key:
            sys.exit(f"k8snet bench: {backend} names {named}")
    return statistics.median(measured), max(measured)


def load(node: Netns, backend: str, inventory: Inventory) -> None:
    """Replace the node's rules by those that this kube-proxy writes."""
    command, rules = [f"{backend}-restore"], kubeproxy.rules(inventory, CLUSTER_CIDR, NODE)
    if backend == "nftables":
        command, rules = ["nft", "-f", "-"], kubeproxy_nft.rules(inventory, CLUSTER_CIDR, NODE)
    with entered(node.path):
        subprocess.run(command, input=rules, check=True, text=True)


def memory() -> tuple[float, float]:
    """MiB resident of a process that traces, and what of it is more than a bare Python's."""
    status = "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"

    def of(code: str) -> float:
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout) / 1024

    with_tracer, bare = of(f"{START.format(CLIENT)};{status}"), of(status)
    return with_tracer, with_tracer - bare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds (default 25)")
    parser.add_argument("--soak", type=float, default=120, help="seconds of the soak (default 120)")
    parser.add_argument("--only-soak", action="store_true", help="nothing else")
    parser.add_argument("--rate", type=int, default=1000, help="connections a second of the soak (default 1000)")
    inner: dict[str, Callable[[str], None]] = {
        "--trace": trace_until_eof,
        "--watch": watch_until_eof,
        "--soak-here": lambda seconds: soak_here(float(seconds)),
        "--accept": lambda _: accept_forever(),
        "--connect": lambda per_second: connect_forever(int(per_second)),
    }
    for name in inner:
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, does in inner.items():
        given = getattr(arguments, name[2:].replace("-", "_"))
        if given is not None:
            does(given)
            return
    if os.geteuid() != 0:
        sys.exit("k8snet bench: needs root\n  sudo make bench")
    if arguments.only_soak:
        soak(arguments.soak, arguments.rate)
        return
    best = overhead(arguments.rounds)
    base = best["nothing"]
    added = {name: value - base for name, value in best.items()}
    print(f"not matching  {added['k8snet, no match'] / added['tcpdump, no match']:.2f} x tcpdump -i any")
    print(f"matching      {added['k8snet, all match'] / added['tcpdump, all match']:.2f} x tcpdump -i any -w")
    for name in best:
        if name != "nothing":
            print(f"  {name:20} {added[name]:+.2f} us a packet (of {base:.2f})")
    rate, lost = decoded_without_loss()
    print(f"decoded       {rate:,.0f} events/s, {lost} lost")
    each, size, cost = recorded(4, 500)
    print(f"DNS           {dns_matched(5000):.0f} us of CPU a query")
    print(f"recorded      {size:.0f} bytes and {cost:.1f} us of CPU an event; {each:.0f} events a connection (watch)")
    median, fastest = start_up(7)
    print(f"start-up      {median:.3f} s from process start to all probes attached, {fastest:.3f} at best")
    for backend in BACKENDS:
        # As a cluster has it, and all in one chain or map: 20,000 rules either way with iptables.
        for services, without_endpoints in ((5000, 1000), (20_000, 20_000)):
            with network():  # of its own: the rules of one back end do not stand in the way of another
                median, worst = naming(backend, many(services, without_endpoints), 7)
            print(
                f"rule named    {median:.3f} s after the drop, {worst:.3f} at worst: {backend}, {services:,} Services, "
                f"{without_endpoints:,} without endpoints"
            )
    resident, above = memory()
    print(f"memory        {resident:.1f} MiB resident, {above:.1f} of it above a bare Python")
    soak(arguments.soak, arguments.rate)


if __name__ == "__main__":
    main()
