"""Finds the layer with the first value that is not finite, once an answer has such a value."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from models.inputs.batch import Inputs, PromptShape
from models.layers.attention import attend_with_mask
from models.model import Model
from models.text.masks import prompt_masks
from models.vision.vit import VisionTransformer
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.any_cache import heads_of_layer
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.visual import left_pack
from vkq_jax.slots import filled

__all__ = ["first_non_finite", "refuse_non_finite"]


def refuse_non_finite(
    model: Model,
    inputs: Inputs,
    cache: AnyCache | None,
    tokens: Int32[Array, "B max_new_tokens"],
    lengths: Int32[Array, "B"],
    finite: Bool[Array, "B"],
) -> None:
    """Raises ValueError where logits were not finite; inside jit or vmap nothing is raised.

    Args:
        model: that answered.
        inputs: the prompts.
        cache: of earlier turns, if any.
        tokens: of the answers.
        lengths: tokens of each answer.
        finite: sequences whose logits all were finite.
    """
    if isinstance(finite, Tracer) or np.asarray(finite).all():
        return
    row = int(np.asarray(finite).argmin())
    place = _find(model, inputs, cache, tokens, lengths)
    raise ValueError(
        f"the logits of sequence {row} are not finite: {place}. Check the weights, pixel values "
        "and settings there, or load with dtype=jnp.float32 if they overflow"
    )


def _find(
    model: Model, inputs: Inputs, cache: AnyCache | None, tokens: Array, lengths: Array
) -> str:
    if cache is not None:
        layer = _first_in_cache(cache)
        if layer is not None:
            return f"layer {layer} of the given cache holds NaN or infinity"
    first = first_non_finite(model, inputs)
    if first is None:
        first = first_non_finite(model, _whole(inputs, tokens, lengths))
    if first is None:
        return (
            "prompt and answer give finite values without a cache, so the cache's codes or its "
            "attention make them: quant='none' or another implementation tells which"
        )
    return f"the first NaN or infinity is {first}"


def first_non_finite(model: Model, inputs: Inputs) -> str | None:
    """The first place in a forward pass without a cache with a non-finite value, or None."""
    inputs = dataclasses.replace(inputs, prompt_shape=PromptShape(0, 0, 0, 0))
    for name, flags in _places(model, inputs):
        bad = np.flatnonzero(~np.asarray(flags))
        if len(bad):
            return name.format(bad[0], len(flags) - 1)
    return None


def _places(model: Model, inputs: Inputs) -> Iterator[tuple[str, Array]]:
    """Names and whether all values there are finite, in the order in which they are computed."""
    if inputs.pixel_values is not None:
        yield "in the pixel values", jnp.isfinite(inputs.pixel_values).all()[None]
        states, features = _vision_flags(model, inputs.pixel_values, inputs.vision_layout)
        if states is not None:
            yield "in the patch embeddings of the vision tower", states[:1]
            yield "the output of vision layer {0} (they count from 0 to {1})", states[1:]
        yield "the output of the projector", features[None]
    embedded, layers, logits = _text_flags(model, inputs)
    yield "in the token embeddings", embedded[None]
    yield "the output of text layer {0} (they count from 0 to {1})", layers
    yield "the output of the last norm and the head", logits[None]


@jax.jit
def _vision_flags(model: Model, pixel_values: Array, layout: Any) -> tuple[Array | None, Array]:
    """Flags of the states before and after each vision layer, where known, and of the features."""
    module = model.module()
    finite = jnp.isfinite(module.image_features(pixel_values, layout)).all()
    tower = getattr(module, "vision", None)
    if not isinstance(tower, VisionTransformer):
        return None, finite
    states = tower.hidden_states(pixel_values)
    return jnp.stack([jnp.isfinite(state).all() for state in states]), finite


@jax.jit
def _text_flags(model: Model, inputs: Inputs) -> tuple[Array, Array, Array]:
    module = model.module()
    config = model.config.text

    # Padding counts, too: attention multiplies it by 0, which leaves NaN.
    def finite(x: Float[Array, "B T width"], layer: Array | None = None) -> Bool[Array, ""]:
        return jnp.isfinite(x).all()

    attend = attend_with_mask(
        prompt_masks(config, inputs),
        logits_scale=config.logits_scale,
        logits_soft_cap=config.attn_logit_softcapping,
    )
    embedded = module.embed_inputs(inputs)
    last, _, _, layers = module.text.run_layers(
        embedded.hidden,
        inputs.positions,
        attend,
        None,
        finite,
        module.layer_inputs(inputs, embedded),
    )
    return finite(embedded.hidden), layers, finite(module.text.logits(module.text.norm(last)))


def _whole(inputs: Inputs, tokens: Array, lengths: Array) -> Inputs:
    """Prompts with their answers after them."""
    whole = inputs.followed_by(tokens, filled(lengths, tokens.shape[1]))
    return whole.take_tokens(*left_pack(whole.mask, whole.mask.shape[1]))


def _first_in_cache(cache: AnyCache) -> int | None:
    """The first layer in which a cached key or value is not finite."""
    for layer in range(cache.num_layers):
        arrays = []
        for _, view in heads_of_layer(cache, layer):
            arrays += view.text.dequantize()
            arrays += [x.dequantize() for bank in view.visual for x in (bank.key, bank.value)]
        if not all(bool(jnp.isfinite(x).all()) for x in arrays):
            return layer
    return None
