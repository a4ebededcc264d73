"""The plot of `vkq bench scaling`: time, its ratio to bfloat16, and memory against length."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vkq_apps.bench.codes import BASELINE
from vkq_apps.inspection.plots.style import AFTER, BEFORE, INK, new_figure, styled

__all__ = ["plot_scaling"]

Rows = Sequence[dict[str, Any]]


def plot_scaling(path: Path, rows: Rows, title: str) -> None:
    """Writes a PNG of the measured rows; those without a time are crosses at the top."""
    batches = sorted({row["batch"] for row in rows})
    with styled():
        figure = new_figure(12.0, 4.2, title)
        time, ratio, memory = figure.subplots(1, 3)
        _lines(time, rows, batches, lambda row: row.get("microseconds"))
        _lines(ratio, rows, batches, lambda row: row.get("ratio_to_bf16"), crosses=False)
        _lines(memory, rows, batches, _gigabytes, crosses=False)
        ratio.axhline(1.0, color=BEFORE, linewidth=1.0)
        ratio.set_yscale("linear")
        ratio.set_ylim(bottom=0)
        time.set(title="Time of one attention", ylabel="microseconds")
        ratio.set(title="Times faster than bf16", ylabel="ratio")
        memory.set(title="Cache of a layer", ylabel="GB")
        for limit in {row["memory_limit"] for row in rows if "memory_limit" in row}:
            memory.axhline(1e-9 * limit, color=INK, linewidth=1.0, linestyle=":")
            place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 7.5}
            memory.annotate(" the device's memory", (0, 1e-9 * limit), **place)
        handles = _legend(rows)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.0)
        figure.savefig(path)


def _legend(rows: Rows) -> list[Line2D]:
    """Handles for the kinds of rows that are drawn."""
    handles = []
    if any(row["preset"] == BASELINE for row in rows):
        handles.append(Line2D([], [], color=BEFORE, label="bf16"))
    coded = {row["preset"]: None for row in rows if row["preset"] != BASELINE}
    if coded:
        handles.append(Line2D([], [], color=AFTER, label=", ".join(coded)))
    if any(row["status"] != "measured" for row in rows):
        handles.append(Line2D([], [], color=INK, marker="x", linestyle="", label="not measured"))
    return handles


def _gigabytes(row: dict[str, Any]) -> float | None:
    return 1e-9 * row["cache_bytes"] if "cache_bytes" in row else None


def _lines(
    axes: Axes,
    rows: Rows,
    batches: Sequence[int],
    figure_of: Callable[[dict[str, Any]], float | None],
    *,
    crosses: bool = True,
) -> None:
    """One line for each preset and batch, the batch written at one of its ends."""
    axes.set_xscale("log", base=2)
    axes.margins(x=0.09)
    axes.set_yscale("log")
    missing: list[tuple[int, str]] = []
    for preset in sorted({row["preset"] for row in rows}, key=lambda name: name != BASELINE):
        colour = BEFORE if preset == BASELINE else AFTER
        for number, batch in enumerate(batches):
            own = sorted(
                (row for row in rows if row["preset"] == preset and row["batch"] == batch),
                key=lambda row: row["length"],
            )
            points = [(row["length"], figure_of(row)) for row in own]
            seen = [(x, y) for x, y in points if y is not None]
            missing += [(row["length"], colour) for row in own if row["status"] != "measured"]
            if seen:
                strength = 0.35 + 0.65 * (number + 1) / len(batches)
                axes.plot(*zip(*seen, strict=True), ".-", color=colour, alpha=strength)
                # At opposite ends: four times the batch at a sixteenth of the bits is near.
                left = preset == BASELINE
                axes.annotate(
                    str(batch),
                    seen[0 if left else -1],
                    xytext=(-5 if left else 5, 0),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    va="center",
                    color=colour,
                    alpha=strength,
                    fontsize=7.5,
                )
    if crosses:
        for length, colour in missing:
            axes.plot(length, 0.98, "x", color=colour, transform=axes.get_xaxis_transform())
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens (number at a line: batch)")
