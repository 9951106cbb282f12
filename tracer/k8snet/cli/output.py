"""`-o` and `--otlp`, for every command that ends in a report on packets: trace, join, replay.

Three calls: `add_options` while the arguments are described; `check` before anything is begun, for what cannot be given
out at the end; `show` with the observation and its report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from k8snet.errors import K8snetError

if TYPE_CHECKING:
    from k8snet.judge import Observation
    from k8snet.report import Report

REPORTS: Final = ("text", "wide", "json", "jsonl", "html")  # need the report only
FORMS: Final = (*REPORTS, "pcapng")


def add_options(parser: argparse._ActionsContainer) -> None:
    """`-o` and `--otlp`."""
    parser.add_argument("-o", "--output", choices=FORMS, default="text", help="default: text; pcapng is for Wireshark")
    parser.add_argument(
        "--otlp", metavar="URL", help="also send it as OpenTelemetry spans (OTLP over HTTP): http://localhost:4318"
    )


def check(args: argparse.Namespace) -> None:
    """Raise K8snetError for what could not be given out at the end."""
    if args.output == "pcapng" and sys.stdout.isatty():
        raise K8snetError(
            "pcapng is no text for a terminal",
            "add to the same command: > flow.pcapng, or: | wireshark -k -i -",
        )
    if args.otlp is not None:
        from k8snet.render import otel

        otel.check(args.otlp)


def show(seen: Observation, report: Report, args: argparse.Namespace) -> None:
    """All that was asked for; the report first. Raises K8snetError when the spans did not arrive."""
    if args.output == "pcapng":
        from k8snet.render import pcapng

        _write(pcapng.blocks(seen))
    else:
        first = min((flow.started_ns for flow in seen.flows), default=None)
        print_report(report, args.output, None if first is None else first + seen.boot_ns)
    if args.otlp is not None:
        from k8snet.render import otel

        sys.stdout.flush()
        otel.send(seen, args.otlp)


def print_report(report: Report, output: str, seen_ns: int | None = None) -> None:
    """The report on stdout, in one of `REPORTS`; `seen_ns`: when its first packet was, in nanoseconds since 1970."""
    if output in ("json", "jsonl"):
        from k8snet.render import document

        print(document.dumps(report, one_line=output == "jsonl"))
    elif output == "html":
        from k8snet.render import html

        _write([html.page(report, seen_ns).encode()])
    else:
        from k8snet.render import text

        text.show(report, sys.stdout, wide=output == "wide")


def _write(data: Iterable[bytes]) -> None:
    """On stdout, as they are: neither a locale nor a missing character is to change them."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(data)
