"""Distances of a coded tensor from the original, head by head."""

from __future__ import annotations

import jax.numpy as jnp

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.quantize import check_valid, dequantize, quantize
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree

__all__ = ["QuantizationError", "cosine", "quantization_error", "relative_squared_error"]


@frozen_pytree
class QuantizationError:
    """Errors of one quantization, one number for each leading index (layer, batch, head).

    Attributes:
        relative_squared_error: |x_hat - x|^2 / |x|^2 over all valid positions and channels.
        cosine: cosine of x_hat[t] and x[t], mean over the valid positions.
    """

    relative_squared_error: Float[Array, "*lead"]
    cosine: Float[Array, "*lead"]


@checked
def quantization_error(
    x: Float[Array, "*lead V H"],
    config: Quantizer,
    *,
    valid: Bool[Array, "*#lead #V"] | None = None,
    tables: SideTables | None = None,
) -> QuantizationError:
    """Error that coding `x` with `config` makes, over the valid positions.

    Args:
        x, config, valid, tables: as for `quantize`.

    Raises:
        ValueError: as for `quantize`.
    """
    x_hat = dequantize(quantize(x, config, valid=valid, tables=tables), tables)
    return QuantizationError(
        relative_squared_error(x, x_hat, valid=valid), cosine(x, x_hat, valid=valid)
    )


@checked
def relative_squared_error(
    x: Float[Array, "*lead V H"],
    x_hat: Float[Array, "*lead V H"],
    *,
    valid: Bool[Array, "*#lead #V"] | None = None,
) -> Float[Array, "*lead"]:
    """|x_hat - x|^2 / |x|^2 over the valid positions, float32; 0 / 0 is 0.

    Args:
        x: exact values, any float dtype.
        x_hat: values from codes, of the same shape.
        valid: False at padding; all positions count by default.

    Raises:
        ValueError: dtypes or shapes that do not fit.
    """
    x, x_hat, _ = _masked(x, x_hat, valid)
    return _ratio(jnp.square(x_hat - x).sum((-2, -1)), jnp.square(x).sum((-2, -1)))


@checked
def cosine(
    x: Float[Array, "*lead V H"],
    x_hat: Float[Array, "*lead V H"],
    *,
    valid: Bool[Array, "*#lead #V"] | None = None,
) -> Float[Array, "*lead"]:
    """Cosine of x_hat[t] and x[t], mean over the valid positions, float32; 0 for a zero vector.

    Args:
        x: exact values, any float dtype.
        x_hat: values from codes, of the same shape.
        valid: False at padding; all positions count by default.

    Raises:
        ValueError: dtypes or shapes that do not fit.
    """
    x, x_hat, valid = _masked(x, x_hat, valid)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(x_hat, axis=-1)
    cosines = _ratio((x * x_hat).sum(-1), norms)
    return _ratio(cosines.sum(-1), valid.sum(-1, dtype=jnp.int32).astype(jnp.float32))


def _masked(
    x: Float[Array, "*lead V H"],
    x_hat: Float[Array, "*lead V H"],
    valid: Bool[Array, "*#lead #V"] | None,
) -> tuple[Float[Array, "*lead V H"], Float[Array, "*lead V H"], Bool[Array, "*lead V"]]:
    """Both in float32, 0 where they are not valid, and which positions are valid."""
    if x.shape != x_hat.shape:
        raise ValueError(f"x_hat must have the shape of x, {list(x.shape)}, got {show(x_hat)}")
    valid = check_valid(valid, x.shape[:-1])
    x, x_hat = (jnp.where(valid[..., None], y.astype(jnp.float32), 0.0) for y in (x, x_hat))
    return x, x_hat, valid


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))
