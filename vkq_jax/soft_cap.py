"""The soft-cap of attention logits (Gemma 2, arXiv 2408.00118, section 2)."""

import math

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float

__all__ = ["check_soft_cap", "soft_cap"]


def soft_cap(logits: Float[Array, "*lead n"], cap: float | None) -> Float[Array, "*lead n"]:
    """cap * tanh(logits / cap), within (-cap, cap); the logits as they are where cap is None."""
    check_soft_cap(cap)
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def check_soft_cap(cap: float | None) -> None:
    """Raises ValueError for a cap that is no finite positive number."""
    if cap is not None and not (math.isfinite(cap) and cap > 0):
        raise ValueError(f"logits_soft_cap must be a finite positive number or None, got {cap}")
