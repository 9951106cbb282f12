"""What a scenario may need of the machine beside the lab itself, and whether this one has it.

`ipv6`, `sctp` and `ipvs` are the kernel's; `link:KIND`, `tuntap:tun`, `qdisc:KIND`, `action:police` and
`nft:EXPRESSION` are tried in a network namespace that lives for a moment, and so is `clash`; `chain limit` is known by
its counter; `program:NAME` must be installed. `own machine` is asked for by what changes the whole machine
(nf_conntrack_max is one number for all network namespaces): only a virtual machine that was started for the tests says
that it is one (K8SNET_VM).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

from k8snet.lab.wires import has_ipv6

OWN_MACHINE: Final = "own machine"
CLASH: Final = "clash"  # of packets that were held in a queue
CHAIN_LIMIT: Final = "chain limit"  # of conntrack's table, which 5.10 has not
IPV6: Final = "ipv6"
SCTP: Final = "sctp"
IPVS: Final = "ipvs"
# A link of this kind is not made without; one of ipip with no address at all is there already, as tunl0.
_ARGUMENTS: Final = {"vxlan": ("id", "1", "dstport", "8472"), "ipip": ("local", "192.0.2.1")}


def missing(needs: Iterable[str]) -> str | None:
    """Why a scenario with these needs cannot be played here; None when it can. Raises ValueError for no such need."""
    return next((why for need in needs if (why := _why(need))), None)


@cache
def _why(need: str) -> str | None:
    if need == IPV6:
        return None if has_ipv6() else "this kernel has no IPv6"
    if need == OWN_MACHINE:
        return None if "K8SNET_VM" in os.environ else "it changes the whole machine: only in a virtual machine"
    if need == SCTP:
        return None if _has_sctp() else "this kernel has no SCTP"
    if need == CLASH:
        from k8snet.lab.hold import lets_clash

        return None if lets_clash() else "this kernel looks queued packets up again, so that they cannot clash"
    if need == CHAIN_LIMIT:
        return None if "chaintoolong" in _conntrack_counters() else "this kernel's conntrack has no limit for chains"
    if need == IPVS:
        return None if _has_ipvs() else "this kernel has no IPVS"
    what, _, kind = need.partition(":")
    if what == "program":
        return None if shutil.which(kind, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") else f"no {kind} here"
    tries = {
        "link": ("ip", "link", "add", "k8snet0", "type", kind, *_ARGUMENTS.get(kind, ())),
        "tuntap": ("ip", "tuntap", "add", "k8snet0", "mode", kind),
        "action": ("tc", "actions", "add", "action", kind, "rate", "1kbit", "burst", "1", "drop"),
        "nft": ("nft", f"add table k8snet; add chain k8snet c; add rule k8snet c {kind}"),
        "qdisc": ("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", kind),
    }
    if what not in tries:
        raise ValueError(need)
    if what == "tuntap":  # its device file is there only once the module is
        subprocess.run(["modprobe", "--quiet", "tun"], capture_output=True, check=False)
    done = subprocess.run(["unshare", "--net", *tries[what]], capture_output=True, text=True, check=False)
    return f"this kernel has no {what} of type {kind}" if done.returncode else None


def _conntrack_counters() -> list[str]:
    subprocess.run(["modprobe", "--quiet", "nf_conntrack"], capture_output=True, check=False)
    stat = Path("/proc/net/stat/nf_conntrack")
    return stat.read_text(encoding="ascii").splitlines()[0].split() if stat.exists() else []


def _has_ipvs() -> bool:
    subprocess.run(["modprobe", "ip_vs_rr"], capture_output=True, check=False)
    return Path("/proc/sys/net/ipv4/vs").exists() or Path("/proc/net/ip_vs").exists()


def _has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:  # EPROTONOSUPPORT, after the kernel has looked for its module
        return False
    return True
