"""Plots of accuracy and KL against bits."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vkq_apps.evals.report import ALL
from vkq_apps.evals.settings import CONTROL, NONE
from vkq_apps.inspection.plots.style import AFTER, BEFORE, INK, new_figure, styled
from vkq_jax.files.atomic_write import atomic_write

__all__ = ["write_plots"]


def write_plots(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """Writes accuracy.png and kl.png and returns these names."""
    rows = {
        name: row for name, row in results["presets"].items() if name not in (NONE, CONTROL.name)
    }
    full = results["presets"][NONE]["tasks"][ALL]
    with styled():
        figures = {"accuracy.png": _accuracy(rows, full), "kl.png": _kl(rows)}
        for name, figure in figures.items():
            with atomic_write(folder / name) as part:
                figure.savefig(part, format="png")
    return list(figures)


def _accuracy(rows: Mapping[str, Any], full: Mapping[str, Any]) -> Figure:
    figure = _against_bits(
        rows,
        f"Right answers, {full['samples']} questions",
        "Higher is better. Bars: 95 % intervals; the line: full precision.",
        lambda every: 100 * every["exact"],
        lambda every: [100 * end for end in every["exact_interval"]],
    )
    (axes,) = figure.axes
    axes.set_ylabel("% right")
    axes.axhline(100 * full["exact"], color=BEFORE, linewidth=1.0)
    axes.annotate(
        " full precision",
        (0, 100 * full["exact"]),
        xycoords=("axes fraction", "data"),
        color=BEFORE,
        va="bottom",
        fontsize=8.0,
    )
    return figure


def _kl(rows: Mapping[str, Any]) -> Figure:
    figure = _against_bits(
        rows,
        "Divergence of the next token along full precision's answers",
        "Lower is better. Bars: 95 % intervals. The scale is logarithmic.",
        lambda every: every["kl"],
        lambda every: every["kl_interval"],
    )
    (axes,) = figure.axes
    axes.set_ylabel("KL, nats")
    if any(row["tasks"][ALL]["kl"] > 0 for row in rows.values()):
        axes.set_yscale("log", nonpositive="clip")
    return figure


def _against_bits(
    rows: Mapping[str, Any],
    title: str,
    explanation: str,
    figure_of: Callable[[Mapping[str, Any]], float],
    interval_of: Callable[[Mapping[str, Any]], Any],
) -> Figure:
    figure = new_figure(6.4, 4.0, title, explanation)
    axes = figure.subplots()
    for name, row in rows.items():
        bits, every = row["bits_per_element"]["mean"], row["tasks"][ALL]
        height, (low, high) = figure_of(every), interval_of(every)
        axes.errorbar(
            bits,
            height,
            yerr=[[max(0, height - low)], [max(0, high - height)]],
            fmt="o",
            markersize=4.0,
            color=AFTER,
            linewidth=0.8,
            capsize=2.0,
        )
        axes.annotate(f" {name}", (bits, height), fontsize=7.5, color=INK, va="center")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("bits per element of the visual cache, tables included")
    axes.margins(x=0.2)
    return figure
