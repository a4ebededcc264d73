"""Elementwise nonlinearities by name."""

import math
from enum import StrEnum

import jax

from vkq_jax.array_types import Array, Float

__all__ = ["Activation", "activate"]


_TANH_SCALE = math.sqrt(2 / math.pi)


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
            # (1 + tanh(u)) / 2 without the cancellation, which a norm after it would show.
            return x * jax.nn.sigmoid(2 * _TANH_SCALE * (x + 0.044715 * x * x * x))
        case Activation.QUICK_GELU:
            return x * jax.nn.sigmoid(1.702 * x)
        case Activation.RELU:
            return jax.nn.relu(x)
        case Activation.SILU:
            return jax.nn.silu(x)
