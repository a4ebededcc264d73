"""Which implementation a shape takes on this device, and why: no memory, no computation."""

from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
import vkq_jax
from pallas_kernels.shapes import find_shape
from vkq_apps.bench.codes import read_codes
from vkq_apps.bench.sequence_cache import (
    abstract_cache,
    abstract_tables,
    abstract_visual,
    per_sequence,
)

__all__ = ["explain_shape"]


def explain_shape(
    name: str, batch: int, preset: str, queries_per_step: int, text_capacity: int
) -> dict[str, Any]:
    """How `pallas_kernels` treats `batch` sequences of a published shape: attention and coding.

    Raises:
        ValueError: no such shape or preset, or a number that is not positive.
    """
    shape, codes = find_shape(name), read_codes(preset)
    if min(batch, queries_per_step, text_capacity) < 1:
        raise ValueError("batch, queries per step and text capacity must be positive")
    cache = abstract_cache(shape, codes, batch, text_capacity)
    x, index = abstract_visual(shape)
    tables = abstract_tables(shape, codes)
    query = (batch, queries_per_step, shape.num_heads, shape.head_dim)
    return {
        "shape": name,
        "preset": preset,
        "batch": batch,
        "queries_per_step": queries_per_step,
        "query": list(query),
        "bytes_per_sequence": per_sequence(vkq_jax.cache_nbytes(cache), batch),
        "implementation_taken": pallas_kernels.choose_implementation(None, cache),
        "explanation": pallas_kernels.explain(
            cache, jax.ShapeDtypeStruct(query, jnp.bfloat16)
        ).splitlines(),
        "coding_explanation": pallas_kernels.explain_coding(
            x, x, index, codes.quant, tables
        ).splitlines(),
    }
