"""/etc/resolv.conf as resolv.conf(5) reads it; what a pod writes there can do no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.kernel.resolver import Resolver, parse

KUBERNETES = """\
search shop.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5
"""


def test_what_the_kubelet_writes() -> None:
    read = parse(KUBERNETES)
    assert read == Resolver(("10.96.0.10",), ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local"), ndots=5)
    assert read.options == "ndots:5"


def test_an_empty_file_has_the_defaults() -> None:
    assert parse("") == Resolver()
    assert parse("").options == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            "options timeout:1 attempts:3 rotate", Resolver(timeout=1, attempts=3, flags=("rotate",)), id="several"
        ),
        pytest.param("options ndots:99", Resolver(ndots=15), id="capped"),
        pytest.param("options ndots:x ndots: ndots", Resolver(), id="no-number"),
        pytest.param("options single-request-reopen", Resolver(flags=("single-request-reopen",)), id="flag"),
        pytest.param("options something-new:3 edns0", Resolver(flags=("edns0",)), id="unknown"),
        pytest.param("nameserver 10.0.0.1 10.0.0.2", Resolver(("10.0.0.1",)), id="one-a-line"),
        pytest.param("nameserver not-an-address", Resolver(), id="no-address"),
        pytest.param("nameserver fd00::10", Resolver(("fd00::10",)), id="ipv6"),
        pytest.param("domain example.com.", Resolver(search=("example.com",)), id="domain"),
        pytest.param("search a.example\nsearch b.example", Resolver(search=("b.example",)), id="the-last-counts"),
        pytest.param("search .", Resolver(), id="root"),
        pytest.param("# nameserver 10.0.0.1\n; search x", Resolver(), id="comments"),
    ],
)
def test_a_line(line: str, expected: Resolver) -> None:
    assert parse(line) == expected


def test_only_three_servers_are_used() -> None:
    text = "".join(f"nameserver 10.0.0.{n}\n" for n in range(5))
    assert parse(text).nameservers == ("10.0.0.0", "10.0.0.1", "10.0.0.2")


@given(st.text(max_size=2000))
def test_any_text_is_read(text: str) -> None:
    read = parse(text)
    assert len(read.search) <= 32
    assert all(len(domain) <= 255 for domain in read.search)
    assert 0 <= read.ndots <= 15


@given(
    st.lists(st.sampled_from(["search", "options", "nameserver", "ndots:7", "x" * 300, "\0", "10.0.0.1"]), max_size=99)
)
def test_any_words_are_read(words: list[str]) -> None:
    assert len(parse(" ".join(words)).nameservers) <= 1
