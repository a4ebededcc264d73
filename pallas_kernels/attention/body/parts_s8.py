"""Parts of a launch with dictionaries of their own in one loop, for up to four queries.

A loop for each part would have its instructions as often as there are parts: they would have to be
fetched anew in each launch, for few blocks. So the planes of all parts are prepared at once, and
one loop takes the blocks of all (`ClassRow`), each with as many planes as its part has. Right
operands of a plane, and sums of its channels, wait in shared memory. The greatest score and the
mass are those of all parts; sums of a part are relative to the greatest score when it was added to
last. Each part is given an equal share of the mass, so that joining parts by their log-sum-exps
gives what all have in common.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from pallas_kernels.attention.body.centroid_pairs import CentroidPairs
from pallas_kernels.attention.body.class_row import ChosenBlock, ClassRow
from pallas_kernels.attention.body.class_tiles import add_row
from pallas_kernels.attention.body.codebook import BookMasses, set_masses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_blocks import WHOLE, PackedBlocks
from pallas_kernels.attention.body.part_scratch import PartScratch
from pallas_kernels.attention.body.row_results import RowResults
from pallas_kernels.attention.body.s8_blocks import LoadRow, S8Blocks
from pallas_kernels.attention.body.s8_queries import S8Queries
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.attention.regions import SUMS, counts_pairs, row_of
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, SAME_QUERY, chosen, warp_sum

__all__ = ["PartsS8"]


class _RowS8(S8Blocks):
    """A row's products and softmax. Channels are not among its sums, but in shared memory."""

    @property
    def _num_channels(self) -> int:
        return 0

    def add_to_row(
        self,
        scratch: PartScratch,
        query: FoldedQuery,
        first_plane: Value,
        here: ChosenBlock,
        following: ChosenBlock,
        ahead: Sequence[Value],
        load_rows: Mapping[str, LoadRow],
        totals: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """The row's totals with a block added, and the words of the following one's positions.

        Args:
            scratch: of the row. query: of the block's part. first_plane: of that part, among all.
            here: the block. following: the next one. ahead: words of the block's positions.
            load_rows: of each side, see `S8Products`. totals: greatest score, mass.
        """
        ops, value = self._ops, here.packed.value
        self._blocks = here
        ids = self._spread_scales(scratch, ahead)
        words = self.load_chosen(following)
        new, (weights,) = self._weigh(
            scratch, [query], here.block, WHOLE, [*totals, 0.0], load_rows["key"], ids
        )
        *totals, in_part = new
        ops.warp_barrier()
        top, scaled = scratch.load_totals(here.index)
        old = ops.exp2(ops.fsub(top, totals[0]))
        scratch.store_totals(here.index, [totals[0], ops.fma(scaled, old, in_part)])
        operands = [scratch.load_weights(0, half) for half in range(2)]
        self.products.add_values_apart(
            dataclasses.replace(weights, operands=operands, old=old),
            value,
            load_rows["value"],
            lambda number: scratch.load_sums(ops.add(first_plane, number)),
            lambda number, sums: scratch.store_sums(ops.add(first_plane, number), sums),
        )
        return totals, words


class PartsS8:
    """`run()` does the work of one warp. Operands and results: those of `Kernel`, of each part."""

    def __init__(self, ops: Operations, specs: Sequence[KernelSpec]):
        """Finds out which part of the work is this warp's."""
        self._ops, self._specs = ops, specs
        spec = self._spec = row_of(specs)
        work = self._work = Work(ops, spec)
        self._scratches = [PartScratch(ops, x, work, specs, n) for n, x in enumerate(specs)]
        self._scratch = PartScratch(ops, spec, work, specs)
        self._coded = [packed for packed in spec.classes if packed.key.bits]
        self._uncoded = [packed for packed in spec.classes if not packed.key.bits]
        self._row = ClassRow(ops, spec, self._coded, work)
        self._planes = [(n, half) for n, x in enumerate(specs) for half in range(x.halves)]

    def run(self) -> None:
        """Everything, for this warp."""
        ops, specs, count = self._ops, self._specs, self._spec.tuning.queries
        of_parts = [S8Queries(ops, x, x.classes[0], self._work) for x in specs]
        begun = [queries.begin(number * count) for number, queries in enumerate(of_parts)]
        for number, queries in enumerate(of_parts):
            queries.prepare(
                self._scratches[number], number * count, begun=begun[number], book=number == 0
            )
        if not self._spec.staged_words:
            self._row.at(self._row.first).prefetch_planes()
        ops.barrier()
        self._encode()
        ops.barrier()
        self._attend()
        ops.barrier()
        RowResults(ops, self._specs, self._work, self._scratch, self._scratches[0]).write()

    def _encode(self) -> None:
        """Each warp of the team makes some planes' right operands: one after `team` others."""
        ops, work, spec = self._ops, self._work, self._spec
        queries = S8Queries(ops, spec, self._coded[0], work)
        own = work.team_query(ops.shift_right(work.g, 1), 0)
        places = [self._scratches[n].query_channels(own, half) for n, half in self._planes]

        def encode(first):
            plane = ops.add(work.member, first)
            at = chosen(ops, plane, places)

            def store(_):
                self._scratch.store_operands(plane, queries.encode_channels(at))
                return []

            ops.cond(ops.where_less(plane, len(places), 1, 0), [], store)

        for first in range(0, len(places), spec.tuning.team):
            encode(first)

    def _attend(self) -> None:
        """Leaves sums of this warp's blocks in shared memory."""
        ops, work, scratch, count = self._ops, self._work, self._scratch, len(self._specs)
        part = _RowS8(ops, self._spec, self._coded[0], work)
        team_query = work.team_query(work.t, 0)
        query = self._scratches[0].load_scalars(0)
        if self._coded[0].key.codebook:
            query = dataclasses.replace(query, book=scratch.book_table(team_query))
        masses: list[BookMasses] = []
        if self._coded[0].value.codebook:
            masses = set_masses(ops, self._spec, work, scratch)
        totals = [LOWEST, 0.0, 0.0]
        counted = [packed for packed in self._uncoded if counts_pairs(self._spec, packed)]
        for packed in counted:
            pairs = CentroidPairs(ops, self._spec, work, scratch)
            totals = pairs.sums(PackedBlocks(ops, self._spec, packed, work), masses[0])
        if not counted:
            for of_set in masses:
                of_set.clear()
        self._clear()
        for uncoded in [] if counted else self._uncoded:
            of_class = _RowS8(ops, self._spec, uncoded, work)
            of_class.masses = masses
            blocks = PackedBlocks(ops, self._spec, uncoded, work)
            totals = of_class.add_centroids([query], blocks, totals)
        totals = self._add_row(part, query, team_query, masses, totals[:2])
        highest, mass = totals

        def close(number, _):
            top, scaled = scratch.load_totals(number)
            less = ops.fsub(0.0, warp_sum(ops, scaled, SAME_QUERY))
            scratch.store_totals(number, [top, less])
            return []

        ops.loop(count, [], close)
        scratch.store_totals(count, [highest, warp_sum(ops, mass, SAME_QUERY)])
        mine = ops.where_less(work.t, self._spec.tuning.queries, 1, 0)
        for of_set in masses:
            of_set.leave(ops.fadd(highest, query.offset), ops.where_less(work.g, 1, mine, 0))

    def _clear(self) -> None:
        """Makes the sums of all parts zero."""
        ops, scratch = self._ops, self._scratch

        def clear_sums(number, _):
            scratch.store_sums(number, [0.0] * SUMS)
            return []

        def clear_totals(number, _):
            scratch.store_totals(number, [LOWEST, 0.0])
            return []

        ops.loop(len(self._planes), [], clear_sums)
        ops.loop(len(self._specs), [], clear_totals)

    def _add_row(
        self,
        part: _RowS8,
        query: FoldedQuery,
        team_query: Value,
        masses: Sequence[BookMasses],
        totals: Sequence[Value],
    ) -> list[Value]:
        """The totals with the warp's blocks of the row added."""
        ops, scratch, row = self._ops, self._scratch, self._row
        scalars = [x.query_scalars(team_query) for x in self._scratches]
        firsts = [sum(x.halves for x in self._specs[:n]) for n in range(len(self._specs))]

        def add(
            here: ChosenBlock,
            following: ChosenBlock,
            ahead: Sequence[Value],
            load_rows: Mapping[str, LoadRow],
            old: Sequence[Value],
        ) -> tuple[list[Value], list[Value]]:
            at, first = here.choose(scalars), here.choose(firsts)
            own = dataclasses.replace(
                query,
                operands=lambda plane: scratch.load_operands(ops.add(first, plane)),
                unit=ops.load_shared(at, 0),
                query_sum=ops.load_shared(at, 4),
            )
            block = _RowS8(ops, self._spec, here.packed, self._work)
            block.masses = masses
            return block.add_to_row(scratch, own, first, here, following, ahead, load_rows, old)

        def load(first: ChosenBlock) -> list[Value]:
            return _RowS8(ops, self._spec, first.packed, self._work).load_chosen(first)

        staged = self._spec.staged_words > 0
        found = add_row(ops, scratch, row, totals, load, add, staged=staged)
        ops.wait_for_copies()
        return found
