"""The queries, keys and values of a prompt, caught on their way through the text tower."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from models import Inputs, Model
from models.layers.attention import dense_attention
from models.layers.layer_kinds import in_layer_order
from models.text.coded_layers import coded_layers, read_layers
from models.text.cross_attention import CrossReading
from models.text.masks import prompt_masks
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.attention.last_queries import attention_of_last_queries
from vkq_jax.cache.visual import left_pack
from vkq_jax.passes.cross_pass import PromptPictures
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["Capture", "capture"]


@frozen_pytree
class Capture:
    """The last token's queries, and the keys and values it attends to, in layers of one kind.

    Attributes:
        query: of the last token, with RoPE, not scaled.
        key, value: of the visual tokens in the prompt's order, keys with RoPE.
        text_key, text_value: of the S other tokens; S is 0 in cross-attention layers.
        visual_start, text_start: how many of the visual and of the other tokens, the first ones,
            the last token does not see.
        attention: that of the visual tokens, see `vkq_jax.attention.last_queries`; None in
            cross-attention layers.
        position: RoPE positions of the visual tokens; None in cross-attention layers.
        layers: numbers of the layers in the model.
    """

    query: Float[Array, "L N H"]
    key: Float[Array, "L K V H"]
    value: Float[Array, "L K V H"]
    text_key: Float[Array, "L K S H"]
    text_value: Float[Array, "L K S H"]
    visual_start: Int32[Array, "L"]
    text_start: Int32[Array, "L"]
    attention: Float[Array, "L K V"] | None
    position: Int32[Array, "1 V *axes"] | None
    layers: tuple[int, ...] = static_field(kw_only=True)


def capture(model: Model, inputs: Inputs) -> tuple[Capture, ...]:
    """Runs one prompt at full precision and keeps what its last token's attention reads.

    Of each kind of `models.text.coded_layers.coded_layers`: layers whose visual tokens are coded.
    A layer that reads an earlier one's keys is not among them.

    Raises:
        ValueError: not exactly one prompt, or one without visual tokens.
    """
    if inputs.input_ids.shape[0] != 1:
        raise ValueError(f"expected one prompt, got {inputs.input_ids.shape[0]}")
    if not inputs.prompt_shape.has_pictures:
        raise ValueError("the prompt has no visual tokens, so there is no visual KV")
    # Counted, because those of `inputs.prompt_shape` may be rounded up.
    visual, total = int((inputs.visual_mask & inputs.mask).sum()), int(inputs.mask.sum())
    if model.config.text.cross_layers:
        assert inputs.places is not None
        visual = int(inputs.places.kept.sum())
        return _capture(model, inputs, visual, 0)
    return _capture(model, inputs, visual, total - visual)


@partial(jax.jit, static_argnums=(2, 3))
def _capture(model: Model, inputs: Inputs, num_visual: int, num_text: int) -> tuple[Capture, ...]:
    module, text = model.module(), model.config.text
    last = inputs.last_token[0]
    embedded, pictures = module.embed_inputs(inputs), inputs.prompt_pictures()
    layer_inputs = module.layer_inputs(inputs, embedded)
    if layer_inputs.pictures is not None and pictures is not None:
        caught = _caught_in_cross_layers(layer_inputs.pictures, pictures, last, num_visual)
        layer_inputs = dataclasses.replace(layer_inputs, pictures=caught)
    _, _, outputs = module.text(
        embedded.hidden,
        inputs.positions,
        _attend(model, inputs, last, num_visual, num_text),
        None,
        layer_inputs,
    )
    kinds, found = coded_layers(text), []
    for number, kind in enumerate(kinds):
        stacks = {
            name: read.layers
            for name, read in read_layers(text).items()
            if read.kind == number and name not in text.sources
        }
        caught = in_layer_order(stacks, {name: outputs[name] for name in stacks})
        position = None if caught.position is None else caught.position[0]
        found.append(dataclasses.replace(caught, layers=kind.layers, position=position))
    return tuple(found)


def _attend(
    model: Model, inputs: Inputs, last: Array, num_visual: int, num_text: int
) -> Callable[..., Any]:
    """Attention among the tokens of a prompt, which hands out a `Capture` of each layer."""
    text, mask_of = model.config.text, prompt_masks(model.config.text, inputs)
    is_visual = inputs.visual_mask & inputs.mask
    visual, _ = left_pack(is_visual, num_visual)
    others, _ = left_pack(inputs.mask & ~is_visual, num_text)
    position = inputs.positions[:, visual[0]]

    def attend(layer, query, key, value, carry):
        mask = mask_of(layer)
        output = dense_attention(
            query,
            key,
            value,
            mask,
            logits_scale=text.logits_scale,
            logits_soft_cap=text.attn_logit_softcapping,
        )
        if text.cross_layers:  # no visual token is read here
            return output, carry, None
        hidden = ~mask[0, last]
        paid = attention_of_last_queries(
            query,
            key,
            mask,
            inputs.mask & ~is_visual,
            visual,
            logits_scale=text.logits_scale,
            logits_soft_cap=text.attn_logit_softcapping,
        )
        caught = Capture(
            query=query[0, last],
            key=_pick(key, visual),
            value=_pick(value, visual),
            text_key=_pick(key, others),
            text_value=_pick(value, others),
            visual_start=hidden[visual[0]].sum(dtype=jnp.int32),
            text_start=hidden[others[0]].sum(dtype=jnp.int32),
            attention=paid[0],
            position=position,
            layers=(),
        )
        return output, carry, caught

    return attend


def _caught_in_cross_layers(
    reading: CrossReading, pictures: PromptPictures, last: Array, num_visual: int
) -> CrossReading:
    """Attention to pictures that hands out a `Capture` of each layer."""
    visual, _ = left_pack(pictures.kept, num_visual)
    hidden: Bool[Array, "V"] = ~pictures.mask[0, last][visual[0]]

    def attend(layer, query, key, value, carry):
        output, carry, _ = reading.attend(layer, query, key, value, carry)
        nothing = jnp.zeros((key.shape[2], 0, key.shape[3]), key.dtype)
        caught = Capture(
            query=query[0, last],
            key=_pick(key, visual),
            value=_pick(value, visual),
            text_key=nothing,
            text_value=nothing,
            visual_start=hidden.sum(dtype=jnp.int32),
            text_start=jnp.int32(0),
            attention=None,
            position=None,
            layers=(),
        )
        return output, carry, caught

    return dataclasses.replace(reading, attend=attend)


def _pick(x: Float[Array, "1 T K H"], index: Int32[Array, "1 n"]) -> Float[Array, "K n H"]:
    return x[0, index[0]].transpose(1, 0, 2)
