"""Range rules: where the two ends `lower` and `upper` of a group's levels come from.

A rule is any hashable callable

    rule(x [..., E] float32, valid [..., E] bool, bits) -> (lower [...], upper [...])

with the E elements of one group on the last axis. Elements where `valid` is False are padding (any
value, NaN included) and must not have an influence. A rule of your own is a few lines, here one
that spans k standard deviations to both sides of the mean:

    >>> import dataclasses
    >>> import jax.numpy as jnp
    >>> from vkq_jax.codes.groups import masked_mean
    >>> @dataclasses.dataclass(frozen=True)
    ... class Deviations:
    ...     k: float = 0.8
    ...
    ...     def __call__(self, x, valid, bits):
    ...         mean = masked_mean(x, valid)
    ...         deviation = jnp.sqrt(masked_mean(jnp.square(x - mean[..., None]), valid))
    ...         return mean - self.k * deviation, mean + self.k * deviation
    >>> from vkq_jax.codes.level_codes import LevelCodes
    >>> tensor = LevelCodes(bits=1, range_rule=Deviations(k=1.0)).quantize(
    ...     jnp.array([[0.0], [2.0], [4.0]]), jnp.array([True, True, False])
    ... )
    >>> tensor.lower.item(), tensor.upper.item()
    (0.0, 2.0)
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.bits import packing
from vkq_jax.codes.groups import masked_mean, masked_quantiles
from vkq_jax.validation import check_fields

__all__ = ["MSE", "MeanMagnitude", "MinMax", "Quantile", "RangeRule", "Shrink"]

type Ends = tuple[Float[Array, "*groups"], Float[Array, "*groups"]]
RangeRule = Callable[[Array, Array, int | float], tuple[Array, Array]]
"""Finds lower and upper level of each group: (x [*groups, E] float32, valid [*groups, E], bits) ->
two arrays [*groups]. Hashable, so that it can be a setting of codes."""

# Half the width, in standard deviations, of the uniform grid of least squared error for a normal
# distribution (J. Max, "Quantizing for minimum distortion", 1960, table II; 8 bits numerically).
_NORMAL_HALF_WIDTH = {packing.TERNARY: 1.224, 2: 1.494, 4: 2.514, 8: 3.931}
_MSE_ITERATIONS = 12


@dataclasses.dataclass(frozen=True)
class MinMax:
    """Least and largest element. Poor at 1 bit, where nearly all elements lie in between."""

    def __call__(
        self, x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], bits: int | float
    ) -> Ends:
        """Ends of each group; 0, 0 for a group without valid elements."""
        some = valid.any(-1)
        lower = jnp.min(x, axis=-1, where=valid, initial=jnp.inf)
        upper = jnp.max(x, axis=-1, where=valid, initial=-jnp.inf)
        return jnp.where(some, lower, 0.0), jnp.where(some, upper, 0.0)


@dataclasses.dataclass(frozen=True)
class Quantile:
    """The q- and the (1-q)-quantile of the group (arXiv 2502.14882v1).

    Linear interpolation between elements, numpy's default. Elements beyond the ends are clipped to
    them. For a normal distribution q = 0.2125 puts the two levels of 1-bit codes where the squared
    error is least.

    Raises:
        ValueError: q is not a number in [0, 0.5).
    """

    q: float

    def __post_init__(self):
        """Checks q."""
        check_fields(self)
        if not 0 <= self.q < 0.5:
            raise ValueError(f"q must be in [0, 0.5), got {self.q}")

    def __call__(
        self, x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], bits: int | float
    ) -> Ends:
        """Ends of each group; 0, 0 for a group without valid elements."""
        lower, upper = masked_quantiles(x, valid, self.q, 1 - self.q)
        return lower, upper


@dataclasses.dataclass(frozen=True)
class Shrink:
    """`s` times the least and the largest element: shrinks towards 0, not towards the midpoint.

    The rule of CalibQuant's code at 1 bit (arXiv 2502.14882v2), with s = 0.5 for keys and 0.3 for
    values.

    Raises:
        ValueError: s is not a positive, finite number.
    """

    s: float

    def __post_init__(self):
        """Checks s."""
        check_fields(self)
        if not 0 < self.s < math.inf:
            raise ValueError(f"s must be positive and finite, got {self.s}")

    def __call__(
        self, x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], bits: int | float
    ) -> Ends:
        """Ends of each group; 0, 0 for a group without valid elements."""
        lower, upper = MinMax()(x, valid, bits)
        return self.s * lower, self.s * upper


@dataclasses.dataclass(frozen=True)
class MeanMagnitude:
    """-+ the mean magnitude of the group, for codes around 0.

    With three levels an element beyond half the mean magnitude keeps its sign, the others become 0
    (VidKV, arXiv 2503.16257).
    """

    def __call__(
        self, x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], bits: int | float
    ) -> Ends:
        """Ends of each group; 0, 0 for a group without valid elements."""
        unit = _unit(x, valid)
        size = masked_mean(jnp.abs(x / unit[..., None]), valid) * unit
        return -size, size


@dataclasses.dataclass(frozen=True)
class MSE:
    """Levels of least squared error.

    At 1 bit the exact optimum: of all splits of the sorted group, the two means of the best one. At
    more bits a uniform grid, refined by alternating between the nearest codes and the affine least
    squares fit to them; it is never worse than `MinMax`, and a local optimum.
    """

    def __call__(
        self, x: Float[Array, "*groups E"], valid: Bool[Array, "*groups E"], bits: int | float
    ) -> Ends:
        """Ends of each group; 0, 0 for a group without valid elements."""
        unit = _unit(x, valid)
        x = x / unit[..., None]
        # Centred, for the sake of the precision of the sums.
        mean = masked_mean(x, valid)
        centred = jnp.where(valid, x - mean[..., None], 0.0)
        fit = _two_means if bits == 1 else _uniform_grid
        lower, upper = fit(centred, valid, bits)
        return (mean + lower) * unit, (mean + upper) * unit


def _unit(x: Array, valid: Array) -> Array:
    """A power of two near the greatest magnitude of each group: in its units no square overflows.

    Dividing by it changes no digit.
    """
    greatest = jnp.max(jnp.abs(x), axis=-1, where=valid, initial=0.0)
    _, exponent = jnp.frexp(greatest)
    # A power whose reciprocal is not subnormal: devices take those for 0.
    return jnp.ldexp(jnp.ones_like(greatest), jnp.clip(exponent, -124, 124))


def _two_means(x: Array, valid: Array, bits: int | float) -> tuple[Array, Array]:
    """Levels of the best split of groups whose mean is 0."""
    del bits
    ordered = jnp.sort(jnp.where(valid, x, jnp.inf), axis=-1)
    below = jnp.broadcast_to(jnp.arange(1, x.shape[-1] + 1), x.shape)  # a split: elements below it
    above = valid.sum(-1)[..., None] - below
    sums = jnp.cumsum(jnp.where(above >= 0, ordered, 0.0), axis=-1)
    lower = sums / below.astype(x.dtype)
    upper = (sums[..., -1:] - sums) / jnp.maximum(above, 1).astype(x.dtype)
    # The squared error is the sum of squares less this. A group of equal elements has no split that
    # gains anything; its two levels are then equal, too.
    gain = jnp.square(lower) * below.astype(x.dtype) + jnp.square(upper) * above.astype(x.dtype)
    best = jnp.argmax(jnp.where(above > 0, gain, -jnp.inf), axis=-1)[..., None]
    lower, upper = (jnp.take_along_axis(end, best, axis=-1)[..., 0] for end in (lower, upper))
    return lower, upper


def _uniform_grid(x: Array, valid: Array, bits: int | float) -> tuple[Array, Array]:
    """Ends of a uniform grid of small squared error, for groups whose mean is 0."""
    highest = packing.highest_code(bits)

    def nearest(ends):
        lower, upper = (end[..., None] for end in ends)
        step = (upper - lower) / highest
        code = jnp.round((x - lower) / jnp.where(step == 0, 1.0, step))
        return jnp.clip(code, 0, highest), lower, step

    def error(ends):
        code, lower, step = nearest(ends)
        return jnp.where(valid, jnp.square(lower + step * code - x), 0.0).sum(-1)

    def better(a, b):
        keep = error(a) <= error(b)
        return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

    def refit(_, ends):
        code, *_ = nearest(ends)
        mean = masked_mean(code, valid)
        deviation = jnp.where(valid, code - mean[..., None], 0.0)
        variance = jnp.square(deviation).sum(-1)
        step = (deviation * x).sum(-1) / jnp.where(variance == 0, 1.0, variance)
        return -step * mean, step * (highest - mean)

    width = _NORMAL_HALF_WIDTH[bits] * jnp.sqrt(masked_mean(jnp.square(x), valid))
    start = better(MinMax()(x, valid, bits), (-width, width))
    return better(start, jax.lax.fori_loop(0, _MSE_ITERATIONS, refit, start))
