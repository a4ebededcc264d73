"""Positive numbers in 8 bits, on a logarithmic scale.

    a = 2^((code - 128) / 8),    code 0 is exactly 0

Neighbours differ by a factor of 2^(1/8), so the relative error is at most 4.5 %; codes cover
1.7e-5 to 6.0e4. Rounding is to the nearest code (in the logarithm: the mean relative error is then
3e-4, much less than that of the nearest value) and saturates: numbers that are too large get code
255, numbers that are too small code 0. NaN has no code of its own and becomes 0: a tensor with such
scales carries the NaN elsewhere.
"""

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Shaped

__all__ = ["PER_OCTAVE", "ZERO_POINT", "decode", "encode"]

ZERO_POINT, PER_OCTAVE = 128, 8


def encode(a: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The uint8 codes of numbers that are not negative."""
    code = jnp.round(PER_OCTAVE * jnp.log2(a)) + ZERO_POINT  # -inf for 0
    code = jnp.where(jnp.isnan(code), 0.0, code)  # the integer that NaN becomes is undefined
    return jnp.clip(code, 0, 255).astype(jnp.uint8)


def decode(code: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The float32 numbers that uint8 codes stand for."""
    exponent = (code.astype(jnp.float32) - ZERO_POINT) / PER_OCTAVE
    return jnp.where(code == 0, 0.0, jnp.exp2(exponent))
