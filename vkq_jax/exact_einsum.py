"""Products in full float32, on devices too whose default would round their operands."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array

__all__ = ["exact_einsum"]


def exact_einsum(spec: str, a: Array, b: Array) -> Array:
    """`jnp.einsum` of two float32 arrays without tf32 or bfloat16 in between."""
    return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
