"""Kinds of traffic that nothing is wrong with, and what comes late: the way must be drawn right."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from k8snet.cluster.inventory import Service
from k8snet.kernel.netns import entered
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

if TYPE_CHECKING:
    from k8snet.lab.lab import Lab

_EVERY_OTHER: Final = "-m statistic --mode nth --every 2 --packet 0"
_SYN: Final = f"FORWARD -d 10.244.1.14/32 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN {_EVERY_OTHER}"
_SYN_ACK: Final = f"FORWARD -s 10.244.1.14/32 -p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK {_EVERY_OTHER}"
_OUTSIDE: Final = "192.0.2.10"  # on no machine of ours
_MASQUERADE: Final = "POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE"
_SWALLOW: Final = "1,6 0 0 4,"  # one instruction of classic BPF: return TC_ACT_STOLEN


def _outside(
    *, refuses: bool, node: str = "node-1", to: str = "192.0.2.0/24"
) -> Callable[[Lab], AbstractContextManager[None]]:
    @contextmanager
    def company(lab: Lab) -> Iterator[None]:
        from k8snet.lab.outside import DEVICE, device

        with device(lab.netns_of(node), refuses=refuses):
            lab.run_in(node, ["ip", "link", "set", DEVICE, "up"], check=True)
            lab.run_in(node, ["ip", "route", "replace", to, "dev", DEVICE], check=True)
            yield

    return company


@contextmanager
def _sctp_server(lab: Lab) -> Iterator[None]:
    """A server in shop/web-3; the kernel completes associations without it."""
    with entered(lab.netns_of("shop/web-3").path):
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with server:
        server.bind(("10.244.2.11", 3868))
        server.listen(8)
        yield


@contextmanager
def _fewer_endpoints(lab: Lab) -> Iterator[None]:
    """After the first connections shop/web-2 and shop/web-3 are endpoints of shop/web no longer."""

    def left(service: Service) -> Service:
        if service.key != "shop/web":
            return service
        ports = (replace(p, endpoints=tuple(e for e in p.endpoints if e.pod == "shop/web-1")) for p in service.ports)
        return replace(service, ports=tuple(ports))

    def change() -> None:
        fewer = replace(lab.inventory, services=tuple(map(left, lab.inventory.services)))
        lab.sync("node-1", fewer)

    timer = threading.Timer(0.5, change)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        lab.sync("node-1", lab.inventory)


SCENARIOS: Final = (
    Scenario(
        "refused",
        "A host outside refuses: the SYN leaves the node, a reset comes back, and nothing on this machine has sent it.",
        Traffic(f"{_OUTSIDE}:443"),
        Expected(Verdict.REJECTED, "REFUSED", node="node-1", device="wan0", direction="reply"),
        needs=("tuntap:tun",),
        company=_outside(refuses=True),
    ),
    Scenario(
        "left-node",
        "A host outside is silent: the SYN leaves the node, and nothing comes back.",
        Traffic(f"{_OUTSIDE}:443"),
        Expected(Verdict.NO_REPLY, "LEFT_NODE", node="node-1", device="wan0", direction="request"),
        needs=("tuntap:tun",),
        company=_outside(refuses=False),
    ),
    Scenario(
        "lost-between-nodes",
        "What stands between the nodes takes what node-1 sends to the other node's pods: the SYN leaves node-1 and "
        "never comes in at node-2.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.NO_REPLY, "LOST_BETWEEN_NODES", node="node-1", device="wan0", direction="request"),
        needs=("tuntap:tun",),
        company=_outside(refuses=False, to="10.244.2.0/24"),
    ),
    Scenario(
        "reply-lost-between-nodes",
        "The same on the way back: the SYN-ACK leaves node-2 and never comes in at node-1.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.REPLY_LOST, "LOST_BETWEEN_NODES", node="node-2", device="wan0", direction="reply"),
        needs=("tuntap:tun",),
        company=_outside(refuses=False, node="node-2", to="10.244.1.0/24"),
    ),
    Scenario(
        "last-seen",
        "A tc filter at the client's veth takes the packet and does not call that a drop (TC_ACT_STOLEN): the SYN is "
        "seen there, and then never again.",
        Traffic("shop/svc/payments:80"),
        Expected(Verdict.NO_REPLY, "LAST_SEEN", node="node-1", device="vethcart", direction="request"),
        (
            ("node-1", "tc qdisc add dev vethcart clsact"),
            ("node-1", f"tc filter add dev vethcart ingress protocol all bpf da bytecode '{_SWALLOW}'"),
        ),
    ),
    Scenario(
        "ttl-expired",
        "The pod sends with a TTL of 1: it does not get past the node, which says so with ICMP time exceeded. No entry "
        "of the catalogue knows of that.",
        Traffic("shop/svc/remote:80"),
        Expected(Verdict.DROPPED, "KERNEL_DROP", node="node-1", direction="request"),
        (("shop/cart", "sysctl net.ipv4.ip_default_ttl=1"),),
    ),
    Scenario(
        "slow-connect",
        "A rule drops every other SYN: the first dies, the client sends it again after a second, and that one comes "
        "through. The connection works, and is slow.",
        Traffic("shop/svc/payments:80"),
        Expected(
            code="SLOW_CONNECT",
            node="node-1",
            device="vethpayments",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_SYN} -j DROP",
            direction="request",
        ),
        (("node-1", f"iptables -I {_SYN} -j DROP"),),
    ),
    Scenario(
        "slow-connect-reply",
        "The same with the SYN-ACK: the server sends it again after a second.",
        Traffic("shop/svc/payments:80"),
        Expected(
            code="SLOW_CONNECT",
            node="node-1",
            device="vethcart",
            hook="forward",
            chain="FORWARD",
            rule=f"-A {_SYN_ACK} -j DROP",
            direction="reply",
        ),
        (("node-1", f"iptables -I {_SYN_ACK} -j DROP"),),
    ),
    Scenario(
        "healthy-node-service",
        "A process in the node's own network (a hostNetwork pod, the kubelet) calls a Service: translated in OUTPUT, "
        "masqueraded behind the bridge's address, and back.",
        Traffic("shop/svc/payments:80", client="no/node-1"),
    ),
    Scenario(
        "healthy-nodeport",
        "The same process calls a NodePort of its own node.",
        Traffic("no/node-1:30080", client="no/node-1"),
    ),
    Scenario(
        "healthy-nodeport-other-node",
        "A NodePort of the other node, whose only pod is on the first: there, back again, and masqueraded on the way.",
        Traffic("no/node-2:30080", client="no/node-1"),
    ),
    Scenario(
        "healthy-nodeport-from-pod",
        "The same from a pod.",
        Traffic("no/node-2:30080"),
    ),
    Scenario(
        "healthy-masquerade",
        "A pod calls a host outside, and the node hides the pod's address behind its own, as every CNI sets it up.",
        Traffic("198.51.100.1:80"),
        steps=(("node-1", f"iptables -t nat -A {_MASQUERADE}"),),
    ),
    Scenario(
        "healthy-udp-fragments",
        "A datagram of 4000 bytes and its echo: three fragments each way, of which only the first has ports.",
        Traffic("shop/svc/echo:7", "udp", size=4000),
    ),
    Scenario(
        "healthy-sctp",
        "An SCTP association to a pod of the other node: INIT, INIT ACK, COOKIE ECHO, COOKIE ACK.",
        Traffic("shop/pod/web-3:3868", "sctp"),
        needs=("sctp",),
        company=_sctp_server,
    ),
    Scenario(
        "not-listening-sctp",
        "An SCTP association with a port that no process has open: the pod's kernel answers with an abort.",
        Traffic("shop/pod/web-3:3868", "sctp"),
        Expected(Verdict.REJECTED, "NOT_LISTENING", pod="shop/web-3", direction="request"),
        needs=("sctp",),
    ),
    Scenario(
        "healthy-leaving",
        "A Service whose only pod is terminating and still serves: it is used, because there is no ready one.",
        Traffic("shop/svc/leaving:80"),
    ),
    Scenario(
        "healthy-endpoints-change",
        "A Service loses an endpoint while connections are made: kube-proxy writes its rules anew, and later ones go "
        "to the pods that are left.",
        Traffic("shop/svc/web:80", connections=8),
        company=_fewer_endpoints,
    ),
)
