"""What hangs at a device and what its queues drop, asked of the kernel: compared with what was put there."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8snet.kernel.devices import attached, qdisc_drops
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.kernel.sockets import backlogs, queues
from k8snet.lab.programs import drop_at_tc, drop_at_tcx, drop_at_xdp

NAME = f"k8snet-devices-{os.getpid()}"
DATAGRAMS = 23  # a prime: a number that comes out right does not do so by chance


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A netns with a veth pair, `left` with 192.0.2.1 and `right`; both are up."""
    try:
        run("ip", "netns", "add", NAME)
        with entered(f"/run/netns/{NAME}"):  # router solicitations would be counted with the datagrams
            for name in ("all", "default"):
                off = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
                if off.exists():
                    off.write_text("1", encoding="ascii")
        run("ip", "-n", NAME, "link", "add", "left", "type", "veth", "peer", "name", "right")
        run("ip", "-n", NAME, "address", "add", "192.0.2.1/24", "dev", "left")
        for device in ("lo", "left", "right"):
            run("ip", "-n", NAME, "link", "set", device, "up")
        yield Netns(inum_of(f"/run/netns/{NAME}"), f"/run/netns/{NAME}")
    finally:
        subprocess.run(["ip", "netns", "delete", NAME], check=False, capture_output=True, timeout=60)


def send_to_nobody(netns: Netns) -> None:
    """DATAGRAMS datagrams out of `left`, to an address whose MAC is known."""
    run("ip", "-n", NAME, "neigh", "replace", "192.0.2.9", "lladdr", "0a:58:c0:00:02:09", "dev", "left")
    with entered(netns.path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(DATAGRAMS):
            sender.sendto(bytes(64), ("192.0.2.9", 9))


def test_nothing_hangs_at_a_new_device(netns: Netns) -> None:
    assert attached(netns, ["left", "right", "gone"]) == {}


def test_programs_are_named_as_bpftool_names_them(netns: Netns) -> None:
    drop_at_tc(netns, "left", "ingress", "guard_in")
    drop_at_xdp(netns, "right", "generic", "guard_xdp")
    found = attached(netns, ["left", "right"])
    (at_left,), (at_right,) = found["left"], found["right"]
    assert (at_left.hook, at_left.kind, at_left.name) == ("tc ingress", "bpf", "guard_in")
    assert (at_right.hook, at_right.kind, at_right.name) == ("xdp", "generic", "guard_xdp")
    details = json.loads(run("ip", "-j", "-d", "-n", NAME, "link", "show", "dev", "right"))
    assert details[0]["xdp"]["prog"]["id"] == at_right.id
    assert f"id {at_left.id} name guard_in" in run("tc", "-d", "-n", NAME, "filter", "show", "dev", "left", "ingress")


def test_a_program_without_a_qdisc_is_found(netns: Netns) -> None:
    try:
        drop_at_tcx(netns, "left", "egress", "guard_tcx")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
        pytest.skip("this kernel has no tcx")
    (program,) = attached(netns, ["left"])["left"]
    assert (program.hook, program.kind, program.name) == ("tc egress", "tcx", "guard_tcx")


def test_a_queue_that_drops_is_counted_by_its_kind(netns: Netns) -> None:
    run(
        "tc",
        "-n",
        NAME,
        "qdisc",
        "replace",
        "dev",
        "left",
        "root",
        "tbf",
        "rate",
        "1mbit",
        "burst",
        "40",
        "limit",
        "40",
    )
    before = qdisc_drops(netns)["qdisc.left.tbf.dropped"]
    send_to_nobody(netns)
    assert qdisc_drops(netns)["qdisc.left.tbf.dropped"] - before == DATAGRAMS


def test_a_tc_program_that_drops_counts_at_its_clsact(netns: Netns) -> None:
    drop_at_tc(netns, "left", "egress", "guard_out")
    before = qdisc_drops(netns)["qdisc.left.clsact.dropped"]
    send_to_nobody(netns)
    assert qdisc_drops(netns)["qdisc.left.clsact.dropped"] - before == DATAGRAMS


def test_the_accept_queue_is_what_ss_says(netns: Netns) -> None:
    with entered(netns.path):
        listener = socket.create_server(("127.0.0.1", 8080), backlog=3)
    with listener:
        clients = []
        for _ in range(2):
            with entered(netns.path):
                clients.append(socket.create_connection(("127.0.0.1", 8080), timeout=10))
        assert backlogs(netns) == {("tcp", 8080): (2, 3)}
        assert queues(netns)["tcp", 8080] == 2
        state, received, sent, *_ = run("ip", "netns", "exec", NAME, "ss", "-Hltn").split()
        assert (state, received, sent) == ("LISTEN", "2", "3")
        for client in clients:
            client.close()
