import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from models.loading import TINY
from tests.models.hf_files import (
    config_json,
    random_weights,
    write_checkpoint,
    write_config,
)

PICTURE = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
IDS = [[1, 12, 12, 12, 12, 5, 6]]


def logits(model):
    return models.forward(model, models.Inputs.from_arrays(model.config, IDS, None, PICTURE))


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
        params["text"]["layers"]["gate"]["kernel"][1], weights[f"{layer}.mlp.gate_proj.weight"].T
    )
    np.testing.assert_array_equal(
        params["text"]["layers"]["attention_norm"]["scale"][1],
        weights[f"{layer}.input_layernorm.weight"],
    )
    assert reference.params["vision"]["layers"]["query"]["kernel"].shape[0] == 2
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
    np.testing.assert_array_equal(got.params["text"]["embedding"][...], table)


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
    assert model.config.text.tied_head == (head != "different")
    x = jnp.ones((1, 16))
    expected = x @ (weights["language_model.lm_head.weight"] if head == "different" else table).T
    np.testing.assert_allclose(model.module().text.logits(x), expected, rtol=1e-5)


def test_one_error_lists_all_weights_that_do_not_fit(tmp_path):
    weights = random_weights()
    del weights["multi_modal_projector.linear_1.bias"]
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    weights["language_model.model.norm.weight"] = np.ones(3, np.float32)
    weights["vision_tower.vision_model.embeddings.class_embedding"] = np.ones(8, np.int8)
    weights["language_model.model.layers.2.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
    weights["vision_tower.vision_model.encoder.layers.3.layer_norm1.bias"] = np.ones(8, np.float32)
    weights["extra"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="7 weights do not fit") as error:
        models.load(write_checkpoint(tmp_path, weights))
    for line in (
        "missing: projector.linear_1.bias",
        "missing: text.layers.1.mlp.up_proj.weight",
        r"wrong shape: language_model.model.norm.weight: expected (16,), got (3,)",
        "wrong dtype: vision_tower.vision_model.embeddings.class_embedding: expected one of",
        "unexpected: language_model.model.layers.2.mlp.up_proj.weight",
        "unexpected: vision_tower.vision_model.encoder.layers.3.layer_norm1.bias",
        "unexpected: extra",
    ):
        assert line in str(error.value)


def test_a_weight_given_twice_is_unexpected_once(tmp_path):
    weights = random_weights()
    weights["lm_head.weight"] = weights["language_model.lm_head.weight"]
    with pytest.raises(ValueError, match=r"1 weights do not fit.*\nunexpected: .*lm_head"):
        models.load(write_checkpoint(tmp_path, weights))


def remove_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncate_shard(folder):
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


def truncate_header(folder):
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"\x00\x01")


def remove_index(folder):
    (folder / "model.safetensors.index.json").unlink()


def empty_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


def only_pickles(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def no_weights(folder):
    for file in folder.glob("model*"):
        file.unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


def list_config(folder):
    (folder / "config.json").write_text("[]")


def invalid_config(folder):
    write_config(folder, config_json(text={"hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_shard, FileNotFoundError, "missing: model-00002-of-00003.safetensors"),
        (truncate_shard, ValueError, "model-00002-of-00003.safetensors is truncated"),
        (truncate_header, ValueError, "model-00002-of-00003.safetensors is truncated"),
        (remove_index, FileNotFoundError, "index.json is missing beside model-00001-of-00003"),
        (empty_index, ValueError, "index.json has no weight_map"),
        (only_pickles, ValueError, "only as pytorch_model.bin"),
        (no_weights, FileNotFoundError, "has neither model.safetensors nor"),
        (remove_config, FileNotFoundError, r"config\.json is missing"),
        (break_config, ValueError, r"config\.json is not valid JSON"),
        (list_config, ValueError, r"config\.json should hold a JSON object, got list"),
        (invalid_config, ValueError, r"config\.json is not valid: "),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path, damage, error, message):
    write_checkpoint(tmp_path, random_weights(), shards=3)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        models.load(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        models.load(tmp_path / "nowhere")


@pytest.mark.skipif(TINY.is_dir(), reason="the embedded checkpoint is here")
def test_the_embedded_checkpoint_may_be_missing():
    with pytest.raises(FileNotFoundError, match="embedded checkpoint is not part of this copy"):
        models.load("tiny")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type='qwen2_vl'; supported: 'llava'"),
        ({}, "model_type=None; supported: 'llava'"),
        (config_json(text={"model_type": "qwen2"}), "text_config.model_type='qwen2'"),
        (config_json(vision={"model_type": "nonsense"}), "vision_config.model_type='nonsense'"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, config, message):
    write_checkpoint(tmp_path, random_weights(), config=config or {"a": 1})
    with pytest.raises(NotImplementedError, match=message):
        models.load(tmp_path)


def test_dtype_must_be_floating(tmp_path):
    with pytest.raises(ValueError, match="floating type, got int8"):
        models.load(tmp_path, dtype=jnp.int8)


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7, 8], (7, 8))])
def test_stop_tokens_come_from_the_generation_settings(tmp_path, eos, expected):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert models.load(tmp_path).config.eos_token_ids == expected


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
