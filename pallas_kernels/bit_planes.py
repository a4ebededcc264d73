"""Numbers as bit planes, and back: what lets the 1-bit tensor core multiply them.

A product of bits with 16-bit numbers is 16 products of bits with bits, one for each plane, summed
with the planes' weights:

    sum_k code[k] * y[k]  =  sum_p 2^p * popcount(code & plane_p),    plane_p[k] = bit p of y[k]

(two's complement: plane 15 has the weight -2^15). The tensor core counts eight planes at a time.
"""

from collections.abc import Sequence

from pallas_kernels.operations import Operations, Value

__all__ = ["COUNT_UNIT", "BitPlanes"]

COUNT_UNIT = 2.0**-24  # what a count of 1 is worth when its bits are read as a half


class BitPlanes:
    """Makes planes of 16-bit numbers and weighs their counts, for one warp.

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

        # Halves 2^p of planes p = 2t, 2t + 1, of those 8 below and 8 above; the last is negative.
        exponent = ops.shift_left(t, 1)
        fraction, low, high = (self._power_pair(ops.add(exponent, p)) for p in (-8, 0, 8))
        high = ops.bit_xor(high, ops.where_less(t, 3, 0, 0x80000000))
        column = ops.shift_right(g, 1)
        self._weights = []
        for tile in range(4):
            ours = ops.bit_xor(column, tile)
            self._weights.append(
                [ops.where_less(ours, 1, word, 0) for word in (fraction, low, high)]
            )

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

    def weigh(self, counts: Sequence[Sequence[list[Value]]]) -> tuple[Value, Value]:
        """Sums counts over planes, for four tiles of 16 rows with counts for each byte of planes.

        The counts' bits are read as halves, denormal ones, which the tensor core multiplies
        exactly: a left operand [16, 16 planes] as they are. The weights of tile q stand in columns
        2q and 2q + 1, so that lane 4 g + t gets rows g and g + 8 of tile t. The last two bytes
        weigh 1 to 2^15, a byte before them 2^-8 to 2^-1. Unit: COUNT_UNIT.
        """
        ops = self._ops
        sums = [0.0, 0.0, 0.0, 0.0]
        for tile, (fraction, low, high) in zip(counts, self._weights, strict=True):
            left = [ops.bytes(byte[r], byte[r + 1], 0x5410) for byte in tile for r in (0, 2)]
            sums = ops.mma_f16(left[-4:], [low, high], sums)
            if len(tile) == 3:
                sums = ops.mma_f16([*left[:2], 0, 0], [fraction, 0], sums)
        return sums[0], sums[2]

    def _transpose(self, word: Value) -> Value:
        """Bit 8 i + p of lane 4 g + t goes to bit 8 t + g of lane 4 p + i: five butterflies."""
        ops = self._ops
        for bit, selector in self._byte_steps:
            word = ops.bytes(word, ops.exchange(word, bit), selector)
        for bit, kept, turn in self._bit_steps:
            word = ops.bit_select(kept, word, ops.rotate_left(ops.exchange(word, bit), turn))
        return word

    def _power_pair(self, exponent: Value) -> Value:
        """The halves 2^exponent and 2^(exponent + 1)."""
        ops = self._ops
        biased = ops.add(exponent, 15)
        return ops.bit_or(ops.shift_left(biased, 10), ops.shift_left(ops.add(biased, 1), 26))
