"""Distances of a coded tensor from the original, head by head."""

from __future__ import annotations

import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.codes.code_tables import SideTables
from vkq_jax.codes.quantize import dequantize, quantize
from vkq_jax.codes.quantized import Quantizer
from vkq_jax.pytree import frozen_pytree
from vkq_jax.validation import as_array

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


def quantization_error(
    x: Float[Array, "*lead V H"],
    config: Quantizer,
    *,
    valid: Bool[Array, "*lead V"] | None = None,
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


def relative_squared_error(
    x: Float[Array, "*lead V H"],
    x_hat: Float[Array, "*lead V H"],
    *,
    valid: Bool[Array, "*lead V"] | None = None,
) -> Float[Array, "*lead"]:
    """|x_hat - x|^2 / |x|^2 over the valid positions, float32; 0 / 0 is 0."""
    x, x_hat = _masked("x", x, valid), _masked("x_hat", x_hat, valid)
    return _ratio(jnp.square(x_hat - x).sum((-2, -1)), jnp.square(x).sum((-2, -1)))


def cosine(
    x: Float[Array, "*lead V H"],
    x_hat: Float[Array, "*lead V H"],
    *,
    valid: Bool[Array, "*lead V"] | None = None,
) -> Float[Array, "*lead"]:
    """Cosine of x_hat[t] and x[t], mean over the valid positions, float32; 0 for a zero vector."""
    x, x_hat = _masked("x", x, valid), _masked("x_hat", x_hat, valid)
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(x_hat, axis=-1)
    cosines = _ratio((x * x_hat).sum(-1), norms)
    count = jnp.full(x.shape[:-2], x.shape[-2]) if valid is None else valid.sum(-1)
    return _ratio(cosines.sum(-1), count.astype(jnp.float32))


def _masked(name: str, x: Float[Array, "*lead V H"], valid: Bool[Array, "*lead V"] | None) -> Array:
    x = as_array(name, x).astype(jnp.float32)
    return x if valid is None else jnp.where(valid[..., None], x, 0.0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))
