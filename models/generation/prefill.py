"""Prefill: a prompt through the model, each layer's visual keys and values coded on the way.

Prompt positions attend to each other in full precision. A layer's visual keys and values are coded
inside the layer loop, so that no more than one layer's full-precision visual cache ever exists.
With a cache from earlier turns the prompt also attends to that, coded as it is.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

import pallas_kernels
from models.inputs.batch import Inputs
from models.layers.attention import dense_attention
from models.model import Model
from models.text.key_bias import has_key_bias, key_bias_for
from models.text.masks import cache_starts, prompt_masks
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.attention import attend_dense, merge
from vkq_jax.cache import KVCache, VisualBank
from vkq_jax.cache_updates import grow
from vkq_jax.calibration import ScoreMap
from vkq_jax.code_tables import CodeTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.pytree import take_layer
from vkq_jax.visual import left_pack

__all__ = ["new_cache", "prefill", "run_prompt"]


@partial(jax.jit, static_argnames=("quant", "cache_length", "implementation"))
def prefill(
    model: Model,
    inputs: Inputs,
    cache: KVCache | None = None,
    *,
    quant: KVQuantConfig,
    cache_length: int,
    implementation: str | None = None,
    score_map: ScoreMap | None = None,
    tables: CodeTables | None = None,
) -> tuple[Float[Array, "B vocab"], KVCache]:
    """Runs a prompt, behind what `cache` holds if one is given.

    Args:
        model: weights and configuration.
        inputs: prompt tokens and images.
        cache: that of earlier turns, made with the same `quant`; None starts a conversation.
        quant: how the visual tokens are coded.
        cache_length: text tokens a sequence of the new cache can hold; those of this prompt must
            fit behind those of `cache`, as must the ones that will be generated.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.
        score_map: static score calibration of the new cache; that of `cache` by default.
        tables: offline tables of the codes; those of `cache` by default.

    Returns:
        Logits of the token after each sequence's last one, float32, and the new cache.
    """
    hidden, new = run_prompt(
        model,
        inputs,
        cache,
        quant=quant,
        cache_length=cache_length,
        implementation=implementation,
        score_map=score_map,
        tables=tables,
    )
    return model.module().text.logits(_last(hidden, inputs.mask)), new


def run_prompt(
    model: Model,
    inputs: Inputs,
    cache: KVCache | None = None,
    *,
    quant: KVQuantConfig,
    cache_length: int,
    implementation: str | None = None,
    score_map: ScoreMap | None = None,
    tables: CodeTables | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """`prefill`, to be traced: the normed hidden state of every token, and the new cache."""
    module = model.module()
    past = cache
    if cache is None:
        cache = new_cache(model, inputs.mask.shape[0], quant=quant, cache_length=cache_length)
    elif cache.quant != quant:
        raise ValueError(f"the cache was made with {cache.quant}, not with {quant}")
    else:
        cache = grow(cache, cache_length)
    if score_map is not None:
        cache = dataclasses.replace(cache, score_map=score_map)
    if tables is not None:
        cache = dataclasses.replace(cache, tables=tables)
    text_config = model.config.text
    scale, cap = text_config.logits_scale, text_config.attn_logit_softcapping
    is_visual = inputs.visual_mask & inputs.mask
    is_text = inputs.mask & ~is_visual
    index, taken = left_pack(is_visual, inputs.prompt_shape.visual)
    axes = (1,) * (inputs.positions.ndim - 1)
    positions = inputs.positions + cache.position.reshape(-1, *axes)
    order = inputs.index + cache.num_tokens[:, None]
    mask_of = prompt_masks(text_config, inputs)
    starts_of = cache_starts(text_config, cache, order)
    # Attention's kernel covers more codes than the one that codes: asked for, it asks for no other.
    coding = None if implementation == "mosaic_gpu" else implementation
    past_text = jnp.broadcast_to(cache.text.length[:, None], inputs.mask.shape)

    def attend(layer, query, key, value, text):
        if past is not None:
            earlier = pallas_kernels.attend_layer(
                query,
                dataclasses.replace(cache, text=text),
                layer,
                implementation=implementation,
                visible_text=past_text,
                starts=starts_of(layer),
                logits_scale=scale,
                logits_soft_cap=cap,
            )
            fresh = attend_dense(
                query, key, value, mask_of(layer), logits_scale=scale, logits_soft_cap=cap
            )
            attended = merge(earlier, fresh)
            output, skipped = attended.output.astype(query.dtype), attended.calibration_skipped
        else:
            output = dense_attention(
                query, key, value, mask_of(layer), logits_scale=scale, logits_soft_cap=cap
            )
            skipped = jnp.zeros_like(cache.calibration_skipped)
        bank = None
        if inputs.prompt_shape.visual:
            coded_key = key
            if cache.key_bias is not None:
                coded_key = cache.key_bias.of_layer(layer).taken_out(key, positions)
            bank = pallas_kernels.quantize_bank(
                coded_key,
                value,
                index,
                taken,
                cache.quant,
                tables=take_layer(cache.tables, layer),
                implementation=coding,
            )
            # Codes first, then the next layer: or XLA may put off coding and keep the values.
            coded = (bank.key, bank.value, bank.class_map)
            output, bank = jax.lax.optimization_barrier((output, coded))
        return output, text.write(layer, key, value, is_text), (bank, skipped)

    embedded = module.embed_inputs(inputs)
    hidden, text, (bank, skipped) = module.text(
        embedded.hidden, positions, attend, cache.text, additions=embedded.additions
    )
    banks = cache.visual
    if bank is not None:
        length = taken.sum(-1, dtype=jnp.int32)
        numbers = jnp.take_along_axis(order, index, axis=1) if cache.keeps_indices else None
        turned_by = None
        if has_key_bias(text_config):
            wide = index.reshape(*index.shape, *axes[1:])
            turned_by = jnp.take_along_axis(positions, wide, axis=1)
        key, value, class_map = bank
        banks = (*banks, VisualBank(key, value, length, numbers, class_map, turned_by))
    new = dataclasses.replace(
        cache,
        visual=banks,
        text=text.advance(is_text, order),
        position=cache.position + inputs.next_position,
        calibration_skipped=cache.calibration_skipped + skipped.sum(0, dtype=jnp.int32),
    )
    return hidden, new


def new_cache(model: Model, batch: int, *, quant: KVQuantConfig, cache_length: int) -> KVCache:
    """An empty cache of the shape that `model` fills, in the dtype it computes in."""
    text = model.config.text
    module = model.module().text
    cache = KVCache.init(
        num_layers=text.num_hidden_layers,
        batch=batch,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        cache_length=cache_length,
        quant=quant,
        dtype=module.dtype,
        keep_indices=text.sliding_window is not None,
    )
    return dataclasses.replace(cache, key_bias=key_bias_for(module, quant))


def _last(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The hidden state of each sequence's last real token."""
    index = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]
