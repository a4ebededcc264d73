"""A warp's part of attention over a packed bank, for several queries of a KV head.

A block's keys are loaded once and stay in registers while a loop takes one query after the other,
then its values; what belongs to a query waits in shared memory. Two loops, so that registers never
hold both: with them full, instructions could only run one after the other. The queries are prepared
once for the team, each by one of its warps. All positions share their tables.
"""

from pallas_kernels.b1_products import TOTALS
from pallas_kernels.operations import Value
from pallas_kernels.packed_blocks import WHOLE
from pallas_kernels.packed_part import PackedPart
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.scratch import Scratch

__all__ = ["PackedTeam"]


class PackedTeam(PackedPart):
    """`run()` does the work."""

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result for each query."""
        ops, packed, blocks = self._ops, self._packed, self._blocks
        queries = self._problem.tiling.queries
        blocks.prefetch_first()
        self._prepare(scratch)
        ops.barrier()

        def block(i, _):
            self._block(scratch, ops.add(blocks.first, i), WHOLE)
            return []

        def rest(_):
            self._block(scratch, packed.whole_blocks, packed.quarters)
            return []

        if packed.whole_blocks:
            ops.loop(ops.sub(blocks.last_whole, blocks.first), [], block)
        if packed.quarters:
            ops.cond(blocks.has_rest, [], rest)

        def finish(query, _):
            sums = scratch.load_sums(query)
            offset = scratch.load_query(query).offset
            ops.warp_barrier()  # the result takes the place of the sums
            self._values.store(scratch, query, self._values.decode(sums, offset, 0))
            return []

        ops.loop(queries, [], finish)

    def _prepare(self, scratch: Scratch) -> None:
        """Each warp of the team prepares some of its queries, and clears its own sums."""
        ops, tiling = self._ops, self._problem.tiling
        for number in range(tiling.queries):
            scratch.store_sums(number, self._products.empty())

            def prepare(_, number=number):
                query = PackedQuery(ops, self._problem, self._packed, self._work, number)
                scratch.store_query(number, query.fold(self._planes, 0))
                return []

            ops.cond(ops.equal(self._work.member, number % tiling.team), [], prepare)

    def _block(self, scratch: Scratch, block: Value, quarters: int) -> None:
        ops, blocks, packed, products = self._ops, self._blocks, self._packed, self._products
        queries = self._problem.tiling.queries
        blocks.prefetch_words("value", block, quarters)
        keys = blocks.load_words("key", block, quarters)
        key_scales = blocks.decode_scales(blocks.load_scales("key", block), packed.key)
        value_scales = blocks.decode_scales(blocks.load_scales("value", block), packed.value)

        def weigh(query, _):
            scores = products.scores(scratch.load_query(query), keys, key_scales)
            scores = blocks.hide_padding(block, scores)
            totals = scratch.load_sums(query, stop=TOTALS)
            totals, weights = products.weigh(totals, scores, value_scales)
            scratch.store_sums(query, totals)
            scratch.store_weights(query, weights)
            return []

        ops.loop(queries, [], weigh)
        values = blocks.load_words("value", block, quarters)
        if quarters == WHOLE:
            following = ops.min(ops.add(block, 1), ops.sub(blocks.last_whole, 1))
            blocks.prefetch_words("key", following, quarters)

        def add(query, _):
            channels = scratch.load_sums(query, first=TOTALS)
            weights = scratch.load_weights(query, halves=-(-quarters // 2))
            channels = products.add_values(channels, weights, values)
            scratch.store_sums(query, channels, first=TOTALS)
            return []

        ops.loop(queries, [], add)
