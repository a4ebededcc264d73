"""Decoding against the number of devices: which meshes are measured, and what is said of each."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import vkq_jax
from models.generation.decode_loop import decode_step
from models.model import Model
from models.sharding.placing import attention_axes, place_cache
from vkq_apps.bench.wire import sent_by
from vkq_jax.layered import AnyCache

__all__ = ["compare_meshes", "mesh_figures"]


def mesh_figures(
    model: Model, cache: AnyCache, batch: int, implementation: str | None
) -> dict[str, Any]:
    """Devices, the bytes of each, and what each sends in a decode step of `batch` sequences.

    Args:
        model: on a mesh.
        cache: of a few sequences.
        batch: that a step is compiled for, but not run.
        implementation: of attention over the cache.
    """
    assert model.mesh is not None

    def grown(cache: AnyCache) -> AnyCache:
        index = jnp.arange(batch, dtype=jnp.int32) % cache.position.shape[0]
        return place_cache(model.mesh, vkq_jax.take_sequences(cache, index))

    grow = jax.jit(grown).lower(cache).compile()
    placed = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding),
        jax.eval_shape(grown, cache),
        grow.output_shardings,
    )
    step = jax.jit(decode_step, static_argnames="implementation").lower(
        model, jnp.zeros(batch, jnp.int32), placed, implementation=implementation
    )
    sent = sent_by(step.compile().as_text() or "")
    return {
        "devices": model.mesh.size,
        "weight_bytes_per_device": _bytes_per_device(model.params),
        "cache_bytes_per_device": _bytes_per_device(placed),
        "sequences_split_over": list(attention_axes(model.mesh, batch).sequences or ()),
        "wire_bytes_per_step": sent.wire_bytes,
        "collectives_per_step": dict(sent.calls),
    }


def compare_meshes(row: dict[str, Any], group: Sequence[dict[str, Any]]) -> None:
    """Adds how many times faster than on the group's first mesh, and than bfloat16 on its own."""
    if row["status"] != "measured":
        return
    measured = [other for other in group if other["status"] == "measured"]
    first = next((r for r in measured if r["preset"] == row["preset"]), None)
    dense = next((r for r in measured if r["preset"] == "none" and r["mesh"] == row["mesh"]), None)
    if first is not None:
        row["speedup"] = row["tokens_per_second"] / first["tokens_per_second"]
    if dense is not None:
        row["ratio_to_bf16"] = row["tokens_per_second"] / dense["tokens_per_second"]


def _bytes_per_device(tree: Any) -> int:
    """Bytes of a pytree on each device; arrays may be abstract."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )
