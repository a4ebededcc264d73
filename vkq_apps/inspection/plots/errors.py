"""Error by layer and head."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vkq_apps.inspection.plots.style import new_figure

__all__ = ["plot_errors"]

_MOST_ANNOTATED = 96


def plot_errors(
    quant: str, key: np.ndarray, value: np.ndarray, output: np.ndarray, numbers: Sequence[int]
) -> Figure:
    """Heat maps of relative squared errors, [L, K] of keys and values, [L, N] of the output.

    `numbers` are those of the L layers.
    """
    layers = len(key)
    panels = (
        ("keys", "key/value head", key),
        ("values", "key/value head", value),
        ("attention output, last token", "query head", output),
    )
    ratios = [min(max(2.2, 0.28 * table.shape[1]), 4.5) for *_, table in panels]
    figure = new_figure(
        2.8 + sum(ratios),
        1.6 + min(max(2.0, 0.32 * layers), 7.0),
        f"Relative squared error |after − before|² / |before|², {quant}",  # noqa: RUF001
        "One cell a layer and head; bright cells lose most. Keys and values: over all visual "
        "tokens. Attention output: of the last prompt token. Colours follow the square root of the "
        "error.",
    )
    grid = figure.subplots(1, 3, width_ratios=ratios, squeeze=False)[0]
    both = float(max(key.max(), value.max()))
    tops = (both, both, float(output.max()))
    for axes, (title, heads, table), top in zip(grid, panels, tops, strict=True):
        _draw_table(axes, table, top or 1.0, numbers)
        axes.set(title=title, xlabel=heads, ylabel="layer" if axes is grid[0] else "")
    return figure


def _draw_table(axes: Axes, table: np.ndarray, top: float, numbers: Sequence[int]) -> None:
    """One heat map, its colours from 0 to `top`; few enough cells get their numbers."""
    # The square root keeps small errors apart where one head is far off.
    scale = PowerNorm(0.5, 0, top)
    image = axes.imshow(table, cmap="cividis", norm=scale, aspect="auto")
    axes.spines[:].set_visible(False)
    names = (numbers, range(table.shape[1]))
    for axis, own in zip((axes.yaxis, axes.xaxis), names, strict=True):
        shown = range(0, len(own), max(1, len(own) // 8))
        axis.set_ticks(shown, labels=[str(own[place]) for place in shown])
    if table.size <= _MOST_ANNOTATED:
        for (row, column), error in np.ndenumerate(table):
            ink = "black" if scale(error) > 0.55 else "white"
            number = f"{error:.2f}" if error >= 0.1 else f"{error:.1g}"
            axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=7.5)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, aspect=25, pad=0.02)
    bar.set_label("error (square-root scale)", fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]  # a matplotlib Spine
