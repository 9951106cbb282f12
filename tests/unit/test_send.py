"""What is sent: as many bytes as were asked for, in a form that a server understands."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from k8snet.lab.servers import Answers, answer_http
from k8snet.send import http_post

POD = ip_address("10.244.2.11")


@pytest.mark.parametrize("size", [120, 1000, 1440, 6000, 65_000])
def test_an_http_request_is_as_long_as_asked_for(size: int) -> None:
    assert abs(len(http_post(POD, size)) - size) <= 1, "the length of the length may differ by a digit"


def test_one_that_is_too_short_is_only_a_head() -> None:
    request = http_post(ip_address("fd00::1"), 1)
    assert request.endswith(b"Content-Length: 0\r\n\r\n")
    assert b"Host: [fd00::1]\r\n" in request


def test_the_labs_server_answers_when_it_has_read_all_of_it() -> None:
    request, answers = http_post(POD, 6000), Answers("shop/web-3", {})
    assert answer_http(request[:-1], answers) is None
    assert (answer_http(request, answers) or b"").startswith(b"HTTP/1.1 200")
    assert answer_http(b"GET / HTTP/1.1\r\n\r\n", answers) is not None
