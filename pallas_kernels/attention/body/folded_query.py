"""A query that has been folded with the tables of packed keys, ready for their bits.

s[t] = q . lower + sum_i (q_i (upper_i - lower_i)) code[t, i]                       level codes
s[t] = q . centre + a[t] (2 sum_i (R q)_i code[t, i] - sum_i (R q)_i - kappa a[t])   sign codes

With codes of b bits 2^b - 1 times the sum over (R q)_i is taken off. Where positions have one of
several centroids, q . centre is that of the first, and those of the others lack q . (c[k] - c[0]).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pallas_kernels.attention.body.centre_ids import BookIds, Ids
from pallas_kernels.attention.codings import Coding
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import soft_capped

__all__ = ["FoldedQuery"]


@dataclasses.dataclass(frozen=True)
class FoldedQuery:
    """A query, ready for the scores of a block.

    Attributes:
        operands: the query's channels in fixed point, as numbers or as the products take them; a
            function from a plane's number, where planes are channels of their own.
        unit: what a number of 1 is worth.
        query_sum: sum over the rotated channels (sign codes).
        kappa: factor of a squared scale in a score (sign codes with a score bias).
        common: what the scores of all positions of the chunk have in common, before the cap.
        soft_cap: of the scores; None: no cap.
        centres: what scores of positions of each centroid but the first have more.
        book: address of what they have more by centroid of the codebook, see `codebook`.
    """

    operands: Any
    unit: Value
    query_sum: Value
    kappa: Value
    common: Value
    soft_cap: float | None
    centres: Sequence[Value] = ()
    book: Value = None

    @property
    def offset(self) -> Value:
        """The term that `scores` leaves out: without a cap it is added once a chunk, at the end."""
        return self.common if self.soft_cap is None else 0.0

    def scores(
        self,
        ops: Operations,
        key: Coding,
        sums: Sequence[Value],
        scales: Sequence[Value],
        ids: Sequence[Ids] = (),
    ) -> list[Value]:
        """Scores less `offset`, from sums over channels of number times code.

        Args:
            ops: the instructions. key: how keys are coded.
            sums: of a lane's positions. scales: of the same positions, none for level codes.
            ids: of the same positions; none: all have one centroid.
        """
        return self.capped(ops, self._uncapped(ops, key, sums, scales, ids))

    def capped(self, ops: Operations, scores: list[Value]) -> list[Value]:
        """Scores less `offset`, from those less `common`."""
        if self.soft_cap is None:
            return scores
        return [soft_capped(ops, x, self.soft_cap, self.common) for x in scores]

    def centroid_scores(self, ops: Operations, ids: Sequence[Ids], count: int) -> list[Value]:
        """`scores` of `count` positions that are their centroids; no ids: all have one."""
        return self.capped(ops, self._of_centroids(ops, ids) if ids else [0.0] * count)

    def _of_centroids(self, ops: Operations, ids: Sequence[Ids]) -> list[Value]:
        """The part of scores beyond that of the first centroid, or of the centre."""
        return [
            x.choose(ops, self.book)
            if isinstance(x, BookIds)
            else x.choose(ops, [0.0, *self.centres])
            for x in ids
        ]

    def _uncapped(
        self,
        ops: Operations,
        key: Coding,
        sums: Sequence[Value],
        scales: Sequence[Value],
        ids: Sequence[Ids],
    ) -> list[Value]:
        """Scores less `common`."""
        if not key.signs:
            return [ops.fmul(x, self.unit) for x in sums]
        twice = ops.fmul(self.unit, 2.0)
        less = ops.fmul(ops.fsub(0.0, self.query_sum), key.greatest)
        scores = [ops.fma(x, twice, less) for x in sums]
        if key.score_error_factor:
            minus = ops.fsub(0.0, self.kappa)
            scores = [ops.fma(a, minus, s) for a, s in zip(scales, scores, strict=True)]
        if ids:
            more = self._of_centroids(ops, ids)
            return [ops.fma(a, s, x) for a, s, x in zip(scales, scores, more, strict=True)]
        return [ops.fmul(a, s) for a, s in zip(scales, scores, strict=True)]
