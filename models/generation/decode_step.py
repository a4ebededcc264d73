"""One decode step: a token of each sequence through the model, over its cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from models.generation import passes
from models.generation.backend import ModelBackend
from models.model import Model
from models.sharding.placing import place_cache, place_logits, place_sequences, split_attention
from models.text.coded_layers import read_layers
from models.text.decoder import LayerInputs
from models.text.masks import cache_starts
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visibility import Starts
from vkq_jax.passes.decode import begin_decode

__all__ = ["decode_step", "observed_step"]


def decode_step(
    model: Model,
    token: Int32[Array, "B"],
    cache: AnyCache,
    active: Bool[Array, "B"] | None = None,
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "B vocab"], AnyCache]:
    """Feeds one token to each active sequence.

    Args:
        model: weights and configuration.
        token: the tokens.
        cache: all before them; it must have room for one more text token.
        active: sequences to go on with, all by default; the others' caches stay as they are.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.

    Returns:
        Logits of the following token, float32, and the cache with this one in it.
    """
    logits, cache, _ = observed_step(
        model, token, cache, active, implementation=implementation, observe=lambda *_: None
    )
    return logits, cache


def observed_step(
    model: Model,
    token: Int32[Array, "B"],
    cache: AnyCache,
    active: Bool[Array, "B"] | None = None,
    *,
    implementation: str | None = None,
    observe: Callable[[Array, AnyCache, Array, Starts | None], Any],
) -> tuple[Float[Array, "B vocab"], AnyCache, Any]:
    """`decode_step`, and the results of `observe` for each layer that reads coded visual tokens.

    `observe(query, cache, layer, starts)` gets what attention reads: the queries [B, 1, N, H], with
    RoPE and not scaled, the cache of layers of this kind with their own text in it, the number of
    the layer whose keys are read, and the first tokens that the queries see. Results are those of
    `models.text.decoder.TextDecoder`.
    """
    module, text = model.module(), model.config.text
    cache = place_cache(model.mesh, cache)
    token, active = place_sequences(model.mesh, (token, active))
    valid = None if active is None else active[:, None]
    backend = split_attention(model.mesh, cache, ModelBackend(implementation))
    step = begin_decode(cache, valid, backend=backend)
    starts_of = cache_starts(text, cache, step.order)

    def attend(layer, query, key, value, step, **shared):
        starts = starts_of(layer)
        output, step = passes.attend(
            model.mesh,
            step,
            layer,
            query,
            key,
            value,
            starts=starts,
            logits_scale=text.logits_scale,
            logits_soft_cap=text.attn_logit_softcapping,
            **shared,
        )
        if text.cross_layers:  # no visual token is read here
            return output, step, None
        cache = step.unfinished
        own = cache if isinstance(cache, KVCache) else cache.of_sizes(key)
        return output, step, observe(query, own, layer, starts)

    ids = module.text_ids(token[:, None])
    pictures = passes.read_pictures(model.mesh, step, None, text.logits_scale, observe)
    hidden, step, seen = module.text(
        module.text.embed(ids),
        step.positions,
        attend,
        step,
        LayerInputs(
            pictures=pictures,
            recurrence=passes.recurrence(step),
            tokens=ids,
            attend_shared_kv=partial(attend, kv_shared=True),
        ),
    )
    cache = place_cache(model.mesh, step.finish())
    seen = {name: seen[name] for name in read_layers(text) if name in seen}
    return place_logits(model.mesh, module.text.logits(hidden)[:, 0]), cache, seen
