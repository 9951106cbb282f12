"""The golden text of a finding is the report on its page in docs/findings: what it says must be what is said today.

Compared is what a report says (title, where it left the expected path, why, evidence, rule, fix), not the path with its
times. What differs from run to run (ports, counts, inode numbers) is made equal first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PAGES: Final = Path(__file__).parents[2] / "docs" / "findings"
_SAID: Final = ("why ", "rule ", "or ", "fix ")
_EXPECTED: Final = "expected next: "  # the end of a path's block
_VARIES: Final = (
    (re.compile(r"(?<=[\d\]]):[3-6]\d{4}\b"), ":PORT"),  # of the ephemeral range
    (re.compile(r"\b(rose by|handle|netns:|id|after|for|of|\u00d7) ?[\d.]+"), r"\1 N"),
    (re.compile(r"\b[\d.]+ (ms|s|µs|bytes|packets|times|tries|connections)\b"), r"N \1"),
)


def page_of(scenario: str) -> str | None:
    """The report on the page that says this scenario makes it happen; None when no page does."""
    for path in sorted(PAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if f"`k8snet lab run {scenario}` makes it happen" in text:
            blocks: list[str] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
            return next(block for block in blocks if block.startswith("from "))
    return None


def said(report: str) -> list[str]:
    """What a report says, sentence by sentence, without line breaks and without what differs between two runs."""
    parts = report.split("\n\n")
    blocks = [block for block in parts if block.startswith(("✗", "?", "!", *_SAID))]
    blocks += [block[block.index(_EXPECTED) :] for block in parts if _EXPECTED in block]
    words = " ".join(" ".join(block.split()) for block in blocks)
    for pattern, replacement in _VARIES:
        words = pattern.sub(replacement, words)
    return re.split(r"(?<=[.:;]) | · ", words)
