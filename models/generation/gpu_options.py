"""How XLA compiles decode loops for GPUs, where its defaults are for larger programs."""

import jax
from jax.sharding import Mesh

from models.sharding.axes import DATA
from models.sharding.placing import model_parts

__all__ = ["gpu_options"]

# XLA merges matrix products of one input where their arrays are up to so many MB: few sequences
# then read the weights of `gate_proj` and `up_proj` once. Many sequences are bound by arithmetic,
# and there XLA runs the merged products in a kernel of its own, at half the speed of cuBLAS.
_MERGED = {"xla_gpu_dot_merger_threshold_mb": 512}
_MOST_MERGED = 128
# A step waits for each of its sums: on a stream of their own they only wait longer. In CUDA graphs
# they cost no launch.
_SUMS = {
    "xla_gpu_disable_async_collectives": "ALLCOLLECTIVES",
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,COLLECTIVES"
    ),
}
# Two devices send each other what they have, and the kernel after adds it up. Among more devices
# this sends more than a sum does.
_SUMS_OF_TWO = {"xla_gpu_unsupported_enable_all_reduce_decomposer": True}


def gpu_options(mesh: Mesh | None, batch: int) -> dict[str, int | str] | None:
    """`compiler_options` of `jax.jit` for a decode loop of `batch` sequences; None: no GPU.

    docs/scaling_benchmarks.md has the times that they save. Options of CUDA graphs are left alone
    where there are several processes, on which they were not tried.
    """
    if jax.default_backend() != "gpu":
        return None
    rows = batch if mesh is None else batch // mesh.shape[DATA]
    options: dict[str, int | str] = {**_MERGED} if rows <= _MOST_MERGED else {}
    if mesh is not None and jax.process_count() == 1:
        options |= _SUMS | (_SUMS_OF_TWO if model_parts(mesh) == 2 else {})
    return options
