"""A warp's part of attention over a packed bank, for up to four queries of a KV head at once.

A block's codes are made into bytes once for all of them. The queries are prepared once for the
team, each by one of its warps. All positions share their tables.
"""

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
        blocks.prefetch_first()
        self._prepare(scratch)
        ops.barrier()
        query = self._products.encode(*scratch.load_queries())
        sums = empty_sums(self._problem.head_dim // 8)

        def block(i, sums):
            return self._block(scratch, query, ops.add(blocks.first, i), WHOLE, sums)

        def rest(sums):
            return self._block(scratch, query, packed.whole_blocks, packed.quarters, sums)

        if packed.whole_blocks:
            sums = ops.loop(ops.sub(blocks.last_whole, blocks.first), sums, block)
        if packed.quarters:
            sums = ops.cond(blocks.has_rest, sums, rest)
        result = self._values.decode(sums, query.offset, 0)
        ops.warp_barrier()  # results take the place of what was exchanged
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

    def _block(
        self, scratch: Scratch, query: FoldedQuery, block: Value, quarters: int, sums: list[Value]
    ) -> list[Value]:
        """The sums with a block added."""
        ops, blocks, packed, products = self._ops, self._blocks, self._packed, self._products
        keys = blocks.load_words("key", block, quarters)
        for name, coding in (("key", packed.key), ("value", packed.value)):
            scales = blocks.decode_scales(blocks.load_scales(name, block), coding)
            scratch.spread_scales(name, scales)
        blocks.prefetch("value", block, quarters)
        ops.warp_barrier()

        def load_scales(i, q):
            return scratch.load_scales("key", i, q)

        scores = products.scores(query, packed.key, keys, load_scales)
        scores = blocks.hide_padding(block, scores, self._work.g, 8)
        values = blocks.load_words("value", block, quarters)
        scales = self._value_scales(scratch, len(scores))
        totals, weights = products.weigh(sums[:TOTALS], scores, scales)
        if quarters == WHOLE:
            following = ops.min(ops.add(block, 1), ops.sub(blocks.last_whole, 1))
            blocks.prefetch("key", following, quarters)
        weights = scratch.exchange_weights(weights)
        return [*totals, *products.add_values(sums[TOTALS:], weights, values)]

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
