"""Splitting prompts after their last image, so that the images can be coded before the question."""

import dataclasses

import jax.numpy as jnp

from models.inputs.batch import Inputs, PromptShape
from vkq_jax.array_types import Array, Bool
from vkq_jax.visual import compact

__all__ = ["split_after_images"]


def split_after_images(inputs: Inputs) -> tuple[Inputs, Inputs]:
    """Each sequence up to and with its last image token, and what comes after it.

    Sequences without an image are wholly in the second part. Works on traced inputs: the sizes
    come from `inputs.prompt_shape`.
    """
    is_visual = inputs.visual_mask & inputs.mask
    after = jnp.cumsum(is_visual, axis=1) == is_visual.sum(1, keepdims=True)
    after = inputs.mask & after & ~is_visual
    shape = inputs.prompt_shape
    before = _select(inputs, inputs.mask & ~after, shape.prefix)
    rest = _select(inputs, after, shape.suffix)
    return (
        dataclasses.replace(
            before, prompt_shape=PromptShape(shape.visual, shape.text, shape.prefix, suffix=0)
        ),
        dataclasses.replace(
            rest, pixel_values=None, prompt_shape=PromptShape(0, shape.suffix, 0, shape.suffix)
        ),
    )


def _select(inputs: Inputs, wanted: Bool[Array, "B T"], capacity: int) -> Inputs:
    index, valid = compact(wanted, capacity)
    ids = jnp.take_along_axis(inputs.input_ids, index, axis=1)
    return dataclasses.replace(inputs, input_ids=jnp.where(valid, ids, 0), mask=valid)
