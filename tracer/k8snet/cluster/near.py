"""What a name that nothing has may have meant: the things whose names begin with it, or look like it.

In: the name, and the things there are. Out: those things, the likeliest first. Two slips matter: a Deployment's name
given for its pods (`cart` for `cart-7d4f9c-x2x8k`), and letters that changed places (`crat`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from k8snet.cluster.spelling import spell

_ALIKE: Final = 3  # a guess: pods of one Deployment that one message names


@dataclass(frozen=True, slots=True)
class Thing:
    """Anything that can be named; `namespace` is empty for a node."""

    kind: str
    namespace: str
    name: str

    @property
    def spelled(self) -> str:
        """So that it means nothing else."""
        return spell(self.kind, self.namespace, self.name)


def near(name: str, things: Iterable[Thing]) -> list[Thing]:
    """Candidates for `name`: itself, what begins with it, what looks like it as a whole or in its first words."""
    by_name: dict[str, list[Thing]] = {}
    for thing in things:
        by_name.setdefault(thing.name, []).append(thing)
    begins = [other for other in sorted(by_name) if other == name or other.startswith(f"{name}-")]
    close = similar(name, by_name)
    # `crat` is nothing like `cart-7d4f9c-x2x8k` as a whole, only like its first words, which many pods share.
    stems: dict[str, list[str]] = {}
    for other in by_name:
        words = other.split("-")
        for count in range(1, len(words)):
            stems.setdefault("-".join(words[:count]), []).append(other)
    close += [other for stem in similar(name, stems, 0.7) for other in stems[stem][:_ALIKE]]
    return [thing for other in dict.fromkeys([*begins, *close]) for thing in by_name[other]]


def similar(name: str, others: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The three of `others` that look most like `name`."""
    import difflib  # 12 ms, for messages only

    return difflib.get_close_matches(name, list(others), 3, cutoff)
