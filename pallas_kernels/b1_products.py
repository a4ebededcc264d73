"""One query and one block of packed keys and values, with the tensor core's 1-bit instructions.

1. *scores.* Key words go to the tensor core as they were loaded. The query, scales folded in, is
   15- or 23-bit fixed point, as bit planes. Lane 4 g + t gets the scores of positions
   32 i + 8 t + g.
2. *softmax.* Relative to the block's own maximum, so that a sink elsewhere costs no precision. A
   scale per position of the values is folded in here; then 15-bit fixed point, as bit planes.
3. *values.* Value words go to the tensor core as they were loaded. Lane 4 g + t gets channels
   64 h + 16 t + 8 r + g.

Scores are in units of log2 throughout.

    s[t] = q . lower + sum_i (q_i (upper_i - lower_i)) code[t, i]                       level codes
    s[t] = q . centre + a[t] (2 sum_i (R q)_i code[t, i] - sum_i (R q)_i - kappa a[t])   sign codes
"""

import dataclasses
import functools
from collections.abc import Sequence

from pallas_kernels.bit_planes import COUNT_UNIT, BitPlanes
from pallas_kernels.fixed_point import MAX_WEIGHT, TO_INT, TO_INT_BITS
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Packed, Problem
from pallas_kernels.warp_math import LOWEST, warp_max_float

__all__ = ["TOTALS", "B1Products", "BlockWeights"]

TOTALS = 3  # sums before those of channels


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """What values of a block are multiplied by.

    Attributes:
        planes: bit planes of the weights of 128 positions, two bytes; for one half or two.
        old: factor of the sums so far. count: what a count is worth in the new ones.
    """

    planes: Sequence[Sequence[Value]]
    old: Value
    count: Value


class B1Products:
    """Scores of a block, and what a block adds to a query's sums.

    Sums are, over the blocks of a chunk: maximum, sum of p, sum of p times scale (sign codes), then
    sums of p (times scale) times code for the lane's channels, all relative to the maximum.
    """

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, planes: BitPlanes):
        """Keeps what the methods need."""
        self._ops, self._packed, self._planes = ops, packed, planes
        self._head_dim = problem.head_dim

    def empty(self) -> list[Value]:
        """Sums over no block."""
        return [LOWEST, 0.0, 0.0] + [0.0] * (self._head_dim // 32)

    def scores(
        self, query: FoldedQuery, words: Sequence[Value], scales: Sequence[Value]
    ) -> list[Value]:
        """Scores of positions 32 i + 8 t + g, less what all positions share."""
        ops, head_dim = self._ops, self._head_dim
        row_words = 8 if head_dim == 128 else 4
        sums = []
        for k in range(len(words) // row_words):
            tiles = []
            for quarter in range(4):
                if head_dim == 128:
                    at = 8 * k + 4 * (quarter // 2) + 2 * (quarter % 2)
                else:
                    at = 4 * k + 2 * (quarter // 2)
                tiles.append(words[at : at + 2])
            planes = [query.planes[quarter % 2] for quarter in range(4)]
            sums += self._planes.products(tiles, planes, ops.mma_b1_k128, signed=True)
        if not self._packed.key.signs:
            return [ops.fmul(x, query.unit) for x in sums]
        twice, less = ops.fmul(query.unit, 2.0), ops.fsub(0.0, query.query_sum)
        scores = [ops.fma(x, twice, less) for x in sums]
        scales = scales[: len(scores)]
        if self._packed.key.score_error_factor:
            minus = ops.fsub(0.0, query.kappa)
            scores = [ops.fma(a, minus, s) for a, s in zip(scales, scores, strict=True)]
        return [ops.fmul(a, s) for a, s in zip(scales, scores, strict=True)]

    def weigh(
        self, sums: Sequence[Value], scores: Sequence[Value], scales: Sequence[Value]
    ) -> tuple[list[Value], BlockWeights]:
        """Softmax relative to the block's maximum: the new sums but for channels, and weights.

        Args:
            sums: maximum, sum of p, sum of p times scale.
            scores, scales: of the block; scales of values, none for level codes.
        """
        ops = self._ops
        highest, mass, scaled_mass = sums
        top = warp_max_float(ops, functools.reduce(ops.fmax, scores))
        weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        block_mass, largest, factor = 0.0, 1.0, MAX_WEIGHT
        scales = scales[: len(scores)]
        if scales:
            block_mass = functools.reduce(ops.fadd, weights)
            weights = [ops.fmul(w, a) for w, a in zip(weights, scales, strict=True)]
            bits = ops.warp_max(ops.as_bits(functools.reduce(ops.fmax, weights)))
            largest = ops.fmax(ops.from_bits(bits), 1e-30)
            factor = ops.fmul(ops.reciprocal(largest), MAX_WEIGHT)
        numbers = [ops.as_bits(ops.fma(w, factor, TO_INT)) for w in weights]
        total = functools.reduce(ops.add, numbers)
        total = ops.to_float(ops.sub(total, len(numbers) * TO_INT_BITS & 0xFFFFFFFF))
        numbers += [TO_INT_BITS] * (-len(numbers) % 4)
        halves = [self._planes.split(numbers[i : i + 4], 2) for i in range(0, len(numbers), 4)]

        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        unit = ops.fmul(ops.fmul(new, largest), 1.0 / MAX_WEIGHT)
        if scales:
            mass = ops.fma(block_mass, new, ops.fmul(mass, old))
            scaled_mass = ops.fma(total, unit, ops.fmul(scaled_mass, old))
        else:  # of the rounded weights, so that they sum to one
            mass = ops.fma(total, unit, ops.fmul(mass, old))
        count = ops.fmul(unit, 1.0 / COUNT_UNIT)
        return [new_highest, mass, scaled_mass], BlockWeights(halves, old, count)

    def add_values(
        self, channels: Sequence[Value], weights: BlockWeights, words: Sequence[Value]
    ) -> list[Value]:
        """The new sums of the lane's channels."""
        ops = self._ops
        products = self._values(words, weights.planes)
        return [
            ops.fma(x, weights.count, ops.fmul(sum, weights.old))
            for x, sum in zip(products, channels, strict=True)
        ]

    def _values(self, words: Sequence[Value], halves: Sequence[Sequence[Value]]) -> list[Value]:
        """Sums over the block's positions of weight times code, for this lane's channels."""
        ops = self._ops
        planes = list(zip(*halves, strict=True))
        row_words = 2 * len(halves)
        mma = ops.mma_b1_k256 if len(halves) == 2 else ops.mma_b1_k128
        planes = planes if len(halves) == 2 else [plane for (plane,) in planes]
        sums = []
        for h in range(self._head_dim // 64):
            rows = range(4 * h, 4 * h + 4)
            tiles = [words[row_words * row : row_words * (row + 1)] for row in rows]
            sums += self._planes.products(tiles, [planes] * 4, mma, signed=False)
        return sums
