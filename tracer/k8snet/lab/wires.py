"""Single devices: veth pairs, addresses, neighbours and routes, between network namespaces that exist already.

In: a netlink socket for each netns (`Links`), and IPv4 addresses; what is done for one is done for its IPv6 twin too,
where the kernel has IPv6. Every address has a MAC that is made from it, so that a neighbour can be written down before
the device that has it exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet.lab.cluster import twin
from k8snet.lab.namespaces import pin_of

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

    Links = Mapping[str, IPRoute]

NUD_REACHABLE: Final = 0x02
NUD_PERMANENT: Final = 0x80


def wire(links: Links, a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    """A veth pair between two machines, each end (netns, device, address/prefix), with neighbours known."""
    ips = [address.split("/")[0] for _, _, address in (a, b)]
    veth(links, (a[0], a[1], mac(ips[0])), (b[0], b[1], mac(ips[1])))
    for (name, device, address), peer in ((a, ips[1]), (b, ips[0])):
        link = links[name]
        index = index_of(link, device)
        give(link, index, address.split("/")[0], int(address.split("/")[1]))
        link.link("set", index=index, state="up")
        know(link, index, peer)


def veth(links: Links, a: tuple[str, str, str | None], b: tuple[str, str, str | None]) -> int:
    """A veth pair, each end (netns, device, MAC) born where it belongs; returns the ifindex of the first."""
    with open(pin_of(b[0]), "rb") as there:
        peer: dict[str, object] = {"ifname": b[1], "net_ns_fd": there.fileno()}
        if b[2]:
            peer["address"] = b[2]
        own = {"address": a[2]} if a[2] else {}
        links[a[0]].link("add", ifname=a[1], kind="veth", peer=peer, **own)
    return index_of(links[a[0]], a[1])


@cache
def has_ipv6() -> bool:
    """This kernel has IPv6, and it was not turned off at boot."""
    return Path("/proc/sys/net/ipv6").exists()


def give(link: IPRoute, index: int, ip: str, prefix: int) -> None:
    """Give a device this address, and its twin (/24 is /64, /32 is /128)."""
    link.addr("add", index=index, address=ip, prefixlen=prefix)
    if has_ipv6():
        link.addr("add", index=index, address=str(twin(ip)), prefixlen=128 if prefix == 32 else 64)


def know(link: IPRoute, index: int, ip: str, lladdr: str | None = None) -> None:
    """Write down a neighbour and its twin, for ever."""
    for dst in (ip, *((str(twin(ip)),) if has_ipv6() else ())):
        link.neigh("replace", dst=dst, lladdr=lladdr or mac(ip), ifindex=index, state=NUD_PERMANENT)


def route(link: IPRoute, dst: str, gateway: str | None = None, **more: object) -> None:
    """Add a route, and its twin, to a /24, a /32 or "default"."""
    via = {} if gateway is None else {"gateway": gateway}
    link.route("add", dst="0.0.0.0/0" if dst == "default" else dst, **via, **more)
    if has_ipv6():
        via = {} if gateway is None else {"gateway": str(twin(gateway))}
        link.route("add", dst=twin_range(dst), **via, **more)


def twin_range(range_: str) -> str:
    """The IPv6 twin of a /24 or a /32, or of "default"."""
    ip, _, prefix = range_.partition("/")
    return "::/0" if ip == "default" else f"{twin(ip)}/{128 if prefix == '32' else 64}"


def index_of(link: IPRoute, device: str) -> int:
    """The ifindex of a device that exists."""
    return int(link.link_lookup(ifname=device)[0])


def mac(ip: str) -> str:
    """0a:58 and the address: how CNI's plugins used to make a pod's MAC."""
    return ":".join(f"{byte:02x}" for byte in (0x0A, 0x58, *IPv4Address(ip).packed))
