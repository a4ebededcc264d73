"""Compiles programs of a mesh for GPUs that need not be there.

    JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 \
        uv run --with "jax[cuda13]" python -m tests.sharding.compile_for_gpus

XLA compiles them for two or more H100s, description and all, on a machine without a GPU: what its
partitioner and its code generator refuse shows here. CPUs do not show it: with arrays without
elements in a `shard_map`, the compiler for GPUs ended the process. Nothing runs. The exit code is
1 where a program does not compile; each compiles in a process of its own, since it can end it.
"""

import argparse
import contextlib
import dataclasses
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vkq_jax
from models import Model
from models.families.mesh_fit import fit_mesh
from models.families.registry import family_of
from models.generation.decode_step import decode_step
from models.generation.gpu_options import gpu_options
from models.generation.prefill import prefill
from models.layers.linear import Maker
from models.sharding.mesh import mesh_sizes
from models.sharding.placing import cache_shardings
from models.sharding.rules import parameter_sharding
from pallas_kernels.attention import support
from tests.sharding.cases import CONFIGS, inputs_of
from tests.support.random_checkpoint import write_random_checkpoint

KINDS = ("heads of 64",)
MESHES = "data=2", "model=2", "model=8"
QUANTS = "none", "vkq-1bit", "vkq-half"
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def gpu_mesh(text: str) -> Mesh:
    """A mesh of GPUs that are described, not there."""
    data, model = mesh_sizes(text)
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="described",
        target_config=H100,
        topology=f"1x1x{data * model}",
    )
    return Mesh(np.array(described.devices).reshape(data, model), ("data", "model"))


def on_mesh(model: Model, mesh: Mesh) -> Model:
    """The model on a mesh, shapes in place of its parameters, which compute in bfloat16."""

    def shape(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        sharding = parameter_sharding(path, mesh)
        return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding))

    config, family = model.config, family_of(model.config.model_type)
    module = nnx.eval_shape(
        lambda: family.build(config, Maker.create(nnx.Rngs(0), jnp.bfloat16, mesh=mesh))
    )
    graphdef, params = nnx.split(module)
    shapes = nnx.from_flat_state((p, shape(p, leaf)) for p, leaf in nnx.to_flat_state(params))
    return dataclasses.replace(model, params=shapes, graphdef=graphdef, mesh=mesh)


def compile_programs(kind: str, mesh: str, quant: str, batch: int) -> None:
    """Compiles the prefill and the decode step of a tiny model."""
    from jax_plugins import xla_cuda13  # type: ignore

    assert jax.devices()[0].platform == "cpu", "expected JAX_PLATFORMS=cpu"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # JAX may have found it by itself
        xla_cuda13.initialize()
    with tempfile.TemporaryDirectory() as folder:
        loaded = write_random_checkpoint(Path(folder), CONFIGS[kind])
    fitted = fit_mesh(gpu_mesh(mesh), loaded.config)
    whole = NamedSharding(fitted, PartitionSpec())
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), inputs_of(loaded, batch)
    )
    model = on_mesh(loaded, fitted)
    options = {"quant": vkq_jax.presets[quant], "cache_length": 24}
    jax.default_backend = lambda: "gpu"
    support.device_reason = support.untried_reason = lambda: None
    prefill.lower(model, inputs, **options).compile()
    _, cache = jax.eval_shape(lambda *of: prefill(*of, **options), model, inputs)
    cache = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding), cache, cache_shardings(fitted, cache)
    )
    tokens = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=whole)
    step = jax.jit(decode_step).lower(model, tokens, cache)
    step.compile(compiler_options=gpu_options(model.mesh, batch))


def main() -> int:
    """Compiles all cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=CONFIGS, default=KINDS)
    parser.add_argument("--meshes", nargs="+", default=MESHES)
    parser.add_argument("--quants", nargs="+", choices=vkq_jax.presets, default=QUANTS)
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        *names, batch = arguments.case
        compile_programs(*names, batch=int(batch))
        return 0
    failed = 0
    for case in itertools.product(arguments.kinds, arguments.meshes, arguments.quants, ("4", "1")):
        command = [sys.executable, "-m", "tests.sharding.compile_for_gpus", "--case", *case]
        ended = subprocess.run(command, capture_output=True, text=True)
        failed += ended.returncode != 0
        said = "compiled"
        if ended.returncode:
            said = f"code {ended.returncode} {ended.stderr.strip().splitlines()[-1:]}"
        print(*case, said, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
