"""Where attention over a cache goes: the weight and the score of each token."""

from __future__ import annotations

import jax.numpy as jnp

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import from_kv_heads, joint_scores, masked_softmax
from vkq_jax.attention.query_checks import check_attention_options, check_query
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.pytree import frozen_pytree
from vkq_jax.slots import filled

__all__ = ["AttentionWeights", "attention_weights", "token_numbers"]


@frozen_pytree
class AttentionWeights:
    """Attention of T queries over one layer, float32, tokens in the order in which they came.

    Attributes:
        visual: softmax weights of each visual bank's tokens; 0 for padding and what is not seen.
        text: those of the text bank. A query's weights sum to 1 over all banks, to 0 where it sees
            nothing.
        visual_scores, text_scores: the scores that the softmax is taken of, in nats: scaled,
            capped and calibrated; -inf for padding and what is not seen.
    """

    visual: tuple[Float[Array, "B T N _"], ...]
    text: Float[Array, "B T N S"]
    visual_scores: tuple[Float[Array, "B T N _"], ...]
    text_scores: Float[Array, "B T N S"]

    @property
    def visual_mass(self) -> Float[Array, "B T N"]:
        """Share of the attention that goes to visual tokens."""
        return sum((part.sum(-1) for part in self.visual), jnp.zeros(self.text.shape[:-1]))

    @property
    def joined(self) -> Float[Array, "B T N P"]:
        """Weights of all banks, visual ones first, see `token_numbers`."""
        return jnp.concatenate([*self.visual, self.text], axis=-1)


@checked
def attention_weights(
    query: Float[Array, "B T N H"],
    cache_layer: LayerCache,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionWeights:
    """The weights with which attention sums up a layer's values, from the coded keys.

    In plain XLA, on any device, under jit and vmap, with gradients for queries and text. It holds a
    weight for every query and token, which attention itself need not.

    Args:
        query: with RoPE, not scaled, N = K * queries_per_kv_head, as for `decode_attention`.
        cache_layer: `KVCache.layer(i)`, the queries' own keys and values already in it.
        visible_text: text entries that each query sees; by default the queries are the last T
            entries and see causally.
        starts: of a sliding window, from `window_starts`.
        logits_scale: H ** -0.5 by default.
        logits_soft_cap: of all scores, see `soft_cap`.

    Raises:
        ValueError: as `decode_attention`.
    """
    check_query(query, cache_layer)
    check_attention_options(query, cache_layer, visible_text, starts, logits_scale)
    parts, masks, _ = joint_scores(
        query, cache_layer, visible_text, starts, logits_scale, logits_soft_cap
    )
    joint, mask = jnp.concatenate(parts, -1), jnp.concatenate(masks, -1)
    weights, _ = masked_softmax(joint, mask)

    def split(x: Float[Array, "B K Q P"], absent: float) -> list[Array]:
        ends = [sum(part.shape[-1] for part in parts[: i + 1]) for i in range(len(parts) - 1)]
        *visual, text = jnp.split(x, ends, axis=-1)
        banks = zip(cache_layer.visual, visual, strict=True)
        ordered = [bank.in_positions(part, absent) for bank, part in banks]
        return [from_kv_heads(part, query.shape[1]) for part in (*ordered, text)]

    *visual, text = split(weights, 0.0)
    *visual_scores, text_scores = split(jnp.where(mask, joint, -jnp.inf), -jnp.inf)
    return AttentionWeights(tuple(visual), text, tuple(visual_scores), text_scores)


@checked
def token_numbers(cache: AnyCache) -> Int32[Array, "B P"]:
    """Which token of its sequence each place of `AttentionWeights.joined` is; -1 for free ones.

    Args:
        cache: made by `empty_cache(..., keep_indices=True)`.

    Raises:
        ValueError: the cache does not keep the numbers of its tokens.
    """
    part: KVCache = cache.parts[0]
    batch = part.position.shape[0]
    numbers = []
    for bank in (*part.visual, part.text):
        if bank.index is None:
            raise ValueError(
                "token_numbers needs a cache that keeps the numbers of its tokens: "
                "empty_cache(..., keep_indices=True)"
            )
        own = jnp.where(filled(bank.length, bank.index.shape[-1]), bank.index, -1)
        numbers.append(jnp.broadcast_to(own, (batch, own.shape[-1])))
    return jnp.concatenate(numbers, axis=-1)
