"""Shared memory of a thread block: what its warps leave there for themselves and each other.

| region | for each | words |
|---|---|---|
| results | warp and query of its team | channels [H], greatest score, mass |
| the same place | warp (byte products only) | exchanged, values of a block, keys of one or two |
| queries | team and query (byte products only) | channels, five to eight scalars |
| scores by centroid | team (one query: warp; codebook only) | 264 for each query |
| weights by centroid | warp (codebook only): integers; as much for floats | 264 for each query |
| kept | warp (calibration of each step in one launch only) | scores of its blocks |

A result is a partial softmax: channels and mass are sums of weights relative to the greatest score.
Words of keys and values are copied there ahead of time; each lane reads those that it copied. What
lanes exchange is laid out so that neither its writing nor its reading, four words at once, meets a
bank twice. Weights take the place of scales:

    scales    word 36 g + 8 q + i (of values 288 more)      of position 32 i + 8 q + g
    queries   word 36 k + p                                 of channel 32 k + p
    weights   word 576 set + 72 i + 36 byte + 8 query + g   bytes at positions 32 i + 8 q + g, all q
"""

from collections.abc import Sequence

from pallas_kernels.attention.body.folded_query import FoldedQuery
from pallas_kernels.attention.body.work import Work
from pallas_kernels.attention.kernel_spec import (
    BOOK_STRIDE,
    EXCHANGE_WORDS,
    QUERY_STRIDE,
    SCALARS,
    KernelSpec,
)
from pallas_kernels.attention.regions import Regions
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.layout.layouts import BLOCK

__all__ = ["Scratch"]


class Scratch:
    """Reads and writes the regions; queries are numbered within the team (numbers or words)."""

    def __init__(
        self,
        ops: Operations,
        spec: KernelSpec,
        work: Work,
        parts: Sequence[KernelSpec] = (),
        number: int = 0,
    ):
        """Finds the regions of a part; of those that one loop takes, of part `number`."""
        self._ops, self._spec, self._work = ops, spec, work
        self._regions = Regions.of(parts or (spec,))
        self._warp_bytes, self._result_bytes = 4 * self._regions.warp_words, 4 * spec.joined_words
        self._queries = 4 * self._regions.queries[number]
        self._number = number
        self._query_bytes = 4 * spec.query_words
        self._scales = {"key": 0, "value": 2 * EXCHANGE_WORDS}
        values = 4 * spec.exchange_words
        self._staged = {"value": values, "key": values + 4 * spec.staged_words}

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
        ops, head_dim = self._ops, self._spec.head_dim
        base = self._result(self._work.warp, query)
        highest, mass, *channels = result
        lane = ops.mad(at, 4, base)
        for offset, x in zip(offsets, channels, strict=True):
            ops.store_shared(where, lane, 4 * offset, x)
        for i, x in enumerate((highest, mass)):
            ops.store_shared(once, base, 4 * (head_dim + i), x)

    def load_result(self, query: Value, *, at: Value, offsets: Sequence[int]) -> list[Value]:
        """The result that `store_result` wrote, at any lane's choice of channels."""
        return self._load(self._result(self._work.warp, query), 0, at, offsets)

    def load_team(self, query: int, offsets: Sequence[int]) -> list[list[Value]]:
        """The results of the team's warps for a query: channels lane + each of the offsets."""
        team = self._spec.tuning.team
        base = self._result(self._ops.mad(self._work.team, team, 0), query)
        starts = (warp * self._warp_bytes for warp in range(team))
        return [self._load(base, start, self._work.lane, offsets) for start in starts]

    # Queries of a team of several -----------------------------------------------------------------

    def store_query(
        self, query: Value, folded: FoldedQuery, channels: Sequence[Value], lost: Value
    ) -> None:
        """Leaves a query and its channels 32 k + 8 t + g, as words, for all warps of the team.

        And the variance of scores that it would lose, see `S8Queries`.
        """
        ops, work = self._ops, self._work
        base = self._folded(query)
        at = ops.mad(work.place, 4, base)
        for k, word in enumerate(channels):
            ops.store_shared(1, at, 4 * QUERY_STRIDE * k, ops.from_bits(word))
        first = ops.where_less(work.lane, 1, 1, 0)
        scalars = (folded.unit, folded.query_sum, folded.kappa, folded.common, lost)
        scalars = (*scalars, *folded.centres)
        at = self.query_scalars(query)
        for i, x in enumerate(scalars):
            ops.store_shared(first, at, 4 * i, x)

    def load_scalars(self, first: int) -> FoldedQuery:
        """Query first + t that `store_query` wrote, without its channels."""
        ops, work, spec = self._ops, self._work, self._spec
        at = self.query_scalars(work.team_query(work.t, first))
        scalars = (ops.load_shared(at, 4 * i) for i in range(4))
        more = spec.packed.key.centres - 1 if spec.packed else 0
        centres = [ops.load_shared(at, 4 * (5 + i)) for i in range(more)]
        return FoldedQuery([], *scalars, soft_cap=spec.logits_soft_cap, centres=centres)

    def load_queries(self, first: int) -> tuple[FoldedQuery, list[list[Value]]]:
        """`load_scalars`, and channels of query first + g // 2.

        These are, of each half, 32 t ... 32 t + 31, of small heads 32 (t % 2) ....
        """
        ops, work, spec = self._ops, self._work, self._spec
        scalars = self.load_scalars(first)
        query = work.team_query(ops.shift_right(work.g, 1), first)
        part = ops.bit_and(work.t, spec.plane_dim // 32 - 1)
        at = ops.mad(part, 4 * QUERY_STRIDE, self._folded(query))
        half = 4 * QUERY_STRIDE * spec.plane_dim // 32
        channels = [
            [word for i in range(8) for word in ops.load_shared4(at, half * number + 16 * i)]
            for number in range(spec.halves)
        ]
        return scalars, channels

    def query_scalars(self, query: Value) -> Value:
        """Address of a query's scalars, as `store_query` orders them."""
        ops, spec, begin = self._ops, self._spec, self._regions.scalars
        if begin is None:  # behind its channels
            return ops.add(self._folded(query), 4 * QUERY_STRIDE * spec.head_dim // 32)
        first = ops.mad(self._work.team, 4 * SCALARS * spec.tuning.queries, ops.shared())
        first = ops.add(first, 4 * (begin + self._number * SCALARS * spec.block_queries))
        return ops.mad(query, 4 * SCALARS, first)

    def query_channels(self, query: Value, half: int) -> Value:
        """Address of channels 32 t to 32 t + 31 of a half of a query, 16 bytes at a time."""
        at = self._ops.mad(self._work.t, 4 * QUERY_STRIDE, self._folded(query))
        return self._ops.add(at, 4 * QUERY_STRIDE * half * self._spec.plane_dim // 32)

    def load_lost_variance(self, first: int) -> Value:
        """The `lost_variance` of query first + t."""
        at = self.query_scalars(self._work.team_query(self._work.t, first))
        return self._ops.load_shared(at, 16)

    # Scores of a query, kept until their map is known ---------------------------------------------

    def keep_scores(self, number: Value, scores: Sequence[Value]) -> None:
        """Keeps a lane's scores, at most eight, of the warp's block of that number."""
        words = [self._ops.as_bits(x) for x in scores]
        words += [0] * (-len(words) % 4)
        for i in range(0, len(words), 4):
            self._ops.store_shared4(self._kept(number), 128 * i, words[i : i + 4])

    def kept_scores(self, number: Value) -> list[Value]:
        """The scores that `keep_scores` wrote; a block cut short has unwritten ones, too."""
        at = self._kept(number)
        words = [word for i in (0, 4) for word in self._ops.load_shared4(at, 128 * i)]
        return [self._ops.from_bits(word) for word in words]

    # Words of a block, of this lane ---------------------------------------------------------------

    def copy_row(
        self, name: str, row: int, slot: Value, address: Value, offset: int, size: int = 16
    ) -> None:
        """Starts to copy a row of a block's words of keys or values, `size` bytes for this lane."""
        at = self._staged_lane(slot)
        self._ops.copy_to_shared(at, self._staged[name] + 512 * row, address, offset, size)

    def load_row(self, name: str, row: int, slot: Value) -> list[Value]:
        """The row that `copy_row` copied."""
        return self._ops.load_shared4(self._staged_lane(slot), self._staged[name] + 512 * row)

    # Exchange between the lanes of a warp ---------------------------------------------------------

    def spread_scales(self, name: str, scales: Sequence[Value]) -> None:
        """Leaves a lane's scales, of positions 32 i + 8 t + g, for the lanes of the same g."""
        ops, work = self._ops, self._work
        at = ops.mad(work.g, 4 * 36, self._warp(work.warp))
        at = ops.mad(work.t, 4 * 8, at)
        for i in range(0, len(scales), 4):
            words = [ops.as_bits(x) for x in scales[i : i + 4]]
            ops.store_shared4(at, self._scales[name] + 4 * i, words)

    def load_scales(self, name: str, first: int, q: int) -> list[Value]:
        """Scales of positions 32 i + 8 q + g for i from `first` to `first` + 3."""
        ops, work = self._ops, self._work
        at = ops.mad(work.g, 4 * 36, self._warp(work.warp))
        words = ops.load_shared4(at, self._scales[name] + 4 * (8 * q + first))
        return [ops.from_bits(word) for word in words]

    def store_weights(self, number: int, words: Sequence[Sequence[Value]]) -> None:
        """Leaves a set's weights, for `load_weights` in other lanes.

        Args:
            number: of the set.
            words: for each i upper and lower bytes of query t at positions 32 i + 8 q + g.
        """
        ops, work = self._ops, self._work
        at = ops.mad(work.g, 4, ops.mad(work.t, 4 * 8, self._warp(work.warp)))
        base = 4 * EXCHANGE_WORDS * number
        for i, of_byte in enumerate(words):
            for byte, word in enumerate(of_byte):
                ops.store_shared(1, at, base + 4 * (72 * i + 36 * byte), ops.from_bits(word))

    def load_weights(self, number: int, half: int) -> list[Value]:
        """The weights of column g at positions 32 (4 half + t) + 8 q + b, for b in 0..7.

        These are the right operands of bits b of the words of values.
        """
        ops, work = self._ops, self._work
        at = ops.mad(work.t, 4 * 72, self._warp(work.warp))
        at = ops.mad(ops.bit_and(work.g, 1), 4 * 36, at)
        at = ops.mad(ops.shift_right(work.g, 1), 4 * 8, at)
        base = 4 * EXCHANGE_WORDS * number + 2 * EXCHANGE_WORDS * half
        return [word for b in (0, 4) for word in ops.load_shared4(at, base + 4 * b)]

    # Tables by centroid, see `codebook` -----------------------------------------------------------

    def book_table(self, query: Value) -> Value:
        """Address of the scores of a query of the team."""
        team = self._work.team if self._spec.uses_bytes else self._work.warp
        return self._book(self._regions.books, team, query)

    def book_masses(self, query: Value) -> tuple[Value, Value]:
        """Addresses of this warp's weights of a query: integers, and floats."""
        first, warp = self._regions.masses, self._work.warp
        return self._book(first, warp, query), self._book(self._floats, warp, query)

    def member_masses(self, member: Value, query: Value) -> Value:
        """Address of the floats of a warp of this team."""
        warp = self._ops.mad(self._work.team, self._spec.tuning.team, member)
        return self._book(self._floats, warp, query)

    def pairs(self) -> Value:
        """Address of the counts of pairs of centroids, where other regions will be."""
        return self._ops.add(self._ops.shared(), 4 * self._regions.warps)

    @property
    def _floats(self) -> int:
        return self._regions.masses + self._spec.tuning.warps * self._spec.book_words

    def _book(self, first: int, table: Value, query: Value) -> Value:
        """Address of a query's part of a table, of those that begin at word `first`."""
        ops = self._ops
        at = ops.mad(table, 4 * self._spec.book_words, ops.add(ops.shared(), 4 * first))
        return ops.mad(query, 4 * BOOK_STRIDE, at)

    # Addresses ------------------------------------------------------------------------------------

    def _load(self, base: Value, start: int, at: Value, offsets: Sequence[int]) -> list[Value]:
        """The result at `base` + `start` bytes."""
        ops, head_dim = self._ops, self._spec.head_dim
        lane = ops.mad(at, 4, base)
        scalars = [ops.load_shared(base, start + 4 * (head_dim + i)) for i in (0, 1)]
        return [*scalars, *(ops.load_shared(lane, start + 4 * channel) for channel in offsets)]

    def _kept(self, number: Value) -> Value:
        ops, spec = self._ops, self._spec
        block = ops.mad(self._work.warp, spec.kept_blocks, number)
        at = ops.mad(block, 4 * BLOCK, ops.add(ops.shared(), 4 * self._regions.kept))
        return ops.mad(self._work.lane, 16, at)

    def _staged_lane(self, slot: Value) -> Value:
        lane = self._ops.mad(self._work.lane, 16, self._warp(self._work.warp))
        return self._ops.mad(slot, 4 * self._spec.staged_words, lane)

    def _warp(self, warp: Value) -> Value:
        begin = self._ops.add(self._ops.shared(), 4 * self._regions.warps)
        return self._ops.mad(warp, self._warp_bytes, begin)

    def _result(self, warp: Value, query: Value) -> Value:
        return self._ops.mad(query, self._result_bytes, self._warp(warp))

    def _folded(self, query: Value) -> Value:
        slot = self._ops.mad(self._work.team, self._spec.tuning.queries, query)
        base = self._ops.mad(slot, self._query_bytes, self._ops.shared())
        return self._ops.add(base, self._queries)
