"""Timing on a device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["bandwidth", "seconds_of_calls", "seconds_per_layer"]


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

    times = seconds_of_calls(chain, query, layers, repeats=repeats)
    return statistics.median(times) / len(layers)


def seconds_of_calls(
    function: Callable[..., Any], *arguments: Any, repeats: int = 7, at_least: float = 0.03
) -> list[float]:
    """Times of one call, one for each repeat, warm.

    A repeat waits once, after as many calls as take `at_least` seconds: what Python does between
    calls hides behind the device's work, where there is enough of it.
    """
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    once = time.perf_counter() - start
    calls = max(2, min(50, int(at_least / once)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = None
        for _ in range(calls):
            result = function(*arguments)  # the one before is freed: outputs do not pile up
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return times


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes: the ceiling."""
    num_bytes = 2**30 if jax.default_backend() == "gpu" else 2**26
    x = jnp.ones(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / statistics.median(seconds_of_calls(copy, x))
