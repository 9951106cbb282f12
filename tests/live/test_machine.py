"""What every other live test takes for granted of the machine: BTF, network namespaces, a veth that carries packets.

When one of these fails, the rest of the suite need not be read. Nothing of k8snet is used here.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PREFIX = f"k8snet-machine-{os.getpid()}"
# A prime, so that a number of packets that comes out right does not come out right by chance.
DATAGRAMS = 23


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a veth: left 192.0.2.1, right 192.0.2.2."""
    left, right = f"{PREFIX}-l", f"{PREFIX}-r"
    try:
        for netns in (left, right):
            run("ip", "netns", "add", netns)
        run("ip", "-n", left, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right)
        for netns, address in ((left, "192.0.2.1/24"), (right, "192.0.2.2/24")):
            run("ip", "-n", netns, "address", "add", address, "dev", "eth0")
            run("ip", "-n", netns, "link", "set", "eth0", "up")
        yield left, right
    finally:
        for netns in (left, right):
            subprocess.run(["ip", "netns", "delete", netns], check=False, capture_output=True, timeout=60)


def socket_in(netns: str) -> socket.socket:
    """A UDP socket that lives in another network namespace; the calling process comes back at once."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    try:
        setns(there)
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        setns(home)
        os.close(home)
        os.close(there)


def setns(fd: int) -> None:
    # os.setns is Python 3.12's.
    import ctypes

    clone_newnet = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def test_the_kernel_describes_its_types() -> None:
    header = Path("/sys/kernel/btf/vmlinux").read_bytes()[:2]
    assert header == (0xEB9F).to_bytes(2, "little"), "no BTF: the kernel was built without CONFIG_DEBUG_INFO_BTF"


def test_a_veth_carries_every_packet(pair: tuple[str, str]) -> None:
    left, right = pair
    with socket_in(left) as sender, socket_in(right) as receiver:
        receiver.bind(("192.0.2.2", 5000))
        receiver.settimeout(10)
        for number in range(DATAGRAMS):
            sender.sendto(bytes([number]), ("192.0.2.2", 5000))
        assert [receiver.recv(16)[0] for _ in range(DATAGRAMS)] == list(range(DATAGRAMS))
    # The kernel is asked by another road too: the receiving namespace counted as many datagrams.
    udp = [
        line.split()[1:]
        for line in run("ip", "netns", "exec", right, "cat", "/proc/net/snmp").splitlines()
        if line.startswith("Udp:")
    ]
    assert dict(zip(*udp, strict=True))["InDatagrams"] == str(DATAGRAMS)


@pytest.mark.parametrize("backend", ["iptables-legacy", "iptables-nft"])
def test_both_back_ends_take_a_rule_of_kube_proxy(pair: tuple[str, str], backend: str) -> None:
    netns = pair[0]
    run("ip", "netns", "exec", netns, backend, "-t", "nat", "-N", "KUBE-SVC-X")
    rule = ["-A", "KUBE-SVC-X", "-m", "comment", "--comment", "shop/web", "-m", "statistic", "--mode", "random"]
    rule += ["--probability", "0.5", "-j", "KUBE-MARK-MASQ"]
    run("ip", "netns", "exec", netns, backend, "-t", "nat", "-N", "KUBE-MARK-MASQ")
    run("ip", "netns", "exec", netns, backend, "-t", "nat", *rule)
    assert "shop/web" in run("ip", "netns", "exec", netns, f"{backend}-save", "-t", "nat")


def test_a_network_namespace_goes_without_trace(pair: tuple[str, str]) -> None:
    left, _right = pair
    run("ip", "netns", "delete", left)
    assert left not in run("ip", "netns", "list")
