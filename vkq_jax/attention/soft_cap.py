"""The soft-cap of attention logits (Gemma 2, arXiv 2408.00118, section 2)."""

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array, Float
from vkq_jax.messages import show

__all__ = ["check_soft_cap", "is_finite_number", "soft_cap"]

_SMALLEST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def soft_cap(logits: Float[Array, "*lead n"], cap: float | None) -> Float[Array, "*lead n"]:
    """cap * tanh(logits / cap), within (-cap, cap); the logits as they are where cap is None."""
    check_soft_cap(cap)
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def check_soft_cap(cap: Any) -> None:
    """Raises ValueError for a cap that is no finite positive number of float32, or is traced."""
    if cap is not None and not (is_finite_number(cap) and float(cap) >= _SMALLEST):
        raise ValueError(
            f"logits_soft_cap must be a finite positive number, static under jit, or None, "
            f"got {show(cap)}"
        )


def is_finite_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy, finite in float32; a bool is none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return abs(float(value)) <= _LARGEST
    except OverflowError:  # an integer
        return False
