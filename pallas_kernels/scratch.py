"""Shared memory of a thread block: what its warps leave there for themselves and each other.

| region | for each | words |
|---|---|---|
| results | warp and query of its team | channels [H], greatest score, mass |
| queries | team and query (teams of several queries only) | planes, then four scalars |
| joined | team and query (clusters only) | channels [H], greatest score, mass |

In teams of several queries a result's place holds, until it is known, the sums over blocks (see
`B1Products`) and behind them the weights of the block at hand.

A result is a partial softmax: channels and mass are sums of weights relative to the greatest score.
"""

from collections.abc import Callable, Sequence

from pallas_kernels import warp_math
from pallas_kernels.b1_products import BlockWeights
from pallas_kernels.folded_query import FoldedQuery
from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Problem
from pallas_kernels.work import Work

__all__ = ["Scratch"]


class Scratch:
    """Reads and writes the regions; queries are numbered within the team (numbers or words)."""

    def __init__(self, ops: Operations, problem: Problem, work: Work):
        """Lays the regions out, as `Problem.shared_words` counts them."""
        self._ops, self._problem, self._work = ops, problem, work
        tiling = problem.tiling
        self._result_bytes = 4 * problem.result_words
        self._queries = self._result_bytes * tiling.queries * tiling.warps
        self._query_bytes = 4 * problem.query_words
        self._joined = self._queries + self._query_bytes * tiling.queries * problem.block_teams
        self._joined_bytes = 4 * problem.joined_words

    # Results of a warp ----------------------------------------------------------------------------

    def store_result(
        self,
        query: Value,
        result: Sequence[Value],
        *,
        at: Value,
        offsets: Sequence[int],
        where: Value,
        once: Value,
    ) -> None:
        """Leaves this warp's result for a query, which may differ between lanes.

        Args:
            query: number in the team.
            result: greatest score, mass, then this lane's channels: `at` plus each of the offsets.
            where: a word, 0 in lanes that hold nothing. once: not 0 in one lane for each query.
        """
        self._store(self._result(self._work.warp, query), result, at, offsets, where, once)

    def load_result(self, query: Value, *, at: Value, offsets: Sequence[int]) -> list[Value]:
        """What `store_result` left, for any lane's choice of channels."""
        base = self._result(self._work.warp, query)
        return self._load(base, at, offsets, 0, self._ops.load_shared)

    def join_team(self, query: int) -> list[Value]:
        """The result of the team in this thread block, channels 32 k + lane."""
        ops, team = self._ops, self._problem.tiling.team
        base = self._result(ops.mad(self._work.team, team, 0), query)
        stride = self._result_bytes * self._problem.tiling.queries
        parts = [self._load_lanes(base, w * stride, ops.load_shared) for w in range(team)]
        return warp_math.merge(ops, parts)

    # Results of teams that a cluster shares -------------------------------------------------------

    def store_joined(self, query: int, result: Sequence[Value]) -> None:
        """Leaves a team's result where the other thread blocks of the cluster can read it."""
        lane = self._work.lane
        first = self._ops.where_less(lane, 1, 1, 0)
        self._store(self._team_query(query), result, lane, self._every_lane(), 1, first)

    def join_cluster(self, query: int) -> list[Value]:
        """`join_team` over the thread blocks of the cluster, from what `store_joined` left."""
        ops = self._ops
        base = self._team_query(query)

        def load_from(rank):
            return self._load_lanes(base, 0, lambda at, offset: ops.load_remote(rank, at, offset))

        splits = range(self._problem.tiling.splits)
        return warp_math.merge(ops, [load_from(rank) for rank in splits])

    # Queries and sums of a team of several queries ------------------------------------------------

    def store_query(self, query: int, folded: FoldedQuery) -> None:
        """Leaves a query for all warps of the team."""
        ops = self._ops
        base = self._folded(query)
        at = ops.mad(self._work.lane, 4, base)
        for i, word in enumerate(self._planes(folded.planes)):
            ops.store_shared(1, at, 128 * i, ops.from_bits(word))
        first = ops.where_less(self._work.lane, 1, 1, 0)
        scalars = (folded.unit, folded.query_sum, folded.kappa, folded.offset)
        for i, x in enumerate(scalars):
            ops.store_shared(first, base, self._query_bytes - 16 + 4 * i, x)

    def load_query(self, query: Value) -> FoldedQuery:
        """What `store_query` left."""
        ops, problem = self._ops, self._problem
        base = self._folded(query)
        at = ops.mad(self._work.lane, 4, base)
        sets = problem.plane_sets
        words = [
            ops.as_bits(ops.load_shared(at, 128 * i))
            for i in range(sets * problem.tiling.query_bytes)
        ]
        planes = [words[i::sets] for i in range(sets)]
        scalars = (ops.load_shared(base, self._query_bytes - 16 + 4 * i) for i in range(4))
        return FoldedQuery(planes * (2 // sets), *scalars)

    def store_sums(self, query: Value, sums: Sequence[Value], first: int = 0) -> None:
        """Leaves this warp's sums from number `first` on, lane by lane, in its result's place."""
        at = self._lane_of_sums(query)
        for i, x in enumerate(sums, first):
            self._ops.store_shared(1, at, 128 * i, x)

    def load_sums(self, query: Value, first: int = 0, stop: int | None = None) -> list[Value]:
        """What `store_sums` left, numbers [first, stop); all by default."""
        at = self._lane_of_sums(query)
        stop = self._problem.sums_words // 32 if stop is None else stop
        return [self._ops.load_shared(at, 128 * i) for i in range(first, stop)]

    def store_weights(self, query: Value, weights: BlockWeights) -> None:
        """Leaves a block's weights behind this warp's sums, lane by lane."""
        at = self._lane_of_sums(query)
        words = [self._ops.from_bits(word) for half in weights.planes for word in half]
        behind = 4 * self._problem.sums_words
        for i, x in enumerate((weights.old, weights.count, *words)):
            self._ops.store_shared(1, at, behind + 128 * i, x)

    def load_weights(self, query: Value, halves: int) -> BlockWeights:
        """What `store_weights` left, of one half of a block or of two."""
        ops, behind = self._ops, 4 * self._problem.sums_words
        at = self._lane_of_sums(query)
        old, count, *words = (ops.load_shared(at, behind + 128 * i) for i in range(2 + 2 * halves))
        words = [ops.as_bits(word) for word in words]
        return BlockWeights([words[2 * half : 2 * half + 2] for half in range(halves)], old, count)

    # Addresses ------------------------------------------------------------------------------------

    def _load_lanes(self, base: Value, offset: int, load: Callable[[Value, int], Value]):
        return self._load(base, self._work.lane, self._every_lane(), offset, load)

    def _every_lane(self) -> list[int]:
        """Offsets of a lane's channels 32 k + lane."""
        return [32 * k for k in range(self._problem.head_dim // 32)]

    def _store(self, base, result: Sequence[Value], at, offsets, where, once) -> None:
        ops = self._ops
        highest, mass, *channels = result
        lane = ops.mad(at, 4, base)
        for offset, x in zip(offsets, channels, strict=True):
            ops.store_shared(where, lane, 4 * offset, x)
        for i, x in enumerate((highest, mass)):
            ops.store_shared(once, base, 4 * (self._problem.head_dim + i), x)

    def _load(self, base, at, offsets, offset, load) -> list[Value]:
        lane = self._ops.mad(at, 4, base)
        scalars = [load(base, offset + 4 * (self._problem.head_dim + i)) for i in (0, 1)]
        return [*scalars, *(load(lane, offset + 4 * channel) for channel in offsets)]

    def _planes(self, planes: Sequence[Sequence[Value]]) -> list[Value]:
        """Words of the plane sets that differ, those of a byte side by side."""
        sets = planes[: self._problem.plane_sets]
        return [word for of_byte in zip(*sets, strict=True) for word in of_byte]

    def _result(self, warp: Value, query: Value) -> Value:
        slot = self._ops.mad(warp, self._problem.tiling.queries, query)
        return self._ops.mad(slot, self._result_bytes, self._ops.shared())

    def _lane_of_sums(self, query: Value) -> Value:
        return self._ops.mad(self._work.lane, 4, self._result(self._work.warp, query))

    def _folded(self, query: Value) -> Value:
        slot = self._ops.mad(self._work.team, self._problem.tiling.queries, query)
        base = self._ops.mad(slot, self._query_bytes, self._ops.shared())
        return self._ops.add(base, self._queries)

    def _team_query(self, query: Value) -> Value:
        slot = self._ops.mad(self._work.team, self._problem.tiling.queries, query)
        base = self._ops.mad(slot, self._joined_bytes, self._ops.shared())
        return self._ops.add(base, self._joined)
