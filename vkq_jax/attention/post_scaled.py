"""Attention of a few queries over a layer's cache, post-scaled, in plain XLA.

One softmax runs over all visual banks and the text bank. The result carries its log-sum-exp, so
that it can be merged with attention over tokens that are not in the cache yet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.bits.exact_einsum import exact_einsum
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.kv_cache import LayerCache
from vkq_jax.cache.sharing import is_shared, join_sequences, split_sequences
from vkq_jax.cache.visibility import Starts, causal_text
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.pytree import frozen_pytree
from vkq_jax.settings.score_maps import ScoreMap, calibrate, visible_range
from vkq_jax.slots import visible

__all__ = [
    "AttentionOutput",
    "attend_cache",
    "attend_dense",
    "bias_scores",
    "from_kv_heads",
    "joint_scores",
    "map_of_rows",
    "merge",
    "per_kv_head",
    "scaled_rows",
    "score_range",
    "to_kv_heads",
]


@frozen_pytree
class AttentionOutput:
    """Attention over one set of positions, mergeable with attention over others.

    Attributes:
        output: softmax-weighted values, float32; 0 where a query sees nothing.
        logsumexp: natural logarithm of the softmax denominator; -inf where a query sees nothing.
        calibration_skipped: rows of visual scores that the guard left uncalibrated.
    """

    output: Float[Array, "B T N H"]
    logsumexp: Float[Array, "B T N"]
    calibration_skipped: Int32[Array, "B"]

    @classmethod
    def from_kv_heads(
        cls,
        output: Float[Array, "B K Q H"],
        logsumexp: Float[Array, "B K Q"],
        num_queries: int,
        calibration_skipped: Int32[Array, "B"] | None = None,
    ) -> AttentionOutput:
        """From results grouped by KV head, as `to_kv_heads` groups queries.

        Args:
            output, logsumexp, calibration_skipped: as the attributes, Q = N / K * T; None counts 0.
            num_queries: T, query positions.
        """
        if calibration_skipped is None:
            calibration_skipped = jnp.zeros(output.shape[0], jnp.int32)
        logsumexp = from_kv_heads(logsumexp[..., None], num_queries)[..., 0]
        return cls(from_kv_heads(output, num_queries), logsumexp, calibration_skipped)


def attend_cache(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    *,
    visible_text: Int32[Array, "B T"] | None = None,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionOutput:
    """Attention over the visible visual and text tokens of one layer.

    Args:
        query: with RoPE, not yet scaled; N = K * queries_per_kv_head, grouped by KV head.
        layer: the cache, the queries' own keys and values already in it.
        visible_text: how many entries of the text bank each query sees; by default the queries are
            its last T entries and see causally.
        starts: where a sliding window lets each query begin, see `window_starts`; by default visual
            banks are seen whole, and text from its first entry on.
        logits_scale: H ** -0.5 by default.
        logits_soft_cap: see `soft_cap`; of visual and text scores, before score calibration.
    """
    num_queries = query.shape[1]
    parts, masks, calibration_skipped = joint_scores(
        query, layer, visible_text, starts, logits_scale, logits_soft_cap
    )
    weights, logsumexp = masked_softmax(jnp.concatenate(parts, -1), jnp.concatenate(masks, -1))
    *visual, text = jnp.split(weights, _boundaries(parts), axis=-1)
    output = layer.text.weighted_sum(text)
    value_tables = None if layer.tables is None else layer.tables.value
    for bank, part in zip(layer.visual, visual, strict=True):
        value = bank.value.plain()
        if is_shared(bank, query.shape[0]):
            summed = value.weighted_sum(join_sequences(part), value_tables)
            summed = split_sequences(summed, query.shape[0])
        else:
            summed = value.weighted_sum(part, value_tables)
        output = output + summed
    return AttentionOutput.from_kv_heads(output, logsumexp, num_queries, calibration_skipped)


def joint_scores(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    visible_text: Int32[Array, "B T"] | None,
    starts: Starts | None,
    logits_scale: float | None,
    logits_soft_cap: float | None,
) -> tuple[list, list, Int32[Array, "B"] | None]:
    """Scores [B, K, Q, S] of each visual bank and, last, of the text; which ones are visible.

    Both in the order of the slots, capped and calibrated; and how many rows of visual scores the
    guard left uncalibrated, None where nothing is calibrated. Arguments: see `attend_cache`.
    """
    num_queries, num_kv_heads = query.shape[1], layer.text.key.shape[1]
    q = scaled_rows(query, num_kv_heads, logits_scale)
    parts, masks = _visual_scores(q, layer, starts, logits_soft_cap)
    calibration_skipped = None
    if layer.score_map is not None and parts:
        static = map_of_rows(layer.score_map, query.shape, num_kv_heads)
        parts = [static.apply(part) for part in parts]
    elif layer.quant.calibration is not None and parts:
        joint, hit = calibrate(
            jnp.concatenate(parts, -1), jnp.concatenate(masks, -1), layer.quant.calibration
        )
        parts = jnp.split(joint, _boundaries(parts), axis=-1)
        calibration_skipped = hit.sum((1, 2), dtype=jnp.int32)

    text = layer.text
    parts.append(soft_cap(text.scores(q), logits_soft_cap))
    if visible_text is None:
        visible_text = causal_text(layer.text.length, num_queries)
    text_start = None if starts is None else starts.text
    seen = visible(text_start, visible_text, text.key.shape[-2])[:, None]
    masks.append(per_kv_head(seen, parts[-1]))
    return parts, masks, calibration_skipped


def score_range(
    query: Float[Array, "B T N H"],
    layer: LayerCache,
    *,
    starts: Starts | None = None,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> tuple[Float[Array, "B T N"], Float[Array, "B T N"]]:
    """Each query's lowest and highest visual score (gamma, delta) before any calibration, in nats.

    A static `ScoreMap` is made from these ranges (see `score_map`). The lowest is inf and the
    highest -inf where a query sees no visual tokens. Arguments: see `attend_cache`.
    """
    q = scaled_rows(query, layer.text.key.shape[1], logits_scale)
    lowest = jnp.full(q.shape[:-1], jnp.inf, jnp.float32)
    highest = -lowest
    for scores, mask in zip(*_visual_scores(q, layer, starts, logits_soft_cap), strict=True):
        gamma, delta = visible_range(scores, mask)
        lowest, highest = jnp.minimum(lowest, gamma), jnp.maximum(highest, delta)

    def per_query(x):  # [B, K, Q] -> [B, T, N]
        return from_kv_heads(x[..., None], query.shape[1])[..., 0]

    return per_query(lowest), per_query(highest)


def map_of_rows(static: ScoreMap, query: tuple[int, ...], num_kv_heads: int) -> ScoreMap:
    """A layer's map [N], or that of each query [B, T, N], as one of rows, see `to_kv_heads`.

    Args:
        static: of a layer.
        query: shape of the queries, [B, T, N, H].
        num_kv_heads: K.
    """

    def rows(x):
        return to_kv_heads(jnp.broadcast_to(x[..., None], (*query[:-1], 1)), num_kv_heads)[..., 0]

    return ScoreMap(rows(static.slope), rows(static.shift))


def attend_dense(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    *,
    logits_scale: float | None = None,
    logits_soft_cap: float | None = None,
) -> AttentionOutput:
    """Attention over full-precision keys and values that are not in the cache (yet)."""
    num_queries = query.shape[1]
    q = scaled_rows(query, key.shape[2], logits_scale)
    logits = exact_einsum("bkqh,bskh->bkqs", q, key.astype(jnp.float32))
    logits = soft_cap(logits, logits_soft_cap)
    weights, logsumexp = masked_softmax(logits, per_kv_head(mask[:, None], logits))
    output = exact_einsum("bkqs,bskh->bkqh", weights, value.astype(jnp.float32))
    return AttentionOutput.from_kv_heads(output, logsumexp, num_queries)


def merge(first: AttentionOutput, second: AttentionOutput) -> AttentionOutput:
    """One softmax over the positions of both, which must be disjoint."""
    logsumexp = jnp.logaddexp(first.logsumexp, second.logsumexp)
    seen = jnp.isfinite(logsumexp)

    def share(part):
        weight = jnp.exp(part.logsumexp - jnp.where(seen, logsumexp, 0.0))
        return weight[..., None] * part.output

    return AttentionOutput(
        share(first) + share(second),
        logsumexp,
        first.calibration_skipped + second.calibration_skipped,
    )


def masked_softmax(
    logits: Float[Array, "*lead n"], mask: Bool[Array, "*lead n"]
) -> tuple[Float[Array, "*lead n"], Float[Array, "*lead"]]:
    """Softmax over the unmasked positions and its log-sum-exp; all zeros where none is left."""
    highest = jnp.max(logits, axis=-1, where=mask, initial=-jnp.inf)
    # A subtracted constant needs no gradient; 0 stands in where nothing is visible.
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))
    shifted = jnp.where(mask, logits - highest[..., None], -jnp.inf)
    weights = jnp.exp(shifted)
    total = weights.sum(-1)
    some = total != 0.0  # NaN scores stay NaN, also in the log-sum-exp
    safe = jnp.where(some, total, 1.0)
    logsumexp = jnp.where(some, highest + jnp.log(safe), -jnp.inf)
    return weights / safe[..., None], logsumexp


def to_kv_heads(x: Float[Array, "B T N C"], num_kv_heads: int) -> Float[Array, "B K Q C"]:
    """Queries (or what belongs to them) grouped by the KV head they read: Q = T * N / K."""
    batch, num_queries, num_heads, size = x.shape
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key/value heads")
    x = x.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, size)
    return x.transpose(0, 2, 1, 3, 4).reshape(batch, num_kv_heads, -1, size)


def from_kv_heads(x: Float[Array, "B K Q C"], num_queries: int) -> Float[Array, "B T N C"]:
    """The inverse of `to_kv_heads`."""
    batch, num_kv_heads, _, size = x.shape
    x = x.reshape(batch, num_kv_heads, num_queries, -1, size)
    return x.transpose(0, 2, 1, 3, 4).reshape(batch, num_queries, -1, size)


def scaled_rows(
    query: Float[Array, "B T N H"], num_kv_heads: int, logits_scale: float | None
) -> Float[Array, "B K Q H"]:
    """Queries in float32, times `logits_scale`, grouped by KV head."""
    scale = query.shape[-1] ** -0.5 if logits_scale is None else logits_scale
    return to_kv_heads(query.astype(jnp.float32) * scale, num_kv_heads)


def _visual_scores(
    q: Float[Array, "B K Q H"],
    layer: LayerCache,
    starts: Starts | None,
    logits_soft_cap: float | None,
) -> tuple[list, list]:
    """Scores [B, K, Q, V] of each visual bank, capped, and which of them are visible."""
    tables = None if layer.tables is None else layer.tables.key
    batch, parts, masks = q.shape[0], [], []
    for number, bank in enumerate(layer.visual):
        shared = is_shared(bank, batch)
        rows = join_sequences(q) if shared else q
        part = bank.key.plain().scores(rows, tables)
        if layer.key_bias is not None:
            part = part + bias_scores(rows, bank, layer.key_bias)
        start = None if starts is None else starts.visual[number]
        if shared and start is not None:
            start = start.reshape(1, -1)
        seen = bank.visible(start, bank.length[:, None], part.shape[-1])
        if shared:
            part = split_sequences(part, batch)
            seen = seen if start is None else split_sequences(seen, batch)
        parts.append(soft_cap(part, logits_soft_cap))
        masks.append(per_kv_head(seen, parts[-1]))
    return parts, masks


def bias_scores(
    rows: Float[Array, "B K Q H"], bank: VisualBank, bias: KeyBias
) -> Float[Array, "B K Q S"]:
    """The share of a key bias in the scores of the slots of one layer's bank, float32.

    Raises:
        ValueError: the bank does not know the positions of its tokens.
    """
    if bank.position is None:
        raise ValueError("a cache with a key bias needs the RoPE positions of its visual tokens")
    if bias.waves is not None:
        return bias.looked_up(rows, bank.tokens_in_slots(bias.entries(bank.position)))
    return bank.in_slots(bias.scores(rows, bank.position))


def per_kv_head(
    mask: Bool[Array, "b k T S"], logits: Float[Array, "B K Q S"]
) -> Bool[Array, "B K Q S"]:
    """The slots that each query sees, for all query heads of each KV head; b, k and T may be 1."""
    per_query = jnp.repeat(mask, logits.shape[2] // mask.shape[2], axis=2)
    return jnp.broadcast_to(per_query, logits.shape)


def _boundaries(parts):
    ends = [sum(part.shape[-1] for part in parts[: i + 1]) for i in range(len(parts))]
    return ends[:-1]
