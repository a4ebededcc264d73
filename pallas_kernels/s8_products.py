"""Up to four queries and one block of packed keys and values, with 8-bit integer instructions.

A word `w` holds 32 codes. `w & 0x01010101 << b` is four of them, bits b, 8 + b, 16 + b and 24 + b,
as bytes of value 2^b: a left operand of `mma_u8_*` in one instruction. The 2^-b is folded into the
number that the code is multiplied by. Operands are shared by all queries, whose numbers' bytes are
the columns of the right operand:

    numbers of    column 2 q            column 2 q + 1       second product, column 2 q
    keys          upper byte, query q   middle byte          lower byte (24 bits, signed digits)
    values        upper byte            lower byte (16 bits, unsigned)

so that lane 4 g + t ends up with all bytes' sums for query t and need not ask another lane.

1. *scores* of query t at positions 8 p + g, p in 0..31.
2. *softmax* (`BlockSoftmax`) in the lane, and over the eight that share t.
3. *values*: channels 16 m + 8 r + g of query t. Weights change lanes on the way, see
   `Scratch.exchange_weights`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from pallas_kernels.block_softmax import BlockSoftmax, BlockWeights, add_products
from pallas_kernels.fixed_point import TO_INT_BITS
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Coding, Problem
from pallas_kernels.warp_math import SAME_QUERY, exchange_float
from pallas_kernels.work import Work

__all__ = ["S8Products"]

_DIGITS = 0x808080  # added and taken back by xor, it turns a number's three bytes into signed ones
_MAX_WEIGHT = 65535.0
_VALUE_UNIT = 64.0  # a code of values counts 64 or 128


class S8Products:
    """Products of a block with the team's queries, query t of them in lanes 4 g + t."""

    greatest_query = 2.0**23 * (1 - 2.0**-7)  # the upper digit stays within a byte

    def __init__(self, ops: Operations, problem: Problem, work: Work):
        """Computes what depends on the lane only."""
        self._ops, self._work, self._head_dim = ops, work, problem.head_dim

        def power(exponent: Value) -> Value:  # 2^-exponent
            return ops.from_bits(ops.shift_left(ops.sub(127, exponent), 23))

        # Channels 32 k + 8 t + g of a query and positions 8 p + g lie in bits b with b % 8 = g.
        self.query_factor = power(ops.bit_and(work.g, 3))
        odd = self._odd = ops.bit_and(work.g, 1)
        self._softmax = BlockSoftmax(
            ops, _MAX_WEIGHT, self._row_max, down=power(odd), up=power(ops.sub(0, odd))
        )
        # Factors that the compiler does not know: shifts would take the busier pipe.
        self._byte, self._two_bytes = ops.unknown(1 << 8), ops.unknown(1 << 16)

    def encode(self, query: FoldedQuery, channels: Sequence[Value]) -> FoldedQuery:
        """With right operands for even and for odd quarters of a block.

        Args:
            query: of this lane's scores, t.
            channels: numbers of query g // 2, as `signed_digits`: 32 t ... 32 t + 31, or of small
                heads 32 (t % 2)....
        """
        ops = self._ops
        selector = ops.where_less(self._odd, 1, 0x62, 0x51)
        upper = self._gather(channels, selector)
        lower = [ops.where_less(self._odd, 1, x, 0) for x in self._gather(channels, 0x40)]
        sets = [(upper, lower)] * 2
        if self._head_dim == 64:  # positions of even quarters lie in lanes t = 0, 1
            t = self._work.t
            sets = [
                tuple([ops.where_less(t, 2, *choice(x)) for x in words] for words in (upper, lower))
                for choice in (lambda x: (x, 0), lambda x: (0, x))
            ]
        return dataclasses.replace(query, operands=sets)

    def signed_digits(self, numbers: Sequence[Value]) -> list[Value]:
        """Numbers whose lower three bytes, taken as signed ones, sum up to them."""
        ops = self._ops
        return [ops.bit_xor(ops.add(x, _DIGITS), _DIGITS) for x in numbers]

    def scores(
        self,
        query: FoldedQuery,
        key: Coding,
        quarters: int,
        load_row: Callable[[int], Sequence[Value]],
        load_scales: Callable[[int, int], Sequence[Value]],
    ) -> list[Value]:
        """Scores of query t at positions 8 p + g, less what all have in common.

        Args:
            query: with operands. key: how keys are coded. quarters: of a block.
            load_row: words of a row of keys, loaded when they are needed.
            load_scales: (i, q) to scales of positions 32 i + 8 q + g for i to i + 3.
        """
        load_row = functools.cache(load_row)
        scores: list[Value] = [None] * (8 * quarters)
        for first in range(0, quarters, 2):
            rows = range(first, min(first + 2, quarters))
            for q in range(4):
                sums = []
                for k in rows:
                    if self._head_dim == 128:
                        row, at = 2 * k + q // 2, 2 * (q % 2)
                    else:
                        row, at = k, 2 * (q // 2)
                    words = load_row(row)[at : at + 2]
                    sums += self._key_sums(words, *query.operands[q % 2])
                scales = load_scales(2 * first, q)[: len(sums)]
                found = query.scores(self._ops, key, sums, scales)
                for i, score in enumerate(found, 2 * first):
                    scores[4 * i + q] = score
        return scores

    def weigh(
        self, totals: Sequence[Value], scores: Sequence[Value], scales: Sequence[Value]
    ) -> tuple[list[Value], BlockWeights]:
        """`BlockSoftmax.weigh`; for each i upper and lower bytes at positions 32 i + 8 q + g."""
        ops = self._ops
        totals, weights = self._softmax.weigh(totals, scores, scales)
        numbers = [*weights.operands] + [TO_INT_BITS] * (-len(scores) % 16)  # of whole halves
        words = []
        for i in range(0, len(numbers), 4):
            first, second = (
                ops.bytes(numbers[j], numbers[j + 1], 0x5140) for j in (i, i + 2)
            )  # lower bytes of both, then upper bytes
            words.append([ops.bytes(first, second, pair) for pair in (0x7632, 0x5410)])
        return totals, dataclasses.replace(weights, operands=words)

    def add_values(
        self,
        channels: Sequence[Value],
        weights: BlockWeights,
        load_row: Callable[[int], Sequence[Value]],
    ) -> list[Value]:
        """The new sums of channels 16 m + 8 r + g of query t.

        Args:
            channels: sums so far.
            weights: operands are eight words for each half of a block: of bits 0 to 7 of a byte.
            load_row: words of a row of values, loaded when they are needed.
        """
        ops = self._ops
        halves = weights.operands
        products = []
        for m in range(self._head_dim // 16):
            sums, words = [0, 0, 0, 0], load_row(m)
            for h, right in enumerate(halves):
                for n in range(4):
                    # Bits 2n and 2n + 1 of each byte as 64 and 128.
                    pair = words[2 * h : 2 * h + 2]
                    if n < 3:
                        pair = [ops.shift_left(w, 6 - 2 * n) for w in pair]
                    left = self._bits(pair, 6)
                    sums = ops.mma_u8_u8(left, right[2 * n : 2 * n + 2], sums)
            products += [
                ops.to_float(ops.mad(upper, self._byte, lower))
                for upper, lower in (sums[:2], sums[2:])
            ]
        unit = ops.fmul(weights.unit, 1.0 / _VALUE_UNIT)
        return add_products(ops, channels, dataclasses.replace(weights, unit=unit), products)

    def _key_sums(
        self, words: Sequence[Value], upper: Sequence[Value], lower: Sequence[Value]
    ) -> list[Value]:
        """Sums over channels of number times code, of query t at a tile's rows g and g + 8."""
        ops = self._ops
        shifted = [ops.shift_right(w, 4) for w in words]
        high, low = [0, 0, 0, 0], [0, 0, 0, 0]
        for n in range(4):
            # Bits 2n and 2n + 1 of each byte as 1 and 2, or 4 and 8.
            left = self._bits(words if n < 2 else shifted, 2 * (n % 2))
            high = ops.mma_u8_s8(left, upper[2 * n : 2 * n + 2], high)
            low = ops.mma_u8_s8(left, lower[2 * n : 2 * n + 2], low)
        return [
            ops.to_float(
                ops.mad(high[row], self._two_bytes, ops.mad(high[row + 1], self._byte, low[row]))
            )
            for row in (0, 2)
        ]

    def _bits(self, rows: Sequence[Value], bit: int) -> list[Value]:
        """Left operand: bits `bit` and `bit + 1` of each byte of rows g and g + 8, in place."""
        masks = (0x01010101 << bit, 0x01010101 << bit + 1)
        return [self._ops.bit_and(w, mask) for mask in masks for w in rows]

    def _gather(self, words: Sequence[Value], selector: Value) -> list[Value]:
        """Of words 8 j + b the byte that the selector names: j-th byte of word b."""
        ops, gathered = self._ops, []
        for b in range(8):
            low, high = (ops.bytes(words[j + b], words[j + b + 8], selector) for j in (0, 16))
            gathered.append(ops.bytes(low, high, 0x5410))
        return gathered

    def _row_max(self, x: Value) -> Value:
        """The maximum over the lanes that share t."""
        ops = self._ops
        return functools.reduce(
            lambda x, bit: ops.fmax(x, exchange_float(ops, x, bit)), SAME_QUERY, x
        )
