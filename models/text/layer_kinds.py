"""What differs between the layers of a stack that runs in a loop over their traced number."""

import jax
import jax.numpy as jnp

from models.text.config import TextConfig
from vkq_jax.array_types import Array

__all__ = ["by_kind"]


def by_kind[T](config: TextConfig, layer: Array, sliding: T, full: T) -> T:
    """Arrays of a layer: `full` in those that the sliding window leaves alone."""
    if not config.full_layers:
        return sliding
    is_full = jnp.isin(layer, jnp.asarray(config.full_layers))
    return jax.tree.map(lambda x, y: jnp.where(is_full, y, x), sliding, full)
