"""What /etc/resolv.conf tells a resolver, as resolv.conf(5) has it: which servers, which search list, which options.

In: the file's text, from a pod and so not to be trusted. Out: a `Resolver`, with the C library's own limits: three
servers, options capped. Anything that is not understood is left out, and nothing raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

_SERVERS, _SEARCH = 3, 32  # glibc 2.26 took the limit of six domains away; Kubernetes allows 32
_LONGEST: Final = 255  # bytes of a domain name
_MOST: Final = {"ndots": 15, "timeout": 30, "attempts": 5}  # glibc cuts larger numbers down to these
_FLAGS: Final = ("rotate", "single-request", "single-request-reopen", "use-vc", "edns0", "trust-ad", "no-aaaa")


@dataclass(frozen=True, slots=True)
class Resolver:
    """The options of one pod, with glibc's defaults."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: int = 5  # seconds
    attempts: int = 2
    flags: tuple[str, ...] = ()  # those of the options without a number that matter here

    @property
    def options(self) -> str:
        """As the file's line would have them, without what is the default."""
        numbers = (("ndots", self.ndots, 1), ("timeout", self.timeout, 5), ("attempts", self.attempts, 2))
        return " ".join((*(f"{name}:{value}" for name, value, usual in numbers if value != usual), *self.flags))


def parse(text: str) -> Resolver:
    """The resolver that this file makes."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    numbers = {"ndots": 1, "timeout": 5, "attempts": 2}
    flags: dict[str, None] = {}
    for line in text.splitlines():
        keyword, *values = line.split()[: 2 + _SEARCH] or [""]
        if keyword == "nameserver" and values and _is_address(values[0]):
            servers.append(values[0])
        elif keyword in ("search", "domain"):  # the last of them counts
            search = tuple(v.rstrip(".").lower()[:_LONGEST] for v in values if v != ".")[:_SEARCH]
        elif keyword == "options":
            for option in values:
                name, _, number = option.partition(":")
                if name in numbers and number.isascii() and number.isdigit():
                    numbers[name] = min(int(number[:9]), _MOST[name])
                elif option in _FLAGS:
                    flags[option] = None
    return Resolver(
        tuple(servers[:_SERVERS]), search, numbers["ndots"], numbers["timeout"], numbers["attempts"], tuple(flags)
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
