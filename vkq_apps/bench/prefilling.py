"""The prefill of a few sequences: their cache, the time to the first token, the memory it takes."""

from typing import Any

import jax

from models.generation.prefill import prefill
from models.inputs.batch import Inputs
from models.model import Model
from pallas_kernels.shapes import ModelShape
from vkq_apps.bench import device_memory
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.timing import time_of_calls
from vkq_jax.array_types import Array, Float
from vkq_jax.cache import KVCache
from vkq_jax.config import KVQuantConfig

__all__ = ["measure_prefill", "most_sequences"]


def most_sequences(shape: ModelShape, text_tokens: int, budget: float = 4e9) -> int:
    """Sequences prefilled at once, 1 to 4: attention's float32 scores are to fit `budget` bytes."""
    positions = shape.visual_tokens + text_tokens
    return max(1, min(4, int(budget / (4 * shape.num_heads * positions**2))))


def measure_prefill(
    model: Model,
    inputs: Inputs,
    *,
    quant: KVQuantConfig,
    cache_length: int,
    implementation: str | None,
    repeats: int,
) -> tuple[Float[Array, "B vocab"], KVCache, dict[str, Any]]:
    """Prefills through `models`; returns logits, cache, and what was measured.

    The peak is read after the first run only, and after compiling, whose trials take memory too:
    where the run does not exceed those, its own peak is not known and is recorded as null. The
    compiler's plan for a call (`prefill_temporary_bytes`) is exact.
    """
    compiled = compile_ahead(
        prefill,
        model,
        inputs,
        None,
        quant=quant,
        cache_length=cache_length,
        implementation=implementation,
    )
    held, before = device_memory.in_use(), device_memory.peak()
    logits, cache = jax.block_until_ready(compiled.call(model, inputs, None))
    peak = device_memory.peak()
    taken = time_of_calls(compiled.call, model, inputs, None, repeats=repeats)
    return (
        logits,
        cache,
        {
            "prefill_sequences": inputs.input_ids.shape[0],
            "prefill_tokens": inputs.input_ids.shape[1],
            "ttft_ms": 1e3 * taken.wall,
            "prefill_device_ms": taken.device and 1e3 * taken.device,
            "prefill_held_bytes": held,
            "prefill_peak_bytes": peak if before is None or (peak or 0) > before else None,
            "prefill_temporary_bytes": compiled.temporary_bytes,
            "prefill_compile_seconds": compiled.seconds,
            "prefill_compile_cached": compiled.cached,
        },
    )
