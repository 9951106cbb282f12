"""What Prometheus gets to read: fetched over HTTP and read by prometheus_client's parser."""

from __future__ import annotations

import argparse
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from k8snet import __version__, metrics
from k8snet.errors import K8snetError
from k8snet.metrics import LONGEST, MOST, Endpoint, Metric, Metrics, address_of
from k8snet.report import Severity
from k8snet.watch.engine import Counts
from k8snet.watch.fold import SECOND, Fold
from k8snet.watch.live import Usage
from k8snet.watch.meter import METRICS, Meter
from unit.anomalies import POLICY_DROP, anomaly, found, stranger

LABELLED = Metric("k8snet_test_total", "counter", "A test", ("word",))
TIMES = Metric("k8snet_test_seconds", "histogram", 'A "test"\nof \\ times', ("word",), (0.1, 1.0))
PLAIN = Metric("k8snet_test", "gauge", "One number")
USAGE = Usage(cpu=1.25, memory=60_000_000, pods=3)


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def read(text: str) -> list[Sample]:
    """As Prometheus reads it."""
    families = list(text_string_to_metric_families(text))
    return [Sample(sample.name, dict(sample.labels), sample.value) for f in families for sample in f.samples]


def value(text: str, name: str, **labels: str) -> float | None:
    return next((s.value for s in read(text) if (s.name, s.labels) == (name, labels)), None)


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read(), "utf-8")


@pytest.fixture
def numbers() -> Metrics:
    return Metrics((LABELLED, TIMES, PLAIN))


@pytest.fixture
def endpoint(numbers: Metrics) -> Iterator[Endpoint]:
    with Endpoint(numbers, ("127.0.0.1", 0)) as listening:
        yield listening


# --- the format


def test_what_is_fetched_is_what_was_counted(numbers: Metrics, endpoint: Endpoint) -> None:
    numbers.add("k8snet_test_total", 1, "a")
    numbers.add("k8snet_test_total", 2, "a")
    numbers.set("k8snet_test", 0.5)
    text = scrape(endpoint.port)
    assert value(text, "k8snet_test_total", word="a") == 3
    assert value(text, "k8snet_test") == 0.5
    types = [(family.name, family.type) for family in text_string_to_metric_families(text)]
    assert types == [("k8snet_test", "counter"), ("k8snet_test_seconds", "histogram"), ("k8snet_test", "gauge")]


def test_a_histogram_has_its_buckets_sum_and_count(numbers: Metrics) -> None:
    for seconds in (0.05, 0.1, 0.5, 7.0):
        numbers.observe("k8snet_test_seconds", seconds, "x")
    text = numbers.text()
    below = [value(text, "k8snet_test_seconds_bucket", word="x", le=le) for le in ("0.1", "1", "+Inf")]
    assert below == [2, 3, 4]
    assert value(text, "k8snet_test_seconds_sum", word="x") == pytest.approx(7.65)
    assert value(text, "k8snet_test_seconds_count", word="x") == 4


@pytest.mark.parametrize("word", ['a"b', "a\\b", "a\nb", "a} 1\nk8snet_evil 1", "é→", ""], ids=ascii)
def test_no_label_breaks_the_format(numbers: Metrics, word: str) -> None:
    numbers.add("k8snet_test_total", 1, word)
    assert value(numbers.text(), "k8snet_test_total", word=word) == 1
    assert {sample.name for sample in read(numbers.text())} == {"k8snet_test_total"}


def test_so_many_series_and_the_rest_is_other(numbers: Metrics) -> None:
    for n in range(MOST + 200):
        numbers.add("k8snet_test_total", 1, f"pod-{n}")
        numbers.observe("k8snet_test_seconds", 0.1, f"pod-{n}")
    text = numbers.text()
    assert len([s for s in read(text) if s.name == "k8snet_test_total"]) == MOST + 1
    assert value(text, "k8snet_test_total", word="other") == 200
    assert value(text, "k8snet_test_seconds_count", word="other") == 200
    numbers.add("k8snet_test_total", 1, "pod-7")
    assert value(numbers.text(), "k8snet_test_total", word="pod-7") == 2


def test_a_label_has_so_many_characters(numbers: Metrics) -> None:
    numbers.add("k8snet_test_total", 1, "x" * 10_000)
    [sample] = read(numbers.text())
    assert len(sample.labels["word"]) == LONGEST


def test_the_wrong_labels_are_a_bug(numbers: Metrics) -> None:
    with pytest.raises(TypeError):
        numbers.add("k8snet_test_total", 1)


# --- over HTTP


def test_there_is_nothing_else_to_be_fetched(endpoint: Endpoint) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(endpoint.port, "/etc/passwd")
    assert refused.value.code == 404


def test_a_silent_reader_keeps_nobody_out_for_long(
    numbers: Metrics, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port)) as silent:
        silent.send(b"GET /met")
        numbers.set("k8snet_test", 1)
        assert value(scrape(endpoint.port), "k8snet_test") == 1


def test_counting_waits_for_no_reader(numbers: Metrics, endpoint: Endpoint) -> None:
    """Nobody takes what is written: the watch goes on."""
    for n in range(MOST):
        numbers.add("k8snet_test_total", 1, f"{n}-" + "x" * 100)
    with socket.create_connection(("127.0.0.1", endpoint.port)) as deaf:
        deaf.send(b"GET /metrics HTTP/1.0\r\n\r\n")

        def count() -> None:
            for _ in range(1000):
                numbers.add("k8snet_test_total", 1, "0")

        counting = threading.Thread(target=count)
        counting.start()
        counting.join(5)
        assert not counting.is_alive()


def test_a_reader_that_breaks_off_is_no_news(
    numbers: Metrics, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", endpoint.port)) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            reader.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        with socket.create_connection(("127.0.0.1", endpoint.port)) as reader:
            reader.send(b"\x16\x03\x01 nonsense\r\n\r\n")
    scrape(endpoint.port)
    assert capfd.readouterr() == ("", "")


def test_it_ends_at_once_though_somebody_is_connected(numbers: Metrics) -> None:
    with Endpoint(numbers, ("127.0.0.1", 0)) as listening:
        silent = socket.create_connection(("127.0.0.1", listening.port))
        silent.send(b"GET")
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < metrics.PATIENCE
    silent.close()


def test_a_port_that_is_taken_is_an_error_with_a_next_step(numbers: Metrics, endpoint: Endpoint) -> None:
    with pytest.raises(K8snetError, match="cannot listen on 127"):
        Endpoint(numbers, ("127.0.0.1", endpoint.port))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9753", ("127.0.0.1", 9753)),
        ("9753", ("127.0.0.1", 9753)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),  # noqa: S104 - somebody wants it so
        ("[::1]:9753", ("::1", 9753)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", ":", "host:9753", ":0", ":70000", "127.0.0.1", ":²", "1.2.3.4:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        address_of(text)


# --- of a watch


def test_every_name_is_as_it_should_be() -> None:
    for metric in METRICS:
        assert metric.name.startswith(("k8snet_", "process_"))
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not {"ip", "port", "saddr", "daddr", "client", "server"} & set(metric.labels)
        assert metric.about[0].isupper() or metric.about[0].isdigit()
        assert not metric.about.endswith(".")


def test_a_watch_in_numbers() -> None:
    meter, fold = Meter(()), Fold()
    for n in range(3):
        one = anomaly(n)
        meter.found(one)
        fold.add(one)
    slow = anomaly(3, found("SLOW_CONNECT", Severity.WARN))
    meter.found(slow)
    fold.add(slow)
    meter.asked(0.003, "NOERROR")
    meter.counted(Counts(events=70, lost=2, connections=9, answered=5, one_in=4), USAGE, fold, 5 * SECOND)
    text = meter.metrics.text()
    assert value(text, "k8snet_build_info", version=__version__) == 1
    assert value(text, "k8snet_anomalies_total", code="FORWARD_POLICY_DROP") == 3
    drops = {"reason": "NETFILTER_DROP", "hook": "forward", "namespace": "shop", "pod": ""}
    assert value(text, "k8snet_dropped_packets_total", **drops) == 3
    assert value(text, "k8snet_finding_active", code="SLOW_CONNECT", severity="WARN") == 1
    assert value(text, "k8snet_lost_events_total") == 2
    assert value(text, "k8snet_connections_answered_total") == 5
    assert value(text, "k8snet_sampled_one_in") == 4
    assert value(text, "process_resident_memory_bytes") == 60_000_000
    assert value(text, "k8snet_dns_request_duration_seconds_count", rcode="NOERROR") == 1


def test_what_has_passed_is_active_no_more_and_still_counted() -> None:
    meter, fold = Meter(()), Fold()
    fold.add(anomaly())
    meter.found(anomaly())
    for now, active in ((SECOND, 1), (1000 * SECOND, 0)):
        meter.counted(Counts(), USAGE, fold, now)
        assert (
            value(meter.metrics.text(), "k8snet_finding_active", code="FORWARD_POLICY_DROP", severity="FAIL") == active
        )
    assert value(meter.metrics.text(), "k8snet_anomalies_total", code="FORWARD_POLICY_DROP") == 1


def test_pods_are_named_for_who_asks() -> None:
    meter = Meter((), pods=True)
    meter.found(anomaly())
    drops = {"reason": "NETFILTER_DROP", "hook": "forward", "namespace": "shop", "pod": "cart-7d4f"}
    assert value(meter.metrics.text(), "k8snet_dropped_packets_total", **drops) == 1


def test_no_address_is_ever_a_label() -> None:
    meter, fold = Meter((), pods=True), Fold()
    for n in range(500):
        one = anomaly(n, POLICY_DROP, flow=stranger(n), client="")
        meter.found(one)
        fold.add(one)
    meter.counted(Counts(), USAGE, fold, 500 * SECOND)
    samples = read(meter.metrics.text())
    assert len(samples) < 40
    assert not [s for s in samples if any("10." in label for label in s.labels.values())]


def test_numbers_begin_with_zero() -> None:
    """A counter that appears with its first loss has no rate."""
    text = Meter(()).metrics.text()
    assert value(text, "k8snet_lost_events_total") == 0
