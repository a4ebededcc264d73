"""What both ways through a packed bank start from."""

from pallas_kernels.b1_products import B1Products
from pallas_kernels.bit_planes import BitPlanes
from pallas_kernels.operations import Operations
from pallas_kernels.packed_blocks import PackedBlocks
from pallas_kernels.packed_values import PackedValues
from pallas_kernels.problem import Packed, Problem
from pallas_kernels.work import Work

__all__ = ["PackedPart"]


class PackedPart:
    """A warp's part of attention over a packed bank. Operands: those of the classes it uses."""

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Finds this warp's blocks."""
        self._ops, self._problem, self._packed, self._work = ops, problem, packed, work
        self._planes = BitPlanes(ops, work.lane)
        self._blocks = PackedBlocks(ops, problem, packed, work)
        self._products = B1Products(ops, problem, packed, self._planes)
        self._values = PackedValues(ops, problem, packed, work)
