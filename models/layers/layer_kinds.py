"""The difference between layers of a stack that runs in a loop over their traced number."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array

__all__ = ["by_kind"]


def by_kind[T](full_layers: tuple[int, ...], layer: Array, windowed: T, full: T) -> T:
    """One layer's arrays: `full` in layers without a window."""
    if not full_layers:
        return windowed
    is_full = jnp.isin(layer, jnp.asarray(full_layers, jnp.int32))
    return jax.tree.map(lambda x, y: jnp.where(is_full, y, x), windowed, full)
