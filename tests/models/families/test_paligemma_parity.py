"""Against transformers' PyTorch PaliGemma 1 and 2: tiny random checkpoints that it saved."""

import numpy as np
import pytest

from tests.support.hf_parity import assert_parity, randomize, save, since
from tests.support.rows import padded_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IMAGE, PER_IMAGE, SIZE = 40, 9, 18

TEXTS = {
    "Gemma": {"model_type": "gemma"},
    "Gemma 2, caps that matter": {
        "model_type": "gemma2",
        "sliding_window": 5,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 7,
    },
    "Gemma 2 without caps": {
        "model_type": "gemma2",
        "sliding_window": 5,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
}


def make(**text):
    config = transformers.PaliGemmaConfig(
        text_config={
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
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
        image_token_index=IMAGE,
        projection_dim=32,
    )
    # transformers' scaled dot products know no cap.
    config._attn_implementation = "eager"
    return randomize(transformers.PaliGemmaForConditionalGeneration(config))


def arrays(counts=(1, 2, 0), suffix=3, seed=0):
    """A padded batch as the processor gives it, the last tokens of each row its answer."""
    rng = np.random.default_rng(seed)
    rows = [
        np.concatenate([np.full(PER_IMAGE * count, IMAGE), rng.integers(0, 40, 4 + suffix + row)])
        for row, count in enumerate(counts)
    ]
    found = padded_rows(*(row.tolist() for row in rows))
    shape = found["input_ids"].shape
    types = np.where(np.arange(shape[1]) < shape[1] - suffix, 0, 1)
    found["token_type_ids"] = np.broadcast_to(types, shape)
    if sum(counts):
        pixels = rng.normal(size=(sum(counts), 3, SIZE, SIZE)).astype(np.float32)
        found["pixel_values"] = pixels
    return found


_CAPS = since("5.24", "the final soft-cap of Gemma 2 is not applied behind pictures")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=_CAPS) if "caps that" in n else n for n in TEXTS]
)
def test_logits_and_greedy_tokens(tmp_path, name):
    theirs = make(**TEXTS[name])
    assert_parity(theirs, save(theirs, tmp_path), arrays(), new_tokens=6)


def test_names_of_weights_as_modules_have_them_and_prompts_without_an_answer(tmp_path):
    theirs = make()
    ours = save(theirs, tmp_path, save_original_format=False)
    assert_parity(theirs, ours, arrays((1, 1), suffix=0), new_tokens=4)
