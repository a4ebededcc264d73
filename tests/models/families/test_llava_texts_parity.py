"""Against transformers' PyTorch LLaVA with each of its text decoders."""

import numpy as np
import pytest

from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.rows import padded_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IMAGE, PER_IMAGE, SIZE = 40, 4, 14

TEXTS = {
    "Llama": {"model_type": "llama"},
    "Qwen2": {"model_type": "qwen2"},
    "Gemma": {"model_type": "gemma", "head_dim": 16},
    "Gemma 2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 5},
    "Granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
        "logits_scaling": 4.0,
        "attention_bias": True,
    },
    "Phi-3, a part of each head turns": {
        "model_type": "phi3",
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5],
            "long_factor": [1.0, 4.0],
        },
        "max_position_embeddings": 32,
        "original_max_position_embeddings": 16,
        "sliding_window": 7,
        "pad_token_id": 0,
        "eos_token_id": 2,
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_logits_and_greedy_tokens(tmp_path, name):
    config = transformers.LlavaConfig(
        text_config={
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        | TEXTS[name],
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 7,
        },
        image_token_index=IMAGE,
    )
    config._attn_implementation = "eager"  # other implementations know no soft-cap
    theirs = randomize(transformers.LlavaForConditionalGeneration(config))
    picture = [IMAGE] * PER_IMAGE
    rows = padded_rows([3, picture, 5, picture, 7], [8, 9, 10], [4, picture, 6])
    pixels = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    layout = {"save_original_format": "Phi" in name}
    ours = save(theirs, tmp_path, **layout)
    assert_parity(theirs, ours, rows | {"pixel_values": pixels}, new_tokens=6)
