"""Decode steps of Qwen3.5's linear attention on one GPU: before meshes, and with a mesh of one.

    git worktree add /tmp/before 66e25c7  # the last commit whose linear attention knew no mesh
    python -m tests.sharding.mixers --before /tmp/before --out results/mesh_mixers.json

A step runs six mixers, without their MLPs, at the sizes of Qwen3.5-9B and random weights in
bfloat16; a loop over steps carries their states, as a decode loop does. Each checkout is timed by a
process of its own, one after the other on the same GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.linear import Maker
from models.layers.rope_config import RopeConfig
from models.text.config import LinearAttentionConfig, TextConfig
from models.text.linear_attention import LinearBlock, empty_states
from vkq_apps.bench.timing import seconds_of_calls

LAYERS, STEPS, REPEATS = 6, 64, 15
BATCHES = 1, 64
LINEAR = LinearAttentionConfig(
    layers=tuple(range(LAYERS)),
    kernel=4,
    num_key_heads=16,
    num_value_heads=32,
    key_head_dim=128,
    value_head_dim=128,
)
TEXT = TextConfig(
    vocab_size=256,
    hidden_size=4096,
    intermediate_size=128,  # of MLPs, which are not run
    num_hidden_layers=LAYERS,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=256,
    rope=RopeConfig(head_dim=256, max_length=4096, theta=1e4),
    linear=LINEAR,
)


def time_step(batch: int, mesh: str) -> list[float]:
    """Milliseconds of a step of all mixers, one for each repeat."""
    devices = None
    if mesh != "none":
        from models.sharding.mesh import over_heads

        devices = over_heads(mesh, TEXT.num_key_value_heads)
    maker = Maker.create(nnx.Rngs(0), jnp.bfloat16, mesh=devices)
    mixers = [nnx.split(LinearBlock(TEXT, maker).linear_attn) for _ in range(LAYERS)]
    structure, params = mixers[0][0], [state for _, state in mixers]
    valid = jnp.ones((batch, 1), bool)

    @jax.jit
    def steps(params, x, states):
        def step(_, carry):
            x, states = carry
            for layer, own in enumerate(params):
                mixed, state = nnx.merge(structure, own)(x, valid, states.of_layer(layer))
                x, states = x + mixed, states.with_layer(layer, state)
            return x, states

        return jax.lax.fori_loop(0, STEPS, step, (x, states))

    x = jax.random.normal(jax.random.key(1), (batch, 1, TEXT.hidden_size), jnp.bfloat16)
    states = empty_states(LINEAR, batch, jnp.bfloat16)
    if devices is not None:
        whole = jax.NamedSharding(devices, jax.sharding.PartitionSpec())
        params, x, states = jax.device_put((params, x, states), whole)
    found = seconds_of_calls(steps, params, x, states, repeats=REPEATS)
    return [1e3 * seconds / STEPS for seconds in found]


def timed_by(folder: Path, meshes: list[str]) -> dict[str, dict[str, list[float]]]:
    """Times of a checkout's steps by mesh ("none" is none) and batch, from a process of its own."""
    ended = subprocess.run(
        [sys.executable, __file__, "--time", *meshes],
        env=os.environ | {"PYTHONPATH": str(folder.resolve()), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


def main() -> int:
    """Times both checkouts and writes the file."""
    from vkq_apps.files.provenance import provenance

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    here = Path(__file__).parents[2]
    sides = {"before": (arguments.before, ["none"]), "now": (here, ["none", "data=1"])}
    record = {"command": "python -m tests.sharding.mixers", **provenance(), "rows": []}
    for code, (folder, meshes) in sides.items():
        for mesh, of_batches in timed_by(folder, meshes).items():
            for batch, found in of_batches.items():
                row = {"code": code, "mesh": mesh, "batch": int(batch)}
                row |= {
                    "step_ms": statistics.median(found),
                    "step_ms_range": [min(found), max(found)],
                }
                record["rows"].append(row)
                print(json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--time"]:
        print(json.dumps({mesh: {b: time_step(b, mesh) for b in BATCHES} for mesh in sys.argv[2:]}))
    else:
        sys.exit(main())
