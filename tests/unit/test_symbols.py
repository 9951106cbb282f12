"""Names for addresses and hooks, from a kallsyms of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8snet.event import HOOK_NONE
from k8snet.kernel.symbols import Symbols, hook_name

KALLSYMS = """\
ffffffff81000000 T _stext
ffffffff81000100 t ip_error
ffffffff81000200 t ip_fragment.constprop.0
ffffffff81000300 t nf_hook_slow.isra.0.cold
ffffffff81000400 D not_code
ffffffff81000500 t __pfx_nft_do_chain
ffffffff81000510 T nft_do_chain
"""
MODULE = "ffffffffc0400000 t br_handle_frame_finish\t[bridge]\n"


@pytest.fixture
def kallsyms(tmp_path: Path) -> Path:
    """A file in the format of /proc/kallsyms."""
    file = tmp_path / "kallsyms"
    file.write_text(KALLSYMS)
    return file


@pytest.mark.parametrize(
    ("address", "name"),
    [
        pytest.param(0xFFFFFFFF81000100, "ip_error+0x0", id="first-byte"),
        pytest.param(0xFFFFFFFF810001FF, "ip_error+0xff", id="last-byte"),
        pytest.param(0xFFFFFFFF81000210, "ip_fragment+0x10", id="constprop"),
        pytest.param(0xFFFFFFFF81000301, "nf_hook_slow+0x1", id="isra-and-cold"),
        pytest.param(0xFFFFFFFF81000520, "nft_do_chain+0x10", id="not-its-padding"),
    ],
)
def test_an_address_is_named_by_the_function_it_lies_in(kallsyms: Path, address: int, name: str) -> None:
    assert str(Symbols(kallsyms).symbol(address)) == name


def test_address_zero_and_what_lies_before_all_code_have_no_name(kallsyms: Path) -> None:
    assert Symbols(kallsyms).symbol(0) is None
    assert Symbols(kallsyms).symbol(0xFFFF) is None


def test_a_module_that_was_loaded_later_is_found(kallsyms: Path) -> None:
    symbols = Symbols(kallsyms)
    assert str(symbols.symbol(0xFFFFFFFF81000100)) == "ip_error+0x0"
    with kallsyms.open("a") as file:
        file.write(MODULE)
    assert str(symbols.symbol(0xFFFFFFFFC0400010)) == "br_handle_frame_finish+0x10 [bridge]"


def test_hidden_addresses_give_no_names(tmp_path: Path) -> None:
    hidden = tmp_path / "kallsyms"
    hidden.write_text("0000000000000000 T ip_error\n0000000000000000 T ip_rcv\n")
    assert Symbols(hidden).symbol(0xFFFFFFFF81000100) is None


@pytest.mark.parametrize(
    ("hook", "name"), [(0, "prerouting"), (2, "forward"), (4, "postrouting"), (5, "hook 5"), (HOOK_NONE, None)]
)
def test_hooks_are_named_as_in_nft(hook: int, name: str | None) -> None:
    assert hook_name(hook) == name
