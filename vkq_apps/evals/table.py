"""The results as a table for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from vkq_apps.evals.report import ALL
from vkq_apps.evals.settings import NONE

__all__ = ["results_table"]


def results_table(results: Mapping[str, Any]) -> Table:
    """One row a preset: its bits, what it loses with intervals, and the share right by task."""
    presets = results["presets"]
    count = presets[NONE]["tasks"][ALL]["samples"]
    table = Table(
        title=f"{count} questions, visual cache coded at the {results['quantize_at']}; 95 % "
        "intervals; lost: points against full precision, question by question"
    )
    tasks = [name for name in presets[NONE]["tasks"] if name != ALL]
    table.add_column("visual cache", no_wrap=True)
    for name in ("bits", "saved", "right", "lost", "same answer", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in tasks:
        table.add_column(name, justify="right", no_wrap=True)
    for preset, row in presets.items():
        every = row["tasks"][ALL]
        low, high = every["lost_interval"]
        table.add_row(
            preset,
            f"{row['bits_per_element']['mean']:.2f}",
            f"{row['visual_kv_reduction']:.1%}",
            f"{every['exact']:.1%}",
            f"{every['lost']:.1f} [{low:.1f}, {high:.1f}]" if preset != NONE else "",
            f"{every['agreement']:.1%}",
            f"{every['kl']:.5f}",
            *(
                f"{row['tasks'][task].get('score', row['tasks'][task]['exact']):.1%}"
                for task in tasks
            ),
        )
    return table
