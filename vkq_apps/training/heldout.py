"""Pictures apart from those of training, by the names of their seeds.

A picture's seed is a text, and each use has a prefix of its own: training draws "train/...", the
held-out pictures "heldout/...", those that tables are calibrated with "calibration/...". So no
picture of one use is one of another.
"""

import random
from collections.abc import Sequence
from typing import Any

from vkq_apps.training.chunks import ChunkArrays, new_chunk, render_row
from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.pictures import KINDS, Picture, make_picture

__all__ = ["calibration_picture", "calibration_questions", "heldout", "heldout_chunk"]


def heldout(kind: str, index: int, *, seed: int | None = None) -> Picture:
    """Held-out picture number `index` of a kind, at full difficulty.

    Args:
        kind: one of `KINDS`.
        index: from 0 on.
        seed: another series of pictures for every number; None: the series that training is
            measured with.
    """
    return make_picture(kind, _heldout_seed(index, seed))


def calibration_picture(kind: str, index: int, *, seed: int = 0) -> Picture:
    """Picture number `index` of a kind to calibrate with: none that is ever scored."""
    return make_picture(kind, f"calibration/{seed}/{index}")


def calibration_questions(
    count: int, *, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)
) -> list[tuple[Any, str]]:
    """Pictures to calibrate with, of each kind in turn, and one question about each."""
    drawn = []
    for number in range(count):
        index, place = divmod(number, len(kinds))
        picture = calibration_picture(kinds[place], index, seed=seed)
        drawn.append((picture.image, picture.turns[index % len(picture.turns)].question))
    return drawn


def heldout_chunk(count: int, encoding: Encoding = RECIPE) -> ChunkArrays:
    """The first `count` held-out pictures of every kind, kind by kind, as packed rows."""
    chunk = new_chunk(count * len(KINDS), encoding.row_length)
    for number, kind in enumerate(KINDS):
        for index in range(count):
            # In random order, so that turns which do not fit are not always the last ones.
            seed = _heldout_seed(index, None)
            place, rng = number * count + index, random.Random(seed)
            render_row(chunk, place, kind, seed, rng=rng, encoding=encoding)
    return chunk


def _heldout_seed(index: int, seed: int | None) -> str:
    return f"heldout/{index}" if seed is None else f"heldout/{seed}/{index}"
