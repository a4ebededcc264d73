"""LightOnOCR: processing, pictures with a rim, refusals, 1 bit; transformers' model (parity)."""

import jax
import numpy as np
import pytest

import models
from models.families.lighton_ocr.config import LightOnOcrConfig
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

PATCH, IMAGE = 4, len(WORDS)
SPECIAL = ("<|image_pad|>", "<|vision_pad|>", "<|vision_end|>")


def config_json(**changes):
    return {
        "model_type": "lighton_ocr",
        "image_token_id": IMAGE,
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 12,
            "intermediate_size": 10,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": PATCH,
        },
        "text_config": {
            "model_type": "qwen3",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "max_position_embeddings": 256,
        },
        **changes,
    }


def write_tiny_processor(folder, **image_settings):
    names = ("image_token", "image_break_token", "image_end_token")
    write_processor(
        folder,
        special=SPECIAL,
        image_processor={
            "image_processor_type": "PixtralImageProcessorFast",
            "processor_class": "LightOnOcrProcessor",
            "patch_size": PATCH,
            "size": {"longest_edge": 24},
            **image_settings,
        },
        tokenizer={"extra_special_tokens": dict(zip(names, SPECIAL, strict=True))},
        processor={"processor_class": "LightOnOcrProcessor", "patch_size": PATCH},
    )


def arrays(*sizes):
    """Pictures of these sizes as transformers' processor gives them."""
    pixels = np.zeros((len(sizes), 3, *np.max(sizes, axis=0)), np.float32)
    rng = np.random.default_rng(1)
    for picture, (rows, columns) in zip(pixels, sizes, strict=True):
        picture[:, :rows, :columns] = rng.normal(size=(3, rows, columns))
    return {"pixel_values": pixels, "image_sizes": np.array(sizes)}


CASES = {
    "Qwen3, tied": {},
    "Llama, untied, blocks of three": {
        "text_config": config_json()["text_config"] | {"model_type": "llama"},
        "tie_word_embeddings": False,
        "spatial_merge_size": 3,
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_transformers_model_gives_the_same_logits_and_tokens(name, tmp_path):
    """Rims of patches that make no block are seen by the others, and give no token."""
    from transformers import AutoModelForImageTextToText, LightOnOcrConfig

    changes = CASES[name]
    hf = AutoModelForImageTextToText.from_config(LightOnOcrConfig(**config_json(**changes)))
    ours = save(randomize(hf), tmp_path)
    block = PATCH * changes.get("spatial_merge_size", 2)
    sizes = [(3 * block, block + PATCH), (block + 5, 2 * block + PATCH), (2 * block, 2 * block)]
    first, second, third = ([IMAGE] * ((h // block) * (w // block)) for h, w in sizes)
    rows = padded_rows([3, first, 5, second, 7], [8, 9, 10], [4, third, 6])
    assert_parity(hf, ours, rows | arrays(*sizes))
    assert_saved(hf, ours, tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lighton_ocr")
    write_tiny_processor(folder)
    return write_random_checkpoint(folder, config_json())


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    from transformers import LightOnOcrProcessor

    real = real_processor(model.source, LightOnOcrProcessor, patch_size=PATCH)
    pictures = [random_picture(24, 20), random_picture(9, 17, seed=1)]
    text = "what <|image_pad|> is this <|image_pad|> ?"
    expected = real(text=[text], images=[pictures], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    again = models.prepare(model, **expected)
    np.testing.assert_array_equal(got.pixel_values, again.pixel_values)
    jax.tree.map(np.testing.assert_array_equal, got.vision_layout, again.vision_layout)
    # 6 x 5 patches and 3 x 5, of which 3 x 2 and 1 x 2 blocks are whole.
    assert got.vision_layout.sizes.tolist() == [[6, 5], [3, 5]]
    assert got.visual_mask.sum() == 6 + 2


def test_a_picture_without_a_whole_block_is_refused(model):
    with pytest.raises(ValueError, match="has no block of 8 x 8 pixels"):
        models.prepare(model, prompts="<image> what", images=random_picture(4, 20))


def test_tokens_that_do_not_match_the_pictures_are_refused(model):
    with pytest.raises(ValueError, match="more images than tokens"):
        models.prepare(model, input_ids=[[1, IMAGE]], **arrays((8, 20)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type="),
        ({"text_config": {"model_type": "gpt2"}}, "model_type='gpt2'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, named):
    with pytest.raises(NotImplementedError, match=named):
        LightOnOcrConfig.from_hf(config_json(**changes))
