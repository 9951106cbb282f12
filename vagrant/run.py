#!/usr/bin/env python3
"""Plays the scenarios one after the other: breaks the lab, traces, compares what was found with the expected, mends.

In: a lab, either the namespace lab (`--lab namespaces`; built here, as root) or the machines of `vagrant up`; and
scenarios by name (default: all in scenarios/). Out: a line for each, and an exit code: 0 as expected, 1 not, 2 it could
not be tried, 130 interrupted. What was broken is mended whatever happens; after a SIGKILL: `--mend`. Needs Python's
standard library only, since it runs where Vagrant does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

HERE: Final = Path(__file__).resolve().parent
SETTINGS: Final = HERE / ".vagrant" / "k8snet.json"  # written by the Vagrantfile
NOT_HERE: Final = 77  # as lib/lab.sh has it
BACKENDS: Final = ("iptables-nft", "iptables-legacy", "nftables", "ipvs")
TOPOLOGIES: Final = ("bridge", "routed", "vxlan", "ipip")
STEP_S: Final = 300.0  # for one step of one scenario; a guess, for machines that emulate too
GOING_S: Final = 20.0  # for a step that was told to end


class NotHereError(Exception):
    """This lab cannot play this scenario; the text says why."""


class StepError(Exception):
    """A step of a scenario failed; the text is what it said."""


@dataclass(frozen=True)
class Outcome:
    """How a scenario went."""

    name: str
    expected: str
    found: str
    verdict: str  # ok, DIFFERS, by chance, not played, FAILED
    about: str = ""  # the finding's title, or why not
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it is as it should be; what was not played is neither good nor bad."""
        return self.verdict not in ("DIFFERS", "FAILED")


def give_up(problem: str, remedy: str) -> NoReturn:
    """End the program with one clear sentence and the next step."""
    print(f"{problem}\n  {remedy}", file=sys.stderr)
    sys.exit(2)


def scenarios(wanted: Sequence[str]) -> list[Path]:
    """The scripts, in order; a name may be given with or without its number."""
    every = sorted((HERE / "scenarios").glob("[0-9]*.sh"))
    chosen = []
    for name in wanted:
        fitting = [path for path in every if name in (path.stem, path.stem.partition("-")[2])]
        if not fitting:
            give_up(f"there is no scenario {name!r}", f"one of: {' '.join(path.stem for path in every)}")
        chosen += fitting
    return chosen or every


def step(script: Path, word: str, environment: dict[str, str]) -> str:
    """Run one step; what it printed. Raises NotHereError or StepError. It never outlives this call."""
    # In a session of its own: Ctrl-C is heard here alone, and is passed on as the end of the step.
    process = subprocess.Popen(
        ["bash", str(script), word],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=STEP_S)
    except subprocess.TimeoutExpired:
        raise StepError(f"{word} did not end in {STEP_S:.0f} s") from None
    finally:
        _end(process)
    said = said.strip()
    if process.returncode == NOT_HERE:
        raise NotHereError(said.splitlines()[-1] if said else "not here")
    if process.returncode:
        raise StepError(f"{word} failed with {process.returncode}: {said or 'it said nothing'}")
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=GOING_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def judge(expected: str, report: str) -> tuple[str, str, str]:
    """Codes found, verdict, title of the first finding: for what `expect` and `traffic` printed. Raises StepError."""
    try:
        findings = [(str(f["code"]), str(f["title"])) for f in json.loads(report)["findings"]]
    except (ValueError, KeyError, TypeError):
        raise StepError("traffic printed no report of k8snet") from None
    words = expected.split()
    if not words:
        raise StepError("expect printed nothing")
    codes = [code for code, _ in findings]
    title = findings[0][1] if findings else ""
    found = " ".join(codes) or "none"
    if words == ["none"]:
        return found, "ok" if not codes else "DIFFERS", title
    if words[0] == "maybe" and not codes:
        return found, "by chance", "the race did not happen; play it again"
    return found, "ok" if set(words) & set(codes) else "DIFFERS", title


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whoever wants this to end has to wait: half mended is worse than broken, since nobody knows of it."""
    kept = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sign, handler in kept.items():
            signal.signal(sign, handler)


def mend(script: Path, environment: dict[str, str]) -> str:
    """Mend; what went wrong, empty if nothing did."""
    with undisturbed():
        try:
            step(script, "mend", environment)
        except NotHereError:
            return ""
        except StepError as error:
            return str(error)
    return ""


def play(script: Path, environment: dict[str, str]) -> Outcome:
    """One scenario, from whole to whole."""
    name, began, expected = script.stem, time.monotonic(), ""
    try:
        expected = step(script, "expect", environment).strip()
        try:
            step(script, "break", environment)
            found, verdict, about = judge(expected, step(script, "traffic", environment))
        finally:
            wrong = mend(script, environment)
    except NotHereError as why:
        return Outcome(name, expected, "-", "not played", str(why))
    except StepError as error:
        return Outcome(name, expected, "-", "FAILED", str(error))
    if wrong:
        verdict, about = "FAILED", f"{wrong}\nthe lab is still broken"
    return Outcome(name, expected, found, verdict, about, time.monotonic() - began)


def show(outcome: Outcome) -> None:
    """A line for a person, and the finding's title below it."""
    seconds = f"{outcome.seconds:5.1f} s" if outcome.seconds else ""
    print(f"{outcome.name:20} {outcome.expected or '-':22} {outcome.found:28} {outcome.verdict:11}{seconds}".rstrip())
    for line in outcome.about.splitlines():
        print(f"    {line}")
    sys.stdout.flush()


@contextmanager
def namespaces(backend: str, topology: str) -> Iterator[dict[str, str]]:
    """The namespace lab, up while this lasts, and not longer than this process."""
    environment = dict(os.environ) | {"K8SNET_LAB": "namespaces", "K8SNET_PYTHON": interpreter()}
    process = subprocess.Popen(
        [environment["K8SNET_PYTHON"], str(HERE / "lib" / "namespaces.py"), "up", backend, topology],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both are pipes")
    try:
        if process.stdout.readline().strip() != "up":
            process.wait()
            sys.exit(2)  # it has said why
        yield environment
    finally:
        with undisturbed():
            process.stdin.close()
            process.wait()


def interpreter() -> str:
    """A Python that has k8snet: the one that was named, the checkout's, the machine's, this one."""
    known = (os.environ.get("K8SNET_PYTHON", ""), str(HERE.parent / ".venv/bin/python"), "/opt/k8snet/bin/python")
    return next((path for path in known if path and Path(path).exists()), sys.executable)


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The machines of `vagrant up`, reached by what `vagrant ssh-config` says; the sample pods are ready."""
    settings = chosen()
    if settings["LAB"] == "netns":
        give_up("vagrant has built the namespace lab, which is no cluster", "make vagrant-lab, or LAB=k3s vagrant up")
    try:
        done = subprocess.run(["vagrant", "ssh-config"], cwd=HERE, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        give_up(
            "vagrant is not installed", "https://developer.hashicorp.com/vagrant/install, or apt-get install vagrant"
        )
    if done.returncode:
        give_up(f"vagrant ssh-config failed: {done.stderr.strip()}", f"cd {HERE} && vagrant up")
    with tempfile.TemporaryDirectory(prefix="k8snet-") as directory:
        config = Path(directory) / "ssh"
        config.write_text(done.stdout)
        names = {"K8SNET_KIND": "LAB", "K8SNET_CNI": "CNI", "K8SNET_PROXY": "PROXY"}
        environment = dict(os.environ) | {"K8SNET_LAB": "cluster", "K8SNET_SSH": str(config)}
        environment |= {name: settings[key] for name, key in names.items()}
        ssh = ["ssh", "-F", str(config), "control"]
        ready = (
            "sudo kubectl --kubeconfig /root/.kube/config -n shop wait pod --all --for=condition=Ready --timeout=300s"
        )
        if subprocess.run([*ssh, ready], stdout=subprocess.DEVNULL, check=False).returncode:
            give_up("the sample pods are not ready", "vagrant ssh control -c 'sudo kubectl get pods -A -o wide'")
        try:
            yield environment
        finally:
            for node in ("control", "worker-1"):
                leave = ["ssh", "-F", str(config), "-o", f"ControlPath={config}.%n", "-O", "exit", node]
                subprocess.run(leave, capture_output=True, check=False)


def chosen() -> dict[str, str]:
    """What the last `vagrant up` was told."""
    try:
        return dict(json.loads(SETTINGS.read_text()))
    except FileNotFoundError:
        give_up(
            "there are no machines: vagrant has not been up here", f"cd {HERE} && vagrant up; docs/lab.md says more"
        )


def in_the_machine(arguments: Sequence[str]) -> int:
    """LAB=netns: everything happens in the one machine, so this program is started there."""
    terminal = ["-t"] if sys.stdin.isatty() else []  # Ctrl-C goes through it
    command = " ".join(["sudo", "python3", "/srv/k8snet/vagrant/run.py", "--lab", "namespaces", *arguments])
    return subprocess.run(
        ["vagrant", "ssh", "control", "-c", command, "--", *terminal], cwd=HERE, check=False
    ).returncode


def go_through(scripts: Sequence[Path], environment: dict[str, str]) -> int:
    """Play them all, say how it went, and look once more whether the mended lab is healthy."""
    print(f"{'SCENARIO':20} {'EXPECTED':22} {'FOUND':28} RESULT", flush=True)
    outcomes = []
    for script in scripts:
        outcomes.append(play(script, environment))
        show(outcomes[-1])
    healthy = scenarios(["healthy"])[0]
    if any(script != healthy for script in scripts):
        after = play(healthy, environment)
        outcomes.append(Outcome("mended", after.expected, after.found, after.verdict, after.about, after.seconds))
        show(outcomes[-1])
    played = [outcome for outcome in outcomes if outcome.verdict != "not played"]
    bad = [outcome.name for outcome in played if not outcome.good]
    print(f"{len(played)} played, {len(played) - len(bad)} as expected, {len(outcomes) - len(played)} not played")
    if not played:
        return 2
    return 1 if bad else 0


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Break a lab, trace, compare, mend: one scenario after the other.")
    parser.add_argument("scenario", nargs="*", help="default: all of vagrant/scenarios")
    parser.add_argument("--lab", choices=("namespaces", "vagrant"), default="vagrant", help="default: %(default)s")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="of the namespace lab")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=TOPOLOGIES[0], help="of the namespace lab")
    parser.add_argument("--mend", action="store_true", help="play nothing: mend what a killed run has left broken")
    args = parser.parse_args()
    scripts = scenarios(args.scenario)
    if args.lab == "vagrant" and chosen()["LAB"] == "netns":
        names = [script.stem for script in scripts] if args.scenario else []
        return in_the_machine(["--backend", args.backend, "--topology", args.topology, *names])
    if args.mend and args.lab == "namespaces":
        give_up("the namespace lab goes with the command that built it: nothing is left to mend", "k8snet lab down")
    with namespaces(args.backend, args.topology) if args.lab == "namespaces" else cluster() as environment:
        if args.mend:
            wrong = [text for script in scripts if (text := mend(script, environment))]
            print("\n".join(wrong) or "mended")
            return 1 if wrong else 0
        return go_through(scripts, environment)


def _leave(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _leave)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; what was broken is mended", file=sys.stderr)
        sys.exit(130)
