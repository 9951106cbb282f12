"""Connections that meet in conntrack's table, a table without room, an entry that has outlived its pod.

The races are decided by a queue that holds packets (`k8snet.lab.hold`): the rules that send packets there stand where
NAT has chosen and the connection is not in the table yet. Behind source NAT only a base chain of nftables can be.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from typing import Final

from k8snet.lab import hold, pressure
from k8snet.lab.needs import CHAIN_LIMIT, CLASH, OWN_MACHINE
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_SERVER: Final = "198.51.100.1"
_DNS: Final = "10.96.0.10"
_NAMES: Final = "10.96.0.11"
_SLOW_NAMES: Final = "10.96.0.12"
_GONE: Final = "10.244.2.99"
_TO_ECHO: Final = "-d 10.96.0.85/32 -p udp -m udp --dport 7"
# What fills the table must not be gone again before an emulated machine has filled it.
_KEEP: Final = ("node-1", "sysctl net.netfilter.nf_conntrack_udp_timeout=6000")
_QUEUE: Final = f"-j NFQUEUE --queue-num {hold.QUEUE} --queue-bypass"
_MASQUERADE: Final = f"iptables -t nat -I POSTROUTING -s 10.244.0.0/16 -d {_SERVER}/32"


def _hold_behind_snat(which: str) -> tuple[tuple[str, str], ...]:
    return (
        ("node-1", "iptables -t mangle -N HOLD"),
        ("node-1", f"iptables -t mangle -A HOLD {_QUEUE}"),
        ("node-1", "nft add chain ip mangle LATE { type filter hook postrouting priority 150; }"),
        ("node-1", f"nft add rule ip mangle LATE {which} ct state new jump HOLD"),
    )


def _hold_behind_dnat(vip: str, port: int) -> tuple[tuple[str, str], ...]:
    """The two backends of a DNS Service in turn, and their queries held in FORWARD."""
    rule = f"iptables -t nat -I PREROUTING -d {vip}/32 -p udp --dport 53"
    return (
        ("node-1", f"{rule} -j DNAT --to-destination 10.244.1.12:{port}"),
        ("node-1", f"{rule} -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination 10.244.1.13:{port}"),
        ("node-1", f"iptables -t mangle -I FORWARD -p udp --dport {port} -m conntrack --ctstate NEW {_QUEUE}"),
    )


_AT_THE_TABLE: Final = Expected(
    Verdict.DROPPED, "SNAT_PORT_CLASH", node="node-1", hook="postrouting", direction="request"
)

SCENARIOS: Final = (
    Scenario(
        "snat-port-clash-tcp",
        "Two pods connect to the same server from the same port at the same moment: the node translates both to its "
        "own address and the same port, and the SYN that reaches conntrack's table second is dropped. Sent again a "
        "second later, it gets another port.",
        Traffic(f"{_SERVER}:80"),
        replace(_AT_THE_TABLE, beside=("SLOW_CONNECT",)),
        (("node-1", f"{_MASQUERADE} -j MASQUERADE"), *_hold_behind_snat(f"ip daddr {_SERVER}")),
        backends=("iptables-nft", "nftables"),
        company=hold.snat_rival,
    ),
    Scenario(
        "snat-port-clash-udp",
        "The same with UDP, where nobody sends it again: the datagram is lost.",
        Traffic(f"{_SERVER}:7007", "udp"),
        _AT_THE_TABLE,
        (("node-1", f"{_MASQUERADE} -j MASQUERADE"), *_hold_behind_snat(f"ip daddr {_SERVER}")),
        backends=("iptables-nft", "nftables"),
        company=hold.snat_rival,
    ),
    Scenario(
        "dns-clash-resolved",
        "A resolver sends A and AAAA from one socket at the same moment, and NAT chooses a different backend for each: "
        "conntrack keeps the second for one second, and the answer is quicker than that.",
        Traffic("kube-system/svc/names:53", "udp", dns="web.shop.svc.cluster.local"),
        Expected(Verdict.DELIVERED, "CT_CLASH_RESOLVED", node="node-1", direction="request"),
        _hold_behind_dnat(_NAMES, 53),
        needs=(CLASH,),
        company=partial(hold.dns_rival, asked=_NAMES),
    ),
    Scenario(
        "dns-clash-lost",
        "The same with servers that take 1.5 s: by then the entry of the second query is gone, its answer arrives with "
        "the backend's address on it and is refused by the pod.",
        Traffic("kube-system/svc/slow-names:53", "udp", dns="web.shop.svc.cluster.local"),
        # The other query, whose answer is translated back, takes as long.
        Expected(Verdict.REPLY_LOST, "DNS_CLASH_LOST", pod="shop/cart", direction="reply", beside=("DNS_SLOW",)),
        _hold_behind_dnat(_SLOW_NAMES, 5300),
        needs=(CLASH,),
        company=partial(hold.dns_rival, asked=_SLOW_NAMES),
    ),
    Scenario(
        "ct-clash-drop",
        "A resolver asks two DNS Services from one socket at the same moment, and both have the same pod behind them: "
        "the answers could not be told apart, so conntrack drops the query that reaches its table second.",
        Traffic("kube-system/svc/names:53", "udp", dns="web.shop.svc.cluster.local"),
        Expected(Verdict.DROPPED, "CT_CLASH_DROP", node="node-1", hook="postrouting", direction="request"),
        (
            ("node-1", f"iptables -t nat -I PREROUTING -d {_NAMES}/32 -p udp -j DNAT --to-destination 10.244.1.13:53"),
            *_hold_behind_snat("udp dport 53"),
        ),
        backends=("iptables-nft", "nftables"),
        company=partial(hold.dns_rival, asked=_DNS),
    ),
    Scenario(
        "snat-ports-exhausted",
        "The node masquerades with two ports only, and other connections have both: each SYN is given a port that is "
        "taken, and dies where conntrack would have to keep it.",
        Traffic(f"{_SERVER}:80", connections=2),
        Expected(Verdict.DROPPED, "SNAT_PORTS_EXHAUSTED", node="node-1", hook="postrouting", direction="request"),
        (("node-1", f"{_MASQUERADE.replace(' -d ', ' -p tcp -d ')} -j MASQUERADE --to-ports 40000-40001"),),
        company=pressure.snat_ports_taken,
    ),
    Scenario(
        "snat-ports-exhausted-udp",
        "The same with UDP: nobody sends it again, so each datagram is one try.",
        Traffic(f"{_SERVER}:7007", "udp", connections=2),
        Expected(Verdict.DROPPED, "SNAT_PORTS_EXHAUSTED", node="node-1", hook="postrouting", direction="request"),
        (("node-1", f"{_MASQUERADE.replace(' -d ', ' -p udp -d ')} -j MASQUERADE --to-ports 40000-40001"),),
        company=partial(pressure.snat_ports_taken, kind=socket.SOCK_DGRAM, port=7007),
    ),
    Scenario(
        "stale-ct-entry",
        "A UDP client that always sends from one port was connected to a pod that is gone: conntrack's entry stays "
        "alive with each datagram and sends all of them there, whatever kube-proxy's rules say. The other node asks "
        "for the address, and says after three seconds that it is unreachable.",
        Traffic("shop/svc/echo:7", "udp"),
        Expected(Verdict.REJECTED, "STALE_CT_ENTRY", node="node-1", direction="request"),
        (
            ("shop/cart", "sysctl net.ipv4.ip_local_port_range='40000 40000'"),
            ("node-1", f"iptables -t nat -I PREROUTING {_TO_ECHO} -j DNAT --to-destination {_GONE}:7007"),
            ("shop/cart", "bash -c 'echo > /dev/udp/10.96.0.85/7'"),
            ("node-1", f"iptables -t nat -D PREROUTING {_TO_ECHO} -j DNAT --to-destination {_GONE}:7007"),
        ),
    ),
    Scenario(
        "ct-table-full",
        "nf_conntrack_max is reached: a packet that would open a connection is dropped before any rule sees it.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.DROPPED, "CT_TABLE_FULL", node="node-1", direction="request"),
        (_KEEP,),
        needs=(OWN_MACHINE,),
        company=pressure.table_full,
    ),
    Scenario(
        "ct-early-drop",
        "nf_conntrack_max is reached in a dense table, where the kernel makes room by throwing out connections that "
        "are not established: the query's entry goes while its server thinks, and the answer is not translated back.",
        Traffic("kube-system/svc/slow-names:53", "udp", dns="web.shop.svc.cluster.local"),
        Expected(Verdict.REPLY_LOST, "CT_EARLY_DROP", pod="shop/cart", direction="reply"),
        (_KEEP,),
        needs=(OWN_MACHINE,),
        company=pressure.table_churns,
    ),
    Scenario(
        "ct-chain-too-long",
        "Tens of thousands of connections in 512 buckets: the kernel refuses to make a bucket's chain still longer, "
        "and drops the packet that would have.",
        Traffic("shop/svc/echo:7", "udp", connections=3),
        Expected(Verdict.DROPPED, "CT_CHAIN_TOO_LONG", node="node-1", hook="postrouting", direction="request"),
        (_KEEP,),
        needs=(OWN_MACHINE, CHAIN_LIMIT),
        company=pressure.chains_long,
    ),
)
