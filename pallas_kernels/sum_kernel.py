"""The body of one thread block: a head's visual activations summed over 128 positions.

For the centres of sign codes, with the thread blocks of `quantize_kernel`. A warp takes 32
positions, one after the other, and a lane a few neighbouring channels of each, so that the warp
reads whole rows.
"""

from pallas_kernels.operations import Operations, Value
from pallas_kernels.quantize_kernel import WARPS, HalfBlock, QuantizeProblem

__all__ = ["SumKernel"]


class SumKernel:
    """`run()` does the work of one warp.

    Operands: x and position as in `QuantizeKernel`. Result: sum [B * K, halves, H] float32, over
    the positions of a half block that there are.
    """

    def __init__(self, ops: Operations, problem: QuantizeProblem):
        """Finds out which part of the work is this warp's."""
        self._ops, self._problem = ops, problem
        self._share = HalfBlock(ops, problem)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, problem, share = self._ops, self._problem, self._share
        position, valid = share.load_position()
        count = problem.head_dim // 32
        sums = ops.cond(ops.ballot(valid), [0.0] * count, lambda _: self._sum(position, valid))
        at = ops.mad(share.warp, 4 * problem.head_dim, ops.shared())
        at = ops.mad(share.lane, 4 * count, at)
        for i, x in enumerate(sums):
            ops.store_shared(1, at, 4 * i, x)
        ops.barrier()
        exists = ops.where_less(share.thread, problem.head_dim, 1, 0)
        channel = ops.min(share.thread, problem.head_dim - 1)
        at = ops.mad(channel, 4, ops.shared())
        total = ops.load_shared(at, 0)
        for warp in range(1, WARPS):
            total = ops.fadd(total, ops.load_shared(at, 4 * problem.head_dim * warp))
        number = ops.mad(share.head, problem.halves, share.half)
        row = ops.address(ops.pointer("sum"), number, 4 * problem.head_dim)
        ops.store_float(exists, ops.address(row, channel, 4), 0, total)

    def _sum(self, position: Value, valid: Value) -> list[Value]:
        """The sums of this lane's channels, over the positions of the warp's lanes."""
        ops, problem = self._ops, self._problem
        source, kept = self._share.row(position), ops.sub(0, valid)
        size = problem.row_bytes // 32
        start = ops.address(ops.pointer("x"), self._share.lane, size)
        sums: list[Value] = [0.0] * (problem.head_dim // 32)
        for i in range(32):
            address = ops.address(start, ops.take(source, i), problem.row_bytes)
            keep = ops.take(kept, i)
            words = [ops.bit_and(word, keep) for word in self._load(address, size)]
            sums = [ops.fadd(x, s) for x, s in zip(self._share.floats(words), sums, strict=True)]
        return sums

    def _load(self, address: Value, size: int) -> list[Value]:
        ops = self._ops
        match size:
            case 4:
                return [ops.load(address)]
            case 8:
                return ops.load2(address, 0)
            case _:
                return ops.load4(address, 0)
