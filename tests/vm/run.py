"""Boots kernels of the distribution in virtual machines and runs the live tests in each; prints a line for each kernel.

In: names of kernels (6.1 6.12). Out: a JUnit file for each, and an exit code. QEMU emulates (no KVM needed, 10 to 40
times slower); the guest's root is this machine's own, read-only, so what is tested is this checkout with this .venv.
Nothing is installed, and nothing is written outside the build directory.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels import KERNELS, fetch, give_up

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build" / "vm"
# Measured: a scenario takes some six times as long as on the machine below, because most of it is waiting.
PATIENCE = 6.0
TIMEOUT = 120  # seconds for one test on a real machine; pyproject.toml says the same


def vng() -> str:
    """virtme-ng's command, from the environment that runs this."""
    beside = Path(sys.executable).with_name("vng")
    found = str(beside) if beside.exists() else shutil.which("vng")
    return found or give_up("virtme-ng is not installed", "make setup")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens inside, the process and its children (QEMU) are gone afterwards."""
    try:
        yield
    finally:
        # The children are in a session of their own, which dies with them and is nobody else's.
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(timeout=5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()


def boot(tree: Path, work: Path, command: list[str], limit: float) -> int | None:
    """Run a command in a virtual machine with the kernel of `tree`; its exit status, or None if the machine gave none.

    The guest stops the command after `limit` seconds, and the machine is ended a minute and a half later. Its output is
    in work/out/output, the console in work/console.
    """
    out, home = work / "out", work / "home"
    for directory in (out, home):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    [image] = tree.glob("boot/vmlinuz-*")
    guest = ["/bin/sh", str(PROJECT / "tests/vm/guest.sh"), "k8snet_root", "k8snet_out", str(PROJECT), f"{limit:.0f}"]
    shared = [
        "-virtfs local,path=/,mount_tag=k8snet_root,security_model=none,readonly=on,multidevs=remap",
        f"-virtfs local,path={out},mount_tag=k8snet_out,security_model=none",
    ]
    arguments = [vng(), "--run", str(image), "--disable-kvm", "--force-9p", "--disable-microvm", "--user", "root"]
    arguments += ["--memory", "3G", "--cpus", "2", "--verbose", "--exec", shlex.join([*guest, *command])]
    arguments += [f"--qemu-opts={' '.join(shared)}"]
    # virtme-ng keeps its configuration and cache under HOME: the user's stays as it is.
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    with (work / "console").open("wb") as console:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, start_new_session=True
        )
        with ended(process):
            try:
                process.wait(timeout=limit + 90)
            except subprocess.TimeoutExpired:
                return None
    try:
        return int((out / "status").read_text())
    except (FileNotFoundError, ValueError):
        return None


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


def tail(file: Path, lines: int) -> str:
    """The last lines of a file that may not exist."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""


def prepare() -> None:
    """Compile what the guest would compile for itself each time, slowly and in vain: its root is read-only."""
    python = [sys.executable, "-m"]
    subprocess.run([*python, "compileall", "-q", "tracer/k8snet"], check=False, cwd=PROJECT)
    # pytest rewrites the asserts of tests and keeps the result; collecting them is enough.
    subprocess.run(
        [*python, "pytest", "--collect-only", "-q", "tests/live"], check=False, cwd=PROJECT, stdout=subprocess.DEVNULL
    )


def test(name: str, tree: Path, minutes: float, results: Path, selection: list[str]) -> bool:
    """Run the live tests on one kernel; prints a line, and what there is to read if they failed."""
    work = BUILD / name
    command = ["env", f"K8SNET_PATIENCE={PATIENCE}", sys.executable, "-m", "pytest", *selection]
    command += [
        "-p",
        "no:cacheprovider",
        "-v",
        "--junitxml=/run/out/junit.xml",
        "-o",
        f"timeout={TIMEOUT * PATIENCE:.0f}",
    ]
    print(f"vm {name}: booting; the output is in {work}/out/output", flush=True)
    began = time.monotonic()
    status = boot(tree, work, command, minutes * 60)
    took = time.monotonic() - began
    junit = work / "out" / "junit.xml"
    passed, sentence = counted(junit)
    if junit.exists():
        results.mkdir(parents=True, exist_ok=True)
        shutil.copy(junit, results / f"vm-{name}.xml")
    output = work / "out" / "output"
    ready = re.search(r"^ready after .*", tail(output, 100_000), re.MULTILINE)
    good = status == 0 and passed > 0
    if not good:
        print(tail(output, 150) or tail(work / "console", 60))
        why = {None: "the machine did not come to an end", 124: f"stopped after {minutes:g} minutes"}
        sentence += f"; {why.get(status, f'exit status {status}')}; console: {work}/console"
        if not passed:
            sentence += "; RAN NOTHING, which counts as a failure"
    else:
        print(tail(output, 2))
    print(
        f"vm {name}: {'ok' if good else 'FAILED'}: {sentence}; {took:.0f} s, {ready[0] if ready else 'never ready'}",
        flush=True,
    )
    return good


def main() -> int:
    """0 if the live tests passed on each kernel."""
    parser = argparse.ArgumentParser(description="Run the live tests on other kernels, in virtual machines.")
    parser.add_argument("kernels", nargs="*", default=["6.1", "6.12"], help=f"known: {' '.join(KERNELS)}")
    parser.add_argument("--minutes", type=float, default=25, help="for one kernel (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=PROJECT / "build/results", help="where the JUnit files go")
    parser.add_argument("--select", default="tests/live", help="arguments for pytest (default: %(default)s)")
    args = parser.parse_args()
    trees = fetch(args.kernels, BUILD)
    prepare()
    results = args.results.resolve()
    selection = shlex.split(args.select)
    # One after the other: a machine of two cores has no more to give, and the tests measure time. All of them: a
    # failure on one kernel says nothing about the next.
    good = [test(name, tree, args.minutes, results, selection) for name, tree in trees.items()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
