"""What is read of a DNS message: the same as another library reads, of any bytes, and never an exception."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8snet.event import PAYLOAD_MAX
from k8snet.flow.dns import parse


def message(question: bytes, flags: int = 0x0100, questions: int = 1) -> bytes:
    return struct.pack("!HHHHHH", 4711, flags, questions, 0, 0, 0) + question


def question(*labels: bytes, kind: int = 1) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack("!HH", kind, 1)


@pytest.mark.parametrize(
    ("raw", "name", "kind"),
    [
        pytest.param(question(b"web", b"shop", b"svc"), "web.shop.svc", "A", id="plain"),
        pytest.param(question(b"WeB", b"sHoP", kind=28), "web.shop", "AAAA", id="0x20"),
        pytest.param(question(b"_http", b"_tcp", b"web", kind=33), "_http._tcp.web", "SRV", id="service"),
        pytest.param(question(kind=2), ".", "NS", id="root"),
        pytest.param(question(b"a", kind=65280), "a", "TYPE65280", id="unknown-type"),
        pytest.param(question(b"\x1b[31mred", b"x"), "\\027\\09131mred.x", "A", id="terminal-escape"),
        pytest.param(question(b"a.b", b"c"), "a\\046b.c", "A", id="dot-in-a-label"),
        pytest.param(question("b\u00fccher".encode()), "b\\195\\188cher", "A", id="utf-8"),
        pytest.param(question(b"a" * 63, b"b"), "a" * 63 + ".b", "A", id="longest-label"),
        pytest.param(
            question(*[b"a" * 63] * 3, b"b" * 61), ".".join([*["a" * 63] * 3, "b" * 61]), "A", id="longest-name"
        ),
        pytest.param(question(*[b"a" * 63] * 3, b"b" * 62), "", "", id="too-long-a-name"),
        pytest.param(b"\xc0\x0c\0\1\0\1", "", "", id="pointer-to-itself"),
        pytest.param(b"\x40abc\0\0\1\0\1", "", "", id="reserved-label-type"),
        pytest.param(question(b"web", b"shop")[:-1], "", "", id="cut-in-the-class"),
        pytest.param(question(b"web", b"shop")[:6], "", "", id="cut-in-the-name"),
        pytest.param(b"", "", "", id="no-question-there"),
    ],
)
def test_the_question(raw: bytes, name: str, kind: str) -> None:
    read = parse(message(raw))
    assert read is not None
    assert (read.name, read.type) == (name, kind)
    assert (read.txid, read.flags) == (4711, 0x0100)


def test_what_follows_the_question_does_not_matter() -> None:
    read = parse(message(question(b"web")) + b"\xc0\x0c" + bytes(200))
    assert read is not None
    assert read.name == "web"


@pytest.mark.parametrize("length", range(12))
def test_less_than_a_header_is_no_message(length: int) -> None:
    assert parse(message(question(b"web"))[:length]) is None


def test_the_longest_question_fits_into_what_the_kernel_copies() -> None:
    longest = question(*[b"a" * 63] * 3, b"b" * 61)
    assert 2 + len(message(longest)) <= PAYLOAD_MAX


@given(st.binary(max_size=PAYLOAD_MAX))
def test_any_bytes_are_a_message_or_none_and_print_harmlessly(raw: bytes) -> None:
    read = parse(raw)
    assert (read is None) == (len(raw) < 12)
    assert read is None or (read.name.isascii() and all(c.isprintable() for c in read.name) and len(read.name) < 1024)


@given(st.binary(max_size=60))
@settings(deadline=None)  # the other library is imported in one of them
def test_any_question_is_read_as_another_library_reads_it(raw: bytes) -> None:
    dns = pytest.importorskip("scapy.layers.dns", reason="scapy is not installed: pip install scapy")
    read = parse(message(raw))
    assert read is not None
    if not read.name or any(byte >= 0xC0 for byte in raw):
        return  # nothing was read here, or the other library follows pointers
    other = dns.DNSQR(raw)
    labels, at = [], 0
    while raw[at]:
        labels.append(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
    assert other.qname == b".".join(labels) + b"."
    assert other.qtype == int.from_bytes(raw[at + 1 : at + 3], "big")
    assert read.name.count(".") == max(0, len(labels) - 1) or read.name == "."


label = st.binary(min_size=1, max_size=20).filter(lambda raw: b"." not in raw)


@given(st.lists(label, min_size=1, max_size=6), st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_a_question_comes_back_as_it_was_written(labels: list[bytes], kind: int, txid: int, flags: int) -> None:
    raw = struct.pack("!HHHHHH", txid, flags, 1, 0, 0, 0) + question(*labels, kind=kind)
    read = parse(raw)
    assert read is not None
    assert (read.txid, read.flags) == (txid, flags)
    # Back to bytes by the rule of RFC 1035, section 5.1.
    assert [_bytes(part) for part in read.name.split(".")] == [raw.lower() for raw in labels]


def _bytes(text: str) -> bytes:
    out, at = bytearray(), 0
    while at < len(text):
        if text[at] == "\\":
            out.append(int(text[at + 1 : at + 4]))
            at += 4
        else:
            out.append(ord(text[at]))
            at += 1
    return bytes(out)
