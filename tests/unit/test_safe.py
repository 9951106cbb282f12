"""Whatever a name holds, it is text on the terminal and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.render.safe import inert, inert_all
from unit.reports import ASKED, hostile_names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("shop/cart-7d4f", "shop/cart-7d4f", id="a-name"),
        pytest.param("\x1b[31mred", r"\x1b[31mred", id="csi"),
        pytest.param("\x1b]0;title\x07", r"\x1b]0;title\x07", id="osc"),
        pytest.param("\x9b31m", r"\x9b31m", id="c1"),
        pytest.param("a\nb\rc\td\0", r"a\nb\rc\td\x00", id="control"),
        pytest.param("\u202egnp.exe", r"\u202egnp.exe", id="right-to-left-override"),
        pytest.param("a\u200bb\ufeff", r"a\u200bb\ufeff", id="zero-width"),
        pytest.param("a\u2028b\xa0c", r"a\u2028b\xa0c", id="odd-spaces"),
        pytest.param("\udc80", r"\udc80", id="surrogate"),
        pytest.param("\U000e0041", r"\U000e0041", id="tag"),
        pytest.param("支払い é µs", "支払い é µs", id="letters"),
        pytest.param("[red]x[/]", "[red]x[/]", id="markup-is-text"),
    ],
)
def test_only_printable_characters_come_out(text: str, shown: str) -> None:
    assert inert(text) == shown


@given(st.text())
def test_the_result_is_printable_and_stays_as_it_is(text: str) -> None:
    assert inert(text).isprintable()
    assert inert(inert(text)) == inert(text)


def test_every_string_of_a_report_is_made_inert() -> None:
    assert not repr_of(hostile_names()).isprintable()
    assert repr_of(inert_all(hostile_names())).isprintable()


def test_what_is_no_string_stays_what_it_is() -> None:
    made = inert_all(hostile_names())
    assert made.verdict is hostile_names().verdict
    assert made.paths[0].hops[0].header == ASKED
    assert type(made.paths[0].hops[0].header) is type(ASKED)
    assert inert_all({"a\x1b": ("b\x1b", 1, None)}) == {r"a\x1b": (r"b\x1b", 1, None)}


def repr_of(value: object) -> str:
    """Every string inside, joined; unlike repr(), it escapes nothing."""
    from dataclasses import fields, is_dataclass

    if isinstance(value, str):
        return value
    if is_dataclass(value):
        return "".join(repr_of(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple | list):
        return "".join(map(repr_of, value))
    return ""
