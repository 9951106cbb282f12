"""The command line without a kernel: what the arguments mean, what an end looks like. tests/live runs it for real."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from k8snet import cli
from k8snet.cli import trace
from k8snet.cli.source import Source
from k8snet.cluster.file import load
from k8snet.cluster.inventory import Inventory
from k8snet.cluster.targets import Target
from k8snet.errors import Exit, K8snetError
from k8snet.lab.cluster import INVENTORY, objects
from k8snet.report import Severity, Verdict
from k8snet.trace import Fixed, Request
from unit.reports import forward_policy_drop


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(objects(INVENTORY)), encoding="utf-8")
    return str(file)


def asked(inventory: str, *arguments: str) -> Request:
    """The request behind a `k8snet trace` command line."""
    args = cli.parser().parse_args(["trace", f"--inventory={inventory}", *arguments])
    return trace.request_of(args, Source(Fixed(load(inventory)), args.namespace))


# --- words to values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6s", 6), ("500ms", 0.5), ("1m30s", 90), ("2h", 7200), ("1.5s", 1.5), ("3", 3), ("0.25", 0.25), ("24h", 86400)],
)
def test_a_duration_is_written_as_kubectl_writes_it(text: str, seconds: float) -> None:
    assert trace.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "6x", "6 s", "-1s", "1s2", "1e3", "٣s", "0", "0ms", "25h", "9" * 400, "nan", "inf", "6s\n", "3\n"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        trace.duration(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "10001", "²", "٣", "1e3", "9" * 5000, "1\n"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        trace.count(text)


def test_counts() -> None:
    assert [trace.count(text) for text in ("1", "007", "10000")] == [1, 7, 10000]


@pytest.mark.parametrize(
    ("arguments", "protocol", "port"),
    [
        (["--to=shop/svc/web:80"], "tcp", 80),
        (["--to=shop/svc/echo"], "udp", 7),
        (["--to=10.244.1.11:8080"], None, 8080),
        (["--to=10.244.1.11:8080", "--send=1"], "tcp", 8080),
        (["--to=10.244.1.11", "--send=1"], "icmp", None),
        (["--to=10.244.1.11:53/udp", "--send=1"], "udp", 53),
        (["--to=shop/svc/web:80", "--protocol=icmp", "--send=1"], "icmp", 80),
        (["--to=kube-system/svc/kube-dns:53", "--protocol=tcp"], "tcp", 53),
        (["--to=kube-system/svc/kube-dns", "--send=1", "--dns=web.shop.svc.cluster.local."], "udp", 53),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_protocol_is_the_ports_unless_named(
    inventory: str, arguments: list[str], protocol: str | None, port: int | None
) -> None:
    request = asked(inventory, "--from=shop/cart", *arguments)
    assert (request.protocol, request.server.port) == (protocol, port)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--to=10.244.1.13:53", "--dns=a.b"], "nothing is to be sent"),
        (["--to=shop/svc/web:80", "--dns=a.b", "--send=1"], "asks over UDP, not over tcp"),
        (["--to=10.244.1.13:53", "--dns=", "--send=1"], "'' is not a DNS name"),
        (["--to=10.244.1.13:53", "--dns=a..b", "--send=1"], "is not a DNS name"),
        (["--to=10.244.1.13:53", f"--dns={'a.' * 130}", "--send=1"], "is not a DNS name"),
        (["--to=10.244.1.13:53", "--dns=münchen.de", "--send=1"], "is not a DNS name"),
        (["--to=shop/svc/web:80", "--size=6000"], "nothing is to be sent"),
        (["--to=10.244.1.13:53", "--dns=a.b", "--send=1", "--size=99"], "--dns says what"),
        (["--to=127.0.0.1:80"], "127.0.0.1 is an address that every network namespace has"),
        (["--to=[::1]:80"], "every network namespace has"),
        (["--to=0.0.0.0:80"], "every network namespace has"),
        (["--to=224.0.0.1:5353"], "many receivers"),
        (["--to=255.255.255.255:67"], "many receivers"),
        (["--to=[fd00::1]:80", "--from=10.244.1.10"], "pod/shop/cart has IPv4 here and fd00::1 has IPv6"),
        (["--to=10.96.0.80:80", "-6"], "svc/shop/web has no IPv6 address here"),
        (["--to=10.244.1.13:53/udp", "--protocol=tcp"], "a port of UDP, not of TCP"),
        (["--to=shop/svc/web:http", "--protocol=udp"], "has no UDP port http"),
    ],
)
def test_what_does_not_fit_together_is_refused(inventory: str, arguments: list[str], problem: str) -> None:
    with pytest.raises(K8snetError, match=problem) as error:
        asked(inventory, "--from=shop/cart", *arguments)
    assert error.value.code is Exit.USAGE
    assert error.value.remedy


@pytest.mark.parametrize("text", ["0", "-1", "65001", "1.5", "6k", ""])
def test_a_size_is_what_one_datagram_carries(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        trace.size(text)
    assert [trace.size(good) for good in ("1", "65000")] == [1, 65_000]


def test_how_much_to_send_is_asked_for(inventory: str) -> None:
    assert asked(inventory, "--from=shop/cart", "--to=shop/svc/web:80", "--send=1", "--size=6000").size == 6000
    assert asked(inventory, "--from=shop/cart", "--to=shop/svc/web:80", "--send=1").size == 0


def test_of_two_stacks_the_one_is_taken_that_both_have() -> None:
    four, six = ip_address("10.96.0.80"), ip_address("fd00::80")
    service = Target("svc/shop/web", (four, six))
    for client, servers in (((four,), (four,)), ((six,), (six,)), ((six, four), (four, six))):
        assert trace.of_one_family(Target("pod/shop/cart", client), service).addresses == servers


@pytest.mark.parametrize(("flag", "version"), [("-4", 4), ("--ipv4", 4), ("-6", 6), ("--ipv6", 6)])
def test_one_ip_family_can_be_asked_for(inventory: str, flag: str, version: int) -> None:
    request = asked(inventory, "--from=shop/cart", "--to=shop/svc/web:80", flag)
    assert [a.version for a in (*request.client.addresses, *request.server.addresses)] == [version, version]
    assert {e.ip.version for e in request.server.all_endpoints} == {version}


def test_only_a_pod_that_is_elsewhere_is_sent_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["k8snet", "trace", "--from", "shop/cart", "--to", "my svc"])
    cart = next(pod for pod in INVENTORY.pods if pod.key == "shop/cart")
    args = argparse.Namespace(from_="shop/cart", to="my svc")
    address = ip_address("10.244.1.10")
    server = Target("10.0.0.1", (ip_address("10.0.0.1"),))
    named = Request(Target("pod/shop/cart", (address,), pod=cart), server, INVENTORY)
    trace.locate(named, True, args)
    trace.locate(Request(Target(str(address), (address,)), server, Inventory()), False, args)
    with pytest.raises(K8snetError, match="it runs on node node-1") as error:
        trace.locate(named, False, args)
    assert error.value.remedy.endswith("k8snet trace --from shop/cart --to 'my svc'")  # to be copied


# --- how it ends ----------------------------------------------------------------------------------------------------


def test_the_exit_code_is_the_worst_of_what_was_found() -> None:
    broken = forward_policy_drop()
    healthy = replace(broken, verdict=Verdict.DELIVERED, findings=())
    warned = replace(healthy, findings=(replace(broken.findings[0], severity=Severity.WARN),))
    assert trace.exit_code(broken) is Exit.PROBLEM
    assert trace.exit_code(healthy) is Exit.OK
    assert trace.exit_code(warned) is Exit.OK
    for verdict in set(Verdict) - {Verdict.DELIVERED}:
        assert trace.exit_code(replace(healthy, verdict=verdict)) is Exit.INCONCLUSIVE


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["trace"], ["trace", "--fro=a", "--to=b"], ["lab", "up", "x"]])
def test_usage_is_said_in_two_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(arguments) is Exit.USAGE
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert said.out == ""
    assert first.startswith("k8snet: ")
    assert second.endswith("--help")


def test_an_argument_cannot_write_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["lab", "run", "\x1b]0;owned\x07\n[red]"]) is Exit.USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["lab", "run", "--help"]])
def test_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(words) is Exit.OK
    said = capsys.readouterr()
    assert said.out
    assert said.err == ""


class Unwritable(io.TextIOWrapper):
    """Standard output that cannot be written to, for a reason that shows when it is flushed."""

    def __init__(self, target: Path, reason: OSError) -> None:
        super().__init__(target.open("wb"), encoding="utf-8")
        self._reason: OSError | None = reason

    def flush(self) -> None:
        if self._reason is not None:
            reason, self._reason = self._reason, None
            raise reason


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [(BrokenPipeError(), Exit.INTERRUPTED, ""), (OSError(28, "full"), Exit.USAGE, "k8snet: there is no space left")],
    ids=["reader-gone", "disk-full"],
)
def test_output_that_nobody_gets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: OSError,
    code: Exit,
    said: str,
) -> None:
    with Unwritable(tmp_path / "out", reason) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.execute(["lab", "list"]) is code
    assert capsys.readouterr().err.startswith(said)


def test_another_error_of_the_system_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Unwritable(tmp_path / "out", OSError(5, "input/output error")) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="input/output"):
            cli.execute(["lab", "list"])


def ends(body: str) -> tuple[int, str]:
    """Exit code and stderr of a process whose one command is `body`."""
    program = f"import signal, sys, time\nfrom k8snet import cli\ndef execute():\n{body}\n"
    program += "cli.execute = execute\nsys.exit(cli.main())\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    return done.returncode, done.stderr


PRESS = "signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize(
    "body",
    [
        f"  {PRESS}",
        "  signal.raise_signal(signal.SIGTERM)",
        # ctypes prints what a callback raises and goes on, as does the interpreter in a finalizer.
        f"  import ctypes\n  call = ctypes.CFUNCTYPE(None)(lambda: {PRESS})\n  call()\n  time.sleep(30)",
        f"  class Held:\n    def __del__(self):\n      {PRESS}\n  del [Held()][0]\n  time.sleep(30)",
        f"  class Field:\n    def __set_name__(self, owner, name):\n      {PRESS}\n  class Owner:\n    field = Field()",
    ],
    ids=["ctrl-c", "sigterm", "in-a-callback", "in-a-finalizer", "in-a-class-body"],
)
def test_an_interruption_is_one_wherever_it_comes(body: str) -> None:
    assert ends(body) == (130, "")


def test_a_bug_keeps_its_traceback() -> None:
    code, said = ends("  raise ValueError('a bug')")
    assert code == 1
    assert said.startswith("Traceback")
    assert said.endswith("ValueError: a bug\n")


def test_other_things_that_python_cannot_raise_are_still_told() -> None:
    code, said = ends(
        "  class Held:\n    def __del__(self):\n      raise ValueError('a bug')\n  del [Held()][0]\n  return 0"
    )
    assert code == 0
    assert "ValueError: a bug" in said
