"""Prefill: a prompt through the model, each layer's visual keys and values coded on the way.

The pass through the layers is `vkq_jax.begin_prefill`'s, as for any model.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from models.generation.backend import ModelBackend
from models.inputs.batch import Inputs
from models.model import Model
from models.sharding import passes
from models.sharding.inputs import place_inputs
from models.sharding.placing import place_cache, place_logits
from models.text.key_bias import has_key_bias, key_bias_for
from models.text.masks import cache_starts, prompt_masks
from vkq_jax.array_types import Array, Bool, Float
from vkq_jax.cache import KVCache
from vkq_jax.cache_updates import grow
from vkq_jax.calibration import ScoreMap
from vkq_jax.code_tables import CodeTables
from vkq_jax.config import KVQuantConfig
from vkq_jax.prefill import begin_prefill

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
    logits = model.module().text.logits(_last(hidden, inputs.mask))
    return place_logits(model.mesh, logits), new


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
    inputs = place_inputs(model.mesh, inputs)
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
    cache = place_cache(model.mesh, cache)
    text_config = model.config.text
    reading = begin_prefill(
        cache,
        inputs.visual_mask,
        valid=inputs.mask,
        num_visual=inputs.prompt_shape.visual,
        positions=inputs.positions,
        advance=inputs.next_position,
        first_turn=past is None,
        keep_positions=has_key_bias(text_config),
        backend=ModelBackend(implementation),
    )
    mask_of = prompt_masks(text_config, inputs)
    starts_of = cache_starts(text_config, cache, reading.order)

    def attend(layer, query, key, value, reading):
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
        )
        return output, reading, None

    embedded = module.embed_inputs(inputs)
    hidden, reading, _ = module.text(
        embedded.hidden, reading.positions, attend, reading, additions=embedded.additions
    )
    return hidden, place_cache(model.mesh, reading.finish())


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
