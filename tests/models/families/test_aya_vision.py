"""Aya Vision: processing as transformers', refusals; against transformers' model (parity)."""

import numpy as np
import pytest
from PIL import Image

import models
from models.families.aya_vision.config import AyaVisionConfig
from tests.support.hf_parity import assert_parity, randomize, save
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.rows import padded_rows

SIZE, TILE_TOKENS = 16, 4
SPECIAL = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_1", "TILE_2"]
SPECIAL += ["TILE_GLOBAL"]
IMAGE = len(WORDS) + SPECIAL.index("<|IMG_PATCH|>")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "sliding_window": 5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 4,
}
KINDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def config_json(text=None, **changes):
    return {
        "model_type": "aya_vision",
        "image_token_index": IMAGE,
        "vision_config": TOWER,
        "text_config": {"model_type": "cohere2"} | SIZES | (text or {}),
        **changes,
    }


def theirs(**changes):
    import transformers

    config = transformers.AyaVisionConfig(**config_json(**changes))
    return randomize(transformers.AyaVisionForConditionalGeneration(config))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "old_names"),
    [
        ({}, True),
        (
            {
                "text": {"layer_types": KINDS, "attention_bias": True, "layer_norm_eps": 1e-3},
                "tie_word_embeddings": False,
                "vision_feature_layer": 1,
                "alignment_intermediate_size": 20,
                "adapter_layer_norm_eps": 1e-2,
            },
            False,
        ),
        ({"text": {"layer_types": ["full_attention"] * 4}, "downsample_factor": 4}, True),
        ({"text": {"layer_types": ["sliding_attention"] * 4, "num_key_value_heads": 2}}, True),
    ],
)
def test_logits_and_greedy_tokens(changes, old_names, tmp_path):
    hf = theirs(**changes)
    ours = save(hf, tmp_path, save_original_format=old_names)
    run = [IMAGE] * ours.config.image_tokens
    rows = padded_rows([3, *run, 5, *run, *run, 7], [8, 9, 10], [4, *run, 6])
    pixels = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    assert_parity(hf, ours, rows | {"pixel_values": pixels})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aya")
    write_processor(
        folder,
        special=SPECIAL,
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "crop_to_patches": False,
            "max_patches": 2,
        },
        processor={"image_token": "<image>", "img_patch_token": "<|IMG_PATCH|>"},
    )
    return write_random_checkpoint(folder, config_json({"layer_types": KINDS}))


def test_ids_and_tiles_are_those_of_the_real_processor(model):
    from transformers import AutoTokenizer, AyaVisionProcessor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    real = AyaVisionProcessor(
        AutoImageProcessor.from_pretrained(model.source, backend="pil"),
        AutoTokenizer.from_pretrained(model.source),
        patch_size=4,
        img_size=SIZE,
        downsample_factor=2,
    )
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        for size in ((20, 45), (30, 30))
    ]
    text = "what <image> is <image> ?"
    expected = real(images=pictures, text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, expected["pixel_values"])
    assert got.visual_mask.sum() == (3 + 1) * TILE_TOKENS


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"downsample_factor": 3}, NotImplementedError, "downsample_factor=3"),
        ({"vision_feature_select_strategy": "default"}, NotImplementedError, "'full'"),
        ({"alignment_intermediate_size": 5}, ValueError, "expected an even number, got 5"),
        ({"text": {"sliding_window_pattern": 0}}, ValueError, "sliding_window_pattern"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        AyaVisionConfig.from_hf(config_json(**changes))
