"""What a watch counts, for Prometheus: numbers in, the text format over HTTP out.

In: calls from the watch, which take a lock for microseconds and never wait for a reader. Out: GET /metrics. By the
standard library: the format is twenty lines (a test has prometheus_client's parser read them), and that library would
bring threads without a bound, and labels that are never forgotten. Here a metric has so many series at most; what comes
after them is counted under `other`. No address and no port is ever a label.
"""

from __future__ import annotations

import argparse
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from socket import AF_INET6
from socketserver import TCPServer
from typing import Any, Final

from k8snet.errors import K8snetError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST: Final = 300  # series of one metric
LONGEST: Final = 120  # characters of one label
PATIENCE: Final = 2.0  # seconds that a reader may be silent
FAREWELL: Final = 0.5  # seconds
LOCALHOST: Final = "127.0.0.1"
OTHER: Final = "other"

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """What there is to be read, and what it means."""

    name: str
    kind: str  # counter, gauge, histogram
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # a histogram's upper bounds, in seconds


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0
    number: int = 0


@dataclass
class Metrics:
    """The numbers of one process. `refresh` is called by whoever reads them, in that thread."""

    metrics: tuple[Metric, ...]
    refresh: Callable[[], None] | None = None
    _values: dict[str, dict[Labels, float]] = field(default_factory=dict)
    _histograms: dict[str, dict[Labels, _Histogram]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._known = {metric.name: metric for metric in self.metrics}

    def add(self, name: str, amount: float = 1, *labels: str) -> None:
        """Count."""
        with self._lock:
            series, key = self._series(name, labels)
            series[key] = series.get(key, 0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """It is this much now, or has been counted by somebody else."""
        with self._lock:
            series, key = self._series(name, labels)
            series[key] = value

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """One that took so long."""
        metric = self._known[name]
        with self._lock:
            of_name = self._histograms.setdefault(name, {})
            key = _bounded(labels, of_name)
            found = of_name.setdefault(key, _Histogram([0] * (len(metric.buckets) + 1)))
            found.counts[bisect_left(metric.buckets, seconds)] += 1
            found.total += seconds
            found.number += 1

    def text(self) -> str:
        """All of them, as Prometheus reads them."""
        if self.refresh is not None:
            self.refresh()
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            histograms = {
                name: {key: (list(h.counts), h.total, h.number) for key, h in series.items()}
                for name, series in self._histograms.items()
            }
        lines: list[str] = []
        for metric in self.metrics:
            lines += [f"# HELP {metric.name} {_escaped(metric.about)}", f"# TYPE {metric.name} {metric.kind}"]
            for key, value in values.get(metric.name, {}).items():
                lines.append(f"{metric.name}{_labels(metric.labels, key)} {_number(value)}")
            for key, (counts, total, number) in histograms.get(metric.name, {}).items():
                lines += _histogram(metric, key, counts, total, number)
        return "\n".join(lines) + "\n"

    def _series(self, name: str, labels: Labels) -> tuple[dict[Labels, float], Labels]:
        series = self._values.setdefault(name, {})
        if len(labels) != len(self._known[name].labels):
            raise TypeError(f"{name} has the labels {self._known[name].labels}")
        return series, _bounded(labels, series)


def _bounded(labels: Labels, series: dict[Labels, Any]) -> Labels:
    """The series' key; there are so many of them and no more."""
    key = tuple(label[:LONGEST] for label in labels)
    return key if key in series or len(series) < MOST else tuple(OTHER for _ in labels)


def _histogram(metric: Metric, key: Labels, counts: list[int], total: float, number: int) -> Iterator[str]:
    below = 0
    for bound, count in zip((*metric.buckets, float("inf")), counts, strict=True):
        below += count
        labels = _labels((*metric.labels, "le"), (*key, "+Inf" if bound == float("inf") else _number(bound)))
        yield f"{metric.name}_bucket{labels} {below}"
    yield f"{metric.name}_sum{_labels(metric.labels, key)} {_number(total)}"
    yield f"{metric.name}_count{_labels(metric.labels, key)} {number}"


def _labels(names: tuple[str, ...], values: Labels) -> str:
    pairs = ",".join(f'{name}="{_escaped(value, quoted=True)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


# --- over HTTP


def address_of(text: str) -> tuple[str, int]:
    """`9753`, `:9753`, `0.0.0.0:9753`, `[::1]:9753`; without an address it is this machine's own."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or LOCALHOST
    try:
        ip_address(host)
        if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write 127.0.0.1:9753, or :9753") from None
    return host, int(port)


class Endpoint:
    """Answers GET /metrics from a thread of its own. Use as a context manager."""

    def __init__(self, metrics: Metrics, address: tuple[str, int]) -> None:
        """Raises K8snetError when nobody can listen there."""
        try:
            self._server = _server(metrics, address)
        except OSError as error:
            raise K8snetError(
                f"--metrics cannot listen on {address[0]} port {address[1]}: {error.strerror}", "choose another port"
            ) from None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="k8snet-metrics", kwargs={"poll_interval": 0.25}, daemon=True
        )

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # It waits for a reader who may be silent: no longer than this, and then the thread ends with the process.
        ending = threading.Thread(target=self._server.shutdown, name="k8snet-metrics-end", daemon=True)
        ending.start()
        ending.join(FAREWELL)
        if not ending.is_alive():
            self._server.server_close()


def _server(metrics: Metrics, address: tuple[str, int]) -> TCPServer:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE  # one reader at a time: who says nothing is not to keep the others out

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = (metrics.text() if found else "see /metrics\n").encode()
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody wants to read of each scrape."""

    # Not http.server's, which asks the DNS for the name of its own address: that may be what is broken.
    class Server(TCPServer):
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            """A reader that went away is no news."""

    if ":" in address[0]:
        Server.address_family = AF_INET6
    return Server(address, Handler)
