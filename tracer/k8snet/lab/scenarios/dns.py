"""A DNS server that is slow, late, silent or broken, and resolvers that make much of little."""

from __future__ import annotations

import socket
from typing import Final

from k8snet.lab import nameserver
from k8snet.lab.resolvers import Lookup
from k8snet.lab.scenarios.model import Expected, Scenario, Traffic
from k8snet.report import Verdict

_SERVICE: Final = "kube-system/svc/kube-dns:53"
_SERVER: Final = ("program:dnsmasq",)
_BACKENDS: Final = ("iptables-nft",)  # how the Service is translated plays no part
_POD: Final = "kube-system/dns"


def _asks(name: str, options: str = "", *, queries: int = 2) -> Traffic:
    return Traffic(_SERVICE, "udp", connections=queries, lookup=Lookup((f"{name}.",), options))


SCENARIOS: Final = (
    Scenario(
        "healthy-dns-lookup",
        "getaddrinfo of the C library looks a Service up: A and AAAA from one socket, answered by dnsmasq.",
        _asks("web.shop.svc.cluster.local"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "healthy-dns-threads",
        "The same by a resolver whose threads share one socket: both queries leave at the same moment.",
        Traffic(_SERVICE, "udp", connections=2, lookup=Lookup((nameserver.PLAIN,), family="threads")),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "healthy-dns-search",
        "A short name of another namespace, found by the second domain of the search list: two NXDOMAIN on the way are "
        "as it should be.",
        Traffic(
            _SERVICE,
            "udp",
            connections=4,
            lookup=Lookup(("web.shop",), "ndots:5", ("kube-system.svc.cluster.local", "svc.cluster.local")),
        ),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "healthy-dns-truncated",
        "An answer that does not fit into 512 bytes: truncated over UDP, so the C library asks again over TCP.",
        Traffic(_SERVICE, None, connections=2, lookup=Lookup((f"{nameserver.LARGE}.",), kind=socket.AF_INET)),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "healthy-dns-tcp",
        "A resolver that is told to use TCP: two queries over one connection.",
        Traffic(_SERVICE, "tcp", connections=1, lookup=Lookup(("web.shop.svc.cluster.local.",), "use-vc")),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-slow",
        "The server takes 1.2 s to answer: nothing is lost, and the client waits.",
        _asks(nameserver.SLOW),
        Expected(code="DNS_SLOW", pod=_POD, device="eth0", direction="request"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-late",
        "The server takes 1.6 s to answer, and the resolver gives up after one: the answer finds no socket.",
        _asks(nameserver.LATE, "timeout:1 attempts:1"),
        Expected(Verdict.REPLY_LOST, "DNS_LATE", pod="shop/cart", device="eth0", direction="reply"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-missing",
        "The server does not answer the first AAAA query of a socket: the resolver waits for its time-out, here 1 s "
        "and 5 s by default, and asks for both again.",
        _asks(nameserver.HALF, "timeout:1"),
        Expected(code="DNS_PAIR_TIMEOUT", pod="shop/cart", direction="request", beside=("SLOW_CONNECT",)),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-silent",
        "The server waits for an upstream that never answers, and says nothing either.",
        _asks(nameserver.SILENT, "timeout:1 attempts:1"),
        Expected(Verdict.NO_REPLY, "NO_REPLY", pod=_POD),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-servfail",
        "The server's upstream is broken, so it answers SERVFAIL.",
        _asks(nameserver.BROKEN, "attempts:1"),
        Expected(Verdict.REJECTED, "DNS_SERVFAIL", pod=_POD, direction="reply"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-refused",
        "The server has no upstream for the name, so it answers REFUSED.",
        _asks(nameserver.UNKNOWN, "attempts:1"),
        Expected(Verdict.REJECTED, "DNS_REFUSED", pod=_POD, direction="reply"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
    Scenario(
        "dns-search-storm",
        "A name outside the cluster, with fewer dots than the five that Kubernetes asks for: each of four search "
        "domains is tried first, for A and AAAA.",
        Traffic(
            _SERVICE,
            "udp",
            connections=10,
            lookup=Lookup((nameserver.PLAIN,), "ndots:5", nameserver.SEARCH),
        ),
        Expected(code="DNS_SEARCH_STORM", pod="shop/cart", direction="request"),
        needs=_SERVER,
        backends=_BACKENDS,
    ),
)
