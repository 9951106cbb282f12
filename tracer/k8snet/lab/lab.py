"""The lab as a whole: bring it up, reach into it, take it down, and leave nothing whatever happens.

One forked process, the keeper, builds everything and lives as long as the lab; the pods' processes are its children
and die with it. The command that asked for the lab only waits for the keeper's word. When that command ends, however
it ends, the kernel signals the keeper, which takes the lab down (a lab of `lab up` gives this up once it stands). A
lock that the keeper holds says whether there is a lab, so that no stale file can; only a SIGKILL of the keeper itself
leaves something behind, the pins and two files, and the next `up` or `down` removes them.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from k8snet.cluster.inventory import Inventory, Node
from k8snet.errors import K8snetError
from k8snet.kernel.netns import Netns, entered, inum_of
from k8snet.lab import ipvs, kubeproxy, kubeproxy_nft, nameserver, servers, topology
from k8snet.lab.cluster import CLUSTER_CIDR, CLUSTER_CIDR6, INVENTORY, PODS, SERVICES, objects
from k8snet.lab.namespaces import Report, answer, enter_new, fork, outlive_parent, pin_of, pins, unpin
from k8snet.lab.needs import IPVS, missing
from k8snet.lab.wires import has_ipv6

BACKENDS: Final = ("iptables-nft", "iptables-legacy", "nftables")
EVERY_BACKEND: Final = (*BACKENDS, IPVS)  # scenarios that do not say otherwise are not made for the last
TOPOLOGIES: Final = tuple(topology.TOPOLOGIES)

HOME: Final = Path("/run/k8snet/lab")
INVENTORY_FILE: Final = HOME / "inventory.json"
_STATE: Final = HOME / "state.json"

# A keeper needs some milliseconds to go; emulated machines are a hundred times slower.
_GOING_S: Final = 20.0

DNS_POD: Final = "kube-system/dns"
SERVERS: Final[dict[str, tuple[servers.Server, ...]]] = {
    "shop/cart": (servers.Server("http", 8080),),
    "shop/web-1": (servers.Server("http", 8080),),
    "shop/web-2": (servers.Server("http", 8080), servers.Server("dns-udp", 53), servers.Server("dns-slow", 5300)),
    "shop/web-3": (servers.Server("http", 8080),),
    "shop/payments": (
        servers.Server("http", 8080),
        servers.Server("udp-echo", 7007),
        servers.Server("udp-silent", 8125),
    ),
    "kube-system/dns": (servers.Server("dns-udp", 53), servers.Server("dns-tcp", 53), servers.Server("dns-slow", 5300)),
    "internet": (servers.Server("http", 80), servers.Server("udp-echo", 7007)),
}


@dataclass(frozen=True, slots=True)
class State:
    """What the keeper wrote down about the lab it keeps."""

    keeper: int
    started: int  # of the keeper: field 22 of /proc/PID/stat, clock ticks since boot
    owner: int  # who asked for it
    backend: str
    topology: str
    persist: bool


class Lab:
    """A lab that is up. `with Lab.up() as lab:` takes it down at the end; see `down` for one that was left up."""

    def __init__(self, backend: str, topology: str, keeper: int) -> None:
        self.backend = backend
        self.topology = topology
        self.inventory: Inventory = INVENTORY
        self.inventory_file = INVENTORY_FILE
        self._keeper: int | None = keeper

    @classmethod
    def up(cls, backend: str = "iptables-nft", topology: str = "bridge", *, persist: bool = False) -> Self:
        """Build the lab; takes well below 2 s. It ends with the calling thread, unless `persist`.

        Raises K8snetError without root, for an unknown backend or topology, and while another lab is up.
        """
        _check(backend, topology)
        # Here and not in the keeper: it is the dearest part (0.2 s, many seconds in an emulated machine), and a suite
        # that builds twenty labs then pays once.
        import_module("pyroute2")
        life = partial(_keep, backend=backend, topology_name=topology, persist=persist)
        keeper, read = fork("k8snet-lab", life, dies_with_parent=signal.SIGTERM)
        try:
            answer(read)
        except BaseException:
            _reap(keeper)
            raise
        return cls(backend, topology, keeper)

    def down(self) -> None:
        """Take it down and wait until it is gone; nothing happens the second time."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            _reap(keeper)

    @property
    def iptables(self) -> str:
        """The program that "iptables" stands for in this lab."""
        return _iptables(self.backend)

    @property
    def is_up(self) -> bool:
        """Whether it still stands: anybody may have said `k8snet lab down`."""
        state = current()
        return state is not None and state.keeper == self._keeper

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def netns_of(self, name: str) -> Netns:
        """The netns of a pod ("shop/cart"), a node ("node-1") or "internet"."""
        pin = pin_of(name)
        try:
            return Netns(inum_of(pin), str(pin))
        except OSError:
            known = ", ".join((*topology.ROUTERS, *(pod.key for pod in PODS)))
            raise K8snetError(f"the lab has no {name!r}", f"it has: {known}") from None

    def run_in(
        self, name: str, command: Sequence[str], *, stdin: str | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the netns of `name`; "iptables", "ip6tables" and kin are those of the lab's back end.

        With nftables, where kube-proxy needs no iptables, they are iptables-nft.
        """
        return _run(self.netns_of(name).path, self.backend, command, stdin=stdin, check=check)

    def sync(self, node: str, inventory: Inventory) -> None:
        """Let a node's kube-proxy write its rules again, for a cluster that has changed."""
        _sync(self.backend, inventory, next(n for n in inventory.nodes if n.name == node))


def down() -> bool:
    """Take down whatever lab there is, of this process or another, and what a crash left; False when there was none."""
    _need_root()
    state = _state()
    if state is not None:
        _end(state.keeper, state.started)
    found = state is not None or bool(leftovers())
    with _lock():
        _sweep()
        _remove_home()
    return found


def leftovers() -> list[str]:
    """Paths that belong to a lab, living or dead."""
    return [str(path) for path in (*pins(), *((HOME,) if HOME.exists() else ()))]


def current() -> State | None:
    """The lab that is up now, of whatever process."""
    state = _state()
    return state if state is not None and _started(state.keeper) == state.started else None


# --- the keeper --------------------------------------------------------------------------------------------------


def _keep(report: Report, *, backend: str, topology_name: str, persist: bool) -> None:
    """The keeper's life, from an empty machine to an empty machine."""
    signal.signal(signal.SIGTERM, _leave)
    children: list[int] = []
    state = State(os.getpid(), _started(os.getpid()) or 0, os.getppid(), backend, topology_name, persist)
    # Told to go between the lock and the `try`, it would leave the directory that the lock has made.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with _lock():
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            _sweep()
            _STATE.write_text(json.dumps(asdict(state)), encoding="utf-8")
            _build(children, backend, topology_name)
            INVENTORY_FILE.write_text(json.dumps(objects(INVENTORY), indent=4) + "\n", encoding="utf-8")
            if persist:
                outlive_parent()
            report(None)
            while True:
                signal.pause()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _STATE.unlink(missing_ok=True)
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                os.waitpid(child, 0)
            _sweep()
            _remove_home()


def _leave(_signal: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _build(children: list[int], backend: str, topology_name: str) -> None:
    _need_bridge_netfilter()
    answers = {f"{s.name}.{s.namespace}.svc.cluster.local": s.cluster_ips[0] for s in SERVICES}
    zone = {name: ip for name, ip in answers.items() if isinstance(ip, IPv4Address)}
    reads = []
    # A child that is not in the list yet could still make its pin while everything else is being removed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for name in (*topology.ROUTERS, *(pod.key for pod in PODS)):
        child, read = fork("k8snet-pod", partial(_live, name=name, zone=zone), dies_with_parent=signal.SIGKILL)
        children.append(child)
        reads.append(read)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for read in reads:
        answer(read)
    topology.build(topology_name)
    for node in INVENTORY.nodes:
        _sync(backend, INVENTORY, node)
        if backend == IPVS:
            ipvs.set_up(str(pin_of(node.name)), INVENTORY, node)


def _sync(backend: str, inventory: Inventory, node: Node) -> None:
    """Write kube-proxy's rules on a node, in place of those that it has."""
    pin = str(pin_of(node.name))
    cidrs = {"iptables-restore": CLUSTER_CIDR} | ({"ip6tables-restore": CLUSTER_CIDR6} if has_ipv6() else {})
    for tool, cidr in cidrs.items():
        if backend == "nftables":
            _run(pin, backend, ("nft", "-f", "-"), stdin=kubeproxy_nft.anew(inventory, cidr, node), check=True)
        else:
            rules = kubeproxy.rules(Inventory() if backend == IPVS else inventory, cidr, node)
            _run(pin, backend, (tool,), stdin=rules, check=True)


def _live(report: Report, *, name: str, zone: dict[str, IPv4Address]) -> None:
    """The life of a pod's (or a node's) one process."""
    enter_new(name)
    topology.settings(name)
    families = (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)
    own = SERVERS.get(name, ())
    if name == DNS_POD and nameserver.is_installed():
        own = tuple(server for server in own if server.port != nameserver.PORT)
        nameserver.start(zone, families)
    listening = {servers.bind(server, family): server for server in own for family in families}
    report(None)
    servers.serve(listening, servers.Answers(name, zone))


def _need_bridge_netfilter() -> None:
    if Path("/proc/sys/net/bridge").exists():
        return
    subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
    host = Path("/proc/sys/net/bridge")
    if not host.exists():
        raise K8snetError("the lab needs bridge netfilter, which this kernel lacks", "load it: modprobe br_netfilter")
    # The module begins to show bridged traffic to iptables everywhere at once; here it had not been so until now.
    for family in ("arp", "ip", "ip6"):
        (host / f"bridge-nf-call-{family}tables").write_text("0", encoding="ascii")


def _iptables(backend: str) -> str:
    # Beside kube-proxy's nftables mode, whoever else writes iptables rules on such a node writes nf_tables'.
    return "iptables-legacy" if backend == "iptables-legacy" else "iptables-nft"


def _run(
    netns: str, backend: str, command: Sequence[str], *, stdin: str | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    program, *arguments = command
    if program.startswith(("iptables", "ip6tables")):
        program = program.replace("tables", _iptables(backend).removeprefix("ip"), 1)
        arguments = arguments if program.endswith("-save") else ["-w", *arguments]
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        package = "iptables" if "tables-" in program else program
        raise K8snetError(f"the lab needs {program}, which is not installed", f"install it: apt-get install {package}")
    with entered(netns):
        done = subprocess.run([path, *arguments], input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        other = " or ".join(b for b in BACKENDS if b != backend)
        raise K8snetError(
            f"{' '.join((program, *arguments))} failed: {done.stderr.strip()}",
            f"if this kernel cannot do {backend}, try --backend {other}",
        )
    return done


# --- being the only one, and going ---------------------------------------------------------------------------------


@contextmanager
def _lock() -> Iterator[None]:
    """Hold the lab's lock (on its directory, so that no file is left); raises K8snetError while another lab lives."""
    deadline = time.monotonic() + _GOING_S
    while (lock := _try_lock()) is None:
        if time.monotonic() > deadline or not _is_going():
            raise K8snetError("a lab is up already, and there can be only one", "take it down: k8snet lab down")
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(lock)


def _try_lock() -> int | None:
    HOME.mkdir(parents=True, exist_ok=True)
    lock = os.open(HOME, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have removed the directory meanwhile: then this is a lock on nothing.
        if HOME.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _is_going() -> bool:
    """The lab that holds the lock is on its way out, or has only just begun."""
    state = _state()
    return state is None or (not state.persist and _started(state.owner) is None)


def _sweep() -> None:
    """Remove pins and files. Only for who holds the lock. The pods' processes have died with their keeper."""
    _STATE.unlink(missing_ok=True)
    for pin in pins():
        unpin(pin)
    INVENTORY_FILE.unlink(missing_ok=True)


def _remove_home() -> None:
    for directory in (HOME, HOME.parent):
        with suppress(OSError):  # others keep files there too
            directory.rmdir()


def _reap(keeper: int) -> None:
    """End a keeper that is our child."""
    _end(keeper)
    with suppress(ChildProcessError):
        os.waitpid(keeper, 0)


def _end(keeper: int, started: int | None = None) -> None:
    """Let the keeper take its lab down, and wait for it. With `started`, only if it still is the same process."""
    try:
        process = os.pidfd_open(keeper)
    except ProcessLookupError:
        return
    try:
        if started is not None and _started(keeper) != started:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(process, how)
            if select.select([process], [], [], _GOING_S)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(process)


def _state() -> State | None:
    try:
        return State(**json.loads(_STATE.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # none, or cut short by a crash
        return None


def _started(pid: int) -> int | None:
    """When a living process started, as in `State`; None when it has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _check(backend: str, topology_name: str) -> None:
    _need_root()
    for what, value, known in (("back end", backend, EVERY_BACKEND), ("topology", topology_name, TOPOLOGIES)):
        if value not in known:
            raise K8snetError(f"the lab has no {what} {value!r}", f"choose one of: {', '.join(known)}")
    if why := missing(topology.TOPOLOGIES[topology_name].needs):
        raise K8snetError(f"the lab cannot have the topology {topology_name} here: {why}", "choose another --topology")
    if backend == IPVS and (why := missing([IPVS])):
        raise K8snetError(f"the lab cannot have the back end {backend} here: {why}", "choose another --backend")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise K8snetError("the lab makes network namespaces, which only root may", "run it with sudo")
