"""The command line: one module a command, thin, imported only to describe its arguments.

Each command module has `register(commands)`, which adds its parser and sets `run`, a function from the parsed
arguments to an `Exit`. Whatever is heavy (rich, netlink, the loader) is imported inside `run`, so that
`k8snet --help` stays below 0.2 s. Errors that the user can act on are printed here and nowhere else.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from k8snet import __version__
from k8snet.errors import Exit, K8snetError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as everything else is said, and knows no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Not the usage: it hides the one line that matters."""
        raise K8snetError(message, f"see: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The whole command line, as `k8snet --help` prints it."""
    from k8snet.cli import agent, check, cleanup, completion, install, join, lab, replay, trace, watch
    from k8snet.cli import map as map_

    top = _top("k8snet", "Follow one flow through a Kubernetes node: where it died, why, which rule is to blame, ")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (trace, watch, map_, check, agent, join, replay, lab, install, cleanup, completion):
        command.register(commands)
    return top


def plugin() -> argparse.ArgumentParser:
    """What `kubectl k8snet --help` prints: the commands that need a cluster and no node."""
    from k8snet.cli import install, remote

    top = _top(
        "kubectl k8snet", "Follow one flow through a Kubernetes cluster: where it died, why, which rule is to blame, "
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (remote, install):
        command.register(commands)
    return top


def _top(program: str, purpose: str) -> _Parser:
    top = _Parser(
        prog=program,
        description=f"{purpose}and how to mend it.",
        epilog="exit codes: 0 healthy, 1 a problem was found, 2 usage or privilege, 3 inconclusive, 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"k8snet {__version__}")
    return top


def main(understood: Callable[[], argparse.ArgumentParser] | None = None) -> int:
    """The process's command line, its signals and its streams; returns the exit code. `understood`: not `parser`."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored: a script runs us in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # `timeout 5 k8snet trace ...` and systemd then end a trace as Ctrl-C does: with the report.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        sys.unraisablehook = _unraisable
        _open_streams()
        code = execute(understood=understood) if understood else execute()
    except BaseException as error:
        # Python makes a RuntimeError of a Ctrl-C that comes while a dataclass is being made.
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):
            raise
        code = Exit.INTERRUPTED
    # How it went is settled: no Ctrl-C is to add a traceback from Python's own shutdown.
    for interrupt in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(interrupt, signal.SIG_IGN)
    return int(code)


def execute(arguments: Sequence[str] | None = None, understood: Callable[[], argparse.ArgumentParser] = parser) -> Exit:
    """Run one command. What the user can act on is printed here; everything else is a bug and is raised."""
    code = Exit.OK
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["__complete"]:  # what a shell asks at each Tab: no command, and in no list of them
            from k8snet.cli import completion

            completion.answer(understood(), words[1:])
            sys.stdout.flush()
            return code
        try:
            args = understood().parse_args(arguments)
        except SystemExit:  # --help and --version, printed by argparse
            args = argparse.Namespace(run=lambda _: Exit.OK)
        code = Exit(args.run(args))
        sys.stdout.flush()
    except K8snetError as error:
        from k8snet.render.safe import inert

        lines = (f"k8snet: {error.problem}", f"  {error.remedy}", *(f"  {line}" for line in error.more))
        print("\n".join(inert(line) for line in lines), file=sys.stderr)
        return error.code
    except BrokenPipeError:
        _give_up_stdout()
        return Exit.INTERRUPTED  # the reader (head, less) went before it could be told how it went
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _give_up_stdout()
        print("k8snet: there is no space left to write to\n  see: df", file=sys.stderr)
        return Exit.USAGE
    return code


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Python loses a Ctrl-C that comes inside a callback from C (libbpf's) or a finalizer: let it come again."""
    if what.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    else:
        sys.__unraisablehook__(what)


def _give_up_stdout() -> None:
    """What is still buffered goes nowhere: else Python complains of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_streams() -> None:
    """Standard streams that were closed lead to /dev/null; else the next file opened would be taken for them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a name is no reason to end
