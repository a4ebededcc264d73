"""A query that has been folded with the tables of packed keys, ready for their bits."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.operations import Value

__all__ = ["FoldedQuery"]


@dataclasses.dataclass(frozen=True)
class FoldedQuery:
    """What scores of a block are made of, see `B1Products`.

    Attributes:
        planes: bit planes of the query, for even and for odd quarters of a block.
        unit: what a count is worth.
        query_sum: sum over the rotated channels (sign codes).
        kappa: factor of a squared scale in a score (sign codes with a score bias).
        offset: what the scores of all positions of the chunk have in common.
    """

    planes: Sequence[Sequence[Value]]
    unit: Value
    query_sum: Value
    kappa: Value
    offset: Value
