"""The float32 oracle of attention over a cache: dequantize, concatenate, softmax.

Every fast path must equal this function to float32 rounding. It is written to be read, head by
head and sequence by sequence as far as `vmap` allows, and shares no arithmetic with the fast path.
"""

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import AttentionOutput
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.cache.kv_cache import LayerCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.settings.score_maps import calibrate

__all__ = ["attend_cache"]


def attend_cache(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionOutput:
    """Same contract as `vkq_jax.attention.post_scaled.attend_cache`."""
    num_queries, num_heads, head_dim = query.shape[1:]
    queries_per_kv_head = num_heads // layer.text.key.shape[1]
    scale = head_dim**-0.5 if logits_scale is None else logits_scale
    if visible_text is None:
        own = jnp.arange(1, num_queries + 1, dtype=jnp.int32)
        visible_text = layer.text.length[:, None] - num_queries + own[None]
    if starts is None:
        everything = jnp.zeros_like(visible_text)
        starts = Starts((everything,) * len(layer.visual), everything)

    def per_query_head(x):  # [B, K, ...] -> [B, N, ...]; what all sequences share is repeated
        x = jnp.broadcast_to(x, (query.shape[0], *x.shape[1:]))
        return jnp.repeat(x.astype(jnp.float32), queries_per_kv_head, axis=1)

    def of_bank(bank):
        key, value = layer.decoded(bank)
        error = _score_error(bank.key)
        error = jnp.zeros(key.shape[:-1], jnp.float32) if error is None else error
        length = jnp.broadcast_to(bank.length, query.shape[:1])
        return (*map(per_query_head, (key, value, error)), length)

    banks = [of_bank(bank) for bank in layer.visual]
    text_key, text_value = map(per_query_head, layer.text.dequantize())

    # One sequence, query and head.
    def attend(query, banks, text_key, text_value, visible, starts, score_map):
        def seen(bank, start, stop):
            slot = jnp.arange(bank.shape[0], dtype=jnp.int32)
            return (start <= slot) & (slot < stop)

        parts, masks, values = [], [], []
        for (key, value, error, length), start in zip(banks, starts.visual, strict=True):
            bias = (query @ query) * scale**2 * error
            parts.append(soft_cap(scale * (key @ query) - bias, logits_soft_cap))
            masks.append(seen(key, start, length))
            values.append(value)
        calibration_skipped = jnp.array(False)
        if score_map is not None:
            parts = [score_map.slope * part + score_map.shift for part in parts]
        elif banks and layer.quant.calibration is not None:
            visual, calibration_skipped = calibrate(
                jnp.concatenate(parts), jnp.concatenate(masks), layer.quant.calibration
            )
            parts = [visual]
        logits = jnp.concatenate([*parts, soft_cap(scale * (text_key @ query), logits_soft_cap)])
        mask = jnp.concatenate([*masks, seen(text_key, starts.text, visible)])
        logits = jnp.where(mask, logits, -jnp.inf)
        logsumexp = jax.nn.logsumexp(logits)
        finite = jnp.where(jnp.isneginf(logsumexp), 0.0, logsumexp)  # -inf - -inf would be NaN
        weights = jnp.where(mask, jnp.exp(logits - finite), 0.0)
        weights = jnp.where(jnp.any(mask), weights, 0.0)
        return weights @ jnp.concatenate([*values, text_value]), logsumexp, calibration_skipped

    over_heads = jax.vmap(attend, in_axes=(0, [(0, 0, 0, None)] * len(banks), 0, 0, None, None, 0))
    over_queries = jax.vmap(over_heads, in_axes=(0, None, None, None, 0, 0, None))
    over_sequences = jax.vmap(over_queries, in_axes=(0, 0, 0, 0, 0, 0, None))
    with jax.default_matmul_precision("highest"):
        output, logsumexp, calibration_skipped = over_sequences(
            query.astype(jnp.float32),
            banks,
            text_key,
            text_value,
            visible_text,
            starts,
            layer.score_map,
        )
    return AttentionOutput(output, logsumexp, calibration_skipped.sum((1, 2), dtype=jnp.int32))


def _score_error(key: QuantizedTensor) -> Float[Array, "B K V"] | None:
    """The amount by which a coded key's score is lowered, per |query|^2 and logits_scale^2."""
    try:
        return key.plain().decoding().score_error
    except NotImplementedError:  # codes that are not affine correct no scores
        return None
