"""Qianfan-OCR: names of weights of every layout, processing; transformers' model (parity)."""

import jax
import numpy as np
import pytest

import models
from models.families.internvl.qianfan_ocr import QianfanOcrConfig
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

SIZE, TILE_TOKENS = 28, 4
TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
IMAGE = len(WORDS) + 2
TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 256,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}


def config_json(vision=None, text=None, **changes):
    return {
        "model_type": "qianfan_ocr",
        "image_token_id": IMAGE,
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [SIZE, SIZE],
            "patch_size": [7, 7],
            **(vision or {}),
        },
        "text_config": TEXT | {"model_type": "qwen3"} | (text or {}),
        **changes,
    }


CASES = {
    "Qwen3": {},
    "experts in some layers, tied, no biases": {
        "text": EXPERTS,
        "vision": {"attention_bias": False, "use_mean_pooling": False, "use_qk_norm": True},
        "tie_word_embeddings": True,
    },
    "another layer, a token for hidden patches": {
        "vision_feature_layer": -2,
        "vision": {"use_mask_token": True, "norm_type": "rms_norm"},
    },
    "the last layer by its number": {
        "vision_feature_layer": 2,
        "vision": {"use_mean_pooling": False},
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("original", [True, False], ids=["names of the authors", "of modules"])
@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, original, tmp_path):
    from transformers import AutoModelForImageTextToText, QianfanOCRConfig

    settings = QianfanOCRConfig(**config_json(**CASES[name]))
    hf = randomize(AutoModelForImageTextToText.from_config(settings))
    ours = save(hf, tmp_path, save_original_format=original)
    first, second, third = ([IMAGE] * (TILE_TOKENS * count) for count in (3, 1, 1))
    rows = padded_rows([3, first, 5, second, 7], [8, 9, 10], [4, third, 6])
    pixels = np.random.default_rng(0).normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)
    assert_parity(hf, ours, rows | {"pixel_values": pixels})

    def kept(key):
        """Layers behind the chosen one are not, nor is the token that training alone uses."""
        return "mask_token" not in key and (".layers.1." not in key or "another" not in name)

    assert_saved(hf, ours, tmp_path, kept)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qianfan_ocr")
    names = ("start_image_token", "end_image_token", "context_image_token")
    write_processor(
        folder,
        special=TOKENS,
        image_processor={
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "processor_class": "QianfanOCRProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "max_patches": 4,
        },
        tokenizer={"extra_special_tokens": dict(zip(names, TOKENS, strict=True))},
    )
    return write_random_checkpoint(folder, config_json())


def test_ids_and_tiles_are_those_of_the_real_processor(model):
    from transformers.models.qianfan_ocr.processing_qianfan_ocr import QianfanOCRProcessor

    real = real_processor(model.source, QianfanOCRProcessor, image_seq_length=TILE_TOKENS)
    pictures = [random_picture(40, 90), random_picture(30, 30, seed=1)]
    text = "what <image> is this <image> ?"
    expected = real(images=pictures, text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    again = models.prepare(model, **expected)
    jax.tree.map(np.testing.assert_array_equal, got.pixel_values, again.pixel_values)
    assert got.visual_mask.sum() == (3 + 1) * TILE_TOKENS


def test_the_last_layer_has_its_norm_by_either_number():
    tower = {"use_mean_pooling": False}
    last = {
        layer: QianfanOcrConfig.from_hf(config_json(tower, vision_feature_layer=layer)).vision
        for layer in (-1, 2, 1)
    }
    assert last[-1] == last[2]
    assert last[2].post_norm
    assert not last[1].post_norm


def test_clips_are_refused(model):
    with pytest.raises(NotImplementedError, match="qianfan_ocr models take pictures alone"):
        models.prepare(model, prompts="<video> what", videos=np.zeros((2, 9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"downsample_ratio": 0.4}, "downsample_ratio=0.4"),
        ({"vision": {"model_type": "internvl_vision"}}, "model_type='internvl_vision'"),
        ({"text": {"model_type": "gpt_oss"}}, "text_config.model_type='gpt_oss'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, named):
    with pytest.raises(NotImplementedError, match=named):
        QianfanOcrConfig.from_hf(config_json(**changes))
