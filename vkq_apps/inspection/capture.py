"""The queries, keys and values of a prompt, caught on their way through the text tower."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from models import Inputs, Model
from models.layers.attention import dense_attention
from models.text.masks import prompt_masks
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree
from vkq_jax.visual import left_pack

__all__ = ["Capture", "capture"]


@frozen_pytree
class Capture:
    """The last token's queries, and the keys and values it attends to, in all layers.

    Attributes:
        query: of the last token, with RoPE, not scaled.
        key, value: of the visual tokens in the prompt's order, keys with RoPE.
        text_key, text_value: of the S other tokens.
        visual_start, text_start: how many of the visual and of the other tokens, the first ones, a
            sliding window hides from the last.
        position: RoPE positions of the visual tokens.
    """

    query: Float[Array, "L N H"]
    key: Float[Array, "L K V H"]
    value: Float[Array, "L K V H"]
    text_key: Float[Array, "L K S H"]
    text_value: Float[Array, "L K S H"]
    visual_start: Int32[Array, "L"]
    text_start: Int32[Array, "L"]
    position: Int32[Array, "1 V *axes"]


def capture(model: Model, inputs: Inputs) -> Capture:
    """Runs one prompt at full precision and keeps what its last token's attention reads.

    Raises:
        ValueError: not exactly one prompt, or one without visual tokens.
    """
    model.config.text.check_one_stack("vkq inspect")
    if inputs.input_ids.shape[0] != 1:
        raise ValueError(f"expected one prompt, got {inputs.input_ids.shape[0]}")
    visual = int((inputs.visual_mask & inputs.mask).sum())
    if not visual:
        raise ValueError("the prompt has no visual tokens, so there is no visual KV")
    # Counted, because those of `inputs.prompt_shape` may be rounded up.
    return _capture(model, inputs, visual, int(inputs.mask.sum()) - visual)


@partial(jax.jit, static_argnums=(2, 3))
def _capture(model: Model, inputs: Inputs, num_visual: int, num_text: int) -> Capture:
    module = model.module()
    mask_of = prompt_masks(model.config.text, inputs)
    is_visual = inputs.visual_mask & inputs.mask
    visual, _ = left_pack(is_visual, num_visual)
    text, _ = left_pack(inputs.mask & ~is_visual, num_text)
    # The last position that is not padding.
    last = inputs.mask.shape[1] - 1 - jnp.argmax(inputs.mask[0, ::-1])

    def pick(x, index):  # [1, T, K, H] -> [K, positions, H]
        return x[0, index[0]].transpose(1, 0, 2)

    position = inputs.positions[:, visual[0]]

    def attend(layer, query, key, value, carry):
        mask = mask_of(layer)
        hidden = ~mask[0, last]
        output = dense_attention(
            query,
            key,
            value,
            mask,
            logits_scale=model.config.text.logits_scale,
            logits_soft_cap=model.config.text.attn_logit_softcapping,
        )
        caught = Capture(
            query=query[0, last],
            key=pick(key, visual),
            value=pick(value, visual),
            text_key=pick(key, text),
            text_value=pick(value, text),
            visual_start=hidden[visual[0]].sum(dtype=jnp.int32),
            text_start=hidden[text[0]].sum(dtype=jnp.int32),
            position=position,
        )
        return output, carry, caught

    _, _, caught = module.read(inputs, attend)
    return dataclasses.replace(caught, position=position)
