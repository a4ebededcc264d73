"""Attention that the last text of a prompt pays to its tokens: a forecast of what is read later."""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.post_scaled import per_kv_head, scaled_rows
from vkq_jax.attention.soft_cap import soft_cap

__all__ = ["LAST_QUERIES", "attention_of_last_queries"]

LAST_QUERIES = 32


def attention_of_last_queries(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    mask: Bool[Array, "#B T T"],
    asking: Bool[Array, "B T"],
    index: Int32[Array, "B V"],
    *,
    logits_scale: float | None,
    logits_soft_cap: float | None,
) -> Float[Array, "B K V"]:
    """The sum of p (1 - p) over the last queries of each sequence and the query heads of a KV head.

    An error of a score moves its weight p by p (1 - p) times as much. Text asks: where a prompt
    ends with a picture, whose tokens say little about what a question will read, the sum is 0.

    Args:
        query, key: with RoPE, unscaled.
        mask: which keys each query sees.
        asking: tokens whose queries count: text, no padding.
        index: the tokens asked about.
        logits_scale: H ** -0.5 where it is None.
        logits_soft_cap: see `soft_cap`.
    """
    tokens, num_kv_heads = key.shape[1:3]
    last = jnp.argsort(jnp.where(asking, jnp.arange(tokens), -1), axis=-1)[:, -LAST_QUERIES:]
    rows = jnp.take_along_axis(query, last[:, :, None, None], axis=1)
    mask = jnp.broadcast_to(mask, (len(last), *mask.shape[1:]))
    seen = jnp.take_along_axis(mask, last[:, :, None], axis=1)
    seen = seen & jnp.take_along_axis(asking, last, axis=1)[:, :, None]
    q = scaled_rows(rows, num_kv_heads, logits_scale)
    logits = jnp.einsum(  # a forecast: products in the dtype of the keys do
        "bkqh,bskh->bkqs", q.astype(key.dtype), key, preferred_element_type=jnp.float32
    )
    weights = _softmax(soft_cap(logits, logits_soft_cap), per_kv_head(seen[:, None], logits))
    paid = jax.lax.stop_gradient((weights * (1 - weights)).sum(2))
    return jnp.take_along_axis(paid, index[:, None], axis=-1)


def _softmax(
    logits: Float[Array, "*lead n"], mask: Bool[Array, "*lead n"]
) -> Float[Array, "*lead n"]:
    """`masked_softmax` without its log-sum-exp, in the form that XLA makes one kernel of."""
    lowest = jnp.finfo(logits.dtype).min
    logits = jnp.where(mask, logits, lowest)
    highest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    return jnp.where(mask, weights / weights.sum(-1, keepdims=True), 0.0)
