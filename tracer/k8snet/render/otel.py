"""What was seen as OpenTelemetry spans, sent over OTLP/HTTP: a trace a flow, in it its packets, in these the hops.

In: an `Observation` and a URL. A span's resource is the pod or the node where it was seen (`k8s.*` of the semantic
conventions), so a backend finds a packet where it finds the pod's own spans. A flow and a packet that failed have the
status Error, with the finding's code as `error.type`. The SDK is an optional extra, and is imported only when asked
for; its environment variables (OTEL_EXPORTER_OTLP_HEADERS, ..._CERTIFICATE, OTEL_RESOURCE_ATTRIBUTES) hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from k8snet import __version__
from k8snet.cluster.interfaces import Owner
from k8snet.errors import K8snetError
from k8snet.event import Event, FiveTuple
from k8snet.findings.diagnose import EXPLAINS
from k8snet.findings.words import label
from k8snet.journeys import INUM, Journey, Told, told
from k8snet.judge import Observation
from k8snet.render.safe import inert
from k8snet.render.text import end
from k8snet.report import Finding, Hop
from k8snet.summary import PROTOCOLS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span, Tracer

PACKETS: Final = 64  # of a flow; the guess of one who has scrolled through a trace
_BATCH: Final = 512  # spans in one request, as the SDK's own default

Attributes = Mapping[str, str | int | bool | Sequence[str]]


def check(url: str) -> None:
    """Raise K8snetError when nothing can be sent there: no URL, or no SDK."""
    _endpoint(url)
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401  # whether it is there is all that is asked
    except ImportError:
        raise K8snetError(
            "--otlp needs the OpenTelemetry SDK, which is not installed", "pip install 'k8snet[otel]'"
        ) from None


def send(seen: Observation, url: str) -> int:
    """Send all of it; how many spans there were. Raises K8snetError when they were not taken."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = OTLPSpanExporter(endpoint=_endpoint(url))
    sent = 0
    try:
        for batch in _batches(seen):
            with _heard() as said:
                taken = exporter.export(batch) is SpanExportResult.SUCCESS
            if not taken:
                why = said[0] if said else "no reason was given"
                raise K8snetError(f"the spans were not taken by {url}: {why}", f"curl -i -X POST {_endpoint(url)}")
            sent += len(batch)
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK forgot its return type
    return sent


def _endpoint(url: str) -> str:
    """The whole URL; one without a path is a collector's (OTLP specification, "Endpoint URLs for OTLP/HTTP")."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        named = False
    if not named:
        raise K8snetError(f"{url!r} is not a URL of a collector", "write --otlp http://HOST:4318")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1/traces"


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the SDK says in its log, which else goes to stderr."""
    said: list[str] = []
    log, handler = logging.getLogger("opentelemetry"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # a handler of one line
    propagated, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = propagated


def _batches(seen: Observation) -> Iterator[Sequence[ReadableSpan]]:
    spans = _Spans(seen)
    for flow in told(seen):
        spans.flow(flow)
        while len(spans.ended) >= _BATCH:
            yield spans.ended[:_BATCH]
            del spans.ended[:_BATCH]
    if spans.ended:
        yield spans.ended


class _Spans:
    """Makes spans of flows; `ended` has them until somebody takes them."""

    def __init__(self, seen: Observation) -> None:
        from opentelemetry.sdk.trace import SpanProcessor

        class Collector(SpanProcessor):
            """Keeps what has ended; the SDK's own processors drop what comes too fast."""

            def on_end(self, span: ReadableSpan) -> None:
                ended.append(span)

        self.ended: list[ReadableSpan] = []
        ended = self.ended
        self._collector = Collector()
        self._seen = seen
        self._tracers: dict[Owner | None, Tracer] = {}

    def flow(self, flow: Told) -> None:
        """The span of a flow and all that are in it."""
        case, events = flow.case, [e for journey in flow.journeys for e, _ in journey.sightings]
        if not events:
            return
        original = case.flow.original
        service = case.service
        protocol = PROTOCOLS.get(original.protocol, str(original.protocol))
        client = self._owner(case.around.client_netns) or Owner(pod=case.around.inventory.pod_by_ip.get(original.saddr))
        pod = case.around.inventory.pod_by_ip.get(original.daddr)
        server = f"svc/{service.key}" if service else f"pod/{pod.key}" if pod else str(original.daddr)
        port = f":{original.dport}" if original.dport else ""
        attributes: dict[str, str | int | bool | Sequence[str]] = {
            "network.transport": protocol,
            "network.type": f"ipv{original.daddr.version}",
            "client.address": str(original.saddr),
            "client.port": original.sport,
            "server.address": str(original.daddr),
            "server.port": original.dport,
            "k8snet.answered": case.served,
            "k8snet.lost_events": case.around.lost,
        }
        if service is not None:
            attributes["k8s.service.name"] = service.key
        if case.flow.dnat is not None:
            attributes["k8snet.backend"] = end(*case.flow.dnat)
        if left_out := max(0, len(flow.journeys) - PACKETS) + case.flow.forgotten:
            attributes["k8snet.packets_left_out"] = left_out
        span = self._span(f"{protocol} {server}{port}", client, None, events[0], attributes)
        for finding in flow.findings:
            self._note(span, finding, events[-1])
        bad = next((f for f in flow.findings if f.severity in EXPLAINS), None)
        if bad is not None:
            _fail(span, bad.code, bad.title)
        for journey in _shown(flow.journeys):
            self._packet(journey, span, bad)
        span.end(self._time(max(events, key=lambda e: e.ktime_ns)))

    def _packet(self, journey: Journey, parent: Span, bad: Finding | None) -> None:
        if not journey.sightings:
            return
        packet, way = journey.packet, journey.sightings
        attributes: Attributes = {
            "k8snet.direction": packet.direction.value, "k8snet.payload_bytes": packet.key.payload_len
        }  # fmt: skip
        first, last = way[0][0], way[-1][0]
        span = self._span(
            f"{packet.direction.value} {label(packet)}", self._owner(first.netns), parent, first, attributes
        )
        if journey.death is not None:
            _fail(span, bad.code if bad else "dropped", way[-1][1].verdict or "")
        ends = [event for event, _ in way[1:]] + [last]
        for (event, hop), ended in zip(way, ends, strict=True):
            made = self._span(_named(hop), self._owner(event.netns), span, event, _attributes(event, hop))
            if hop.verdict:
                _fail(made, bad.code if bad else "dropped", hop.verdict)
            made.end(self._time(ended))
        span.end(self._time(last))

    def _span(self, name: str, owner: Owner | None, parent: Span | None, at: Event, attributes: Attributes) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(parent, Context()) if parent is not None else Context()
        return self._tracer(owner).start_span(
            inert(name), context, attributes=_inert(attributes), start_time=self._time(at)
        )

    def _note(self, span: Span, finding: Finding, at: Event) -> None:
        attributes: Attributes = {
            "k8snet.finding.code": finding.code,
            "k8snet.finding.severity": finding.severity.value,
            "k8snet.finding.title": finding.title,
            "k8snet.finding.why": finding.why,
            "k8snet.finding.evidence": finding.evidence,
            "k8snet.finding.fix": finding.fix,
        }
        span.add_event("k8snet.finding", _inert(attributes), self._time(at))

    def _time(self, event: Event) -> int:
        return event.ktime_ns + self._seen.boot_ns

    def _owner(self, netns: int | None) -> Owner | None:
        return self._seen.surface.owners.get(netns) if netns is not None else None

    def _tracer(self, owner: Owner | None) -> Tracer:
        if owner not in self._tracers:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            resource = Resource.create(_inert({"service.name": "k8snet", "service.version": __version__} | _k8s(owner)))
            provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
            provider.add_span_processor(self._collector)
            self._tracers[owner] = provider.get_tracer("k8snet", __version__)
        return self._tracers[owner]


def _shown(journeys: Sequence[Journey]) -> Sequence[Journey]:
    """The first packets and the last; what died is never left out for what came through."""
    if len(journeys) <= PACKETS:
        return journeys
    dead = [j for j in journeys if j.death is not None][: PACKETS // 2]
    rest = [j for j in journeys if j.death is None]
    room = PACKETS - len(dead)
    kept = {id(j) for j in (*dead, *rest[: room // 2], *rest[-(room - room // 2) :])}
    return [j for j in journeys if id(j) in kept]


def _k8s(owner: Owner | None) -> dict[str, str]:
    found = {}
    if owner is not None and owner.node:
        found["k8s.node.name"] = owner.node
    if owner is not None and owner.pod is not None:
        pod = owner.pod
        found |= {"k8s.namespace.name": pod.namespace, "k8s.pod.name": pod.name, "k8s.pod.uid": pod.uid}
    return {name: value for name, value in found.items() if value}


def _named(hop: Hop) -> str:
    return f"{hop.direction} {hop.device}" if hop.device else hop.direction


def _attributes(event: Event, hop: Hop) -> Attributes:
    header: FiveTuple = hop.header
    found: dict[str, str | int | None] = {
        "source.address": str(header.saddr),
        "source.port": header.sport,
        "destination.address": str(header.daddr),
        "destination.port": header.dport,
        "k8snet.netns": event.netns & INUM,
        "network.interface.name": hop.device,
        "k8snet.hook": None if hop.device else hop.direction,
        "k8snet.nat": hop.nat,
        "k8snet.encapsulation": hop.encap,
        "k8snet.detail": hop.detail,
    }
    return {name: value for name, value in found.items() if value is not None}


def _inert(attributes: Attributes) -> dict[str, str | int | bool | Sequence[str]]:
    return {name: _inert_value(value) for name, value in attributes.items()}


def _inert_value(value: str | int | bool | Sequence[str]) -> str | int | bool | Sequence[str]:
    if isinstance(value, str):
        return inert(value)
    return value if isinstance(value, int) else [inert(text) for text in value]


def _fail(span: Span, code: str, words: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, inert(words)))
    span.set_attribute("error.type", code)
