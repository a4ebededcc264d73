"""Time and memory of one decode attention against length and batch, bfloat16 beside coded."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.shapes import ModelShape, find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.codes import BASELINE, MeasuredCodes, read_codes
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.sequence_cache import random_layer
from vkq_apps.bench.timing import time_of_calls
from vkq_jax.cache.kv_cache import LayerCache

__all__ = ["ScalingSetup", "compare_scaling", "measure_scaling", "plan_scaling"]

# Layers are chained until their bytes leave a GPU's cache; more than this many are not compiled.
_CACHE_BYTES, _MOST_LAYERS = 2.5e8, 8


@dataclasses.dataclass(frozen=True)
class ScalingSetup:
    """Settings of one row: `batch` sequences of `length` visual and `text` text tokens.

    Attributes:
        shape: name in `pallas_kernels.shapes`, whose heads are taken.
        preset: of the visual cache.
        implementation: of attention; None takes the default.
        repeats: of the timing.
    """

    shape: str
    preset: str
    implementation: str | None
    length: int
    batch: int
    text: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        find_shape(self.shape)
        read_codes(self.preset)
        if min(self.length, self.batch, self.text, self.repeats) < 1:
            raise ValueError(f"lengths, batches and repeats must be positive, got {self}")

    @property
    def key(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For people."""
        by = self.implementation or "default"
        return f"{self.shape}, {self.length} tokens x {self.batch}, {self.preset} ({by})"


def plan_scaling(
    lengths: Sequence[int],
    batches: Sequence[int],
    preset: str,
    implementation: str | None,
    baseline: str | None,
    **options: Any,
) -> list[list[ScalingSetup]]:
    """A pair of rows, bfloat16 first, for each length and batch."""
    sides = ((BASELINE, baseline), (preset, implementation))
    return [
        [
            ScalingSetup(preset=name, implementation=by, length=length, batch=batch, **options)
            for name, by in sides
        ]
        for length in lengths
        for batch in batches
    ]


def measure_scaling(setup: ScalingSetup, row: dict[str, Any]) -> None:
    """Fills the row: time of the attention of one token of each sequence, bytes, and the error.

    All sequences hold the same coded tokens, each in memory of its own; so do the layers that are
    chained to keep the device's cache out of it.
    """
    shape, codes = find_shape(setup.shape), read_codes(setup.preset)
    # First of all: where this does not fit, tracing what codes it may already take for ever.
    uncoded = 4 * setup.length * shape.num_kv_heads * shape.head_dim
    device_memory.check_fits(uncoded, "the keys and values of one sequence in bfloat16")
    sequence = partial(_sequence, shape, setup.length, setup.text, codes)
    row["implementation_taken"] = implementation = pallas_kernels.choose_implementation(
        setup.implementation, jax.eval_shape(partial(sequence, "reference"))
    )
    one = jax.eval_shape(partial(sequence, implementation))
    nbytes = setup.batch * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(one))
    row |= {"cache_bytes": nbytes, "memory_limit": device_memory.limit()}
    device_memory.check_fits(nbytes, "the caches of one layer")
    count = max(1, min(_MOST_LAYERS, int(_CACHE_BYTES / nbytes)))
    dims = (setup.batch, 1, shape.num_heads, shape.head_dim)
    query = (3 * jax.random.normal(jax.random.key(1), dims)).astype(jnp.bfloat16)

    @jax.jit
    def chain(query, layers):
        outputs = []
        for layer in layers:
            attended = pallas_kernels.attend_cache(query, layer, implementation=implementation)
            query = query + (1e-3 * attended.output).astype(query.dtype)
            outputs.append(_ends(attended.output))
        return query, outputs[0]

    dimensions = shape, setup.length, setup.text, codes, implementation
    single = compile_ahead(_sequence, *dimensions).call()
    ends = _ends(query)
    expected = compile_ahead(_oracle, ends, single).call(ends, single)  # first: it takes memory
    repeat = compile_ahead(_repeat, single, setup.batch)
    layers = [repeat.call(single) for _ in range(count)]
    compiled = compile_ahead(chain, query, layers)
    _, output = compiled.call(query, layers)
    row |= {
        "layers_chained": count,
        "temporary_bytes": compiled.temporary_bytes,
        "compile_seconds": compiled.seconds,
        "relative_error": float(jnp.linalg.norm(output - expected) / jnp.linalg.norm(expected)),
    }
    taken = time_of_calls(compiled.call, query, layers, steps=count, repeats=setup.repeats)
    row |= {
        "microseconds": 1e6 * taken.best,
        "wall_microseconds": 1e6 * taken.wall,
        "timed_by": taken.timed_by,
        "bytes_per_second": nbytes / taken.best,
    }


def compare_scaling(row: dict[str, Any], group: Sequence[dict[str, Any]]) -> None:
    """Adds how many times faster than bfloat16 the coded attention is."""
    dense = group[0]
    if row is not dense and row["status"] == dense["status"] == "measured":
        row["ratio_to_bf16"] = dense["microseconds"] / row["microseconds"]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sequence(
    shape: ModelShape, length: int, text: int, codes: MeasuredCodes, implementation: str
) -> LayerCache:
    return random_layer(jax.random.key(0), shape, length, text, codes, implementation)


@partial(jax.jit, static_argnums=1)
def _repeat(layer: LayerCache, batch: int) -> LayerCache:
    banks = layer.visual, layer.text
    visual, text = jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), banks)
    return dataclasses.replace(layer, visual=visual, text=text)


@jax.jit
def _oracle(ends: jax.Array, layer: LayerCache) -> jax.Array:
    """The first and the last query's attention over the sequence that all hold, in float32."""
    both = _repeat(layer, ends.shape[0])
    return pallas_kernels.attend_cache(ends, both, implementation="reference").output


def _ends(x: jax.Array) -> jax.Array:
    """The rows of the first and the last sequence."""
    return x[jnp.asarray([0, -1])]
