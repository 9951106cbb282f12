"""A command of the user's is run when something is found (`--exec`): never through a shell, never waited for.

In: the words of the command and one JSON document a finding. Out: processes, of which there are few at once and not
many a minute; what is left out is counted. The document is on stdin as a file that is there already, so nobody waits
for a command that does not read it. One that hangs is ended by timeout(1), which goes on counting when k8snet itself
is killed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import IO, Final

from k8snet.errors import K8snetError

AT_ONCE: Final = 4
EVERY: Final = 2.0  # seconds: so often on average ...
SPARE: Final = 10  # ... after so many in a row
LIMIT: Final = 30  # seconds that one of them may take
GRACE: Final = 2  # seconds between SIGTERM and SIGKILL


def words_of(command: str) -> list[str]:
    """The command line as a list; raises K8snetError when there is no such program."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise K8snetError(f"--exec {command!r}: {error}", "close the quotation mark") from None
    if not words:
        raise K8snetError("--exec names no command", "write --exec 'logger -t k8snet'")
    if shutil.which(words[0]) is None:
        raise K8snetError(
            f"--exec: there is no program {words[0]!r}",
            "write its path; there is no shell: pipes and $VARIABLES belong in a script",
        )
    if shutil.which("timeout") is None:
        raise K8snetError("--exec needs timeout(1), which ends commands that hang", "apt-get install coreutils")
    return words


class Runner:
    """Runs one command for each finding that it is offered, within limits."""

    def __init__(self, words: list[str], output: IO[str] | int) -> None:
        """`output`: where the commands' stdout and stderr go; never our stdout, which is for data."""
        self._words = ["timeout", f"--kill-after={GRACE}", str(LIMIT), *words]
        self._output = output
        self._running: list[subprocess.Popen[bytes]] = []
        self._budget = float(SPARE)
        self._refilled = time.monotonic()
        self.ran = 0
        self.skipped = 0  # too many at once, or too soon after the others
        self.failed = 0  # ended with an exit code other than 0, or could not be started

    def offer(self, document: str, environment: Mapping[str, str]) -> None:
        """Run it with `document` on stdin, if there is room."""
        self.poll()
        now = time.monotonic()
        self._budget = min(SPARE, self._budget + (now - self._refilled) / EVERY)
        self._refilled = now
        if self._budget < 1 or len(self._running) >= AT_ONCE:
            self.skipped += 1
            return
        self._budget -= 1
        with os.fdopen(os.memfd_create("k8snet-finding", os.MFD_CLOEXEC), "w+", encoding="utf-8") as file:
            file.write(document + "\n")
            file.seek(0)
            try:
                process = subprocess.Popen(
                    self._words,
                    stdin=file,
                    stdout=self._output,
                    stderr=self._output,
                    env={**os.environ, **environment},
                    start_new_session=True,  # a Ctrl-C is for us
                )
            except OSError:
                self.failed += 1
                return
        self.ran += 1
        self._running.append(process)

    def poll(self) -> None:
        """Look which have ended; waits for nothing."""
        ended = [process for process in self._running if process.poll() is not None]
        self._running = [process for process in self._running if process not in ended]
        self.failed += sum(process.returncode != 0 for process in ended)

    @property
    def running(self) -> int:
        """How many have not ended yet."""
        return len(self._running)

    def finish(self) -> None:
        """Wait for those that run, no longer than they may take; a Ctrl-C meanwhile ends them."""
        try:
            while self._running:
                self.poll()
                time.sleep(0.02)
        except KeyboardInterrupt:
            for process in self._running:
                process.terminate()  # timeout(1) hands it on
            deadline = time.monotonic() + GRACE + 1
            while self._running and time.monotonic() < deadline:
                self.poll()
                time.sleep(0.02)
