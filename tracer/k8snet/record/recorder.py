"""A trace written to a file while it runs, with all that its own judgement has.

In: the calls of a `k8snet.trace.Listener`. Out: a `k8snet.record.file.Recording`. The lines are an agent's, with two
differences: nothing is left out, and the inventory is the whole one, because who replays may ask for another part.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet.agent import lines
from k8snet.agent.join import Half, take
from k8snet.agent.report import Reporter
from k8snet.errors import K8snetError
from k8snet.record.file import Recording

if TYPE_CHECKING:
    from k8snet.cluster.inventory import Inventory
    from k8snet.findings.case import Kernel
    from k8snet.judge import Observation
    from k8snet.trace import Request

# A guess. Of a node where pods come and go for weeks, the last ones to come are those of whom there is still something.
_KEPT: Final = 16_384


class Known:
    """A `State`: what a reader of all lines up to now would know."""

    def __init__(self) -> None:
        self._half: Half | None = None

    def hear(self, text: str) -> None:
        """A line has been written."""
        line = lines.understood(text)
        if isinstance(line, lines.Hello):
            self._half = self._half or Half(line)
        elif isinstance(line, lines.Facts | lines.Names | lines.Ready) and self._half is not None:
            take(self._half, line)

    def snapshot(self) -> Iterator[str]:
        """The same in as few lines as possible."""
        half = self._half
        if half is None:
            return
        half.facts = {name: _newest(value) for name, value in half.facts.items()}
        yield lines.written(half.hello)
        yield lines.written(lines.Facts(**half.facts))
        yield lines.written(lines.Names(half.reasons, half.symbols))
        if half.ready is not None:
            yield lines.written(half.ready)


def _newest(value: object) -> object:
    if isinstance(value, Mapping) and len(value) > _KEPT:
        return dict(list(value.items())[-_KEPT:])
    return value


class Recorder(Reporter):
    """A trace's listener that writes to a file."""

    def __init__(self, file: Recording, kernel: Kernel) -> None:
        super().__init__(file, kernel, whole=True)
        self._file = file

    @property
    def has_begun(self) -> bool:
        """Something may have been seen."""
        return self._world is not None

    def complete(self, seen: Observation, inventory: Inventory) -> Observation:
        """Write what is known at the end; `seen`, with a note if the recording lacks something."""
        self.finish(seen, inventory)
        failure = self._file.close()
        return replace(seen, notes=(*seen.notes, failure)) if failure else seen


@contextmanager
def recorder(path: Path, request: Request, ring: int = 0, *, overwrite: bool = False) -> Iterator[Recorder]:
    """Whom to tell what is traced. Raises K8snetError when the file cannot be made; later a full disk ends no trace."""
    from k8snet.trace import KernelNames

    with Recording(path, ring, Known() if ring else None, overwrite=overwrite) as file:
        writer = Recorder(file, KernelNames())
        writer.hello(os.environ.get("NODE_NAME") or socket.gethostname())
        writer.asked(request)
        try:
            yield writer
        except BaseException as error:
            if not writer.has_begun:
                file.discard()
            elif isinstance(error, K8snetError):
                writer.fail(error.problem, error.remedy, error.more)
            raise
