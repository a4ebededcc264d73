"""The results as tables for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from vkq_apps.evals.report import ALL
from vkq_apps.evals.settings import NONE

__all__ = ["results_tables"]


def results_tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """Two tables: cost and loss of each preset over all tasks, then right answers by task."""
    presets = results["presets"]
    count = presets[NONE]["tasks"][ALL]["samples"]
    yield _overall(
        presets,
        f"{count} questions, visual cache coded at the {results['quantize_at']} (95 % intervals)",
    )
    yield _by_task(presets)


def _overall(presets: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title)
    table.add_column("visual cache", no_wrap=True)
    for name in ("bits", "saved", "% right", "points lost", "same answer", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for preset, row in presets.items():
        every = row["tasks"][ALL]
        low, high = every["lost_interval"]
        table.add_row(
            preset,
            f"{row['bits_per_element']['mean']:.2f}",
            f"{row['visual_kv_reduction']:.1%}",
            f"{100 * every['exact']:.1f}",
            "" if preset == NONE else f"{every['lost']:.2f} [{low:.2f}, {high:.2f}]",
            f"{every['agreement']:.1%}",
            "" if every["kl"] is None else f"{every['kl']:.5f}",
        )
    return table


def _by_task(presets: Mapping[str, Any]) -> Table:
    table = Table(title="by task: score in % (points lost)")
    table.add_column("visual cache", no_wrap=True)
    tasks = [name for name in presets[NONE]["tasks"] if name != ALL]
    for name in tasks:
        metric = presets[NONE]["tasks"][name].get("metric", "exact")
        table.add_column(f"{name}\n{metric}", justify="right", no_wrap=True)
    for preset, row in presets.items():
        cells = []
        for name in tasks:
            figures = row["tasks"][name]
            score = 100 * figures.get("score", figures["exact"])
            lost = figures.get("score_lost", figures["lost"])
            cells.append(f"{score:.1f}" + ("" if preset == NONE else f" ({lost:.1f})"))
        table.add_row(preset, *cells)
    return table
