"""Differences between layers: of one stack, in a loop over their traced number, and of several."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vkq_jax.array_types import Array

__all__ = ["by_kind", "in_layer_order"]


def by_kind[T](full_layers: tuple[int, ...], layer: Array, windowed: T, full: T) -> T:
    """One layer's arrays: `full` in layers without a window."""
    if not full_layers:
        return windowed
    is_full = jnp.isin(layer, jnp.asarray(full_layers, jnp.int32))
    return jax.tree.map(lambda x, y: jnp.where(is_full, y, x), windowed, full)


def in_layer_order(stacks: Mapping[str, tuple[int, ...]], outputs: Mapping[str, Any]) -> Any:
    """Outputs of several stacks as those of one, in the order of the layers that ran.

    Args:
        stacks: numbers of the layers of each stack.
        outputs: of those stacks that ran, pytrees of arrays whose leading axis has their layers;
            all of one structure, whose shapes differ in that axis alone.
    """
    numbers = [number for name in outputs for number in stacks[name]]
    if numbers == sorted(numbers):
        return jax.tree.map(lambda *parts: _concatenated(parts), *outputs.values())
    order = np.argsort(numbers)
    return jax.tree.map(lambda *parts: _concatenated(parts)[order], *outputs.values())


def _concatenated(parts: tuple[Array, ...]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
