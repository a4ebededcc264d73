"""The body of one thread block: a head's visual activations summed over 128 positions.

For the centres of sign codes, with the thread blocks of `half_block`. A warp takes 32
positions, one after the other, and a lane a few neighbouring channels of each, so that the warp
reads whole rows. A warp that meets elements which are not finite, or which saturate, sums once
more, over what they are coded as.
"""

import functools
from collections.abc import Callable

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.quantize.half_block import WARPS, HalfBlock, QuantizeSpec

__all__ = ["SumKernel"]

_LARGEST_BITS = (127 + 100) << 23  # of 2^100, where elements saturate


class SumKernel:
    """`run()` does the work of one warp.

    Operands: x and position as in `QuantizeKernel`. Results, over the positions of a half block
    that there are: sum [B * K, halves, H] float32, of the elements as they are coded; spoilt, the
    same uint32, 1 where one of them is NaN or infinite, else 0.
    """

    def __init__(self, ops: Operations, spec: QuantizeSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        self._share = HalfBlock(ops, spec)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, share = self._ops, self._spec, self._share
        position, valid = share.load_position()
        count = self._count = spec.head_dim // 32
        found = ops.cond(
            ops.ballot(valid),
            [0.0] * count + [0] * count,
            lambda _: self._sum(position, valid),
        )
        row = 4 * spec.head_dim  # bytes; of each warp one of sums and one of marks
        at = ops.mad(share.lane, 4 * count, ops.mad(share.warp, 2 * row, ops.shared()))
        for i in range(count):
            ops.store_shared(1, at, 4 * i, found[i])
            ops.store_shared(1, at, row + 4 * i, ops.from_bits(found[count + i]))
        ops.barrier()
        exists = ops.where_less(share.thread, spec.head_dim, 1, 0)
        channel = ops.min(share.thread, spec.head_dim - 1)
        at = ops.mad(channel, 4, ops.shared())
        sums = [ops.load_shared(at, 2 * row * warp) for warp in range(WARPS)]
        marks = [ops.as_bits(ops.load_shared(at, row + 2 * row * warp)) for warp in range(WARPS)]
        number = ops.mad(share.head, spec.halves, share.half)
        for name, word in (
            ("sum", ops.as_bits(functools.reduce(ops.fadd, sums))),
            ("spoilt", functools.reduce(ops.max, marks)),
        ):
            place = ops.address(ops.address(ops.pointer(name), number, row), channel, 4)
            ops.store(exists, place, 0, word)

    def _sum(self, position: Value, valid: Value) -> list[Value]:
        """The sums of this lane's channels over the positions of the warp's lanes, then marks."""
        ops, count = self._ops, self._count
        read = self._reader(position, valid)
        sums: list[Value] = [0.0] * count
        sizes: list[Value] = [0.0] * count
        for i in range(32):
            x = read(i)
            sums = [ops.fadd(v, total) for v, total in zip(x, sums, strict=True)]
            sizes = [ops.fadd(total, ops.fabs(v)) for v, total in zip(x, sizes, strict=True)]
        # An element that is not finite makes the sum of sizes so; NaN may have any sign.
        bits = (ops.bit_and(ops.as_bits(size), 0x7FFFFFFF) for size in sizes)
        greatest = functools.reduce(ops.max, bits)
        again = ops.where_less(greatest, _LARGEST_BITS, 0, 1)
        return ops.cond(ops.ballot(again), [*sums, *[0] * count], lambda _: self._sum_again(read))

    def _sum_again(self, read: Callable[[Value], list[Value]]) -> list[Value]:
        """`_sum` of elements that are not finite or saturate."""
        ops, share, count = self._ops, self._share, self._count

        def add(i: Value, found: list[Value]) -> list[Value]:
            x, sums, marks = read(i), found[:count], found[count:]
            return [
                *(ops.fadd(share.saturated(v), total) for v, total in zip(x, sums, strict=True)),
                *(ops.max(share.not_finite(v), mark) for v, mark in zip(x, marks, strict=True)),
            ]

        return ops.loop(32, [0.0] * count + [0] * count, add)

    def _reader(self, position: Value, valid: Value) -> Callable[[Value], list[Value]]:
        """Reads this lane's channels of the warp's i-th position; 0 where there is none."""
        ops, spec = self._ops, self._spec
        source, kept = self._share.row(position), ops.sub(0, valid)
        size = spec.row_bytes // 32
        start = ops.address(ops.pointer("x"), self._share.lane, size)

        def read(i: Value) -> list[Value]:
            address = ops.address(start, ops.take(source, i), spec.row_bytes)
            keep = ops.take(kept, i)
            words = self._load(address, size)
            return self._share.floats([ops.bit_and(word, keep) for word in words])

        return read

    def _load(self, address: Value, size: int) -> list[Value]:
        ops = self._ops
        match size:
            case 4:
                return [ops.load(address)]
            case 8:
                return ops.load2(address, 0)
            case _:
                return ops.load4(address, 0)
