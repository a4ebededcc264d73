"""The body of one thread block: a head's visual activations summed over 128 positions.

For the centres of sign codes, with the thread blocks of `quantize_kernel`. A warp takes 32
positions, one after the other, and a lane a few neighbouring channels of each, so that the warp
reads whole rows.
"""

from pallas_kernels.operations import Operations, Value
from pallas_kernels.quantize_kernel import HALF, WARPS, QuantizeProblem

__all__ = ["SumKernel"]


class SumKernel:
    """`run()` does the work of one warp.

    Operands: x and position as in `QuantizeKernel`. Result: sum [B * K, halves, H] float32, over
    the positions of a half block that there are.
    """

    def __init__(self, ops: Operations, problem: QuantizeProblem):
        """Finds out which part of the work is this warp's."""
        self._ops, self._problem = ops, problem
        self._thread = ops.thread_index()
        self._lane = ops.bit_and(self._thread, 31)
        self._warp = ops.uniform(ops.shift_right(self._thread, 5))
        self._kv_head, self._half, self._sequence = problem.place(ops)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, problem = self._ops, self._problem
        first = ops.mad(self._sequence, HALF * problem.halves, ops.mad(self._half, HALF, 0))
        position = ops.load(ops.address(ops.pointer("position"), ops.add(first, self._thread), 4))
        valid = ops.where_less(position, 0, 0, 1)
        count = problem.head_dim // 32
        sums = ops.cond(ops.ballot(valid), [0.0] * count, lambda _: self._sum(position))
        at = ops.mad(self._warp, 4 * problem.head_dim, ops.shared())
        at = ops.mad(self._lane, 4 * count, at)
        for i, x in enumerate(sums):
            ops.store_shared(1, at, 4 * i, x)
        ops.barrier()
        exists = ops.where_less(self._thread, problem.head_dim, 1, 0)
        channel = ops.min(self._thread, problem.head_dim - 1)
        at = ops.mad(channel, 4, ops.shared())
        total = ops.load_shared(at, 0)
        for warp in range(1, WARPS):
            total = ops.fadd(total, ops.load_shared(at, 4 * problem.head_dim * warp))
        head = ops.mad(self._sequence, problem.kv_heads, self._kv_head)
        row = ops.address(
            ops.pointer("sum"), ops.mad(head, problem.halves, self._half), 4 * problem.head_dim
        )
        ops.store_float(exists, ops.address(row, channel, 4), 0, total)

    def _sum(self, position: Value) -> list[Value]:
        """The sums of this lane's channels, over the positions of the warp's lanes."""
        ops, problem = self._ops, self._problem
        token = ops.mad(self._sequence, problem.tokens, ops.max(position, 0))
        source = ops.mad(token, problem.kv_heads, self._kv_head)
        kept = ops.where_less(position, 0, 0, 0xFFFFFFFF)
        size = problem.row_bytes // 32
        start = ops.address(ops.pointer("x"), self._lane, size)
        sums: list[Value] = [0.0] * (problem.head_dim // 32)
        for i in range(32):
            address = ops.address(start, ops.take(source, i), problem.row_bytes)
            keep = ops.take(kept, i)
            words = [ops.bit_and(word, keep) for word in self._load(address, size)]
            sums = [ops.fadd(x, s) for x, s in zip(self._floats(words), sums, strict=True)]
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

    def _floats(self, words: list[Value]) -> list[Value]:
        ops = self._ops
        if self._problem.element_bytes == 4:
            return [ops.from_bits(word) for word in words]
        return [
            ops.from_bits(bits)
            for word in words
            for bits in (ops.shift_left(word, 16), ops.bit_and(word, 0xFFFF0000))
        ]
