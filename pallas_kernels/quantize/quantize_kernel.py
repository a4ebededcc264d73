"""The body of one thread block: visual positions gathered, coded as signs, written in the layout.

A thread block takes 128 positions of one head, half a block of `layout.layouts`; a warp takes 32 of
them and a lane one, with all its channels in registers. So the rotation and the sums of a position
stay in its lane, and a code costs one instruction, which shifts a sign into a word:

| step | who | how |
|---|---|---|
| gather | the warp, 16 bytes a lane | rows to shared memory, 16 bytes between them |
| d = centre - x | lane | so that u = R (x - centre) > 0 is the sign of R d; never -0 |
| sum d^2, R d, sum abs(R d) | lane | butterflies between registers |
| codes, scale | lane | words of 32 channels of its position |
| values only: transpose | warp | words of 32 positions of its channel |
| image of the half block | thread block | in shared memory, then 16 bytes a lane to device memory |

A warp of which no position is valid reads nothing. Each word of the results is written once.

Elements that are NaN, infinite or beyond +-2^100 count as in `vkq_jax.SignCodes`: as 0, or as the
nearer end. A warp that meets one, or whose squares are no float32 numbers, computes once more, with
elements made so and every position divided by its own power of two. The others do nothing for it
but look at the sum of squares.
"""

import functools
from collections.abc import Callable

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import butterflies, dot
from pallas_kernels.layout import layouts
from pallas_kernels.quantize.half_block import (
    INFINITY,
    MAGNITUDE,
    PIECE,
    WARPS,
    HalfBlock,
    QuantizeSpec,
    image_bytes,
    log_scale_code,
)
from pallas_kernels.quantize.tiled_image import TiledImage

__all__ = ["QuantizeKernel"]

_ONE = 0x3F800000  # bits of 1.0
# Bits of 2^-100, 2^120: a sum of squares between these has lost nothing.
_LEAST_SQUARES, _MOST_SQUARES = (127 - 100) << 23, (127 + 120) << 23


class QuantizeKernel:
    """`run()` does the work of one warp.

    Operands: x [B * T * K, H]; position [B, 128 * halves] int32, the token of each visual position,
    negative where there is none; centre [B * K, H] float32, without -0. Results: words [B * K, n]
    and scale [B * K, blocks, 32, words], as in `TiledSigns`.
    """

    def __init__(self, ops: Operations, spec: QuantizeSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec = ops, spec
        share = self._share = HalfBlock(ops, spec)
        self._thread, self._lane, self._warp = share.thread, share.lane, share.warp
        self._head, self._half = share.head, share.half
        image = ops.add(ops.shared(), WARPS * spec.warp_bytes)
        self._image = TiledImage(
            ops,
            spec.head_dim,
            share.thread,
            share.lane,
            share.warp,
            share.half,
            halves=spec.halves,
            words=spec.words,
            image=image,
            scales=ops.add(image, image_bytes(spec.head_dim)),
        )

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        position, valid = self._share.load_position()
        nothing = [0] * (spec.head_dim // 32 + 1)
        *words, scale = ops.cond(ops.ballot(valid), nothing, lambda _: self._code(position, valid))
        image = self._image
        image.put_words(spec.side, words)
        image.put_scale(scale)
        ops.barrier()
        image.write_words(spec.side, ops.pointer("words"), ops.mad(self._head, spec.words, 0))
        blocks = layouts.num_blocks(spec.num_positions)
        block = ops.mad(self._head, blocks, ops.shift_right(self._half, 1))
        image.write_scales(spec.scale_bits, ops.pointer("scale"), block)

    # One position a lane --------------------------------------------------------------------------

    def _code(self, position: Value, valid: Value) -> list[Value]:
        """Words of this lane's position, then its scale's bits."""
        ops = self._ops
        rows = self._gather(position)
        words, square, absolute = self._signs(self._residual(rows), valid)
        bits = ops.bit_and(ops.as_bits(square), MAGNITUDE)
        # A position at the centre has no squares: its sum of absolute values is 0, too.
        apart = ops.where_less(0, ops.bit_and(ops.as_bits(absolute), MAGNITUDE), valid, 0)
        again = ops.where_less(bits, _LEAST_SQUARES, apart, 0)
        again = ops.where_less(bits, _MOST_SQUARES, again, valid)
        usual = [*words, self._scale(square, absolute, valid, 0.0)]
        return ops.cond(ops.ballot(again), usual, lambda _: self._code_again(rows, valid))

    def _code_again(self, rows: Value, valid: Value) -> list[Value]:
        """`_code` of elements that are not finite, that saturate, or whose squares would."""
        ops = self._ops
        u = self._residual(rows, self._share.saturated)
        magnitudes = (ops.bit_and(ops.as_bits(v), INFINITY) for v in u)
        exponent = functools.reduce(ops.max, magnitudes)  # of the greatest, where floats have it
        power = ops.from_bits(ops.sub(2 * _ONE, exponent))
        octaves = ops.to_float(ops.sub(ops.shift_right(exponent, 23), 127))
        words, square, absolute = self._signs([ops.fmul(v, power) for v in u], valid)
        return [*words, self._scale(square, absolute, valid, octaves)]

    def _signs(self, u: list[Value], valid: Value) -> tuple[list[Value], Value, Value]:
        """Words of this lane's position, the sum of squares, and that of |u| (times sqrt(H))."""
        ops, spec = self._ops, self._spec
        square = _total(ops, [dot(ops, part, part) for part in _by_word(u)])
        if spec.rotated:
            u = butterflies(ops, u)  # times sqrt(H)
        sums = [
            functools.reduce(lambda s, v: ops.fadd(s, ops.fabs(v)), part, 0.0)
            for part in _by_word(u)
        ]
        absolute = _total(ops, sums)
        keep = ops.sub(0, valid)
        words = []
        for part in _by_word(u):
            word = 0
            for v in reversed(part):
                word = ops.shift_in(word, ops.as_bits(v))
            words.append(ops.bit_and(word, keep))
        return words, square, absolute

    def _gather(self, position: Value) -> Value:
        """Copies the warp's rows and its centre to shared memory; the address of this lane's row.

        The lanes copy whole rows, side by side, a few at a time.
        """
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // PIECE
        at_once = 32 // pieces
        row, piece = ops.div(self._lane, pieces), ops.rem(self._lane, pieces)
        source = self._share.row(position)
        start = ops.address(ops.pointer("x"), piece, PIECE)
        rows = ops.mad(self._warp, spec.warp_bytes, ops.shared())
        target = ops.mad(piece, PIECE, ops.mad(row, spec.stride, rows))
        for first in range(0, 32, at_once):
            taken = ops.take(source, ops.add(row, first))
            address = ops.address(start, taken, spec.row_bytes)
            ops.copy_to_shared(target, first * spec.stride, address)
        piece = ops.rem(self._lane, spec.head_dim // 4)
        address = ops.address(ops.pointer("centre"), self._head, 4 * spec.head_dim)
        target = ops.mad(self._lane, PIECE, rows)
        ops.copy_to_shared(target, 32 * spec.stride, ops.address(address, piece, PIECE))
        ops.group_copies()
        ops.wait_for_copies()
        ops.warp_barrier()
        return rows

    def _residual(self, rows: Value, coded: Callable[[Value], Value] = lambda x: x) -> list[Value]:
        """The channels of centre - x; `coded` makes elements what they are coded as."""
        ops, spec = self._ops, self._spec
        mine = ops.mad(self._lane, spec.stride, rows)
        x = []
        for offset in range(0, spec.row_bytes, PIECE):
            x += self._share.floats(ops.load_shared4(mine, offset))
        centre = []
        for first in range(0, 4 * spec.head_dim, PIECE):
            centre += ops.load_shared4(rows, 32 * spec.stride + first)
        return [ops.fsub(ops.from_bits(c), coded(v)) for c, v in zip(centre, x, strict=True)]

    def _scale(self, square: Value, absolute: Value, valid: Value, octaves: Value) -> Value:
        """Bits of the scale, from the sums of squares and of absolute values (times sqrt(H)).

        Of a position divided by 2^octaves.
        """
        ops, spec, gamma = self._ops, self._spec, self._spec.gamma
        size = spec.head_dim * (spec.head_dim**0.5 if spec.rotated else 1.0)
        # a = a_ls (|u|^2 / H / a_ls^2)^gamma in logarithms.
        least_squares = ops.log2(ops.fmul(absolute, 1 / size))
        logarithm = ops.fmul(least_squares, 1 - 2 * gamma)
        if gamma:
            mean_square = ops.log2(ops.fmul(square, 1 / spec.head_dim))
            logarithm = ops.fma(mean_square, gamma, logarithm)
        logarithm = ops.fadd(logarithm, octaves)
        if spec.scale_bits == 8:
            scale = log_scale_code(ops, logarithm)
        else:
            scale = ops.pack_bfloat16(ops.exp2(logarithm), 0.0)
        # Neither padding nor a position at the centre has one; floats >= 0 are ordered as words.
        return ops.where_less(0, ops.as_bits(absolute), ops.mad(scale, valid, 0), 0)


def _by_word(x: list[Value]) -> list[list[Value]]:
    """The channels of each word: sums of them do not wait for each other."""
    return [x[first : first + 32] for first in range(0, len(x), 32)]


def _total(ops: Operations, parts: list[Value]) -> Value:
    return functools.reduce(ops.fadd, parts)
