"""What a text tower's sliding window hides in each layer, of a prompt and of a cache.

Layers run in a loop over their traced number: what differs between them is made for both kinds once
and chosen inside.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.families.llava.config import TextConfig
from models.layers.attention import causal_mask
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache import KVCache
from vkq_jax.visibility import Starts, window_starts

__all__ = ["cache_starts", "prompt_masks"]


def prompt_masks(
    config: TextConfig, mask: Bool[Array, "B T"], positions: Int32[Array, "B T"]
) -> Callable[[Array], Bool[Array, "B T T"]]:
    """For a layer's number: which position (last axis) of a prompt each position sees.

    Args:
        config: of the tower.
        mask: False at padding.
        positions: those of RoPE, up to what all of a sequence have in common.
    """
    full = causal_mask(mask)
    if config.sliding_window is None:
        return lambda layer: full
    near = positions[:, :, None] - positions[:, None] < config.sliding_window
    return lambda layer: _by_kind(config, layer, full & near, full)


def cache_starts(
    config: TextConfig, cache: KVCache, positions: Int32[Array, "B T"]
) -> Callable[[Array], Starts | None]:
    """For a layer's number: where what queries at RoPE `positions` see of the cache begins."""
    if config.sliding_window is None:
        return lambda layer: None
    starts = window_starts(cache, positions, config.sliding_window)
    everything = jax.tree.map(jnp.zeros_like, starts)
    return lambda layer: _by_kind(config, layer, starts, everything)


def _by_kind[T](config: TextConfig, layer: Array, sliding: T, full: T) -> T:
    """Arrays of a layer: `full` in those that the window leaves alone."""
    if not config.full_layers:
        return sliding
    is_full = jnp.isin(layer, jnp.asarray(config.full_layers))
    return jax.tree.map(lambda x, y: jnp.where(is_full, y, x), sliding, full)
