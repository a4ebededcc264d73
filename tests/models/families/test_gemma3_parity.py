"""Against transformers' PyTorch Gemma 3: tiny random checkpoints that transformers saved."""

import numpy as np
import pytest

from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.rows import padded_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IMAGE, PER_IMAGE, SIZE = 40, 4, 30

TEXTS = {
    "windows": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "all full, stretched": {
        "layer_types": ["full_attention"] * 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "biases, one key head, own scale": {
        "attention_bias": True,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
}


def make(**text):
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 6,
        }
        | text,
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 6,
        },
        # 5 x 5 patches: a rim is left out.
        mm_tokens_per_image=PER_IMAGE,
        image_token_index=IMAGE,
        boi_token_index=41,
        eoi_token_index=42,
    )
    return randomize(transformers.Gemma3ForConditionalGeneration(config))


def arrays(counts=(2, 0, 1), seed=0):
    """A batch, padded on the left, with so many pictures in each row; as the processor gives it."""
    rng = np.random.default_rng(seed)
    rows = []
    for row, count in enumerate(counts):
        parts = [rng.integers(0, 40, 3 + row)]
        for i in range(count):
            parts += [[41, *[IMAGE] * PER_IMAGE, 42], rng.integers(0, 40, 2 + i)]
        rows.append(np.concatenate(parts))
    found = padded_rows(*(row.tolist() for row in rows))
    found["token_type_ids"] = (found["input_ids"] == IMAGE).astype(np.int64)
    if sum(counts):
        pixels = rng.normal(size=(sum(counts), 3, SIZE, SIZE)).astype(np.float32)
        found["pixel_values"] = pixels
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_logits_and_greedy_tokens(tmp_path, name):
    theirs = make(**TEXTS[name])
    assert_parity(theirs, save(theirs, tmp_path), arrays(), new_tokens=6)


def test_names_of_weights_as_modules_have_them_and_no_pictures_at_all(tmp_path):
    theirs = make()
    ours = save(theirs, tmp_path, save_original_format=False)
    assert_parity(theirs, ours, arrays((0, 0)), new_tokens=4)
