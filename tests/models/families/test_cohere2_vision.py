"""Command A Vision: processing as transformers', refusals; against transformers' model (parity)."""

import json
import shutil

import numpy as np
import pytest

import models
from models.families.aya_vision.cohere2_vision import Cohere2VisionConfig
from models.prompts.processor import processor_of
from tests.models.families.test_aya_vision import KINDS, SIZE, SIZES, TOWER
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

NAMES = {
    "image_token": "<|IMG_PATCH|>",
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
IMAGE = len(WORDS)


def config_json(text=None, **changes):
    return {
        "model_type": "cohere2_vision",
        "image_token_id": IMAGE,
        "vision_config": TOWER,
        "text_config": {"model_type": "cohere2"} | SIZES | (text or {}),
        "alignment_intermediate_size": 20,
        **changes,
    }


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        (
            {
                "text": {"layer_types": KINDS, "attention_bias": True, "layer_norm_eps": 1e-3},
                "tie_word_embeddings": False,
                "alignment_intermediate_size": 6,
            },
            {"save_original_format": False},
        ),
        ({"downsample_factor": 4, "text": {"num_key_value_heads": 2}}, {"max_shard_size": "4KB"}),
    ],
)
def test_logits_and_greedy_tokens(changes, options, tmp_path):
    from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

    config = Cohere2VisionConfig(**config_json(**changes))
    hf = randomize(Cohere2VisionForConditionalGeneration(config))
    ours = save(hf, tmp_path, **options)
    run = [IMAGE] * ours.config.image_tokens
    rows = padded_rows([3, *run, 5, *run, *run, 7], [8, 9, 10], [4, *run, 6])
    pixels = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    assert_parity(hf, ours, rows | {"pixel_values": pixels})
    assert_saved(hf, ours, tmp_path, lambda name: ".head." not in name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohere2")
    write_processor(
        folder,
        special=[*NAMES.values()],
        image_processor={
            "image_processor_type": "Cohere2VisionImageProcessorFast",
            "size": {"height": SIZE, "width": SIZE},
            "max_patches": 3,
            "patch_size": 2,
        },
        tokenizer={"extra_special_tokens": NAMES},
    )
    return write_random_checkpoint(folder, config_json({"layer_types": KINDS}))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_ids_and_tiles_are_those_of_the_real_processor(model):
    from transformers.models.cohere2_vision.processing_cohere2_vision import Cohere2VisionProcessor

    real = real_processor(model.source, Cohere2VisionProcessor)
    sizes = ((20, 45), (40, 12), (9, 9), (17, 16), (70, 71), (5, 90))
    pictures = [random_picture(*size) for size in sizes]
    text = "what <|IMG_PATCH|> is <|IMG_PATCH|> ?" + "<|IMG_PATCH|>" * 4
    expected = real(images=pictures, text=[text], return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    pixels = expected["pixel_values"]
    np.testing.assert_array_equal(got.pixel_values[: len(pixels)], pixels)


def test_a_picture_is_cut_where_it_grows_least(model):
    """Two tiles and the whole of a wide picture; one tile of a picture that fits into it."""
    wide, small = random_picture(16, 30), random_picture(9, 9)
    prompt = models.chat_prompt(model, "what ?", num_images=1)
    for picture, tiles in ((wide, 3), (small, 1)):
        got = models.prepare(model, prompts=prompt, images=picture)
        assert int(got.visual_mask.sum()) == tiles * 4


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"downsample_factor": 3}, NotImplementedError, "downsample_factor=3"),
        ({"alignment_intermediate_size": 5}, ValueError, "expected an even number, got 5"),
        (
            {"vision_config": {"model_type": "clip_vision_model"}},
            NotImplementedError,
            "class token",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        Cohere2VisionConfig.from_hf(config_json(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"height": 8, "width": 8}}, "size: expected height and width 16"),
        ({"max_patches": 0}, "max_patches: expected 1 to 128"),
        ({"crop_to_patches": 3}, "crop_to_patches: expected true or false, got 3"),
    ],
)
def test_image_settings_that_do_not_fit_are_refused(model, changes, words, tmp_path):
    folder = shutil.copytree(model.source, tmp_path / "changed")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        processor_of(models.load(folder))
