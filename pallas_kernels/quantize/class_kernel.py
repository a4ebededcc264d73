"""The body of one thread block: tokens of one class coded in Hadamard planes.

As in `quantize_kernel`, a lane codes one token, with all its channels in registers:

| step | who | how |
|---|---|---|
| gather | the warp, 16 bytes a lane | rows to shared memory, 16 bytes between them |
| u = x / unit - centre | lane | of its own centroid, in shared memory |
| z = R u, codes, <u, D s> | lane | butterflies between registers; adding 2^23 rounds a code |
| words and scale | thread block | `tiled_image`, a plane after another |

A warp without tokens reads nothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Literal

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import butterflies, dot, in_chains, split_bfloat16
from pallas_kernels.layout.tiled import Side
from pallas_kernels.quantize.class_block import SIDES, BlocksSpec, ClassBlock
from pallas_kernels.quantize.half_block import HALF, PIECE, WARPS, image_bytes, log_scale_code
from vkq_jax.codes.normal_steps import NORMAL_STEPS

__all__ = ["ClassKernel", "ClassesSpec", "ScaleRule"]

ScaleRule = Literal["unbiased", "between", "norm"]
_SHARES = {"unbiased": (1.0, 0.0), "between": (0.5, 0.5), "norm": (0.0, 1.0)}
_ROUND = 2.0**23  # a float from here on has no digits behind the point
_LEAST = 2.0**-126


@dataclasses.dataclass(frozen=True)
class ClassesSpec(BlocksSpec):
    """One launch.

    Attributes:
        centres: M. rules: of scales, of keys and of values.
    """

    centres: int
    rules: tuple[ScaleRule, ScaleRule]

    @property
    def stride(self) -> int:
        """Bytes from row to row in shared memory."""
        return self.row_bytes + PIECE

    @property
    def table_stride(self) -> int:
        """Bytes from centroid to centroid in shared memory."""
        return 4 * self.head_dim + PIECE

    @property
    def shared_words(self) -> int:
        """Words of shared memory: rows, centroids and units, images, scales."""
        tables = (self.centres + 1) * self.table_stride
        images = max(self.planes) * image_bytes(self.head_dim)
        return (32 * WARPS * self.stride + tables + images) // 4 + HALF


class ClassKernel:
    """`run()` does the work of one warp.

    Operands: those of `ClassBlock`; x [2 * heads * V, H] bfloat16, finite; ids [2 * heads, V]
    int32, of centroids; centre [2 * heads, M, H] and unit [2 * heads, H] float32, 1 / unit.
    Results: see `ClassBlock`.
    """

    def __init__(self, ops: Operations, spec: ClassesSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec, self._block = ops, spec, ClassBlock(ops, spec)
        self._rows = ops.shared()
        self._tables = ops.add(self._rows, 32 * WARPS * spec.stride)
        self._images = ops.add(self._tables, (spec.centres + 1) * spec.table_stride)
        self._scales = ops.add(self._images, max(spec.planes) * image_bytes(spec.head_dim))

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, block = self._ops, self._spec, self._block
        position, valid = block.load_position()
        any_valid = ops.ballot(valid)
        self._copy_tables()
        ops.cond(any_valid, [], lambda _: self._copy_rows(position))
        ops.group_copies()
        ops.wait_for_copies()
        ops.barrier()
        most = max(spec.planes)
        nothing = [0] * (most * spec.head_dim // 32 + 1)
        *words, scale = ops.cond(any_valid, nothing, lambda _: self._code(position, valid))
        each = spec.head_dim // 32
        planes = [words[i : i + each] for i in range(0, len(words), each)]
        for number, side in enumerate(SIDES):
            block.where(block.side, number, functools.partial(self._put, side, planes, scale))
        ops.barrier()
        block.write(self._images, self._scales)

    def _copy_tables(self) -> None:
        """Starts to copy centroids and units to shared memory."""
        ops, spec = self._ops, self._spec
        pieces = spec.head_dim // 4
        for name, first, count in (("centre", 0, spec.centres), ("unit", spec.centres, 1)):
            base = ops.address(ops.pointer(name), self._block.row, 4 * spec.head_dim * count)
            for start in range(0, count * pieces, 32 * WARPS):
                number = ops.add(self._block.thread, start)
                exists = ops.where_less(number, count * pieces, 1, 0)
                number = ops.min(number, count * pieces - 1)
                row, piece = ops.div(number, pieces), ops.rem(number, pieces)
                target = ops.mad(ops.add(row, first), spec.table_stride, self._tables)
                target = ops.mad(piece, PIECE, target)
                ops.copy_to_shared_where(exists, target, ops.address(base, number, PIECE))

    def _copy_rows(self, position: Value) -> list[Value]:
        """Starts to copy the rows of this warp's tokens, whole rows side by side."""
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // PIECE
        at_once = 32 // pieces
        row, piece = ops.div(self._block.lane, pieces), ops.rem(self._block.lane, pieces)
        source = ops.mad(self._block.row, spec.positions, position)
        start = ops.address(ops.pointer("x"), piece, PIECE)
        rows = ops.mad(self._block.warp, 32 * spec.stride, self._rows)
        target = ops.mad(piece, PIECE, ops.mad(row, spec.stride, rows))
        for first in range(0, 32, at_once):
            taken = ops.take(source, ops.add(row, first))
            address = ops.address(start, taken, spec.row_bytes)
            ops.copy_to_shared(target, first * spec.stride, address)
        return []

    # One token a lane -----------------------------------------------------------------------------

    def _residual(self, position: Value) -> list[Value]:
        """The channels of x / unit - centre."""
        ops, spec = self._ops, self._spec
        mine = ops.mad(self._block.thread, spec.stride, self._rows)
        number = ops.mad(self._block.row, spec.positions, position)
        ids = ops.load(ops.address(ops.pointer("ids"), number, 4))
        own = ops.mad(ids, spec.table_stride, self._tables)
        units = spec.centres * spec.table_stride
        u = []
        for first in range(0, spec.head_dim, 8):
            words = ops.load_shared4(mine, 2 * first)
            x = [ops.from_bits(bits) for word in words for bits in split_bfloat16(ops, word)]
            unit, centre = (
                [
                    ops.from_bits(word)
                    for offset in (0, 16)
                    for word in ops.load_shared4(at, 4 * first + offset)
                ]
                for at in (ops.add(self._tables, units), own)
            )
            u += [ops.fsub(ops.fmul(*pair), c) for *pair, c in zip(x, unit, centre, strict=True)]
        return u

    def _code(self, position: Value, valid: Value) -> list[Value]:
        """Words of this lane's token, plane after plane, then its scale's bits."""
        ops, spec, block = self._ops, self._spec, self._block
        planes = [spec.planes[c] for c in spec.coded]
        u = self._residual(position)
        square = in_chains(ops.fadd, [dot(ops, u[i::8], u[i::8]) for i in range(8)])
        some = ops.where_less(0, ops.as_bits(square), valid, 0)  # not all channels are 0
        of_square = ops.log2(ops.fmax(square, _LEAST))
        first, dim = u[0], float(spec.head_dim)
        z = butterflies(ops, u)  # times sqrt(H)
        power = ops.exp2(ops.fmul(of_square, -0.5))  # 1 / (size sqrt(H))
        factor = ops.fmul(power, block.float_of(block.place, [1 / NORMAL_STEPS[p] for p in planes]))
        top = block.float_of(block.place, [2.0**p - 1 for p in planes])
        middle = ops.fmul(top, 0.5)
        words: list[list[Value]] = [[] for _ in range(max(planes))]
        products: list[Value] = [0.0] * 8
        for start in range(0, spec.head_dim, 32):
            word: list[Value] = [0] * max(planes)
            for channel in reversed(range(start, start + 32)):
                v = ops.fma(z[channel], factor, middle)
                v = ops.fadd(ops.fmin(ops.fmax(v, 0.0), top), _ROUND)
                code = ops.as_bits(v)  # its last bits
                products[channel % 8] = ops.fma(
                    z[channel], ops.fsub(v, _ROUND), products[channel % 8]
                )
                word = [
                    ops.shift_in(old, ops.shift_left(code, 31 - plane))
                    for plane, old in enumerate(word)
                ]
            for plane, found in enumerate(word):
                words[plane].append(ops.bit_and(found, ops.sub(0, some)))
        # <z, 2 code - top>, where the sum of all channels of R u is that of one channel of u.
        total = in_chains(ops.fadd, products)
        along = ops.fsub(ops.fadd(total, total), ops.fmul(ops.fmul(first, dim), top))
        along = ops.fmul(along, dim**-0.5)
        return [*itertools.chain(*words), self._scale(of_square, along, some)]

    def _scale(self, of_square: Value, along: Value, some: Value) -> Value:
        """Bits of the scale, by the rule of this side, in logarithms."""
        ops, spec, block = self._ops, self._spec, self._block
        steps = [NORMAL_STEPS[spec.planes[c]] for c in spec.coded]
        norm = block.float_of(block.place, [step / (2 * spec.head_dim**0.5) for step in steps])
        of_norm = ops.fma(of_square, 0.5, ops.log2(norm))
        of_fit = ops.fsub(of_square, ops.log2(ops.fmax(along, _LEAST)))
        shares = zip(*(_SHARES[rule] for rule in spec.rules), strict=True)
        fit, unscaled = (block.float_of(block.side, share) for share in shares)
        logarithm = ops.fma(of_fit, fit, ops.fmul(of_norm, unscaled))
        return ops.mad(log_scale_code(ops, logarithm), some, 0)

    def _put(self, side: Side, planes: Sequence[Sequence[Value]], scale: Value) -> None:
        number = self._spec.coded[0]  # the order of words is that of all classes
        image = self._block.image(side, number, self._images, self._scales)
        for plane, words in enumerate(planes):
            image.put_words(side, words, plane)
        image.put_scale(scale)
