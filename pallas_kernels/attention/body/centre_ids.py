"""Numbers of centroids, a word for each bit, and what is chosen or summed up by them.

With two or three centroids no number has both bits; with four one has. So the weights of the
positions whose first bit is 1, whose second is and, of four, of those with both tell the weight of
each centroid, together with that of all positions.

A codebook has up to 256 centroids, whose numbers are bytes, see `codebook`.
"""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import in_chains

__all__ = ["BookIds", "BookWord", "CentreIds", "Ids", "centre_sums", "centroid_masses"]


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


class BookWord:
    """Four centroids' numbers, a word of some lane, asked for when the first one is needed."""

    def __init__(self, word: Value, lane: Value | None = None):
        """Keeps this lane's word, and whose it is that is wanted; None: this one's."""
        self._word, self._lane = word, lane

    def get(self, ops: Operations) -> Value:
        """The word that is wanted."""
        if self._lane is not None:
            self._word, self._lane = ops.take(self._word, self._lane), None
        return self._word


@dataclasses.dataclass(frozen=True)
class BookIds:
    """The number of a position's centroid: a byte of a word."""

    word: BookWord
    byte: int

    def choose(self, ops: Operations, table: Value) -> Value:
        """The float of its centroid in a table in shared memory."""
        return ops.load_shared(self._address(ops, table), 0)

    def add(self, ops: Operations, table: Value, number: Value) -> None:
        """Adds a number to the word of its centroid in a table in shared memory."""
        ops.add_shared(self._address(ops, table), 0, number)

    def _address(self, ops: Operations, table: Value) -> Value:
        number = ops.bytes(self.word.get(ops), 0, 0x4440 + self.byte)
        return ops.mad(number, 4, table)


Ids = CentreIds | BookIds


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
