"""Chunks: arrays of rendered pictures with their packed rows and labels."""

import dataclasses
import random
from collections.abc import Mapping

import numpy as np

from vkq_apps.training.encoding import RECIPE, Encoding
from vkq_apps.training.pictures import (
    GRID,
    KINDS,
    NUM_SLOTS,
    SIZE,
    choose_kind,
    make_picture,
)
from vkq_apps.training.rows import LANES, pack_row

__all__ = ["ChunkArrays", "fill_chunk", "new_chunk", "render_row"]


@dataclasses.dataclass(frozen=True)
class ChunkArrays:
    """n training examples.

    Attributes:
        images: uint8 [n, 336, 336, 3].
        rows: int16 [n, 5, R], see `rows.LANES`.
        labels: uint8 [n, 576, 7], classes of what is in each patch; see `Picture`.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def shapes(size: int, row_length: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of each array of a chunk of `size` examples."""
    return {
        "images": ((size, SIZE, SIZE, 3), np.uint8),
        "rows": ((size, len(LANES), row_length), np.int16),
        "labels": ((size, GRID * GRID, NUM_SLOTS), np.uint8),
    }


def new_chunk(size: int, row_length: int = RECIPE.row_length) -> ChunkArrays:
    """An empty chunk in ordinary memory."""
    specs = shapes(size, row_length)
    return ChunkArrays(**{name: np.zeros(*spec) for name, spec in specs.items()})


def fill_chunk(
    chunk: ChunkArrays,
    seed: str,
    difficulty: float,
    encoding: Encoding = RECIPE,
    shares: Mapping[str, float] = KINDS,
) -> None:
    """Renders training examples: most at `difficulty`, the rest easier; kinds by their shares."""
    for index in range(len(chunk.images)):
        rng = random.Random(f"{seed}/{index}")
        level = difficulty if rng.random() < 0.7 else rng.uniform(0.1, difficulty)
        picture = f"train/{seed}/{index}"
        render_row(chunk, index, choose_kind(rng, shares), picture, level, rng, encoding)


def render_row(
    chunk: ChunkArrays,
    index: int,
    kind: str,
    seed: str,
    difficulty: float = 1.0,
    rng: random.Random | None = None,
    encoding: Encoding = RECIPE,
) -> None:
    """Renders one picture into place `index`; `rng` shuffles its turns."""
    picture = make_picture(kind, seed, difficulty)
    chunk.images[index] = picture.image
    chunk.rows[index] = pack_row(picture.turns, rng, encoding)
    chunk.labels[index] = picture.labels
