"""Weights that do not fit config.json or the dtype: one error tells of all."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import models
from models.checkpoints.weights import all_finite
from models.families.llava.model import LlavaModel
from tests.models.hf_files import (
    config_json,
    random_weights,
    write_checkpoint,
)


def test_one_error_tells_of_all_weights_that_do_not_fit(tmp_path):
    weights = random_weights()
    del weights["multi_modal_projector.linear_1.bias"]
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    weights["language_model.model.norm.weight"] = np.ones(3, np.float32)
    weights["vision_tower.vision_model.embeddings.class_embedding"] = np.ones(8, np.int8)
    weights["language_model.model.layers.2.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
    weights["vision_tower.vision_model.encoder.layers.3.layer_norm1.bias"] = np.ones(8, np.float32)
    weights["extra"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"do not fit config.json \(7\): ") as error:
        models.load(write_checkpoint(tmp_path, weights))
    text = str(error.value)
    assert len(text) < 400
    for part in (r"missing: .* and 1 more; wrong", "; unexpected: .* and 2 more"):
        assert re.search(part, text)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("multi_modal_projector.linear_1.bias", None, r"missing: projector\.linear_1\.bias$"),
        (
            "language_model.model.norm.weight",
            np.ones(3, np.float32),
            r"wrong shape: language_model\.model\.norm\.weight \(expected \(16,\), got \(3,\)\)",
        ),
        (
            "language_model.model.norm.weight",
            np.ones(16, np.int8),
            r"wrong dtype: language_model\.model\.norm\.weight \(expected .* got I8\)",
        ),
        ("a\nb", np.ones(3, np.float32), r"unexpected: 'a\\nb'"),
        ("b" * 5000, np.ones(3, np.float32), r"unexpected: b+\.\.\.b+$"),
        (
            "language_model.lm_head.weight",
            np.ones((), np.float32),
            r"wrong shape: language_model\.lm_head\.weight .* got \(\)",
        ),
    ],
)
def test_a_weight_that_does_not_fit_is_named(tmp_path, name, tensor, message):
    weights = random_weights()
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor
    tied = config_json(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=message) as error:
        models.load(write_checkpoint(tmp_path, weights, config=tied))
    assert len(str(error.value)) < 400


def test_a_weight_given_twice_is_unexpected_once(tmp_path):
    weights = random_weights()
    weights["lm_head.weight"] = weights["language_model.lm_head.weight"]
    with pytest.raises(ValueError, match=r"config.json \(1\): unexpected: .*lm_head"):
        models.load(write_checkpoint(tmp_path, weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text": {"num_hidden_layers": 4096}},
            r"num_hidden_layers=4096 \(stored: 2\)",
        ),
        ({"text": {"hidden_size": 2**22}}, r"hidden_size=4194304 \(.*embed_tokens.* \(20, 16\)"),
        ({"text": {"vocab_size": 21}}, r"text_config.vocab_size=21 \(.* \(20, 16\)"),
        ({"text": {"intermediate_size": 2**20}}, r"text_config.intermediate_size=1048576"),
        ({"text": {"head_dim": 1024}}, r"text_config.num_attention_heads \* head_dim=4096"),
        (
            {"text": {"num_key_value_heads": 4}},
            r"key_value_heads \* head_dim=16 \(.* \(8, 16\)",
        ),
        ({"vision": {"num_hidden_layers": 4000}}, r"up to vision_feature_layer=3999 \(stored: 3\)"),
        ({"vision": {"hidden_size": 2**20}}, r"vision_config.hidden_size=1048576"),
        ({"vision": {"intermediate_size": 2**20}}, r"vision_config.intermediate_size=1048576"),
        ({"vision": {"patch_size": 7}}, r"vision_config.patch_size=7 \(.*\(8, 3, 14, 14\)"),
        ({"vision": {"image_size": 2**14}}, r"\*\*2 \+ 1=1368901 \(.* \(5, 8\)"),
    ],
)
def test_sizes_are_compared_with_the_files_first(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(LlavaModel, "__init__", None)  # nothing of that size is made
    folder = write_checkpoint(tmp_path, random_weights(), config=config_json(**changes))
    with pytest.raises(ValueError, match=f"config.json does not fit the weights .*{message}"):
        models.load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, stored, value):
    weights = random_weights(dtype=stored)
    weights["language_model.model.layers.1.mlp.up_proj.weight"][3, 2] = value
    message = r"language_model\.model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"
    with pytest.raises(ValueError, match=message):
        models.load(write_checkpoint(tmp_path, weights))


def test_weights_too_large_for_the_dtype_are_refused_by_name(tmp_path):
    weights = random_weights(dtype=np.float64)
    weights["multi_modal_projector.linear_1.weight"][0, 0] = 1e39
    with pytest.raises(ValueError, match=r"linear_1\.weight has values too large for float32"):
        models.load(write_checkpoint(tmp_path, weights), dtype=jnp.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_all_finite_looks_at_every_element(dtype, size):
    largest = ml_dtypes.finfo(dtype).max
    tensor = np.full(size, largest, dtype)
    tensor[::2] *= -1
    assert all_finite(tensor)
    for place in {0, size // 2, size - 1} if size else set():
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            wrong = tensor.copy()
            wrong[place] = value
            assert not all_finite(wrong)
