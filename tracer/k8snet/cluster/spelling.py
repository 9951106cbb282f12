"""Names as users write them, taken apart: `[ns/][kind/]name[:port]`, addresses, DNS names. Nothing is looked up here.

In: the text behind --from or --to. Out: a `Name`, or a K8snetError that says how names are written. `kind/ns/name` is
understood too, because reports print it. What is printed as a suggestion is spelled here as well, so that it can be
read back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, cast

from k8snet.cluster.inventory import Protocol
from k8snet.errors import K8snetError
from k8snet.event import Address

SPELLINGS: Final = {
    "po": ("po", "pod", "pods"),
    "svc": ("svc", "service", "services"),
    "no": ("no", "node", "nodes"),
    "ip": ("ip",),
    "deploy": ("deploy", "deployment", "deployments"),
    "sts": ("sts", "statefulset", "statefulsets"),
    "ds": ("ds", "daemonset", "daemonsets"),
    "rs": ("rs", "replicaset", "replicasets"),
    "job": ("job", "jobs"),
    "cj": ("cj", "cronjob", "cronjobs"),
    "ep": ("ep", "endpoints", "endpointslice", "endpointslices"),
    "ing": ("ing", "ingress", "ingresses"),
}
WORDS: Final = {
    "po": "pod",
    "svc": "service",
    "no": "node",
    "deploy": "Deployment",
    "sts": "StatefulSet",
    "ds": "DaemonSet",
    "rs": "ReplicaSet",
    "job": "Job",
    "cj": "CronJob",
    "ep": "service or EndpointSlice",
    "ing": "Ingress",
}
EXTERNAL: Final = "external"
_KINDS: Final = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}
_SYNTAX: Final = "write [NAMESPACE/][KIND/]NAME[:PORT], such as shop/svc/payments:http, or an IP address"
_LONGEST: Final = 600  # a guess: namespace, kind, a DNS name of 253 and a port fit twice


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed name. Nothing has been looked up."""

    text: str
    name: str
    namespace: str | None = None
    kind: str | None = None  # short form: "po", "svc", "no", "ip", "deploy", ...
    port: str | None = None  # a number or a port's name
    protocol: Protocol | None = None  # from ":53/udp"
    address: Address | None = None

    def spelled(self, candidate: str) -> str:
        """`candidate` with the port that this name has."""
        port = f"{self.port}/{self.protocol.lower()}" if self.port and self.protocol else self.port
        return f"{candidate}:{port}" if port else candidate

    @property
    def external(self) -> bool:
        """It is the word for whatever is outside of the cluster."""
        return (self.name, self.kind, self.namespace) == (EXTERNAL, None, None)

    @property
    def number(self) -> int | None:
        """The port where it is a number."""
        return int(self.port) if self.port and self.port.isdigit() else None


def spell(kind: str, namespace: str | None, name: str) -> str:
    """The name of an object so that it means nothing else: shop/svc/payments, no/node-1."""
    return f"{namespace}/{kind}/{name}" if namespace else f"{kind}/{name}"


def bracketed(address: Address) -> str:
    """The address so that a port can follow."""
    return f"[{address}]" if isinstance(address, IPv6Address) else str(address)


def parse(text: str) -> Name:
    """`text` taken apart; raises K8snetError when it is no name."""
    if len(text) > _LONGEST:
        raise K8snetError(f"{text[:40]!r}... is longer than any name", _SYNTAX)
    bad = K8snetError(f"{text!r} is not a name", _SYNTAX)
    body = text.strip()
    address = _address(body)
    if address:
        return Name(text, str(address), kind="ip", address=address)
    protocol: Protocol | None = None
    if match := re.fullmatch(r"(.+:[^:/\]]+)/(tcp|udp|sctp)", body, re.IGNORECASE):
        body, protocol = match[1], cast(Protocol, match[2].upper())
    parts = body.split("/")
    parts, name = parts[:-1], parts[-1]
    name, port = _port(name)
    if "[" in body and not _address(name):
        raise bad
    # An empty part is a slip (a shell variable that was empty), and never means "any".
    if not name or not all(parts) or len(parts) > 2:
        raise bad
    namespace, kind = _namespace_and_kind(parts, bad)
    if namespace and not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", namespace):  # RFC 1123
        raise bad
    if port is not None and not re.fullmatch(r"[0-9]{1,5}|[a-z0-9]([a-z0-9-]*[a-z0-9])?", port):
        raise K8snetError(f"{text!r}: {port!r} is not a port", "write a number from 1 to 65535, or the port's name")
    if port is not None and port.isdigit() and not 0 < int(port) < 65536:
        raise K8snetError(f"{text!r}: there is no port {port}", "write a number from 1 to 65535, or the port's name")
    address = _address(name)
    if address and kind in (None, "ip"):
        if namespace:
            raise K8snetError(f"{text!r}: an address has no namespace", f"write {body.split('/', 1)[1]}")
        return Name(text, str(address), None, "ip", port, protocol, address)
    if kind == "ip":
        raise K8snetError(f"{text!r}: {name!r} is not an IP address", "write ip/10.244.1.10, ip/[fd00::1]:80")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?\.?", name):  # RFC 1123, and a DNS name's last dot
        raise bad
    return Name(text, name, namespace, kind, port, protocol)


def _namespace_and_kind(parts: list[str], bad: K8snetError) -> tuple[str | None, str | None]:
    kinds = [_kind(part) for part in parts]
    match parts, kinds:
        case [], _:
            return None, None
        case [_], [str(kind)]:
            return None, kind
        case [namespace], _:
            pass
        case [namespace, _], [_, str(kind)]:
            return namespace, kind
        case [_, namespace], [str(kind), _]:
            return namespace, kind
        case [_, word], _:
            raise K8snetError(f"there is no kind {word!r}", f"kinds: {', '.join(SPELLINGS)} and their long forms")
        case _:
            raise bad
    if "." in namespace:  # no namespace can hold a dot, but `deployments.extensions` does
        raise K8snetError(f"there is no kind {namespace!r}", f"kinds: {', '.join(SPELLINGS)} and their long forms")
    return namespace, None


def _kind(word: str) -> str | None:
    # kubectl takes any case, and the API group behind a dot: deployments.apps.
    return _KINDS.get(word.lower().split(".")[0])


def _port(text: str) -> tuple[str, str | None]:
    if match := re.fullmatch(r"\[([^]]*)\](?::(.*))?", text):
        return match[1], match[2]
    if _address(text) or ":" not in text:
        return text, None
    name, port = text.rsplit(":", 1)
    return name, port


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise K8snetError(f"{text}: a link-local address with its device is no name", "write the pod's own address")
        return address.ipv4_mapped or address
    return address


def dashed(label: str) -> Address | None:
    """The address in a DNS label that writes it with dashes, as CoreDNS does: 10-244-1-10, fd00-0-0-1--a."""
    if not re.fullmatch(r"[0-9a-f-]*-[0-9a-f-]*", label):
        return None
    for mark in (".", ":"):
        try:
            return ip_address(label.replace("-", mark))
        except ValueError:
            continue
    return None
