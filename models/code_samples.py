"""What calibration looks at: visual keys and values, and the queries that read them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from models.inputs import Inputs
from models.model import Model
from models.observing import observe_answers
from vkq_jax import post_scaling
from vkq_jax.array_types import Array, Float
from vkq_jax.attention import attend_cache, per_kv_head, scaled_rows, to_kv_heads
from vkq_jax.dense import DenseTensor
from vkq_jax.presets import presets
from vkq_jax.pytree import frozen_pytree
from vkq_jax.slots import filled

__all__ = ["CodeSamples", "sample_codes"]


@frozen_pytree
class CodeSamples:
    """Centred visual tokens, and the moments of the queries that read them.

    Attributes:
        key, value: tokens of each head, less the mean of their image.
        query_moment: sum of w q q^T over queries and the query heads of a KV head, where
            w = sum_t p_t (1 - p_t) over visual tokens: what an error of a key does to attention.
        query_weight: sum of w.
    """

    key: Float[Array, "L K n H"]
    value: Float[Array, "L K n H"]
    query_moment: Float[Array, "L K H H"]
    query_weight: Float[Array, "L K"]

    @property
    def metric(self) -> Float[Array, "L K H H"]:
        """Mean of q q^T, weighted."""
        weight = jnp.where(self.query_weight > 0, self.query_weight, 1.0)
        return self.query_moment / weight[..., None, None]


@partial(jax.jit, static_argnames=("tokens", "steps", "stop_tokens"))
def sample_codes(
    model: Model,
    inputs: Inputs,
    key: jax.Array,
    *,
    tokens: int,
    steps: int,
    stop_tokens: tuple[int, ...],
) -> CodeSamples:
    """Answers a batch of prompts at full precision and keeps what calibration needs.

    Args:
        model, inputs: whom to ask what; every prompt has visual tokens.
        key: PRNG key of the tokens to keep.
        tokens: how many tokens of each sequence to keep, n = B * tokens.
        steps: most tokens of an answer. stop_tokens: ids that end one.
    """
    text = model.config.text

    def observe(query, cache, layer, starts):
        view = cache.layer(layer)
        scale = text.logits_scale
        attended = attend_cache(query, view, starts=starts, logits_scale=scale)
        rows = scaled_rows(query, text.num_kv_heads, scale)
        (bank,) = view.visual
        scores = post_scaling.scores(rows, bank.key)
        first = None if starts is None else starts.visual[0]
        seen = bank.visible(first, bank.length[:, None], scores.shape[-1])
        logsumexp = to_kv_heads(attended.logsumexp[..., None], text.num_kv_heads)
        weight = jnp.exp(scores - logsumexp)
        weight = jnp.where(per_kv_head(seen, scores), weight, 0.0)
        w = (weight * (1.0 - weight)).sum(-1)  # [B, K, Q]
        moment = jnp.einsum("bkq,bkqh,bkqg->bkhg", w, rows, rows)
        return moment, w.sum(-1)

    def add(total, seen, active):
        moment, weight = (
            jnp.where(active.reshape(1, -1, *[1] * (x.ndim - 2)), x, 0.0).sum(1) for x in seen
        )
        return total[0] + moment, total[1] + weight

    heads = (text.num_layers, text.num_kv_heads)
    (moment, weight), cache = observe_answers(
        model,
        inputs,
        quant=presets["none"],
        steps=steps,
        quantize_at="image",
        stop_tokens=stop_tokens,
        observe=observe,
        add=add,
        start=(
            jnp.zeros((*heads, text.head_dim, text.head_dim), jnp.float32),
            jnp.zeros(heads, jnp.float32),
        ),
    )
    (bank,) = cache.visual
    assert isinstance(bank.key, DenseTensor)
    assert isinstance(bank.value, DenseTensor)
    valid = filled(bank.length, bank.key.values.shape[-2])
    # Drawn with replacement, from each sequence's own tokens.
    draw = jax.random.uniform(key, (len(bank.length), tokens)) * bank.length[:, None]
    index = jnp.minimum(draw.astype(jnp.int32), bank.length[:, None] - 1)

    def pick(x):  # [L, B, K, V, H] -> [L, K, B * tokens, H]
        x = jnp.where(valid[None, :, None, :, None], x.astype(jnp.float32), 0.0)
        mean = x.sum(-2, keepdims=True) / bank.length[None, :, None, None, None]
        x = jnp.take_along_axis(x - mean, index[None, :, None, :, None], axis=-2)
        return x.transpose(0, 2, 1, 3, 4).reshape(*heads, -1, text.head_dim)

    return CodeSamples(pick(bank.key.values), pick(bank.value.values), moment, weight)
