"""Which rows `vkq bench throughput` measures, and how they compare."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vkq_apps.bench.throughput import ThroughputSetup

__all__ = ["BASELINE", "compare_throughput", "floors", "plan_throughput"]

BASELINE = "none"


def plan_throughput(
    shapes: Sequence[str],
    budgets: Sequence[float],
    presets: Sequence[str],
    implementations: Sequence[str | None],
    baselines: Sequence[str | None],
    *,
    compare_steps: int,
    **options: Any,
) -> list[list[ThroughputSetup]]:
    """A group for each shape and budget: bfloat16, each preset with its own batch and bfloat16's.

    Args:
        shapes, budgets, presets: what is multiplied out.
        implementations: that presets are measured with. baselines: that bfloat16 is measured with.
        compare_steps: of the rows of the first budget that fill it.
        **options: of every `ThroughputSetup`.
    """
    groups = []
    for shape in shapes:
        for number, budget in enumerate(budgets):
            base = ThroughputSetup(
                shape=shape,
                preset=BASELINE,
                implementation=None,
                budget_gb=budget,
                batch_of=BASELINE,
                batch_implementation=None,
                compare_steps=0 if number else compare_steps,
                **options,
            )
            group = [dataclasses.replace(base, implementation=name) for name in baselines]
            for preset in presets:
                for name in implementations:
                    own = dataclasses.replace(
                        base, preset=preset, implementation=name, batch_of=preset
                    )
                    group += [own, dataclasses.replace(own, batch_of=BASELINE, compare_steps=0)]
            groups.append(group)
    return groups


def compare_throughput(row: dict[str, Any], group: Sequence[dict[str, Any]]) -> None:
    """Sets the row beside the fastest bfloat16 row of its group."""
    baselines = [
        other for other in group if other["preset"] == BASELINE and other["status"] == "measured"
    ]
    if row["status"] != "measured" or not baselines:
        return
    best = max(baselines, key=lambda other: other["tokens_per_second"])
    row["baseline_implementation"] = best["implementation_taken"]
    row["ratio_to_bf16"] = row["tokens_per_second"] / best["tokens_per_second"]
    row["ttft_ratio_to_bf16"] = row["ttft_ms"] / best["ttft_ms"]


def floors(row: dict[str, Any], bandwidth: float) -> None:
    """Adds what reading the weights, and the cache, takes at least, at the copy's bandwidth."""
    row["bandwidth"] = bandwidth
    if "weight_bytes" in row:
        row["weights_ms"] = 1e3 * row["weight_bytes"] / bandwidth
        one = row["bytes_per_sequence"]
        visual = row["batch"] * (one["visual_codes"] + one["visual_tables"])
        row["visual_ms"] = 1e3 * visual / bandwidth
