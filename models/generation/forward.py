"""A whole sequence through a model, without a cache."""

import dataclasses

import jax

from models.inputs.batch import Inputs, PromptShape
from models.layers.attention import dense_attention
from models.model import Model
from models.text.masks import prompt_masks
from vkq_jax.array_types import Array, Float

__all__ = ["forward"]


def forward(model: Model, inputs: Inputs) -> Float[Array, "B T vocab"]:
    """Logits of the next token at every position, float32; those of padding mean nothing."""
    # The counts are static but unused here: without them one compilation serves all prompts of
    # one padded length.
    return _forward(model, dataclasses.replace(inputs, prompt_shape=PromptShape(0, 0, 0, 0)))


@jax.jit
def _forward(model: Model, inputs: Inputs) -> Float[Array, "B T vocab"]:
    module = model.module()
    config = model.config.text
    mask_of = prompt_masks(config, inputs.mask, inputs.positions)

    def attend(layer, query, key, value, carry):
        output = dense_attention(
            query, key, value, mask_of(layer), logits_scale=config.logits_scale
        )
        return output, carry, None

    x, _, _ = module.text(module.embed_inputs(inputs), inputs.positions, attend)
    return module.text.logits(x)
