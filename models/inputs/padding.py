"""Padding prompts to few lengths, so that unlike prompts share one compilation."""

import dataclasses

import jax.numpy as jnp

from models.inputs.batch import Inputs, PromptShape
from models.messages import show

__all__ = ["pad_to_multiple"]


def pad_to_multiple(inputs: Inputs, multiple: int = 32) -> Inputs:
    """The same prompts, padded on the right, with lengths and counts rounded up.

    Compiled functions are kept per shape and per `prompt_shape`: rounded to multiples of 32, the
    prompts of a whole evaluation compile once or twice. Answers do not change; caches grow by the
    rounding of the text counts (visual counts stay exact).
    """
    if not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be a whole number of at least 1, got {show(multiple)}")

    def round_up(count: int) -> int:
        return -(-count // multiple) * multiple

    width = inputs.input_ids.shape[1]
    missing = round_up(width) - width

    def pad(values):
        return jnp.pad(values, [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)])

    shape = inputs.prompt_shape
    return dataclasses.replace(
        inputs.map_tokens(pad),
        prompt_shape=PromptShape(
            visual=shape.visual,
            text=round_up(shape.text),
            prefix=round_up(shape.prefix),
            suffix=round_up(shape.suffix),
        ),
    )
