"""Padding prompts to few lengths, so that unlike prompts share one compilation."""

import dataclasses

import jax.numpy as jnp

from models.inputs.batch import Inputs, PromptShape
from models.inputs.pixels import bucket
from models.messages import show

__all__ = ["pad_to_buckets", "pad_to_multiple"]


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

    shape = inputs.prompt_shape
    return dataclasses.replace(
        _pad(inputs, round_up(inputs.input_ids.shape[1])),
        prompt_shape=PromptShape(
            visual=shape.visual,
            text=round_up(shape.text),
            prefix=round_up(shape.prefix),
            suffix=round_up(shape.suffix),
        ),
    )


def pad_to_buckets(inputs: Inputs) -> Inputs:
    """The same prompts, padded on the right as if they had a `bucket` of visual tokens.

    For families whose pictures have as many visual tokens as their size asks for: one question
    about pictures of all sizes compiles four times for each doubling of their tokens. Answers do
    not change; less than a fifth of the visual part of a cache stays empty.
    """
    shape = inputs.prompt_shape
    if not shape.visual:
        return inputs
    added = bucket(shape.visual) - shape.visual
    return dataclasses.replace(
        _pad(inputs, inputs.input_ids.shape[1] + added),
        prompt_shape=dataclasses.replace(
            shape, visual=shape.visual + added, prefix=shape.prefix + added
        ),
    )


def _pad(inputs: Inputs, width: int) -> Inputs:
    """The same prompts in `width` tokens, padding behind them."""
    missing = width - inputs.input_ids.shape[1]

    def pad(values):
        return jnp.pad(values, [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)])

    return inputs.map_tokens(pad)
