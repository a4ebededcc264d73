"""The body of one thread block: tokens of one class coded by a dictionary of the model's tables.

A dictionary is a matrix E and, for each of its channels, a step and a greatest code; a virtual
channel is a bit of a channel's code, see `vkq_jax.codes.code_tables.ClassTables`.

| step | who | how |
|---|---|---|
| u = x - mean - centroid | lane 4 g + t | 16 bytes of every 32 channels of tokens 8 j + g |
| z = E u | warp | on the tensor core: rows of E, two halves in bfloat16 of u |
| codes, <u, D s> | lane | adding 2^23 rounds a code; the codes of four tokens are a word |
| bits | lane, of its own token | looked up in the channel of each virtual channel |
| words and scale | thread block | `tiled_image`, a plane after another |
"""

import dataclasses
import functools
from typing import Literal

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import of_lane_row, split_bfloat16, warp_sum
from pallas_kernels.layout import layouts
from pallas_kernels.quantize.class_block import SIDES, BlocksSpec, ClassBlock
from pallas_kernels.quantize.half_block import HALF, PIECE, WARPS, image_bytes, log_scale_code
from vkq_jax.bits.log_scale import ZERO_POINT

__all__ = ["CODE_STRIDE", "LearnedKernel", "LearnedRule", "LearnedSpec"]

LearnedRule = Literal["unbiased", "between", "norm"] | None
CODE_STRIDE = 4 * 36  # bytes from channel to channel of codes: what four lanes write lies apart
_SHARES = {"unbiased": (1.0, 0.0), "between": (0.5, 0.5), "norm": (0.0, 1.0), None: (0.0, 0.0)}
_ROUND = 2.0**23  # a float from here on has no digits behind the point
_LEAST = 2.0**-126
_HIGH = 0xFFFF0000  # what a float and a bfloat16 have in common
_RUN = 32  # channels of which a lane has eight in a row
_TILE = 8  # channels of a product
_SAME_TOKEN = (1, 2)  # bits of lanes that share g


@dataclasses.dataclass(frozen=True)
class LearnedSpec(BlocksSpec):
    """One launch.

    Attributes:
        stored: bits of a token of each class, those of zero included. rules: of scales, of keys and
            of values. codebook: centroids. kv_heads: that have tables of their own.
        centred: whether heads have a mean.
    """

    stored: tuple[int, ...]
    rules: tuple[LearnedRule, LearnedRule]
    codebook: int
    kv_heads: int
    centred: bool

    def plane_dim(self, number: int) -> int:
        """Virtual channels of a plane of a class."""
        return min(self.stored[number], layouts.HEAD_DIMS[-1])

    @property
    def stride(self) -> int:
        """Bytes from row to row of E in shared memory: two rows fill all banks."""
        return self.row_bytes + 64

    @property
    def entries(self) -> int:
        """Virtual channels of a class in tables."""
        return max(self.stored)

    @property
    def images_bytes(self) -> int:
        """Shared memory of the words of all planes."""
        return max(self.planes) * image_bytes(layouts.HEAD_DIMS[-1])

    @property
    def shared_words(self) -> int:
        """Words of shared memory: E, codes, channels, virtual channels, images, scales."""
        channels = self.head_dim * (self.stride + CODE_STRIDE + 16) + CODE_STRIDE
        return (channels + 8 * self.entries + self.images_bytes) // 4 + HALF


class LearnedKernel:
    """`run()` does the work of one warp.

    Operands: those of `ClassBlock`; x [2 * heads * V, H] bfloat16, finite; ids [2 * heads, V]
    int32, of centroids; book [2 * KV heads * centroids, H] bfloat16; with means centre [2 * heads,
    H] float32. Of each class with bits, keys and values, and KV head, T in all: analysis [T * H, H]
    bfloat16; step and top [T, H] float32; entry [T, entries, 2] int32, of each virtual channel
    where its channel's codes lie and by how much they are turned; weight [T, entries] float32.
    Results: see `ClassBlock`.
    """

    def __init__(self, ops: Operations, spec: LearnedSpec):
        """Finds out which part of the work is this warp's."""
        self._ops, self._spec, self._block = ops, spec, ClassBlock(ops, spec)
        block = self._block
        self._g, self._t = ops.shift_right(block.lane, 2), ops.bit_and(block.lane, 3)
        self._kv_head = ops.rem(block.head, spec.kv_heads)
        side = ops.mad(block.place, len(SIDES), block.side)
        self._table = ops.mad(side, spec.kv_heads, self._kv_head)
        self._analysis = ops.shared()
        self._codes = ops.add(self._analysis, spec.head_dim * spec.stride)
        self._channels = ops.add(self._codes, (spec.head_dim + 1) * CODE_STRIDE)
        self._entries = ops.add(self._channels, 16 * spec.head_dim)
        self._images = ops.add(self._entries, 8 * spec.entries)
        self._scales = ops.add(self._images, spec.images_bytes)

    @property
    def _fits(self) -> bool:
        """Whether a scale asks for <u, D s>."""
        return any(_SHARES[rule][0] for rule in self._spec.rules)

    def run(self) -> None:
        """Everything, for this warp."""
        ops, spec, block = self._ops, self._spec, self._block
        position, valid = block.load_position()
        self._copy_analysis()
        self._put_tables()
        ops.wait_for_copies()
        ops.barrier()
        number = ops.mad(block.row, spec.positions, position)
        (scale,) = ops.cond(ops.ballot(valid), [0], lambda _: [self._code(number, valid)])
        ops.warp_barrier()
        dims = [spec.plane_dim(c) for c in spec.coded]
        for dim in sorted(set(dims)):
            of_dim = block.of_class([int(d == dim) for d in dims])
            block.where(of_dim, 1, functools.partial(self._put_bits, dim, valid))
        own_scale = block.image(SIDES[0], spec.coded[0], self._images, self._scales)
        own_scale.put_scale(scale if None not in spec.rules else self._or_one(scale))
        ops.barrier()
        block.write(self._images, self._scales)

    # Tables ---------------------------------------------------------------------------------------

    def _copy_analysis(self) -> None:
        """Starts to copy E to shared memory, 16 bytes a lane at once."""
        ops, spec = self._ops, self._spec
        pieces = spec.row_bytes // PIECE
        rows = 32 * WARPS // pieces  # at once
        row, piece = ops.div(self._block.thread, pieces), ops.rem(self._block.thread, pieces)
        base = ops.address(ops.pointer("analysis"), self._table, spec.head_dim * spec.row_bytes)
        source = ops.address(ops.address(base, row, spec.row_bytes), piece, PIECE)
        target = ops.mad(row, spec.stride, ops.mad(piece, PIECE, self._analysis))
        for first in range(0, spec.head_dim, rows):
            ops.copy_to_shared(target, first * spec.stride, source, first * spec.row_bytes)
        ops.group_copies()

    def _put_tables(self) -> None:
        """Numbers of channels and of virtual channels to shared memory.

        A channel has four: 1 / step, half the greatest code, the greatest code, and the weight of
        its lowest bit.
        """
        ops, spec, thread = self._ops, self._spec, self._block.thread
        exists = ops.where_less(thread, spec.head_dim, 1, 0)
        place = ops.mad(self._table, spec.head_dim, ops.min(thread, spec.head_dim - 1))
        step, top = (
            ops.load_float(ops.address(ops.pointer(name), place, 4)) for name in ("step", "top")
        )
        at = ops.mad(ops.min(thread, spec.head_dim - 1), 16, self._channels)
        for i, x in enumerate((ops.reciprocal(step), ops.fmul(top, 0.5), top, 0.0)):
            ops.store_shared(exists, at, 4 * i, x)
        # A virtual channel that is only stored looks up codes of 0.
        zeros = ops.mad(thread, 4, ops.add(self._codes, spec.head_dim * CODE_STRIDE))
        ops.store_shared(ops.where_less(thread, CODE_STRIDE // 4, 1, 0), zeros, 0, 0.0)
        ops.barrier()
        for first in range(0, spec.entries, 32 * WARPS):
            number = ops.add(thread, first)
            exists = ops.where_less(number, spec.entries, 1, 0)
            number = ops.min(number, spec.entries - 1)
            place = ops.mad(self._table, spec.entries, number)
            place_of_codes, turn = ops.load2(ops.address(ops.pointer("entry"), place, 8), 0)
            weight = ops.load_float(ops.address(ops.pointer("weight"), place, 4))
            at = ops.mad(number, 8, self._entries)
            ops.store_shared(exists, at, 0, ops.from_bits(place_of_codes))
            ops.store_shared(exists, at, 4, ops.from_bits(turn))
            channel = ops.div(place_of_codes, CODE_STRIDE)
            lowest = ops.bit_and(ops.equal(turn, 31), ops.where_less(channel, spec.head_dim, 1, 0))
            at = ops.mad(ops.min(channel, spec.head_dim - 1), 16, self._channels)
            ops.store_shared(ops.bit_and(lowest, exists), at, 12, weight)

    # Four tokens a lane ---------------------------------------------------------------------------

    def _code(self, number: Value, valid: Value) -> Value:
        """Leaves the codes of this warp's tokens in shared memory; the scale of this lane's one."""
        ops, spec, block = self._ops, self._spec, self._block
        ids = ops.load(ops.address(ops.pointer("ids"), number, 4))
        lefts, squares = self._lefts(number, ids)
        of_squares = [ops.log2(ops.fmax(x, _LEAST)) for x in squares]
        sizes = [ops.exp2(ops.fmul(x, -0.5)) for x in of_squares]  # 1 / (size sqrt(H))
        sizes = [ops.fmul(x, spec.head_dim**0.5) for x in sizes]
        scaled = block.float_of(block.side, [float(rule is not None) for rule in spec.rules])
        sizes = [ops.fma(ops.fsub(x, 1.0), scaled, 1.0) for x in sizes]
        rows = ops.mad(self._g, spec.stride, ops.mad(self._t, PIECE, self._analysis))
        target = ops.mad(block.warp, 32, ops.mad(self._g, 4, self._codes))
        target = ops.mad(self._t, 2 * CODE_STRIDE, target)
        channels = ops.mad(self._t, 32, self._channels)

        def multiply(i: Value, along: list[Value]) -> list[Value]:
            z = self._products(ops.mad(i, _TILE * spec.stride, rows), lefts)
            for k in (0, 1):
                at = ops.mad(i, 16 * _TILE, channels)
                inverse, half, top, weight = map(ops.from_bits, ops.load_shared4(at, 16 * k))
                codes = []
                for j in range(4):
                    v = ops.fma(z[j][k], ops.fmul(sizes[j], inverse), half)
                    v = ops.fadd(ops.fmin(ops.fmax(v, 0.0), top), _ROUND)
                    codes.append(ops.as_bits(v))
                    if self._fits:
                        level = ops.fsub(ops.fsub(v, _ROUND), half)
                        along[j] = ops.fma(z[j][k], ops.fmul(weight, level), along[j])
                low, high = (ops.bytes(codes[j], codes[j + 1], 0x0040) for j in (0, 2))
                word = ops.from_bits(ops.bytes(low, high, 0x5410))
                at = ops.mad(i, _TILE * CODE_STRIDE, target)
                ops.store_shared(1, at, k * CODE_STRIDE, word)
            return along

        along = ops.loop(spec.head_dim // _TILE, [0.0] * 4, multiply)
        along = [warp_sum(ops, x, _SAME_TOKEN) for x in along]
        square, fit = self._of_lane(squares), self._of_lane(along)
        return self._scale(square, ops.fadd(fit, fit), valid)

    def _lefts(
        self, number: Value, ids: Value
    ) -> tuple[list[tuple[list[list[Value]], list[list[Value]]]], list[Value]]:
        """Left operands by 32 channels, upper and lower halves of four tokens; squares of tokens.

        Args:
            number, ids: row and centroid of this lane's token.
        """
        ops, spec, block = self._ops, self._spec, self._block
        book = ops.mad(block.side, spec.kv_heads, self._kv_head)
        centroid = ops.mad(book, spec.codebook, ids)
        tokens = []
        for j in range(4):
            lane = ops.add(self._g, 8 * j)
            pairs = (("x", number), ("book", centroid))
            starts = [
                ops.address(ops.pointer(name), ops.take(row, lane), spec.row_bytes)
                for name, row in pairs
            ]
            tokens.append([ops.address(start, self._t, PIECE) for start in starts])
        lefts, sums = [], [[0.0] * 2 for _ in tokens]
        for first in range(0, spec.head_dim, _RUN):
            mean = None
            if spec.centred:
                start = ops.address(ops.pointer("centre"), block.row, 4 * spec.head_dim)
                start = ops.address(start, self._t, 2 * PIECE)
                words = [w for i in (0, 16) for w in ops.load4(start, 4 * first + i)]
                mean = [ops.from_bits(word) for word in words]
            upper, lower = [], []
            for token, own in zip(tokens, sums, strict=True):
                x, c = (
                    [
                        ops.from_bits(bits)
                        for word in ops.load4(start, 2 * first)
                        for bits in split_bfloat16(ops, word)
                    ]
                    for start in token
                )
                u = list(map(ops.fsub, x if mean is None else map(ops.fsub, x, mean), c))
                for i, value in enumerate(u):
                    own[i % 2] = ops.fma(value, value, own[i % 2])
                bits = [ops.as_bits(value) for value in u]
                rest = [
                    ops.fsub(value, ops.from_bits(ops.bit_and(word, _HIGH)))
                    for value, word in zip(u, bits, strict=True)
                ]
                upper.append([ops.bytes(bits[i], bits[i + 1], 0x7632) for i in range(0, 8, 2)])
                lower.append([ops.pack_bfloat16(*rest[i : i + 2]) for i in range(0, 8, 2)])
            lefts.append((upper, lower))
        return lefts, [warp_sum(ops, ops.fadd(*own), _SAME_TOKEN) for own in sums]

    def _products(
        self, at: Value, lefts: list[tuple[list[list[Value]], list[list[Value]]]]
    ) -> list[list[Value]]:
        """Channels 2 t and 2 t + 1 of a tile, of each of this lane's tokens."""
        ops = self._ops
        sums: list[list[Value]] = [[0.0] * 4 for _ in range(4)]
        for number, parts in enumerate(lefts):
            right = ops.load_shared4(at, 64 * number)
            for half in (0, 2):
                for part, words in enumerate(parts):
                    for m in (0, 1):
                        first, second = words[2 * m], words[2 * m + 1]
                        left = [first[half], second[half], first[half + 1], second[half + 1]]
                        sums[2 * part + m] = ops.mma_bfloat16(
                            left, right[half : half + 2], sums[2 * part + m]
                        )
        joined = [list(map(ops.fadd, sums[m], sums[2 + m])) for m in (0, 1)]
        return [joined[j // 2][2 * (j % 2) : 2 * (j % 2) + 2] for j in range(4)]

    def _of_lane(self, values: list[Value]) -> Value:
        """The float of this lane's token."""
        ops = self._ops
        bits = [ops.as_bits(value) for value in values]
        return ops.from_bits(of_lane_row(ops, self._block.lane, bits))

    # One token a lane -----------------------------------------------------------------------------

    def _scale(self, square: Value, along: Value, valid: Value) -> Value:
        """Bits of the scale, by the rule of this side, in logarithms."""
        ops, spec, block = self._ops, self._spec, self._block
        of_square = ops.log2(ops.fmax(square, _LEAST))
        of_norm = ops.fma(of_square, 0.5, ops.fmul(ops.log2(float(spec.head_dim)), -0.5))
        of_fit = ops.fsub(of_square, ops.log2(ops.fmax(along, _LEAST)))
        shares = zip(*(_SHARES[rule] for rule in spec.rules), strict=True)
        fit, unscaled = (block.float_of(block.side, share) for share in shares)
        logarithm = ops.fma(of_fit, fit, ops.fmul(of_norm, unscaled))
        some = ops.where_less(0, ops.as_bits(square), valid, 0)
        if self._fits:  # a dictionary that points away from the token gives it no scale
            away = ops.where_less(0, ops.as_bits(along), some, 0)
            some = ops.where_less(0, ops.as_bits(fit), away, some)
        return ops.mad(log_scale_code(ops, logarithm), some, 0)

    def _or_one(self, scale: Value) -> Value:
        """The scale, or that of 1 in all slots of a side without scales."""
        ops, spec, block = self._ops, self._spec, self._block
        slot = ops.mad(block.half, HALF, block.thread)
        capacity = block.of_class([spec.capacities[c] for c in spec.coded])
        one = ops.where_less(slot, capacity, ZERO_POINT, 0)
        (keys, values) = (rule is None for rule in spec.rules)
        return ops.where_less(block.side, 1, one if keys else scale, one if values else scale)

    def _put_bits(self, dim: int, valid: Value) -> None:
        """The words of this lane's token, in the place of each plane."""
        ops, spec, block = self._ops, self._spec, self._block
        own = ops.mad(ops.bit_and(block.lane, 7), 4, ops.mad(block.warp, 32, self._codes))
        turned = ops.mad(ops.shift_right(block.lane, 3), -8 & 0xFFFFFFFF, 0)
        kept = ops.sub(0, valid)
        (number, *_) = (c for c in spec.coded if spec.plane_dim(c) == dim)

        def put(plane: Value, _: list[Value]) -> list[Value]:
            entries = ops.mad(plane, 8 * dim, self._entries)
            words = []
            for first in range(0, dim, 32):
                word: Value = 0
                for pair in reversed(range(first, first + 32, 2)):
                    found = ops.load_shared4(entries, 8 * pair)
                    for place, turn in (found[2:], found[:2]):
                        codes = ops.as_bits(ops.load_shared(ops.add(own, place), 0))
                        word = ops.shift_in(word, ops.rotate_left(codes, ops.add(turn, turned)))
                words.append(ops.bit_and(word, kept))
            images = ops.mad(plane, image_bytes(dim), self._images)
            for side_number, side in enumerate(SIDES):
                image = block.image(side, number, images, self._scales)
                work = functools.partial(image.put_words, side, words)
                block.where(block.side, side_number, work)
            return []

        ops.loop(block.of_class([spec.planes[c] for c in spec.coded]), [], put)
