"""The documentation keeps up with the program: every finding has its page, links lead somewhere, commands parse.

What is pasted from a run (reports, tables) is real on the day it is pasted; what can go stale in it without a kernel to
ask (codes, commands, links, scenarios) is compared here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from k8snet import __version__
from k8snet.cli import parser
from k8snet.findings.catalogue import FINDINGS
from k8snet.findings.entry import Entry
from k8snet.lab.scenarios import SCENARIOS
from k8snet.watch import catalogue

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "docs" / "findings"
DOCUMENTS: Final = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")))
SECTIONS: Final = (
    "What k8snet prints",
    "Why it happens",
    "How to be sure",
    "How to mend it",
    "What else it could be",
)
# In a sentence, without the arguments that they need.
NAMED: Final = ("k8snet trace", "k8snet lab", "k8snet lab run", "k8snet agent", "k8snet join", "k8snet replay")
CODES: Final = tuple(entry.code for entry in FINDINGS)
WATCHED: Final = tuple(catalogue.CODES)  # those that only a watch can have

_FENCE: Final = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_INLINE: Final = re.compile(r"`(k8snet [^`]+)`")
_OPERATORS: Final = frozenset("();<>|&")


def name(path: Path) -> str:
    """The id of a document in test names."""
    return str(path.relative_to(ROOT))


def page(code: str) -> str:
    return (PAGES / f"{code}.md").read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """The content of the code blocks in that language."""
    return [body for marked, body in _FENCE.findall(text) if marked == language]


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def headings(text: str) -> list[str]:
    return [line.lstrip("# ") for line in prose(text).splitlines() if line.startswith("#")]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each k8snet command that a reader would type; one that is only named has none to check."""
    typed = [line.strip().removeprefix("$ ") for _, body in _FENCE.findall(text) for line in body.splitlines()]
    for command in (*typed, *(c for c in _INLINE.findall(prose(text)) if c not in NAMED)):
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a sentence with an apostrophe
            continue
        if not words or Path(words[0]).name != "k8snet":
            continue
        end = next((i for i, word in enumerate(words) if set(word) <= _OPERATORS), len(words))
        yield words[1:end]


COMMANDS: Final = [
    pytest.param(arguments, id=f"{name(path)}: {shlex.join(arguments)}")
    for path in DOCUMENTS
    for arguments in commands(path.read_text(encoding="utf-8"))
]


def test_every_finding_has_a_page_and_every_page_a_finding() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == {*CODES, *WATCHED}


@pytest.mark.parametrize("code", [*CODES, *WATCHED])
def test_a_page_has_its_title_a_sentence_and_all_sections(code: str) -> None:
    assert headings(page(code)) == [code, *SECTIONS]
    sentence = " ".join(page(code).split("\n\n")[1].split())
    assert 40 <= len(sentence) <= 160
    assert sentence.endswith(".")


@pytest.mark.parametrize("code", [*CODES, *WATCHED])
def test_a_section_is_never_empty(code: str) -> None:
    bodies = re.split(r"^## .*$", page(code), flags=re.MULTILINE)[1:]
    assert all(len(body.split()) > 5 for body in bodies)


@pytest.mark.parametrize("code", CODES)
def test_a_page_shows_a_report_with_its_code(code: str) -> None:
    reports = [block for block in fenced(page(code), "text") if block.startswith("from ")]
    assert len(reports) == 1
    title = next(line for line in reports[0].splitlines() if line.startswith(("✗ ", "? ", "! ", "· ")))
    assert title.split()[-1] == code


@pytest.mark.parametrize("code", WATCHED)
def test_a_page_of_a_watch_shows_its_line_with_its_code(code: str) -> None:
    (shown,) = fenced(page(code), "text")
    assert shown.splitlines()[0].split()[-1] == code
    assert shown.splitlines()[1].split()[0] == "next"


@pytest.mark.parametrize("code", [*CODES, *WATCHED])
def test_a_page_has_commands_to_be_sure(code: str) -> None:
    _, _, rest = page(code).partition("## How to be sure")
    assert fenced(rest.partition("\n## ")[0], "console")


@pytest.mark.parametrize("entry", FINDINGS, ids=CODES)
def test_the_index_has_each_finding_in_the_order_of_the_catalogue(entry: Entry) -> None:
    rows = [line for line in page("README").splitlines() if line.startswith("| [")]
    assert rows[FINDINGS.index(entry)] == f"| [{entry.code}]({entry.code}.md) | {entry.about} |"
    watched = [f"| [{code}]({code}.md) | {about} |" for code, about in catalogue.CODES.items()]
    assert rows[len(FINDINGS) :] == watched


@pytest.mark.parametrize("code", CODES)
def test_a_lab_scenario_makes_it_happen_and_the_page_shows_its_report(code: str) -> None:
    """The live tests compare what that report says with what is said today: it is the code's golden text."""
    own = {s.name for s in SCENARIOS if s.expected.code == code}
    assert own
    assert own & set(re.findall(r"`k8snet lab run ([\w-]+)` makes it happen", page(code)))


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.expected.code], ids=lambda s: s.name)
def test_a_scenario_expects_a_known_code_and_stands_on_its_page(scenario: object) -> None:
    expected, called = scenario.expected.code, scenario.name  # type: ignore[attr-defined]  # pytest hands on objects
    assert expected in CODES
    assert f"k8snet lab run {called}" in page(expected)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(prose(path.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        where, _, fragment = target.partition("#")
        found = (path.parent / where).resolve() if where else path
        assert found.exists(), f"{target} in {name(path)}"
        if fragment:
            assert fragment in map(anchor, headings(found.read_text(encoding="utf-8"))), f"{target} in {name(path)}"


def test_commands_are_found() -> None:
    readme = list(commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {arguments[0] for arguments in readme} >= {"trace", "map", "check", "lab", "cleanup"}


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_parses(arguments: list[str]) -> None:
    try:
        parser().parse_args(arguments)
        code: object = 0
    except SystemExit as end:  # --help and --version
        code = end.code
    assert code == 0


def test_the_readme_begins_with_the_two_commands() -> None:
    first_block = fenced((ROOT / "README.md").read_text(encoding="utf-8"), "console")[0]
    assert first_block.splitlines() == ["$ make demo", "$ make test"]


def test_the_readme_has_targets_that_make_knows() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        asked = re.findall(r"(?:^ *\$ |`)make (\w[\w-]*)", text, re.MULTILINE)
        assert set(asked) <= known, name(path)


def test_the_changelog_has_the_version_and_every_code() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert __version__ in changelog
    assert all(f"[{code}]" in changelog for code in (*CODES, *WATCHED))
