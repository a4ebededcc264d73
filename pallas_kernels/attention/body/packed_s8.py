"""A warp's part of attention over a packed bank, for up to eight queries of a KV head at once.

The queries are prepared once for the team, each by one of its warps.

Words of one code plane wait in shared memory, and those of a row of classes (`ClassRow`), plane by
plane. Others do not: it has no room for them beside 16 warps (for one bit of 256 channels, beside 8
warps, it would have: not tried).
"""

import functools
from collections.abc import Sequence

from pallas_kernels.attention.body.block_softmax import empty_sums
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.s8_blocks import S8Blocks
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.kernel_spec import SET
from pallas_kernels.isa.operations import Value

__all__ = ["PackedS8"]


class PackedS8(S8Blocks):
    """`run()` does the work. Operands: those of the classes it uses."""

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
