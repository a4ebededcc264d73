"""Measures rendering and the step of training on this machine; prints one JSON object a line.

`python -m vkq_apps.training.measure` before a long training tells which attention and which form of
the stack of blocks is fastest, how many steps fit a budget, and what they need in memory.
"""

from __future__ import annotations

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.training.measure")

import dataclasses
import json
import time
from typing import Any

from vkq_apps.terminal.standalone import option, run_standalone


def measure_rendering(workers: int, seconds: float, chunk_size: int) -> dict[str, Any]:
    """Pictures a second of so many processes, after each has rendered its first chunk."""
    from vkq_apps.training.rendering import Renderers

    with Renderers(
        workers, chunk_size=chunk_size, slots=2 * workers, seed="measure", difficulty=1.0
    ) as renderers:
        for _ in range(workers):
            while renderers.take(lambda chunk: True, timeout=60) is None:
                pass
        began, first = time.perf_counter(), renderers.rendered
        while time.perf_counter() - began < seconds:
            renderers.take(lambda chunk: True, timeout=1)
        elapsed = time.perf_counter() - began
    rate = (renderers.rendered - first) / elapsed
    return {"event": "rendering", "workers": workers, "pictures_per_second": round(rate, 1)}


def measure_step(
    attention: str, unroll: bool, *, batch: int, steps: int, repeats: int, smoke: bool
) -> dict[str, Any]:
    """Seconds of a step, of compiling it, and the loss after so many steps on few pictures."""
    import jax
    import jax.numpy as jnp

    from vkq_apps.training.attention import choose_implementation
    from vkq_apps.training.chunks import fill_chunk, new_chunk
    from vkq_apps.training.feeding import to_device
    from vkq_apps.training.loop import SMALL
    from vkq_apps.training.model import ModelSize, create_model
    from vkq_apps.training.optimizer import Schedule
    from vkq_apps.training.step import initial_state, make_train_step

    implementation, refused = choose_implementation(attention)
    schedule = Schedule(steps=steps)
    graphdef, params = create_model(SMALL if smoke else ModelSize(), 1)
    state = initial_state(params, schedule)
    arrays = new_chunk(min(batch, 64))
    fill_chunk(arrays, "measure", 0.2)
    chunk = to_device(arrays)
    step = make_train_step(graphdef, schedule, implementation, unroll=unroll)
    places = (jnp.arange(batch, dtype=jnp.int32) % len(arrays.images))[None, None]
    began = time.perf_counter()
    state, losses = jax.block_until_ready(step(state, (chunk,), places))
    compiled = time.perf_counter()
    for _ in range(repeats):
        state, losses = step(state, (chunk,), places)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - compiled) / repeats
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "event": "step",
        "attention": implementation,
        "attention_refused": refused,
        "unroll": unroll,
        "batch": batch,
        "compile_seconds": round(compiled - began, 1),
        "step_ms": round(1000 * seconds, 2),
        "pictures_per_second": round(batch / seconds, 1),
        "loss": float(losses["loss"]),
        "patch_loss": float(losses["patch_loss"]),
        "peak_gib_so_far": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """The command line of the measurement."""

    workers: int = option(14, help="Rendering processes.", min=1)
    render_seconds: float = option(8.0, help="Seconds of rendering; 0: do not render.")
    chunk: int = option(64, help="Pictures of a chunk.", min=1)
    batch: int = option(256, help="Pictures of a step.", min=1)
    steps: int = option(12000, help="Steps of the schedule.", min=1)
    repeats: int = option(30, help="Steps that are timed.", min=1)
    variants: str = option(
        "auto:unroll,auto:loop", help="ATTENTION:unroll or ATTENTION:loop, comma-separated."
    )
    smoke: bool = option(False, help="A small model.")


def run(options: MeasureOptions) -> None:
    """Measures; one line of JSON each."""
    if options.render_seconds:
        rates = measure_rendering(options.workers, options.render_seconds, options.chunk)
        print(json.dumps(rates), flush=True)
    for variant in options.variants.split(","):
        attention, form = variant.split(":")
        result = measure_step(
            attention,
            form == "unroll",
            batch=options.batch,
            steps=options.steps,
            repeats=options.repeats,
            smoke=options.smoke,
        )
        print(json.dumps(result), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = "vkq_apps.training.measure"
    return run_standalone(MeasureOptions, run, module=module, help=__doc__, arguments=arguments)
