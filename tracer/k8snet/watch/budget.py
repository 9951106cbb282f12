"""What a watch may take: `--memory`, `--max-cpu`, `--max-flows`, `--max-rate` as the engine wants them.

Nothing else is imported before it is needed: `k8snet --help` shows the defaults.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from k8snet.watch.engine import Limits

FLOWS: Final = 10_000  # as in k8snet.watch.engine
RATE: Final = 20_000  # events a second, as in k8snet.watch.live
CPU: Final = 50  # per cent of one processor, likewise
RING: Final = 8 << 20  # bytes, likewise
BASE: Final = 128 << 20  # bytes for Python, the client of the API, and names; with few names it is a half of that
FLOW: Final = 10 << 10  # bytes that one connection in the table takes at most
_LEAST_RING: Final = 1 << 20
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
LEAST: Final = 160 << 20
MOST: Final = 16 << 30


def memory(text: str) -> int:
    """Bytes, written as in a pod's resources: 256Mi, 1Gi, 300M."""
    found = re.fullmatch(r"([0-9]{1,12})(|k|M|G|Ki|Mi|Gi)", text)
    size = int(found[1]) * _UNITS[found[2]] if found else 0
    if not LEAST <= size <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory from {LEAST >> 20}Mi to 16Gi")
    return size


def ring_of(whole: int | None) -> int:
    """Bytes of the buffer of events: an eighth of what is to share, a power of two as the kernel wants it."""
    if whole is None:
        return RING
    return max(_LEAST_RING, 1 << ((whole - BASE) // 8).bit_length() - 1)


def limits_of(flows: int | None, whole: int | None, wait: float) -> Limits:
    """What the engine may take: so many connections as were asked for, or as there is room for."""
    from k8snet.watch.engine import Limits

    room = (whole - BASE - ring_of(whole)) // FLOW if whole is not None else FLOWS
    return Limits(flows=flows if flows is not None else room, wait=wait)
