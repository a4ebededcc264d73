"""Launches of a kernel's body: on a GPU, or emulated; both take the same operands."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.emulated_operations import EmulatedOperations
from pallas_kernels.kernel import Kernel
from pallas_kernels.mlir_operations import MlirOperations
from pallas_kernels.problem import Problem

__all__ = ["Launch", "emulated_launch", "gpu_launch"]

Launch = Callable[[Problem, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


def gpu_launch(problem: Problem, operands: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The kernel on a GPU: output [rows, H] and logsumexp [rows]."""
    results = _results(problem)
    names = [*operands, *results]

    def body(*refs):
        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(refs))
        def build(_, *refs):
            *operands, shared = refs
            ops = MlirOperations(dict(zip(names, operands, strict=True)), shared)
            Kernel(ops, problem).run()

        build(*refs)

    splits = problem.tiling.splits
    kernel = plgpu.kernel(
        body,
        out_type=tuple(results.values()),
        scratch_types=[plgpu.SMEM((problem.shared_words,), jnp.float32)],
        grid=(problem.grid,),
        grid_names=("block",),
        cluster=(splits,) if splits > 1 else (),
        cluster_names=("split",) if splits > 1 else (),
        num_threads=problem.tiling.warps // 4,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane  # pyright: ignore
        ),
    )
    output, logsumexp = kernel(*operands.values())
    return output, logsumexp


def emulated_launch(
    problem: Problem, operands: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The same with `EmulatedOperations`, on the host."""
    results = _results(problem)

    def run(operands):
        arrays = {name: np.asarray(x) for name, x in operands.items()}
        arrays |= {name: np.full(x.shape, np.nan, x.dtype) for name, x in results.items()}
        ops = EmulatedOperations(
            arrays,
            blocks=problem.grid * problem.tiling.splits,
            warps=problem.tiling.warps,
            shared_words=problem.shared_words,
            cluster=problem.tiling.splits,
        )
        # Warps without work compute with whatever there is, as on a GPU.
        with np.errstate(over="ignore", invalid="ignore"):
            Kernel(ops, problem).run()
        return tuple(arrays[name] for name in results)

    return jax.pure_callback(run, tuple(results.values()), dict(operands))


def _results(problem: Problem) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "output": jax.ShapeDtypeStruct((problem.rows, problem.head_dim), jnp.float32),
        "logsumexp": jax.ShapeDtypeStruct((problem.rows,), jnp.float32),
    }
