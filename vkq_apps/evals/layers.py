"""Errors that coding makes in the scores and outputs of attention, layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp

import pallas_kernels
from models import Model
from models.generation.decode_loop import observed_step
from models.generation.teacher_forcing import Prompted
from models.layers.layer_kinds import in_layer_order
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention import to_kv_heads
from vkq_jax.cache import KVCache, VisualBank
from vkq_jax.code_tables import CodeTables
from vkq_jax.error_measures import relative_squared_error
from vkq_jax.layer_settings import LayerGroups
from vkq_jax.layered import at_layer, map_parts, split_layers
from vkq_jax.soft_cap import soft_cap

__all__ = ["layer_errors"]


@jax.jit
def layer_errors(
    model: Model, exact: Prompted, coded: Prompted, token: Int32[Array, "B"]
) -> dict[str, Float[Array, "B L"]]:
    """Errors of one decode step over the coded cache, each layer by itself.

    The queries are those of the coded run; in each layer they read both caches.

    Args:
        model: weights and configuration.
        exact: the prompts as read in full precision.
        coded: the same with a preset.
        token: the step's input.

    Returns:
        score: squared error of the visual scores over the square of these scores, both taken from
            their means over the tokens, which the softmax does not see.
        output: |coded - exact|^2 / |exact|^2 of attention's output.
    """
    model.config.text.check_one_stack("errors by layer")
    scale, cap = model.config.text.logits_scale, model.config.text.attn_logit_softcapping
    visible = (coded.cache.text_length + 1)[:, None]
    full = exact.cache
    assert isinstance(full, KVCache), "full precision has one setting for all layers"
    groups = coded.cache.quant
    full_parts = split_layers(full, groups).parts if isinstance(groups, LayerGroups) else (full,)

    def observe(query, cache, layer, starts):
        def measure(part: KVCache, place: Array, query: Array) -> tuple[Array, Array]:
            scaled = query.astype(jnp.float32) * scale
            attended = pallas_kernels.attend_layer(
                query,
                part,
                place,
                visible_text=visible,
                starts=starts,
                logits_scale=scale,
                logits_soft_cap=cap,
            )
            view = part.layer(place)
            scores = [_centred_scores(scaled, bank, view.tables, cap) for bank in view.visual]
            return attended.output[:, 0], jnp.concatenate(scores, axis=-1)

        left = iter(full_parts)

        def uncoded(part: KVCache) -> KVCache:
            own = next(left)
            return dataclasses.replace(
                part, visual=own.visual, quant=own.quant, tables=None, key_bias=None
            )

        outputs, scores = zip(
            *(at_layer(one, layer, query, measure) for one in (map_parts(cache, uncoded), cache)),
            strict=True,
        )
        return {
            "score": relative_squared_error(*scores),
            "output": relative_squared_error(*outputs),
        }

    _, _, seen = observed_step(model, token, coded.cache, observe=observe)
    return jax.tree.map(lambda x: x.T, in_layer_order(model.config.text.stacks, seen))


def _centred_scores(
    query: Float[Array, "B 1 N H"],
    bank: VisualBank,
    tables: CodeTables | None,
    cap: float | None,
) -> Float[Array, "B N V"]:
    """Scores [B, N, V] of scaled queries, capped, less their mean over the bank's tokens."""
    keys, _ = bank.dequantize(tables)
    q = to_kv_heads(query, keys.shape[1])
    scores = jnp.einsum("bkmh,bkvh->bkmv", q, keys, precision="highest")
    scores = soft_cap(scores.reshape(scores.shape[0], -1, scores.shape[-1]), cap)
    valid = (jnp.arange(scores.shape[-1]) < bank.length[:, None])[:, None]
    mean = jnp.mean(scores, axis=-1, where=valid, keepdims=True)
    return jnp.where(valid, scores - mean, 0.0)
