"""Padding prompts to few lengths, so that different prompts share one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from models.inputs.batch import Inputs, check_inputs
from models.inputs.pixels import bucket
from vkq_jax.messages import show
from vkq_jax.validation import whole_number

__all__ = ["pad_to_buckets", "pad_to_multiple", "text_bucket"]

_TEXT_STEP = 64
"""Counts of text tokens are rounded up to multiples of this by default."""

_LARGEST_MULTIPLE = 2**20


def pad_to_multiple(inputs: Inputs, multiple: int = 32) -> Inputs:
    """The same prompts, padded on the right, with lengths and counts rounded up.

    Compiled functions are kept per shape and per `prompt_shape`: rounded to multiples of 32, the
    prompts of a whole evaluation compile once or twice. Answers do not change; caches grow by the
    rounding of the text counts (visual counts stay exact).

    Args:
        inputs: from `models.prepare`.
        multiple: of tokens.

    Raises:
        ValueError: `multiple` is no whole number from 1 to 1048576.
    """
    check_inputs(inputs)
    count = whole_number(multiple)
    if count is None or not 1 <= count <= _LARGEST_MULTIPLE:
        raise ValueError(
            f"multiple must be a whole number from 1 to {_LARGEST_MULTIPLE}, got {show(multiple)}"
        )
    multiple = count

    def round_up(count: int) -> int:
        return -(-count // multiple) * multiple

    shape = inputs.prompt_shape
    return dataclasses.replace(
        _pad(inputs, round_up(inputs.input_ids.shape[1])),
        prompt_shape=dataclasses.replace(
            shape,
            text=round_up(shape.text),
            prefix=round_up(shape.prefix),
            suffix=round_up(shape.suffix),
        ),
    )


def text_bucket(count: int) -> int:
    """A size for `count` text tokens: a multiple of 64, and above 512 a `bucket`."""
    return bucket(count, _TEXT_STEP)


def pad_to_buckets(inputs: Inputs, *, visual: bool = False) -> Inputs:
    """The same prompts, padded on the right to one of few sizes, as `generate` does by itself.

    Text is rounded up by `text_bucket`, so that questions of up to 64 tokens about one picture
    share one compiled program. Answers do not change, but for the rounding of sums over more terms.

    Args:
        inputs: of prompts.
        visual: also rounds visual tokens up to a `bucket`, for families whose pictures have as many
            as their size asks for: one question about pictures of all sizes then compiles four
            times for each doubling. Less than a fifth of the visual part of a cache stays empty.
    """
    shape = inputs.prompt_shape
    tokens = bucket(shape.visual) if visual and shape.visual else shape.visual
    return dataclasses.replace(
        _pad(inputs, tokens + text_bucket(inputs.input_ids.shape[1] - shape.visual)),
        prompt_shape=dataclasses.replace(
            shape,
            visual=tokens,
            text=text_bucket(shape.text),
            prefix=tokens + text_bucket(shape.prefix - shape.visual),
            suffix=text_bucket(shape.suffix),
        ),
    )


def _pad(inputs: Inputs, width: int) -> Inputs:
    """The same prompts in `width` tokens, padding after them."""
    missing = width - inputs.input_ids.shape[1]

    def pad(values):
        widths = [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)]
        if isinstance(values, Tracer) or (
            isinstance(values, jax.Array) and len(values.devices()) > 1
        ):
            return jnp.pad(values, widths)
        # NumPy compiles nothing, JAX would for each length.
        return jax.device_put(np.pad(np.asarray(values), widths))

    return inputs.map_tokens(pad) if missing else inputs
