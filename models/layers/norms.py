"""Layers that model families share: norms and activations."""

from enum import StrEnum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vkq_jax.array_types import Array, Float

__all__ = ["Activation", "LayerNorm", "RmsNorm", "activate"]


class Activation(StrEnum):
    """Elementwise nonlinearities."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"
    RELU = "relu"
    SILU = "silu"


def activate(x: Float[Array, "*shape"], activation: Activation) -> Float[Array, "*shape"]:
    """The activation of `x`, in its dtype."""
    match activation:
        case Activation.GELU:
            return jax.nn.gelu(x, approximate=False)
        case Activation.GELU_TANH:
            return jax.nn.gelu(x, approximate=True)
        case Activation.QUICK_GELU:
            return x * jax.nn.sigmoid(1.702 * x)
        case Activation.RELU:
            return jax.nn.relu(x)
        case Activation.SILU:
            return jax.nn.silu(x)


class RmsNorm(nnx.Module):
    """scale * x / sqrt(mean(x^2) + epsilon); statistics in float32, the product in x's dtype."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: DTypeLike):
        """Scale 1, of `param_dtype`."""
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * _along_last(self.scale[...].astype(x.dtype), x.ndim)


class LayerNorm(nnx.Module):
    """scale * (x - mean) / sqrt(variance + epsilon) + bias, all in float32."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: DTypeLike):
        """Scale 1 and bias 0, of `param_dtype`."""
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width, param_dtype))
        self.bias = nnx.Param(jnp.zeros(width, param_dtype))

    def __call__(self, x: Float[Array, "*lead width"]) -> Float[Array, "*lead width"]:
        """The normed `x`, in its dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normed * _along_last(scale, x.ndim) + _along_last(bias, x.ndim)).astype(x.dtype)


def _along_last(parameter: Float[Array, "width"], ndim: int) -> Float[Array, "*ones width"]:
    return parameter.reshape((1,) * (ndim - 1) + (-1,))
