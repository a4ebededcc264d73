"""Words and scales of half a block of positions, put together in shared memory and written out.

A thread block of four warps codes 128 positions, a lane one: half a block of `layout.layouts`. The
layout has the words of a half block in an order of its own, its *image*, 16 bytes of which a lane
writes at once. A lane has words of its position, which is what keys are made of; for values five
butterflies between lanes make words of 32 positions of a channel.
"""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.layout.tiled import Side
from pallas_kernels.quantize.half_block import WARPS, image_bytes

__all__ = ["TiledImage"]


@dataclasses.dataclass(frozen=True)
class TiledImage:
    """The half block of a thread block; `put_words`, `put_scale`, a barrier, then what writes.

    Attributes:
        ops, head_dim: of the kernel. thread, lane, warp: numbers in the thread block.
        half: number of the half block among `halves` of a head. words: those of a plane of a head.
        image, scales: addresses in shared memory: `image_bytes` a plane, and 128 words.
    """

    ops: Operations
    head_dim: int
    thread: Value
    lane: Value
    warp: Value
    half: Value
    halves: Value
    words: Value
    image: Value
    scales: Value

    def put_words(self, side: Side, words: Sequence[Value], plane: int = 0) -> None:
        """This lane's position: a word for 32 channels each."""
        if side == "key":
            self._put_key_words(words, plane)
        else:
            self._put_value_words([self._transpose(word) for word in words], plane)

    def put_scale(self, scale: Value) -> None:
        """The bits of the scale of this lane's position."""
        ops = self.ops
        t, g = ops.shift_right(self.lane, 3), ops.bit_and(self.lane, 7)  # position 8 t + g
        place = ops.mad(self.warp, 32, ops.mad(g, 4, t))
        ops.store_shared(1, ops.mad(place, 4, self.scales), 0, ops.from_bits(scale))

    def write_words(self, side: Side, base: Value, first: Value, plane: int = 0) -> None:
        """Writes a plane, four words a thread: of keys in a row, of values two and two.

        Args:
            base, first: address of the array, and number in it of the first word of head and plane.
        """
        ops = self.ops
        image_words = image_bytes(self.head_dim) // 4
        writers = image_words // 4
        inside = ops.where_less(self.thread, writers, 1, 0)
        source = ops.mad(ops.bit_and(self.thread, writers - 1), 16, self.image)
        words = ops.load_shared4(source, 4 * image_words * plane)
        if side == "key":
            place = ops.mad(self.half, image_words, ops.mad(self.thread, 4, 0))
            exists = ops.where_less(place, self.words, inside, 0)
            ops.store4(exists, ops.address(base, ops.add(first, place), 4), 0, words)
            return
        # The other half's pairs lie in between, if there is one.
        stride = ops.where_less(0, self.alone, 2, 4)
        block, upper = ops.shift_right(self.half, 1), ops.bit_and(self.half, 1)
        place = ops.mad(block, 2 * image_words, ops.mad(upper, 2, 0))
        place = ops.mad(ops.mad(self.thread, 2, 0), stride, place)
        for i in (0, 1):
            number = ops.add(first, ops.mad(stride, i, place))
            ops.store2(inside, ops.address(base, number, 4), 0, words[2 * i : 2 * i + 2])

    def write_scales(self, bits: int, base: Value, block: Value) -> None:
        """The first warp writes those of all, and zeros where the other half would be missing.

        Args:
            bits: of a scale. base, block: address of the array, number in it of the head's block.
        """
        ops = self.ops
        at = ops.mad(self.lane, 4, self.scales)
        scales = [ops.as_bits(ops.load_shared(at, 128 * i)) for i in range(WARPS)]
        while bits < 32:  # two of them to a word
            pairs = zip(scales[::2], scales[1::2], strict=True)
            scales = [ops.mad(second, 1 << bits, first) for first, second in pairs]
            bits *= 2
        half_bytes = 4 * len(scales)
        lanes = ops.address(base, block, 32 * 2 * half_bytes)
        lower = ops.address(lanes, self.lane, 2 * half_bytes)
        here = ops.address(lower, ops.bit_and(self.half, 1), half_bytes)
        writes = ops.equal(self.warp, 0)
        fills = ops.bit_and(writes, self.alone)
        for i, word in enumerate(scales):
            ops.store(writes, here, 4 * i, word)
            ops.store(fills, lower, half_bytes + 4 * i, 0)

    @property
    def alone(self) -> Value:
        """Whether the block has no second half, a word."""
        ops = self.ops
        lower = ops.sub(1, ops.bit_and(self.half, 1))
        return ops.where_less(ops.sub(self.halves, 2), self.half, lower, 0)

    def _put_key_words(self, words: Sequence[Value], plane: int) -> None:
        """Position 64 k + 32 r + 8 (2 c + e) + g; the warp is 2 k + r."""
        ops = self.ops
        k, r = ops.shift_right(self.warp, 1), ops.bit_and(self.warp, 1)
        c = ops.shift_right(self.lane, 4)
        e = ops.bit_and(ops.shift_right(self.lane, 3), 1)
        g = ops.bit_and(self.lane, 7)
        if self.head_dim == 128:  # row 2 k + c, lane 4 g + t, word 2 e + r
            place = ops.mad(e, 2, ops.mad(c, 128, ops.mad(k, 256, r)))
        else:  # row k, lane 4 g + 2 e + t % 2, word 2 c + r
            place = ops.mad(e, 8, ops.mad(c, 2, ops.mad(k, 128, r)))
        self._put(ops.mad(g, 16, place), words, 4, plane)

    def _put_value_words(self, words: Sequence[Value], plane: int) -> None:
        """Channel 16 m + 8 r + g; row m, lane 4 g + t, word r; the warp is t."""
        ops = self.ops
        upper = ops.shift_right(self.lane, 4)
        r = ops.bit_and(ops.shift_right(self.lane, 3), 1)
        place = ops.mad(ops.bit_and(self.lane, 7), 8, ops.mad(self.warp, 2, r))
        self._put(ops.mad(upper, 64, place), words, 128, plane)

    def _put(self, place: Value, words: Sequence[Value], apart: int, plane: int) -> None:
        ops = self.ops
        at = ops.mad(place, 4, self.image)
        for i, word in enumerate(words):
            offset = plane * image_bytes(self.head_dim) + 4 * apart * i
            ops.store_shared(1, at, offset, ops.from_bits(word))

    def _transpose(self, word: Value) -> Value:
        """Bit j of lane i goes to bit i of lane j: five butterflies."""
        ops = self.ops
        masks = (0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)
        for bit, mask in zip((1, 2, 4, 8, 16), masks, strict=True):
            upper = ops.bit_and(self.lane, bit)
            kept = ops.where_less(upper, 1, mask, ~mask & 0xFFFFFFFF)
            turn = ops.where_less(upper, 1, bit, 32 - bit)
            word = ops.bit_select(kept, word, ops.rotate_left(ops.exchange(word, bit), turn))
        return word
