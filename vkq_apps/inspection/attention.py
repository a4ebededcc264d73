"""Attention of the last prompt token over a coded cache, layer by layer.

Each layer gets the queries and the text of the full-precision run: only that layer's own coding
differs, and errors of earlier layers do not add up.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vkq_apps.inspection.capture import Capture
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.attention_weights import attention_weights
from vkq_jax.attention.post_scaled import attend_cache
from vkq_jax.cache.any_cache import at_layer
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.pytree import frozen_pytree

__all__ = ["LastTokenAttention", "over_cache"]


@frozen_pytree
class LastTokenAttention:
    """Attention of one query per layer and head, float32.

    Attributes:
        visual, text: softmax weights; together they sum to 1.
        output: the weighted values.
        calibration_skipped: heads whose scores the guard of score calibration left as they were.
    """

    visual: Float[Array, "*L N V"]
    text: Float[Array, "*L N S"]
    output: Float[Array, "*L N H"]
    calibration_skipped: Int32[Array, "*L"]

    @property
    def visual_mass(self) -> Float[Array, "*L N"]:
        """Share of the attention that goes to visual tokens."""
        return self.visual.sum(-1)


def over_cache(
    caught: Capture,
    cache: AnyCache,
    *,
    logits_scale: float,
    logits_soft_cap: float | None = None,
) -> LastTokenAttention:
    """Attention of the query that was caught over a cache of all layers, with weights."""
    options: dict[str, Any] = {"logits_scale": logits_scale, "logits_soft_cap": logits_soft_cap}

    def of_layer(number: Array) -> LastTokenAttention:
        starts = Starts(
            (caught.visual_start[number][None, None],), caught.text_start[number][None, None]
        )

        def of_heads(part: KVCache, place: Any, query: Array) -> dict[str, Array]:
            view = part.layer(place)
            attended = attend_cache(query, view, starts=starts, **options)
            weights = attention_weights(query, view, starts=starts, **options)
            (visual,) = weights.visual
            skipped = (
                jnp.zeros(query.shape[2], jnp.int32).at[0].set(attended.calibration_skipped[0])
            )
            return {
                "visual": visual[:, 0],
                "text": weights.text[:, 0],
                "output": attended.output[:, 0],
                "skipped": skipped[None],
            }

        found = at_layer(cache, number, caught.query[number][None, None], of_heads)
        skipped = found["skipped"].sum(dtype=jnp.int32)
        return LastTokenAttention(found["visual"][0], found["text"][0], found["output"][0], skipped)

    return jax.lax.map(of_layer, jnp.arange(len(caught.query), dtype=jnp.int32))
