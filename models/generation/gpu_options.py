"""How XLA compiles decode loops for GPUs, where its defaults are for larger programs."""

import jax
from jax.sharding import Mesh

__all__ = ["gpu_options"]

# One read of the weights of `gate_proj` and `up_proj`: matrix products of one input are merged
# where their arrays are up to so many MB.
_MERGED = {"xla_gpu_dot_merger_threshold_mb": 512}
# A step waits for each of its sums: on a stream of their own they only wait longer. In CUDA graphs
# they cost no launch.
_SUMS = {
    "xla_gpu_disable_async_collectives": "ALLCOLLECTIVES",
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,COLLECTIVES"
    ),
}


def gpu_options(mesh: Mesh | None) -> dict[str, int | str] | None:
    """`compiler_options` of `jax.jit` for a decode loop of a model on this mesh; None: no GPU.

    On two H200, steps are 2% faster on one and 3% on both (docs/scaling_benchmarks.md). Graphs of
    several processes are left alone: they were not tried.
    """
    if jax.default_backend() != "gpu":
        return None
    return _MERGED | (_SUMS if mesh is not None and jax.process_count() == 1 else {})
