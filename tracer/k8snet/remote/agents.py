"""Agents: one pod a node, from its creation to its deletion, whatever happens between the two.

In: what to run on which nodes. Out: the lines that they write, as they come, by one queue for all. Each agent has a
thread that asks the API; the thread that made them never waits for the API while they run, and so sees a Ctrl-C at
once. Leaving `Agents` deletes every pod, with retries; one that nobody could delete ends by its own deadline.

Surprising: a pod is deleted even when nobody knows that it exists. Its name is ours from before it was asked for, and
an answer that was lost says nothing.
"""

from __future__ import annotations

import os
import platform
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import FrameType, TracebackType
from typing import Any, Final

from k8snet.cluster.api import Api, ApiError, patience
from k8snet.errors import Exit, K8snetError
from k8snet.remote import spec
from k8snet.remote.pods import Log, Pods
from k8snet.render.safe import inert

POLL: Final = 0.3  # seconds between two looks at a pod that has not started
GIVE_UP: Final = 60.0  # seconds without the API after which an agent is given up
DELETE_FOR: Final = 30.0  # seconds for which deleting a pod is tried
LATECOMER: Final = 3.0  # seconds; a guess: a request whose answer was lost has been carried out by then, or never is
CREATES: Final = 3  # tries
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Reasons for which a container waits, and will for long: what is wrong is told at once.
_HOPELESS: Final = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "RunContainerError",
)


class Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP instead of raising anything, for as long as there are pods to be deleted."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a script's background
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


@dataclass(frozen=True, slots=True)
class Line:
    """An agent has written this."""

    agent: Agent
    text: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """An agent writes nothing more; its `error` says why, where that was not its own wish."""

    agent: Agent


class Agents:
    """The agents of one command, by one namespace. Use it as a context: leaving it deletes them."""

    def __init__(self, api: Api, place: spec.Place, start_within: float) -> None:
        """`start_within`: seconds for a pod to start."""
        self.pods = Pods(api, place.namespace)
        self.place = place
        self.all: list[Agent] = []
        self.interrupts = Interrupts()
        self._start_within = start_within
        self._queue: queue.SimpleQueue[Line | Ended] = queue.SimpleQueue()

    def __enter__(self) -> Agents:
        self.interrupts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._remove()
        finally:
            self.interrupts.__exit__(kind, error, trace)

    def start(self, node: str, words: Sequence[str], inventory: str, lifetime: int) -> Agent:
        """Start `k8snet WORDS` on a node; it lives `lifetime` seconds at most."""
        name = f"k8snet-{secrets.token_hex(5)}"
        body = spec.pod(self.place, name, node, words, inventory, lifetime)
        agent = Agent(self.pods, node, body, self._queue, self._start_within)
        self.all.append(agent)
        agent.start()
        return agent

    def next(self, seconds: float) -> Line | Ended | None:
        """What happens next; None when nothing does within this time."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def finish(self) -> None:
        """Tell all of them to end, which they do with what they have to say."""
        for agent in self.all:
            agent.finish()

    def _remove(self) -> None:
        began = self.interrupts.count
        for agent in self.all:
            agent.stop()
        removals = [threading.Thread(target=agent.remove, daemon=True) for agent in self.all]
        for thread in removals:
            thread.start()
        for thread in removals:
            while thread.is_alive() and self.interrupts.count < began + 2:  # somebody insists on going
                thread.join(0.1)
        for agent in self.all:
            if not agent.removed:
                command = self.pods.command("delete", "pod", agent.pod_name)
                until = time.strftime("%H:%M:%S UTC", time.gmtime(agent.deadline))
                why = f": {agent.leftover.problem}" if agent.leftover else ""
                lines = (
                    f"k8snet: pod {agent.pod_name} on node {agent.node} could not be deleted{why}",
                    f"  {command}",
                    f"  it ends by itself at {until} at the latest",
                )
                print("\n".join(inert(line) for line in lines), file=sys.stderr)


class Agent:
    """One pod and what it writes, by a thread of its own."""

    def __init__(
        self, pods: Pods, node: str, body: spec.Object, told: queue.SimpleQueue[Line | Ended], start_within: float
    ) -> None:
        self.node = node
        self.pod_name = str(body["metadata"]["name"])
        self.error: K8snetError | None = None
        self.state = "asking for a pod"
        self.running = False
        self.ended = ""  # how its container ended, in words
        self.removed = False
        self.leftover: K8snetError | None = None
        self.deadline = time.time() + float(body["spec"]["activeDeadlineSeconds"])
        self._pods = pods
        self._body = body
        self._told = told
        self._start_within = start_within
        self._log = Log(pods, self.pod_name)
        self._stopping = threading.Event()
        self._finishing = threading.Event()
        self._asked = False
        self._sure = False  # the pod exists, or has existed
        self._thread = threading.Thread(target=self._run, name=f"k8snet-agent-{node}", daemon=True)

    def start(self) -> None:
        """Ask for the pod."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._create()
            if self._started():
                for line in self._lines():
                    self._told.put(Line(self, line))
        except K8snetError as error:
            if not self._stopping.is_set():
                self.error = error
        except Exception as error:  # a bug: not to be lost with its thread
            self.error = K8snetError(f"agent on node {self.node}: {error!r}", "this is a bug of k8snet: report it")
        finally:
            self._told.put(Ended(self))

    def finish(self) -> None:
        """Tell the agent to end with its report: the kubelet sends it SIGTERM. It goes on being read."""
        if not self._finishing.is_set():
            self._finishing.set()
            threading.Thread(target=self._end, daemon=True).start()

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._finishing.set()
        self._log.stop()

    def remove(self) -> None:
        """Delete the pod, for as long as it takes within reason; `removed` says whether it worked."""
        limit = self._pods.api.options.request_timeout or GIVE_UP
        self._thread.join(limit + 1)  # its request for the pod may be under way: it is answered by then, or never
        if not self._asked:
            self.removed = True
            return
        deadline = time.monotonic() + DELETE_FOR
        tries = 0
        while True:
            wait = patience(tries) / 2
            try:
                found = self._pods.delete(self.pod_name)
                if found or self._sure or tries * POLL >= LATECOMER:
                    self.removed = True
                    return
                wait = POLL
            except ApiError as error:
                self.leftover = error
                wait = max(wait, error.wait)
                if not error.passing:
                    return
            except K8snetError as error:
                self.leftover = error
                return
            tries += 1
            if time.monotonic() + wait > deadline:
                return
            time.sleep(wait)

    def _end(self) -> None:
        """One try; `remove` comes after it in any case."""
        try:
            self._pods.delete(self.pod_name)
        except K8snetError as error:
            self.leftover = error

    def _create(self) -> None:
        for tries in range(CREATES):
            if self._stopping.is_set() or self._finishing.is_set():
                return
            self._asked = True
            try:
                self._pods.create(self._body)
            except ApiError as error:
                if error.status and not error.passing:
                    self._asked = False  # refused: there is none
                if not error.passing or tries + 1 == CREATES:
                    raise
                self._stopping.wait(max(error.wait, patience(tries)))
            else:
                self._sure = True
                return

    def _started(self) -> bool:
        """True when the agent runs, or has run; False when it is not wanted any more. Raises K8snetError."""
        deadline = time.monotonic() + self._start_within
        while not (self._stopping.is_set() or self._finishing.is_set()):
            try:
                pod = self._pods.get(self.pod_name)
            except ApiError as error:
                if not error.passing or time.monotonic() > deadline:
                    raise
                self._stopping.wait(max(POLL, error.wait))
                continue
            if pod is None:
                raise K8snetError(
                    f"pod {self.pod_name} on node {self.node} was deleted by somebody before it started",
                    f"see: {self._events()}",
                )
            self._look(pod)
            if self.running or self.ended:
                return True
            if time.monotonic() > deadline:
                raise K8snetError(
                    f"pod {self.pod_name} does not start on node {self.node}: {self.state}",
                    f"see whether the node is well: kubectl{self._pods.api.options.words} describe node {self.node}; "
                    "wait longer: --pod-running-timeout 5m",
                )
            self._stopping.wait(POLL)
        return False

    def _look(self, pod: spec.Object) -> None:
        """What the pod's status says. Raises K8snetError when it will not start."""
        status = pod.get("status") or {}
        phase, statuses = status.get("phase"), status.get("containerStatuses") or ()
        state = next((one.get("state") or {} for one in statuses if one.get("name") == spec.CONTAINER), {})
        if "terminated" in state:
            self.ended = _ending(state["terminated"])
        elif "running" in state:
            self.running = True
            self.state = "running"
        elif phase in ("Succeeded", "Failed"):
            words = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
            if not self.running:
                raise K8snetError(
                    f"node {self.node} does not take pod {self.pod_name}: {words or phase}", f"see: {self._events()}"
                )
            self.ended = words or str(phase)
        elif "waiting" in state:
            waiting = state["waiting"]
            reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
            self.state = f"waiting ({reason})" if reason else "waiting"
            if reason in _HOPELESS:
                raise self._hopeless(reason, message)
        else:
            self.state = "the node's kubelet has not taken it up" if not statuses else "waiting"

    def _hopeless(self, reason: str, message: str) -> K8snetError:
        if "Image" in reason or reason == "RegistryUnavailable":
            image = self._body["spec"]["containers"][0]["image"]
            return K8snetError(
                f"node {self.node} cannot get the image {image}: {message or reason}",
                "name one that it can pull: --image REGISTRY/k8snet:TAG",
            )
        return K8snetError(
            f"the agent cannot start on node {self.node}: {reason}{f': {message}' if message else ''}",
            f"see: {self._events()}; if a capability or a profile is refused: --privileged",
        )

    def _events(self) -> str:
        return self._pods.command("get", "events", "--field-selector", f"involvedObject.name={self.pod_name}")

    def _lines(self) -> Iterator[bytes]:
        """All that the agent writes, each line once, until it has ended."""
        broken: float | None = None
        tries = 0
        while not self._stopping.is_set():
            trouble: ApiError | None = None
            try:
                for line in self._log.read():
                    broken, tries = None, 0
                    yield line
                over = self._over()
                if over:
                    # The connection may have ended before the log did.
                    yield from self._log.read(follow=False)
                    return
            except ApiError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    self.ended = self.ended or "it was deleted"
                    return
                # "waiting to start" (400): the container has started, and not everybody knows yet.
                if not (error.passing or error.status == HTTPStatus.BAD_REQUEST):
                    raise
                trouble = error
            now = time.monotonic()
            broken = broken or now
            if now - broken > GIVE_UP:
                raise trouble or K8snetError(
                    f"the log of pod {self.pod_name} on node {self.node} ends while the agent runs",
                    f"see: {self._pods.command('logs', self.pod_name)}",
                )
            self._stopping.wait(max(patience(tries) / 4, trouble.wait if trouble else 0.0))
            tries += 1

    def _over(self) -> bool:
        pod = self._pods.get(self.pod_name)
        if pod is None:
            self.ended = self.ended or "it was deleted"
            return True
        self._look(pod)
        return bool(self.ended)


def _ending(terminated: spec.Object) -> str:
    code, reason = terminated.get("exitCode"), terminated.get("reason")
    return f"exit code {code}" + (f", {reason}" if reason and reason not in ("Completed", "Error") else "")


def started_by() -> str:
    """Who starts agents here: `cleanup` compares it to tell a living command's from a dead one's."""
    return f"{platform.node()} pid {os.getpid()}"


def said(words: Sequence[str]) -> K8snetError | None:
    """The error that an agent has printed in place of a report, as it would have been here."""
    at = next((i for i, line in enumerate(words) if line.startswith("k8snet: ")), None)
    if at is None:
        return None
    more = []
    for line in words[at + 1 :]:
        if not line.startswith("  "):
            break
        more.append(line[2:])
    return K8snetError(words[at].removeprefix("k8snet: "), more[0] if more else "", Exit.USAGE, tuple(more[1:]))
