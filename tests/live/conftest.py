"""The live suite: root, real packets, network namespaces of its own. Says what it ran on, and fails if it ran nothing.

In a virtual machine without hardware support (`make vm`, where K8SNET_VM is set) everything takes longer, so tests
multiply what they wait for by `patience()`; a number that a human would wait for is still the number in the test.
"""

from __future__ import annotations

import os
import platform
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from k8snet.lab.lab import BACKENDS
from k8snet.lab.scenarios import SCENARIOS, Scenario


def patience() -> float:
    """How much longer than on a real machine to wait: 1.0, or what the virtual machine's harness says."""
    return float(os.environ.get("K8SNET_PATIENCE", "1.0"))


# Starts, kills and races processes a hundred times: it takes minutes where the machine is emulated, and says nothing of
# the kernel that it did not say on the running one.
about_processes = pytest.mark.skipif("K8SNET_VM" in os.environ, reason="about processes, not about the kernel")


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Processes inherit what their starter ignores: nohup SIGHUP, a script's background SIGINT."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _kernel(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Which kernel the results are of: tests/matrix.py makes a column of it."""
    record_testsuite_property("kernel", platform.release())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is another kernel's share, for `make vm`, which has no time for everything everywhere.

    K8SNET_BACKENDS="nftables": only that back end, unless a test knows no other. K8SNET_SHARE=1/4: of the scenarios
    every eighth, so that four kernels play every other one; where a scenario is played twice (test_tiers), every 32nd;
    of the other tests every fourth.
    """
    chosen = os.environ.get("K8SNET_BACKENDS", "").split() or list(BACKENDS)
    mine, _, shares = os.environ.get("K8SNET_SHARE", "1/1").partition("/")
    others = (item for item in items if _scenario(item) is None)
    places = {item: SCENARIOS.index(s) for item in items if (s := _scenario(item)) is not None}
    places |= {item: place for place, item in enumerate(others)}
    left_out = {
        item
        for item in items
        if not _in_share(item, places[item], int(mine), int(shares))
        or ((backend := _backend(item)) and backend not in _wanted(item, chosen))
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _in_share(item: pytest.Item, place: int, mine: int, shares: int) -> bool:
    # An emulated machine takes half a minute for a scenario.
    rarity = 8 if "test_tiers" in item.nodeid else 2 if _scenario(item) is not None else 1
    every = shares * rarity if shares > 1 else 1
    return place % every == (mine - 1) * every // shares


def _scenario(item: pytest.Item) -> Scenario | None:
    values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    found = values.get("scenario")
    return found if isinstance(found, Scenario) else None


def _backend(item: pytest.Item) -> str | None:
    """The back end that a test is parametrized with, alone or as the first part of a lab."""
    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    firsts = (value[0] if isinstance(value, tuple) else value for value in values)
    return next((first for first in firsts if isinstance(first, str) and first in BACKENDS), None)


def _wanted(item: pytest.Item, chosen: list[str]) -> list[str]:
    """Of this item's back ends the chosen ones; the first, if there is none."""
    scenario = _scenario(item)
    possible = scenario.backends or BACKENDS if scenario is not None else BACKENDS
    return [backend for backend in possible if backend in chosen] or [possible[0]]


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
