"""A whole sequence through a model, without a cache."""

import dataclasses

import jax

from models.attention import causal_mask, dense_attention
from models.inputs import Inputs, PromptShape
from models.model import Model
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
    mask = causal_mask(inputs.mask)

    def attend(layer, query, key, value, carry):
        output = dense_attention(
            query, key, value, mask, logits_scale=model.config.text.logits_scale
        )
        return output, carry, None

    x, _, _ = module.text(module.embed_inputs(inputs), inputs.positions, attend)
    return module.text.logits(x)
