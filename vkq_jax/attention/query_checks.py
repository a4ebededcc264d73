"""Checks of what attention over a cache is asked."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array
from vkq_jax.attention.soft_cap import is_finite_number
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.messages import show

__all__ = ["check_attention_options", "check_query"]


def check_query(query: Array | jax.ShapeDtypeStruct, cache: LayerCache | KVCache) -> None:
    """Raises ValueError unless queries [B, T, N, H] of floats, and a score map, fit a cache."""
    batch, num_kv_heads, _, head_dim = cache.text.key.shape[-4:]
    fits = len(query.shape) == 4 and (query.shape[0], query.shape[3]) == (batch, head_dim)
    if not fits or query.shape[2] % num_kv_heads or not query.shape[2]:
        raise ValueError(
            f"query must be [B={batch}, T, N=multiple of {num_kv_heads}, H={head_dim}] for this "
            f"cache, got {list(query.shape)}"
        )
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f"expected a float query, got {query.dtype}")
    if cache.score_map is not None:
        expected = (*cache.text.key.shape[:-4], query.shape[2])
        if cache.score_map.slope.shape != expected:
            raise ValueError(
                f"score_map must be {list(expected)} (layers of the cache, query heads), got "
                f"{list(cache.score_map.slope.shape)}"
            )
        cache.score_map.check_codes(cache.quant)


def check_attention_options(
    query: Array,
    cache: LayerCache | KVCache,
    visible_text: Array | None,
    starts: Starts | None,
    logits_scale: float | None,
) -> None:
    """Raises ValueError unless what else attention takes has a value for each query."""
    per_query = {} if visible_text is None else {"visible_text": visible_text}
    if starts is not None:
        if len(starts.visual) != len(cache.visual):
            raise ValueError(
                f"starts.visual must have one entry for each of {len(cache.visual)} visual banks, "
                f"got {len(starts.visual)}"
            )
        per_query |= {f"starts.visual[{i}]": start for i, start in enumerate(starts.visual)}
        per_query["starts.text"] = starts.text
    for name, x in per_query.items():
        if x.shape != query.shape[:2]:
            raise ValueError(
                f"{name} must be [B, T] = {list(query.shape[:2])}, as the query, got "
                f"{list(x.shape)}"
            )
    if logits_scale is not None and not is_finite_number(logits_scale):
        raise ValueError(
            "logits_scale must be a finite number, static under jit, or None, got "
            f"{show(logits_scale)}"
        )
