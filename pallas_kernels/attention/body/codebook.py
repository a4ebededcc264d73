"""The codebook's part of scores and of results: a table of scores, and weights by centroid.

With the codebook C of the model's tables a position has one of up to 256 centroids beside its
centre. A score has the term q . C[id] more, which is looked up in a table of the query. A result
has C times the weight of each centroid more, a product outside of the launch: the kernel adds up
weights by id.

Lanes may hold positions of one centroid, so the weights of a block are added in shared memory, as
integers relative to the block's own maximum, whose sums are exact in any order. Then they join the
warp's sums in floats, relative to its running maximum.
"""

from collections.abc import Sequence

from pallas_kernels.attention.body.centre_ids import BookIds
from pallas_kernels.attention.body.scratch import Scratch
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import BOOK, SET, KernelSpec
from pallas_kernels.isa.fixed_point import TO_INT, TO_INT_BITS
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOG2_E

__all__ = ["BookMasses", "load_book", "set_masses", "write_masses"]

_GREATEST = 2.0**22 - 1  # number of a block's largest weight: 256 of them fit into a word


class BookMasses:
    """Weights by centroid of one set of queries, this warp's; its query's in each lane.

    Args:
        ops, scratch: of the kernel. query: of the lane, in the team.
        lane: number of the lane among the `lanes` that share its query.
    """

    def __init__(
        self,
        ops: Operations,
        scratch: Scratch,
        query: Value,
        lane: Value,
        lanes: int,
    ):
        """Computes where they are."""
        self._ops, self._lanes = ops, lanes
        self._counts, self._floats = scratch.book_masses(query)
        self._first = [ops.mad(lane, 16, at) for at in (self._counts, self._floats)]

    def clear(self) -> None:
        """Makes all of them zero."""
        for at in self._first:
            for offset in self._offsets():
                self._ops.store_shared4(at, offset, [0] * 4)
        self._ops.warp_barrier()

    def add(self, ids: Sequence[BookIds], weights: Sequence[Value]) -> None:
        """Adds weights of a block, relative to its maximum, by centroid."""
        ops = self._ops
        for x, weight in zip(ids, weights, strict=True):
            number = ops.as_bits(ops.fma(weight, _GREATEST, TO_INT))
            x.add(ops, self._counts, ops.sub(number, TO_INT_BITS))

    def join(self, old: Value, new: Value) -> None:
        """Joins what was added to the sums.

        Args:
            old: factor of the sums so far. new: that of the block's weights.
        """
        ops = self._ops
        unit = ops.fmul(new, 1.0 / _GREATEST)
        counts, floats = self._first
        ops.warp_barrier()
        for offset in self._offsets():
            numbers = ops.load_shared4(counts, offset)
            ops.store_shared4(counts, offset, [0] * 4)
            sums = [ops.from_bits(x) for x in ops.load_shared4(floats, offset)]
            joined = [
                ops.fma(ops.to_float(n), unit, ops.fmul(x, old))
                for n, x in zip(numbers, sums, strict=True)
            ]
            ops.store_shared4(floats, offset, [ops.as_bits(x) for x in joined])
        ops.warp_barrier()

    def leave(self, top: Value, once: Value) -> None:
        """Notes what the sums are relative to, in the lane of each query whose `once` is not 0."""
        self._ops.store_shared(once, self._floats, 4 * BOOK, top)

    def _offsets(self) -> range:
        return range(0, 4 * BOOK, 16 * self._lanes)


def set_masses(ops: Operations, spec: KernelSpec, work: Work, scratch: Scratch) -> list[BookMasses]:
    """Weights by centroid of each set of several queries, not cleared yet."""
    columns = [ops.add(work.t, SET * number) for number in range(spec.sets)]
    return [BookMasses(ops, scratch, column, work.g, 8) for column in columns]


def load_book(
    ops: Operations, spec: KernelSpec, work: Work, scratch: Scratch, query: Value
) -> None:
    """Has one warp fill the table of a query of the team, in units of log2.

    Operand: products [rows, n] float32, times logits_scale; the last 256 are scores by centroid.
    """
    address = ops.address(work.products(work.row(work.query(query))), work.lane, 16)
    first = 4 * (spec.products - BOOK)
    table = ops.mad(work.lane, 16, scratch.book_table(query))
    for offset in range(0, 4 * BOOK, 512):
        loaded = [ops.from_bits(x) for x in ops.load4(address, first + offset)]
        ops.store_shared4(table, offset, [ops.as_bits(ops.fmul(x, LOG2_E)) for x in loaded])


def write_masses(
    ops: Operations,
    spec: KernelSpec,
    work: Work,
    scratch: Scratch,
    query: int,
    top: Value,
    factor: Value,
) -> None:
    """Joins the weights by centroid of a query of the team and writes them: value_mass [rows, 256].

    Args:
        ops, spec, work, scratch: of the kernel. query: of the team.
        top: what the result is relative to. factor: of the result.
    """
    sums: list[Value] = [0.0] * (BOOK // 32)
    for warp in range(spec.tuning.team):
        floats = scratch.member_masses(warp, query)
        own = ops.load_shared(floats, 4 * BOOK)
        share = ops.fmul(ops.exp2(ops.fsub(own, top)), factor)
        at = ops.mad(work.lane, 4, floats)
        sums = [ops.fma(ops.load_shared(at, 128 * k), share, x) for k, x in enumerate(sums)]
    exists, row = work.result_row(query)
    address = ops.address(ops.pointer(f"{spec.part}value_mass"), row, 4 * BOOK)
    address = ops.address(address, work.lane, 4)
    for k, x in enumerate(sums):
        ops.store_float(exists, address, 128 * k, x)
