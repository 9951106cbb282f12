"""What the kernel counts and how it is set, per netns: two snapshots around a trace show losses that have no event.

In: a netns. Out: counters of /proc/net (snmp, netstat, snmp6, conntrack) and the settings that findings look at.
/proc/net means the *process's* netns and /sys the one it was mounted in: after setns only /proc/thread-self/net,
/proc/sys/net and netlink speak of the netns that the thread has entered, so nothing else is read here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k8snet.kernel.devices import qdisc_drops
from k8snet.kernel.netns import Netns, entered
from k8snet.kernel.nfnetlink import NETLINK_ROUTE, Netlink, attributes, text

_RTM_GETLINK: Final = 18
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_BRPORT_MODE = 3, 10, 12, 4

# One value each, below /proc/sys/net.
_SETTINGS: Final = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_buckets",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_loose",
)
_PER_DEVICE: Final = ("rp_filter", "forwarding")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One netns at one moment. `counters`: "TcpExt.ListenOverflows", "Ip6InDiscards", "conntrack.drop",
    "qdisc.eth0.netem.dropped".

    `settings`: sysctl names as `sysctl` prints them ("net.ipv4.conf.eth0.rp_filter"; a dot in a device's name is
    a slash, as there) and "bridge.PORT.hairpin_mode". What the kernel does not have is absent.
    """

    netns: int
    counters: dict[str, int]
    settings: dict[str, int]

    @classmethod
    def take(cls, netns: Netns) -> Snapshot:
        """Read them; changes nothing. OSError when the netns is gone."""
        counters: dict[str, int] = {}
        settings: dict[str, int] = {}
        with entered(netns.path):
            net = Path("/proc/thread-self/net")
            for name in ("snmp", "netstat"):
                counters |= _pairs(_read(net / name))
            counters |= _plain(_read(net / "snmp6"))
            counters |= {f"conntrack.{name}": n for name, n in _per_cpu(_read(net / "stat/nf_conntrack")).items()}
            for name in _SETTINGS:
                _put(settings, Path("/proc/sys/net"), name)
            for directory in sorted(_listed(Path("/proc/sys/net/ipv4/conf"))):
                for name in _PER_DEVICE:
                    _put(settings, Path("/proc/sys/net"), f"ipv4/conf/{directory.name}/{name}")
        counters |= qdisc_drops(netns)
        settings |= {f"bridge.{port}.hairpin_mode": mode for port, mode in hairpin(netns).items()}
        return cls(netns.inum, counters, settings)


def delta(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """By how much each counter rose, without those that did not."""
    rises = {name: now - before.counters.get(name, 0) for name, now in after.counters.items()}
    return {name: rise for name, rise in rises.items() if rise}


def conntrack(netns: Netns) -> dict[str, int]:
    """What conntrack counts in this netns, and its `count` and `max`; without what this kernel does not show.

    OSError when the netns is gone.
    """
    with entered(netns.path):
        found = _per_cpu(_read(Path("/proc/thread-self/net/stat/nf_conntrack")))
        for name in ("count", "max"):
            value = _read(Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}")).strip()
            found |= {name: int(value)} if value.isdecimal() else {}
    return found


def hairpin(netns: Netns) -> dict[str, int]:
    """hairpin_mode of every bridge port of the netns, by device."""
    with Netlink(netns.path, NETLINK_ROUTE) as netlink:
        answers = netlink.dump(_RTM_GETLINK, _IFINFOMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0))
    modes = {}
    for body in answers:
        fields = dict(attributes(body[_IFINFOMSG.size :]))
        if _IFLA_MASTER in fields and _IFLA_IFNAME in fields and _IFLA_PROTINFO in fields:
            mode = dict(attributes(fields[_IFLA_PROTINFO])).get(_IFLA_BRPORT_MODE)
            if mode is not None:
                modes[text(fields[_IFLA_IFNAME])] = mode[0]
    return modes


def _pairs(content: str) -> dict[str, int]:
    """snmp and netstat: a line of names and a line of values for each protocol."""
    counters = {}
    lines = content.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        protocol, *keys = names.split()
        for key, value in zip(keys, values.split()[1:], strict=False):
            counters[f"{protocol.rstrip(':')}.{key}"] = int(value)
    return counters


def _plain(content: str) -> dict[str, int]:
    """snmp6: a name and a value a line."""
    return {name: int(value) for name, value in (line.split() for line in content.splitlines() if line)}


def _per_cpu(content: str) -> dict[str, int]:
    """stat/nf_conntrack: names, then a line of hexadecimal numbers for each CPU; `entries` is a total on each line."""
    names, *rows = [line.split() for line in content.splitlines()] or [[]]
    sums = {name: sum(int(row[i], 16) for row in rows if i < len(row)) for i, name in enumerate(names)}
    sums.pop("entries", None)
    return sums


def _put(settings: dict[str, int], root: Path, name: str) -> None:
    # sysctl(8) writes the slashes of the path as dots, and so the dots of a device's name (eth0.100) as slashes.
    value = _read(root / name).strip()
    if value.lstrip("-").isdigit():
        settings["net." + name.translate(str.maketrans("/.", "./"))] = int(value)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _listed(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(directory.iterdir())
    return []
