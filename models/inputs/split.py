"""Splitting prompts after their last image, so that the images can be coded before the question."""

import dataclasses

import jax.numpy as jnp

from models.inputs.batch import Inputs, PromptShape
from vkq_jax.cache.visual import left_pack

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
    before = inputs.take_tokens(*left_pack(inputs.mask & ~after, shape.prefix))
    rest = inputs.take_tokens(*left_pack(after, shape.suffix))
    # Positions of a part count from its own first token.
    start = before.next_position.reshape(-1, *(1,) * (rest.positions.ndim - 1))
    return (
        dataclasses.replace(
            before,
            prompt_shape=dataclasses.replace(shape, suffix=0),
        ),
        dataclasses.replace(
            rest,
            positions=rest.positions - start,
            pixel_values=None,
            vision_layout=None,
            attention_group=None,
            places=None,
            prompt_shape=PromptShape(0, shape.suffix, 0, shape.suffix),
        ),
    )
