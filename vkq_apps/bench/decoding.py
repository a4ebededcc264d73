"""Decoding from a full cache of a given batch: time of a step, memory, equal tokens."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

import vkq_jax
from models.generation.decode_loop import DecodeState, decode_loop
from models.generation.gpu_options import gpu_options
from models.model import Model
from models.sampling import Sampling
from models.sharding.placing import place, place_cache, place_logits, place_sequences
from vkq_apps.bench import device_memory
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.mesh_scaling import mesh_figures
from vkq_apps.bench.step_profile import profile_step
from vkq_apps.bench.timing import step_figures
from vkq_jax.sharding.hosts import to_host

__all__ = [
    "compare_implementations",
    "measure_decoding",
    "place_state",
]


def place_state(mesh: Mesh | None, state: DecodeState) -> DecodeState:
    """The state on a mesh, as the decode loop hands it on."""
    if mesh is None:
        return state
    done, finite = place(mesh, (state.done, state.finite), PartitionSpec())
    return dataclasses.replace(
        state,
        logits=place_logits(mesh, state.logits),
        cache=place_cache(mesh, state.cache),
        done=done,
        finite=finite,
    )


def measure_decoding[T](
    model: Model,
    make: Callable[[T], DecodeState],
    given: T,
    batch: int,
    *,
    implementation: str | None,
    steps: tuple[int, int],
    repeats: int,
    profile: bool = False,
) -> dict[str, Any]:
    """Time of a step of `models`' decode loop at `batch`, from `make(given)` on the model's mesh.

    One compiled loop runs for a few and for more steps: the difference is that of whole steps, free
    of what a call costs. The loop's state is donated, so that the cache exists once. With
    `profile` a GPU's records say where a step's time goes, see `profile_step`.

    Raises:
        NotImplementedError: a profile of devices that record no kernels.
        RuntimeError: noise hides the difference, however often it is taken.
    """
    short, long = steps
    if profile and jax.default_backend() != "gpu":
        raise NotImplementedError(
            f"--profile takes a GPU, whose kernels are recorded: got {jax.default_backend()}"
        )

    def run(model, state, limit):
        return decode_loop(
            model,
            state,
            limit,
            steps=long,
            sampling=Sampling(),
            stop_tokens=(),
            implementation=implementation,
        )

    grow = jax.jit(make)
    grown, making = jax.eval_shape(grow, given), grow.lower(given).compile()
    if model.mesh is not None:
        grown = jax.tree.map(
            lambda x, sharding: x.update(sharding=sharding), grown, making.output_shardings
        )
    loop = jax.jit(run, donate_argnums=1, compiler_options=gpu_options(model.mesh, batch))
    compiled = compile_ahead(loop, model, grown, short)
    full = jax.block_until_ready(making(given))
    nbytes, held = vkq_jax.cache_nbytes(full.cache), device_memory.in_use()
    start_length, start_position = (
        to_host(x) for x in (full.cache.text.length, full.cache.position)
    )

    def timed(state, limit):
        # Back to the prompt's end: the text bank never runs over.
        length, position = place_sequences(
            model.mesh, (jnp.array(start_length), jnp.array(start_position))
        )
        text = dataclasses.replace(state.cache.text, length=length)
        cache = dataclasses.replace(state.cache, text=text, position=position)
        state = dataclasses.replace(state, cache=cache)
        start = time.perf_counter()
        tokens, lengths, state = compiled.call(model, state, limit)
        jax.block_until_ready(tokens)
        return time.perf_counter() - start, lengths, state

    _, lengths, full = timed(full, short)
    assert int(lengths.min()) == short
    times: list[float] = []
    # A busy machine can make the longer run the faster one: more pairs settle it.
    while len(times) < repeats or (statistics.median(times) <= 0 and len(times) < 9 * repeats):
        fast, _, full = timed(full, short)
        slow, _, full = timed(full, long)
        times.append((slow - fast) / (long - short))
    if statistics.median(times) <= 0:
        raise RuntimeError(f"{len(times)} pairs of runs cannot tell a step from noise")
    figures = {
        "cache_bytes": nbytes.total,
        "held_bytes": held,
        "decode_temporary_bytes": compiled.temporary_bytes,
        "decode_compile_seconds": compiled.seconds,
        "decode_compile_cached": compiled.cached,
        **step_figures(batch, times),
    }
    if model.mesh is not None:
        figures |= mesh_figures(model, full.cache, compiled.text)
    if profile:
        figures["profile"] = profile_step(lambda: timed(full, long), long)
    return figures


def compare_implementations(
    model: Model, state: DecodeState, ours: str, other: str, steps: int
) -> dict[str, Any]:
    """How far two implementations agree on a few sequences.

    Tokens are greedy and free-running, each implementation reading its own; logits are those after
    the first token, which both get from `state`.
    """

    def run(implementation, limit):
        return decode_loop(
            model,
            state,
            limit,
            steps=steps,
            sampling=Sampling(),
            stop_tokens=(),
            implementation=implementation,
        )

    (tokens, _, _), (expected, _, _) = run(ours, steps), run(other, steps)
    (_, _, one), (_, _, right) = run(ours, 1), run(other, 1)
    error = jnp.linalg.norm(one.logits - right.logits) / jnp.linalg.norm(right.logits)
    return {
        "against": other,
        "sequences": tokens.shape[0],
        "steps": steps,
        "equal_tokens": float(jnp.mean(tokens == expected)),
        "logits_relative_error": float(error),
    }
