"""Splitting prompts after their images and padding them: what goes where, token by token."""

import jax
import numpy as np
import pytest

import models
from models.inputs.batch import PromptShape
from models.inputs.split import split_after_images
from tests.support.tiny_llava import IMAGE, batch, prompt

ROWS = (prompt(3, "image", 5), prompt(2, "image", "image", 1, seed=1), prompt(6, seed=2))


def rows_of(inputs):
    """The tokens of each sequence, without padding."""
    return [
        ids[mask].tolist()
        for ids, mask in zip(np.asarray(inputs.input_ids), np.asarray(inputs.mask), strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_split_behind_its_last_image_token(side):
    inputs = batch(*ROWS, side=side)
    before, after = jax.jit(split_after_images)(inputs)
    ends = [len(row) - row[::-1].index(IMAGE) if IMAGE in row else 0 for row in ROWS]
    assert rows_of(before) == [row[:end] for row, end in zip(ROWS, ends, strict=True)]
    assert rows_of(after) == [row[end:] for row, end in zip(ROWS, ends, strict=True)]
    assert before.input_ids.shape == (3, 34)
    assert after.input_ids.shape == (3, 6)
    assert not np.asarray(after.input_ids)[~np.asarray(after.mask)].any()
    assert after.pixel_values is None
    np.testing.assert_array_equal(before.pixel_values, inputs.pixel_values)
    assert before.prompt_shape == PromptShape(visual=32, text=8, prefix=34, suffix=0)
    assert after.prompt_shape == PromptShape(visual=0, text=6, prefix=0, suffix=6)


@pytest.mark.parametrize(("multiple", "width", "text", "prefix", "suffix"), [
    (1, 35, 8, 34, 6), (8, 40, 8, 40, 8), (35, 35, 35, 35, 35), (32, 64, 32, 64, 32),
])  # fmt: skip
def test_lengths_are_rounded_up_and_prompts_stay(multiple, width, text, prefix, suffix):
    inputs = batch(*ROWS)
    padded = models.pad_to_multiple(inputs, multiple)
    assert padded.input_ids.shape == padded.mask.shape == (3, width)
    np.testing.assert_array_equal(padded.input_ids[:, :35], inputs.input_ids)
    np.testing.assert_array_equal(padded.mask[:, :35], inputs.mask)
    assert not padded.mask[:, 35:].any()
    assert padded.prompt_shape == PromptShape(visual=32, text=text, prefix=prefix, suffix=suffix)
    assert models.pad_to_multiple(inputs).input_ids.shape == (3, 64)


def test_padding_to_nothing_is_refused():
    for multiple in (0, -3, 2.0):
        with pytest.raises(ValueError, match="multiple must be"):
            models.pad_to_multiple(batch(ROWS[2]), multiple)
