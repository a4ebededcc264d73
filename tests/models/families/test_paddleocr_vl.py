"""PaddleOCR-VL: processing, both layouts of names, refusals; transformers' model (parity)."""

import jax
import numpy as np
import pytest

import models
from models.families.paddleocr_vl.config import PaddleOcrVLConfig
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

PATCH, IMAGE = 4, len(WORDS)
VIDEO, START, END = IMAGE + 1, IMAGE + 2, IMAGE + 3
TOKENS = ("<|IMAGE_PLACEHOLDER|>", "<|video_pad|>", "<|IMAGE_START|>", "<|IMAGE_END|>")
TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 3]},
}
TOKEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def config_json(vision=None, text=None, **changes):
    return {
        "model_type": "paddleocr_vl",
        **TOKEN_IDS,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 10,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 5 * PATCH,
            "patch_size": PATCH,
            **(vision or {}),
        },
        "text_config": TEXT | (text or {}),
        **changes,
    }


def batch(*grids):
    """Two pictures and none, and one, as transformers' processor gives them."""
    first, second, third = ([START, *[IMAGE] * (h * w // 4), END] for h, w in grids)
    rows = padded_rows([3, first, 5, second, 7], [8, 9, 10], [4, third, 6])
    patches = sum(h * w for h, w in grids)
    pixels = np.random.default_rng(1).normal(size=(patches, 3, PATCH, PATCH)).astype(np.float32)
    return rows | {
        "pixel_values": pixels,
        "image_grid_thw": np.array([(1, *grid) for grid in grids]),
        "mm_token_type_ids": (rows["input_ids"] == IMAGE).astype(np.int64),
    }


CASES = {
    "tied": {},
    "untied, biases": {
        "text": {"use_bias": True, "tie_word_embeddings": False},
        "vision": {"hidden_act": "gelu", "rope_parameters": {"rope_theta": 50.0}},
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("original", [True, False], ids=["names of the Hub", "of modules"])
@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, original, tmp_path):
    from transformers import AutoModelForImageTextToText, PaddleOCRVLConfig

    settings = PaddleOCRVLConfig(**config_json(**CASES[name]))
    hf = randomize(AutoModelForImageTextToText.from_config(settings))
    ours = save(hf, tmp_path, save_original_format=original)
    assert_parity(hf, ours, batch((4, 6), (10, 2), (6, 6)))
    assert_saved(hf, ours, tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paddleocr_vl")
    write_processor(
        folder,
        special=TOKENS,
        image_processor={
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "patch_size": PATCH,
            "merge_size": 2,
            "temporal_patch_size": 1,
            "min_pixels": 64,
            "max_pixels": 1024,
        },
        tokenizer={"extra_special_tokens": {"image_token": TOKENS[0]}},
    )
    return write_random_checkpoint(folder, config_json())


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    from transformers import PaddleOCRVLProcessor

    real = real_processor(model.source, PaddleOCRVLProcessor)
    pictures = [random_picture(30, 21), random_picture(3, 17, seed=1)]
    text = models.chat_prompt(model, "what ?", num_images=2)
    expected = real(text=[text], images=pictures, return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    again = models.prepare(model, **expected)
    for name in ("positions", "pixel_values", "vision_layout"):
        pair = (getattr(each, name) for each in (got, again))
        jax.tree.map(np.testing.assert_array_equal, *pair)


def test_text_settings_may_lie_beside_all_others():
    """And a tower may have the model_type of the whole, as files of the Hub have it.

    transformers ties the head of such a file whatever it says; weights of a head of its own decide.
    """
    changes = {"vision": {"model_type": "paddleocr_vl"}, "tie_word_embeddings": False}
    flat = {**TEXT, **config_json(**changes)}
    del flat["text_config"]
    assert PaddleOcrVLConfig.from_hf(flat) == PaddleOcrVLConfig.from_hf(config_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_grid_thw": np.array([[1, 4, 3]])}, "image_grid_thw: expected integers"),
        ({"image_grid_thw": np.array([4, 4])}, "image_grid_thw: expected integers"),
        ({"image_grid_thw": np.array([[1, 4, 6]])}, "expected the 24 patches of image_grid_thw"),
        ({"image_grid_thw": None}, "image_grid_thw is missing"),
        ({"pixel_values": np.zeros((16, 3, 4, 5), np.float32)}, "pixel_values: expected floats"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, changes, message):
    arrays = {
        "input_ids": [[1, START, *[IMAGE] * 4, END, 6]],
        "pixel_values": np.zeros((16, 3, PATCH, PATCH), np.float32),
        "image_grid_thw": np.array([[1, 4, 4]]),
    }
    assert models.prepare(model, **arrays).visual_mask.sum() == 4
    with pytest.raises(ValueError, match=message):
        models.prepare(model, **arrays | changes)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"text": {"model_type": "ernie4_5"}}, NotImplementedError, "model_type='ernie4_5'"),
        ({"vision": {"model_type": "siglip_vision_model"}}, NotImplementedError, "vision_config"),
        ({"vision": {"num_attention_heads": 3}}, ValueError, "vision_config.hidden_size"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, error, named):
    with pytest.raises(error, match=named):
        PaddleOcrVLConfig.from_hf(config_json(**changes))
