"""Softmax over a block of scores, its weights in fixed point.

Weights are relative to the *block's own* maximum, so that a sink elsewhere costs no precision, and
its largest weight takes the whole range of the fixed point. Scores are in units of log2.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from pallas_kernels.fixed_point import TO_INT, TO_INT_BITS
from pallas_kernels.operations import Operations, Value
from pallas_kernels.warp_math import LOWEST

__all__ = ["TOTALS", "BlockSoftmax", "BlockWeights", "add_products", "empty_sums"]

TOTALS = 3  # sums before those of channels


@dataclasses.dataclass(frozen=True)
class BlockWeights:
    """What values of a block are multiplied by.

    Attributes:
        operands: the weights, as numbers in fixed point or as the products take them.
        old: factor of the sums so far. unit: what a number of 1 is worth in the new ones.
    """

    operands: Sequence[Any]
    old: Value
    unit: Value


def empty_sums(channels: int) -> list[Value]:
    """Sums over no block: maximum, sum of p, sum of p times scale (sign codes), channels.

    The last are sums of p (times scale) times code. All are relative to the maximum.
    """
    return [LOWEST] + [0.0] * (TOTALS - 1 + channels)


def add_products(
    ops: Operations, channels: Sequence[Value], weights: BlockWeights, products: Sequence[Value]
) -> list[Value]:
    """The new sums of channels, from a block's sums of numbers times code."""
    return [
        ops.fma(x, weights.unit, ops.fmul(sum, weights.old))
        for x, sum in zip(products, channels, strict=True)
    ]


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
        self, totals: Sequence[Value], scores: Sequence[Value], scales: Sequence[Value]
    ) -> tuple[list[Value], BlockWeights]:
        """The new totals, and weights as numbers in the low bytes of words.

        Args:
            totals: maximum, sum of p, sum of p times scale; all but the first are this lane's part.
            scores, scales: of the block; scales of values, none for level codes.
        """
        ops = self._ops
        highest, mass, scaled_mass = totals
        top = self._row_max(functools.reduce(ops.fmax, scores))
        weights = [ops.exp2(ops.fsub(s, top)) for s in scores]
        block_mass, largest, factor = 0.0, 1.0, self._greatest
        if scales:
            block_mass = functools.reduce(ops.fadd, weights)
            weights = [ops.fmul(w, a) for w, a in zip(weights, scales, strict=True)]
            # Of floats that are not negative, as integers: three at once.
            largest = functools.reduce(ops.max, [ops.as_bits(w) for w in weights])
            largest = ops.fmax(self._row_max(ops.from_bits(largest)), 1e-30)
            factor = ops.fmul(ops.reciprocal(largest), self._greatest)
        if self._down is not None:
            factor = ops.fmul(factor, self._down)
        numbers = [ops.as_bits(ops.fma(w, factor, TO_INT)) for w in weights]
        total = functools.reduce(ops.add, numbers)
        total = ops.to_float(ops.sub(total, len(numbers) * TO_INT_BITS & 0xFFFFFFFF))
        if self._up is not None:
            total = ops.fmul(total, self._up)

        new_highest = ops.fmax(highest, top)
        old, new = (ops.exp2(ops.fsub(x, new_highest)) for x in (highest, top))
        unit = ops.fmul(ops.fmul(new, largest), 1.0 / self._greatest)
        if scales:
            mass = ops.fma(block_mass, new, ops.fmul(mass, old))
            scaled_mass = ops.fma(total, unit, ops.fmul(scaled_mass, old))
        else:  # of the rounded weights, so that they sum to one
            mass = ops.fma(total, unit, ops.fmul(mass, old))
        return [new_highest, mass, scaled_mass], BlockWeights(numbers, old, unit)
