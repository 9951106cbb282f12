"""Completion: what is offered at each Tab, also by the shells themselves where they are installed; it is harmless."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiobjects import node, pod, service
from apiserver import ApiServer
from k8snet.cli import execute, parser
from k8snet.cli.completion import SCRIPTS, candidates
from k8snet.cluster.complete import HARMLESS, complete, namespaces
from k8snet.cluster.inventory import Inventory, Pod
from k8snet.cluster.names import parse, resolve_from, resolve_to
from k8snet.lab.cluster import INVENTORY, objects

SOURCE = Path(__file__).parents[2] / "tracer"
EVIL = ("$(touch pwned)", "`touch pwned`", "a;touch pwned", "a b", "-rf", "a\nb", "x'y", "~root", "!1", "\x1b[31m")


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab as a file, with pods that nobody can have made through an API server."""
    document: dict[str, Any] = objects(INVENTORY)
    pod = next(item for item in document["items"] if item["kind"] == "Pod")
    for name in EVIL:
        document["items"].append(pod | {"metadata": {"name": name, "namespace": "shop"}})
        document["items"].append(pod | {"metadata": {"name": "x", "namespace": name}})
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(document))
    monkeypatch.setenv("K8SNET_INVENTORY", str(path))
    return path


def offered(*words: str) -> tuple[str, list[str]]:
    return candidates(parser(), words)


@pytest.mark.parametrize(
    ("words", "kind", "found"),
    [
        pytest.param(["tra"], "words", ["trace"], id="command"),
        pytest.param(["lab", "u"], "words", ["up"], id="action"),
        pytest.param(["trace", "--read"], "words", ["--read-only"], id="option"),
        pytest.param(["trace", "-o", "j"], "words", ["json", "jsonl"], id="choice"),
        pytest.param(["trace", "--output=w"], "words", ["--output=wide"], id="choice-after-equals"),
        pytest.param(["trace", "--inventory", ""], "files", [], id="file"),
        pytest.param(["completion", ""], "words", ["bash", "fish", "zsh"], id="positional"),
        pytest.param(["lab", "run", "forward-policy-drop-v"], "words", ["forward-policy-drop-vxlan"], id="scenario"),
        pytest.param(["trace", "-n", ""], "words", ["kube-system", "shop"], id="namespaces"),
        pytest.param(["trace", "--from", "sh"], "nospace", ["shop/"], id="namespace"),
        pytest.param(["trace", "--from", "shop/c"], "words", ["shop/cart"], id="pod"),
        pytest.param(["trace", "--from=shop/po/c"], "words", ["--from=shop/po/cart"], id="kind"),
        pytest.param(["trace", "--from", "pod/shop/c"], "words", ["pod/shop/cart"], id="as-reports-print-it"),
        pytest.param(["trace", "--from", "no/"], "words", ["no/node-1", "no/node-2"], id="node"),
        pytest.param(["trace", "--from", "shop/s"], "words", [], id="services-are-no-clients"),
        pytest.param(["trace", "--to", "shop/s"], "words", ["shop/statsd", "shop/svc/"], id="services"),
        pytest.param(["trace", "--to", "ex"], "words", ["external"], id="external"),
        pytest.param(["trace", "--to", "shop/svc/web:h"], "words", ["shop/svc/web:http"], id="port"),
        pytest.param(["trace", "--to", "shop/ep/web:"], "words", [f"shop/ep/web:{p}" for p in (8080, "http")], id="ep"),
        pytest.param(["trace", "--to", "shop/web-1:h"], "words", ["shop/web-1:http"], id="pod-ports"),
        pytest.param(
            ["trace", "--to", "no/node-1:"], "words", ["no/node-1:30080", "no/node-1:30081"], id="node-ports"
        ),
        pytest.param(["trace", "-n", "shop", "--from", "ca"], "words", ["cart"], id="namespace-given"),
        pytest.param(["trace", "--namespace=kube-system", "--to=kube-d"], "words", ["--to=kube-dns"], id="ns"),
        pytest.param(["watch", "shop/c"], "words", ["shop/cart"], id="watched-pod"),
        pytest.param(["watch", "--until", "NO_REP"], "words", ["NO_REPLY"], id="finding"),
        pytest.param(["nonsense", "--from", "s"], "words", [], id="no-such-command"),
    ],
)  # fmt: skip
def test_what_is_offered(inventory: Path, words: list[str], kind: str, found: list[str]) -> None:
    assert offered(*words) == (kind, found)


def test_the_inventory_on_the_line_comes_first(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K8SNET_INVENTORY", "/no/such/file")
    for given_ in ([f"--inventory={inventory}"], ["--inventory", str(inventory)]):
        assert offered("trace", *given_, "--from", "shop/c") == ("words", ["shop/cart"])
    for nothing in ("-", "/", "~nobody-of-that-name/x", "/dev/zero", ""):
        assert offered("trace", f"--inventory={nothing}", "--from", "shop/c") == ("words", [])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param(["--from", ""], ["blue/", "cart", "no/", "po/", "shop/"], id="nothing-yet"),
        pytest.param(["--from", "blue/"], ["blue/po/", "blue/web"], id="other-namespace"),
        pytest.param(["--from", "deploy/"], ["deploy/cart"], id="workload"),
        pytest.param(["--to", "blue/svc/"], ["blue/svc/pay"], id="service"),
        pytest.param(["--to", "blue/svc/pay:"], ["blue/svc/pay:80", "blue/svc/pay:http"], id="ports"),
        pytest.param(["-n", "b"], ["blue"], id="namespaces"),
        pytest.param(["--no-api", "--from", ""], [], id="not-asked"),
        pytest.param(["--context", "other", "--from", ""], [], id="no-such-context"),
        pytest.param(["--from", "a b/"], [], id="no-name"),
    ],
)
def test_the_api_is_asked_where_there_is_no_file(
    words: list[str], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "cart"}}
    with ApiServer() as server:
        server.put(pod("shop/cart", "10.1.0.1", node="node-1"), pod("blue/web", "10.1.0.2"), node("node-1", "10.0.0.1"))
        server.put(service("blue/pay", "10.96.0.80"), deployment)
        monkeypatch.delenv("K8SNET_INVENTORY", raising=False)
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config", namespace="shop")))
        assert offered("trace", *words)[1] == found


def test_no_secret_command_is_offered(inventory: Path) -> None:
    commands = ["agent", "check", "cleanup", "completion", "install", "join", "lab", "map", "replay", "trace", "watch"]
    assert offered("") == ("words", commands)


@given(st.text(alphabet="shopcartwebvnd/:-=.10", max_size=14), st.booleans())
def test_what_is_offered_goes_on_from_what_was_typed_and_means_something(begun: str, client: bool) -> None:
    for word in complete(begun, INVENTORY, client=client):
        assert word.startswith(begun)
        if not word.endswith("/"):
            assert (resolve_from if client else resolve_to)(word, INVENTORY).text or parse(word).name == "external"


@given(st.text(max_size=6), st.text(max_size=6), st.sampled_from(["", "s", "x/", "po/", "x/po/"]))
def test_no_word_that_a_shell_would_understand_is_offered(namespace: str, name: str, begun: str) -> None:
    pod = Pod(namespace, name, "", None, (), False, "Running")
    known = Inventory(pods=(pod,))
    for word in (*complete(begun, known, client=True), *namespaces(begun, known)):
        assert HARMLESS.fullmatch(word)
        assert all(c.isascii() and (c.isalnum() or c in "./:-") for c in word)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


def test_an_answer_costs_little_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """200 pods as kubectl prints them, 4 MB; processor time, for other tests run beside this one."""
    document = objects(INVENTORY)
    pod = next(item for item in document["items"] if item["kind"] == "Pod")
    for number in range(200):
        ballast: dict[str, Any] = {"managedFields": [{"f": {f"f:{n}": {} for n in range(900)}}]}
        document["items"].append(pod | {"metadata": {"name": f"web-{number}", "namespace": "many", **ballast}})
    path = tmp_path / "many.json"
    path.write_text(json.dumps(document))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "k8snet", "__complete", "--", "trace", "--from", "many/"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "K8SNET_INVENTORY": str(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(done.stdout.splitlines()) == 202
    assert not {"rich", "pyroute2", "kubernetes", "difflib"} & set(done.stderr.replace("|", " ").split())
    # 0.14 s measured; twice and more for a machine that is slower.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


# From here: the shells themselves, at a terminal.

STARTED = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
PREPARED = {
    "bash": "source <(k8snet completion bash)",
    "zsh": "autoload -Uz compinit; compinit -u -D; source <(k8snet completion zsh)",
    "fish": "k8snet completion fish | source",
}


class Terminal:
    """An interactive shell."""

    def __init__(self, shell: str, where: Path) -> None:
        tools = where / "bin"
        tools.mkdir()
        (tools / "k8snet").write_text(f'#!/bin/sh\nexec {sys.executable} -m k8snet "$@"\n')
        (tools / "k8snet").chmod(0o755)
        # Says which words it was given, each on a line.
        (tools / "words").write_text('#!/bin/sh\nprintf "<%s>\\n" "$@"\n')
        (tools / "words").chmod(0o755)
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(SOURCE),
            "K8SNET_INVENTORY": os.environ["K8SNET_INVENTORY"],
            "HOME": str(where),
            "PS1": "ready> ",
            "TERM": "xterm",
        }
        self._process, self._fd = self._start(STARTED[shell], environment, where)
        self.said = ""
        self.type(PREPARED[shell] + "; echo prep''ared\n", "prepared")

    @staticmethod
    def _start(command: list[str], environment: dict[str, str], where: Path) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = pty.openpty()
        command = ["setsid", "--ctty", "--wait", *command]  # fish wants a terminal that is its own
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=where)
        os.close(theirs)
        return process, ours

    def type(self, text: str, until: str, seconds: float = 20) -> str:
        """Type, and wait until that is printed; what was printed since."""
        self.said = ""
        os.write(self._fd, text.encode())
        deadline = time.monotonic() + seconds
        while until not in self.said and time.monotonic() < deadline:
            if select.select([self._fd], [], [], 0.2)[0]:
                self.said += os.read(self._fd, 65536).decode(errors="replace")
        assert until in self.said, f"{text!r} gave {self.said!r}"
        return self.said

    def close(self) -> None:
        os.close(self._fd)
        self._process.kill()
        self._process.wait()


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_shell_completes_names(shell: str, inventory: Path, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    terminal = Terminal(shell, tmp_path)
    try:
        terminal.type("k8snet trace --from shop/po/car\t", "cart")
        terminal.type(" --to sho\tsvc/payme\t", "payments")
        terminal.type("\b:ht\t", "http")
        # The line as it stands, run by another command; what the shell makes of it are the words that were meant.
        printed = terminal.type("\x01words \x05\n", "<shop/svc/payments:http>")
        assert "<shop/po/cart>" in printed
        terminal.type("words --to=; k8snet trace --to=shop/svc/stats\t", "statsd")
        assert not list(tmp_path.glob("pwned"))
    finally:
        terminal.close()
