"""What the user can act on, and the exit codes that say how a command ended.

One exception for the whole program: `K8snetError` is printed as two lines (what is wrong, what to do next)
by the command line and nowhere else. Everything that is not a `K8snetError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended, for scripts."""

    OK = 0
    PROBLEM = 1  # a FAIL finding
    USAGE = 2  # usage, privilege, RBAC, no BTF
    INCONCLUSIVE = 3  # no matching packet, or a hop that could not be observed
    INTERRUPTED = 130


class K8snetError(Exception):
    """Something the user can mend: `problem` in one sentence with the value, `remedy` as a next step or command.

    `more`: lines to copy, where one line cannot hold them.
    """

    def __init__(self, problem: str, remedy: str, code: Exit = Exit.USAGE, more: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.code = code
        self.more = more
