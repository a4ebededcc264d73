"""Masks of each layer, over a prompt and over a cache: causal, windows, groups.

Masks go by a token's index in its sequence, never by its RoPE position: with M-RoPE, positions are
neither distinct nor increasing. Layers run in a loop over their traced number: masks of both kinds
are made once, and a layer chooses inside the loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.inputs.batch import Inputs
from models.layers.attention import causal_mask
from models.layers.layer_kinds import by_kind
from models.text.config import TextConfig
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visibility import Starts, window_starts

__all__ = ["cache_starts", "prompt_masks"]


def prompt_masks(config: TextConfig, inputs: Inputs) -> Callable[[Array], Bool[Array, "B T T"]]:
    """For a layer's number: which token (last axis) of a prompt each token sees."""
    group, seen = inputs.attention_group, causal_mask(inputs.mask)
    together = None
    if group is not None:
        together = (group[:, :, None] == group[:, None]) & (group >= 0)[:, None]
        together &= inputs.mask[:, None]
    both = full = seen if together is None else seen | together
    if config.groups_in_windows:
        full = seen
    if config.sliding_window is None:
        return lambda layer: full
    index = inputs.index
    near = index[:, :, None] - index[:, None] < config.sliding_window
    if together is not None and config.groups_cross_window:
        sliding = (seen & near) | together
    else:
        sliding = both & near
    return lambda layer: by_kind(config.full_layers, layer, sliding, full)


def cache_starts(
    config: TextConfig, cache: AnyCache, index: Int32[Array, "B T"]
) -> Callable[[Array], Starts | None]:
    """For a layer's number: the first slots of the cache that each query sees.

    Args:
        config: of the tower.
        cache: that the queries read.
        index: of each query's token in its whole sequence.
    """
    if config.sliding_window is None:
        return lambda layer: None
    starts = window_starts(cache.parts[0], index, config.sliding_window)
    everything = jax.tree.map(jnp.zeros_like, starts)
    return lambda layer: by_kind(config.full_layers, layer, starts, everything)
