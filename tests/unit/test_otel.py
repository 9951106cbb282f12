"""Stories as spans, taken by a real OTLP/HTTP receiver in this process and decoded with OpenTelemetry's own classes."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from k8snet.errors import K8snetError
from k8snet.event import CtStatus
from k8snet.render import otel
from unit.observed import BOOT_NS, observation
from unit.story import (
    BACKEND,
    CART,
    CLIENT,
    DNAT_DONE,
    NETFILTER_DROP,
    NODE,
    VIP,
    drop,
    into,
    out,
    syn_ack_to_client,
    syn_to_backend,
)


class Receiver(ThreadingHTTPServer):
    """Takes what is posted; `status` is its answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Each span with the attributes of its resource."""
        return [
            (_values(resource.resource.attributes), span)
            for _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: _value(a.value) for a in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def dropped() -> list[Any]:
    entry = {"orig": f"{CLIENT} > {VIP}", "reply": f"{BACKEND} > {CLIENT}", "status": DNAT_DONE}
    return [
        out(f"{CLIENT} > {VIP}", CART, "eth0"),
        into(f"{CLIENT} > {VIP}", NODE, "veth-cart"),
        drop(f"{CLIENT} > {BACKEND}", NODE, "veth-cart", NETFILTER_DROP, "nft_do_chain", **entry),
    ]


def tree(receiver: Receiver) -> dict[str, list[str]]:
    """Names of spans, by the name of the span that they are in."""
    names = {span.span_id: span.name for _, span in receiver.spans}
    found: dict[str, list[str]] = {}
    for _, span in sorted(receiver.spans, key=lambda pair: (pair[1].start_time_unix_nano, pair[1].name)):
        found.setdefault(names.get(span.parent_span_id, ""), []).append(span.name)
    return found


def test_a_flow_has_its_packets_and_a_packet_its_hops(receiver: Receiver) -> None:
    assert otel.send(observation(*syn_to_backend(), *syn_ack_to_client()), receiver.url) == len(receiver.spans)
    assert [path for path, _ in receiver.requests] == ["/v1/traces"]
    assert tree(receiver) == {
        "": ["tcp svc/shop/web:80"],
        "tcp svc/shop/web:80": ["request SYN", "reply SYN-ACK"],
        "request SYN": ["out eth0", "in veth-cart", "out veth-web-1", "prerouting", "in eth0"],
        "reply SYN-ACK": ["out eth0", "in veth-web-1", "out veth-cart", "postrouting", "in eth0"],
    }
    assert len({span.trace_id for _, span in receiver.spans}) == 1
    assert {span.status.code for _, span in receiver.spans} == {0}


def test_times_are_those_of_the_day_and_a_hop_lasts_until_the_next(receiver: Receiver) -> None:
    first, second, *_ = events = syn_to_backend()
    otel.send(observation(*events), receiver.url)
    (hop,) = (span for _, span in receiver.spans if span.name == "in veth-cart")
    (flow,) = (span for _, span in receiver.spans if not span.parent_span_id)
    assert hop.start_time_unix_nano == BOOT_NS + second.ktime_ns
    assert hop.end_time_unix_nano == BOOT_NS + events[2].ktime_ns
    assert (flow.start_time_unix_nano, flow.end_time_unix_nano) == (
        BOOT_NS + first.ktime_ns, BOOT_NS + events[-1].ktime_ns
    )  # fmt: skip


def test_a_span_belongs_to_the_pod_or_the_node_where_it_was_seen(receiver: Receiver) -> None:
    otel.send(observation(*syn_to_backend()), receiver.url)
    where = {span.name: resource for resource, span in receiver.spans if span.name.startswith(("out", "in"))}
    pod = {
        name: where["out eth0"].get(f"k8s.{name}") for name in ("namespace.name", "pod.name", "pod.uid", "node.name")
    }
    assert pod == {"namespace.name": "shop", "pod.name": "cart", "pod.uid": "uid-cart", "node.name": "node-1"}
    assert where["in veth-cart"]["k8s.node.name"] == "node-1"
    assert "k8s.pod.name" not in where["in veth-cart"]
    assert {resource["service.name"] for resource, _ in receiver.spans} == {"k8snet"}


def test_what_failed_says_why(receiver: Receiver) -> None:
    otel.send(observation(*dropped()), receiver.url)
    failed = {span.name: span for _, span in receiver.spans if span.status.code == 2}
    assert set(failed) == {"tcp svc/shop/web:80", "request SYN", "forward"}
    codes = {_values(span.attributes)["error.type"] for span in failed.values()}
    assert len(codes) == 1
    (finding,) = failed["tcp svc/shop/web:80"].events
    told = _values(finding.attributes)
    assert finding.name == "k8snet.finding"
    assert {told["k8snet.finding.code"]} == codes
    assert told["k8snet.finding.fix"]
    assert _values(failed["forward"].attributes)["k8snet.hook"] == "forward"


def test_the_flow_has_both_ends(receiver: Receiver) -> None:
    otel.send(observation(*syn_to_backend(), *syn_ack_to_client()), receiver.url)
    (flow,) = (span for _, span in receiver.spans if not span.parent_span_id)
    said = _values(flow.attributes)
    assert said | {
        "network.transport": "tcp", "network.type": "ipv4", "client.address": "10.244.1.10", "client.port": 50508,
        "server.address": "10.96.0.80", "server.port": 80, "k8snet.answered": True, "k8s.service.name": "shop/web",
        "k8snet.backend": "10.244.1.11:8080",
    } == said  # fmt: skip


def test_a_long_flow_is_shortened_and_says_so(receiver: Receiver) -> None:
    data = [out(f"{CLIENT} > {VIP}", CART, "eth0", flags=0x18, seq=2000 + n, payload=1, ip_id=n) for n in range(200)]
    otel.send(observation(*syn_to_backend(), *data), receiver.url)
    (flow,) = (span for _, span in receiver.spans if not span.parent_span_id)
    assert len([s for _, s in receiver.spans if s.parent_span_id == flow.span_id]) == otel.PACKETS
    assert _values(flow.attributes)["k8snet.packets_left_out"] == 201 - otel.PACKETS


def test_many_spans_go_in_several_requests(receiver: Receiver) -> None:
    flows = [out(f"10.244.1.10:{port} > {VIP}", CART, "eth0", ip_id=port) for port in range(2000, 2400)]
    assert otel.send(observation(*flows), receiver.url) == 1200
    assert len(receiver.requests) == 3
    assert len({span.trace_id for _, span in receiver.spans}) == 400


def test_a_receiver_that_refuses_is_told_to_the_user(receiver: Receiver) -> None:
    receiver.status = 403
    with pytest.raises(K8snetError) as told:
        otel.send(observation(*syn_to_backend()), receiver.url)
    assert "403" in told.value.problem or "Forbidden" in told.value.problem
    assert receiver.url in told.value.remedy


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://x", "http://", "http://x:y", "http://[::1", ""])
def test_what_is_no_url_is_said_before_anything_is_traced(url: str) -> None:
    with pytest.raises(K8snetError, match="collector"):
        otel.check(url)


@pytest.mark.parametrize(
    ("url", "path"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/v1/traces?key=1", "/otlp/v1/traces?key=1")]
)
def test_a_url_with_a_path_is_taken_as_it_is(receiver: Receiver, url: str, path: str) -> None:
    otel.send(observation(*syn_to_backend()), receiver.url + url)
    assert receiver.requests[0][0] == path


def test_without_the_sdk_there_is_one_sentence_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(K8snetError) as told:
        otel.check("http://localhost:4318")
    assert told.value.remedy == "pip install 'k8snet[otel]'"


def test_the_environment_has_its_say(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    otel.send(observation(*syn_to_backend()), receiver.url)
    assert {resource["deployment.environment.name"] for resource, _ in receiver.spans} == {"staging"}


def test_names_from_outside_are_inert(receiver: Receiver) -> None:
    otel.send(observation(out(f"{CLIENT} > {VIP}", CART, "e\x1b[2Jth", status=CtStatus(0))), receiver.url)
    assert "out e\\x1b[2Jth" in {span.name for _, span in receiver.spans}
