"""A query that has been folded with the tables of packed keys, ready for their bits.

s[t] = q . lower + sum_i (q_i (upper_i - lower_i)) code[t, i]                       level codes
s[t] = q . centre + a[t] (2 sum_i (R q)_i code[t, i] - sum_i (R q)_i - kappa a[t])   sign codes
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pallas_kernels.operations import Operations, Value
from pallas_kernels.problem import Coding
from pallas_kernels.warp_math import soft_capped

__all__ = ["FoldedQuery"]


@dataclasses.dataclass(frozen=True)
class FoldedQuery:
    """What scores of a block are made of.

    Attributes:
        operands: the query's channels in fixed point, as numbers or as the products take them.
        unit: what a number of 1 is worth.
        query_sum: sum over the rotated channels (sign codes).
        kappa: factor of a squared scale in a score (sign codes with a score bias).
        common: what the scores of all positions of the chunk have in common, before the cap.
        soft_cap: of the scores; None: no cap.
    """

    operands: Sequence[Any]
    unit: Value
    query_sum: Value
    kappa: Value
    common: Value
    soft_cap: float | None

    @property
    def offset(self) -> Value:
        """What `scores` leaves out: without a cap it is added once, at the end of a chunk."""
        return self.common if self.soft_cap is None else 0.0

    def scores(
        self, ops: Operations, key: Coding, sums: Sequence[Value], scales: Sequence[Value]
    ) -> list[Value]:
        """Scores less `offset`, from sums over channels of number times code.

        Args:
            ops: the instructions. key: how keys are coded.
            sums: of a lane's positions. scales: of the same positions, none for level codes.
        """
        scores = self._uncapped(ops, key, sums, scales)
        if self.soft_cap is None:
            return scores
        return [soft_capped(ops, x, self.soft_cap, self.common) for x in scores]

    def _uncapped(
        self, ops: Operations, key: Coding, sums: Sequence[Value], scales: Sequence[Value]
    ) -> list[Value]:
        """Scores less `common`."""
        if not key.signs:
            return [ops.fmul(x, self.unit) for x in sums]
        twice, less = ops.fmul(self.unit, 2.0), ops.fsub(0.0, self.query_sum)
        scores = [ops.fma(x, twice, less) for x in sums]
        if key.score_error_factor:
            minus = ops.fsub(0.0, self.kappa)
            scores = [ops.fma(a, minus, s) for a, s in zip(scales, scores, strict=True)]
        return [ops.fmul(a, s) for a, s in zip(scales, scores, strict=True)]
