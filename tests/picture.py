"""Draws docs/images/trace.svg, the README's picture of a terminal: `python tests/picture.py`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from k8snet.render.text import WIDTH, styled
from unit.reports import forward_policy_drop

PICTURE: Final = Path(__file__).parent.parent / "docs/images/trace.svg"
COMMAND: Final = "k8snet trace --from shop/cart-7d4f --to svc/shop/payments:80 --send 3"
_THEME: Final = TerminalTheme(
    (24, 26, 31),
    (215, 218, 224),
    [
        (40, 44, 52), (240, 98, 106), (140, 200, 120), (229, 192, 123),
        (97, 175, 239), (198, 120, 221), (96, 190, 205), (215, 218, 224),
    ],
)  # fmt: skip


def picture() -> str:
    """The README's report as SVG; the same every time, so that a diff shows what has changed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(styled(forward_policy_drop(), WIDTH), soft_wrap=True, end="")
    svg = console.export_svg(title=COMMAND, theme=_THEME, unique_id="k8snet")
    # The font is the viewer's own: a picture in a README asks no other host for one.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")
    # Viewers other than browsers (librsvg) trim the no-break spaces that rich writes for indentation.
    return svg.replace("<svg ", '<svg xml:space="preserve" ', 1)


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
