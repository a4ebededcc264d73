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
        codebook: centroids of the model's codebook, which numbers of centroids are of; 0: those of
            the heads themselves. kv_heads: that have codebooks of their own.
    """

    centres: int
    rules: tuple[ScaleRule, ScaleRule]
    codebook: int = 0
    kv_heads: int = 1

    @property
    def stride(self) -> int:
        """Bytes from row to row in shared memory."""
        return self.row_bytes + PIECE

    @property
    def table_stride(self) -> int:
        """Bytes from centroid to centroid in shared memory."""
        return 4 * self.head_dim + PIECE

    @property
    def rows_bytes(self) -> int:
        """Shared memory of tokens, or of the centroids that they have in a codebook."""
        return 32 * WARPS * self.stride

    @property
    def tables(self) -> dict[str, int]:
        """Rows of float32 in shared memory: of which operands, and how many."""
        units = {} if self.codebook else {"unit": 1}
        return ({"centre": self.centres} if self.centres else {}) | units

    @property
    def shared_words(self) -> int:
        """Words of shared memory: rows, centroids and units, images, scales."""
        rows = self.rows_bytes * (2 if self.codebook else 1)
        tables = sum(self.tables.values()) * self.table_stride
        images = max(self.planes) * image_bytes(self.head_dim)
        return (rows + tables + images) // 4 + HALF


class ClassKernel:
    """`run()` does the work of one warp.

    Operands: those of `ClassBlock`; x [2 * heads * V, H] bfloat16, finite; ids [2 * heads, V]
    int32, of centroids; centre [2 * heads, M, H] and unit [2 * heads, H] float32, 1 / unit. With a
    codebook book [2 * KV heads * centroids, H] bfloat16 in the place of unit, and M is 0 or 1.
    Results: see `ClassBlock`.
    """

    def __init__(self, ops: Operations, spec: ClassesSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec, self._block = ops, spec, ClassBlock(ops, spec)
        self._rows = ops.shared()
        self._centroids = ops.add(self._rows, spec.rows_bytes)
        self._tables = ops.add(self._centroids, spec.rows_bytes if spec.codebook else 0)
        tables = sum(spec.tables.values()) * spec.table_stride
        self._images = ops.add(self._tables, tables)
        self._scales = ops.add(self._images, max(spec.planes) * image_bytes(spec.head_dim))

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, block = self._ops, self._spec, self._block
        position, valid = block.load_position()
        any_valid = ops.ballot(valid)
        self._copy_tables()
        number = ops.mad(block.row, spec.positions, position)
        ids = ops.load(ops.address(ops.pointer("ids"), number, 4))
        ops.cond(any_valid, [], lambda _: self._copy_tokens(number, ids))
        ops.group_copies()
        ops.wait_for_copies()
        ops.barrier()
        most = max(spec.planes)
        nothing = [0] * (most * spec.head_dim // 32 + 1)
        *words, scale = ops.cond(any_valid, nothing, lambda _: self._code(ids, valid))
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
        first = 0
        for name, count in spec.tables.items():
            base = ops.address(ops.pointer(name), self._block.row, 4 * spec.head_dim * count)
            for start in range(0, count * pieces, 32 * WARPS):
                number = ops.add(self._block.thread, start)
                exists = ops.where_less(number, count * pieces, 1, 0)
                number = ops.min(number, count * pieces - 1)
                row, piece = ops.div(number, pieces), ops.rem(number, pieces)
                target = ops.mad(ops.add(row, first), spec.table_stride, self._tables)
                target = ops.mad(piece, PIECE, target)
                ops.copy_to_shared_where(exists, target, ops.address(base, number, PIECE))
            first += count

    def _copy_tokens(self, number: Value, ids: Value) -> list[Value]:
        """Starts to copy the rows of this warp's tokens, and of their centroids in a codebook."""
        ops, spec, block = self._ops, self._spec, self._block
        self._copy_rows("x", number, self._rows)
        if spec.codebook:
            head = ops.mad(block.side, spec.kv_heads, ops.rem(block.head, spec.kv_heads))
            self._copy_rows("book", ops.mad(head, spec.codebook, ids), self._centroids)
        return []

    def _copy_rows(self, name: str, number: Value, rows: Value) -> None:
        """Starts to copy the rows of these numbers, whole rows side by side."""
        ops, spec, block = self._ops, self._spec, self._block
        pieces = spec.row_bytes // PIECE
        at_once = 32 // pieces
        row, piece = ops.div(block.lane, pieces), ops.rem(block.lane, pieces)
        start = ops.address(ops.pointer(name), piece, PIECE)
        rows = ops.mad(block.warp, 32 * spec.stride, rows)
        target = ops.mad(piece, PIECE, ops.mad(row, spec.stride, rows))
        for first in range(0, 32, at_once):
            taken = ops.take(number, ops.add(row, first))
            address = ops.address(start, taken, spec.row_bytes)
            ops.copy_to_shared(target, first * spec.stride, address)

    # One token a lane -----------------------------------------------------------------------------

    def _residual(self, ids: Value) -> list[Value]:
        """The channels of x / unit - centre."""
        ops, spec = self._ops, self._spec
        mine = ops.mad(self._block.thread, spec.stride, self._rows)
        centroid = ops.mad(self._block.thread, spec.stride, self._centroids)
        own = ops.mad(ids, spec.table_stride, self._tables)
        units = ops.add(self._tables, spec.centres * spec.table_stride)
        u = []
        for first in range(0, spec.head_dim, 8):
            x = self._bfloat16(mine, first)
            if spec.codebook:
                if spec.centres:
                    x = map(ops.fsub, x, self._floats(self._tables, first))
                u += map(ops.fsub, x, self._bfloat16(centroid, first))
            else:
                x = map(ops.fmul, x, self._floats(units, first))
                u += map(ops.fsub, x, self._floats(own, first))
        return u

    def _bfloat16(self, row: Value, first: int) -> list[Value]:
        """Eight channels of a row of bfloat16 in shared memory."""
        ops = self._ops
        words = ops.load_shared4(row, 2 * first)
        return [ops.from_bits(bits) for word in words for bits in split_bfloat16(ops, word)]

    def _floats(self, row: Value, first: int) -> list[Value]:
        """Eight channels of a row of float32 in shared memory."""
        ops = self._ops
        words = [word for i in (0, 16) for word in ops.load_shared4(row, 4 * first + i)]
        return [ops.from_bits(word) for word in words]

    def _code(self, ids: Value, valid: Value) -> list[Value]:
        """Words of this lane's token, plane after plane, then its scale's bits."""
        ops, spec, block = self._ops, self._spec, self._block
        planes = [spec.planes[c] for c in spec.coded]
        u = self._residual(ids)
        square = in_chains(ops.fadd, [dot(ops, u[i::8], u[i::8]) for i in range(8)])
        some = ops.where_less(0, ops.as_bits(square), valid, 0)  # not all channels are 0
        of_square = ops.log2(ops.fmax(square, _LEAST))
        first, dim = u[0], float(spec.head_dim)
        z = butterflies(ops, u)  # times sqrt(H)
        power = ops.exp2(ops.fmul(of_square, -0.5))  # 1 / (size sqrt(H))
        steps = block.float_of(block.place, [1 / NORMAL_STEPS[p] for p in planes])
        factor = ops.fmul(power, steps)
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
