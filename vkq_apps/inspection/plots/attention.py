"""Attention of the last prompt token over the pictures, before and after coding."""

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

__all__ = ["plot_attention", "plot_mass"]

_COLOURS = "magma_r"


def plot_attention(
    quant: str, picture: np.ndarray, before: np.ndarray, after: np.ndarray
) -> Figure:
    """Maps over the patch grid laid over one picture: full precision above, codes below.

    Args:
        picture: uint8 [side, side, 3].
        before, after: attention weights, mean over heads, [L, rows, columns].
    """
    layers = choose_layers(len(before))
    figure = new_figure(
        1.75 * (len(layers) + 1) + 0.4,
        4.25,
        f"Attention of the last prompt token, mean over heads: full precision and {quant}",
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
        grid[0, column].set_title(f"layer {layer}")
        scale = figure.colorbar(
            ScalarMappable(PowerNorm(0.5, 0, 100 * top), _COLOURS),
            cax=grid[2, column],
            orientation="horizontal",
        )
        scale.set_ticks(
            [0, 25 * top, 100 * top], labels=["0", f"{25 * top:.2g}", f"{100 * top:.3g} %"]
        )
        scale.minorticks_off()
        scale.outline.set_visible(False)  # type: ignore[operator]  # a matplotlib Spine
    for row, label in enumerate(("full precision", quant)):
        grid[row, 1].set_ylabel(label, fontweight="bold")
    grid[1, 0].text(
        0.5,
        0.5,
        "darker: more of the\ntoken's attention goes\nto the patch; each layer\nhas its own scale",
        ha="center",
        va="center",
        transform=grid[1, 0].transAxes,
    )
    return figure


def plot_mass(quant: str, before: np.ndarray, after: np.ndarray) -> Figure:
    """Share of the attention on visual tokens, [L, N]: each head a line, the mean a dot."""
    layers = len(before)
    figure = new_figure(
        min(max(5.0, 1.6 + 0.8 * layers), 13.0),
        3.6,
        "Attention mass on visual tokens, last prompt token",
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
        mean = 100 * mass.mean(1)
        axes.scatter(where, mean, s=46, color=colour, marker=marker, label=f"{label}, mean")
    axes.set(xlabel="layer", ylabel="attention on visual tokens [%]", ylim=(-3, 103))
    axes.set_xticks(x)
    axes.plot([], [], color="#AAAAAA", linewidth=0.8, label="one head")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _draw_map(axes: Axes, picture: np.ndarray, share: np.ndarray) -> None:
    """A map with values in [0, 1] over the picture in pale grey."""
    grey = picture.astype(np.float32).mean(-1) / 255
    side = picture.shape[0]
    axes.imshow(0.45 + 0.55 * grey, cmap="gray", vmin=0, vmax=1)
    axes.imshow(
        share,
        cmap=_COLOURS,
        norm=PowerNorm(0.5, 0, 1),
        alpha=0.2 + 0.75 * np.sqrt(share),
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(INK)
