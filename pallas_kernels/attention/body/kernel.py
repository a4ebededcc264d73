"""The body of one thread block: attention over a packed bank and dense ones, one softmax."""

import math

from pallas_kernels.attention.body.calibrated_b1 import CalibratedB1
from pallas_kernels.attention.body.codebook import write_masses
from pallas_kernels.attention.body.dense_bank import DenseBanks
from pallas_kernels.attention.body.packed_b1 import PackedB1
from pallas_kernels.attention.body.packed_classes import ClassesB1, ClassesS8
from pallas_kernels.attention.body.packed_s8 import PackedS8
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.operations import Operations
from pallas_kernels.isa.warp_math import merge

__all__ = ["Kernel"]


class Kernel:
    """`run()` does the work of one warp.

    Every warp computes a result over its share of positions. Then one warp for each query joins
    those of its team.

    Operands: those of the parts; layer [1] int32 where there are several. Results, one after the
    other for each split: output [splits * rows, H] and logsumexp [splits * rows] (natural),
    float32; with a codebook of values also value_mass, see `write_masses`; with a calibration also
    those of `ScoreRange`.
    """

    def __init__(self, ops: Operations, spec: KernelSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec, self._work = ops, spec, Work(ops, spec)
        self._scratch = Scratch(ops, spec, self._work)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, work, tuning = self._ops, self._spec, self._work, self._spec.tuning
        if spec.packed is not None:
            if spec.packed.of_classes:
                part = ClassesS8 if spec.uses_bytes else ClassesB1
            elif spec.calibration is not None:
                part = CalibratedB1
            else:
                part = PackedS8 if spec.uses_bytes else PackedB1
            part(ops, spec, spec.packed, work).run(self._scratch)
        if spec.dense:
            for first in range(0, tuning.queries, SET):
                DenseBanks(ops, spec, work, first).run(self._scratch)
        ops.barrier()
        work.for_each_query(self._write)

    def _write(self, query: int) -> None:
        """Normalizes the result of a query of the team and writes it."""
        ops, spec, work = self._ops, self._spec, self._work
        parts = self._scratch.load_team(query, range(0, spec.head_dim, 32))
        top, mass, *channels = merge(ops, parts)
        normalize = ops.reciprocal(ops.fmax(mass, 1e-30))
        exists, row = work.result_row(query)
        address = ops.address(ops.pointer(f"{spec.part}output"), row, 4 * spec.head_dim)
        address = ops.address(address, work.lane, 4)
        if spec.packed is not None and spec.packed.value.codebook:
            write_masses(ops, spec, work, self._scratch, query, top, normalize)
        for k, x in enumerate(channels):
            ops.store_float(exists, address, 128 * k, ops.fmul(x, normalize))
        ops.store_float(
            ops.where_less(work.lane, 1, exists, 0),
            ops.address(ops.pointer(f"{spec.part}logsumexp"), row, 4),
            0,
            ops.fmul(ops.fadd(top, ops.log2(mass)), math.log(2.0)),
        )
