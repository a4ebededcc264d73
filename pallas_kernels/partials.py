"""Partial results in shared memory: every warp leaves its own there, a few read and join them.

A partial result belongs to one query and one side (packed bank, dense banks): channels [H], then
the greatest score and the sum of weights relative to it.
"""

from collections.abc import Sequence

from pallas_kernels import warp_math
from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Problem
from pallas_kernels.work import Work

__all__ = ["Partials"]


class Partials:
    """The partial results of a thread block; with clusters also one for each of its teams."""

    def __init__(self, ops: Operations, problem: Problem, work: Work):
        """Finds this warp's place."""
        self._ops, self._problem, self._work = ops, problem, work
        self._size = 4 * problem.partial_words
        self._slot_size = self._size * problem.sides * problem.tiling.queries

    def store(
        self,
        side: int,
        query: Value,
        highest: Value,
        mass: Value,
        channels: Sequence[Value],
        *,
        at: Value,
        offsets: Sequence[int],
        where: Value,
        once: Value,
    ) -> None:
        """Leaves this warp's result for a query of the team, which may differ between lanes.

        Args:
            side, query, highest, mass: as the module says.
            channels: of this lane: number `at` plus each of the offsets.
            where: a word, 0 in lanes that hold nothing. once: not 0 in one lane for each query.
        """
        ops = self._ops
        base = ops.mad(query, self._size, self._address(self._work.warp, side, 0))
        lane = ops.mad(at, 4, base)
        for offset, x in zip(offsets, channels, strict=True):
            ops.store_shared(where, lane, 4 * offset, x)
        for i, x in enumerate((highest, mass)):
            ops.store_shared(once, base, 4 * (self._problem.head_dim + i), x)

    def join_team(self, side: int, query: int) -> list[Value]:
        """Greatest score, mass and channels 32 k + lane of the team, in this thread block."""
        ops, tiling = self._ops, self._problem.tiling
        first = ops.mad(self._work.team, tiling.team, 0)
        base = self._address(first, side, query)
        return warp_math.merge(
            ops,
            [self._load(base, w * self._slot_size, ops.load_shared) for w in range(tiling.team)],
        )

    def store_team(self, side: int, query: int, joined: Sequence[Value]) -> None:
        """Leaves a team's result where the other thread blocks of the cluster can read it."""
        ops, head_dim, lane = self._ops, self._problem.head_dim, self._work.lane
        highest, mass, *channels = joined
        base = self._address(self._team_slot(), side, query)
        at = ops.mad(lane, 4, base)
        for k, x in enumerate(channels):
            ops.store_shared(1, at, 128 * k, x)
        first = ops.where_less(lane, 1, 1, 0)
        for i, x in enumerate((highest, mass)):
            ops.store_shared(first, base, 4 * (head_dim + i), x)

    def join_cluster(self, side: int, query: int) -> list[Value]:
        """`join_team` over the thread blocks of the cluster, from what `store_team` left."""
        ops = self._ops
        base = self._address(self._team_slot(), side, query)

        def load_from(rank):
            return self._load(base, 0, lambda at, offset: ops.load_remote(rank, at, offset))

        return warp_math.merge(
            ops, [load_from(rank) for rank in range(self._problem.tiling.splits)]
        )

    def _load(self, base: Value, offset: int, load) -> list[Value]:
        head_dim = self._problem.head_dim
        at = self._ops.mad(self._work.lane, 4, base)
        highest, mass = (load(base, offset + 4 * (head_dim + i)) for i in (0, 1))
        return [highest, mass, *(load(at, offset + 128 * k) for k in range(head_dim // 32))]

    def _team_slot(self) -> Value:
        return self._ops.add(self._work.team, self._problem.tiling.warps)

    def _address(self, slot: Value, side: int, query: int) -> Value:
        base = self._ops.mad(slot, self._slot_size, self._ops.shared())
        return self._ops.add(base, self._size * (side * self._problem.tiling.queries + query))
