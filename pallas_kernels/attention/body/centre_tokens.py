"""Tokens of which nothing but their centroids is kept: counted, not read one by one.

All tokens whose keys have one centroid have one score, and all whose values have one centroid give
the same to the result. So a pair of centroids is a number of tokens, counted from the bits of the
centroids' numbers, 32 positions in an instruction.
"""

import functools
from collections.abc import Callable, Sequence

from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import PackedBlocks
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Coding, Packed
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, dot
from pallas_kernels.layout.layouts import BLOCK

__all__ = ["CentreTokens"]

_ALL = 0xFFFFFFFF
_AHEAD = 2  # blocks of a lane whose words are on their way together


class CentreTokens:
    """A warp's share of a class without bits. Operands: those of `PackedBlocks`, but for words.

    Args:
        ops, packed, work: of the kernel. blocks: the warp's share.
        row_max: see `BlockSoftmax`.
        several: whether the four lanes that share g have a query each. Else they share blocks.
    """

    def __init__(
        self,
        ops: Operations,
        packed: Packed,
        work: Work,
        blocks: PackedBlocks,
        row_max: Callable[[Value], Value],
        *,
        several: bool,
    ):
        """Keeps what the methods need."""
        self._ops, self._packed, self._work = ops, packed, work
        self._blocks, self._row_max, self._several = blocks, row_max, several

    def sums(self, query: FoldedQuery, counts: Sequence[Value], channels: int) -> list[Value]:
        """Sums over these tokens alone, see `block_softmax.empty_sums`.

        Args:
            query: of the lane. counts: of its set. channels: of the sums.
        """
        ops, value = self._ops, self._packed.value
        columns = [list(counts[j :: value.centres]) for j in range(value.centres)]
        scores = query.capped(ops, [0.0, *query.centres])
        of_keys = self._added(columns)
        # The score of a centroid that no token has is not to hide the others.
        seen = [
            ops.where_less_float(0, of_key, score, LOWEST)
            for of_key, score in zip(of_keys, scores, strict=True)
        ]
        top = self._row_max(functools.reduce(ops.fmax, seen))
        weights = [ops.exp2(ops.fsub(score, top)) for score in seen]

        def weighed(numbers: Sequence[Value]) -> Value:
            return dot(ops, weights, [ops.to_float(tokens) for tokens in numbers])

        of_centres = [weighed(self._added([columns[j] for j in group])) for group in _groups(value)]
        return [top, weighed(of_keys), 0.0, *of_centres, *([0.0] * channels)]

    def _added(self, columns: Sequence[Sequence[Value]]) -> list[Value]:
        """Sums of columns, row by row."""
        rows = zip(*columns, strict=True)
        return [functools.reduce(self._ops.add, row) for row in rows]

    def counts(self, number: int) -> list[Value]:
        """The lane's tokens that set `number` sees, by the centroid of their key, then value."""
        ops, work, blocks, packed = self._ops, self._work, self._blocks, self._packed
        # Each lane counts all blocks for its query where several queries have starts of their own.
        alone = self._several and bool(blocks.starts)
        lanes = 1 if alone else 4
        first = blocks.first if alone else ops.add(blocks.first, work.t)

        def add(i, counts):
            for step in range(_AHEAD):
                block = ops.add(first, ops.mad(i, _AHEAD * lanes, step * lanes))
                counts = self._add_block(block, number, counts)
            return counts

        trips = ops.sub(ops.add(blocks.last, _AHEAD * lanes - 1), blocks.first)
        trips = ops.div(trips, _AHEAD * lanes)
        counts = ops.loop(trips, [0] * (packed.key.centres * packed.value.centres), add)
        if self._several and not alone:
            for bit in (1, 2):
                counts = [ops.add(n, ops.exchange(n, bit)) for n in counts]
        return counts

    def _add_block(self, block: Value, number: int, counts: Sequence[Value]) -> list[Value]:
        """The counts with a block added, if it is one of the warp's."""
        ops, blocks, packed = self._ops, self._blocks, self._packed
        near = ops.min(block, ops.sub(blocks.last, 1))
        keys = self._chosen(blocks.load_ids("key", near), packed.key)
        values = self._chosen(blocks.load_ids("value", near), packed.value)
        visible = ops.where_less(block, blocks.last, self._visible(block, number), 0)
        keys = [ops.bit_and(word, visible) for word in keys]
        pairs = [ops.bit_and(key, value) for key in keys for value in values]
        return [ops.add(n, ops.count_bits(x)) for n, x in zip(counts, pairs, strict=True)]

    def _visible(self, block: Value, number: int) -> Value:
        """Bit p: whether the queries of set `number` see the block's position 8 p + g."""
        ops, blocks = self._ops, self._blocks
        visible = self._below(blocks.length, block)
        if not blocks.starts:
            return visible
        return ops.bit_and(visible, ops.bit_xor(self._below(blocks.starts[number], block), _ALL))

    def _below(self, stop: Value, block: Value) -> Value:
        """Bit p: whether the block's position 8 p + g is before `stop`."""
        ops = self._ops
        left = ops.sub(ops.sub(ops.add(stop, 7), ops.mad(block, BLOCK, 0)), self._work.g)
        return ops.low_bits(ops.min(ops.shift_right(ops.max(left, 0), 3), 32))

    def _chosen(self, words: Sequence[Value], coding: Coding) -> list[Value]:
        """For each centroid the positions that have it."""
        ops, chosen = self._ops, []
        for centroid in range(coding.centres):
            found = _ALL
            for bit, word in enumerate(words):
                same = word if centroid >> bit & 1 else ops.bit_xor(word, _ALL)
                found = ops.bit_and(found, same)
            chosen.append(found)
        return chosen


def _groups(value: Coding) -> list[list[int]]:
    """For each of `centre_ids.centre_sums` the centroids that it is the weight of."""
    if value.centres == 4:
        return [[1, 3], [2, 3], [3]]
    return [[number] for number in range(1, value.centres)]
