"""One look for all plots: colours that colour-blind people tell apart, and few lines."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "AFTER",
    "BEFORE",
    "INK",
    "SHADE",
    "TEXT",
    "choose_layers",
    "hide_frame",
    "new_figure",
    "styled",
]

# Okabe and Ito's palette.
BEFORE = "#0072B2"
AFTER = "#D55E00"
TEXT = "#E69F00"
INK = "#333333"
SHADE = "#DDE3E8"

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "figure.titlesize": 12.0,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved inside have this look; nothing outside changes."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, title: str, explanation: str = "") -> Figure:
    """A figure that belongs to no window: drawn by Agg wherever it runs.

    Args:
        width, height: in inches, `height` without the explanation.
        title: above it.
        explanation: how to read it, below; wrapped.
    """
    lines = textwrap.wrap(explanation, int(width * 15))
    figure = Figure(figsize=(width, height + 0.18 * len(lines)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8.5, color="#555555")
    return figure


def choose_layers(num_layers: int, most: int = 8) -> list[int]:
    """All layers, or `most` of them: the first, the last, and evenly between."""
    if num_layers <= most:
        return list(range(num_layers))
    return [round(i * (num_layers - 1) / (most - 1)) for i in range(most)]


def hide_frame(axes: Axes) -> None:
    """Leaves only what is drawn inside the axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
