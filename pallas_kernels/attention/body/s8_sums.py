"""Sums of codes times bytes of numbers on the tensor core, see `s8_products`."""

from collections.abc import Sequence

from pallas_kernels.attention.body.s8_queries import code_places
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value

__all__ = ["S8Sums"]


class S8Sums:
    """Tiles of words of keys or values, rows g and g + 8, times right operands of all queries."""

    def __init__(self, ops: Operations, spec: KernelSpec):
        """Finds out in how many places of a byte a code may lie."""
        self._ops, self._places = ops, code_places(spec)
        # Factors that the compiler does not know: shifts would take the busier pipe.
        self._byte, self._two_bytes = ops.unknown(1 << 8), ops.unknown(1 << 16)

    def of_values(
        self, tiles: Sequence[Sequence[Value]], sets: Sequence[Sequence[Sequence[Value]]]
    ) -> list[list[list[Value]]]:
        """For each tile and set sums over positions of weight times code, at rows g and g + 8.

        Tiles take turns: a product is long under way before its sum is needed.
        """
        ops = self._ops
        sums: list[list[list[Value]]] = [[[0, 0, 0, 0] for _ in sets] for _ in tiles]
        for h in range(len(tiles[0]) // 2):
            for n in range(4):
                for words, of_tile in zip(tiles, sums, strict=True):
                    # Bits 2n and 2n + 1 of each byte as 64 and 128.
                    pair = words[2 * h : 2 * h + 2]
                    if n < 3:
                        pair = [ops.shift_left(w, 6 - 2 * n) for w in pair]
                    left = self._bits(pair, 6)
                    for number, halves in enumerate(sets):
                        right = halves[h][2 * n : 2 * n + 2]
                        of_tile[number] = ops.mma_u8_u8(left, right, of_tile[number])
        return [
            [
                [ops.to_float(ops.mad(x[row], self._byte, x[row + 1])) for row in (0, 2)]
                for x in of_tile
            ]
            for of_tile in sums
        ]

    def of_keys(
        self,
        tiles: Sequence[Sequence[Value]],
        operands: Sequence[Sequence[Value]],
        sets: int,
    ) -> list[list[Value]]:
        """For each set sums over channels of number times code: of each tile at rows g and g + 8.

        Tiles take turns, as in `of_values`. Shortened queries count without their lowest digit.
        """
        ops, short = self._ops, len(operands) == sets
        sums: list[list[list[Value]]] = [[[0, 0, 0, 0] for _ in operands] for _ in tiles]
        for n in range(4):
            # Bits 2n and 2n + 1 of each byte, in one of the lowest places.
            shift, bit = divmod(2 * n, self._places)
            for words, of_tile in zip(tiles, sums, strict=True):
                shifted = [ops.shift_right(w, shift * self._places) for w in words]
                left = self._bits(shifted if shift else words, bit)
                for i, right in enumerate(operands):
                    of_tile[i] = ops.mma_u8_s8(left, right[2 * n : 2 * n + 2], of_tile[i])

        def total(of_tile: list[list[Value]], number: int, row: int) -> Value:
            upper, middle = of_tile[number][row : row + 2]
            if short:
                return ops.to_float(ops.mad(upper, self._byte, middle))
            last = ops.mad(middle, self._byte, of_tile[-1][row + number])
            return ops.to_float(ops.mad(upper, self._two_bytes, last))

        return [
            [total(of_tile, number, row) for of_tile in sums for row in (0, 2)]
            for number in range(sets)
        ]

    def _bits(self, rows: Sequence[Value], bit: int) -> list[Value]:
        """Left operand: bits `bit` and `bit + 1` of each byte of rows g and g + 8, in place."""
        masks = (0x01010101 << bit, 0x01010101 << bit + 1)
        return [self._ops.bit_and(w, mask) for mask in masks for w in rows]
