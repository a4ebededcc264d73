"""Pictures out of a seed: six kinds, one file each."""

import random
from collections.abc import Callable
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


def choose_kind(rng: random.Random) -> str:
    """A kind, drawn as `KINDS` says."""
    return rng.choices(list(KINDS), list(KINDS.values()))[0]
