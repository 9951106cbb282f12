"""`k8snet watch`: every pod of this node, for as long as one likes; what goes wrong, while it goes wrong."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from k8snet.cli import source
from k8snet.cli.trace import add_recording_options, check_recording, duration
from k8snet.errors import Exit, K8snetError
from k8snet.metrics import address_of

if TYPE_CHECKING:
    from k8snet.cluster.interfaces import Owner, World
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.targets import Target
    from k8snet.kernel.guardian import Guardian
    from k8snet.record.watch import Recorder
    from k8snet.watch.audience import Reader
    from k8snet.watch.execute import Runner
    from k8snet.watch.live import Settings
    from k8snet.watch.report import WatchReport


def number(least: int, most: int) -> Callable[[str], int]:
    """A type of argument: a number within these bounds."""

    def parsed(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parsed


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `watch` to the command line."""
    parser = commands.add_parser(
        "watch",
        help="watch all pods of this node, and say what goes wrong while it goes wrong",
        description="Watch all pods of this node, or those that are named: connections that fail or are slow, drops, "
        "DNS, full tables. A dashboard on a terminal, JSON lines in a pipe. Ends on --duration, --until, q, Ctrl-C or "
        "SIGTERM with a summary.",
        epilog="exit codes: 0 nothing was wrong, 1 a FAIL finding or the one of --until, 2 usage or privilege, "
        "3 nothing was seen or too much was lost, 130 interrupted before it began. "
        "Example: k8snet watch -n shop --until NO_REPLY",
    )
    parser.add_argument("pods", nargs="*", metavar="POD", help="[ns/][kind/]name or address; default: all of this node")
    parser.add_argument(
        "--until", action="append", default=[], metavar="CODE", help="end with exit code 1 when this finding comes"
    )
    parser.add_argument("--duration", type=duration, metavar="10m", help="end after this time")
    parser.add_argument(
        "--exec", dest="command", metavar="CMD", help="run this on a finding, with the JSON of it on stdin; no shell"
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json", "jsonl"),
        help="text: a line each; jsonl: likewise, in JSON; json: the summary alone (default: a dashboard on a "
        "terminal, else jsonl)",
    )
    parser.add_argument(
        "--metrics", type=address_of, metavar="[ADDR]:PORT", help="for Prometheus, at /metrics (ADDR: 127.0.0.1)"
    )
    parser.add_argument("--metrics-pods", action="store_true", help="with pods' names as a label: many series")
    _add_budget(parser)
    add_recording_options(parser)
    parser.add_argument(
        "--read-only", action="store_true", help="change nothing on the node; rules are then named by counters only"
    )
    source.add_options(parser, "pods of this namespace; also of names that have none", everywhere="the default")
    parser.set_defaults(run=run)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    from k8snet.watch.budget import CPU, FLOWS, RATE, memory

    budget = parser.add_argument_group("budget", "above it, connections are sampled, and that is said")
    budget.add_argument(
        "--max-rate",
        type=number(100, 1_000_000),
        default=RATE,
        metavar="N",
        help=f"events that are looked at, a second (default {RATE})",
    )
    budget.add_argument(
        "--max-cpu",
        type=number(1, 100),
        default=CPU,
        metavar="PERCENT",
        help=f"of one processor, over five seconds (default {CPU})",
    )
    budget.add_argument(
        "--max-flows",
        type=number(100, 1_000_000),
        metavar="N",
        help=f"connections under way in the table (default {FLOWS}, or what --memory has room for)",
    )
    budget.add_argument("--memory", type=memory, metavar="256Mi", help="for the table and the buffer of events")
    budget.add_argument("--wait", type=duration, default=3.0, metavar="3s", help="unanswered after this (default 3s)")


def run(args: argparse.Namespace) -> Exit:
    """Watch, tell, and say by the exit code how it went."""
    if os.geteuid() != 0:
        raise K8snetError("k8snet watch needs root", f"sudo k8snet {shlex.join(sys.argv[1:])}")
    check_codes(args.until)
    check_recording(args)
    from k8snet.cluster import interfaces, names
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.needs import Wish
    from k8snet.kernel.guardian import Guardian
    from k8snet.watch.execute import words_of

    words = words_of(args.command) if args.command is not None else None
    parsed = tuple(names.parse(text) for text in args.pods)
    try:
        survey = interfaces.survey()
    except PermissionError:
        raise K8snetError(
            "k8snet watch enters network namespaces, and may not: it has no CAP_SYS_ADMIN",
            "run it as root of the host, outside of an unprivileged container",
        ) from None
    wish = Wish(here=survey.addresses, hostname=survey.hostname, watched=parsed, services=True)
    with ExitStack() as stack:
        guardian = stack.enter_context(Guardian())
        if not args.read_only:
            guardian.start()  # a fork: before there are threads that ask the API
        local = survey.named(Inventory()).pods
        known = stack.enter_context(source.opened(args, wish, local, needed=bool(parsed)))
        world = survey.named(known.names.inventory)
        settings = settings_of(args, known, world)
        known.tell()
        if known.cluster is not None:
            known.cluster.watch()
        report = _watched(args, settings, world, known, guardian, words)
    print_report(report, args.output)
    return exit_code(report)


def _watched(
    args: argparse.Namespace,
    settings: Settings,
    world: World,
    known: source.Source,
    guardian: Guardian,
    words: list[str] | None,
) -> WatchReport:
    from k8snet.metrics import Endpoint
    from k8snet.watch.audience import Audience
    from k8snet.watch.live import observe
    from k8snet.watch.meter import Meter

    with ExitStack() as stack:
        meter = None
        if args.metrics is not None:
            nodes = [world.netns[inum] for inum in world.nodes.values() if inum in world.netns]
            meter = Meter(nodes or [world.netns[world.host]], pods=args.metrics_pods)
            stack.enter_context(Endpoint(meter.metrics, args.metrics))
        # The screen is given back before --exec's commands are waited for.
        runner = stack.enter_context(_running(words, drawn=_draws(args)))
        reader = stack.enter_context(_reader(args))
        audience = Audience(reader, node_name(world), frozenset(args.until), runner, meter)
        kept = stack.enter_context(_recorder(args, settings, node_name(world) or "this node"))
        listening = audience if kept is None else kept.overhearing(audience)
        counts = observe(settings, world, known.names, listening, guardian, kept)
        notes = list(known.names.notes)
        if kept is not None and (failure := kept.finish(counts, notes)):
            notes.append(failure)
        return audience.finish(counts, notes)


def _recorder(args: argparse.Namespace, settings: Settings, node: str) -> AbstractContextManager[Recorder | None]:
    if args.record is None:
        return nullcontext()
    from k8snet.record.watch import recorder

    return recorder(args.record, node, settings.limits, args.ring, overwrite=args.overwrite)


def node_name(world: World) -> str | None:
    """What this node is called."""
    nodes = sorted(world.nodes)
    return os.environ.get("NODE_NAME") or (nodes[0] if len(nodes) == 1 else None) or socket.gethostname() or None


@contextmanager
def _running(words: list[str] | None, *, drawn: bool) -> Iterator[Runner | None]:
    """Who runs the command of --exec; what it says goes to stderr, unless that is drawn upon."""
    if words is None:
        yield None
        return
    from k8snet.watch.execute import Runner

    runner = Runner(words, subprocess.DEVNULL if drawn else sys.stderr)
    try:
        yield runner
    finally:
        runner.poll()
        if runner.running:
            print(f"k8snet: waiting for {runner.running} of --exec; Ctrl-C ends it", file=sys.stderr, flush=True)
        runner.finish()


def _draws(args: argparse.Namespace) -> bool:
    return args.output is None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _reader(args: argparse.Namespace) -> AbstractContextManager[Reader]:
    title = title_of(args)
    if _draws(args):
        from k8snet.render.dashboard import Dashboard

        return Dashboard(title)
    from k8snet.render.watch import JsonLines, Lines, Silent

    output = args.output or ("text" if sys.stdout.isatty() else "jsonl")
    return nullcontext({"text": Lines, "jsonl": JsonLines, "json": Silent}[output](sys.stdout, title))


def print_report(report: WatchReport, output: str | None) -> None:
    """On stdout, in the form that was asked for."""
    if output in ("text", "wide") or (output is None and sys.stdout.isatty()):
        from k8snet.render.text import show_page
        from k8snet.render.watch import summary_lines

        show_page(lambda width: [[], *summary_lines(report, width)], sys.stdout, wide=True)
        return
    from k8snet.render.document import dumps_watch

    print(dumps_watch(report, one_line=output != "json"))


def exit_code(report: WatchReport) -> Exit:
    """1 for what was wrong, 3 when nothing can be said, else 0."""
    if report.failed:
        return Exit.PROBLEM
    return Exit.INCONCLUSIVE if report.inconclusive else Exit.OK


# --- words to values


def codes() -> list[str]:
    """Of all findings that a watch may come to."""
    from k8snet.findings.catalogue import FINDINGS
    from k8snet.watch.catalogue import CODES

    return list(dict.fromkeys((*(entry.code for entry in FINDINGS), *CODES)))


def check_codes(asked: list[str], option: str = "--until") -> None:
    """Raise K8snetError for a code that no finding has: it would never come."""
    if not asked:
        return
    from k8snet.cluster.near import similar

    known = codes()
    for code in asked:
        if code not in known:
            near = similar(code.upper(), known)
            raise K8snetError(
                f"{option} {code}: no finding has this code",
                f"{option} {near[0]}" if near else "docs/findings/README.md has the codes",
            )


def title_of(args: argparse.Namespace) -> str:
    """What is watched, in words."""
    if args.pods:
        return ", ".join(args.pods)
    return f"pods of namespace {args.namespace}" if args.namespace else "all pods of this node"


def settings_of(args: argparse.Namespace, known: source.Source, world: World) -> Settings:
    """The command line as the engine takes it; raises K8snetError for pods that are not here."""
    from k8snet.watch.budget import limits_of, ring_of
    from k8snet.watch.live import Settings, everybody

    chosen: Callable[[Owner], bool] = everybody
    if args.pods:
        chosen = _Chosen(args.pods, known, world)
    elif args.namespace:
        chosen = partial(_is_of, args.namespace)
    return Settings(
        chosen=chosen,
        duration=args.duration,
        limits=limits_of(args.max_flows, args.memory, args.wait),
        events_per_second=args.max_rate,
        cpu=args.max_cpu / 100,
        ring_bytes=ring_of(args.memory),
        read_only=args.read_only,
    )


def _is_of(namespace: str, owner: Owner) -> bool:
    return owner.pod is not None and owner.pod.namespace == namespace


class _Chosen:
    """Whether a netns belongs to one of the pods that were named; of a workload also those that come later."""

    def __init__(self, texts: list[str], known: source.Source, world: World) -> None:
        self._texts, self._known = texts, known
        self._inventory: Inventory | None = None
        self._keys: frozenset[str] = frozenset()
        self._owners: tuple[Owner, ...] = ()
        targets = known.resolved(self._targets)
        self._keep(targets, known.names.inventory)
        self._owners = tuple(_owners(targets, world))
        here = {owner.pod.key for owner in world.owners.values() if owner.pod is not None}
        for text, target in zip(texts, targets, strict=True):
            keys = {pod.key for pod in target.pods or ((target.pod,) if target.pod else ())}
            if not keys & here and not self._owners:
                raise _elsewhere(text, target)

    def __call__(self, owner: Owner) -> bool:
        inventory = self._known.names.inventory
        if inventory is not self._inventory:
            try:
                self._keep(self._targets(inventory), inventory)
            except K8snetError:  # the last of a workload's pods has gone; others may come
                self._inventory = inventory
        return (owner.pod is not None and owner.pod.key in self._keys) or owner in self._owners

    def _targets(self, inventory: Inventory) -> list[Target]:
        from k8snet.cluster import names

        return [names.resolve_from(text, inventory, self._known.namespace) for text in self._texts]

    def _keep(self, targets: list[Target], inventory: Inventory) -> None:
        pods = [pod for target in targets for pod in (target.pods or ((target.pod,) if target.pod else ()))]
        self._keys = frozenset(pod.key for pod in pods)
        self._inventory = inventory


def _owners(targets: list[Target], world: World) -> Iterator[Owner]:
    """Of addresses that nobody has named: the netns that has them."""
    from k8snet.trace import netns_of

    for target in targets:
        for address in target.addresses if target.pod is None else ():
            netns = netns_of(world, address)
            if netns is not None:
                yield world.owner(netns.inum)


def _elsewhere(text: str, target: Target) -> K8snetError:
    nodes = sorted({pod.node for pod in target.pods or ((target.pod,) if target.pod else ()) if pod.node})
    where = f"on {', '.join(nodes)}" if nodes else "elsewhere"
    return K8snetError(f"{text} is not on this node: it runs {where}", f"run it there: k8snet watch {text}")
