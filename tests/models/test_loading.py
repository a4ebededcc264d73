"""Weights of a folder arrive in a model, and are saved."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models.checkpoints.folder import Checkpoint
from models.checkpoints.weights import put
from models.loading import TINY
from models.prompts.arrays import inputs_from_arrays
from tests.models.hf_files import (
    config_json,
    random_weights,
    write_checkpoint,
    write_config,
    write_index,
)

PICTURE = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
IDS = [[1, 12, 12, 12, 12, 5, 6]]


def logits(model):
    return models.forward(model, inputs_from_arrays(model.config, IDS, None, PICTURE))


def in_memory_of_transformers_5(key):
    if key.startswith("language_model.lm_head"):
        return key.removeprefix("language_model.")
    key = key.replace("language_model.model.", "language_model.")
    return "model." + key.replace("vision_tower.vision_model.", "vision_tower.")


STYLES = {
    "transformers 4": lambda key: key,
    "transformers 4.52": lambda key: in_memory_of_transformers_5(key).replace(
        "vision_tower.", "vision_tower.vision_model."
    ),
    "transformers 5": lambda key: key.replace("vision_tower.vision_model.", "vision_tower."),
    "transformers 5 in memory": in_memory_of_transformers_5,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A model from one file of transformers 4."""
    folder = write_checkpoint(tmp_path_factory.mktemp("reference"), random_weights())
    return models.load(folder, dtype=jnp.float32)


def assert_same_params(got, expected):
    assert jax.tree.structure(got.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


def test_every_weight_arrives_in_its_place(reference):
    weights = random_weights()
    params = reference.params
    layer = "language_model.model.layers.1"
    np.testing.assert_array_equal(
        params["text"]["layers"]["mlp"]["gate_proj"]["kernel"][1],
        weights[f"{layer}.mlp.gate_proj.weight"].T,
    )
    np.testing.assert_array_equal(
        params["text"]["layers"]["input_layernorm"]["weight"][1],
        weights[f"{layer}.input_layernorm.weight"],
    )
    assert (
        reference.params["vision"]["encoder"]["layers"]["self_attn"]["q_proj"]["kernel"].shape[0]
        == 2
    )
    assert logits(reference).shape == (1, 7, 20)
    assert reference.config.eos_token_ids == (2,)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shards", [1, 3])
def test_key_names_of_all_generations_and_shards(tmp_path, reference, style, shards):
    weights = {STYLES[style](key): value for key, value in random_weights().items()}
    write_checkpoint(tmp_path, weights, shards=shards)
    assert_same_params(models.load(tmp_path, dtype=jnp.float32), reference)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_of_files_and_models(tmp_path, stored, dtype):
    weights = random_weights(dtype=stored)
    got = models.load(write_checkpoint(tmp_path, weights), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(got.params)} == {jnp.dtype(dtype)}
    table = weights["language_model.model.embed_tokens.weight"].astype(dtype)
    np.testing.assert_array_equal(got.params["text"]["embed_tokens"]["weight"][...], table)


def test_unneeded_vision_layers_may_be_absent_and_old_buffers_present(tmp_path, reference):
    weights = random_weights()
    for key in [key for key in weights if ".layers.2." in key or "post_layernorm" in key]:
        del weights[key]
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    weights["vision_tower.vision_model.embeddings.position_ids"] = np.arange(5)[None]
    loaded = models.load(write_checkpoint(tmp_path, weights), dtype=jnp.float32)
    assert_same_params(loaded, reference)


@pytest.mark.parametrize("head", ["absent", "same", "different"])
def test_a_tied_head(tmp_path, head):
    weights = random_weights()
    table = weights["language_model.model.embed_tokens.weight"]
    if head == "absent":
        del weights["language_model.lm_head.weight"]
    elif head == "same":
        weights["language_model.lm_head.weight"] = table.copy()
    write_checkpoint(tmp_path, weights, config=config_json(tie_word_embeddings=True))
    model = models.load(tmp_path, dtype=jnp.float32)
    # A file that holds another head than its config promises is believed, as transformers does.
    assert model.config.text.tie_word_embeddings == (head != "different")
    x = jnp.ones((1, 16))
    expected = x @ (weights["language_model.lm_head.weight"] if head == "different" else table).T
    np.testing.assert_allclose(model.module().text.logits(x), expected, rtol=1e-5)


def test_weights_that_are_not_used_may_be_anything(tmp_path, reference):
    weights = random_weights()
    weights["vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias"][0] = np.nan
    loaded = models.load(write_checkpoint(tmp_path, weights), dtype=jnp.float32)
    assert_same_params(loaded, reference)


def test_one_file_goes_before_an_index(tmp_path, reference):
    """As in transformers, whatever the index says."""
    other = {key: value + 1 for key, value in random_weights().items()}
    write_checkpoint(tmp_path, other, shards=3)
    write_checkpoint(tmp_path, random_weights())
    assert_same_params(models.load(tmp_path, dtype=jnp.float32), reference)
    for content in ("{", '{"weight_map": {"a": "gone.safetensors"}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        assert_same_params(models.load(tmp_path, dtype=jnp.float32), reference)


def test_the_index_tells_which_of_two_shards_has_a_weight(tmp_path, reference):
    write_checkpoint(tmp_path, random_weights(), shards=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "language_model.model.norm.weight"
    other = next(file for file in sorted(index.values()) if file != index[name])
    tensors = load_file(tmp_path / other) | {name: np.zeros(16, np.float32)}
    save_file(tensors, tmp_path / other)
    assert_same_params(models.load(tmp_path, dtype=jnp.float32), reference)
    del index[name]
    write_index(tmp_path, index)
    with pytest.raises(ValueError, match=r"norm.weight is stored in .* and in model-"):
        models.load(tmp_path)


def test_an_accelerator_transposes_what_lies_otherwise_in_files(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    stored = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for values in (stored, stored.swapaxes(-1, -2)):
        np.testing.assert_array_equal(put(values), values)


def test_tensors_outlive_the_files_they_were_read_from(tmp_path):
    tensors = {
        "bytes": np.arange(3, dtype=np.uint8),  # those behind it start at an odd byte
        "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    read = {name: checkpoint.read(name) for name in tensors}
    rows = checkpoint.read("matrix", slice(1, 3))
    (tmp_path / "model.safetensors").unlink()
    np.testing.assert_array_equal(rows, tensors["matrix"][1:])
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


@pytest.mark.skipif(TINY.is_dir(), reason="the embedded checkpoint is here")
def test_the_embedded_checkpoint_may_be_missing():
    with pytest.raises(FileNotFoundError, match="embedded checkpoint is not part of this copy"):
        models.load("tiny")


@pytest.mark.parametrize(
    ("dtype", "got"),
    [
        (jnp.int8, "int8"),
        ("auto", "'auto'"),
        (None, "None"),
        (float, "float64"),
        (jnp.float8_e4m3fn, "float8_e4m3fn"),
        ("f4,(", "'f4,\\('"),
        (3, "3"),
        ([1], r"\[1\]"),
    ],
)
def test_dtype_is_one_that_models_compute_in(tmp_path, dtype, got):
    with pytest.raises(ValueError, match=f"dtype: expected float32, bfloat16, float16, got {got}"):
        models.load(tmp_path, dtype=dtype)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have such products")
def test_float16_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(ValueError, match="dtype float16 does not run on a CPU"):
        models.load(write_checkpoint(tmp_path, random_weights()), dtype="float16")


@pytest.mark.parametrize("path", [None, 3, b"tiny", "", ["tiny"]])
def test_a_path_is_text_or_a_path(reference, path):
    with pytest.raises(ValueError, match="path: expected that of a folder, as text or Path, got"):
        models.load(path)
    with pytest.raises(ValueError, match="path: expected that of a folder, as text or Path, got"):
        models.save_weights(reference, path)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800", "llava-hf/llava-1.5-7b-hf"])
def test_a_folder_that_cannot_be(path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.* nothing is downloaded") as error:
        models.load(path)
    assert len(str(error.value)) < 400


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="expected a checkpoint folder, got the file"):
        models.load(write_checkpoint(tmp_path, random_weights()) / "model.safetensors")


def test_layers_apart_is_a_truth_value(tmp_path):
    with pytest.raises(ValueError, match="layers_apart: expected True, False or None, got 'no'"):
        models.load(tmp_path, layers_apart="no")


def test_a_byte_order_mark_is_skipped(tmp_path, reference):
    write_checkpoint(tmp_path, random_weights())
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert_same_params(models.load(tmp_path, dtype=jnp.float32), reference)


def test_the_folder_is_remembered_from_any_working_directory(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "model", random_weights())
    monkeypatch.chdir(tmp_path)
    assert models.load("model").source == str(tmp_path / "model")


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7, 8], (7, 8))])
def test_stop_tokens_come_from_the_generation_settings(tmp_path, eos, expected):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert models.load(tmp_path).config.eos_token_ids == expected


@pytest.mark.parametrize("eos", [None, []])
def test_stop_tokens_that_generation_settings_lack_are_those_of_the_configuration(tmp_path, eos):
    write_checkpoint(tmp_path, random_weights())
    expected = models.read_config(tmp_path).eos_token_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.warns(UserWarning, match="has no eos_token_id: that of config.json ends answers"):
        assert models.read_config(tmp_path).eos_token_ids == expected


def test_stop_tokens_beyond_the_vocabulary_are_named(tmp_path):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 10**6]}))
    with pytest.warns(UserWarning, match=r"eos_token_id \[1000000\] lies beyond the vocabulary of"):
        assert models.read_config(tmp_path).eos_token_ids == (7, 10**6)


@pytest.mark.parametrize(
    ("generation", "outer", "inner", "expected"),
    [
        (7, 8, 9, (7,)),
        ([7, 8], 9, None, (7, 8)),
        (None, 8, 9, (8,)),
        (None, None, 0, (0,)),
        (-1, None, None, (-1,)),  # of the first LLaMA models: no token is that
        (None, None, None, ()),
    ],
)
def test_padding_tokens_come_from_the_first_file_that_has_one(
    tmp_path, generation, outer, inner, expected
):
    write_config(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | {"pad_token_id": outer}
    content["text_config"]["pad_token_id"] = inner
    (tmp_path / "config.json").write_text(json.dumps(content))
    settings = {"eos_token_id": 2, "pad_token_id": generation}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    assert models.read_config(tmp_path).pad_token_ids == expected


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_padding_token_of_a_wrong_type_is_named_with_its_file(tmp_path, name):
    write_config(tmp_path)
    file = tmp_path / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | {"pad_token_id": "<pad>"}))
    with pytest.raises(ValueError, match=rf"{name}: pad_token_id: expected an integer.*'<pad>'"):
        models.read_config(tmp_path)


def test_what_is_saved_is_what_is_loaded(tmp_path, reference):
    write_config(tmp_path)
    models.save_weights(reference, tmp_path)
    again = models.load(tmp_path, dtype=jnp.float32)
    assert_same_params(again, reference)
    stored = load_file(tmp_path / "model.safetensors")
    original = random_weights()
    assert {key for key in original if key not in stored} == {
        key for key in original if ".encoder.layers.2." in key or "post_layernorm" in key
    }
    for key, value in stored.items():
        np.testing.assert_array_equal(value, original[key])


def test_weights_are_saved_whole_and_folders_made(tmp_path, reference):
    models.save_weights(reference, tmp_path / "a" / "b")
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["model.safetensors"]


def test_loading_holds_the_weights_once(tmp_path):
    """Above the weights themselves, the host holds one stack over layers and one tensor."""
    layers, width = 12, 128
    text = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": layers}
    config = config_json(text=text | {"num_key_value_heads": 4})
    weights = random_weights()
    names = [key for key in weights if "language_model.model.layers.0." in key]
    for key in [key for key in weights if "language_model.model.layers." in key]:
        del weights[key]
    for name in names:
        shape = (width,) if "norm" in name else (width, width)
        for layer in range(layers):
            weights[name.replace("layers.0", f"layers.{layer}")] = np.ones(shape, np.float32)
    for key, shape in {
        "language_model.model.embed_tokens.weight": (20, width),
        "language_model.lm_head.weight": (20, width),
        "language_model.model.norm.weight": (width,),
        "multi_modal_projector.linear_1.weight": (width, 8),
        "multi_modal_projector.linear_1.bias": (width,),
        "multi_modal_projector.linear_2.weight": (width, width),
        "multi_modal_projector.linear_2.bias": (width,),
    }.items():
        weights[key] = np.ones(shape, np.float32)
    write_checkpoint(tmp_path, weights, config=config)
    models.load(tmp_path, dtype=jnp.float32)  # imports and traces are not what is measured
    tracemalloc.start()
    model = models.load(tmp_path, dtype=jnp.float32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    stack = layers * width * width * 4
    # Whether JAX copies a NumPy array or shares it, `total` is counted at most once.
    assert peak < total + 1.5 * stack
    assert total > 6 * stack


def test_a_model_is_a_pytree(reference):
    doubled = jax.tree.map(lambda p: 2 * p, reference)
    assert doubled.source == reference.source
    assert jax.tree.structure(doubled) == jax.tree.structure(reference)
    assert dataclasses.is_dataclass(doubled)
