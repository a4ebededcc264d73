"""Channel ranges: how far the visual tokens spread in each channel, and where the levels are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vkq_apps.inspection.plots.style import AFTER, BEFORE, choose_layers, new_figure

__all__ = ["plot_ranges"]


def plot_ranges(
    name: str,
    quant: str,
    quantiles: np.ndarray,
    coded_quantiles: np.ndarray | None,
    lowest: np.ndarray | None,
    highest: np.ndarray | None,
    numbers: Sequence[int],
) -> Figure:
    """One row a layer; a second column where codes describe rotated channels.

    Args:
        name: "keys" or "values".
        quant: name of the preset.
        quantiles, coded_quantiles: [5, L, K, H], see `FRACTIONS`.
        lowest, highest: [L, K, H].
        numbers: of the L layers.
    """
    layers = choose_layers(quantiles.shape[1])
    columns = 1 if coded_quantiles is None else 2
    figure = new_figure(
        4.2 + 3.6 * columns,
        0.9 + 1.35 * len(layers),
        f"Channel ranges of visual {name}, {quant}",
        "Blue: each channel's spread over the visual tokens. Orange: the least and the greatest "
        "value that the codes stand for; bands beyond are clipped, bands far inside waste levels.",
    )
    grid = figure.subplots(len(layers), columns, squeeze=False, sharex=True, sharey="row")
    for row, layer in zip(grid, layers, strict=True):
        _draw_bands(row[0], quantiles[:, layer])
        coded = row[-1]
        if coded_quantiles is not None:
            _draw_bands(coded, coded_quantiles[:, layer])
        if lowest is not None and highest is not None:
            shown = quantiles if coded_quantiles is None else coded_quantiles
            order = _order(shown[:, layer])
            for label, level in (("levels of the codes", lowest), (None, highest)):
                coded.plot(level[layer].ravel()[order], color=AFTER, linewidth=0.9, label=label)
        row[0].set_ylabel(f"layer {numbers[layer]}\nvalue")
    grid[0, 0].set_title("channels as the model has them")
    if coded_quantiles is not None:
        grid[0, 1].set_title("channels as the codes see them (Hadamard rotated)")
    for axes in grid[-1]:
        axes.set_xlabel("channels of all heads, in order of their median\n\n")
    handles, labels = grid[0, -1].get_legend_handles_labels()
    # The layout would widen the first column for it; the empty lines below its label are its room.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5 * columns, -0.32)}
    grid[-1, 0].legend(handles, labels, ncols=len(labels), **below).set_in_layout(False)
    return figure


def _order(quantiles: np.ndarray) -> np.ndarray:
    return np.argsort(quantiles[2].ravel(), kind="stable")


def _draw_bands(axes: Axes, quantiles: np.ndarray) -> None:
    bands = quantiles.reshape(len(quantiles), -1)[:, _order(quantiles)]
    x = np.arange(bands.shape[1])
    axes.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
    wide = {"color": BEFORE, "linewidth": 0, "step": "mid"}
    axes.fill_between(x, bands[0], bands[4], alpha=0.22, label="1 to 99 % of the tokens", **wide)
    axes.fill_between(x, bands[1], bands[3], alpha=0.5, label="25 to 75 %", **wide)
    axes.plot(x, bands[2], color="#00304D", linewidth=1.0, label="median")
    axes.margins(x=0.01)
