"""Norms that model families share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Float

__all__ = ["LayerNorm", "OffsetRmsNorm", "RmsNorm", "WideRmsNorm", "rms_norm"]


class RmsNorm(nnx.Module):
    """weight * x / sqrt(mean(x^2) + epsilon); statistics in float32, the product in x's dtype."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: DTypeLike):
        """Weight 1, of `param_dtype`."""
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        normed = rms_norm(x, self.epsilon).astype(x.dtype)
        return normed * _along_last(self.weight[...].astype(x.dtype), x.ndim)


class WideRmsNorm(RmsNorm):
    """The same with the product in float32, too: the norm of Gemma 4."""

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        factor = _along_last(self.weight[...].astype(jnp.float32), x.ndim)
        return (rms_norm(x, self.epsilon) * factor).astype(x.dtype)


class OffsetRmsNorm(nnx.Module):
    """(1 + weight) * x / sqrt(mean(x^2) + epsilon), all in float32: the norm of Gemma 1 to 3."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: DTypeLike):
        """Weight 0, of `param_dtype`."""
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.zeros(width, param_dtype))

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        factor = 1 + _along_last(self.weight[...].astype(jnp.float32), x.ndim)
        return (rms_norm(x, self.epsilon) * factor).astype(x.dtype)


class LayerNorm(nnx.Module):
    """weight * (x - mean) / sqrt(variance + epsilon) + bias, all in float32."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: DTypeLike, bias: bool = True):
        """Weight 1 and, where there is one, bias 0, of `param_dtype`."""
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones(width, param_dtype))
        self.bias = nnx.Param(jnp.zeros(width, param_dtype)) if bias else None

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        normed = normed * _along_last(self.weight[...].astype(jnp.float32), x.ndim)
        if self.bias is not None:
            normed = normed + _along_last(self.bias[...].astype(jnp.float32), x.ndim)
        return normed.astype(x.dtype)


def rms_norm(x: Float[Array, "*lead width"], epsilon: float) -> Float[Array, "*lead width"]:
    """x / sqrt(mean(x^2) + epsilon) in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + epsilon)


def _along_last(parameter: Float[Array, "width"], ndim: int) -> Float[Array, "*ones width"]:
    return parameter.reshape((1,) * (ndim - 1) + (-1,))
