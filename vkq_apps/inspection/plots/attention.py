"""Attention of the last prompt token over the pictures, before and after coding."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vkq_apps.inspection.plots.style import (
    AFTER,
    BEFORE,
    INK,
    choose_layers,
    hide_frame,
    new_figure,
)

__all__ = ["plot_attention", "plot_mass", "plot_tokens"]

_COLOURS = "magma_r"
_SQUARE_ROOT = "Colours follow the square root."


def plot_attention(
    quant: str,
    picture: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    numbers: Sequence[int],
) -> Figure:
    """Maps over the patch grid laid over one picture: full precision above, codes below.

    Args:
        picture: uint8 [side, side, 3].
        before, after: attention weights, mean over heads, [L, rows, columns].
        numbers: of the L layers.
    """
    layers = choose_layers(len(before))
    figure = new_figure(
        1.75 * (len(layers) + 1) + 0.4,
        4.25,
        f"Attention of the last prompt token, mean over heads: full precision and {quant}",
        "Where the last prompt token looks, layer by layer: darker patches get more of its "
        f"attention (%). Each layer has a scale of its own. {_SQUARE_ROOT}",
    )
    grid = figure.subplots(3, len(layers) + 1, squeeze=False, height_ratios=[1, 1, 0.08])
    grid[0, 0].imshow(picture)
    grid[0, 0].set_title("picture")
    for axes in grid[:, 0]:
        hide_frame(axes)
    for column, layer in enumerate(layers, 1):
        top = float(max(before[layer].max(), after[layer].max())) or 1.0
        for row, maps in enumerate((before, after)):
            _draw_map(grid[row, column], picture, maps[layer] / top)
        grid[0, column].set_title(f"layer {numbers[layer]}")
        _draw_scale(grid[2, column], 100 * top, " %")
    for row, label in enumerate(("full precision", quant)):
        grid[row, 1].set_ylabel(label, fontweight="bold")
    return figure


def plot_tokens(
    quant: str, picture: np.ndarray, maps: Mapping[str, np.ndarray], bits: float
) -> Figure:
    """Bits, attention and error of each visual token of one picture.

    Args:
        quant: name of the codes.
        picture: uint8 [side, side, 3].
        maps: titled figures of the patches, [rows, columns], mean over layers.
        bits: mean of the bits per element.
    """
    figure = new_figure(
        2.3 * (len(maps) + 1),
        2.9,
        f"Bits, attention and error of each visual token, mean over layers: {quant}",
        f"One square a visual token; {bits:.2f} bits per element on average, tables included. "
        "Where codes have classes, tokens far from their centre get more bits. Each map has a "
        f"scale of its own, from 0 to the largest value. {_SQUARE_ROOT}",
    )
    grid = figure.subplots(2, len(maps) + 1, squeeze=False, height_ratios=[1, 0.06])
    grid[0, 0].imshow(picture)
    grid[0, 0].set_title("picture")
    for axes in grid[:, 0]:
        hide_frame(axes)
    for column, (title, figures) in enumerate(maps.items(), 1):
        top = float(figures.max()) or 1.0
        _draw_map(grid[0, column], picture, figures / top)
        grid[0, column].set_title(title)
        _draw_scale(grid[1, column], top)
    return figure


def plot_mass(quant: str, before: np.ndarray, after: np.ndarray, numbers: Sequence[int]) -> Figure:
    """Share of the attention on visual tokens, [L, N]: heads as lines, mean and median as marks.

    `numbers` are those of the L layers.
    """
    layers = len(before)
    figure = new_figure(
        min(max(5.0, 1.6 + 0.8 * layers), 13.0),
        3.6,
        "Attention mass on visual tokens, last prompt token",
        "How much of the last prompt token's attention goes to the picture. A line that rises from "
        "left to right is a head whose coded tokens attract more attention than exact ones.",
    )
    axes = figure.subplots()
    x = np.arange(layers)
    left, right = x - 0.17, x + 0.17
    for head in range(before.shape[1]):
        ends = 100 * np.stack([before[:, head], after[:, head]])
        axes.plot(np.stack([left, right]), ends, color="#AAAAAA", linewidth=0.8, zorder=1)
    for where, mass, colour, marker, label in (
        (left, before, BEFORE, "o", "full precision"),
        (right, after, AFTER, "D", quant),
    ):
        heads = np.repeat(where, mass.shape[1])
        axes.scatter(heads, 100 * mass.ravel(), s=9, color=colour, alpha=0.45, linewidth=0)
        mean, median = 100 * mass.mean(1), 100 * np.median(mass, axis=1)
        axes.scatter(where, mean, s=46, color=colour, marker=marker, label=f"{label}, mean")
        axes.scatter(where, median, s=150, color=colour, marker="_", label=f"{label}, median")
    axes.set(xlabel="layer", ylabel="attention on visual tokens [%]", ylim=(-3, 103))
    axes.set_xticks(x, labels=list(map(str, numbers)))
    axes.plot([], [], color="#AAAAAA", linewidth=0.8, label="one head")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    return figure


def _draw_scale(axes: Axes, top: float, unit: str = "") -> None:
    """The colours of a map from 0 to `top`."""
    scale = axes.figure.colorbar(
        ScalarMappable(PowerNorm(0.5, 0, top), _COLOURS), cax=axes, orientation="horizontal"
    )
    scale.set_ticks([0, 0.25 * top, top], labels=["0", f"{0.25 * top:.2g}", f"{top:.3g}{unit}"])
    scale.minorticks_off()
    scale.outline.set_visible(False)  # type: ignore[operator]  # a matplotlib Spine


def _draw_map(axes: Axes, picture: np.ndarray, share: np.ndarray) -> None:
    """A map with values in [0, 1] over the picture in pale grey."""
    grey = picture.astype(np.float32).mean(-1) / 255
    side = picture.shape[0]
    axes.imshow(0.45 + 0.55 * grey, cmap="gray", vmin=0, vmax=1)
    axes.imshow(
        share,
        cmap=_COLOURS,
        norm=PowerNorm(0.5, 0, 1),
        alpha=0.2 + 0.6 * np.sqrt(share),
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(INK)
