"""A warp's part of attention over a packed bank, for up to four queries of a KV head at once.

A block's codes are made into bytes once for all of them. The queries are prepared once for the
team, each by one of its warps. All positions share their tables.
"""

import functools

from pallas_kernels.block_softmax import TOTALS, empty_sums
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.packed_values import PackedValues
from pallas_kernels.problem import Packed, Problem
from pallas_kernels.s8_products import S8Products
from pallas_kernels.scratch import Scratch
from pallas_kernels.warp_math import SAME_QUERY
from pallas_kernels.work import Work

__all__ = ["PackedS8"]


class PackedS8:
    """`run()` does the work. Operands: those of the classes it uses."""

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Finds this warp's blocks."""
        self._ops, self._problem, self._packed, self._work = ops, problem, packed, work
        self._blocks = PackedBlocks(ops, problem, packed, work)
        self._products = S8Products(ops, problem, work)
        rows = range(0, problem.head_dim, 8)
        self._values = PackedValues(ops, problem, packed, work, work.g, rows, SAME_QUERY)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result for each query."""
        ops, packed, blocks, work = self._ops, self._packed, self._blocks, self._work
        scales = []
        if packed.whole_blocks:
            first = ops.min(blocks.first, packed.whole_blocks - 1)
            for name in ("key", "value"):
                blocks.copy_rows(scratch, name, first)
            scales = self._load_scales(first)
        self._prepare(scratch)
        ops.barrier()
        query = self._products.encode(*scratch.load_queries())
        sums = empty_sums(self._problem.head_dim // 8)

        def block(i, carried):
            return self._whole_block(scratch, query, ops.add(blocks.first, i), carried)

        def rest(sums):
            return self._rest(scratch, query, sums)

        if packed.whole_blocks:
            count = ops.sub(blocks.last_whole, blocks.first)
            sums = ops.loop(count, [*sums, *scales], block)[: len(sums)]
        if packed.quarters:
            sums = ops.cond(blocks.has_rest, sums, rest)
        result = self._values.decode(sums, query.offset, 0)
        ops.wait_for_copies()
        ops.warp_barrier()  # results take the place of what was copied and exchanged
        mine = ops.where_less(work.t, self._problem.tiling.queries, 1, 0)
        self._values.store(
            scratch, work.column_query, result, mine, ops.where_less(work.g, 1, mine, 0)
        )

    def _prepare(self, scratch: Scratch) -> None:
        """Each warp of the team prepares some of its queries."""
        ops, tiling, products = self._ops, self._problem.tiling, self._products
        for number in range(tiling.queries):

            def prepare(_, number=number):
                query = PackedQuery(ops, self._problem, self._packed, self._work, number)
                folded = query.fold(0, products.greatest_query, products.query_factor)
                scratch.store_query(number, folded, products.signed_digits(folded.operands))
                return []

            ops.cond(ops.equal(self._work.member, number % tiling.team), [], prepare)

    def _whole_block(
        self, scratch: Scratch, query: FoldedQuery, block: Value, carried: list[Value]
    ) -> list[Value]:
        """The sums with a block added, and the next one's scales.

        Its words are in shared memory or on their way; those of the next follow once they are read.
        """
        ops, blocks, products = self._ops, self._blocks, self._products
        num_sums = TOTALS + self._problem.head_dim // 8
        sums, scales = carried[:num_sums], carried[num_sums:]
        following = ops.add(block, 1)
        more = ops.where_less(following, blocks.last_whole, 1, 0)

        def copy_next(name):
            ops.cond(more, [], lambda _: blocks.copy_rows(scratch, name, following) or [])

        self._spread_scales(scratch, scales)
        scales = self._load_scales(ops.min(following, ops.sub(blocks.last_whole, 1)))
        ops.wait_for_copies(1)
        scores = self._scores(
            scratch, query, block, WHOLE, functools.partial(scratch.load_row, "key")
        )
        copy_next("key")
        totals, weights = products.weigh(
            sums[:TOTALS], scores, self._value_scales(scratch, len(scores))
        )
        weights = scratch.exchange_weights(weights)
        ops.wait_for_copies(1)
        channels = products.add_values(
            sums[TOTALS:], weights, functools.partial(scratch.load_row, "value")
        )
        copy_next("value")
        return [*totals, *channels, *scales]

    def _rest(self, scratch: Scratch, query: FoldedQuery, sums: list[Value]) -> list[Value]:
        """The sums with the block that is cut short added, straight from device memory."""
        packed, products = self._packed, self._products
        block, quarters = packed.whole_blocks, packed.quarters
        keys, values = (self._blocks.load_rows(x, block, quarters) for x in ("key", "value"))
        self._spread_scales(scratch, self._load_scales(block))
        scores = self._scores(scratch, query, block, quarters, keys.__getitem__)
        totals, weights = products.weigh(
            sums[:TOTALS], scores, self._value_scales(scratch, len(scores))
        )
        weights = scratch.exchange_weights(weights)
        return [*totals, *products.add_values(sums[TOTALS:], weights, values.__getitem__)]

    def _load_scales(self, block: Value) -> list[Value]:
        """Words of this lane's scales, of keys and of values."""
        return [word for x in ("key", "value") for word in self._blocks.load_scales(x, block)]

    def _spread_scales(self, scratch: Scratch, words: list[Value]) -> None:
        """Leaves the scales of `_load_scales` for all lanes."""
        at = 0
        for name, coding in (("key", self._packed.key), ("value", self._packed.value)):
            stop = at + coding.scale_bits // 4
            scratch.spread_scales(name, self._blocks.decode_scales(words[at:stop], coding))
            at = stop
        self._ops.warp_barrier()

    def _scores(self, scratch: Scratch, query, block: Value, quarters: int, load_row):
        """Scores of a block, positions behind the length hidden."""
        key, products = self._packed.key, self._products

        def load_scales(i, q):
            return scratch.load_scales("key", i, q) if key.signs else []

        scores = products.scores(query, key, quarters, load_row, load_scales)
        return self._blocks.hide_padding(block, scores, self._work.g, 8)

    def _value_scales(self, scratch: Scratch, count: int) -> list[Value]:
        """Of positions 8 p + g, in their order; none for level codes."""
        if not self._packed.value.signs:
            return []
        scales: list[Value] = [None] * 32
        for first in (0, 4):
            for q in range(4):
                for i, scale in enumerate(scratch.load_scales("value", first, q), first):
                    scales[4 * i + q] = scale
        return scales[:count]
