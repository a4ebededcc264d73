"""Tiles of pictures, and which of their features become visual tokens; host arithmetic.

As transformers computes it: rounding here decides how many tokens a picture has.
"""

import math

import jax.numpy as jnp
import numpy as np

from models.families.llava_next.config import LlavaNextConfig
from models.inputs.pixels import pad_to_bucket
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["TileLayout", "clip_rows", "num_tiles", "picture_rows", "tile_layout", "whole_rows"]

_CORNERS = 4  # of bilinear interpolation

type Rows = tuple[np.ndarray, np.ndarray]
"""Numbers of features [visual tokens, corners] and their weights; number -1 is the newline."""


@frozen_pytree
class TileLayout:
    """How features of tiles become visual tokens: sums of a few, by weight.

    Attributes:
        rows: numbers of features, all tiles one after another and the newline behind them.
        weights: of each.
    """

    rows: Int32[Array, "tokens corners"]
    weights: Float[Array, "tokens corners"]


def tile_layout(config: LlavaNextConfig, parts: list[Rows], newline: int) -> TileLayout:
    """The layout of parts one after another, where the newline is feature number `newline`."""
    rows, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    rows = np.where(rows < 0, newline, rows)
    corners = 1 if config.max_tiles is None else _CORNERS
    return TileLayout(
        rows=jnp.asarray(pad_to_bucket(rows[:, :corners]), jnp.int32),
        weights=jnp.asarray(pad_to_bucket(weights[:, :corners]), jnp.float32),
    )


def num_tiles(config: LlavaNextConfig, height: int, width: int) -> int:
    """Tiles of a picture, the one that shows it as a whole included."""
    rows, columns = _tile_grid(config, height, width)
    return rows * columns + 1


def picture_rows(config: LlavaNextConfig, height: int, width: int, first: int) -> Rows:
    """The visual tokens of a picture of this size whose first tile is number `first`.

    Features of the whole picture come first, then those of its tiles row by row, without the
    padding that made the picture fit, and with a newline behind each row.
    """
    side = config.vision.side
    rows, columns = _tile_grid(config, height, width)
    tiles = first + 1 + np.arange(rows * columns).reshape(rows, 1, columns, 1)
    within = np.arange(side**2).reshape(1, side, 1, side)
    grid = (tiles * side**2 + within).reshape(rows * side, columns * side)
    numbers, weights = _plain(_without_padding(grid, height, width))
    if config.max_tiles is not None:
        ratio = math.sqrt(numbers.shape[0] * numbers.shape[1] / (config.max_tiles * side**2))
        if ratio > 1.1:
            shape = int(numbers.shape[0] // ratio), int(numbers.shape[1] // ratio)
            numbers, weights = _bilinear(numbers[..., 0], shape)
    newlines, ones = _plain(np.full((len(numbers), 1), -1))
    numbers = np.concatenate([numbers, newlines], axis=1).reshape(-1, _CORNERS)
    weights = np.concatenate([weights, ones], axis=1).reshape(-1, _CORNERS)
    whole, whole_weights = _plain(_one_tile(side, first))
    return np.concatenate([whole, numbers]), np.concatenate([whole_weights, weights])


def whole_rows(config: LlavaNextConfig, first: int) -> Rows:
    """The visual tokens of a picture that is one tile: its features and a newline."""
    return _plain(np.append(_one_tile(config.vision.side, first), -1))


def clip_rows(config: LlavaNextConfig, frames: int, first: int) -> Rows:
    """The visual tokens of a clip: its frames at half their height and width, and a newline."""
    side = config.vision.side
    half = math.ceil(side / 2)
    numbers, weights = _bilinear(np.arange(side**2).reshape(side, side), (half, half))
    starts = (first + np.arange(frames)[:, None, None, None]) * side**2
    newline, one = _plain(np.array([-1]))
    return (
        np.concatenate([(starts + numbers).reshape(-1, _CORNERS), newline]),
        np.concatenate([np.tile(weights.reshape(-1, _CORNERS), (frames, 1)), one]),
    )


def _tile_grid(config: LlavaNextConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles: the size that keeps most of the picture, of those the smallest."""
    best, most, least = config.image_grid_pinpoints[0], 0, math.inf
    for to_height, to_width in config.image_grid_pinpoints:
        scale = min(to_width / width, to_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = to_height * to_width - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (to_height, to_width), kept, wasted
    return best[0] // config.vision.image_size, best[1] // config.vision.image_size


def _without_padding(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = grid.shape
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return grid[padding : rows - padding]
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return grid[:, padding : columns - padding]


def _one_tile(side: int, number: int) -> np.ndarray:
    return number * side**2 + np.arange(side**2)


def _plain(numbers: np.ndarray) -> Rows:
    """Features as they are: the first corner has all the weight."""
    weights = np.zeros((*numbers.shape, _CORNERS))
    weights[..., 0] = 1
    return np.repeat(numbers[..., None], _CORNERS, axis=-1), weights


def _bilinear(grid: np.ndarray, shape: tuple[int, int]) -> Rows:
    """A grid resized as PyTorch does, without antialiasing, corners not aligned."""
    (top, bottom, down), (left, right, across) = (
        _neighbours(old, new) for old, new in zip(grid.shape, shape, strict=True)
    )
    corners = [(y, x) for y in (top, bottom) for x in (left, right)]
    weights = [np.outer(y, x) for y in (1 - down, down) for x in (1 - across, across)]
    return (
        np.stack([grid[np.ix_(y, x)] for y, x in corners], axis=-1),
        np.stack(weights, axis=-1),
    )


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `old` places beside each of `new` ones along an axis, the weight of the second."""
    place = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, old - 1), place - low
