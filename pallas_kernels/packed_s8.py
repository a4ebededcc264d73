"""A warp's part of attention over a packed bank, for up to eight queries of a KV head at once.

A block's codes are made into bytes once for all of them. Two sets of four queries take a block in
two halves, to have room for their scores. The queries are prepared once for the team, each by one
of its warps. All positions share their tables.

Words of several code planes are not staged in shared memory, which has no room for them beside 16
warps (for one bit of 256 channels, beside 8 warps, it would have: not tried).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from pallas_kernels.block_softmax import TOTALS, BlockWeights, empty_sums
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.layouts import QUARTER
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.packed_values import PackedValues
from pallas_kernels.problem import SET, Packed, Plane, Problem
from pallas_kernels.s8_products import S8Products
from pallas_kernels.scratch import Scratch
from pallas_kernels.warp_math import LOWEST, SAME_QUERY
from pallas_kernels.work import Work

__all__ = ["PackedS8"]

LoadRow = Callable[[Plane, int], Sequence[Value]]  # of a plane and a row of it


def _halves(part: range) -> range:
    """The halves of a block that its quarters lie in."""
    return range(part.start // 2, -(-part.stop // 2))


class PackedS8:
    """`run()` does the work. Operands: those of the classes it uses."""

    _sides = ("key", "value")  # that are read

    def __init__(self, ops: Operations, problem: Problem, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._problem, self._packed, self._work = ops, problem, packed, work
        self._products = S8Products(ops, problem, work)
        rows = range(0, problem.head_dim, 8)
        self._values = PackedValues(ops, problem, packed, work, work.g, rows, SAME_QUERY)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result for each query."""
        ops, packed = self._ops, self._packed
        self._prepare(scratch)
        blocks = self._blocks = PackedBlocks(ops, self._problem, packed, self._work)
        scales = []
        staged = self._problem.stages_words and packed.whole_blocks > 0
        if staged:
            first = ops.min(blocks.first, packed.whole_blocks - 1)
            scales = self._load_scales(first)
            for name in ("key", "value"):
                blocks.copy_rows(scratch, name, first)
        self._values.prefetch_tables()
        ops.barrier()
        queries = self._load_queries(scratch)
        sums = empty_sums(self._problem.head_dim // 8) * self._problem.sets

        def block(i, carried):
            number = ops.add(blocks.first, i)
            if staged:
                return self._staged_block(scratch, queries, number, carried)
            return self._direct_block(scratch, queries, number, WHOLE, carried)

        def rest(sums):
            return self._direct_block(scratch, queries, packed.whole_blocks, packed.quarters, sums)

        if packed.whole_blocks:
            count = ops.sub(blocks.last_whole, blocks.first)
            sums = ops.loop(count, [*sums, *scales], block)[: len(sums)]
        if packed.quarters:
            sums = ops.cond(blocks.has_rest, sums, rest)
        ops.wait_for_copies()
        ops.warp_barrier()  # results take the place of what was copied and exchanged
        for number, query in enumerate(queries):
            totals, channels = self._of_set(sums, number)
            self._store(scratch, SET * number, query, [*totals, *channels])

    def _store(
        self, scratch: Scratch, first: int, query: FoldedQuery, sums: Sequence[Value]
    ) -> None:
        """Leaves the results of the set of queries from `first` on."""
        ops, work = self._ops, self._work
        left = self._problem.tiling.queries - first
        mine = ops.where_less(work.t, left, 1, 0)
        self._values.store(
            scratch,
            work.team_query(work.t, first),
            self._values.decode(sums, query.offset, 0),
            where=mine,
            once=ops.where_less(work.g, 1, mine, 0),
        )

    def _prepare(self, scratch: Scratch) -> None:
        """Each warp of the team prepares some of its queries: one after `team` others."""
        ops, problem, packed, work = self._ops, self._problem, self._packed, self._work
        tiling, products = problem.tiling, self._products

        def prepare(_):
            numbers = [ops.add(work.member, i) for i in range(0, tiling.queries, tiling.team)]
            queries = [PackedQuery(ops, problem, packed, work, number) for number in numbers]
            for number, query in zip(numbers, queries, strict=True):
                query.prepare()
                folded = query.fold(0, products.greatest_query, products.query_factor)
                digits = products.signed_digits(folded.operands)

                def store(_, number=number, folded=folded, digits=digits):
                    scratch.store_query(number, folded, digits)
                    return []

                ops.cond(ops.where_less(number, tiling.queries, 1, 0), [], store)
            return []

        ops.cond(ops.where_less(work.member, tiling.queries, 1, 0), [], prepare)

    def _load_queries(self, scratch: Scratch) -> list[FoldedQuery]:
        """Query t of each set, with the operands of all."""
        firsts = range(0, self._problem.tiling.queries, SET)
        queries, channels = zip(*(scratch.load_queries(first) for first in firsts), strict=True)
        operands = [self._products.encode(of_half) for of_half in zip(*channels, strict=True)]
        return [dataclasses.replace(query, operands=operands) for query in queries]

    def _staged_block(
        self, scratch: Scratch, queries: list[FoldedQuery], block: Value, carried: list[Value]
    ) -> list[Value]:
        """The sums with a block added, and the next one's scales.

        Its words are in shared memory or on their way; those of the next follow once they are read.
        A lane reads those that it copied itself: what `compute-sanitizer` asks barriers for anyway.
        """
        ops, blocks = self._ops, self._blocks
        num_sums = len(carried) - (self._packed.key.scale_bits + self._packed.value.scale_bits) // 4
        sums, scales = carried[:num_sums], carried[num_sums:]
        following = ops.add(block, 1)
        more = ops.where_less(following, blocks.last_whole, 1, 0)

        def copy_next(name):
            def copy(_):
                blocks.copy_rows(scratch, name, following)
                return []

            ops.cond(more, [], copy)

        ops.wait_for_copies(1)
        self._spread_scales(scratch, scales)
        scales = self._load_scales(ops.min(following, ops.sub(blocks.last_whole, 1)))
        parts = self._parts(WHOLE)
        for part in parts:
            load_row = functools.partial(self._staged_row, scratch, "key")
            sums, weights = self._weigh(scratch, queries, block, part, sums, load_row)
            ops.wait_for_copies()
            ops.warp_barrier()
            if part is parts[-1]:
                copy_next("key")
            load_row = functools.partial(self._staged_row, scratch, "value", halves=_halves(part))
            sums = self._add_values(scratch, sums, weights, load_row)
        ops.warp_barrier()
        copy_next("value")
        return [*sums, *scales]

    def _staged_row(
        self, scratch: Scratch, name: str, plane: Plane, row: int, halves: range = range(2)
    ) -> list[Value]:
        assert plane.number == 0, "only codes of one plane are staged"
        return scratch.load_row(name, row, halves)

    def _direct_block(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        sums: list[Value],
    ) -> list[Value]:
        """The sums with a block added, straight from device memory."""
        blocks = self._blocks
        load = functools.partial(blocks.load_row, block=block, quarters=quarters)
        self._spread_scales(scratch, self._load_scales(block))
        if quarters == WHOLE:
            for name in self._sides:
                blocks.prefetch(name, self._ops.add(block, 1))
        for part in self._parts(quarters):
            sums, weights = self._weigh(
                scratch,
                queries,
                block,
                part,
                sums,
                lambda plane, row: load("key", plane=plane, row=row),
            )
            self._ops.warp_barrier()
            words = slice(2 * _halves(part).start, 2 * _halves(part).stop)
            sums = self._add_values(
                scratch,
                sums,
                weights,
                lambda plane, row, at=words: load("value", plane=plane, row=row)[at],
            )
        return sums

    def _parts(self, quarters: int) -> list[range]:
        """Quarters of a block that are worked on at once: half a block's by two sets of queries."""
        at_once = WHOLE // self._problem.sets
        return [
            range(first, min(first + at_once, quarters)) for first in range(0, quarters, at_once)
        ]

    def _weigh(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        part: range,
        sums: Sequence[Value],
        load_row: LoadRow,
    ) -> tuple[list[Value], list[BlockWeights]]:
        """The sums with new totals, and each set's weights, left in scratch; a barrier is due."""
        ops = self._ops
        scores = self._scores(scratch, queries, block, part, load_row)
        scales = self._value_scales(scratch, part)
        new, found = [], []
        ops.warp_barrier()  # weights take the place of what the lanes have read by now
        for number, of_set in enumerate(scores):
            totals, channels = self._of_set(sums, number)
            totals, weights = self._products.weigh(totals, of_set, scales)
            scratch.store_weights(number, weights.operands)
            new += [*totals, *channels]
            found.append(weights)
        return new, found

    def _add_values(
        self,
        scratch: Scratch,
        sums: Sequence[Value],
        weights: list[BlockWeights],
        load_row: LoadRow,
    ) -> list[Value]:
        """The sums with new channels."""
        loaded = []
        for number, of_set in enumerate(weights):
            halves = range(len(of_set.operands) // 4)
            words = [scratch.load_weights(number, half) for half in halves]
            loaded.append(dataclasses.replace(of_set, operands=words))
        old = [self._of_set(sums, number) for number in range(len(loaded))]
        channels = self._products.add_values(
            [x for _, x in old], loaded, self._packed.value, load_row
        )
        return [x for (totals, _), new in zip(old, channels, strict=True) for x in (*totals, *new)]

    def _of_set(self, sums: Sequence[Value], number: int) -> tuple[list[Value], list[Value]]:
        """A set's totals and channels."""
        size = TOTALS + self._problem.head_dim // 8
        of_set = list(sums[size * number : size * (number + 1)])
        return of_set[:TOTALS], of_set[TOTALS:]

    def _load_scales(self, block: Value) -> list[Value]:
        """Words of this lane's scales, of keys and of values."""
        return [word for x in self._sides for word in self._blocks.load_scales(x, block)]

    def _spread_scales(self, scratch: Scratch, words: list[Value]) -> None:
        """Leaves the scales of `_load_scales` for all lanes, and what they had written before."""
        if words:  # they take the place of what was exchanged for the block before
            self._ops.warp_barrier()
        at = 0
        for name in self._sides:
            coding = getattr(self._packed, name)
            stop = at + coding.scale_bits // 4
            if coding.signs:
                scratch.spread_scales(name, self._blocks.decode_scales(words[at:stop], coding))
            at = stop
        self._ops.warp_barrier()

    def _scores(
        self, scratch: Scratch, queries: list[FoldedQuery], block: Value, part: range, load_row
    ) -> list[list[Value]]:
        """Each set's scores of some quarters of a block, those that are not visible hidden."""
        key = self._packed.key

        def load_scales(i, q):
            return scratch.load_scales("key", i, q) if key.signs else []

        scores = self._products.scores(queries, key, part, load_row, load_scales)
        return [self._hide(block, x, part, number) for number, x in enumerate(scores)]

    def _hide(
        self,
        block: Value,
        scores: list[Value],
        part: range,
        number: int,
        hidden: float = 2 * LOWEST,
    ) -> list[Value]:
        first = QUARTER * part.start
        return self._blocks.hide(block, scores, self._work.g, 8, first, number, hidden)

    def _value_scales(self, scratch: Scratch, part: range) -> list[Value]:
        """Of positions 8 p + g of some quarters, in their order; none for level codes."""
        if not self._packed.value.signs:
            return []
        scales: list[Value] = [None] * (8 * len(part))
        for first in range(2 * part.start, 2 * part.stop, 4):
            for q in range(4):
                for i, scale in enumerate(scratch.load_scales("value", first, q), first):
                    if i < 2 * part.stop:
                        scales[4 * (i - 2 * part.start) + q] = scale
        return scales
