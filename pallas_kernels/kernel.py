"""The body of one thread block: attention over a packed bank and dense ones, one softmax."""

import math

from pallas_kernels import warp_math
from pallas_kernels.dense_bank import DenseBanks
from pallas_kernels.operations import Operations, Value
from pallas_kernels.packed_b1 import PackedB1
from pallas_kernels.packed_query import PackedQuery
from pallas_kernels.partials import Partials
from pallas_kernels.problem import Problem
from pallas_kernels.tables import load_table
from pallas_kernels.work import Work

__all__ = ["Kernel"]


class Kernel:
    """`run()` does the work of one warp.

    Every warp computes partial results over its share of positions, those of the dense banks first;
    no warp waits for another before that is done. Then one warp for each query joins those of its
    team and, where thread blocks of a cluster share a team, of its cluster.

    Operands: those of `PackedB1` and `DenseBanks`; layer [1] int32 where there are several; slope
    and shift (log2) [rows] where scores are calibrated. Results: output [rows, H] and logsumexp
    [rows] (natural), float32.
    """

    def __init__(self, ops: Operations, problem: Problem):
        """Finds out which part of the work is this warp's."""
        self.ops, self.problem, self.work = ops, problem, Work(ops, problem)
        self.partials = Partials(ops, problem, self.work)
        # The side of the dense banks, of which the packed bank's is the first if there is one.
        self.dense_side = problem.sides - 1 if problem.dense else None

    def run(self) -> None:
        """Everything, for this warp."""
        ops, problem, tiling = self.ops, self.problem, self.problem.tiling
        if self.dense_side is not None:
            DenseBanks(ops, problem, self.work).run(self.partials, self.dense_side)
        queries: list[PackedQuery | None] = [None] * tiling.queries
        if problem.packed is not None:
            part = PackedB1(ops, problem, problem.packed, self.work)
            queries = [*part.run(self.partials, 0)]
        ops.barrier()
        if tiling.splits == 1:
            for number in range(tiling.queries):
                self._if_mine(self.work.member, number % tiling.team, self._finish, number, queries)
            return
        for number in range(tiling.queries):
            self._if_mine(self.work.member, number % tiling.team, self._join_team, number)
        ops.cluster_barrier()
        for number in range(tiling.queries):
            mine = ops.mad(self.work.split, tiling.team, self.work.member)
            at = number % tiling.splits * tiling.team + number % tiling.team
            self._if_mine(mine, at, self._finish, number, queries)
        ops.cluster_barrier()  # no shared memory goes away before it has been read

    def _if_mine(self, mine: Value, wanted: int, action, *arguments) -> None:
        ops = self.ops

        def run(_):
            action(*arguments)
            return []

        ops.cond(ops.where_less(ops.bit_xor(mine, wanted), 1, 1, 0), [], run)

    def _join_team(self, number: int) -> None:
        for side in range(self.problem.sides):
            self.partials.store_team(side, number, self.partials.join_team(side, number))

    def _finish(self, number: int, queries: list[PackedQuery | None]) -> None:
        """Joins what there is of a query, normalizes it and writes it."""
        ops, problem, work = self.ops, self.problem, self.work
        join = self.partials.join_team
        if problem.tiling.splits > 1:
            join = self.partials.join_cluster
        sides = [join(side, number) for side in range(problem.sides)]
        query = queries[number]
        if problem.packed is not None and query is not None:
            sides[0] = self._decode(sides[0], query)
        top, mass, *channels = warp_math.merge(ops, sides)
        normalize = ops.reciprocal(ops.fmax(mass, 1e-30))

        wanted = ops.add(work.first_query, number)
        stores = ops.where_less(wanted, problem.queries, work.has_work, 0)
        row = work.row(work.query(number))
        address = ops.address(ops.pointer("output"), row, 4 * problem.head_dim)
        address = ops.address(address, work.lane, 4)
        for k, x in enumerate(channels):
            ops.store_float(stores, address, 128 * k, ops.fmul(x, normalize))
        ops.store_float(
            ops.where_less(work.lane, 1, stores, 0),
            ops.address(ops.pointer("logsumexp"), row, 4),
            0,
            ops.fmul(ops.fadd(top, ops.log2(mass)), math.log(2.0)),
        )

    def _decode(self, side: list[Value], query: PackedQuery) -> list[Value]:
        """The packed bank's result with what all its positions share."""
        ops, problem, work, packed = self.ops, self.problem, self.work, self.problem.packed
        top, mass, *channels = side
        if packed is not None and packed.value.signs:
            if packed.value.rotated:
                channels = warp_math.rotate(ops, channels, work.lane, problem.head_dim)
            offsets = [32 * k for k in range(problem.head_dim // 32)]
            centre = load_table(
                ops, problem, work, "value_centre", packed.value, None, work.lane, offsets
            )
            channels = [ops.fma(c, mass, x) for x, c in zip(channels, centre, strict=True)]
        return [ops.fadd(top, query.shared_score), mass, *channels]
