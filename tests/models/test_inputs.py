import dataclasses

import jax
import numpy as np
import pytest

from models import PromptShape
from models.prompts.arrays import inputs_from_arrays
from tests.support.tiny_llava import CONFIG, IMAGE, VISUAL_TOKENS, batch, prompt

PIXELS = np.zeros((1, 3, 16, 16), np.float32)
ONE_IMAGE = [prompt(2, "image", 3)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_counts_positions_and_places_of_a_padded_batch(side):
    rows = prompt(2, "image", 3), prompt(1, "image", 2, "image"), prompt(7)
    inputs = batch(*rows, side=side)
    assert inputs.prompt_shape == PromptShape(
        visual=2 * VISUAL_TOKENS, text=7, prefix=2 * VISUAL_TOKENS + 3, suffix=7
    )
    np.testing.assert_array_equal(inputs.visual_mask.sum(1), [VISUAL_TOKENS, 2 * VISUAL_TOKENS, 0])
    for positions, mask, row in zip(inputs.positions, inputs.mask, rows, strict=True):
        np.testing.assert_array_equal(positions[mask], np.arange(len(row)))
    assert int(inputs.positions.min()) == 0


def test_text_behind_a_clip_goes_on_at_its_rows_and_columns():
    inputs = batch(prompt(3), prompt(2))
    axes = np.stack([inputs.positions + 100, inputs.positions, inputs.positions + 1], axis=-1)
    timed = dataclasses.replace(inputs, positions=axes)
    np.testing.assert_array_equal(timed.next_position, inputs.next_position + 1)


def test_it_is_a_pytree_whose_counts_are_structure():
    inputs = batch(prompt(2, "image", 3))
    leaves, structure = jax.tree.flatten(inputs)
    assert len(leaves) == 5
    assert jax.tree.structure(batch(prompt(3, "image", 2))) != structure
    assert jax.tree.unflatten(structure, leaves).prompt_shape == inputs.prompt_shape


@pytest.mark.parametrize(
    ("ids", "mask", "pixels", "message"),
    [
        ([1, 2], None, None, r"integers \[B, T\]"),
        ([[1.0, 2.0]], None, None, r"integers \[B, T\], got float64"),
        (np.zeros((0, 3), int), None, None, "empty prompt"),
        (np.zeros((1, 0), int), None, None, "empty prompt"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], None, "empty prompt: row 1"),
        ([[1, 2, 3]], [[1, 0, 1]], None, "padding inside a prompt"),
        ([[1, 2]], [[1, 1, 1]], None, r"attention_mask: expected zeros and ones \(1, 2\)"),
        ([[1, 2]], [[1, 7]], None, "attention_mask"),
        ([[1, 64]], None, None, r"ids in \[0, 64\), got 64"),
        ([[1, -1]], None, None, "got -1"),
        ([[1, 2]], None, PIXELS, "no image token for an image: got 1 images.* 0 image tokens"),
        (ONE_IMAGE, None, None, "image tokens without an image: got 0 images.* 16 image tokens"),
        (ONE_IMAGE, None, np.repeat(PIXELS, 2, 0), "more images than tokens: got 2 images"),
        ([prompt(1, "image", "image")], None, PIXELS, "more tokens than images: got 1 images"),
        ([[1, IMAGE]], None, PIXELS, "more images than tokens"),
        ([prompt("image", 1)], [[0, *[1] * 16]], PIXELS, "image token lies in the padding"),
        (ONE_IMAGE, None, PIXELS[0], "pixel_values: expected floats"),
        (ONE_IMAGE, None, PIXELS[..., :8], r"\[images, 3, 16, 16\], got float32 \(1, 3, 16, 8\)"),
        (ONE_IMAGE, None, PIXELS.astype(np.uint8), "pixel_values: expected floats"),
        ([[1]], None, PIXELS[:0], "no image; pass None"),
    ],
)
def test_bad_arrays_are_one_clear_error(ids, mask, pixels, message):
    with pytest.raises(ValueError, match=message):
        inputs_from_arrays(CONFIG, ids, mask, pixels)


def test_an_image_token_beyond_the_vocabulary_is_no_error():
    """Some checkpoints have an embedding without a row for it."""
    config = CONFIG.__class__(vision=CONFIG.vision, text=CONFIG.text, image_token_id=1000)
    ids = [[1] + [1000] * VISUAL_TOKENS]
    assert inputs_from_arrays(config, ids, None, PIXELS).prompt_shape.visual == VISUAL_TOKENS
