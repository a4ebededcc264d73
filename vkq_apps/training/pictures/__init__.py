"""Pictures out of a seed: five kinds, one file each."""

import random
from collections.abc import Callable
from types import MappingProxyType

from vkq_apps.training.pictures import bars, documents, scenes, shapes, text_lines
from vkq_apps.training.pictures.canvas import GRID, SIZE, Picture, Turn

__all__ = ["GRID", "KINDS", "SIZE", "Picture", "Turn", "choose_kind", "make_picture"]

_DRAW: dict[str, Callable[[random.Random, float], Picture]] = {
    "text": text_lines.draw,
    "document": documents.draw,
    "scene": scenes.draw,
    "shapes": shapes.draw,
    "bars": bars.draw,
}

KINDS = MappingProxyType(
    {"text": 0.31, "document": 0.24, "scene": 0.24, "shapes": 0.1, "bars": 0.11}
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
