"""Draws `layouts.png` by asking `pallas_kernels.layout.layouts` where each word goes.

    uv run python docs/draw_layouts.py

No layout is written here: codes that spell a label, bit by bit, are tiled, and each stored word is
read back as the label of the positions and channels that it holds.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from pallas_kernels.layout import layouts
from vkq_apps.inspection.plots.style import AFTER, BEFORE, INK, SHADE, TEXT, new_figure, styled
from vkq_jax.bits import packing

_HUES = np.array([to_rgb(colour) for colour in (BEFORE, TEXT, "#009E73", AFTER)])
_REST = 72  # positions of the block that is cut short
_STEPS = {"keys": (1, 32), "values": (32, 1)}  # positions and channels of a word
_TILE = {"keys": layouts.tile_keys, "values": layouts.tile_values}
_PLACES = {("keys", 128): (0, 2), ("values", 128): (1, slice(2, 4)), ("keys", 64): (2, 2)}
_LEGEND = "a cell: one word\nnumber: position of keys, channel of values\ndarker: later positions"


def locate(side: str, num_positions: int, head_dim: int) -> np.ndarray:
    """First position and first channel of each stored word, [words, 2]; -1: padding only."""
    positions, channels = _STEPS[side]
    position, channel = np.indices((num_positions, head_dim))
    label = 1 + position // positions * head_dim + channel // channels
    found = 0
    for bit in range(int(label.max()).bit_length()):
        codes = jnp.asarray(label >> bit & 1, jnp.uint32)
        found = found + (np.asarray(_TILE[side](packing.pack(codes, 1))) != 0) * 2**bit
    position, channel = np.divmod(found - 1, head_dim)
    return np.where(found > 0, [position * positions, channel * channels], -1).T


def paint(axes: Axes, side: str, words: np.ndarray, title: str) -> None:
    """Cells [y, x, 2]: see `_LEGEND`."""
    position, channel = words[..., 0], words[..., 1]
    run, number = (channel, position) if side == "keys" else (position, channel)
    strength = 0.22 + 0.48 * position[..., None] / layouts.BLOCK
    colours = 1 - strength * (1 - _HUES[run // 32 % 4])
    axes.imshow(np.where(position[..., None] < 0, to_rgb(SHADE), colours), aspect="auto")
    look = {"ha": "center", "va": "center", "fontsize": 4.6, "in_layout": False}
    for (y, x), n in np.ndenumerate(number):
        axes.text(x, y, "·" if n < 0 else n, **look)
    axes.tick_params(length=0)
    axes.set_title(title, loc="left")


def draw_memory(axes: Axes, side: str, words: np.ndarray, title: str) -> None:
    """Rows of a block from top to bottom, each as its words (downwards) over its lanes."""
    rows, lanes, row_words, _ = words.shape
    paint(axes, side, words.swapaxes(1, 2).reshape(rows * row_words, lanes, 2), title)
    axes.hlines(np.arange(1, rows) * row_words - 0.5, -0.5, 31.5, colors="white", linewidth=1.8)
    axes.vlines(np.arange(4, 32, 4) - 0.5, -0.5, rows * row_words - 0.5, colors="white")
    axes.set_xticks(range(0, 32, 4))
    axes.set_yticks(np.arange(rows) * row_words + row_words / 2 - 0.5, [*map(str, range(rows))])
    axes.set(xlabel="lane 4g + t", ylabel="row")
    taken, look = row_words if side == "values" else 2, {"fill": False, "ec": INK, "zorder": 3}
    axes.add_patch(Rectangle((-0.5, -0.5), 32, taken, linewidth=1.6, clip_on=False, **look))


def draw_operand(axes: Axes, side: str, words: np.ndarray, title: str) -> None:
    """The framed words as the tensor core takes them: row g + 8r, 32 bits a column."""
    halves = 2 if side == "values" else 1
    taken = words[0].reshape(8, 4, 2, 2, 2)[:, :, :halves]  # [g, t, h, r]
    paint(axes, side, taken.transpose(3, 0, 2, 1, 4).reshape(16, 4 * halves, 2), title)
    axes.hlines(7.5, -0.5, 4 * halves - 0.5, colors="white", linewidth=1.8)
    axes.set_xticks(range(4 * halves), [*"0123"] * halves)
    axes.set(xlabel="t", ylabel="g + 8r", yticks=[0, 7, 8, 15])


def draw_legend(axes: Axes) -> None:
    """What hue, shade, number and frame mean."""
    axes.axis("off")
    spans = [f"{i}-{i + 31}" for i in range(0, 128, 32)]
    names = [f"channels {span} of keys,\npositions {span} (+ 128) of values" for span in spans]
    entries = {name: {"fc": 1 - 0.6 * (1 - h)} for name, h in zip(names, _HUES, strict=True)}
    entries["padding only, stored as zeros"] = {"fc": SHADE}
    entries["left operand of the first product"] = {"fc": "white", "ec": INK}
    handles = [Patch(label=label, **look) for label, look in entries.items()]
    axes.legend(handles=handles, title=_LEGEND, loc="upper left", alignment="left")


def main(path: Path) -> None:
    """Draws all of it into a file."""
    with styled():
        figure = new_figure(14.0, 13.5, "Packed words of a block, as they lie in memory")
        heights, widths = (16, 16, 16, 16, 8), (32, 32, 4, 4)
        grid = figure.add_gridspec(5, 4, height_ratios=heights, width_ratios=widths)
        for head_dim, row, last in ((128, slice(0, 2), 3), (64, 2, 4)):
            for column, side in enumerate(_TILE):
                words = locate(side, layouts.BLOCK + _REST, head_dim)
                whole, rest = np.split(words, [layouts.BLOCK * head_dim // 32])
                whole = whole.reshape(-1, 32, 4, 2)
                rest = np.where(rest < 0, rest, rest - [layouts.BLOCK, 0])
                rest = rest.reshape(-1, 32, 2 if side == "values" else 4, 2)
                title = f"{side}, head_dim {head_dim}"
                draw_memory(figure.add_subplot(grid[row, column]), side, whole, title)
                title += f": block cut short to {_REST} positions"
                draw_memory(figure.add_subplot(grid[last, column]), side, rest, title)
                if place := _PLACES.get((side, head_dim)):
                    axes = figure.add_subplot(grid[place])
                    draw_operand(axes, side, whole, f"{side}, {head_dim}")
        draw_legend(figure.add_subplot(grid[3:, 2:]))
        figure.savefig(path)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("layouts.png"))
