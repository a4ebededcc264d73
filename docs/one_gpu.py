"""Prefill and decode steps of the checkout on the path, in a row of FILE.

    git worktree add ../before 9ca9ef4
    PYTHONPATH=../before python -P docs/one_gpu.py before FILE
    PYTHONPATH=. python -P docs/one_gpu.py now FILE

It takes only what has stayed since the last commit that knew no meshes (9ca9ef4).
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp

import vkq_jax
from models.generation.decode_loop import DecodeState, decode_loop
from models.generation.prefill import prefill
from models.generation.sampling import Sampling
from pallas_kernels.shapes import find_shape
from vkq_apps.bench import random_model
from vkq_apps.bench.compiling import compile_ahead
from vkq_apps.bench.timing import time_of_calls
from vkq_apps.provenance import provenance

LAYERS, PROMPTS, BATCH, STEPS = 8, 8, 32, (4, 24)


def measure(preset: str, shape_name: str, visual_tokens: int) -> dict[str, object]:
    """Milliseconds of a prefill and of a decode step, and scratch memory of the two programs."""
    shape = dataclasses.replace(
        find_shape(shape_name), num_layers=LAYERS, visual_tokens=visual_tokens
    )
    model = random_model.abstract_model(shape)
    params = random_model.random_params(model.params)
    model = dataclasses.replace(model, params=params).unstack_layers()
    inputs = random_model.prompts(shape, PROMPTS, 32)
    settings = {"quant": vkq_jax.resolve(preset), "cache_length": 64}
    prefilling = compile_ahead(prefill, model, inputs, None, **settings)
    logits, cache = prefilling.call(model, inputs, None)
    filling = time_of_calls(prefilling.call, model, inputs, None, repeats=5)
    index = jnp.arange(BATCH, dtype=jnp.int32) % PROMPTS
    state = DecodeState.start(logits[index], vkq_jax.take_sequences(cache, index))

    @jax.jit
    def decode(model, state, limit):
        options = {"steps": STEPS[1], "sampling": Sampling(), "stop_tokens": ()}
        return decode_loop(model, state, limit, **options)[0]

    decoding = compile_ahead(decode, model, state, STEPS[0])
    short, long = (time_of_calls(decoding.call, model, state, n, repeats=9).wall for n in STEPS)
    return {
        "preset": preset,
        "prefill_ms": 1e3 * filling.best,
        "prefill_temporary_bytes": prefilling.temporary_bytes,
        "step_ms": 1e3 * (long - short) / (STEPS[1] - STEPS[0]),
        "step_temporary_bytes": decoding.temporary_bytes,
    }


def main() -> None:
    """Adds the rows of this checkout to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("label")
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--shape", default="qwen2.5-vl-7b")
    parser.add_argument("--visual-tokens", type=int, default=2048)
    asked = parser.parse_args()
    record = {"command": "docs/one_gpu.py", "rows": []}
    if asked.file.exists():
        record = json.loads(asked.file.read_text())
    for preset in ("none", "signs-1bit"):
        row = measure(preset, asked.shape, asked.visual_tokens)
        record["rows"].append({"label": asked.label, **row, "shape": asked.shape, **provenance()})
        asked.file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
