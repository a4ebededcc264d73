"""One row of `vkq bench scaling --mesh`: decode steps of one batch, from a cache without a prompt.

Prefills take most of a row's time and say nothing of a step, so the cache is coded from random
keys and values instead: those of one layer of one sequence, which all others hold as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
import vkq_jax
from models.generation.decode_loop import DecodeState
from models.sharding.placing import sequence_parts
from pallas_kernels.shapes import find_shape
from vkq_apps.bench import device_memory
from vkq_apps.bench.decoding import first_state, measure_decoding
from vkq_apps.bench.random_model import abstract_model, decode_weight_bytes, drawn_model
from vkq_apps.bench.sequence_cache import per_sequence, repeated_cache
from vkq_apps.bench.throughput import ThroughputSetup

__all__ = ["measure_fixed_batch"]


def measure_fixed_batch(
    setup: ThroughputSetup, row: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Fills `row` as `measure_throughput` does, for `setup.fixed_batch` sequences."""

    def stage(text: str) -> None:
        row["stage"] = text
        say(text)

    stage("planning")
    assert setup.fixed_batch is not None
    batch, shape, quant = setup.fixed_batch, find_shape(setup.shape), vkq_jax.resolve(setup.preset)
    model = abstract_model(shape, setup.mesh)
    parts, vocab = sequence_parts(model.mesh), len(model.params["text"]["lm_head"]["weight"])
    if batch % parts:
        raise NotImplementedError(f"{setup.mesh} takes batches of a multiple of {parts}")

    def make(implementation: str | None) -> DecodeState:
        cache = repeated_cache(
            shape, quant, batch, setup.text_capacity, setup.prompt_text, implementation
        )
        return first_state(jnp.zeros((batch, vocab), jnp.float32), cache)

    cache = jax.eval_shape(lambda: make(setup.implementation).cache)
    implementation = pallas_kernels.choose_implementation(setup.implementation, cache)
    row |= {
        "implementation_taken": implementation,
        "visual_tokens": shape.visual_tokens,
        "bytes_per_sequence": per_sequence(vkq_jax.cache_nbytes(cache), batch),
        "weight_bytes": decode_weight_bytes(model),
        "batch": batch,
    }
    devices = 1 if model.mesh is None else model.mesh.size
    needed = vkq_jax.cache_nbytes(cache).total // devices
    device_memory.check_fits(needed, f"the caches of {batch} sequences")

    stage("drawing weights")
    model = drawn_model(model)
    stage(f"decoding {batch} sequences")
    figures = measure_decoding(
        model,
        lambda _: make(implementation),
        (),
        batch,
        implementation=implementation,
        steps=(setup.short_steps, setup.long_steps),
        repeats=setup.repeats,
        profile=setup.profile,
    )
    row |= {"batches": [{"batch": batch, **figures}], **figures}
    row["peak_bytes"] = device_memory.peak()
    if model.mesh is not None:
        row["peak_bytes_per_device"] = device_memory.peaks()[: model.mesh.size]
    del row["stage"]
