"""Tokens of which nothing but their centroids is kept: counted, not read one by one.

All tokens whose keys have one centroid have one score, and all whose values have one centroid give
the same to the result. So a pair of centroids is a number of tokens, counted from the bits of the
centroids' numbers, 32 positions in an instruction.
"""

import functools
from collections.abc import Callable, Sequence

from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.layouts import BLOCK
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_blocks import PackedBlocks
from pallas_kernels.problem import Coding, Packed
from pallas_kernels.warp_math import LOWEST
from pallas_kernels.work import Work

__all__ = ["CentreTokens"]

_ALL = 0xFFFFFFFF


class CentreTokens:
    """A warp's share of a class without bits. Operands: those of `PackedBlocks`, but for words.

    Args:
        ops, packed, work: of the kernel. blocks: the warp's share.
        row_max: see `BlockSoftmax`.
        share: part that each lane takes of what it counts: those of the same g count the same.
    """

    def __init__(
        self,
        ops: Operations,
        packed: Packed,
        work: Work,
        blocks: PackedBlocks,
        row_max: Callable[[Value], Value],
        share: float,
    ):
        """Keeps what the method needs."""
        self._ops, self._packed, self._work = ops, packed, work
        self._blocks, self._row_max, self._share = blocks, row_max, share

    def sums(self, query: FoldedQuery, number: int, channels: int) -> list[Value]:
        """Sums over these tokens alone, see `block_softmax.empty_sums`.

        Args:
            query: of the set, or the only one. number: of the set. channels: of the sums.
        """
        ops, value = self._ops, self._packed.value
        counts = self._counts(number)
        scores = query.capped(ops, [0.0, *query.centres])
        of_keys = [self._total(of_key) for of_key in counts]
        # The score of a centroid that no token has is not to hide the others.
        seen = [
            ops.where_less_float(0, of_key, score, LOWEST)
            for of_key, score in zip(of_keys, scores, strict=True)
        ]
        top = self._row_max(functools.reduce(ops.fmax, seen))
        weights = [ops.fmul(ops.exp2(ops.fsub(score, top)), self._share) for score in seen]

        def weighed(numbers: Sequence[Value]) -> Value:
            mass = 0.0
            for weight, tokens in zip(weights, numbers, strict=True):
                mass = ops.fma(weight, ops.to_float(tokens), mass)
            return mass

        chosen = [[of_key[j] for of_key in counts] for j in range(value.centres)]
        by_sum = [weighed(self._added(chosen, group)) for group in _groups(value)]
        return [top, weighed(of_keys), 0.0, *by_sum, *([0.0] * channels)]

    def _added(self, columns: Sequence[Sequence[Value]], group: Sequence[int]) -> list[Value]:
        return [self._total([columns[j][i] for j in group]) for i in range(len(columns[0]))]

    def _total(self, words: Sequence[Value]) -> Value:
        return functools.reduce(self._ops.add, words)

    def _counts(self, number: int) -> list[list[Value]]:
        """Of the lane's words: tokens by the centroid of their key, then of their value."""
        ops, blocks, packed = self._ops, self._blocks, self._packed

        def add(i, counts):
            block = ops.add(blocks.first, i)
            keys = self._chosen(blocks.load_ids("key", block), packed.key)
            values = self._chosen(blocks.load_ids("value", block), packed.value)
            visible = self._visible(block, number)
            keys = [ops.bit_and(word, visible) for word in keys]
            pairs = [ops.bit_and(key, value) for key in keys for value in values]
            return [ops.add(n, ops.count_bits(x)) for n, x in zip(counts, pairs, strict=True)]

        size = packed.value.centres
        count = ops.sub(blocks.last, blocks.first)
        counts = ops.loop(count, [0] * (packed.key.centres * size), add)
        return [counts[i : i + size] for i in range(0, len(counts), size)]

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
