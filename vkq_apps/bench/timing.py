"""Timing on a device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

__all__ = ["seconds_per_layer"]


def seconds_per_layer(
    step: Callable[..., jax.Array], query: jax.Array, layers: Sequence[Any], *, repeats: int = 7
) -> float:
    """Median time of `step(query, layer)` over a chain of layers in one jit.

    Layers have buffers of their own, so that no cache of the device holds them, and each query
    depends on the output before it, so that they run one after the other. Each repeat runs the
    chain several times before it waits: neither Python nor the launch of a single call is measured.
    """

    @jax.jit
    def chain(query, layers):
        for layer in layers:
            query = query + (1e-3 * step(query, layer)).astype(query.dtype)
        return query

    jax.block_until_ready(chain(query, layers))
    start = time.perf_counter()
    jax.block_until_ready(chain(query, layers))
    once = time.perf_counter() - start
    calls = max(2, min(50, int(0.03 / once)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([chain(query, layers) for _ in range(calls)])
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times) / len(layers)
