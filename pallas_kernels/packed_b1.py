"""A warp's part of attention over a packed bank, for one query: all that it carries in registers.

Blocks that share all tables form a chunk: the query's planes are made anew for each, and levels of
values are applied to its sums.
"""

from collections.abc import Sequence
from typing import Any

from pallas_kernels.b1_products import B1Products
from pallas_kernels.block_softmax import TOTALS, empty_sums
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.packed_values import PackedValues
from pallas_kernels.problem import Packed, Problem
from pallas_kernels.scratch import Scratch
from pallas_kernels.warp_math import ALL_LANES, LOWEST, merge
from pallas_kernels.work import Work

__all__ = ["PackedB1"]


class PackedB1:
    """`run()` does the work. Operands: those of the classes it uses.

    What is made of a block's scores lies in methods of its own, for `score_range`.
    """

    _sides = ("key", "value")  # that are read

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._problem, self._packed, self._work = ops, problem, packed, work
        self._products = B1Products(ops, problem, work)
        channels = [64 * h + 8 * r for h in range(problem.head_dim // 64) for r in (0, 1)]
        self._values = PackedValues(ops, problem, packed, work, work.channel, channels, ALL_LANES)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result."""
        ops, packed = self._ops, self._packed
        size = packed.chunk_blocks
        query = PackedQuery(ops, self._problem, packed, self._work, 0)
        blocks = self._blocks = PackedBlocks(ops, self._problem, packed, self._work)
        ahead = []
        if packed.whole_blocks:
            ahead = self._load_keys(ops.min(blocks.first, packed.whole_blocks - 1))
        blocks.prefetch_first(self._sides)
        num_ahead = len(ahead)
        if "value" in self._sides:
            self._values.prefetch_tables()
        query.prepare()
        first_chunk = ops.div(blocks.first, size)
        chunks = ops.sub(ops.div(ops.add(blocks.last, size - 1), size), first_chunk)
        chunks = ops.where_less(blocks.first, blocks.last, chunks, 0)

        def chunk(i, carried):
            block, *rest = carried
            ahead, total = rest[:num_ahead], rest[num_ahead:]
            folded = self._products.encode(query.fold(block, self._products.greatest_query))
            stop = ops.min(blocks.last, ops.mad(ops.add(first_chunk, i), size, size))
            sums = self._empty()

            def step(_, carried):
                block, *rest = carried
                return self._block(folded, block, rest[:num_ahead], rest[num_ahead:])

            if packed.whole_blocks:
                count = ops.sub(ops.min(stop, packed.whole_blocks), block)
                _, *rest = ops.loop(count, [block, *ahead, *sums], step)
                ahead, sums = rest[:num_ahead], rest[num_ahead:]
            if packed.quarters:
                cut_short = ops.where_less(packed.whole_blocks, stop, 1, 0)
                sums = ops.cond(cut_short, sums, lambda sums: self._rest(folded, sums))
            return [stop, *ahead, *self._join(total, sums, folded.offset, block)]

        empty = self._empty_total()
        total = ops.loop(chunks, [blocks.first, *ahead, *empty], chunk)[1 + num_ahead :]
        self._leave(scratch, total)

    def _block(self, query, block: Value, keys, sums) -> list[Value]:
        """A whole block: its keys are in registers, those of the next on their way at the end."""
        ops, blocks = self._ops, self._blocks
        values = self._load_values(block, WHOLE)
        num_scales = self._packed.key.scale_bits // 4
        key_words, key_scales = keys[: len(keys) - num_scales], keys[len(keys) - num_scales :]
        scores = self._scores(query, block, key_words, key_scales)
        following = ops.add(block, 1)
        ahead = self._load_keys(ops.min(following, ops.sub(blocks.last_whole, 1)))
        return [following, *ahead, *self._add(sums, scores, block, values)]

    def _load_keys(self, block: Value) -> list[Value]:
        """Words and scales of a block of keys, flat."""
        blocks = self._blocks
        return [*_flat(blocks.load_rows("key", block)), *blocks.load_scales("key", block)]

    def _rest(self, query, sums: Sequence[Value]) -> list[Value]:
        """The block that is cut short: less to load, fewer products."""
        blocks, packed = self._blocks, self._packed
        block = packed.whole_blocks
        scales = blocks.load_scales("key", block)
        values = self._load_values(block, packed.quarters)
        keys = _flat(blocks.load_rows("key", block, packed.quarters))
        scores = self._scores(query, block, keys, scales)
        return self._add(sums, scores, block, values)

    def _scores(self, query, block: Value, keys, scales) -> list[Value]:
        ops, blocks, key = self._ops, self._blocks, self._packed.key
        sums = self._products.key_sums(query, keys)
        scales = blocks.decode_scales(scales, key)[: len(sums)]
        scores = query.scores(ops, key, sums, scales)
        return blocks.hide_padding(block, scores, self._work.place, 32)

    # What is made of scores -----------------------------------------------------------------------

    def _load_values(self, block: Value, quarters: int) -> Any:
        """What `_add` takes of a block's values, as it was loaded."""
        words = _flat(self._blocks.load_rows("value", block, quarters))
        return words, self._blocks.load_scales("value", block)

    def _empty(self) -> list[Value]:
        """Sums over no block of a chunk."""
        return empty_sums(self._problem.head_dim // 32)

    def _empty_total(self) -> list[Value]:
        """A result over no chunk."""
        return [LOWEST, 0.0] + [0.0] * (self._problem.head_dim // 32)

    def _add(self, sums: Sequence[Value], scores: list[Value], block: Value, values) -> list[Value]:
        """The sums with a block added."""
        del block
        words, scales = values
        scales = self._blocks.decode_scales(scales, self._packed.value)[: len(scores)]
        totals, weights = self._products.weigh(sums[:TOTALS], scores, scales)
        return [*totals, *self._products.add_values(sums[TOTALS:], weights, words)]

    def _join(self, total: Sequence[Value], sums, offset: Value, block: Value) -> list[Value]:
        """The result with a chunk's sums added."""
        return merge(self._ops, [total, self._values.decode(sums, offset, block)])

    def _leave(self, scratch: Scratch, total: Sequence[Value]) -> None:
        """Leaves the result for the team."""
        self._values.store(scratch, 0, total, 1, self._ops.where_less(self._work.lane, 1, 1, 0))


def _flat(rows: Sequence[Sequence[Value]]) -> list[Value]:
    return [word for row in rows for word in row]
