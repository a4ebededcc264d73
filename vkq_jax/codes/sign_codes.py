"""Sign codes: one bit per channel, one centre per group of positions, one scale per position."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Shaped, UInt32
from vkq_jax.bits import log_scale, packing, rotation
from vkq_jax.codes import groups
from vkq_jax.codes.quantized import AffineTensor, QuantizedTensor, Quantizer
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.validation import check_fields

__all__ = ["SignCodes", "SignTensor", "error_ratio"]

_LARGEST = 2.0**100


@dataclasses.dataclass(frozen=True)
class SignCodes(Quantizer):
    """Settings of sign codes around a centre (docs/method.md, "Sign codes").

    Attributes:
        rotation: rotates the channels, so that a vector's energy is spread evenly ("hadamard"), or
            leaves them (None).
        gamma: exponent of the scale, see `SignTensor`. 1: unbiased inner products (RaBitQ, arXiv
            2405.12497). 0: least squared error.
        beta: strength with which `score_error` is taken off the scores of keys: quantized keys
            attract attention because exp is convex ("Quantized Keys Steal Attention", arXiv
            2605.26266). 0.5 would be right for isotropic Gaussian errors; 0 leaves the scores
            alone. Values have no scores, so that beta has no effect on them.
        scale_bits: 16 for a bfloat16 scale, 8 for a logarithmic one, see `vkq_jax.bits.log_scale`.
        centre: "mean" or "median" over the valid positions of a group, channel by channel.
        group_size: positions that share a centre. None: all of them.
        table_dtype: dtype in which the centre is stored: bfloat16, float16 or float32.

    Raises:
        ValueError: a setting is not one of the above; gamma or beta is negative or not finite.
    """

    rotation: Literal["hadamard"] | None = "hadamard"
    gamma: float = 1.0
    beta: float = 0.0
    scale_bits: Literal[8, 16] = 16
    centre: Literal["mean", "median"] = "mean"
    group_size: int | None = None
    table_dtype: str = "bfloat16"

    def __post_init__(self):
        """Checks the settings."""
        check_fields(self)
        for name in ("gamma", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}"
                )
        groups.check_group_size(self.group_size)
        groups.check_table_dtype(self.table_dtype)

    def quantize(self, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"]) -> SignTensor:
        """Codes `x`. Positions that are not valid get code 0 and scale 0 and enter no centre."""
        x, bad = groups.coded_input(x, valid, _LARGEST)
        num_positions, head_dim = x.shape[-2:]
        group_size = groups.resolve_group_size(self.group_size, num_positions)
        elements, elements_valid = groups.split_positions(x, valid, group_size)
        if self.centre == "mean":
            centre = groups.masked_mean(elements, elements_valid)
        else:
            (centre,) = groups.masked_quantiles(elements, elements_valid, 0.5)
        # Rounded before the residual is taken: the scale then makes good for that error, too.
        centre = groups.as_stored(centre, self.table_dtype)

        u = x - groups.per_position(centre.astype(jnp.float32), group_size, num_positions)
        u = jnp.where(valid[..., None], u, 0.0)
        if self.rotation is not None:
            u = rotation.rotate(u)
        scale = _token_scale(u, self.gamma)
        # A scale of 8 bits has no NaN; the centre, which all tokens of the group share, has.
        centre = jnp.where(groups.group_positions(bad, group_size).any(-2), jnp.nan, centre)
        return SignTensor(
            packed=packing.pack(u > 0, bits=1),
            centre=centre,
            token_scale=scale.astype(jnp.bfloat16)
            if self.scale_bits == 16
            else log_scale.encode(scale),
            head_dim=head_dim,
            group_size=group_size,
            rotated=self.rotation is not None,
            score_error_factor=self.beta * error_ratio(self.gamma),
        )


@frozen_pytree
class SignTensor(QuantizedTensor):
    """A tensor coded as signs around a centre.

        R (x_hat[t] - centre[g(t)]) = a[t] * (2 code[t] - 1),    u[t] = R (x[t] - centre[g(t)])
        code[t, i] = u[t, i] > 0
        a[t] = a_ls * (|u[t]|^2 / H / a_ls^2)^gamma,    a_ls = sum_i |u[t, i]| / H

    with g(t) = t // group_size and R the orthonormal Hadamard matrix (or the identity). At gamma 1,
    a = |u|^2 / |u|_1 and <x_hat - centre, x - centre> = |x - centre|^2; at gamma 0 the squared
    error is least.

    Elements saturate at 2^100 (1.3e30), so that no sum over channels overflows; a 16-bit scale
    holds what they give, an 8-bit one saturates at 6.0e4. A NaN or infinite element at a valid
    position makes the centre of its group NaN in that channel: with R all values of the group are
    then NaN, without it those of the channel.

    Attributes:
        packed: codes as little-endian bit fields, see `vkq_jax.bits.packing`.
        centre: per group and channel, in the table dtype, not rotated.
        token_scale: a per position: bfloat16, or uint8 as `vkq_jax.bits.log_scale` defines it.
        head_dim: H.
        group_size: positions that share a centre.
        rotated: whether R is Hadamard.
        score_error_factor: `score_error` of the decoding in units of a^2; 0: no score correction.
    """

    packed: UInt32[Array, "*lead V W"]
    centre: Float[Array, "*lead G H"]
    token_scale: Shaped[Array, "*lead V"]
    head_dim: int = static_field(kw_only=True)
    group_size: int = static_field(kw_only=True)
    rotated: bool = static_field(kw_only=True)
    score_error_factor: float = static_field(kw_only=True)

    def check(self) -> None:
        """Raises ValueError for words that do not hold H codes, or a negative scale."""
        packing.check_words(self.packed, 1, self.head_dim)
        if (self.token_scale < 0).any():
            raise ValueError(f"token_scale must not be negative, got {self.token_scale.min()}")

    def decoding(self) -> AffineTensor:
        """The general form: the centre as channel offset, 2a and -a as the tables per token."""
        centre = self.centre.astype(jnp.float32)
        if self.token_scale.dtype == jnp.uint8:
            scale = log_scale.decode(self.token_scale)
        else:
            scale = self.token_scale.astype(jnp.float32)
        factor = self.score_error_factor
        return AffineTensor(
            packed=self.packed,
            channel_offset=rotation.rotate(centre) if self.rotated else centre,
            token_offset=-scale[..., None],
            token_scale=2 * scale[..., None],
            score_error=factor * jnp.square(scale) if factor else None,
            bits=1,
            head_dim=self.head_dim,
            group_size=self.group_size,
            rotated=self.rotated,
        )


def error_ratio(gamma: float) -> float:
    """Expected |x_hat - x|^2 / H over a^2, for Gaussian u and exponent `gamma`.

    With E|u| = sigma sqrt(2/pi), the mean squared error a^2 - 2 a E|u| + sigma^2 is, in units of
    E|u|^2, r^(2 gamma) - 2 r^gamma + r where r = pi/2, and a^2 is r^(2 gamma). At gamma 1 it is
    1 - 2/pi, at gamma 0 pi/2 - 1.
    """
    r = math.pi / 2
    return (r ** (2 * gamma) - 2 * r**gamma + r) / r ** (2 * gamma)


def _token_scale(u: Float[Array, "*lead V H"], gamma: float) -> Float[Array, "*lead V"]:
    least_squares = jnp.abs(u).mean(-1)
    # Scaled before squaring, which could underflow; a token at the centre has u = 0 and scale 0.
    normalized = u / jnp.where(least_squares == 0, 1.0, least_squares)[..., None]
    return least_squares * jnp.square(normalized).mean(-1) ** gamma
