"""The live suite: root, real packets, network namespaces of its own. Says what it ran on, and fails if it ran nothing.

In a virtual machine without hardware support (`make vm`, where K8SNET_VM is set) everything takes longer, so tests
multiply what they wait for by `patience()`; a number that a human would wait for is still the number in the test.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator

import pytest


def patience() -> float:
    """How much longer than on a real machine to wait: 1.0, or what the virtual machine's harness says."""
    return float(os.environ.get("K8SNET_PATIENCE", "1.0"))


# Starts, kills and races processes a hundred times: it takes minutes where the machine is emulated, and says nothing of
# the kernel that it did not say on the running one.
about_processes = pytest.mark.skipif("K8SNET_VM" in os.environ, reason="about processes, not about the kernel")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without root not one of these tests can run: one line instead of a page of skips."""
    if os.geteuid() != 0 and not session.config.option.collectonly:
        pytest.exit("the live tests make network namespaces and load BPF programs, which needs root: sudo make live", 2)


def _ended(reporter: pytest.TerminalReporter, how: str) -> Iterator[pytest.TestReport]:
    for report in reporter.stats.get(how, []):
        if isinstance(report, pytest.TestReport):
            yield report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A suite whose every test was skipped says nothing about this kernel, and must not look as if it did."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or session.config.option.collectonly:
        return
    if exitstatus == pytest.ExitCode.OK and not list(_ended(reporter, "passed")):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: the kernel, the numbers, why tests were skipped."""
    if terminalreporter.config.option.collectonly:
        return
    passed, skipped = (list(_ended(terminalreporter, how)) for how in ("passed", "skipped"))
    failed = sum(len(terminalreporter.stats.get(how, [])) for how in ("failed", "error"))
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "" for report in skipped
    )
    why = "; ".join(f"{number} x {reason}" for reason, number in reasons.items())
    line = f"live on {platform.release()}: {len(passed)} passed, {failed} failed, {len(skipped)} skipped"
    terminalreporter.write_line(line + (f" ({why})" if why else ""))
    if not passed:
        terminalreporter.write_line("the live suite RAN NOTHING on this kernel, which counts as a failure", red=True)
