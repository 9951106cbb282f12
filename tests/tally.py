"""Reads the JUnit files of the suites that had to run; prints a line for each, and the sum.

In: a directory and the names of the suites (`unit` is `unit.xml`). Exit code 1 if anything failed, or if a suite ran
nothing: no file, no test, or all of them skipped. Needs nothing but Python, so that it can speak when set-up failed.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET  # our own files, written by pytest a moment ago
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tally:
    """How many tests of one suite ended how; `failed` counts errors of fixtures too."""

    passed: int
    failed: int
    skipped: int
    kernel: str = ""  # `uname -r`, where the suite says it

    @property
    def good(self) -> bool:
        """Something ran, and all of it passed."""
        return self.passed > 0 and self.failed == 0


def read(file: Path) -> Tally:
    """The tally of one JUnit file; of one that is absent or cut off, nothing."""
    try:
        suites = list(ET.parse(file).getroot().iter("testsuite"))  # noqa: S314 - written by pytest a moment ago
        kernels = [p.get("value", "") for s in suites for p in s.iterfind("properties/property[@name='kernel']")]
    except (FileNotFoundError, ET.ParseError):
        return Tally(0, 0, 0)

    def total(attribute: str) -> int:
        return sum(int(suite.get(attribute, "0")) for suite in suites)

    failed, skipped = total("failures") + total("errors"), total("skipped")
    return Tally(max(0, total("tests") - failed - skipped), failed, skipped, next(iter(kernels), ""))


def main(directory: str, *names: str) -> int:
    """Print the tallies; 0 if all suites are good."""
    tallies = {name: read(Path(directory, f"{name}.xml")) for name in names}
    for name, tally in tallies.items():
        note = "" if tally.passed or tally.failed else ": RAN NOTHING"
        label = f"{name} ({tally.kernel})" if tally.kernel else name
        print(f"{label}: {tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped{note}")
    good = all(tally.good for tally in tallies.values())
    empty = sum(not (tally.passed or tally.failed) for tally in tallies.values())
    failed = sum(tally.failed for tally in tallies.values()) + empty
    print(f"{sum(tally.passed for tally in tallies.values())} passed, {failed} failed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
