"""Errors that coding makes in the scores and outputs of attention, layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp

import pallas_kernels
from models import Model
from models.generation.decode_step import observed_step
from models.generation.teacher_forcing import Prompted
from models.layers.layer_kinds import in_layer_order
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.post_scaled import to_kv_heads
from vkq_jax.attention.soft_cap import soft_cap
from vkq_jax.cache.any_cache import at_layer, cells_of, map_groups
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import AnyCache, split_layers
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.codes.error_measures import relative_squared_error
from vkq_jax.settings.layer_groups import Cells, LayerGroups
from vkq_jax.slots import filled

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
        Both are 0 in layers that read no visual tokens.
    """
    text = model.config.text
    scale, cap = text.logits_scale, text.attn_logit_softcapping
    # Cross-attention layers hold no text.
    visible = (coded.cache.text_length + 1)[:, None] * (not text.cross_layers)
    full_parts = _in_groups_of(coded.cache, exact.cache)

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
            scores = [_centred_scores(scaled, view, bank, cap) for bank in view.visual]
            return attended.output[:, 0], jnp.concatenate(scores, axis=-1)

        def uncoded(part: KVCache, cells: Cells) -> KVCache:
            own = full_parts[cells]
            return dataclasses.replace(
                part, visual=own.visual, quant=own.quant, tables=None, key_bias=None
            )

        outputs, scores = zip(
            *(at_layer(one, layer, query, measure) for one in (map_groups(cache, uncoded), cache)),
            strict=True,
        )
        return {
            "score": relative_squared_error(*scores),
            "output": relative_squared_error(*outputs),
        }

    _, _, seen = observed_step(model, token, coded.cache, observe=observe)
    numbers = jnp.asarray(sorted(n for name in seen for n in text.stacks[name]))
    nothing = jnp.zeros((len(token), text.num_hidden_layers))
    found = in_layer_order(text.stacks, seen)
    return jax.tree.map(lambda x: nothing.at[:, numbers].set(x.T), found)


def _in_groups_of(coded: AnyCache, exact: AnyCache) -> dict[Cells, KVCache]:
    """A cache of one setting in the groups of layers and heads of another one."""
    found: dict[Cells, KVCache] = {}
    for part, kind in zip(exact.parts, cells_of(exact), strict=True):
        own = [cells for cells in cells_of(coded) if set(cells.layers) <= set(kind.layers)]
        groups = tuple((cells.within(kind.layers), part.quant) for cells in own)
        split = split_layers(part, LayerGroups(groups)).parts
        found |= dict(zip(own, split, strict=True))
    return found


def _centred_scores(
    query: Float[Array, "B 1 N H"],
    layer: LayerCache,
    bank: VisualBank,
    cap: float | None,
) -> Float[Array, "B N V"]:
    """Scores [B, N, V] of scaled queries, capped, less their mean over the bank's tokens."""
    keys, _ = layer.decoded(bank)
    q = to_kv_heads(query, keys.shape[1])
    scores = jnp.einsum("bkmh,bkvh->bkmv", q, keys, precision="highest")
    scores = soft_cap(scores.reshape(scores.shape[0], -1, scores.shape[-1]), cap)
    valid = filled(bank.length, scores.shape[-1])[:, None]
    mean = jnp.mean(scores, axis=-1, where=valid, keepdims=True)
    return jnp.where(valid, scores - mean, 0.0)
