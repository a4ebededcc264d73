"""Numbers of centroids, a word for each bit, and what is chosen or summed up by them.

With two or three centroids no number has both bits; with four one has. So the weights of the
positions whose first bit is 1, whose second is and, of four, of those with both tell the weight of
each centroid, together with that of all positions.
"""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import in_chains

__all__ = ["CentreIds", "centre_sums", "centroid_masses"]


@dataclasses.dataclass(frozen=True)
class CentreIds:
    """The number of a position's centroid.

    Attributes:
        words: with the bits of its number, lowest first. bit: their place in the words.
    """

    words: Sequence[Value]
    bit: int

    def choose(self, ops: Operations, values: Sequence[Value]) -> Value:
        """The value of its centroid, of one for each of two to four."""
        low, *high = self.words
        chosen = [ops.where_bit_float(low, self.bit, values[1], values[0])]
        if len(values) == 3:
            chosen.append(values[2])
        elif len(values) == 4:
            chosen.append(ops.where_bit_float(low, self.bit, values[3], values[2]))
        if not high:
            return chosen[0]
        return ops.where_bit_float(high[0], self.bit, chosen[1], chosen[0])


def centre_sums(
    ops: Operations, ids: Sequence[CentreIds], weights: Sequence[Value], count: int
) -> list[Value]:
    """The `count` sums of weights described above, of positions that share their words."""
    words = list(ids[0].words)
    if count == 3:
        words.append(ops.bit_and(*words))
    return [
        in_chains(
            ops.fadd,
            [
                ops.where_bit_float(word, x.bit, weight, 0.0)
                for x, weight in zip(ids, weights, strict=True)
            ],
        )
        for word in words
    ]


def centroid_masses(ops: Operations, mass: Value, sums: Sequence[Value]) -> list[Value]:
    """The weight of each centroid, from that of all positions and from `centre_sums`."""
    alone = list(sums)
    if len(sums) == 3:  # those with both bits are in all three
        alone = [ops.fsub(x, sums[2]) for x in sums[:2]] + [sums[2]]
    first = mass
    for x in alone:
        first = ops.fsub(first, x)
    return [first, *alone]
