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
)

__all__ = ["QuantizeKernel"]

_ZERO_POINT, _PER_OCTAVE = 128, 8.0  # of 8-bit scales, see vkq_jax.bits.log_scale
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
        self._block, self._upper = ops.shift_right(self._half, 1), ops.bit_and(self._half, 1)
        # Whether the block has no second half.
        lower = ops.sub(1, self._upper)
        self._alone = ops.where_less(spec.halves - 2, self._half, lower, 0)
        self._image = ops.add(ops.shared(), WARPS * spec.warp_bytes)
        self._scales = ops.add(self._image, spec.image_bytes)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec = self._ops, self._spec
        position, valid = self._share.load_position()
        nothing = [0] * (spec.head_dim // 32 + 1)
        *words, scale = ops.cond(ops.ballot(valid), nothing, lambda _: self._code(position, valid))
        if spec.side == "key":
            self._put_key_words(words)
        else:
            self._put_value_words([self._transpose(word) for word in words])
        t, g = ops.shift_right(self._lane, 3), ops.bit_and(self._lane, 7)  # position 8 t + g
        place = ops.mad(self._warp, 32, ops.mad(g, 4, t))
        ops.store_shared(1, ops.mad(place, 4, self._scales), 0, ops.from_bits(scale))
        ops.barrier()
        self._write_words()
        self._write_scales()

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
            code = ops.to_int(ops.fmul(logarithm, _PER_OCTAVE))
            scale = ops.min(ops.max(ops.add(code, _ZERO_POINT), 0), 255)
        else:
            scale = ops.pack_bfloat16(ops.exp2(logarithm), 0.0)
        # Neither padding nor a position at the centre has one; floats >= 0 are ordered as words.
        return ops.where_less(0, ops.as_bits(absolute), ops.mad(scale, valid, 0), 0)

    # The half block's words, in shared memory as `layouts` orders them ----------------------------

    def _put_key_words(self, words: list[Value]) -> None:
        """Position 64 k + 32 r + 8 (2 c + e) + g; the warp is 2 k + r."""
        ops = self._ops
        k, r = ops.shift_right(self._warp, 1), ops.bit_and(self._warp, 1)
        c = ops.shift_right(self._lane, 4)
        e = ops.bit_and(ops.shift_right(self._lane, 3), 1)
        g = ops.bit_and(self._lane, 7)
        if self._spec.head_dim == 128:  # row 2 k + c, lane 4 g + t, word 2 e + r
            place = ops.mad(e, 2, ops.mad(c, 128, ops.mad(k, 256, r)))
        else:  # row k, lane 4 g + 2 e + t % 2, word 2 c + r
            place = ops.mad(e, 8, ops.mad(c, 2, ops.mad(k, 128, r)))
        self._put(ops.mad(g, 16, place), words, [4 * t for t in range(len(words))])

    def _put_value_words(self, words: list[Value]) -> None:
        """Channel 16 m + 8 r + g; row m, lane 4 g + t, word r; the warp is t."""
        ops = self._ops
        upper = ops.shift_right(self._lane, 4)
        r = ops.bit_and(ops.shift_right(self._lane, 3), 1)
        place = ops.mad(ops.bit_and(self._lane, 7), 8, ops.mad(self._warp, 2, r))
        place = ops.mad(upper, 64, place)
        self._put(place, words, [128 * k for k in range(len(words))])

    def _put(self, place: Value, words: list[Value], offsets: list[int]) -> None:
        ops = self._ops
        at = ops.mad(place, 4, self._image)
        for word, offset in zip(words, offsets, strict=True):
            ops.store_shared(1, at, 4 * offset, ops.from_bits(word))

    def _transpose(self, word: Value) -> Value:
        """Bit j of lane i goes to bit i of lane j: five butterflies."""
        ops = self._ops
        masks = (0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)
        for bit, mask in zip((1, 2, 4, 8, 16), masks, strict=True):
            upper = ops.bit_and(self._lane, bit)
            kept = ops.where_less(upper, 1, mask, ~mask & 0xFFFFFFFF)
            turn = ops.where_less(upper, 1, bit, 32 - bit)
            word = ops.bit_select(kept, word, ops.rotate_left(ops.exchange(word, bit), turn))
        return word

    # To device memory -----------------------------------------------------------------------------

    def _write_words(self) -> None:
        """Four words a thread, of keys in a row, of values two and two."""
        ops, spec = self._ops, self._spec
        image_words = spec.image_bytes // 4
        writers = image_words // 4
        inside = ops.where_less(self._thread, writers, 1, 0)
        words = ops.load_shared4(
            ops.mad(ops.bit_and(self._thread, writers - 1), 16, self._image), 0
        )
        head = ops.address(ops.pointer("words"), self._head, 4 * spec.words)
        if spec.side == "key":
            first = ops.mad(self._half, image_words, ops.mad(self._thread, 4, 0))
            exists = ops.where_less(first, spec.words, inside, 0)
            ops.store4(exists, ops.address(head, first, 4), 0, words)
            return
        # The other half's pairs lie in between, if there is one.
        stride = ops.where_less(0, self._alone, 2, 4)
        first = ops.mad(self._block, 2 * image_words, ops.mad(self._upper, 2, 0))
        first = ops.mad(ops.mad(self._thread, 2, 0), stride, first)
        for i in (0, 1):
            place = ops.mad(stride, i, first)
            ops.store2(inside, ops.address(head, place, 4), 0, words[2 * i : 2 * i + 2])

    def _write_scales(self) -> None:
        """The first warp writes those of all, and zeros where the other half would be missing."""
        ops, spec = self._ops, self._spec
        at = ops.mad(self._lane, 4, self._scales)
        scales = [ops.as_bits(ops.load_shared(at, 128 * i)) for i in range(WARPS)]
        bits = spec.scale_bits
        while bits < 32:  # two of them to a word
            pairs = zip(scales[::2], scales[1::2], strict=True)
            scales = [ops.mad(second, 1 << bits, first) for first, second in pairs]
            bits *= 2
        half_bytes = 4 * len(scales)
        blocks = layouts.num_blocks(spec.num_positions)
        block = ops.mad(self._head, blocks, self._block)
        lanes = ops.address(ops.pointer("scale"), block, 32 * 2 * half_bytes)
        lower = ops.address(lanes, self._lane, 2 * half_bytes)
        here = ops.address(lower, self._upper, half_bytes)
        writes = ops.equal(self._warp, 0)
        fills = ops.bit_and(writes, self._alone)
        for i, word in enumerate(scales):
            ops.store(writes, here, 4 * i, word)
            ops.store(fills, lower, half_bytes + 4 * i, 0)


def _by_word(x: list[Value]) -> list[list[Value]]:
    """The channels of each word: sums of them do not wait for each other."""
    return [x[first : first + 32] for first in range(0, len(x), 32)]


def _total(ops: Operations, parts: list[Value]) -> Value:
    return functools.reduce(ops.fadd, parts)
