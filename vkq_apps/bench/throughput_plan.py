"""Which rows `vkq bench throughput` measures, and how they compare."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from models.sharding.mesh import mesh_sizes
from vkq_apps.bench.codes import BASELINE
from vkq_apps.bench.throughput import ThroughputSetup

__all__ = ["compare_throughput", "floors", "plan_meshes", "plan_throughput"]


def plan_throughput(
    shapes: Sequence[str],
    budgets: Sequence[float],
    presets: Sequence[str],
    implementations: Sequence[str | None],
    baselines: Sequence[str | None],
    *,
    compare_steps: int,
    meshes: Sequence[str | None] = (None,),
    **options: Any,
) -> list[list[ThroughputSetup]]:
    """A group for each shape, mesh and budget: bfloat16, and each preset.

    Args:
        shapes, budgets, presets: what is multiplied out.
        implementations: that presets are measured with.
        baselines: that bfloat16 is measured with.
        compare_steps: of the rows of the first budget.
        meshes: devices that the model is split over; None for one.
        **options: of every `ThroughputSetup`.
    """
    groups = []
    for shape, mesh in itertools.product(shapes, meshes):
        for number, budget in enumerate(budgets):
            base = ThroughputSetup(
                shape=shape,
                preset=BASELINE,
                implementation=None,
                budget_gb=budget,
                mesh=mesh,
                compare_steps=0 if number else compare_steps,
                **options,
            )
            group = [dataclasses.replace(base, implementation=name) for name in baselines]
            for preset in presets:
                group += [
                    dataclasses.replace(base, preset=preset, implementation=name, equal_to=BASELINE)
                    for name in implementations
                ]
            groups.append(group)
    return groups


def plan_meshes(
    shape: str,
    meshes: Sequence[str | None],
    batches: Sequence[int],
    sides: Sequence[tuple[str, str | None]],
    repeats: int,
    *,
    weak: bool = False,
    profile: bool = False,
) -> list[list[ThroughputSetup]]:
    """A group for each batch: every mesh, with every preset and implementation of `sides`.

    Where scaling is `weak`, each part of a mesh's axis `data` has the batch. `profile` as for
    `ThroughputSetup`.
    """
    return [
        [
            ThroughputSetup(
                shape=shape,
                preset=preset,
                implementation=implementation,
                budget_gb=1.0,  # not read
                mesh=mesh,
                fixed_batch=batch * (_data_parts(mesh) if weak else 1),
                repeats=repeats,
                profile=profile,
            )
            for mesh in meshes
            for preset, implementation in sides
        ]
        for batch in batches
    ]


def _data_parts(mesh: str | None) -> int:
    return 1 if mesh is None else mesh_sizes(mesh).data


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
    fastest = _speed_at(row, [row])
    rival = _speed_at(row, baselines)
    if fastest and rival:
        row["ratio_to_bf16_at_equal_batch"] = fastest / rival


def _speed_at(row: dict[str, Any], others: Sequence[dict[str, Any]]) -> float | None:
    """The greatest tokens/s of the others at the row's equal batch; None: it was not measured."""
    speeds = [
        figures["tokens_per_second"]
        for other in others
        for figures in other["batches"]
        if figures["batch"] == row.get("equal_batch")
    ]
    return max(speeds, default=None)


def floors(row: dict[str, Any], bandwidth: float) -> None:
    """Adds what reading the weights, and the cache, takes at least, at the copy's bandwidth.

    Only what the row knows is used: a row that failed may lack its batch, or all of it.
    """
    row["bandwidth"] = bandwidth
    if "weight_bytes" in row:
        row["weights_ms"] = 1e3 * row["weight_bytes"] / bandwidth
    if "batch" in row and "bytes_per_sequence" in row:
        one = row["bytes_per_sequence"]
        visual = row["batch"] * (one["visual_codes"] + one["visual_tables"])
        row["visual_ms"] = 1e3 * visual / bandwidth
