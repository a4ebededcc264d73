"""Prefill: a prompt through the model, each layer's visual keys and values coded on the way.

The pass through the layers is `vkq_jax.begin_prefill`'s, as for any model.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from models.attached_tables import OwnTables
from models.generation import passes
from models.generation.backend import ModelBackend
from models.inputs.batch import Inputs
from models.inputs.on_mesh import place_inputs
from models.model import Model
from models.sharding.placing import place_cache, place_logits, split_attention
from models.text.coded_layers import other_layers
from models.text.config import TextConfig
from models.text.decoder import LayerInputs
from models.text.key_bias import has_key_bias, key_bias_for
from models.text.linear_attention import empty_states
from models.text.masks import cache_starts, prompt_masks
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.any_cache import map_groups
from vkq_jax.cache.empty import empty_cache
from vkq_jax.cache.head_groups import take_bias, take_score_map
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.cache.updates import grow
from vkq_jax.passes.prefill import begin_prefill
from vkq_jax.settings.layer_groups import Cells, Quant
from vkq_jax.settings.score_maps import ScoreMap

__all__ = ["cache_for", "new_cache", "prefill", "run_prompt"]


@partial(jax.jit, static_argnames=("quant", "cache_length", "implementation", "text_bits"))
def prefill(
    model: Model,
    inputs: Inputs,
    cache: AnyCache | None = None,
    *,
    quant: Quant,
    cache_length: int,
    implementation: str | None = None,
    score_map: ScoreMap | None = None,
    tables: OwnTables = None,
    text_bits: TextBits = None,
) -> tuple[Float[Array, "B vocab"], AnyCache]:
    """Runs a prompt, after what `cache` holds if one is given.

    Args:
        model: weights and configuration.
        inputs: prompt tokens and images.
        cache: that of earlier turns, made with the same `quant`; None starts a conversation.
        quant: how the visual tokens are coded.
        cache_length: text tokens a sequence of the new cache can hold; those of this prompt must
            fit after those of `cache`, as must the ones that will be generated.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.
        score_map: static score calibration of the new cache; that of `cache` by default.
        tables: offline tables of the codes; those of `cache` by default.
        text_bits: of text keys and values where `cache` is None, see `vkq_jax.empty_cache`.

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
        text_bits=text_bits,
    )
    last = jnp.take_along_axis(hidden, inputs.last_token[:, None, None], axis=1)[:, 0]
    logits = model.module().text.logits(last)
    return place_logits(model.mesh, logits), new


def run_prompt(
    model: Model,
    inputs: Inputs,
    past: AnyCache | None = None,
    *,
    quant: Quant,
    cache_length: int,
    implementation: str | None = None,
    score_map: ScoreMap | None = None,
    tables: OwnTables = None,
    text_bits: TextBits = None,
) -> tuple[Float[Array, "B T D"], AnyCache]:
    """`prefill` after `past`, to be traced: every token's normed hidden state, and the cache."""
    module, text_config = model.module(), model.config.text
    inputs = place_inputs(model.mesh, inputs)
    if past is None:
        batch = inputs.mask.shape[0]
        cache = new_cache(model, batch, quant=quant, cache_length=cache_length, text_bits=text_bits)
    elif past.quant != quant:
        raise ValueError(f"the cache was made with {past.quant}, not with {quant}")
    else:
        cache = grow(past, cache_length)
    cache = place_cache(model.mesh, _with_offline_parts(cache, score_map, tables))
    pictures, visual = inputs.prompt_pictures(), inputs.visual_mask
    reading = begin_prefill(
        cache,
        jnp.zeros_like(visual) if text_config.cross_layers else visual,
        valid=inputs.mask,
        num_visual=inputs.prompt_shape.visual,
        positions=inputs.positions,
        advance=inputs.next_position,
        first_turn=past is None,
        keep_positions=has_key_bias(text_config),
        pictures=pictures,
        backend=split_attention(model.mesh, cache, ModelBackend(implementation)),
    )
    mask_of = prompt_masks(text_config, inputs)
    starts_of = cache_starts(text_config, cache, reading.order)

    def attend(layer, query, key, value, reading, **shared):
        output, reading = passes.attend(
            model.mesh,
            reading,
            layer,
            query,
            key,
            value,
            mask=mask_of(layer),
            starts=starts_of(layer),
            logits_scale=text_config.logits_scale,
            logits_soft_cap=text_config.attn_logit_softcapping,
            **shared,
        )
        return output, reading, None

    embedded = module.embed_inputs(inputs)
    hidden, reading, _ = module.text(
        embedded.hidden,
        reading.positions,
        attend,
        reading,
        LayerInputs(
            additions=embedded.additions,
            pictures=passes.read_pictures(
                model.mesh, reading, embedded.pictures, text_config.logits_scale
            ),
            recurrence=passes.recurrence(reading),
            tokens=embedded.tokens,
            attend_shared_kv=partial(attend, kv_shared=True),
        ),
    )
    return hidden, place_cache(model.mesh, reading.finish())


def _with_offline_parts(cache: AnyCache, score_map: ScoreMap | None, tables: OwnTables) -> AnyCache:
    """The cache with a score map and tables; those that are None stay as they are."""
    if score_map is not None:

        def mapped(part: KVCache, cells: Cells) -> KVCache:
            count = part.num_kv_heads if cells.heads is None else cache.num_kv_heads
            own = take_score_map(score_map, cells, count, part.quant)
            return dataclasses.replace(part, score_map=own)

        cache = map_groups(cache, mapped)
    if isinstance(cache, LayeredCache) and isinstance(tables, tuple):
        parts = zip(cache.parts, tables, strict=True)
        return dataclasses.replace(
            cache, parts=tuple(dataclasses.replace(part, tables=own) for part, own in parts)
        )
    return cache if tables is None else dataclasses.replace(cache, tables=tables)


def new_cache(
    model: Model, batch: int, *, quant: Quant, cache_length: int, text_bits: TextBits = None
) -> AnyCache:
    """An empty cache of the shape that `model` fills, in the dtype it computes in."""
    module = model.module().text
    cache = cache_for(
        model.config.text,
        batch,
        quant=quant,
        cache_length=cache_length,
        dtype=module.dtype,
        text_bits=text_bits,
    )

    def with_bias(part: KVCache, cells: Cells) -> KVCache:
        bias = take_bias(key_bias_for(module, part.quant), cells)
        return dataclasses.replace(part, key_bias=bias)

    return map_groups(cache, with_bias)


def cache_for(
    text: TextConfig,
    batch: int,
    *,
    quant: Quant,
    cache_length: int,
    dtype: DTypeLike,
    text_bits: TextBits = None,
) -> AnyCache:
    """An empty cache for a decoder of these settings that computes in `dtype`."""
    return empty_cache(
        num_layers=text.num_own_layers,
        batch=batch,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        cache_length=cache_length,
        quant=quant,
        dtype=dtype,
        keep_indices=text.sliding_window is not None,
        cross_layers=text.cross_layers,
        recurrent=None if text.linear is None else empty_states(text.linear, batch, dtype),
        other_layers=other_layers(text),
        text_bits=text_bits,
    )
