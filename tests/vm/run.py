"""Boots kernels of the distribution in virtual machines and runs the live tests in each; prints a line for each kernel.

In: names of kernels (5.10 newest). Out: a JUnit file for each, and an exit code. QEMU emulates (no KVM needed, 10 to 40
times slower); the guest's root is this machine's own, read-only, so what is tested is this checkout with this .venv.
Nothing is installed, and nothing is written outside the build directory.

What is tested by default is what depends on the kernel, with one back end on each (`Kernel.backend`), and each test on
one of the kernels, of the scenarios every other one; all of them on all kernels take hours and are for `make matrix`
(`--all`).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path

from kernels import KERNELS, fetch, give_up, image, release

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build" / "vm"
# Most of a scenario is waiting for a SYN to be sent again, which takes as long as on a real machine; the rest is Python
# that runs twenty times slower.
PATIENCE = 3.0
TIMEOUT = 720  # seconds for one test
GRACE = 150  # seconds for booting and for ending, beside the time for the tests
JUDGED = ("test_scenarios.py", "test_tiers.py")
KERNEL_TESTS = (
    "test_probes.py",
    "test_dns.py",
    "test_watch.py",
    "test_ruletrace.py",
    *JUDGED,
    "test_soak.py",
    "test_crowd.py",
)


class Machine:
    """One virtual machine that runs the live tests on one kernel. A context manager: QEMU is gone after it.

    The guest stops its tests by itself after the limit, so a machine whose harness was killed ends too.
    """

    def __init__(self, name: str, tree: Path, selection: list[str], limit: float, *settings: str) -> None:
        """`settings`: for the environment of the tests, such as K8SNET_BACKENDS=nftables."""
        self.name, self.release, self.limit = name, release(tree), limit
        self.work = BUILD / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            give_up(f"{name} is being tested by another `make vm` in this tree", "wait until it has ended")
        self.out, home = self.work / "out", self.work / "home"
        for directory in (self.out, home):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        guest = ["/bin/sh", str(PROJECT / "tests/vm/guest.sh"), "k8snet_root", "k8snet_out", str(PROJECT)]
        guest += [
            f"{limit:.0f}",
            "env",
            f"K8SNET_PATIENCE={PATIENCE}",
            *settings,
            sys.executable,
            "-m",
            "pytest",
            *selection,
        ]
        guest += ["-p", "no:cacheprovider", "-p", "pytest_timeout", "-v", "--durations=10"]
        guest += ["--junitxml=/run/out/junit.xml", "-o", f"timeout={TIMEOUT}"]
        shared = [
            "-virtfs local,path=/,mount_tag=k8snet_root,security_model=none,readonly=on,multidevs=remap",
            f"-virtfs local,path={self.out},mount_tag=k8snet_out,security_model=none",
        ]
        # One processor: emulating a second one costs more than it gives (measured: 86 s of CPU time instead of 49 for
        # the same work), and with one, two kernels are tested at a time.
        self.command = [vng(), "--run", str(image(tree)), "--disable-kvm", "--force-9p", "--disable-microvm"]
        # Nobody attacks it, and what protects it costs most where it is emulated.
        self.command += ["--append", "mitigations=off"]
        self.command += ["--user", "root", "--memory", "3G", "--cpus", "1", "--verbose"]
        self.command += ["--exec", shlex.join(guest), f"--qemu-opts={' '.join(shared)}"]
        # virtme-ng keeps its configuration and cache under HOME: the user's stays as it is. Its halves meet by PATH.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
        path = f"{Path(self.command[0]).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment |= {"HOME": str(home), "TMPDIR": str(home), "PATH": path}

    def __enter__(self) -> Machine:
        self.began = time.monotonic()
        with (self.work / "console").open("wb") as console:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=self.environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.began

    @property
    def running(self) -> bool:
        """Whether there is still something to wait for."""
        return self.process.poll() is None and self.seconds < self.limit + GRACE

    def output(self) -> str:
        """What the guest has printed so far."""
        file = self.out / "output"
        return file.read_text(errors="replace") if file.exists() else ""

    def status(self) -> int | None:
        """The exit status of the tests; None if the machine came to no end."""
        try:
            return int((self.out / "status").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def report(self, results: Path) -> bool:
        """Print the result, and what there is to read if it is bad; whether it is good."""
        status, output = self.status(), self.output()
        passed, sentence = counted(self.out / "junit.xml")
        if (self.out / "junit.xml").exists():
            shutil.copy(self.out / "junit.xml", results / f"vm-{self.name}.xml")
        good = status == 0 and passed > 0
        lines = output.splitlines() or (self.work / "console").read_text(errors="replace").splitlines()
        print("\n".join([line for line in lines if line.startswith("live on ")] if good else lines[-200:]))
        if not good:
            why = {None: "the machine came to no end", 124: f"stopped after {self.limit / 60:g} minutes"}
            sentence += f"; {why.get(status, f'exit status {status}')}; see {self.work}/console and {self.out}/output"
        if not passed:
            sentence += "; RAN NOTHING, which counts as a failure"
        ready = re.search(r"^ready after .*", output, re.MULTILINE)
        verdict = "ok" if good else "FAILED"
        boot = ready[0] if ready else "never ready"
        print(f"vm {self.name} ({self.release}): {verdict}: {sentence}; {self.seconds:.0f} s, {boot}")
        sys.stdout.flush()
        return good


def end(process: subprocess.Popen[bytes]) -> None:
    """End what was started in a session of its own, and all that it has started."""
    # QEMU is in a session that only its starter and it belong to, so this hits nobody else.
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def vng() -> str:
    """virtme-ng's command, from the environment that runs this."""
    beside = Path(sys.executable).with_name("vng")
    found = str(beside) if beside.exists() else shutil.which("vng")
    return found or give_up("virtme-ng is not installed", "make setup")


def counted(junit: Path) -> tuple[int, str]:
    """How many tests passed, and the sentence for the result line."""
    try:
        suites = list(ET.parse(junit).getroot().iter("testsuite"))  # noqa: S314 - written by our own pytest
    except (FileNotFoundError, ET.ParseError):
        return 0, "no results"
    number = {key: sum(int(s.get(key, "0")) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    passed = number["tests"] - failed - number["skipped"]
    return passed, f"{passed} passed, {failed} failed, {number['skipped']} skipped"


def prepare() -> None:
    """Compile what the guest would compile for itself each time, slowly and in vain: its root is read-only."""
    python = [sys.executable, "-m"]
    subprocess.run([*python, "compileall", "-q", "tracer/k8snet"], check=False, cwd=PROJECT)
    # pytest rewrites the asserts of tests and keeps the result; collecting them is enough.
    subprocess.run(
        [*python, "pytest", "--collect-only", "-q", "tests/live"], check=False, cwd=PROJECT, stdout=subprocess.DEVNULL
    )


def run_all(waiting: list[Machine], jobs: int, results: Path) -> bool:
    """Run the machines, `jobs` at a time, and report each as it ends; a failure of one stops no other."""
    running: list[Machine] = []
    good = True
    with ExitStack() as stack:
        told = time.monotonic()
        while waiting or running:
            while waiting and len(running) < jobs:
                machine = waiting.pop(0)
                print(f"vm {machine.name}: booting; what it prints is in {machine.out}/output", flush=True)
                running.append(stack.enter_context(machine))
            time.sleep(0.5)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                for machine in running:
                    ended = len(re.findall(r"(PASSED|FAILED|ERROR|SKIPPED)\b.*\[", machine.output()))
                    print(f"vm {machine.name}: {machine.seconds:.0f} s, {ended} tests ended", flush=True)
            for machine in [m for m in running if not m.running]:
                running.remove(machine)
                good &= machine.report(results)
    return good


def _some(name: str, names: list[str]) -> tuple[str, ...]:
    """What this kernel plays (tests/live/conftest.py): with one back end its share."""
    return f"K8SNET_BACKENDS={KERNELS[name].backend}", f"K8SNET_SHARE={names.index(name) + 1}/{len(names)}"


def main() -> int:
    """0 if the live tests passed on each kernel."""
    parser = argparse.ArgumentParser(description="Run the live tests on other kernels, in virtual machines.")
    parser.add_argument("kernels", nargs="*", default=list(KERNELS), help=f"known: {' '.join(KERNELS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=40, help="for one kernel (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="machines at a time (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=PROJECT / "build/results", help="where the JUnit files go")
    parser.add_argument("--all", action="store_true", help="every scenario with every back end")
    parser.add_argument("--select", default="", help="arguments for pytest, in place of what depends on the kernel")
    args = parser.parse_args()
    trees = fetch(args.kernels, BUILD)
    prepare()
    args.results.mkdir(parents=True, exist_ok=True)
    files = JUDGED if args.all else KERNEL_TESTS
    selection = shlex.split(args.select) or [f"tests/live/{file}" for file in files]
    machines = [
        Machine(name, tree, selection, args.minutes * 60, *(() if args.all else _some(name, args.kernels)))
        for name, tree in trees.items()
    ]
    return 0 if run_all(machines, args.jobs, args.results) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
