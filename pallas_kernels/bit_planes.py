"""Numbers as bit planes, and back: what lets the 1-bit tensor core multiply them.

A product of bits with 16-bit numbers is 16 products of bits with bits, one for each plane, summed
with the planes' weights:

    sum_k code[k] * y[k]  =  sum_p 2^p * popcount(code & plane_p),    plane_p[k] = bit p of y[k]

The tensor core counts eight planes, a byte of each number, at a time. Signed numbers are two's
complement less one bit, -2^14 <= y < 2^14 in 16 bits: plane 14 has the weight -2^14, plane 15 is 0.
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

        # Halves 2^(2t) for planes 2t, and for the last byte of signed numbers.
        power = ops.shift_left(ops.mad(t, 2, 15), 10)
        signed = ops.bit_xor(power, ops.where_less(t, 3, 0, 0x8000))

        def weights(value: Value) -> list[list[Value]]:
            """Right operands for four tiles: `value` in columns 2q and 2q + 1, one half each."""

            def only(column: int) -> Value:
                return ops.where_less(ops.bit_xor(g, column), 1, value, 0)

            return [[only(2 * tile), only(2 * tile + 1)] for tile in range(4)]

        self._weights, self._signed_weights = weights(power), weights(signed)

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

    def weigh(
        self, counts: Sequence[Sequence[list[Value]]], *, signed: bool
    ) -> tuple[Value, Value]:
        """Sums counts over planes, for four tiles of 16 rows with counts for each byte of planes.

        The counts' bits are read as halves, denormal ones, which the tensor core multiplies
        exactly. Registers are taken as a left operand [16, 16] as they lie, so that its row g
        holds the even planes and its row g + 8 the odd ones, first of the tile's row g, in the
        second half of its columns of row g + 8; odd planes weigh twice as much. The weights of tile
        q stand in columns 2q and 2q + 1, so that lane 4 g + t gets rows g and g + 8 of tile t. The
        last two bytes weigh 1 to 2^15, a byte before them 2^-8 to 2^-1. Unit: COUNT_UNIT.
        """
        ops = self._ops
        num_bytes = len(counts[0])
        totals = [0.0, 0.0]
        for byte in range(num_bytes):
            last = signed and byte == num_bytes - 1
            sums = [0.0, 0.0, 0.0, 0.0]
            for tile, right in zip(
                counts, self._signed_weights if last else self._weights, strict=True
            ):
                sums = ops.mma_f16(tile[byte], right, sums)
            scale = 256.0 ** (byte - (num_bytes - 2))
            for row in (0, 1):
                even_and_odd = ops.fma(sums[2 + row], 2.0, sums[row])
                totals[row] = ops.fma(even_and_odd, scale, totals[row])
        return totals[0], totals[1]

    def _transpose(self, word: Value) -> Value:
        """Bit 8 i + p of lane 4 g + t goes to bit 8 t + g of lane 4 p + i: five butterflies."""
        ops = self._ops
        for bit, selector in self._byte_steps:
            word = ops.bytes(word, ops.exchange(word, bit), selector)
        for bit, kept, turn in self._bit_steps:
            word = ops.bit_select(kept, word, ops.rotate_left(ops.exchange(word, bit), turn))
        return word
