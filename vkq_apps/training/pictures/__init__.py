"""Pictures out of a seed: six kinds, one file each."""

import math
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vkq_apps.training.pictures import bars, documents, scenes, shapes, tables, text_lines
from vkq_apps.training.pictures.canvas import GRID, NUM_FACTS, NUM_SLOTS, SIZE, Picture, Turn

__all__ = [
    "GRID",
    "KINDS",
    "NUM_FACTS",
    "NUM_SLOTS",
    "SIZE",
    "Picture",
    "Turn",
    "choose_kind",
    "make_picture",
    "shares_of",
]

_DRAW: dict[str, Callable[[random.Random, float], Picture]] = {
    "text": text_lines.draw,
    "document": documents.draw,
    "scene": scenes.draw,
    "shapes": shapes.draw,
    "bars": bars.draw,
    "table": tables.draw,
}

KINDS = MappingProxyType(
    {"text": 0.23, "document": 0.13, "scene": 0.26, "shapes": 0.12, "bars": 0.12, "table": 0.14}
)
"""Share of each kind in training."""


def make_picture(kind: str, seed: int | str, difficulty: float = 1.0) -> Picture:
    """The picture of a kind and seed: the same one always and everywhere.

    Args:
        kind: one of `KINDS`.
        seed: any number or text.
        difficulty: 0 to 1; length, size and number of what is shown.
    """
    if kind not in _DRAW:
        raise ValueError(f"kind must be one of {', '.join(_DRAW)}; got {kind!r}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must lie in [0, 1], got {difficulty}")
    return _DRAW[kind](random.Random(f"{kind}/{seed}"), difficulty)


def choose_kind(rng: random.Random, shares: Mapping[str, float] = KINDS) -> str:
    """A kind, drawn by its share; shares need not add up to 1."""
    return rng.choices(list(shares), list(shares.values()))[0]


def shares_of(text: str) -> dict[str, float]:
    """Shares of all kinds from text such as "text=0.5,table=0.2"; the others keep theirs.

    Raises:
        ValueError: an entry of another form, a kind that is none, a share that is no finite number
            from 0 on, or nothing but zeros.
    """
    shares = dict(KINDS)
    for entry in filter(None, map(str.strip, text.split(","))):
        kind, _, number = map(str.strip, entry.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if kind not in KINDS or not 0 <= share < math.inf:
            raise ValueError(
                f"--shares: expected KIND=NUMBER with commas between, kinds of {', '.join(KINDS)}, "
                f"got {entry[:60]!r}"
            )
        shares[kind] = share
    if not any(shares.values()):
        raise ValueError("--shares: expected a share above 0, got 0 for all kinds")
    return shares
