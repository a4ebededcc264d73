"""Attention of the last prompt token over a coded visual bank, all layers at once.

Each layer gets the queries and the text of the full-precision run: only that layer's own coding
differs, and errors of earlier layers do not add up. The layers stand where attention over a cache
has the batch.
"""

import jax.numpy as jnp

from vkq_apps.inspection.capture import Capture
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import attend_cache
from vkq_jax.attention_weights import attention_weights
from vkq_jax.cache import LayerCache, TextBank, code_bank
from vkq_jax.code_tables import CodeTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.pytree import frozen_pytree
from vkq_jax.visibility import Starts

__all__ = ["LastTokenAttention", "layers_as_batch", "over_cache"]


@frozen_pytree
class LastTokenAttention:
    """Attention of one query per layer and head, float32.

    Attributes:
        visual, text: softmax weights; together they sum to 1.
        output: the weighted values.
        calibration_skipped: heads whose scores the guard of score calibration left as they were.
    """

    visual: Float[Array, "L N V"]
    text: Float[Array, "L N S"]
    output: Float[Array, "L N H"]
    calibration_skipped: Int32[Array, "L"]

    @property
    def visual_mass(self) -> Float[Array, "L N"]:
        """Share of the attention that goes to visual tokens."""
        return self.visual.sum(-1)


def layers_as_batch(
    caught: Capture, quant: KVQuantConfig, tables: CodeTables | None = None
) -> LayerCache:
    """The cache that coding with `quant` leaves, its layers in the place of the batch."""
    layers, _, visual, _ = caught.key.shape
    return LayerCache(
        (code_bank(caught.key, caught.value, jnp.ones((layers, visual), bool), quant, tables),),
        TextBank(
            caught.text_key,
            caught.text_value,
            jnp.full(layers, caught.text_key.shape[-2], jnp.int32),
        ),
        quant=quant,
        tables=tables,
    )


def over_cache(
    caught: Capture,
    cache: LayerCache,
    *,
    logits_scale: float,
    logits_soft_cap: float | None = None,
) -> LastTokenAttention:
    """Attention of the query that was caught over `cache` (see `layers_as_batch`), with weights."""
    query = caught.query[:, None]
    starts = Starts((caught.visual_start[:, None],), caught.text_start[:, None])
    attended = attend_cache(
        query, cache, starts=starts, logits_scale=logits_scale, logits_soft_cap=logits_soft_cap
    )
    weights = attention_weights(
        query, cache, starts=starts, logits_scale=logits_scale, logits_soft_cap=logits_soft_cap
    )
    (visual,) = weights.visual
    return LastTokenAttention(
        visual[:, 0], weights.text[:, 0], attended.output[:, 0], attended.calibration_skipped
    )
