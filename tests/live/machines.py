"""The lab's nodes as machines of their own: an agent on each, that sees nothing of the other node but its packets.

An agent's process has a mount namespace in which only its own node's netns are pinned, a pid namespace with no process
but its own, and its node's netns as that of pid 1. What cannot be had on one kernel are two clocks, and probes that see
one machine only: the agent leaves out what is in no netns of its own, as it must where nodes are containers, and
`clocked` writes a stream anew as if its kernel had been booted at another time.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from k8snet.agent import lines
from k8snet.lab.lab import Lab
from k8snet.lab.namespaces import pin_of

_ALONE: Final = """
set -e
own=$1; shift
mount -t tmpfs tmpfs "$own"
while [ "$1" != -- ]; do touch "$own/${1##*/}"; mount --bind "$1" "$own/${1##*/}"; shift; done
shift
mount --rbind "$own" /run/netns
exec "$@"
"""
_KTIME: Final = struct.Struct("=Q")


class Agent:
    """`k8snet agent` on one node. Its output is taken as it comes."""

    def __init__(self, lab: Lab, node: str, where: Path, words: Sequence[str]) -> None:
        directory = where / node
        directory.mkdir(parents=True, exist_ok=True)
        mine = [node, *(pod.key for pod in lab.inventory.pods if pod.node == node)]
        self.pins = [str(pin_of(name)) for name in mine]
        self.text = ""
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [
                *("nsenter", f"--net={pin_of(node)}", "unshare", "--mount", "--pid", "--fork", "--mount-proc"),
                *("--kill-child", "sh", "-c", _ALONE, "sh", str(directory), *self.pins, "--"),
                *(sys.executable, "-m", "k8snet", "agent", "--node", node, "--inventory", str(lab.inventory_file)),
                *words,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._reading = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reading.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self.text += line
            if line.startswith('{"line":"ready"'):
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Its probes are attached."""
        assert self._ready.wait(seconds), "the agent is not ready"
        assert '"line":"ready"' in self.text, self.process.communicate()[1]

    def finish(self, seconds: float = 30.0, *, end_stdin: bool = True) -> str:
        """Everything that it wrote, once it has ended well."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        if end_stdin:
            self.process.stdin.close()
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
            self._reading.join()
        assert code == 0, self.process.stderr.read()
        return self.text


@contextmanager
def agents(lab: Lab, where: Path, far: Sequence[str], near: Sequence[str]) -> Iterator[tuple[Agent, Agent]]:
    """An agent on node-1, the client's, that sends, and one on node-2 that was ready before."""
    with ExitStack() as stack:
        there = Agent(lab, "node-2", where, far)
        stack.callback(there.process.kill)
        there.wait_until_ready()
        here = Agent(lab, "node-1", where, near)
        stack.callback(here.process.kill)
        yield here, there


def clocked(text: str, ahead_ns: int) -> str:
    """The same stream from a kernel whose monotonic clock is ahead by so much; its wall clock is the same."""
    changed = []
    for raw in text.splitlines():
        line = lines.understood(raw)
        assert line is not None, raw
        match line:
            case lines.Hello():
                line = replace(line, monotonic_ns=line.monotonic_ns + ahead_ns)
            case lines.Ready() | lines.Bye():
                line = replace(line, ktime_ns=line.ktime_ns + ahead_ns)
            case lines.Rules():
                line = replace(line, steps=tuple(replace(s, ktime_ns=s.ktime_ns + ahead_ns) for s in line.steps))
            case lines.Events():
                line = lines.packed(line.first, [_later(record, ahead_ns) for record in lines.unpacked(line)])
        changed.append(lines.written(line) + "\n")
    return "".join(changed)


def _later(record: bytes, ahead_ns: int) -> bytes:
    return _KTIME.pack(_KTIME.unpack_from(record)[0] + ahead_ns) + record[_KTIME.size :]
