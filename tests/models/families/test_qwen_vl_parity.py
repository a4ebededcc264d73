"""Qwen-VL against transformers' PyTorch models."""

import numpy as np
import pytest

from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.qwen_vl import batch, config_json

pytestmark = pytest.mark.parity

ROWS = [
    [3, ("image", 4, 6), 2, ("image", 10, 2), 4],
    [5],
    [("image", 6, 10), 3],
]
CLIPS = [[2, ("video", 3, 4, 4), 3, ("image", 2, 6), 2], [1, ("video", 12, 2, 2), 2]]


def theirs(model_type: str, **changes):
    import transformers

    names = {
        "qwen2_vl": "Qwen2VL",
        "qwen2_5_vl": "Qwen2_5_VL",
        "qwen3_vl": "Qwen3VL",
    }
    name = names[model_type]
    config = getattr(transformers, f"{name}Config")(**config_json(model_type, **changes))
    return randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("original", [True, False])
def test_pictures_of_several_sizes(model_type, original, tmp_path):
    hf = theirs(model_type)
    ours = save(hf, tmp_path, save_original_format=original)
    assert_parity(hf, ours, batch(ROWS, np.random.default_rng(1)))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_clips(model_type, tmp_path):
    hf = theirs(model_type)
    ours = save(hf, tmp_path)
    apart = model_type == "qwen3_vl"
    arrays = batch(CLIPS, np.random.default_rng(2), frames_apart=apart)
    if model_type == "qwen2_5_vl":
        arrays["second_per_grid_ts"] = np.asarray([0.5, 1.9])
    assert_parity(hf, ours, arrays)
