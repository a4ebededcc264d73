"""Softmax over a block of scores, its weights in fixed point.

Weights are relative to the *block's own* maximum, so that a sink elsewhere costs no precision, and
its largest weight takes the whole range of the fixed point. Scores are in units of log2.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pallas_kernels.attention.body.centre_ids import BookIds, CentreIds, Ids, centre_sums
from pallas_kernels.attention.body.codebook import BookMasses
from pallas_kernels.attention.codings import Coding
from pallas_kernels.isa.fixed_point import TO_INT, TO_INT_BITS
from pallas_kernels.isa.operations import Operations, Value
from pallas_kernels.isa.warp_math import LOWEST, in_chains

__all__ = ["BlockSoftmax", "BlockWeights", "add_products", "empty_sums", "num_totals"]
TOTALS = 3


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """Weights of the values of a block.

    Attributes:
        operands: the weights, as numbers in fixed point or as the products take them.
        old: factor of the sums so far. unit: what a number of 1 is worth in the new ones.
    """

    operands: Sequence[Any]
    old: Value
    unit: Value


def num_totals(value: Coding) -> int:
    """Sums before those of channels: maximum, sum of p, sum of p times scale (sign codes).

    Then, where positions have one of several centroids, `centre_ids.centre_sums` of p. The sum of p
    times scale takes a code of b bits 2^b - 1 times.
    """
    return TOTALS + value.centre_sums


def empty_sums(value: Coding, channels: int) -> list[Value]:
    """Sums over no block: totals, channels.

    The last are sums of p (times scale) times code. All are relative to the maximum.
    """
    return [LOWEST] + [0.0] * (num_totals(value) - 1 + channels)


def add_products(
    ops: Operations, channels: Sequence[Value], weights: BlockWeights, products: Sequence[Value]
) -> list[Value]:
    """The new sums of channels, from a block's sums of numbers times code."""
    return [
        ops.fma(x, weights.unit, ops.fmul(sum, weights.old))
        for x, sum in zip(products, channels, strict=True)
    ]


def _measured(ops: Operations, score: Value, unit: Value) -> Value:
    """The score times its unit; what hides one, twice `LOWEST`, hides it still."""
    hidden = ops.fmin(0.0, ops.fsub(score, LOWEST))
    return ops.fma(hidden, 2.0, ops.fmul(score, unit))


class BlockSoftmax:
    """Weights of a lane's scores of a block, all of one query.

    Args:
        ops: the instructions.
        greatest: number of the largest weight.
        row_max: the maximum over the lanes that hold scores of the same query.
        down, up: factor of this lane's numbers, a power of two, and its inverse.
    """

    def __init__(
        self,
        ops: Operations,
        greatest: float,
        row_max: Callable[[Value], Value],
        down: Value = None,
        up: Value = None,
    ):
        """Keeps what the method needs."""
        self._ops, self._greatest, self._row_max = ops, greatest, row_max
        self._down, self._up = down, up

    def weigh(
        self,
        totals: Sequence[Value],
        scores: Sequence[Value],
        unit: Value | None,
        value: Coding,
        scales: Sequence[Value],
        ids: Sequence[Ids],
        masses: BookMasses | None = None,
    ) -> tuple[list[Value], BlockWeights]:
        """The new totals, and weights as numbers in the low bytes of words.

        Args:
            totals: see `num_totals`; all but the first are this lane's part.
            scores: of the block. unit: what a score of 1 is worth; None: 1.
            value: how values are coded. scales: of the block's values, none for level codes.
            ids: of these; none: all have one centroid. masses: where those of a codebook add up.
        """
        ops = self._ops
        highest, mass, scaled_mass, *of_centres = totals
        top = self._row_max(in_chains(ops.fmax, scores))
        block_mass, largest, factor = 0.0, 1.0, self._greatest
        new_of_centres: list[Value] = []
        if unit is None:
            weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        else:
            less = ops.fmul(ops.fsub(0.0, top), unit)
            weights = [ops.exp2(ops.fma(s, unit, less)) for s in scores]
            off = ops.fma(top, unit, less)  # the rounding of `less`, in all of them
            top = ops.fsub(_measured(ops, top, unit), off)
            largest = ops.exp2(off)
            factor = ops.fmul(ops.reciprocal(largest), self._greatest)
        if scales:
            block_mass = in_chains(ops.fadd, weights)
            new_of_centres = _add_to_centres(ops, ids, weights, masses, len(of_centres))
            weights = [ops.fmul(w, a) for w, a in zip(weights, scales, strict=True)]
            # Floats that are not negative compare as integers do, three at once.
            largest = in_chains(ops.max, [ops.as_bits(w) for w in weights])
            largest = ops.fmax(self._row_max(ops.from_bits(largest)), 1e-30)
            factor = ops.fmul(ops.reciprocal(largest), self._greatest)
        if self._down is not None:
            factor = ops.fmul(factor, self._down)
        numbers = [ops.as_bits(ops.fma(w, factor, TO_INT)) for w in weights]
        total = in_chains(ops.add, numbers)
        total = ops.to_float(ops.sub(total, len(numbers) * TO_INT_BITS & 0xFFFFFFFF))
        if self._up is not None:
            total = ops.fmul(total, self._up)

        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        unit = ops.fmul(ops.fmul(new, largest), 1.0 / self._greatest)
        if scales:
            mass = ops.fma(block_mass, new, ops.fmul(mass, old))
            of_codes = unit if value.bits == 1 else ops.fmul(unit, value.greatest)
            scaled_mass = ops.fma(total, of_codes, ops.fmul(scaled_mass, old))
            of_centres = [
                ops.fma(x, new, ops.fmul(sum, old))
                for x, sum in zip(new_of_centres, of_centres, strict=True)
            ]
            if masses is not None:
                masses.join(old, new)
        else:  # of the rounded weights, so that they sum to one
            mass = ops.fma(total, unit, ops.fmul(mass, old))
        return [new_highest, mass, scaled_mass, *of_centres], BlockWeights(numbers, old, unit)

    def weigh_centroids(
        self,
        totals: Sequence[Value],
        scores: Sequence[Value],
        ids: Sequence[Ids],
        masses: BookMasses | None,
    ) -> tuple[list[Value], Value]:
        """The new totals, and the factor of other sums, with tokens that are centroids only.

        Arguments: see `weigh`.
        """
        ops = self._ops
        highest, mass, scaled_mass, *of_centres = totals
        top = self._row_max(in_chains(ops.fmax, scores))
        weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        new_of_centres = _add_to_centres(ops, ids, weights, masses, len(of_centres))
        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        if masses is not None:
            masses.join(old, new)
        mass = ops.fma(in_chains(ops.fadd, weights), new, ops.fmul(mass, old))
        of_centres = [
            ops.fma(x, new, ops.fmul(sum, old))
            for x, sum in zip(new_of_centres, of_centres, strict=True)
        ]
        return [new_highest, mass, ops.fmul(scaled_mass, old), *of_centres], old


def _add_to_centres(
    ops: Operations,
    ids: Sequence[Ids],
    weights: Sequence[Value],
    masses: BookMasses | None,
    count: int,
) -> list[Value]:
    """The `centre_ids.centre_sums` of a block; those of a codebook go to its masses."""
    if masses is not None:
        masses.add([x for x in ids if isinstance(x, BookIds)], weights)
        return []
    of_image = [x for x in ids if isinstance(x, CentreIds)]
    return centre_sums(ops, of_image, weights, count) if of_image else []
