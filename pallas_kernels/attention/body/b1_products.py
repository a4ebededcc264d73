"""One query and one block of packed keys and values, with the tensor core's 1-bit instructions.

1. *scores.* Key words go to the tensor core as they were loaded. The query, scales folded in, is
   23-bit fixed point, as bit planes. Lane 4 g + t gets the scores of positions 32 i + 8 t + g.
2. *softmax* (`BlockSoftmax`): weights, a value's scale folded in, in 15-bit fixed point, as bit
   planes.
3. *values.* Value words go to the tensor core as they were loaded. Lane 4 g + t gets channels
   64 h + 16 t + 8 r + g.

One code plane at a time: of 256 channels, those of either half.
"""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.attention.body.bit_planes import COUNT_UNIT, BitPlanes
from pallas_kernels.attention.body.block_softmax import (
    BlockSoftmax,
    BlockWeights,
    add_products,
)
from pallas_kernels.attention.body.centre_ids import BookIds, BookWord, CentreIds, Ids
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.fixed_point import TO_INT_BITS
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import by_lane_pair, warp_max_float

__all__ = ["B1Products"]

_QUERY_BYTES = 3
_MAX_WEIGHT = 32767.0


class B1Products:
    """Products of a block with one query."""

    # Rounding stays within what `BitPlanes.split_signed` takes.
    greatest_query = 2.0 ** (8 * _QUERY_BYTES - 2) * (1 - 2.0**-14)

    def __init__(self, ops: Operations, spec: KernelSpec, work: Work):
        """Keeps what the methods need."""
        self._ops, self._work, self._plane_dim = ops, work, spec.plane_dim
        self._planes = BitPlanes(ops, work.lane)
        self.softmax = BlockSoftmax(ops, _MAX_WEIGHT, self.row_max)

    def row_max(self, x: Value) -> Value:
        """The maximum over all lanes."""
        return warp_max_float(self._ops, x)

    def encode(self, query: FoldedQuery) -> FoldedQuery:
        """Its numbers as bit planes: of each half, for even and for odd quarters of a block."""
        ops, numbers = self._ops, query.operands
        if self._plane_dim == 128:
            words = [
                [self._planes.split_signed(numbers[first : first + 4], _QUERY_BYTES)] * 2
                for first in range(0, len(numbers), 4)
            ]
        else:
            both = self._planes.split_signed([*numbers, *numbers], _QUERY_BYTES)
            words = [by_lane_pair(ops, self._work.t, both)]
        unit = 256.0 ** (_QUERY_BYTES - 2) / COUNT_UNIT
        return dataclasses.replace(query, operands=words, unit=ops.fmul(query.unit, unit))

    def key_sums(self, query: FoldedQuery, words: Sequence[Value], half: int) -> list[Value]:
        """Sums over a half's channels of number times code, for positions 32 i + 8 t + g."""
        row_words = self._plane_dim // 16
        sums = []
        for k in range(len(words) // row_words):
            tiles = []
            for quarter in range(4):
                if self._plane_dim == 128:
                    at = 8 * k + 4 * (quarter // 2) + 2 * (quarter % 2)
                else:
                    at = 4 * k + 2 * (quarter // 2)
                tiles.append(words[at : at + 2])
            planes = [query.operands[half][quarter % 2] for quarter in range(4)]
            sums += self._planes.products(tiles, planes, self._ops.mma_b1_k128, signed=True)
        return sums

    def weigh(
        self,
        totals: Sequence[Value],
        scores: Sequence[Value],
        value: Coding,
        scales: Sequence[Value],
        ids: Sequence[Ids],
        masses: BookMasses | None,
    ) -> tuple[list[Value], BlockWeights]:
        """`BlockSoftmax.weigh`, the weights as bit planes of 128 positions, two bytes each."""
        totals, weights = self.softmax.weigh(totals, scores, None, value, scales, ids, masses)
        numbers = [*weights.operands] + [TO_INT_BITS] * (-len(scores) % 4)
        halves = [self._planes.split(numbers[i : i + 4], 2) for i in range(0, len(numbers), 4)]
        return totals, dataclasses.replace(weights, operands=halves)

    def ids(self, words: Sequence[Value], coding: Coding, count: int) -> Sequence[Ids]:
        """Centroids of the lane's positions 32 i + 8 t + g, from `PackedBlocks.load_ids`."""
        if not words:
            return []
        if coding.codebook:
            of_bytes = [BookWord(word) for word in words]
            return [BookIds(of_bytes[i // 4], i % 4) for i in range(count)]
        turn = self._ops.sub(32, self._work.t)
        turned = [self._ops.rotate_left(word, turn) for word in words]
        return [CentreIds(turned, 4 * i) for i in range(count)]

    def add_values(
        self, channels: Sequence[Value], weights: BlockWeights, sums: Sequence[Value]
    ) -> list[Value]:
        """The new sums of the lane's channels, from those of the block."""
        unit = self._ops.fmul(weights.unit, 1.0 / COUNT_UNIT)
        weights = dataclasses.replace(weights, unit=unit)
        return add_products(self._ops, channels, weights, sums)

    def value_sums(self, words: Sequence[Value], weights: BlockWeights) -> list[Value]:
        """Sums over the block's positions of weight times code: this lane's channels of a half."""
        ops, halves = self._ops, weights.operands
        planes = list(zip(*halves, strict=True))
        row_words = 2 * len(halves)
        mma = ops.mma_b1_k256 if len(halves) == 2 else ops.mma_b1_k128
        planes = planes if len(halves) == 2 else [plane for (plane,) in planes]
        sums = []
        for h in range(self._plane_dim // 64):
            rows = range(4 * h, 4 * h + 4)
            tiles = [words[row_words * row : row_words * (row + 1)] for row in rows]
            sums += self._planes.products(tiles, [planes] * 4, mma, signed=False)
        return sums
