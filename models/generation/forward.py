"""A whole sequence through a model, without a cache."""

import dataclasses

import jax

from models.inputs.batch import Inputs, PromptShape, check_inputs
from models.inputs.on_mesh import check_batch, place_inputs
from models.layers.attention import attend_with_mask
from models.model import Model
from models.text.masks import prompt_masks
from vkq_jax.array_types import Array, Float
from vkq_jax.validation import check_type

__all__ = ["forward"]


def forward(model: Model, inputs: Inputs) -> Float[Array, "B T vocab"]:
    """Logits of the next token at every position, float32, without a cache; differentiable.

    Args:
        model: from `models.load`.
        inputs: from `models.prepare`; logits at its padding mean nothing.

    Raises:
        ValueError: no model or inputs; on a mesh, a batch that `data` does not divide.
    """
    check_type("model", model, Model, hint="models.load")
    check_inputs(inputs)
    # The counts are static but unused here: without them one compilation serves all prompts of
    # one padded length.
    check_batch(model.mesh, inputs)
    inputs = dataclasses.replace(inputs, prompt_shape=PromptShape(0, 0, 0, 0))
    return _forward(model, place_inputs(model.mesh, inputs))


@jax.jit
def _forward(model: Model, inputs: Inputs) -> Float[Array, "B T vocab"]:
    module = model.module()
    config = model.config.text
    attend = attend_with_mask(
        prompt_masks(config, inputs),
        logits_scale=config.logits_scale,
        logits_soft_cap=config.attn_logit_softcapping,
    )
    x, _, _ = module.read(inputs, attend)
    return module.text.cut_logits(module.text.logits(x))
