"""`k8snet watch` as a process, in a lab that is broken: what it prints, how it ends, what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from apiserver import ApiServer
from k8snet.lab.cluster import objects
from k8snet.lab.lab import Lab
from k8snet.remote.spec import CAPABILITIES
from live.conftest import about_processes, patience
from live.test_cli import Done, Node, finished, has, refused

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and BPF"),
    about_processes,
]

SCHEMA: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "docs/schema/watch-report.schema.json").read_text("utf-8")
)
GOLDEN: Final = Path(__file__).parents[1] / "golden"
LINE: Final = {"$ref": "#/$defs/WatchAnomaly", "$defs": SCHEMA["$defs"]}
CONNECT: Final = ("timeout", "0.5", "bash", "-c", "exec 3<>/dev/tcp/10.96.0.80/80")
DROP: Final = "FORWARD_POLICY_DROP"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up() as running:
        yield running


@pytest.fixture
def inventory(lab: Lab, tmp_path: Path) -> str:
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(objects(lab.inventory)), encoding="utf-8")
    return str(file)


@pytest.fixture
def broken(lab: Lab) -> Iterator[Lab]:
    """A lab whose nodes forward nothing."""
    lab.run_in("node-1", ["iptables", "-P", "FORWARD", "DROP"], check=True)
    yield lab
    lab.run_in("node-1", ["iptables", "-P", "FORWARD", "ACCEPT"], check=True)


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """Runs commands; nothing of them is there afterwards."""
    made = Node()
    made.places = tuple(str(lab.netns_of(name).path) for name in ("node-1", "shop/cart"))
    yield made
    clean, left = made.clean(), made.leftovers()
    made.end()
    assert clean, left


class Watching:
    """`k8snet watch ARGUMENTS`, which has attached all probes."""

    def __init__(self, node: Node, inventory: str, *arguments: str, **more: Any) -> None:
        given = (f"--inventory={inventory}",) if inventory else ()
        self.process = node.start("watch", *given, *arguments, **more)
        assert self.process.stderr is not None
        began = self.process.stderr.readline()
        assert began.startswith("watching "), began + self.process.stderr.read()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> Done:
        """End it, as a person or systemd would."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> Done:
        """Wait for its end."""
        return finished(self.process)


def connect(lab: Lab, times: int = 1, pod: str = "shop/cart") -> None:
    for _ in range(times):
        lab.run_in(pod, CONNECT)


def documents(done: Done) -> list[dict[str, Any]]:
    """Each line by the schema; the last one is the report."""
    *lines, last = [json.loads(line) for line in done.out.splitlines()]
    for line in lines:
        Draft202012Validator(LINE).validate(line)
    Draft202012Validator(SCHEMA).validate(last)
    return [*lines, last]


def test_until_a_finding_comes(broken: Lab, node: Node, inventory: str) -> None:
    watching = Watching(node, inventory, "--until", "NO_ENDPOINTS", "--until", DROP)
    connect(broken, 3)
    done = watching.end()
    assert done.code == 1, done
    *lines, report = documents(done)
    assert lines[-1]["finding"]["code"] == DROP
    assert lines[-1]["flow"]["client"]["pod"] == "shop/cart"
    assert lines[-1]["flow"]["server"]["service"] == "shop/web"
    assert (report["until"], report["by_code"][DROP] >= 1) == (DROP, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupt_ends_it_with_the_summary(
    broken: Lab, node: Node, inventory: str, number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        watching = Watching(node, inventory, "-o", "text", stdout=file)
    connect(broken)
    assert has(lambda: "\n" in out.read_text("utf-8"))
    done = watching.interrupt(number)
    assert done.code == 1, done
    first, *_, last = out.read_text("utf-8").splitlines()
    assert re.match(r"\d\d:\d\d:\d\d  ✗ shop/cart → svc/shop/web:80  DROPPED on node-1 in FORWARD", first), first
    assert re.search(r"^✗ \d anomal(y|ies).*  6 pods, ", out.read_text("utf-8"), re.MULTILINE)
    assert "0 events lost" in last


def test_a_healthy_node_is_called_well(lab: Lab, node: Node, inventory: str) -> None:
    watching = Watching(node, inventory, "-o", "json", "--duration", "1500ms")
    connect(lab, 7)
    done = watching.end()
    assert done.code == 0, done
    report = json.loads(done.out)
    Draft202012Validator(SCHEMA).validate(report)
    assert (report["anomalies"], report["counts"]["connections"], report["counts"]["answered"]) == ([], 7, 7)
    assert report["node"]
    assert 0 < report["cost"]["memory_bytes"] < 1 << 30


def test_other_pods_are_left_out_and_then_nothing_can_be_said(broken: Lab, node: Node, inventory: str) -> None:
    watching = Watching(node, inventory, "shop/payments", "-o", "json")
    connect(broken, 2)
    done = watching.interrupt()
    report = json.loads(done.out)
    assert (done.code, report["pods"], report["anomalies"]) == (3, 1, []), done


def test_killed_it_leaves_nothing_behind(broken: Lab, node: Node, inventory: str, tmp_path: Path) -> None:
    """Neither tables nor processes; what --exec has started ends by its own limit, or by itself."""
    watching = Watching(node, inventory, "--exec", f"sh -c 'echo $$ >> {tmp_path}/ran; exec sleep 2'")
    connect(broken, 3)
    assert has(lambda: (tmp_path / "ran").exists())
    watching.process.kill()
    watching.process.communicate()
    assert node.clean(), node.leftovers()


def test_a_command_is_run_with_the_finding(broken: Lab, node: Node, inventory: str, tmp_path: Path) -> None:
    found = tmp_path / "found"
    watching = Watching(node, inventory, "--until", DROP, "--exec", f"tee -a {found}")
    connect(broken, 3)
    done = watching.end()
    assert done.code == 1, done
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    for line in lines:
        Draft202012Validator(LINE).validate(line)
    assert DROP in {line["finding"]["code"] for line in lines}


def ask(lab: Lab) -> None:
    """A DNS query, which is answered."""
    query = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + b"\3web\4shop\0" + struct.pack("!HH", 1, 1)
    code = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5); "
        f"s.sendto({query!r}, ('10.244.1.13', 53)); s.recv(512)"
    )
    lab.run_in("shop/cart", [sys.executable, "-c", code], check=True)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = str(answer.read(), "utf-8")
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


def test_metrics_are_there_to_be_scraped(lab: Lab, node: Node, inventory: str, request: pytest.FixtureRequest) -> None:
    port = free_port()
    watching = Watching(node, inventory, "--metrics", f":{port}")
    ask(lab)
    request.getfixturevalue("broken")
    connect(lab, 3)
    dropped = "k8snet_dropped_packets_total hook=forward namespace=shop pod= reason=NETFILTER_DROP"
    assert has(lambda: scraped(port).get(dropped, 0) >= 1)
    now = scraped(port)
    assert now["k8snet_watched_pods"] == 6
    assert now["k8snet_lost_events_total"] == 0
    assert now["k8snet_conntrack_entries_limit"] > 0
    assert now["k8snet_connections_total"] >= 1
    assert now["k8snet_dns_requests_total"] == 1
    answers = {
        name: value for name, value in now.items() if name.startswith("k8snet_dns_request_duration_seconds_count")
    }
    assert list(answers.values()) == [1]
    assert any(name.startswith("k8snet_finding_active code=") and value == 1 for name, value in now.items())
    assert watching.interrupt().code == 1


def test_a_dashboard_on_a_terminal(broken: Lab, node: Node, inventory: str) -> None:
    with Terminal(node, "watch", f"--inventory={inventory}") as terminal:
        assert terminal.shows("nothing has gone wrong so far")
        connect(broken, 2)
        assert terminal.shows("shop/cart → svc/shop/web:80")
        terminal.resize(40, 12)
        assert terminal.draws(lambda row: len(row) <= 40)
        terminal.type("q")
        done = terminal.end()
    assert done.code == 1, done
    summary = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.out.rpartition("\x1b[?1049l")[2]).split())
    assert re.match(r"✗ \d anomal(y|ies)", summary), done
    assert re.search(r"\d connections?, 0 answered, 0 events lost", summary), done


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, node: Node, *arguments: str) -> None:
        self._near, far = pty.openpty()
        self._size(far, 100, 30)
        self._read = b""
        self._process = node.start(
            *arguments,
            before=(sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
                    "os.execvp(sys.argv[1], sys.argv[1:])"),
            stdin=far, stdout=far, stderr=far, env={"TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(far)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._near)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def type(self, keys: str) -> None:
        os.write(self._near, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        self._size(self._near, columns, rows)
        self.read()
        self._read = b""

    def read(self) -> str:
        """All that has come so far, escape sequences included."""
        with contextlib.suppress(OSError):  # the other side is closed
            while select.select([self._near], [], [], 0.02)[0]:
                self._read += os.read(self._near, 65536)
        return self._read.decode(errors="replace")

    def shows(self, text: str) -> bool:
        return has(lambda: text in self.read(), 20)

    def draws(self, fits: Callable[[str], bool]) -> bool:
        """The newest whole screen's rows all fit."""

        def whole() -> bool:
            screens = self.read().split("\x1b[H")
            rows = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", row).strip("\r") for row in screens[-2].split("\n")] if len(
                screens) > 2 else []  # fmt: skip
            return bool(rows) and all(map(fits, rows))

        return has(whole)

    def end(self) -> Done:
        assert has(lambda: (self.read(), self._process.poll())[1] is not None, 20)
        return Done(self._process.returncode, self.read(), "")

    @staticmethod
    def _size(fd: int, columns: int, rows: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_the_capabilities_of_the_daemon_set_are_enough(broken: Lab, inventory: str) -> None:
    """As a container runtime starts it: these capabilities, /proc/sys read-only, a cgroup namespace of its own."""
    [held] = re.findall(r"^CapBnd:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    lacking = "" if int(held, 16) >> 24 & 1 else "SYS_RESOURCE"  # not everybody has it to give away
    kept = ",".join(f"+{name.lower()}" for name in CAPABILITIES if name != lacking)
    mounts = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec"
    watching = subprocess.Popen(
        [
            *("unshare", "--mount", "--cgroup", "sh", "-c", f'{mounts} "$@"', "sh"),
            *("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all"),
            *(
                sys.executable,
                "-m",
                "k8snet",
                "watch",
                f"--inventory={inventory}",
                "--until",
                DROP,
                "--memory",
                "448Mi",
            ),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None
    assert watching.stderr.readline().startswith("watching ")
    deadline = time.monotonic() + 10 * patience()
    while watching.poll() is None and time.monotonic() < deadline:
        connect(broken)
    out, err = watching.communicate(timeout=20 * patience())
    assert watching.returncode == 1, err
    assert json.loads(out.splitlines()[-1])["until"] == DROP


def test_names_come_from_the_api_with_no_more_than_the_daemon_sets_rights(
    broken: Lab, node: Node, tmp_path: Path
) -> None:
    """A Service that was made after the watch began, too."""
    found = yaml.safe_load_all((GOLDEN / "install" / "watch.yaml").read_text())
    [rules] = [x["rules"] for x in found if (x["kind"], x["metadata"]["name"]) == ("ClusterRole", "k8snet-watch")]
    items = objects(broken.inventory)["items"]
    web = [x for x in items if x["kind"] == "Service" and x["metadata"]["name"] == "web"]
    with ApiServer() as server:
        server.put(*(x for x in items if x not in web))
        for rule in rules:
            server.allow("watcher", " ".join(rule["verbs"]), " ".join(rule["resources"]))
        server.kubeconfig(tmp_path / "config", {"token": server.token("watcher")})
        watching = Watching(node, "", "--until", DROP, "--kubeconfig", str(tmp_path / "config"))
        server.put(*web)
        assert has(lambda: any(r.verb == "watch" and r.resource == "services" for r in server.requests))
        time.sleep(0.5)  # for the news to travel
        connect(broken, 3)
        done = watching.end()
    assert done.code == 1, done
    flows = [line["flow"] for line in documents(done)[:-1]]
    assert {(flow["client"]["pod"], flow["server"]["service"]) for flow in flows} == {("shop/cart", "shop/web")}
    assert not [r for r in server.requests if r.verb not in ("list", "watch")]


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (("--until", "NO_REPYL"), "--until NO_REPYL: no finding", "--until NO_REPLY"),
        (("shop/crat",), "no pod named 'crat'", "shop/po/cart"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_at_once(
    node: Node, inventory: str, arguments: tuple[str, ...], problem: str, remedy: str
) -> None:
    refused(node.run("watch", f"--inventory={inventory}", *arguments), problem, remedy)
