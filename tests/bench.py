"""`make bench`: what tracing costs, against `tcpdump -i any` with a filter in the node's netns. Ratios first.

In: root, and a few network namespaces that it makes and removes. Out: a few lines on stdout. The packets are UDP
datagrams of 64 bytes, sent by one thread through a forwarding netns to a socket that is full, so that each also ends in
a kfree_skb; what is measured is that thread's CPU time, because a veth carries a packet to its end in the sender's
context. Everything is interleaved round by round: on a shared machine only the comparison within one run counts.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from ipaddress import ip_address

from k8snet.cluster.inventory import Inventory
from k8snet.event import Event
from k8snet.kernel.guardian import Guardian
from k8snet.kernel.loader import Filter, Tracer
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.kernel.rules import RuleBook
from k8snet.kernel.ruletrace import Match, RuleTrace
from k8snet.lab import kubeproxy, kubeproxy_nft
from k8snet.lab.lab import BACKENDS
from many import CLUSTER_CIDR, NODE, many

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
def traced(client: str) -> Iterator[None]:
    """A process that has the default set of probes attached and decodes what comes, as `k8snet trace` does."""
    command = [sys.executable, __file__, "--trace", client]
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
    command, rules = [f"{backend}-restore"], kubeproxy.rules(inventory, CLUSTER_CIDR)
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
    parser.add_argument("--trace", metavar="CLIENT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace:
        trace_until_eof(arguments.trace)
        return
    if os.geteuid() != 0:
        sys.exit("k8snet bench: needs root\n  sudo make bench")
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


if __name__ == "__main__":
    main()
