"""DeepSeek-VL: processing as transformers', refusals; against transformers' model (parity)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models.families.deepseek_vl.config import DeepseekVLConfig
from models.prompts.processor import processor_of
from tests.support.hf_parity import assert_parity, assert_saved, randomize, save
from tests.support.pictures import random_picture
from tests.support.processor_files import WORDS, write_processor
from tests.support.random_checkpoint import write_random_checkpoint
from tests.support.real_processor import real_processor
from tests.support.rows import padded_rows

SIZE, PATCH, MARK, IMAGE = 16, 4, "<image_placeholder>", len(WORDS)
TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


def config_json(*, text=None, vision=None, **changes):
    return {
        "model_type": "deepseek_vl",
        "image_token_id": IMAGE,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": PATCH,
        }
        | (vision or {}),
        "text_config": {"model_type": "llama"} | TEXT | (text or {}),
        **changes,
    }


def write_tiny_processor(folder, **image_settings):
    write_processor(
        folder,
        special=(MARK,),
        image_processor={
            "image_processor_type": "DeepseekVLImageProcessor",
            "size": {"height": SIZE, "width": SIZE},
            "min_size": 3,
            **image_settings,
        },
        tokenizer={"extra_special_tokens": {"image_token": MARK}},
        processor={"processor_class": "DeepseekVLProcessor", "num_image_tokens": 16},
    )
    return folder


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        (
            {"tie_word_embeddings": False, "vision": {"layer_norm_eps": 1e-3}},
            {"save_original_format": False},
        ),
        ({"text": {"model_type": "qwen2", "num_hidden_layers": 3}}, {"max_shard_size": "4KB"}),
    ],
)
def test_logits_and_greedy_tokens(changes, options, tmp_path):
    from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration

    hf = randomize(DeepseekVLForConditionalGeneration(DeepseekVLConfig(**config_json(**changes))))
    ours = save(hf, tmp_path, **options)
    run = [IMAGE] * ours.config.image_tokens
    rows = padded_rows([3, *run, 5, *run, 7], [8, 9, 10], [4, *run, 6])
    pixels = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
    assert_parity(hf, ours, rows | {"pixel_values": pixels})
    assert_saved(hf, ours, tmp_path, kept=lambda name: ".head." not in name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_processor(tmp_path_factory.mktemp("deepseek_vl"))
    return write_random_checkpoint(folder, config_json())


def test_names_of_transformers_4(model, tmp_path):
    """Its tower has a module more."""
    weights = load_file(next(Path(model.source).glob("*.safetensors")))
    tower = "model.vision_model."
    older = {k.replace(tower, f"{tower}vision_model."): v for k, v in weights.items()}
    save_file(older, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    again = models.load(tmp_path, dtype=jnp.float32)
    assert set(older) != set(weights)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_ids_and_pixels_are_those_of_the_real_processor(model):
    from transformers import DeepseekVLProcessor

    real = real_processor(model.source, DeepseekVLProcessor, num_image_tokens=16)
    pictures = [random_picture(24, 20), random_picture(1, 70, seed=1), random_picture(5, 5)]
    text = f"what {MARK} is this {MARK} ? {MARK}"
    expected = real(text=[text], images=pictures, return_tensors="np")
    got = models.prepare(model, prompts=text, images=pictures)
    np.testing.assert_array_equal(got.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(got.pixel_values, expected["pixel_values"])


def test_large_pictures_shrink_before_they_are_padded(model):
    """LLaVA's would be padded first."""
    long = np.zeros((2, 2**14, 3), np.uint8)
    assert models.prepare(model, prompts="<image> what", images=long).pixel_values.shape[-1] == SIZE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"height": 20, "width": 20}}, "size: expected height and width 16"),
        ({"min_size": 17}, "min_size: expected a whole number from 1 to 16, got 17"),
        ({"min_size": 2.5}, "min_size: expected a whole number"),
        ({"image_mean": [120.0, 110.0, 130.0]}, "image_mean: expected three numbers from 0 to 1"),
    ],
)
def test_image_settings_that_do_not_fit_are_refused(changes, words, tmp_path):
    folder = write_tiny_processor(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        _ = processor_of(write_random_checkpoint(folder, config_json())).image_processor


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision": {"model_type": "clip_vision_model"}}, "vision_config.model_type="),
        ({"text": {"model_type": "gpt2"}}, "model_type='gpt2'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, named):
    with pytest.raises(NotImplementedError, match=named):
        DeepseekVLConfig.from_hf(config_json(**changes))


def test_the_model_with_two_towers_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_vl_hybrid"}')
    with pytest.raises(NotImplementedError, match="deepseek_vl_hybrid"):
        models.load(tmp_path)
