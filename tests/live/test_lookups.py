"""What the kernel's tables say of a packet: read by us, and compared with what `ip` reads, in a netns made for it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from k8snet.kernel.lookups import ask, is_resolving
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.kernel.rtnetlink import Route, RouteQuestion
from live.conftest import patience

NAME = f"k8snet-lookups-{os.getpid()}"
WIRED = (
    "link set lo up",
    "link add name va type veth peer name vb",
    "addr add 10.1.1.1/24 dev va",
    "link set va up",
    "link set vb up",
    "route add 10.5.0.0/16 via 10.1.1.9",
    "route add blackhole 10.2.0.0/16",
    "route add 10.2.9.0/24 via 10.1.1.9",
    "route add unreachable 10.3.0.0/16",
    "route add prohibit 10.4.0.0/16",
    "route add blackhole 10.2.7.0/24 table 77",
    "rule add to 10.2.7.0/24 lookup 77",
    "rule add to 10.7.0.0/16 blackhole",
)
REFUSED = {
    "10.2.1.1": "blackhole 10.2.0.0/16",
    "10.2.7.1": "blackhole 10.2.7.0/24 table 77",
    "10.3.1.1": "unreachable 10.3.0.0/16",
    "10.4.1.1": "prohibit 10.4.0.0/16",
}


def ip(*words: str) -> Any:
    done = subprocess.run(["ip", "-n", NAME, "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


@pytest.fixture(scope="module")
def place() -> Iterator[Netns]:
    """A netns with one of each kind of route."""
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        with entered(f"/run/netns/{NAME}"), open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as forwarding:
            forwarding.write("1")
        for command in WIRED:
            ip(*command.split())
        yield Netns(inum_of(f"/run/netns/{NAME}"), f"/run/netns/{NAME}")
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)


def routed(place: Netns, to: str, *, iif: str | None = None, sender: str = "10.1.1.44") -> Route:
    source = ip_address(sender) if iif else None
    number = ip("link", "show", iif)[0]["ifindex"] if iif else 0
    question = RouteQuestion(place.inum, ip_address(to), source, number)
    return ask([question], (), {place.inum: place}).routes[question]


@pytest.mark.parametrize("to", ["10.1.1.7", "10.5.1.1"])
def test_a_route_leads_where_ip_says(place: Netns, to: str) -> None:
    (said,) = ip("route", "get", to)
    for route in (routed(place, to), routed(place, to, iif="va")):
        assert (route.type, route.device) == ("unicast", said["dev"])
        assert (str(route.gateway) if route.gateway else None) == said.get("gateway")


@pytest.mark.parametrize("iif", [None, "va"], ids=["sent", "forwarded"])
@pytest.mark.parametrize("to", REFUSED)
def test_a_route_that_refuses_is_named_with_its_table(place: Netns, to: str, iif: str | None) -> None:
    route = routed(place, to, iif=iif)
    assert str(route) == REFUSED[to]
    assert route.error in (errno.EINVAL, errno.EHOSTUNREACH, errno.EACCES)


def test_a_blackhole_beside_the_way_is_not_blamed_for_a_source_that_cannot_be(place: Netns) -> None:
    """The kernel's errno is the same, and so it is for rp_filter on some kernels."""
    assert routed(place, "10.2.9.1", iif="va", sender="224.0.0.1") == Route(errno.EINVAL)
    assert str(routed(place, "10.2.9.1", iif="va")).startswith("10.2.9.0/24 via 10.1.1.9")
    assert str(routed(place, "10.2.1.1", iif="va", sender="224.0.0.1")) == "blackhole 10.2.0.0/16"


def test_what_a_rule_refuses_has_no_route_to_name(place: Netns) -> None:
    assert routed(place, "10.7.1.1") == Route(errno.EINVAL)


def test_no_route_at_all(place: Netns) -> None:
    assert routed(place, "9.9.9.9") == Route(errno.ENETUNREACH)
    assert routed(place, "9.9.9.9", iif="va").error == errno.ENETUNREACH


def test_an_address_of_its_own_is_local(place: Netns) -> None:
    assert str(routed(place, "10.1.1.1")) == "local 10.1.1.1/32 dev va"


def test_a_silent_neighbour_is_asked_for_and_then_given_up(place: Netns) -> None:
    with entered(place.path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", ("10.1.1.5", 9))
    assert is_resolving(place)
    deadline = time.monotonic() + 8 * patience()
    while is_resolving(place):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    question = RouteQuestion(place.inum, ip_address("10.1.1.5"))
    table = ask([question], (), {place.inum: place}).neighbours[place.inum]
    (neighbour,) = (entry for entry in table if entry.address == question.to)
    (said,) = ip("neigh", "show", "to", "10.1.1.5")
    assert (neighbour.device, neighbour.mac) == (said["dev"], None)
    assert [neighbour.state] == said["state"] == ["FAILED"]


def test_a_link_without_its_other_end_has_no_carrier(place: Netns) -> None:
    ip("link", "set", "vb", "down")
    try:
        links = ask((), [place.inum], {place.inum: place}).links[place.inum]
    finally:
        ip("link", "set", "vb", "up")
    assert (links["va"].up, links["va"].carrier) == (True, False)
    assert (links["vb"].up, links["vb"].carrier) == (False, False)


def test_a_netns_that_is_gone_answers_nothing() -> None:
    gone = Netns(1, "/run/netns/k8snet-there-is-none")
    answers = ask([RouteQuestion(1, ip_address("10.1.1.1"))], [1], {1: gone})
    assert not answers.routes
    assert not answers.links
    assert not is_resolving(gone)
