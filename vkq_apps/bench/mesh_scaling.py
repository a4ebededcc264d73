"""Decoding against the number of devices: which meshes are measured, and what is said of each."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from models.model import Model
from models.sharding.placing import cache_axes
from vkq_apps.bench.codes import BASELINE
from vkq_apps.bench.wire import sent_by
from vkq_jax.cache.layered import AnyCache

__all__ = ["compare_meshes", "mesh_figures"]


def mesh_figures(model: Model, cache: AnyCache, program: str) -> dict[str, Any]:
    """Devices, the bytes of each, and what each sends in a decode step.

    Args:
        model: on a mesh.
        cache: that is decoded.
        program: text of the compiled loop over steps, whose rounds are not known and count once.
    """
    assert model.mesh is not None
    sent = sent_by(program)
    return {
        "devices": model.mesh.size,
        "weight_bytes_per_device": _bytes_per_device(model.params),
        "cache_bytes_per_device": _bytes_per_device(cache),
        "sequences_split_over": list(cache_axes(model.mesh, cache).sequences or ()),
        "wire_bytes_per_step": sent.wire_bytes,
        "collectives_per_step": dict(sent.calls),
    }


def compare_meshes(row: dict[str, Any], group: Sequence[dict[str, Any]]) -> None:
    """Adds how many times faster than on the group's first mesh, and than bfloat16 on its own."""
    if row["status"] != "measured":
        return
    measured = [other for other in group if other["status"] == "measured"]
    first = next((r for r in measured if r["preset"] == row["preset"]), None)
    own = (BASELINE, row["mesh"])
    dense = next((r for r in measured if (r["preset"], r["mesh"]) == own), None)
    if first is not None:
        row["speedup"] = row["tokens_per_second"] / first["tokens_per_second"]
    if dense is not None:
        row["ratio_to_bf16"] = row["tokens_per_second"] / dense["tokens_per_second"]


def _bytes_per_device(tree: Any) -> int:
    """Bytes of a pytree on each device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )
