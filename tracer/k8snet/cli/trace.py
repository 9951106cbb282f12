"""`k8snet trace`: follow one flow and say where it died."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.cli import output, source
from k8snet.errors import Exit, K8snetError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from k8snet.cluster.interfaces import World
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.targets import Target
    from k8snet.kernel.guardian import Guardian
    from k8snet.record.recorder import Recorder
    from k8snet.report import Report
    from k8snet.trace import Request, Watcher

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 24 * 3600.0  # a guess; a socket cannot wait for centuries
_MOST_BYTES = 65_000
PROTOCOLS = ("tcp", "udp", "sctp", "icmp")


def duration(text: str) -> float:
    """Seconds in a duration as kubectl writes it: 6s, 1m30s, 500ms; a bare number is seconds."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        seconds = float(text)
    elif parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 6s, 1m30s or 500ms")
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time that can be waited for: write 1ms to 24h")
    return seconds


def count(text: str) -> int:
    """A number above zero."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def size(text: str) -> int:
    """A number of bytes that one datagram can carry."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) <= _MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes from 1 to {_MOST_BYTES}")
    return int(text)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` to the command line."""
    parser = commands.add_parser(
        "trace",
        help="follow one flow and say where it died",
        description="Follow one flow through this node: hop by hop, with NAT, the place where it died, the rule to "
        "blame and the fix. Ends on --count, --timeout or Ctrl-C with the report.",
        epilog="example: k8snet trace --from shop/cart --to svc/shop/payments:http --send 3",
    )
    add_options(parser)
    add_recording_options(parser)
    source.add_options(parser, "namespace of names that have none; default: the context's")
    parser.set_defaults(run=run)


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """Where to keep what is seen; `recording_of` checks them."""
    group = parser.add_argument_group("recording", "for k8snet replay, on any machine (docs/replay.md)")
    group.add_argument("--record", type=Path, metavar="FILE", help="keep all that is needed to judge later")
    group.add_argument(
        "--ring", type=ring, default=0, metavar="SIZE", help="in FILE.0001, ...: the newest, never more than this (64M)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a recording that is there")


def ring(text: str) -> int:
    """A number of bytes, as 64M or 2G."""
    from k8snet.record.file import SMALLEST_RING

    match = re.fullmatch(r"([0-9]{1,9})(K|M|G|T)(i?B)?", text)
    if not match or (number := int(match[1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[match[2]]) < SMALLEST_RING:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1M on: write 64M or 2G")
    return number


def check_recording(args: argparse.Namespace) -> None:
    """Raise K8snetError for options that say how to record where nothing is recorded."""
    if args.record is None and (args.ring or args.overwrite):
        which = "--ring" if args.ring else "--overwrite"
        raise K8snetError(f"{which} says how to record, and nothing is to be recorded", "add --record FILE")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to trace and how: the same on the node and from afar."""
    add_flow_options(parser)
    parser.add_argument(
        "--expect", action="store_true", help="trace nothing: print what the path should be, and exit (reads only)"
    )
    output.add_options(parser)


def add_flow_options(parser: argparse.ArgumentParser) -> None:
    """Which flow, what to send, when to end."""
    parser.add_argument(
        "--from", dest="from_", required=True, metavar="A", help="client: [ns/][kind/]name or IP address"
    )
    parser.add_argument(
        "--to", required=True, metavar="B[:PORT]", help="server: [ns/][kind/]name, DNS name, IP address or external"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, help="default: the service port's, else any")
    family = parser.add_mutually_exclusive_group()
    for version in (4, 6):
        family.add_argument(
            f"-{version}",
            f"--ipv{version}",
            dest="family",
            action="store_const",
            const=version,
            help=f"IPv{version} only, of a dual-stack client and server",
        )
    parser.add_argument("--count", type=count, metavar="N", help="end after N connections")
    parser.add_argument("--timeout", type=duration, metavar="6s", help="end after this time")
    parser.add_argument("--send", type=count, metavar="N", help="make N connections from inside the client's netns")
    parser.add_argument("--dns", metavar="NAME", help="with --send: ask for this name (UDP)")
    parser.add_argument(
        "--size",
        type=size,
        metavar="BYTES",
        help="with --send: send so many bytes: in an HTTP POST (TCP), in one datagram (UDP, ICMP)",
    )
    parser.add_argument(
        "--wait", type=duration, default=3.0, metavar="3s", help="unanswered after this time (default 3s)"
    )
    parser.add_argument(
        "--read-only", action="store_true", help="change nothing on the node; rules are then named by counters only"
    )


def run(args: argparse.Namespace) -> Exit:
    """Trace, print the report, and say by the exit code how it went."""
    if args.expect and args.send:
        raise K8snetError("--expect sends nothing, and --send says how much", "leave out one of them")
    if args.expect and args.record is not None:
        raise K8snetError("--expect traces nothing that could be recorded", "leave out --expect or --record")
    if args.expect and (args.otlp is not None or args.output in ("html", "pcapng")):
        raise K8snetError("--expect traces nothing that could be exported", "-o text, wide or json")
    check_recording(args)
    output.check(args)
    from k8snet.judge import judge
    from k8snet.trace import client_netns_of, observe

    with prepared(args, "trace", changes=not args.read_only and not args.expect) as ready:
        request, world, known = ready.request, ready.world, ready.known
        locate(request, client_netns_of(world, request) is not None, args)
        known.tell()
        if args.expect:
            return _expect(request, world, args.output)
        if known.cluster is not None:
            known.cluster.watch()
        with _recorder(args, request) as recorder, watcher_for(args, request) as watcher:
            seen = observe(request, world, watcher, known.names, ready.guardian, recorder)
            if recorder is not None:
                seen = recorder.complete(seen, known.names.inventory)
        report = judge(seen)
    output.show(seen, report, args)
    return exit_code(report)


def _recorder(args: argparse.Namespace, request: Request) -> AbstractContextManager[Recorder | None]:
    if args.record is None:
        return nullcontext()
    from k8snet.record.recorder import recorder

    return recorder(args.record, request, args.ring, overwrite=args.overwrite)


@dataclass(frozen=True)
class Prepared:
    """The command line's names, found; nothing is traced yet."""

    request: Request
    world: World
    known: source.Source
    guardian: Guardian


@contextmanager
def prepared(args: argparse.Namespace, command: str, *, changes: bool) -> Iterator[Prepared]:
    """This machine and the flow that the command line names; `changes`: something on the node will be changed."""
    if os.geteuid() != 0:
        raise K8snetError(f"k8snet {command} needs root", f"sudo k8snet {shlex.join(sys.argv[1:])}")
    from k8snet.cluster import interfaces, names
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.needs import Wish
    from k8snet.kernel.guardian import Guardian
    from k8snet.trace import netns_of

    parties = names.parse(args.from_), names.parse(args.to)
    try:
        survey = interfaces.survey()
    except PermissionError:
        raise K8snetError(
            f"k8snet {command} enters network namespaces, and may not: it has no CAP_SYS_ADMIN",
            "run it as root of the host, outside of an unprivileged container",
        ) from None
    wish = Wish(*parties, here=survey.addresses, hostname=survey.hostname)
    local = survey.named(Inventory()).pods
    with ExitStack() as stack:
        guardian = stack.enter_context(Guardian())
        if changes:
            guardian.start()  # a fork: before there are threads that ask the API
        nameless = all(party.address or party.external for party in parties)
        known = stack.enter_context(source.opened(args, wish, local, needed=not nameless))
        request = request_of(args, known)
        world = survey.named(request.inventory)
        client = names.taken_here(request.client, lambda pod: netns_of(world, pod.ips[0], pod) is not None)
        yield Prepared(replace(request, client=client), world, known, guardian)


def request_of(args: argparse.Namespace, known: source.Source) -> Request:
    """The names and numbers of the command line, resolved and checked against each other."""
    from k8snet.cluster import names
    from k8snet.trace import Request

    asked = args.protocol.upper() if args.protocol in ("tcp", "udp", "sctp") else None

    def targets(inventory: Inventory) -> tuple[Target, Target]:
        return (
            names.resolve_from(args.from_, inventory, known.namespace),
            names.resolve_to(args.to, inventory, known.namespace, asked),
        )

    client, server = known.resolved(targets)
    client, server = _reachable(client), _reachable(server)
    if args.family:
        client, server = _only(client, args.family), _only(server, args.family)
    server = of_one_family(client, server)
    its_own = server.protocol.lower() if server.protocol else None
    protocol = args.protocol or its_own
    if asked and its_own not in (None, args.protocol):
        raise K8snetError(f"{args.to!r} is a port of {server.protocol}, not of {asked}", "leave out --protocol")
    if args.dns is not None:
        if protocol not in (None, "udp"):
            raise K8snetError(f"--dns asks over UDP, not over {protocol}", "leave out --protocol, or name the UDP port")
        if not args.send:
            raise K8snetError("--dns says what to send, and nothing is to be sent", "add --send 1")
        protocol = "udp"
        _check_dns_name(args.dns)
    if args.size is not None and (args.dns is not None or not args.send):
        raise K8snetError(
            "--size says how much to send" + (", and --dns says what" if args.dns else ", and nothing is to be sent"),
            "leave out --dns" if args.dns else "add --send 1",
        )
    if server.outside and args.send:
        raise K8snetError("--send needs an address, and 'external' is any", "name one outside: --to 192.0.2.1:443")
    if protocol is None and args.send:
        protocol = "tcp" if server.port else "icmp"
    return Request(
        client=client,
        server=server,
        inventory=known.names.inventory,
        protocol=protocol,
        count=args.count,
        timeout=args.timeout,
        send=args.send or 0,
        dns=args.dns,
        size=args.size or 0,
        wait=args.wait,
        read_only=args.read_only,
    )


def _reachable(target: Target) -> Target:
    """Raise K8snetError for an address that stands for no one place."""
    for address in target.addresses:
        if address.is_loopback or address.is_unspecified:
            raise K8snetError(
                f"{target.text} is an address that every network namespace has, and nothing leaves one for it",
                "name the pod, or the address that others know it by",
            )
        if address.is_multicast or str(address) == "255.255.255.255":
            raise K8snetError(f"{target.text} is an address of many receivers", "trace to one pod, service or address")
    return target


def _only(target: Target, version: int) -> Target:
    """`target` with its addresses of one IP family; raises K8snetError when it has none."""
    fit = tuple(address for address in target.addresses if address.version == version)
    if target.addresses and not fit:
        raise K8snetError(f"{target.text} has no IPv{version} address here", f"leave out -{version}")
    endpoints = tuple(e for e in target.all_endpoints if e.ip.version == version)
    return replace(target, addresses=fit, all_endpoints=endpoints)


def of_one_family(client: Target, server: Target) -> Target:
    """`server` with those of its addresses that `client` can connect to."""
    versions = {address.version for address in client.addresses}
    fit = tuple(address for address in server.addresses if address.version in versions)
    if versions and server.addresses and not fit:
        has, lacks = ("IPv4", "IPv6") if 4 in versions else ("IPv6", "IPv4")
        raise K8snetError(
            f"{client.text} has {has} here and {server.text} has {lacks}: they cannot talk",
            f"name a client with {lacks}, or an {has} address of the server",
        )
    return replace(server, addresses=fit)


def _check_dns_name(name: str) -> None:
    labels = name.rstrip(".").split(".")
    if len(name) > 253 or not all(0 < len(label) <= 63 and label.isascii() for label in labels):
        raise K8snetError(f"{name!r} is not a DNS name", "write a name such as web.shop.svc.cluster.local")


def locate(request: Request, here: bool, args: argparse.Namespace) -> None:
    """A client pod that is not on this machine can't be traced here: say where it is."""
    pod = request.client.pod
    if here or pod is None:
        return
    where = f"node {pod.node}" if pod.node else "another node"
    raise K8snetError(
        f"pod {pod.key} is not on this node: it runs on {where}",
        f"run the same command there: k8snet {shlex.join(sys.argv[1:])}",
    )


def watcher_for(args: argparse.Namespace, request: Request) -> AbstractContextManager[Watcher]:
    """Who shows what is seen while the trace runs."""
    if args.output == "jsonl":
        from k8snet.render.document import HopLines

        return nullcontext(HopLines(sys.stdout))
    from k8snet.render.live import Live

    return Live(f"{request.client.text} → {request.server.text}")


def _expect(request: Request, world: World, form: str) -> Exit:
    """Print what the path should be; 3 when nothing can be said. Sends and changes nothing."""
    from k8snet.judge import asked
    from k8snet.trace import foreseen

    expected = foreseen(request, world)
    if expected is None:
        raise K8snetError(
            f"--expect needs two addresses, and from {request.client.text} to {request.server.text} there are none",
            "name one outside: --to 192.0.2.1:443",
        )
    flow = asked(request)
    if form in ("json", "jsonl"):
        from k8snet.render import document

        print(document.dumps_expected(flow, expected, one_line=form == "jsonl"))
    else:
        from k8snet.render import text

        text.show_expected(flow, expected, sys.stdout, wide=form == "wide")
    return Exit.OK if any(way.request for way in expected.ways) else Exit.INCONCLUSIVE


def exit_code(report: Report) -> Exit:
    """0 healthy, 1 a problem was found, 3 inconclusive."""
    from k8snet.report import Severity, Verdict

    if any(f.severity is Severity.FAIL for f in report.findings):
        return Exit.PROBLEM
    return Exit.OK if report.verdict is Verdict.DELIVERED else Exit.INCONCLUSIVE
