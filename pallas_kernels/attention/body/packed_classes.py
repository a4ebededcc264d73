"""A warp's part of attention over a bank of dictionary codes: one class of tokens after another.

Hadamard planes are the bits of odd numbers in one basis. So classes differ in the number of their
code planes only: the query is folded once for all of them, and sums go on from class to class. A
class without planes is counted first, see `CentreTokens`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from pallas_kernels.attention.body.block_softmax import empty_sums
from pallas_kernels.attention.body.centre_tokens import CentreTokens
from pallas_kernels.attention.body.class_row import ChosenBlock, ClassRow, divided_by_work
from pallas_kernels.attention.body.class_tiles import add_row
from pallas_kernels.attention.body.codebook import BookMasses, load_book, set_masses
from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.packed_b1 import PackedB1
from pallas_kernels.attention.body.packed_blocks import PackedBlocks
from pallas_kernels.attention.body.packed_query import PackedQuery
from pallas_kernels.attention.body.packed_s8 import PackedS8
from pallas_kernels.attention.body.s8_blocks import LoadRow
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.codings import Packed
from pallas_kernels.attention.kernel_spec import KernelSpec
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import merge

__all__ = ["ClassesB1", "ClassesS8"]


class _Classes:
    """The part that one query and several have in common. Operands: those of the parts."""

    def __init__(self, ops: Operations, spec: KernelSpec, packed: Packed, work: Work):
        """Keeps what the methods need."""
        self._ops, self._spec, self._packed, self._work = ops, spec, packed, work
        self._coded = [packed for packed in spec.classes if packed.key.bits]
        self._uncoded = [packed for packed in spec.classes if not packed.key.bits]

    def _blocks(self, packed: Packed) -> PackedBlocks:
        return PackedBlocks(self._ops, self._spec, packed, self._work)

    def _shared_blocks(self) -> list[PackedBlocks]:
        """The warp's blocks of each coded class, the first ones on their way to the L2 cache.

        For several queries, and where there are enough blocks, each class is divided: the
        instructions of one class fill their cache, and warps that are in unlike ones take a fifth
        longer. Else work is divided: blocks of all classes stand in a row, one counts as many units
        as it has planes, and one more for what is alike in all; a warp takes those that begin in
        its part of the units.
        """
        found = [self._blocks(packed) for packed in self._coded]
        if not self._spec.uses_bytes and self._few_blocks:
            self._divide_work(found)
        elif not self._spec.uses_bytes:
            for blocks in found[1::2]:
                blocks.take(*self._work.share(blocks.stop, blocks.hidden, mirrored=True))
        for blocks in found:
            for name in ("key", "value"):
                blocks.prefetch(name, blocks.first)
        return found

    @property
    def _few_blocks(self) -> bool:
        """Whether some warp might have no block of some class."""
        parts = self._spec.tuning.team * self._spec.tuning.splits
        return any(packed.blocks < 2 * parts for packed in self._coded)

    def _divide_work(self, found: Sequence[PackedBlocks]) -> None:
        before = divided_by_work(self._ops, self._spec, self._work, self._coded, found)
        for blocks, *bounds in zip(found, *before, strict=True):
            blocks.take(*(self._ops.add(blocks.hidden, x) for x in bounds))

    @property
    def _reads_centroids(self) -> bool:
        """Whether tokens without bits are read one by one.

        The 256 centroids of a codebook are too many to count; a key bias gives each token a score
        of its own.
        """
        return self._has_books or self._spec.biased

    @property
    def _has_books(self) -> bool:
        return self._packed.key.codebook or self._packed.value.codebook

    @property
    def _in_row(self) -> list[Packed]:
        """Classes without bits whose blocks are divided together with those of the others.

        There are some where small teams of warps serve several queries. Warps of large teams
        would be in unlike loops, which takes longer than it saves.
        """
        small = self._spec.uses_bytes and self._spec.tuning.team <= 2
        return self._uncoded if small and self._has_books else []

    def _uncoded_sums(
        self, queries: Sequence[FoldedQuery], channels: int, row_max: Callable[[Value], Value]
    ) -> list[Value]:
        """Sums of each set over the tokens without bits, see `CentreTokens`."""
        several = self._spec.uses_bytes
        parts = [
            CentreTokens(
                self._ops, packed, self._work, self._blocks(packed), row_max, several=several
            )
            for packed in self._uncoded
        ]
        sums, counts = [], [part.counts(0) for part in parts]
        for number, query in enumerate(queries):
            if number and self._spec.windowed:
                counts = [part.counts(number) for part in parts]
            found = [part.sums(query, x, channels) for part, x in zip(parts, counts, strict=True)]
            empty = empty_sums(self._packed.value, channels)
            sums += merge(self._ops, found) if found else empty
        return sums

    def _has_work(self, blocks: PackedBlocks) -> Value:
        return self._ops.where_less(blocks.first, blocks.last, 1, 0)


class ClassesB1(_Classes):
    """`run()` does the work, for one query."""

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result."""
        ops, spec, packed, work = self._ops, self._spec, self._packed, self._work
        query = PackedQuery(ops, spec, packed, work, 0)
        shares = self._shared_blocks()
        parts = [PackedB1(ops, spec, x, work) for x in self._coded]
        ends = PackedB1(ops, spec, packed, work)
        ends.values.prefetch_tables()
        query.prepare()
        folded = ends.products.encode(query.fold(0, ends.products.greatest_query))
        if packed.key.codebook:
            load_book(ops, spec, work, scratch, 0)
            ops.warp_barrier()
            folded = dataclasses.replace(folded, book=scratch.book_table(0))
        masses = None
        if packed.value.codebook:
            masses = BookMasses(ops, scratch, 0, work.lane, 32)
            masses.clear()
            for part in parts:
                part.masses = masses
        if self._reads_centroids:
            sums = empty_sums(packed.value, spec.head_dim // 32)
            for uncoded in self._uncoded:
                part = PackedB1(ops, spec, uncoded, work)
                part.masses = masses
                sums = part.add_centroids(folded, self._blocks(uncoded), sums)
        else:
            sums = self._uncoded_sums([folded], spec.head_dim // 32, ends.products.row_max)
        for part, blocks in zip(parts, shares, strict=True):

            def add(sums: Sequence[Value], part=part, blocks=blocks) -> list[Value]:
                ahead = part.load_ahead(blocks)
                return part.add_blocks(folded, blocks.first, blocks.last, ahead, sums)[1]

            sums = ops.cond(self._has_work(blocks), sums, add)
        total = ends.values.decode(sums, folded.offset, [])
        if masses is not None:
            masses.leave(total[0], ops.where_less(work.lane, 1, 1, 0))
        ends.leave(scratch, total)


class ClassesS8(_Classes):
    """`run()` does the work, for several queries.

    The blocks of all classes are one loop (`ClassRow`). Of 256 channels and more, which have
    several planes for each bit, each class is a loop of its own.
    """

    def run(self, scratch: Scratch) -> None:
        """Leaves a partial result for each query."""
        ops, spec, packed, work = self._ops, self._spec, self._packed, self._work
        row, apart = None, self._coded
        if spec.halves == 1 and self._coded:
            row, apart = ClassRow(ops, spec, self._coded, work, self._in_row), []
        ends = PackedS8(ops, spec, packed, work)
        ends.queries.prepare(scratch)
        shares = self._shared_blocks() if apart else []
        if row is not None and not spec.staged_words:
            row.at(row.first).prefetch_planes()
        ends.values.prefetch_tables()
        ops.barrier()
        queries = ends.queries.load(scratch)
        if packed.value.codebook:
            ends.masses = set_masses(ops, spec, work, scratch)
            for of_set in ends.masses:
                of_set.clear()
        if self._reads_centroids:
            sums = empty_sums(packed.value, spec.head_dim // 8) * spec.sets
            read = row.read if row is not None else []
            read = read or [self._blocks(packed) for packed in self._uncoded]
            for uncoded, blocks in zip(self._uncoded, read, strict=True):
                sums = self._part(uncoded, ends).add_centroids(queries, blocks, sums)
        else:
            sums = self._uncoded_sums(queries, spec.head_dim // 8, ends.products.row_max)
        if row is not None:
            sums = self._add_row(scratch, queries, row, sums, ends)
        for coded, blocks in zip(apart, shares, strict=True):

            def add(sums: Sequence[Value], coded=coded, blocks=blocks) -> list[Value]:
                part = self._part(coded, ends)
                return part.add_blocks(scratch, queries, part.load_ahead(scratch, blocks), sums)

            sums = ops.cond(self._has_work(blocks), sums, add)
        ends.store(scratch, queries, sums)

    def _part(self, packed: Packed, ends: PackedS8) -> PackedS8:
        """The part of a class, whose weights by centroid are those of all."""
        part = PackedS8(self._ops, self._spec, packed, self._work)
        part.masses = ends.masses
        return part

    def _add_row(
        self,
        scratch: Scratch,
        queries: list[FoldedQuery],
        row: ClassRow,
        sums: Sequence[Value],
        ends: PackedS8,
    ) -> list[Value]:
        """The sums with the warp's blocks of the row added."""

        def add(
            here: ChosenBlock,
            following: ChosenBlock,
            ahead: Sequence[Value],
            load_rows: Mapping[str, LoadRow],
            old: Sequence[Value],
        ) -> tuple[list[Value], list[Value]]:
            part = self._part(here.packed, ends)
            return part.add_chosen(scratch, queries, here, following, ahead, load_rows, old)

        def load(first: ChosenBlock) -> list[Value]:
            return self._part(first.packed, ends).load_chosen(first)

        staged = self._spec.staged_words > 0
        return add_row(self._ops, scratch, row, sums, load, add, staged=staged)
