"""Healthy traffic in bulk, as a program of its own: run in a pod's netns beside a trace, by `test_crowd`.

`serve` is an HTTP/1.1 server that keeps connections; `browse`, `keep` and `load` are its clients, `ask` is a resolver.
They print how many connections (or queries) they made and were content with: what the trace must have counted. At a
steady rate, because what is tested is the tracer's judgement and not how soon its ring buffer overflows.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from k8snet.send import dns_query

KEPT = 5  # requests on a connection that is kept
LOAD = 4 << 20  # bytes of a large answer: some seventy GSO packets


def paced(number: int, rate: float) -> Iterator[int]:
    """0, 1, ... number - 1, at most `rate` a second."""
    began = time.monotonic()
    for i in range(number):
        time.sleep(max(0.0, began + i / rate - time.monotonic()))
        yield i


def fetch(connection: http.client.HTTPConnection, path: str = "/") -> int:
    """One request; how many bytes came."""
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"status {answer.status}")
    return len(answer.read())


def browse(host: str, port: int, number: int, rate: float, first: int, timeout: float) -> int:
    """A connection for each request, from source ports `first` and up (0: whichever the kernel takes)."""
    done = 0
    for i in paced(number, rate):
        source = ("", first + i) if first else None
        connection = http.client.HTTPConnection(host, port, timeout=timeout, source_address=source)
        try:
            done += fetch(connection) > 0
        except TimeoutError:
            continue  # an injected fault: not content
        finally:
            connection.close()
    return done


def keep(host: str, port: int, number: int, rate: float, timeout: float) -> int:
    """A connection for several requests."""
    return sum(persist(host, port, timeout, ["/"] * KEPT) for _ in paced(number, rate))


def load(host: str, port: int, number: int, rate: float, timeout: float) -> int:
    """A connection for a large answer."""
    return sum(persist(host, port, timeout, [f"/{LOAD}"]) for _ in paced(number, rate))


def persist(host: str, port: int, timeout: float, paths: list[str]) -> bool:
    """One connection for these requests; all over again when the server has restarted meanwhile."""
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            return all(fetch(connection, path) == int(path[1:] or 3) for path in paths)
        except (ConnectionError, http.client.HTTPException):
            continue
        finally:
            connection.close()


def ask(host: str, port: int, number: int, rate: float, timeout: float) -> int:
    """A query over a fresh socket each."""
    done = 0
    for i in paced(number, rate):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout)
            sock.connect((host, port))
            sock.send(dns_query("web.shop.svc.cluster.local", i % 65535 + 1))
            done += sock.recv(512)[:2] == (i % 65535 + 1).to_bytes(2, "big")
    return done


class Handler(BaseHTTPRequestHandler):
    """`/` is a word, `/N` is N bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path[1:] or 3)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(b"x" * size)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Every connection in a thread, which ends with the program."""

    daemon_threads = True
    allow_reuse_port = True  # the successor listens before the predecessor goes
    request_queue_size = 128


def serve(port: int) -> None:
    """Until SIGTERM: then away at once, whoever is connected."""
    server = Server(("", port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", flush=True)
    server.serve_forever()


def main() -> None:
    """Do what the words say, print the number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "browse", "keep", "ask", "load"))
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=30.0)
    args = parser.parse_args()
    if args.what == "serve":
        serve(args.port)
    elif args.what == "browse":
        print(browse(args.host, args.port, args.number, args.rate, args.first, args.timeout))
    else:
        client = {"keep": keep, "ask": ask, "load": load}[args.what]
        print(client(args.host, args.port, args.number, args.rate, args.timeout))


if __name__ == "__main__":
    main()
