"""Qwen-VL against transformers' PyTorch models."""

import jax
import numpy as np
import pytest

import models
from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.qwen_vl import batch, config_json

pytestmark = pytest.mark.parity

NAMES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}
# A prompt without a picture; several of unlike sizes; clips, whose last frame lies behind the text
# that follows; pictures and clips in one prompt.
ROWS = [
    [3, ("image", 4, 6), 2, ("image", 10, 2), 4],
    [5],
    [2, ("video", 3, 4, 4), 3, ("image", 2, 6), 2],
    [1, ("video", 12, 2, 2), 2],
]


def theirs(model_type: str, **changes):
    import transformers

    name = NAMES[model_type]
    config = getattr(transformers, f"{name}Config")(**config_json(model_type, **changes))
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def inputs(model_type: str, rows=ROWS):
    arrays = batch(rows, np.random.default_rng(1), frames_apart=model_type.startswith("qwen3"))
    if model_type == "qwen2_5_vl" and "video_grid_thw" in arrays:
        seconds = np.random.default_rng(2).uniform(0.3, 2, len(arrays["video_grid_thw"]))
        arrays["second_per_grid_ts"] = seconds.astype(np.float32)
    return arrays


@pytest.mark.parametrize("model_type", NAMES)
def test_pictures_and_clips_in_a_padded_batch(model_type, tmp_path):
    hf = theirs(model_type)
    assert_parity(hf, save(hf, tmp_path), inputs(model_type))


@pytest.mark.parametrize("model_type", NAMES)
def test_both_layouts_of_names_load_the_same(model_type, tmp_path):
    hf = theirs(model_type)
    first, second = (
        save(hf, tmp_path / str(original), save_original_format=original)
        for original in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    models.loading.save_weights(first, tmp_path / "True")
    again = models.load(tmp_path / "True", dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    type(hf).from_pretrained(tmp_path / "True")
