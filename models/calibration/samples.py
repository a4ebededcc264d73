"""Samples for calibration: visual keys and values, and the queries that read them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from models.calibration.observing import observe_answers
from models.inputs.batch import Inputs
from models.model import Model
from models.text.coded_layers import coded_layers, read_layers
from models.text.config import TextConfig
from models.text.key_bias import key_bias_of
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import attend_cache, per_kv_head, scaled_rows, to_kv_heads
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.cache.any_cache import at_layer
from vkq_jax.cache.empty import LayerSizes
from vkq_jax.cache.head_groups import take_bias
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.pytree import frozen_pytree
from vkq_jax.settings.layer_groups import Cells
from vkq_jax.settings.presets import presets
from vkq_jax.sharding.bank_parts import join_banks
from vkq_jax.slots import filled

__all__ = ["CodeSamples", "sample_codes"]


@frozen_pytree
class CodeSamples:
    """Visual tokens, and the moments of the queries that read them.

    Attributes:
        key, value: tokens of each head, less the mean of their prompt's.
        key_mean, value_mean: those means.
        prompt: which of the P prompts a token is from.
        key_weight: sum of p (1 - p) over the queries that read a token with weight p: the effect of
            its key on attention.
        value_weight: sum of p^2, the effect of its value on the output.
        query_moment: sum of w q q^T over queries and the query heads of a KV head, where
            w = sum_t p_t (1 - p_t) over visual tokens: the effect of a key's error on attention.
        query_weight: sum of w.
    """

    key: Float[Array, "L K n H"]
    value: Float[Array, "L K n H"]
    key_mean: Float[Array, "L K P H"]
    value_mean: Float[Array, "L K P H"]
    prompt: Int32[Array, "n"]
    key_weight: Float[Array, "L K n"]
    value_weight: Float[Array, "L K n"]
    query_moment: Float[Array, "L K H H"]
    query_weight: Float[Array, "L K"]

    @property
    def metric(self) -> Float[Array, "L K H H"]:
        """Mean of q q^T, weighted."""
        weight = jnp.where(self.query_weight > 0, self.query_weight, 1.0)
        return self.query_moment / weight[..., None, None]


@partial(jax.jit, static_argnames=("tokens", "steps", "stop_tokens", "implementation"))
def sample_codes(
    model: Model,
    inputs: Inputs,
    key: jax.Array,
    *,
    tokens: int,
    steps: int,
    stop_tokens: tuple[int, ...],
    implementation: str | None = None,
) -> tuple[CodeSamples, ...]:
    """Answers a batch of prompts at full precision and keeps what calibration needs.

    Args:
        model, inputs: the model and the prompts that it answers; every prompt has visual tokens.
        key: PRNG key of the tokens to keep.
        tokens: how many tokens of each sequence to keep, n = B * tokens.
        steps: most tokens of an answer.
        stop_tokens: ids that end one.
        implementation: of attention over the cache, as for `prefill`.

    Returns:
        Samples of each kind of `models.text.coded_layers.coded_layers`.
    """
    text, kinds = model.config.text, coded_layers(model.config.text)
    readers, shape = read_layers(text), inputs.prompt_shape

    def observe(query, cache, layer, starts):
        return at_layer(cache, layer, query, partial(_weights, text, starts))

    def add(totals, seen, active):
        totals = list(totals)
        for name, own in seen.items():
            moment, weight, of_keys, of_values = (
                jnp.where(active.reshape(1, -1, *[1] * (x.ndim - 2)), x, 0.0) for x in own
            )
            new = (moment.sum(1), weight.sum(1), of_keys, of_values)
            kind, rows = readers[name].kind, jnp.asarray(readers[name].rows)
            totals[kind] = jax.tree.map(lambda x, y: x.at[rows].add(y), totals[kind], new)  # noqa: B023
        return tuple(totals)

    totals, cache = observe_answers(
        model,
        inputs,
        quant=presets["none"],
        steps=steps,
        quantize_at="prompt" if model.visual_depends_on_question else "image",
        stop_tokens=stop_tokens,
        observe=observe,
        add=add,
        start=tuple(
            _nothing(kind, len(inputs.mask), shape.cross if text.cross_layers else shape.visual)
            for kind in kinds
        ),
        implementation=implementation,
    )
    parts = cache.parts
    if isinstance(cache, LayeredCache) and cache.cross:
        parts = cache.cross_cache.parts
    bias = key_bias_of(model.module().text)
    return tuple(
        _samples_of(part, take_bias(bias, Cells(kind.layers)), own, key, tokens)
        for kind, part, own in zip(kinds, parts, totals, strict=True)
    )


type Totals = tuple[
    Float[Array, "L K H H"], Float[Array, "L K"], Float[Array, "L B K V"], Float[Array, "L B K V"]
]
"""Moment and weight of queries, weights of keys and of values, see `CodeSamples`."""


def _nothing(kind: LayerSizes, batch: int, visual: int) -> Totals:
    """The sums before any query."""
    heads = (len(kind.layers), kind.num_kv_heads)
    per_token = jnp.zeros((heads[0], batch, heads[1], visual))
    moment = jnp.zeros((*heads, kind.head_dim, kind.head_dim), jnp.float32)
    return moment, jnp.zeros(heads, jnp.float32), per_token, per_token


def _weights(
    text: TextConfig,
    starts: Starts | None,
    part: KVCache,
    layer: Int32[Array, ""] | int,
    query: Float[Array, "B 1 N H"],
) -> tuple[Array, Array, Array, Array]:
    """The share of a step's queries in a layer: `Totals` without L, of each sequence."""
    view, heads = part.layer(layer), part.num_kv_heads
    scale, cap = text.logits_scale, text.attn_logit_softcapping
    attended = attend_cache(query, view, starts=starts, logits_scale=scale, logits_soft_cap=cap)
    rows = scaled_rows(query, heads, scale)
    (bank,) = view.visual
    scores = soft_cap(bank.key.plain().scores(rows), cap)
    first = None if starts is None else starts.visual[0]
    seen = bank.visible(first, bank.length[:, None], scores.shape[-1])
    logsumexp = to_kv_heads(attended.logsumexp[..., None], heads)
    weight = jnp.exp(scores - logsumexp)
    weight = jnp.where(per_kv_head(seen, scores), weight, 0.0)
    spread = weight * (1.0 - weight)
    if cap is not None:  # errors of a score shrink by the cap's slope, squared
        spread = spread * jnp.square(1.0 - jnp.square(scores / cap))
    w = spread.sum(-1)  # [B, K, Q]
    moment = jnp.einsum("bkq,bkqh,bkqg->bkhg", w, rows, rows)
    return moment, w.sum(-1), spread.sum(2), jnp.square(weight).sum(2)


def _samples_of(
    part: KVCache, bias: KeyBias | None, totals: Totals, key: jax.Array, tokens: int
) -> CodeSamples:
    """Samples of layers of one kind, from their cache in full precision and the sums."""
    moment, weight, of_keys, of_values = totals
    (bank,) = join_banks(part).visual
    assert isinstance(bank.key, DenseTensor)
    assert isinstance(bank.value, DenseTensor)
    valid = filled(bank.length, bank.key.values.shape[-2])
    # Drawn with replacement, from each sequence's own tokens.
    draw = jax.random.uniform(key, (len(bank.length), tokens)) * bank.length[:, None]
    index = jnp.minimum(draw.astype(jnp.int32), bank.length[:, None] - 1)

    def centred(x):  # [L, B, K, V, H]
        x = jnp.where(valid[None, :, None, :, None], x.astype(jnp.float32), 0.0)
        mean = x.sum(-2, keepdims=True) / bank.length[None, :, None, None, None]
        return pick(x - mean), mean[..., 0, :].transpose(0, 2, 1, 3)

    def pick(x):  # [L, B, K, V, C] -> [L, K, B * tokens, C]
        x = jnp.take_along_axis(x, index[None, :, None, :, None], axis=-2)
        return x.transpose(0, 2, 1, 3, 4).reshape(*weight.shape, -1, x.shape[-1])

    keys = bank.key.values
    numbers = jnp.arange(len(keys), dtype=jnp.int32)
    if bias is not None:
        keys = jax.lax.map(lambda layer: _without_bias(bias, bank, *layer), (numbers, keys))
    key_tokens, key_mean = centred(keys)
    value_tokens, value_mean = centred(bank.value.values)
    return CodeSamples(
        key=key_tokens,
        value=value_tokens,
        key_mean=key_mean,
        value_mean=value_mean,
        prompt=jnp.repeat(jnp.arange(len(bank.length), dtype=jnp.int32), tokens),
        key_weight=pick(of_keys[..., None])[..., 0],
        value_weight=pick(of_values[..., None])[..., 0],
        query_moment=moment,
        query_weight=weight,
    )


def _without_bias(
    bias: KeyBias, bank: VisualBank, layer: Array, key: Float[Array, "B K V H"]
) -> Float[Array, "B K V H"]:
    """One layer's keys as they are coded."""
    assert bank.position is not None
    bare = bias.of_layer(layer).taken_out(key.transpose(0, 2, 1, 3), bank.position)
    return bare.transpose(0, 2, 1, 3)
