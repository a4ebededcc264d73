"""Numbers as bit planes, and back: what lets the 1-bit tensor core multiply them.

A product of bits with numbers of two or three bytes is 16 or 24 products of bits with bits, one for
each plane, summed with the planes' weights:

    sum_k code[k] * y[k]  =  sum_p 2^p * popcount(code & plane_p),    plane_p[k] = bit p of y[k]

The tensor core counts eight planes, a byte of each number, at a time. Signed numbers are two's
complement less one bit, -2^14 <= y < 2^14 in two bytes: plane 14 weighs -2^14, plane 15 is 0.
"""

from collections.abc import Callable, Sequence

from pallas_kernels.isa.operations import Operations, Value

__all__ = ["COUNT_UNIT", "BitPlanes"]

COUNT_UNIT = 2.0**-24  # what a count of 1 is worth when its bits are read as a half


class BitPlanes:
    """Makes planes of numbers and weighs their counts, for one warp.

    Args:
        ops: the instructions. lane: the lane's number, 4 g + t.
    """

    def __init__(self, ops: Operations, lane: Value):
        """Computes what depends on the lane only."""
        self._ops = ops
        t, g = ops.bit_and(lane, 3), ops.shift_right(lane, 2)

        def by_bit(bit: int, zero: int, one: int) -> Value:
            return ops.where_less(ops.bit_and(lane, bit), 1, zero, one)

        # Steps of the transpose: which bytes, or bits, a lane keeps and which it takes over.
        self._byte_steps = [(1, by_bit(1, 0x6240, 0x3715)), (2, by_bit(2, 0x5410, 0x3276))]
        self._bit_steps = []
        for k, mask in enumerate((0x55555555, 0x33333333, 0x0F0F0F0F)):
            kept = by_bit(4 << k, mask, ~mask & 0xFFFFFFFF)
            turn = by_bit(4 << k, 1 << k, 32 - (1 << k))
            self._bit_steps.append((4 << k, kept, turn))

        # Halves 2^(2t + 8) and 2^(2t), for planes 2t of a byte and of the one below it; of signed
        # numbers the upper byte's last planes are negative.
        exponents = ops.mad(t, 2 * (1 + 0x10000), 15 * (1 + 0x10000) + 8)
        power = ops.shift_left(exponents, 10)
        signed = ops.bit_xor(power, ops.where_less(t, 3, 0, 0x8000))

        def weights(value: Value) -> list[list[Value]]:
            """Right operands for four tiles: `value` in columns 2q and 2q + 1, one half each."""

            def only(column: int) -> Value:
                return ops.where_less(ops.bit_xor(g, column), 1, value, 0)

            return [[only(2 * tile), only(2 * tile + 1)] for tile in range(4)]

        self._weights, self._signed_weights = weights(power), weights(signed)
        # A factor that the compiler does not know: a shift would take the busier pipe.
        self._upper_half = ops.unknown(1 << 16)

    def split(self, numbers: Sequence[Value], num_bytes: int) -> list[Value]:
        """Planes of the warp's 128 numbers (the low bytes of four words a lane).

        Number i of lane 4 g + t gets the place k = 32 i + 8 t + g. Lane 4 p + i of word b holds
        places 32 i to 32 i + 31 of plane 8 b + p: right operands of `mma_b1_*`.
        """
        ops = self._ops
        planes = []
        for byte in range(num_bytes):
            pair = 0x5140 if byte < 2 else 0x7362  # bytes 0 and 1, or 2 and 3, of two numbers
            first, second = (ops.bytes(numbers[i], numbers[i + 1], pair) for i in (0, 2))
            together = ops.bytes(first, second, 0x7632 if byte % 2 else 0x5410)
            planes.append(self._transpose(together))
        return planes

    def split_signed(self, numbers: Sequence[Value], num_bytes: int) -> list[Value]:
        """`split` for signed numbers y, -2^(8 num_bytes - 2) <= y < 2^(8 num_bytes - 2)."""
        mask = 2 ** (8 * num_bytes - 1) - 1
        return self.split([self._ops.bit_and(y, mask) for y in numbers], num_bytes)

    def products(
        self,
        tiles: Sequence[Sequence[Value]],
        planes: Sequence[Sequence[Value]],
        mma: Callable[..., list[Value]],
        *,
        signed: bool,
    ) -> tuple[Value, Value]:
        """Sums of the numbers where bits are one, for four tiles of 16 rows of bits.

        Args:
            tiles: left operands of `mma`. planes: for each tile its right operands, one for each
                byte of the numbers, lowest first. mma: `mma_b1_k128` or `mma_b1_k256`.
            signed: whether the planes come from `split_signed`.

        Returns:
            In lane 4 g + t rows g and g + 8 of tile t, in units of COUNT_UNIT; of three bytes the
            first weighs 2^-8 to 2^-1.
        """
        ops = self._ops
        # Step by step for all tiles, which do not depend on each other.
        lower = [mma(tile, of_tile[-2]) for tile, of_tile in zip(tiles, planes, strict=True)]
        lower = [[ops.mad(x, self._upper_half, 0) for x in count] for count in lower]
        counts = [
            mma(tile, of_tile[-1], low)  # the lower byte's counts are in the upper halves
            for tile, of_tile, low in zip(tiles, planes, lower, strict=True)
        ]
        totals = self._weigh(counts, self._signed_weights if signed else self._weights)
        if len(planes[0]) == 3:
            counts = [mma(tile, first) for tile, (first, *_) in zip(tiles, planes, strict=True)]
            fraction = self._weigh(counts, self._weights)
            # In the lower halves, where a count weighs 2^8 as much as that byte should by 2^-8.
            totals = [ops.fma(x, 2.0**-16, y) for x, y in zip(fraction, totals, strict=True)]
        return totals[0], totals[1]

    def _weigh(self, counts: Sequence[Sequence[Value]], weights) -> list[Value]:
        """Sums counts over planes.

        The counts' bits are read as halves, denormal ones, which the tensor core multiplies
        exactly. Registers are taken as a left operand [16, 16] as they lie, so that its row g
        holds the even planes and its row g + 8 the odd ones, first of the tile's row g, in the
        second half of its columns of row g + 8; odd planes weigh twice as much. The weights of tile
        q stand in columns 2q and 2q + 1, so that lane 4 g + t gets rows g and g + 8 of tile t.
        """
        ops = self._ops
        sums = [0.0, 0.0, 0.0, 0.0]
        for count, right in zip(counts, weights, strict=True):
            sums = ops.mma_f16(count, right, sums)
        return [ops.fma(sums[2 + row], 2.0, sums[row]) for row in (0, 1)]

    def _transpose(self, word: Value) -> Value:
        """Bit 8 i + p of lane 4 g + t goes to bit 8 t + g of lane 4 p + i: five butterflies."""
        ops = self._ops
        for bit, selector in self._byte_steps:
            word = ops.bytes(word, ops.exchange(word, bit), selector)
        for bit, kept, turn in self._bit_steps:
            word = ops.bit_select(kept, word, ops.rotate_left(ops.exchange(word, bit), turn))
        return word
