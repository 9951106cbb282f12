"""A kubelet for the API server of the tests: runs the containers of its nodes' pods as processes of this machine.

    with ApiServer() as server, Kubelet(server, {"image": ["python", "-m", "k8snet"]}, "node-1") as kubelet:

A container's image is looked up in `images`: the words that its arguments are put behind. What the process prints
(stderr too) is its pod's log, how it ends is the pod's phase; a pod that is deleted gets SIGTERM, then SIGKILL, then is
gone. A downward API volume becomes a file, and arguments that name its path are given the file's. What goes wrong is
to be set before a pod is made: `ignores`, `refuses`, `dawdles`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from apiserver import ApiServer
from apistore import BY_PLURAL, Object

IP = "192.0.2.1"
POLL = 0.05


class Container(threading.Thread):
    """One pod's process and its log."""

    def __init__(self, kubelet: Kubelet, pod: Object, words: Sequence[str]) -> None:
        super().__init__(name=pod["metadata"]["name"])
        self.pod = pod
        self.key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=kubelet.environment,
            start_new_session=True,
        )
        self._kubelet = kubelet
        self._deadline = time.monotonic() + pod["spec"].get("activeDeadlineSeconds", 1e9)
        self._grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        self._killed: float | None = None
        self.start()

    def run(self) -> None:
        """Carry the output until it ends."""
        server = self._kubelet.server
        server.write_log(*self.key)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            server.write_log(*self.key, line)
        code = self.process.wait()
        server.write_log(*self.key, end=True)
        # The status follows the log's end, as a real kubelet's does.
        time.sleep(POLL)
        self._kubelet.ended(self, code if code >= 0 else 128 - code)

    def look(self, deleted: bool) -> None:
        """Stop it when its pod is deleted or too old."""
        now = time.monotonic()
        if (deleted or now > self._deadline) and self._killed is None:
            self._killed = now + self._grace
            self.process.terminate()
        elif self._killed is not None and now > self._killed:
            self.process.kill()


class Kubelet:
    """Runs from `with` to its end; then no process of it runs."""

    def __init__(self, server: ApiServer, images: Mapping[str, Sequence[str]], *nodes: str) -> None:
        self.server = server
        self.images = images
        self.nodes = nodes
        self.environment = dict(os.environ)
        self.ignores = False
        self.refuses = ""  # the container waits for this reason
        self.dawdles = 0.0  # seconds until a pod is taken up
        self.ran: list[Object] = []  # every pod that was started
        self.containers: dict[tuple[str, str], Container] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet")
        self.errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="kubelet-")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        for container in list(self.containers.values()):
            container.process.kill()
            container.join()
        self._directory.cleanup()
        if self.errors and error is None:
            raise self.errors[0]

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL):
                store = self.server.store
                pods = store.at(BY_PLURAL["pods"], store.version)
                mine = [stored.value for stored in pods if stored.value["spec"].get("nodeName") in self.nodes]
                for pod in mine:
                    self._look(pod)
                there = {(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in mine}
                for key, container in list(self.containers.items()):
                    if key not in there:
                        container.look(deleted=True)
        except BaseException as error:
            self.errors.append(error)

    def _look(self, pod: Object) -> None:
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        deleted = "deletionTimestamp" in pod["metadata"]
        container = self.containers.get(key)
        if container is not None:
            container.look(deleted)
            if deleted and not container.is_alive():
                self._gone(key)
        elif deleted and not self.ignores:
            self._gone(key)
        elif self.refuses and pod["status"]["phase"] == "Pending":
            self._status(pod, "Pending", {"waiting": {"reason": self.refuses, "message": "as the test wants it"}})
        elif pod["status"]["phase"] == "Pending" and not (self.ignores or self.refuses):
            self._take_up(key, pod)

    def _take_up(self, key: tuple[str, str], pod: Object) -> None:
        image = pod["spec"]["containers"][0].get("image")
        if image not in self.images or self._stopping.wait(self.dawdles):
            return
        self._status(pod, "Running", {"running": {}})
        self.ran.append(pod)
        self.containers[key] = Container(self, pod, self._words(pod))

    def _words(self, pod: Object) -> list[str]:
        container = pod["spec"]["containers"][0]
        words = [*self.images[container["image"]], *container.get("args", ())]
        for volume in pod["spec"].get("volumes", ()):
            mounts = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
            for item in volume.get("downwardAPI", {}).get("items", ()):
                match = re.fullmatch(r"metadata\.annotations\['(.*)'\]", item["fieldRef"]["fieldPath"])
                assert match, item
                file = Path(self._directory.name) / f"{pod['metadata']['name']}-{item['path']}"
                file.write_text(pod["metadata"]["annotations"][match[1]])
                words = [word.replace(f"{mounts[0]['mountPath']}/{item['path']}", str(file)) for word in words]
        return words

    def _status(self, pod: Object, phase: str, state: Object) -> None:
        name = pod["spec"]["containers"][0]["name"]
        status = {**pod["status"], "phase": phase, "containerStatuses": [{"name": name, "state": state}]}
        if status != pod["status"]:
            with self.server.store.changed:
                metadata = pod["metadata"]
                with contextlib.suppress(KeyError):  # deleted meanwhile
                    now = self.server.get("pods", metadata["namespace"], metadata["name"])
                    self.server.put(now | {"status": status})

    def ended(self, container: Container, code: int) -> None:
        """A process has ended: so has its pod."""
        state = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}
        self._status(container.pod, "Succeeded" if code == 0 else "Failed", state)

    def _gone(self, key: tuple[str, str]) -> None:
        with contextlib.suppress(KeyError):
            self.server.delete("pods", *key)
