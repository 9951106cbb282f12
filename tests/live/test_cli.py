"""The command line end to end: bad input, Ctrl-C at any moment, what ends up where. Real commands, real labs.

Each command is a process of its own whose environment carries a mark; what it forks inherits the mark, so that
`Node.clean` can say of every process on the machine whether it is one that should have gone. Kernel state is asked of
nft and /proc, never of k8snet.
"""

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
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import k8snet
from k8snet.errors import K8snetError
from k8snet.kernel.netns import entered, scan
from k8snet.lab import lab as labs
from k8snet.lab.cluster import INVENTORY, objects
from k8snet.lab.lab import Lab
from k8snet.lab.namespaces import pin_of, pins, unpin
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and BPF")
# Python needs five seconds to start in an emulated machine, and these tests start it hundreds of times.
many = pytest.mark.skipif("K8SNET_VM" in os.environ, reason="starts too many processes for an emulated machine")

PACKAGE: Final = Path(k8snet.__file__).parent
MARK: Final = "K8SNET_TEST_RUN"
TABLE: Final = "k8snet_trace"
LOGGER: Final = "/proc/sys/net/netfilter/nf_log/2"
NOBODY: Final = (
    # Not root, yet able to read a clone below /root.
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
POWERLESS_ROOT: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
# A shell says 130 of both. CPython ends itself by SIGINT when an exec("...") (of dataclasses) was interrupted, even if
# the KeyboardInterrupt was caught further out.
INTERRUPTED: Final = (130, -signal.SIGINT)
UP_ALREADY: Final = "a lab is up"


# --- how to run it --------------------------------------------------------------------------------------------------


def limit(seconds: float) -> float:
    """A time that never passes unless something hangs."""
    return seconds * patience()


def has(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """It comes true in time."""
    deadline = time.monotonic() + limit(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"\nexit code {self.code}\n{self.out}\n--- stderr\n{self.err}"


class Node:
    """Runs commands, and says what they have left behind."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.environment = {**os.environ, MARK: self._mark, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "PYTHONUNBUFFERED"):
            self.environment.pop(name, None)
        self._logger = self._read_logger()
        self.places: tuple[str, ...] = ()  # netns of a lab, to look for leftovers in

    def start(self, *arguments: str, before: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
        """Start `k8snet ARGUMENTS` in a session of its own, as a shell's job; `before`: a program that starts it."""
        environment = {**self.environment, **more.pop("env", {})}
        return subprocess.Popen(
            [*before, sys.executable, "-m", "k8snet", *arguments],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "start_new_session": True,
                "env": environment,
                **more,
            },
        )

    def run(self, *arguments: str, before: Sequence[str] = (), **more: Any) -> Done:
        """Run `k8snet ARGUMENTS` to its end."""
        return finished(self.start(*arguments, before=before, **more))

    def processes(self) -> dict[int, str]:
        """Living processes that a command of ours has left."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                ours = entry.name.isdigit() and self._mark.encode() in (entry / "environ").read_bytes()
                if ours and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
        return found

    def end(self) -> None:
        """Kill what a test that failed has left running."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What is there that should have gone."""
        found = [f"process {pid} {name}" for pid, name in self.processes().items()]
        if labs.current() is None:  # else what is there is that lab's
            found += labs.leftovers()
        for path in ("/proc/self/ns/net", *self.places):
            command = ["nsenter", f"--net={path}", "nft", "list", "tables"]
            listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            found += [f"{line} in {path}" for line in listed.splitlines() if TABLE in line]
        if self._read_logger() != self._logger:
            found.append(f"{LOGGER} of the host")
        return found

    def clean(self, seconds: float = 10.0) -> bool:
        """Nothing is left, at once or as soon as a guardian has done its work."""
        return has(lambda: not self.leftovers(), seconds)

    @staticmethod
    def _read_logger() -> str:
        try:
            return Path(LOGGER).read_text(encoding="ascii")
        except OSError:
            return ""


def finished(process: subprocess.Popen[str], seconds: float = 60.0) -> Done:
    """Wait for the end of a command; what hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=limit(seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"it hangs{Done(-1, out, err)}")
    assert "Traceback" not in err, err
    assert "Exception ignored" not in err, err
    return Done(process.returncode, out or "", err or "")


def refused(done: Done, problem: str, remedy: str, code: int = 2) -> None:
    """One sentence and a next step on stderr, nothing on stdout; both given as regular expressions."""
    assert (done.code, done.out) == (code, ""), done
    lines = done.err.splitlines()
    assert len(lines) == 2, done
    assert lines[0].startswith("k8snet: "), done
    assert lines[1].startswith("  "), done
    assert re.search(problem, lines[0]), done
    assert re.search(remedy, lines[1]), done
    assert all(line.isprintable() for line in lines), done


def quiet(done: Done) -> bool:
    """On stderr stands at most that the trace has begun."""
    return bool(re.fullmatch(r"(tracing [ -~→]+\n)?", done.err))


def catches_signals(process: subprocess.Popen[str]) -> bool:
    """Python has started and `main` is running: before that, a signal ends a process as it ends any other."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
        if caught is not None:
            return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return process.poll() is not None


@pytest.fixture(scope="module")
def machine() -> Node:
    return Node()


@pytest.fixture
def node(machine: Node) -> Iterator[Node]:
    """The node: whatever a test does to it, nothing of it is there afterwards."""
    machine.places = ()
    yield machine
    clean, left = machine.clean(), machine.leftovers()
    machine.end()  # or each of the following tests would fail for this one's fault
    assert clean, left


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's Kubernetes in a file, whether or not the lab is up."""
    file = tmp_path_factory.mktemp("inventory") / "inventory.json"
    file.write_text(json.dumps(objects(INVENTORY)), encoding="utf-8")
    return file


def new_lab(backend: str = "iptables-nft") -> Lab:
    """A lab; waits for whoever else has one."""
    deadline = time.monotonic() + limit(120)
    while True:
        try:
            return Lab.up(backend)
        except K8snetError as error:
            if UP_ALREADY not in error.problem or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


# --- bad input that needs no lab ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["trace --from 192.0.2.1 --to 192.0.2.2:80", "map", "lab up", "lab run healthy-tcp-pod", "cleanup"],
)
@many
def test_not_root(node: Node, arguments: str) -> None:
    done = node.run(*arguments.split(), before=NOBODY)
    refused(done, "root|only root|may not", "sudo|root")


@many
def test_check_says_why_nothing_can_be_traced(node: Node) -> None:
    for before, why in ((NOBODY, r"uid 65534\n.*\n  fix:  sudo"), (hidden("/sys/kernel/btf"), "BTF.*does not exist")):
        done = node.run("check", before=before)
        assert (done.code, done.err) == (2, ""), done
        assert re.search(why, done.out), done
        assert "Nothing can be traced" in done.out, done


@pytest.mark.parametrize("arguments", ["trace --from 192.0.2.1 --to 192.0.2.2:80 --timeout 1s", "map"])
@many
def test_root_without_its_capabilities(node: Node, arguments: str) -> None:
    refused(node.run(*arguments.split(), before=POWERLESS_ROOT), "may not", "root")


def hidden(directory: str | Path, then: str = "true") -> tuple[str, ...]:
    """A program that starts another where `directory` is empty, in a mount namespace of its own."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "$0" && {then} && exec "$@"', str(directory))


def test_no_btf(node: Node) -> None:
    done = node.run("trace", "--from=192.0.2.1", "--to=192.0.2.2:80", before=hidden("/sys/kernel/btf"))
    refused(done, "BTF", "CONFIG_DEBUG_INFO_BTF")


@many
def test_no_compiled_programs(node: Node) -> None:
    done = node.run("trace", "--from=192.0.2.1", "--to=192.0.2.2:80", before=hidden(PACKAGE / "objects"))
    refused(done, "BPF programs are missing", "make bpf")


@many
def test_compiled_programs_cut_short(node: Node) -> None:
    cut = hidden(PACKAGE / "objects", 'echo nothing > "$0/k8snet.bpf.o"')
    refused(node.run("trace", "--from=192.0.2.1", "--to=192.0.2.2:80", before=cut), "BPF", "make bpf|k8snet check")


USAGE = [
    ("", "COMMAND", "k8snet --help"),
    ("tarce", "invalid choice: 'tarce'", "--help"),
    ("trace", "required: --from, --to", "k8snet trace --help"),
    ("trace --from shop/cart --to shop/svc/web --froom x", "unrecognized arguments: --froom", "--help"),
    ("trace --fro shop/cart --to shop/svc/web", "required: --from", "--help"),
    ("trace --from shop/cart --to shop/svc/web -o xml", "invalid choice: 'xml'", "--help"),
    ("trace --from shop/cart --to shop/svc/web --timeout 6x", "'6x' is not a duration", "--help"),
    ("trace --from shop/cart --to shop/svc/web --timeout 0", "'0' is not a time", "--help"),
    ("trace --from shop/cart --to shop/svc/web --wait 99999h", "'99999h' is not a time", "--help"),
    ("trace --from shop/cart --to shop/svc/web --send 0", "'0' is not a number from 1", "--help"),
    ("trace --from shop/cart --to shop/svc/web --send -1", "--send", "--help"),
    ("trace --from shop/cart --to shop/svc/web --count 1.5", "'1.5' is not a number", "--help"),
    ("lab", "ACTION", "k8snet lab --help"),
    ("lab run", "SCENARIO", "--help"),
    ("lab run nonsense", "'nonsense'", "k8snet lab list"),
    ("lab up --backend ebpf", "'ebpf'", "--help"),
]
NAMES = [
    ("shop/crat", "shop/svc/web:80", "no pod named 'crat' in namespace 'shop'", "did you mean shop/po/cart"),
    ("shop/cart", "shop/svc/wbe:80", "no service named 'wbe'", "did you mean shop/svc/web:80"),
    ("shop/cart", "shop/cart:80", "can mean 2 things", "choose one: shop/po/cart:80, shop/svc/cart:80"),
    ("shop/cart", "shop/web:81", "service shop/web has no port 81", "http .80/TCP"),
    ("shop/cart", "shop/web:grpc", "service shop/web has no port grpc", "http .80/TCP"),
    ("shop/cart", "shop/po/web-1:grpc", "no port named 'grpc'", "http .8080/TCP"),
    ("shop/cart", "shop/web:99999", "no port 99999", "1 to 65535"),
    ("shop/cart", "shop/web:80/sctp", "no SCTP port 80", "http .80/TCP"),
    ("shop/svc/web", "shop/svc/web:80", "a service opens no connections", "shop/po/web-1"),
    (
        "shop/deploy/cart",
        "shop/svc/web:80",
        "no Deployment named 'cart' in namespace 'shop'",
        "did you mean shop/po/cart",
    ),
    ("shop/cart", "nowhere/svc/web:80", "namespace 'nowhere'", "did you mean shop/svc/web:80"),
    ("shop//cart", "shop/svc/web:80", "is not a name", "NAMESPACE/"),
    ("", "shop/svc/web:80", "'' is not a name", "NAMESPACE/"),
    ("shop/cart", "", "'' is not a name", "NAMESPACE/"),
    ("shop/\x1b[31mcart", "shop/svc/web:80", r"\\x1b\[31mcart' is not a name", "NAMESPACE/"),
]


@pytest.mark.parametrize(("arguments", "problem", "remedy"), [pytest.param(*case, id=case[0] or "-") for case in USAGE])
@many
def test_usage(node: Node, arguments: str, problem: str, remedy: str) -> None:
    refused(node.run(*arguments.split()), problem, remedy)


@pytest.mark.parametrize(("client", "server", "problem", "remedy"), NAMES)
@many
def test_names(node: Node, inventory: Path, client: str, server: str, problem: str, remedy: str) -> None:
    done = node.run("trace", f"--inventory={inventory}", "--from", client, "--to", server, "--send=1")
    refused(done, problem, remedy)


@pytest.mark.parametrize(
    ("more", "problem", "remedy"),
    [
        ("--dns web.shop", "nothing is to be sent", "--send 1"),
        ("--dns web.shop --send 1 --protocol tcp", "--dns asks over UDP, not over tcp", "--protocol"),
        ("--dns web..shop --send 1", "'web..shop' is not a DNS name", "web.shop.svc.cluster.local"),
        (f"--dns {'x' * 64} --send 1", "is not a DNS name", "web.shop.svc.cluster.local"),
        ("--protocol udp", "has no UDP port dns-tcp", "dns-tcp .53/TCP"),
        ("--inventory missing.json", "missing.json: no such file", "kubectl get pods"),
        ("--inventory /", "Is a directory", "kubectl get pods"),
    ],
)
@many
def test_options_that_do_not_fit(node: Node, inventory: Path, more: str, problem: str, remedy: str) -> None:
    to = "kube-system/svc/kube-dns:dns-tcp" if "udp" in more else "kube-system/svc/kube-dns"
    done = node.run("trace", f"--inventory={inventory}", "--from", "shop/cart", "--to", to, *more.split())
    refused(done, problem, remedy)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\0\xff\xfe", "not", id="binary"),
        pytest.param(b"pods:\n- cart\n", "not JSON at line 1", id="yaml"),
        pytest.param(b'{"kind": "List", "items": [', "not JSON", id="cut-short"),
        pytest.param(b"[]", "expected Kubernetes objects", id="another-document"),
        pytest.param(b'{"kind": "List"}', "no items", id="no-items"),
        pytest.param(b'{"kind": "Pod", "metadata": {"name": "cart"}, "spec": {}}', "metadata.namespace", id="no-field"),
        pytest.param(
            b'{"kind": "Pod", "metadata": {"name": "\\u001b[31mx", "namespace": "a"}, "spec": 3}', "spec", id="hostile"
        ),
        pytest.param(b'{"kind": "ConfigMap", "metadata": {}}', "holds ConfigMap", id="no-pods"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
    ],
)
@many
def test_an_inventory_that_is_none(node: Node, tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "inventory.json"
    file.write_bytes(content)
    names = ("--from=shop/cart", "--to=shop/svc/web:80")
    refused(node.run("trace", f"--inventory={file}", *names), problem, "kubectl get pods")


@many
def test_map_wants_a_good_inventory_too(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    file.write_bytes(b"pods:\n- cart\n")
    refused(node.run("map", f"--inventory={file}"), "not JSON at line 1", "kubectl get pods")


@many
def test_an_inventory_of_a_cluster_that_has_nothing(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    file.write_text('{"kind": "List", "items": []}', encoding="utf-8")
    done = node.run("trace", f"--inventory={file}", "--from=shop/cart", "--to=shop/svc/web:80")
    refused(done, "no pod named 'cart'", "--inventory FILE, or name IP addresses")


def test_a_pod_of_another_node(node: Node, tmp_path: Path) -> None:
    cluster = objects(INVENTORY)
    (cart,) = (item for item in cluster["items"] if item["kind"] == "Pod" and item["metadata"]["name"] == "cart")
    cart["status"].update(podIP="192.0.2.99", podIPs=[{"ip": "192.0.2.99"}])
    cart["spec"]["nodeName"] = "node-7"
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(cluster), encoding="utf-8")
    done = node.run("trace", f"--inventory={file}", "--from=shop/cart", "--to=shop/svc/web:80", "--send=1")
    refused(done, "pod shop/cart is not on this node: it runs on node node-7", "there: k8snet trace .*--send=1")


@many
def test_an_address_that_is_not_on_this_node(node: Node) -> None:
    done = node.run("trace", "--from=192.0.2.99", "--to=192.0.2.98:80", "--send=1")
    refused(done, "192.0.2.99 is not on this node", "without|leave out --send")


def test_nothing_to_see(node: Node) -> None:
    done = node.run("trace", "--from=192.0.2.99", "--to=192.0.2.98:80", "--timeout=200ms", "-o", "json")
    assert done.code == 3, done
    assert json.loads(done.out)["verdict"] == "nothing-seen"
    assert quiet(done), done


# --- standard streams -----------------------------------------------------------------------------------------------


@many
def test_a_reader_that_goes_early(node: Node) -> None:
    for arguments in (("lab", "list"), ("--help",), ("map", "-o", "json")):
        read, write = os.pipe()
        os.close(read)
        process = node.start(*arguments, stdout=write)
        os.close(write)
        done = finished(process)
        assert (done.code, done.err) == (130, ""), done


@many
def test_a_full_disk(node: Node) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        refused(finished(node.start("lab", "list", stdout=full)), "no space left", "df")


@many
def test_closed_streams(node: Node) -> None:
    for closing in ("exec 1>&-", "exec 0<&- 1>&- 2>&-"):
        before = ("sh", "-c", f'{closing}; exec "$@"', "sh")
        assert node.run("lab", "list", before=before).code == 0
        done = node.run("lab", "run", "nonsense", before=before)
        assert done.code == 2, done


@many
def test_help_imports_nothing_heavy(node: Node) -> None:
    program = (
        "import sys\nfrom k8snet.cli import execute\n"
        "for words in (['--help'], ['trace', '--help'], ['lab', 'list', '--help'], ['check', '--help']):\n"
        "    execute(words)\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=node.environment
    )
    heavy = re.compile(r"(rich|pyroute2|kubernetes|scapy|ctypes|asyncio|k8snet\.(lab|kernel|trace|flow)\b)")
    assert not [module for module in done.stderr.split() if heavy.match(module)]


# --- interruption of a command that owns its lab --------------------------------------------------------------------

SCENARIO: Final = ("lab", "run", "forward-policy-drop")


def interrupted(node: Node, after: float, how: signal.Signals, *arguments: str) -> Done:
    """Start it, signal its whole group as a terminal does `after` seconds into main(), wait for the end."""
    deadline = time.monotonic() + limit(120)
    while True:
        process = node.start(*arguments)
        assert has(lambda: catches_signals(process))  # noqa: B023 - called at once
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        done = finished(process)
        if UP_ALREADY not in done.err or time.monotonic() > deadline:
            return done
        time.sleep(0.05)


def ended_well(done: Done, own: tuple[int, ...]) -> None:
    """130 and no report, or a whole report and its own exit code; nothing else was said."""
    assert "k8snet:" not in done.err, done
    if done.out:
        assert done.code in own, done
        assert "connection" in done.out, done
    else:
        assert done.code in INTERRUPTED, done


@pytest.fixture
def no_lab(machine: Node) -> None:
    """Nobody's lab is up, and none has left anything."""
    if labs.leftovers() and labs.current() is None:
        machine.run("cleanup")
    assert has(lambda: not labs.leftovers(), 60)


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize("step", [*range(0, 22, 2), 30, 40, 44, 48])
@many
def test_ctrl_c_at_any_moment_of_a_scenario(node: Node, step: int) -> None:
    ended_well(interrupted(node, step * 0.05, signal.SIGINT, *SCENARIO), own=(0, 1))


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize("step", [1, 6, 12, 24])
@many
def test_sigterm_is_like_ctrl_c(node: Node, step: int) -> None:
    ended_well(interrupted(node, step * 0.05, signal.SIGTERM, *SCENARIO), own=(0, 1))


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize("step", [1, 4, 8, 12, 24])
@many
def test_sigkill_leaves_nothing_but_for_a_moment(node: Node, step: int) -> None:
    done = interrupted(node, step * 0.05, signal.SIGKILL, *SCENARIO)
    assert done.code == -signal.SIGKILL, done
    assert node.clean(), node.leftovers()
    for _ in range(2):
        assert node.run("cleanup").code == 0


# --- with a lab -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standing(machine: Node) -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


@pytest.fixture
def lab(standing: Lab, node: Node) -> Lab:
    """One unbroken lab for all of the rest."""
    node.places = tuple(map(str, pins()))
    return standing


def trace(lab: Lab, *arguments: str) -> tuple[str, ...]:
    """A trace from the pod cart to the Service web, whose names come from the lab."""
    return (
        *("trace", f"--inventory={lab.inventory_file}", "--from=shop/cart", "--to=shop/svc/web:80"),
        *arguments,
    )


def connect(lab: Lab, client: str, address: tuple[str, int]) -> None:
    """A TCP connection from inside a pod, by a socket that k8snet knows nothing of."""
    with entered(lab.netns_of(client).path):
        sock = socket.socket()
    with sock:
        sock.settimeout(limit(5))
        sock.connect(address)


def watched(lab: Lab, pod: str = "shop/cart") -> bool:
    """A trace is looking: its table, the last thing that it sets up, is in the pod's netns."""
    return TABLE in lab.run_in(pod, ["nft", "list", "tables"]).stdout


def test_a_second_lab(lab: Lab, node: Node) -> None:
    refused(node.run("lab", "up"), "a lab is up already, and there can be only one", "k8snet lab down")
    assert lab.run_in("shop/cart", ["true"]).returncode == 0


def test_json_is_one_document_that_fits_the_schema(lab: Lab, node: Node) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    done = node.run(*trace(lab, "--send=1", "-o", "json"))
    assert done.code == 0, done
    assert quiet(done), done
    report = json.loads(done.out)
    jsonschema.validate(report, schema)
    assert report["verdict"] == "delivered"
    assert (report["connections"], report["answered"]) == (1, 1)
    assert not report["findings"]


SCHEMA: Final = Path(__file__).parents[2] / "docs" / "schema" / "trace-report.schema.json"


@many
def test_jsonl_is_lines_of_json(lab: Lab, node: Node) -> None:
    done = node.run(*trace(lab, "--send=2", "-o", "jsonl"))
    assert (done.code, done.err) == (0, ""), done
    *hops, report = map(json.loads, done.out.splitlines())
    assert {hop["kind"] for hop in hops} == {"TraceHop"}
    assert report["kind"] == "TraceReport"
    assert report["connections"] == 2


@many
def test_jsonl_whose_reader_goes_in_the_middle(lab: Lab, node: Node) -> None:
    process = node.start(*trace(lab, "--send=20", "-o", "jsonl"))
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["kind"] == "TraceHop"
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert (process.wait(limit(60)), errors) == (130, "")
    process.stderr.close()


@pytest.mark.parametrize(
    "env",
    [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}],
    ids=lambda env: " ".join(env) or "plain",
)
@many
def test_a_pipe_gets_plain_text(lab: Lab, node: Node, env: dict[str, str]) -> None:
    done = node.run(*trace(lab, "--send=1"), env=env)
    assert done.code == 0, done
    assert quiet(done), done
    assert "DELIVERED" in done.out
    assert done.out.replace("\n", "").isprintable(), done
    if "PYTHONIOENCODING" in env:
        assert done.out.isascii()
    width = int(env.get("COLUMNS", "100"))
    assert max(map(len, done.out.splitlines())) <= width, done


def test_addresses_alone_do_without_an_inventory(lab: Lab, node: Node) -> None:
    done = node.run("trace", "--from=10.244.1.10", "--to=10.244.1.11:8080", "--send=1", "-o", "json")
    assert done.code == 0, done
    report = json.loads(done.out)
    assert report["verdict"] == "delivered"
    assert report["flow"]["client"]["pod"] is None


@many
def test_a_node_sends_from_the_address_that_is_traced(lab: Lab, node: Node) -> None:
    """Left alone it would take that of the bridge that leads to the pod."""
    names = (f"--inventory={lab.inventory_file}", "--from=no/node-1", "--to=shop/po/web-1:8080")
    done = node.run("trace", *names, "--send=1", "-o", "json")
    assert done.code == 0, done
    assert json.loads(done.out)["flow"]["client"]["ip"] == "192.168.50.1"


@many
def test_a_port_is_needed_to_send_to(lab: Lab, node: Node) -> None:
    done = node.run("trace", "--from=10.244.1.10", "--to=10.244.1.11", "--send=1", "--protocol=tcp")
    refused(done, "--send needs a port", "--to 10.244.1.11:PORT")


@many
def test_two_traces_at_once(lab: Lab, node: Node) -> None:
    both = [node.start(*trace(lab, "--send=5", "-o", "json")) for _ in range(2)]
    for done in map(finished, both):
        assert done.code == 0, done
        report = json.loads(done.out)
        assert report["verdict"] == "delivered"
        assert not report["findings"]


# --- looking on -----------------------------------------------------------------------------------------------------


def test_a_connection_that_somebody_else_makes(lab: Lab, node: Node) -> None:
    process = node.start(*trace(lab, "--count=1", "-o", "json"))
    assert has(lambda: watched(lab), 30)
    connect(lab, "shop/payments", ("10.96.0.80", 80))  # of no interest
    connect(lab, "shop/cart", ("10.96.0.82", 80))
    assert process.poll() is None
    connect(lab, "shop/cart", ("10.96.0.80", 80))
    done = finished(process)
    assert done.code == 0, done
    report = json.loads(done.out)
    assert (report["connections"], report["answered"]) == (1, 1)
    assert report["flow"]["client"]["pod"] == "shop/cart"
    assert report["flow"]["server"]["service"] == "shop/web"


@many
def test_nothing_is_sent(lab: Lab, node: Node) -> None:
    done = node.run(*trace(lab, "--timeout=300ms"))
    assert done.code == 3, done
    assert "NOTHING SEEN" in done.out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@many
def test_interrupted_with_nothing_seen(lab: Lab, node: Node, how: signal.Signals) -> None:
    process = node.start(*trace(lab))
    assert has(lambda: watched(lab), 30)
    os.killpg(process.pid, how)
    done = finished(process)
    assert (done.code, done.out) == (130, ""), done
    assert quiet(done), done


@many
def test_interrupted_with_something_seen(lab: Lab, node: Node) -> None:
    process = node.start(*trace(lab))
    assert has(lambda: watched(lab), 30)
    connect(lab, "shop/cart", ("10.96.0.80", 80))
    time.sleep(0.5)  # the answer is to be seen, too
    os.killpg(process.pid, signal.SIGINT)
    done = finished(process)
    assert done.code == 0, done
    assert "1 connection, 1 answered" in done.out


@pytest.mark.parametrize("step", range(15))
@many
def test_ctrl_c_at_any_moment_of_a_trace(lab: Lab, node: Node, step: int) -> None:
    ended_well(interrupted(node, step * 0.05, signal.SIGINT, *trace(lab, "--send=3")), own=(0, 3))


@many
def test_ctrl_c_again_and_again(lab: Lab, node: Node) -> None:
    process = node.start(*trace(lab, "--send=3"))
    assert has(lambda: catches_signals(process))
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    ended_well(finished(process), own=(0, 3))


# --- names that would be taken for something else ---------------------------------------------------------------------

EVIL: Final = "-\x1b]0;owned\x07\x1b[2J[bold red]\u202e\r\n"


@pytest.fixture
def hostile(lab: Lab, tmp_path: Path) -> Path:
    """The lab's inventory with names that no API server would let through."""
    cluster = objects(INVENTORY)
    for item in cluster["items"]:
        if item["kind"] != "EndpointSlice":
            item["metadata"]["name"] += EVIL
    file = tmp_path / "hostile.json"
    file.write_text(json.dumps(cluster), encoding="utf-8")
    return file


ADDRESSES: Final = ("--from=10.244.1.10", "--to=10.96.0.80:80")


@many
def test_hostile_names_are_shown_not_obeyed(lab: Lab, node: Node, hostile: Path) -> None:
    done = node.run("trace", f"--inventory={hostile}", *ADDRESSES, "--send=1", "-o", "wide", env={"COLUMNS": "400"})
    assert done.code in (0, 1), done
    assert r"\x1b]0;owned\x07\x1b[2J[bold red]\u202e\r\n" in done.out
    assert done.out.replace("\n", "").isprintable()
    assert quiet(done), done
    table = node.run("map", f"--inventory={hostile}", "-o", "wide")
    assert table.out.replace("\n", "").isprintable()
    assert "[bold red]" in table.out
    document = json.loads(node.run("trace", f"--inventory={hostile}", *ADDRESSES, "--send=1", "-o", "json").out)
    assert document["flow"]["client"]["pod"] == f"shop/cart{EVIL}"


@many
def test_hostile_names_in_an_error(lab: Lab, node: Node, hostile: Path) -> None:
    done = node.run("trace", f"--inventory={hostile}", "--from=shop/cart", "--to=10.96.0.80:80")
    refused(done, "no pod named 'cart'", "see: kubectl get pods,services -n shop")
    assert "owned" not in done.err  # what cannot be a name is not offered as one


# --- a terminal -----------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal and the command in its foreground."""

    def __init__(self, node: Node, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        self.seen = b""
        theirs = self._theirs
        self.process = node.start(
            *arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=False,
            preexec_fn=lambda: os.login_tty(theirs),
            env={"TERM": "xterm-256color", **(env or {})},
        )

    def read(self, until: Callable[[bytes], object], seconds: float = 30.0) -> None:
        """Read what it writes, until that is enough or all."""
        deadline = time.monotonic() + limit(seconds)
        while not until(self.seen):
            assert time.monotonic() < deadline, self.seen
            if select.select([self._ours], [], [], 0.05)[0]:
                self.seen += os.read(self._ours, 65536)
            elif self.process.poll() is not None:
                return

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """Its exit code; the terminal must be as it was."""
        self.read(lambda _: False)
        assert termios.tcgetattr(self._theirs) == self.before
        # Whatever hid the cursor has shown it again, and no other screen is left open.
        assert self.seen.count(b"\x1b[?25l") <= self.seen.count(b"\x1b[?25h"), self.seen
        assert self.seen.rfind(b"\x1b[?25l") <= self.seen.rfind(b"\x1b[?25h"), self.seen
        assert b"\x1b[?1049h" not in self.seen
        assert b"Traceback" not in self.seen, self.seen
        return self.process.wait()

    def hang_up(self) -> int:
        """Close the window; the exit code of what ran in it."""
        os.close(self._ours)
        self._ours = -1
        return self.process.wait(limit(30))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in {self._ours, self._theirs} - {-1}:
            os.close(end)


@many
def test_on_a_terminal_hops_appear_as_they_happen(lab: Lab, node: Node) -> None:
    with contextlib.closing(Terminal(node, *trace(lab, "--count=2"))) as terminal:
        assert has(lambda: watched(lab), 30)
        connect(lab, "shop/cart", ("10.96.0.80", 80))
        terminal.read(lambda seen: b"vethcart" in seen)
        assert b"DELIVERED" not in terminal.seen
        connect(lab, "shop/cart", ("10.96.0.80", 80))
        assert terminal.end() == 0
        assert b"DELIVERED" in terminal.seen
        assert b"\x1b[1;32m" in terminal.seen


@pytest.mark.parametrize("keys", [b"\x03", b"\x03\x03\x03"])
@many
def test_ctrl_c_on_a_terminal(lab: Lab, node: Node, keys: bytes) -> None:
    with contextlib.closing(Terminal(node, *trace(lab))) as terminal:
        terminal.read(lambda seen: b"waiting for the first packet" in seen)
        terminal.type(keys)
        assert terminal.end() == 130


@many
def test_a_terminal_that_is_closed(lab: Lab, node: Node) -> None:
    with contextlib.closing(Terminal(node, *trace(lab))) as terminal:
        assert has(lambda: watched(lab), 30)
        assert terminal.hang_up() == -signal.SIGHUP


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=lambda env: " ".join(env))
@many
def test_a_terminal_without_colours(lab: Lab, node: Node, env: dict[str, str]) -> None:
    with contextlib.closing(Terminal(node, *trace(lab, "--send=1"), env=env)) as terminal:
        assert terminal.end() == 0
    assert not re.search(rb"\x1b\[([0-9;]*;)?[349][0-9][;m]", terminal.seen), terminal.seen
    if "TERM" in env:
        assert b"\x1b" not in terminal.seen


@many
def test_hostile_names_on_a_terminal(lab: Lab, node: Node, hostile: Path) -> None:
    with contextlib.closing(Terminal(node, "trace", f"--inventory={hostile}", *ADDRESSES, "--send=3")) as terminal:
        assert terminal.end() in (0, 1)
    for bad in (b"\x1b]", b"\x07", b"\x1b[2J", "\u202e".encode()):
        assert bad not in terminal.seen
    assert b"[bold red]" in terminal.seen


# --- what changes while one looks, in labs that are not needed afterwards -------------------------------------------


@pytest.fixture
def own_lab(standing: Lab, node: Node, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab to be spoilt. The standing one makes room for it, for good."""
    standing.down()
    with new_lab(getattr(request, "param", "iptables-nft")) as lab:
        node.places = tuple(map(str, pins()))
        yield lab
        assert node.clean(), node.leftovers()  # while its netns are there to be looked at
        node.places = ()


def logger(netns: str) -> str:
    """Who gets what iptables-legacy's TRACE and LOG say of IPv4 packets in a netns."""
    with entered(netns):
        return Path(LOGGER).read_text(encoding="ascii").strip()


def kill_pod(lab: Lab, pod: str) -> None:
    """End a pod as a runtime does: its processes, then what pins its netns."""
    for pid in scan()[lab.netns_of(pod).inum].pids:
        os.kill(pid, signal.SIGKILL)
    unpin(pin_of(pod))


@many
def test_a_device_with_an_odd_name(own_lab: Lab, node: Node) -> None:
    odd = "\x1b[31m[red]é"
    for words in (("down",), ("name", odd), ("up",)):
        device = odd if words == ("up",) else "vethcart"
        own_lab.run_in("node-1", ["ip", "link", "set", device, *words], check=True)
    done = node.run(*trace(own_lab, "--send=1"))
    assert done.code in (0, 1), done
    assert r"\x1b[31m[red]" in done.out, done
    assert done.out.replace("\n", "").isprintable(), done
    assert r"\x1b[31m[red]é" in node.run("map", f"--inventory={own_lab.inventory_file}").out
    done = node.run("map", f"--inventory={own_lab.inventory_file}", env={"PYTHONIOENCODING": "ascii"})
    assert r"\x1b[31m[red]\xe9" in done.out, done


@pytest.mark.parametrize("pod", ["shop/cart", "shop/payments"])
@many
def test_a_pod_that_goes_while_one_looks(own_lab: Lab, node: Node, pod: str) -> None:
    names = (f"--inventory={own_lab.inventory_file}", "--from=shop/cart", "--to=shop/svc/payments:80")
    process = node.start("trace", *names, "--timeout=1500ms", "-o", "json")
    assert has(lambda: watched(own_lab), 30)
    connect(own_lab, "shop/cart", ("10.96.0.82", 80))
    kill_pod(own_lab, pod)
    done = finished(process)
    assert done.code in (0, 1, 3), done
    report = json.loads(done.out)
    assert report["connections"] == 1
    assert any(f"pod/{pod} went away" in note for note in report["notes"]), report["notes"]


@many
def test_a_client_that_goes_while_it_sends(own_lab: Lab, node: Node) -> None:
    process = node.start(*trace(own_lab, "--send=200", "--wait=500ms", "-o", "json"))
    assert has(lambda: watched(own_lab), 30)
    time.sleep(0.3)
    kill_pod(own_lab, "shop/cart")
    done = finished(process)
    assert done.code in (0, 1, 3), done
    report = json.loads(done.out)
    assert 0 < report["connections"] < 200
    assert any("went away" in note for note in report["notes"]), report["notes"]


@pytest.mark.parametrize("own_lab", ["iptables-legacy"], indirect=True)
@pytest.mark.parametrize("guardian_too", [False, True], ids=["alone", "with-its-guardian"])
@many
def test_a_killed_trace_is_cleaned_up(own_lab: Lab, node: Node, guardian_too: bool) -> None:
    """iptables-legacy: there a sysctl is changed too, which does not go with the process."""
    place = own_lab.netns_of("node-1")
    was = logger(place.path)
    process = node.start(*trace(own_lab))
    assert has(lambda: watched(own_lab), 30)
    assert has(lambda: logger(place.path) != was, 30)
    victims = node.processes()
    assert "k8snet-guardian" in victims.values()
    for pid in victims if guardian_too else (process.pid,):
        os.kill(pid, signal.SIGKILL)
    finished(process)
    if guardian_too:
        assert logger(place.path) != was
        assert f"netns {place.inum}" in node.run("cleanup").out
    assert has(lambda: logger(place.path) == was)
    assert node.clean(), node.leftovers()
    again = node.run("cleanup")
    assert again.code == 0, again
    assert str(place.inum) not in again.out


@pytest.mark.parametrize("own_lab", ["iptables-legacy"], indirect=True)
@pytest.mark.parametrize("step", range(0, 15, 3))
@many
def test_ctrl_c_sets_back_what_iptables_legacy_needed(own_lab: Lab, node: Node, step: int) -> None:
    places = [own_lab.netns_of(name).path for name in ("node-1", "shop/cart")]
    before = list(map(logger, places))
    ended_well(interrupted(node, step * 0.05, signal.SIGINT, *trace(own_lab, "--send=3")), own=(0, 3))
    assert list(map(logger, places)) == before
