"""A warp's part of attention over a packed bank, for up to eight queries of a KV head at once.

A block's codes are made into bytes once for all of them. The queries are prepared once for the
team, each by one of its warps. All positions share their tables.

Words of one code plane wait in shared memory, and those of a row of classes (`ClassRow`), plane by
plane. Others do not: it has no room for them beside 16 warps (for one bit of 256 channels, beside 8
warps, it would have: not tried).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from pallas_kernels.attention.body.block_softmax import (
    BlockWeights,
    empty_sums,
    num_totals,
)
from pallas_kernels.attention.body.centre_ids import Ids
from pallas_kernels.attention.body.class_row import ChosenBlock
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.packed_values import PackedValues
from pallas_kernels.attention.body.s8_products import S8Products
from pallas_kernels.attention.body.s8_queries import S8Queries
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import SET, KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, SAME_QUERY
from pallas_kernels.layout.layouts import BLOCK, Plane

__all__ = ["PackedS8"]

LoadRow = Callable[[Plane, int], Sequence[Value]]  # of a plane and a row of it
IdsOfSides = dict[str, Sequence[Ids]]  # of keys and of values


class PackedS8:
    """`run()` does the work. Operands: those of the classes it uses."""

    _sides = ("key", "value")  # that are read
    masses: Sequence[BookMasses] = ()  # of each set, of values with a codebook

    @property
    def _num_channels(self) -> int:
        """Sums of channels of a lane, for each set."""
        return self._spec.head_dim // 8

    @property
    def _as_sums(self) -> bool:
        """Whether scores stay the sums that they are made of, for the softmax to measure."""
        spec = self._spec
        plain = not self._packed.key.signs and spec.logits_soft_cap is None
        return plain and not spec.biased and spec.task == "attention"

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self.queries = S8Queries(ops, spec, packed, work)
        self.products = S8Products(ops, spec, work)
        rows = range(0, spec.head_dim, 8)
        self.values = PackedValues(ops, spec, packed, work, work.g, rows, SAME_QUERY)

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result for each query."""
        ops, spec, packed = self._ops, self._spec, self._packed
        self.queries.prepare(scratch)
        ahead = self.load_ahead(scratch, PackedBlocks(ops, spec, packed, self._work))
        self.values.prefetch_tables()
        ops.barrier()
        queries = self.queries.load(scratch)
        empty = empty_sums(packed.value, spec.head_dim // 8) * spec.sets

        def add_blocks(queries, sums):
            return self.add_blocks(scratch, queries, ahead, sums)

        self.store(scratch, queries, self.queries.shortening(scratch, queries, empty, add_blocks))

    @property
    def _staged(self) -> bool:
        return self._spec.stages_words(self._packed) and self._packed.whole_blocks > 0

    def load_ahead(self, scratch: Scratch, blocks: PackedBlocks) -> list[Value]:
        """Starts to copy the first of the warp's blocks; the words of its positions."""
        ops, self._blocks = self._ops, blocks
        if not self._staged:
            return []
        ahead = self._load_position_words(ops.min(blocks.first, self._packed.whole_blocks - 1))
        for i in range(self._spec.key_slots):
            self._copy(scratch, "key", ops.add(blocks.first, i), i)
        self._copy(scratch, "value", blocks.first)
        return ahead

    def add_blocks(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        ahead: Sequence[Value],
        sums: Sequence[Value],
    ) -> list[Value]:
        """The sums with the warp's blocks added.

        Args:
            scratch: shared memory. queries: from `S8Queries.load`. ahead: from `load_ahead`.
            sums: of all sets.
        """
        ops, packed, blocks = self._ops, self._packed, self._blocks

        def block(i, carried):
            number = ops.add(blocks.first, i)
            if self._staged:
                return self._staged_block(scratch, queries, number, carried)
            return self._direct_block(scratch, queries, number, WHOLE, carried)

        if packed.of_classes:
            count = ops.sub(blocks.last, blocks.first)
            return ops.loop(count, [*sums, *ahead], block)[: len(sums)]

        def rest(sums):
            block, quarters = packed.whole_blocks, packed.quarters
            return self._direct_block(scratch, queries, block, quarters, sums)

        if packed.whole_blocks:
            count = ops.sub(blocks.last_whole, blocks.first)
            sums = ops.loop(count, [*sums, *ahead], block)[: len(sums)]
        if packed.quarters:
            sums = ops.cond(blocks.has_rest, sums, rest)
        return list(sums)

    def add_chosen(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        blocks: ChosenBlock,
        following: ChosenBlock,
        ahead: Sequence[Value],
        load_rows: Mapping[str, LoadRow],
        sums: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """The sums with a block added, and the words of the following one's positions.

        Args:
            scratch, queries, sums: see `add_blocks`. blocks: the block, whose class this is.
            following: the next one. ahead: words of the block's positions.
            load_rows: of each side, see `S8Products`.
        """
        self._blocks = blocks
        ids = self._spread_scales(scratch, ahead)
        words = self.load_chosen(following)
        sums, weights = self._weigh(
            scratch, queries, blocks.block, WHOLE, sums, load_rows["key"], ids
        )
        self._ops.warp_barrier()
        return self._add_values(scratch, sums, weights, load_rows["value"]), words

    def load_chosen(self, blocks: ChosenBlock) -> list[Value]:
        """Words of a block's positions, of keys and of values."""
        return [word for x in self._sides for word in blocks.load_position_words(x, blocks.block)]

    def add_centroids(
        self, queries: list[FoldedQuery], blocks: PackedBlocks, sums: Sequence[Value]
    ) -> list[Value]:
        """The sums with blocks added of tokens of which nothing but their centroids is kept."""
        ops, packed, self._blocks = self._ops, self._packed, blocks

        load = functools.partial(blocks.load_nearest_ids, self._sides)

        def step(i, carried):
            block, words = ops.add(blocks.first, i), carried[len(sums) :]
            following = load(ops.add(block, 1))
            split = packed.key.id_words
            of_key, of_value = (
                self.products.ids(mine, coding)
                for mine, coding in ((words[:split], packed.key), (words[split:], packed.value))
            )
            scores = [query.centroid_scores(ops, of_key, BLOCK // 8) for query in queries]
            scores = self._hide(block, self._biased(block, scores))
            new = []
            for number, of_set in enumerate(scores):
                totals, channels = self._of_set(carried, number)
                masses = self.masses[number] if self.masses else None
                totals, old = self.products.softmax.weigh_centroids(
                    totals, of_set, of_value, masses
                )
                new += [*totals, *(ops.fmul(x, old) for x in channels)]
            return [*new, *following]

        count = ops.sub(blocks.last, blocks.first)
        return ops.loop(count, [*sums, *load(blocks.first)], step)[: len(sums)]

    def store(self, scratch: Scratch, queries: list[FoldedQuery], sums: Sequence[Value]) -> None:
        """Leaves the results of all sets."""
        ops, work, values = self._ops, self._work, self.values
        ops.wait_for_copies()
        ops.warp_barrier()  # results take the place of what was copied and exchanged
        levels, centres = values.levels(0), values.centres()
        for number, query in enumerate(queries):
            first = SET * number
            totals, channels = self._of_set(sums, number)
            mine = ops.where_less(work.t, self._spec.tuning.queries - first, 1, 0)
            once = ops.where_less(work.g, 1, mine, 0)
            result = values.decode([*totals, *channels], query.offset, levels)
            if self.masses:
                self.masses[number].leave(result[0], once)
            values.store(
                scratch,
                work.team_query(work.t, first),
                result,
                centres,
                where=mine,
                once=once,
            )

    def _copy(self, scratch: Scratch, name: str, block: Value, slot: Value = 0) -> None:
        """Starts to copy this lane's words of a block, if it is one of the warp's whole ones."""
        ops, blocks = self._ops, self._blocks

        def copy(_):
            blocks.copy_rows(scratch, name, block, slot)
            return []

        ops.cond(ops.where_less(block, blocks.last_whole, 1, 0), [], copy)
        ops.group_copies()

    def _staged_block(
        self, scratch: Scratch, queries: list[FoldedQuery], block: Value, carried: list[Value]
    ) -> list[Value]:
        """The sums with a block added, and the words of the next one's positions.

        Its words are in shared memory or on their way; those of later blocks follow once they are
        read. A lane reads those that it copied itself: what `compute-sanitizer` asks barriers for
        anyway.
        """
        ops, blocks = self._ops, self._blocks
        key, value = self._packed.key, self._packed.value
        num_sums = len(carried) - key.position_words - value.position_words
        sums, of_positions = carried[:num_sums], carried[num_sums:]
        following = ops.add(block, 1)
        slot = ops.bit_and(ops.sub(block, blocks.first), self._spec.key_slots - 1)
        ops.wait_for_copies(self._spec.key_slots)
        ids = self._spread_scales(scratch, of_positions)
        last = ops.sub(blocks.last_whole, 1)
        of_positions = self._load_position_words(ops.min(following, last))

        def load_row(name, slot, plane, row):
            assert plane.number == 0, "only codes of one plane are staged"
            return scratch.load_row(name, row, slot)

        load_key = functools.partial(load_row, "key", slot)
        sums, weights = self._weigh(scratch, queries, block, WHOLE, sums, load_key, ids)
        ops.wait_for_copies()
        ops.warp_barrier()
        self._copy(scratch, "key", ops.add(block, self._spec.key_slots), slot)
        sums = self._add_values(scratch, sums, weights, functools.partial(load_row, "value", 0))
        ops.warp_barrier()
        self._copy(scratch, "value", following)
        return [*sums, *of_positions]

    def _direct_block(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        sums: list[Value],
    ) -> list[Value]:
        """The sums with a block added, straight from device memory."""
        ops, blocks = self._ops, self._blocks

        def load_row(name, plane, row):
            if self._packed.of_classes:
                return blocks.load_any_row(name, block, plane, row)
            return blocks.load_row(name, block, quarters, plane, row)

        ids = self._spread_scales(scratch, self._load_position_words(block))
        if quarters == WHOLE:
            for name in self._sides:
                blocks.prefetch(name, ops.add(block, 1))
        load_key = functools.partial(load_row, "key")
        sums, weights = self._weigh(scratch, queries, block, quarters, sums, load_key, ids)
        ops.warp_barrier()
        return self._add_values(scratch, sums, weights, functools.partial(load_row, "value"))

    def _weigh(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        sums: Sequence[Value],
        load_row: LoadRow,
        ids: IdsOfSides,
    ) -> tuple[list[Value], list[BlockWeights]]:
        """The sums with new totals, and each set's weights, left in scratch; a barrier is due."""
        value = self._packed.value
        scores = self._scores(scratch, queries, block, quarters, load_row, ids["key"])
        of_values = self._value_scales(scratch, quarters), ids["value"][: 8 * quarters]
        new, found = [], []
        for number, (query, of_set) in enumerate(zip(queries, scores, strict=True)):
            totals, channels = self._of_set(sums, number)
            unit = query.unit if self._as_sums else None
            masses = self.masses[number] if self.masses else None
            totals, weights = self.products.weigh(totals, of_set, unit, value, *of_values, masses)
            new += [*totals, *channels]
            found.append(weights)
        self._ops.warp_barrier()  # weights take the place of what the lanes have read by now
        for number, weights in enumerate(found):
            scratch.store_weights(number, weights.operands)
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
        channels = self.products.add_values(
            [x for _, x in old], loaded, self._packed.value, load_row
        )
        return [x for (totals, _), new in zip(old, channels, strict=True) for x in (*totals, *new)]

    def _of_set(self, sums: Sequence[Value], number: int) -> tuple[list[Value], list[Value]]:
        """A set's totals and channels."""
        first = num_totals(self._packed.value)
        size = first + self._num_channels
        of_set = list(sums[size * number : size * (number + 1)])
        return of_set[:first], of_set[first:]

    def _load_position_words(self, block: Value) -> list[Value]:
        """Words of the positions of a block, of keys and of values."""
        return [word for x in self._sides for word in self._blocks.load_position_words(x, block)]

    def _spread_scales(self, scratch: Scratch, words: Sequence[Value]) -> IdsOfSides:
        """Leaves the scales of `_load_position_words` for all lanes, and what they wrote before.

        Returns the centroids of each side's positions 8 p + g; none where all have one.
        """
        if words:  # they take the place of what was exchanged for the block before
            self._ops.warp_barrier()
        at, ids = 0, {}
        for name in self._sides:
            coding = getattr(self._packed, name)
            scales = at + coding.scale_bits // 4
            stop = at + coding.position_words
            if coding.signs:
                scratch.spread_scales(name, self._blocks.decode_scales(words[at:scales], coding))
            numbers = words[scales:stop]
            ids[name] = self.products.ids(numbers, coding)
            at = stop
        self._ops.warp_barrier()
        return ids

    def _scores(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        block: Value,
        quarters: int,
        load_row: LoadRow,
        ids: Sequence[Ids],
    ) -> list[list[Value]]:
        """Each set's scores of the first quarters of a block, those that are not visible hidden."""
        key = self._packed.key

        def load_scales(i, q):
            return scratch.load_scales("key", i, q) if key.signs else []

        scores = self.products.scores(
            queries, key, quarters, load_row, load_scales, ids, self._as_sums
        )
        return self._hide(block, self._biased(block, scores))

    def _biased(self, block: Value, scores: list[list[Value]]) -> list[list[Value]]:
        return self._blocks.add_bias(block, scores, self._work.g, 8)

    def _hide(
        self, block: Value, scores: list[list[Value]], hidden: float = 2 * LOWEST
    ) -> list[list[Value]]:
        return self._blocks.hide(block, scores, self._work.g, 8, hidden)

    def _value_scales(self, scratch: Scratch, quarters: int) -> list[Value]:
        """The scales at positions 8 p + g of the first quarters, in order; none for level codes."""
        if not self._packed.value.signs:
            return []
        scales: list[Value] = [None] * (8 * quarters)
        for first in range(0, 2 * quarters, 4):
            for q in range(4):
                for i, scale in enumerate(scratch.load_scales("value", first, q), first):
                    if i < 2 * quarters:
                        scales[4 * i + q] = scale
        return scales
