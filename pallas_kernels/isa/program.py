"""Programs, a body and what it is launched with: on a GPU, or emulated.

Each imports what it needs as it runs: Mosaic GPU takes half a second, and no CPU needs it.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.isa.operations import Operations

__all__ = ["Program", "Run", "run_emulated", "run_on_gpu"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A body and what it is launched with.

    Attributes:
        body: does the work of one warp.
        results: shapes of what it writes, by operand name.
        grid: thread blocks. warps: of each block, a multiple of four.
        shared_words: 32-bit words of shared memory of each block.
    """

    body: Callable[[Operations], None]
    results: Mapping[str, jax.ShapeDtypeStruct]
    grid: int
    warps: int
    shared_words: int


Run = Callable[[Program, Mapping[str, jax.Array]], tuple[jax.Array, ...]]


def run_on_gpu(program: Program, operands: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """The results of a program, in their order."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from pallas_kernels.isa.mlir_operations import MlirOperations

    names = [*operands, *program.results]

    def body(*refs):
        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(refs))
        def build(_, *refs):
            *operands, shared = refs
            program.body(MlirOperations(dict(zip(names, operands, strict=True)), shared))

        build(*refs)

    kernel = plgpu.kernel(
        body,
        out_type=tuple(program.results.values()),
        scratch_types=[plgpu.SMEM((program.shared_words,), jnp.float32)],
        grid=(program.grid,),
        grid_names=("block",),
        num_threads=program.warps // 4,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane  # pyright: ignore
        ),
    )
    return tuple(kernel(*operands.values()))


def run_emulated(program: Program, operands: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """The same with `EmulatedOperations`, on the host."""
    from pallas_kernels.isa.emulated_operations import EmulatedOperations

    def run(operands):
        arrays = {name: np.asarray(x) for name, x in operands.items()}
        # All bits are ones, NaN as floats: an element that no thread writes shows.
        arrays |= {
            name: np.full(x.size * x.dtype.itemsize, 255, np.uint8).view(x.dtype).reshape(x.shape)
            for name, x in program.results.items()
        }
        ops = EmulatedOperations(
            arrays,
            blocks=program.grid,
            warps=program.warps,
            shared_words=program.shared_words,
        )
        # Warps without work compute with whatever there is, as on a GPU.
        with np.errstate(over="ignore", invalid="ignore"):
            program.body(ops)
        return tuple(arrays[name] for name in program.results)

    return jax.pure_callback(run, tuple(program.results.values()), dict(operands))
