"""Launches of attention's body: on a GPU, or emulated; both take the same operands."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.attention.body.fold_queries import FoldQueries
from pallas_kernels.attention.body.join_parts import JoinParts
from pallas_kernels.attention.body.kernel import Kernel
from pallas_kernels.attention.body.parts_s8 import PartsS8
from pallas_kernels.attention.body.score_range import ScoreRange
from pallas_kernels.attention.body.slot_entries import WARPS, SlotEntries, SlotSpec
from pallas_kernels.attention.kernel_spec import BOOK, KernelSpec
from pallas_kernels.attention.regions import Regions
from pallas_kernels.attention.table_specs import FoldSpec, JoinSpec
from pallas_kernels.isa.operations import Operations
from pallas_kernels.isa.program import Program, run_emulated, run_on_gpu

__all__ = ["AnySpec", "Launch", "emulated_launch", "gpu_launch", "program_of", "result_shapes"]

AnySpec = KernelSpec | SlotSpec | FoldSpec | JoinSpec
Launch = Callable[[AnySpec, Mapping[str, jax.Array]], tuple[jax.Array, ...]]


def gpu_launch(spec: AnySpec, operands: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """On a GPU: the results of what a spec stands for, see `program_of`."""
    return run_on_gpu(program_of(spec), operands)


def emulated_launch(spec: AnySpec, operands: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """The same with `EmulatedOperations`, on the host."""
    return run_emulated(program_of(spec), operands)


def program_of(spec: AnySpec) -> Program:
    """The program that computes a spec, all its parts."""
    if isinstance(spec, FoldSpec | JoinSpec):
        return _table_program(spec)
    if isinstance(spec, SlotSpec):
        return Program(
            body=lambda ops: SlotEntries(ops, spec).run(),
            results={"entry": jax.ShapeDtypeStruct((spec.heads, sum(spec.slots)), jnp.int32)},
            grid=spec.heads,
            warps=WARPS,
            shared_words=spec.shared_words,
        )
    shapes = {}
    for part in spec.parts:
        shapes |= {f"{part.part}{name}": shape for name, shape in result_shapes(part).items()}

    def body(ops: Operations) -> None:
        for number, parts in enumerate(spec.rounds):
            if number:  # shared memory is the next part's
                ops.barrier()
            if len(parts) > 1:  # at once
                PartsS8(ops, parts).run()
            else:
                (ScoreRange if spec.task == "score range" else Kernel)(ops, *parts).run()

    return Program(
        body=body,
        results={name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()},
        grid=spec.grid,
        warps=spec.tuning.warps,
        shared_words=max(Regions.of(parts).words for parts in spec.rounds),
    )


def _table_program(spec: FoldSpec | JoinSpec) -> Program:
    shapes: dict[str, tuple[int, ...]] = {"products": (spec.rows, spec.products)}
    if isinstance(spec, JoinSpec):
        shapes = {"joined": (spec.rows, spec.head_dim), "joined_logsumexp": (spec.rows,)}
    elif spec.centred:
        shapes["shift"] = (spec.rows,)

    def body(ops: Operations) -> None:
        (JoinParts(ops, spec) if isinstance(spec, JoinSpec) else FoldQueries(ops, spec)).run()

    return Program(
        body=body,
        results={name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()},
        grid=spec.grid,
        warps=spec.warps,
        shared_words=spec.shared_words,
    )


def result_shapes(spec: KernelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the results of a part, by name, in their order."""
    rows = (spec.tuning.splits * spec.rows,)
    found = {"highest": rows, "lowest": rows}
    if spec.task == "score range":
        return found
    attended = {"output": (*rows, spec.head_dim), "logsumexp": rows}
    if spec.packed is not None and spec.packed.value.codebook:
        attended["value_mass"] = (*rows, BOOK)
    return attended | (found if spec.calibration is not None else {})
