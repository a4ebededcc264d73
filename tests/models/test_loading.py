import dataclasses
import json
import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models.checkpoints.weights import all_finite
from models.families.llava.model import LlavaModel
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


def test_weights_that_are_not_used_may_be_anything(tmp_path, reference):
    weights = random_weights()
    weights["vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias"][0] = np.nan
    loaded = models.load(write_checkpoint(tmp_path, weights), dtype=jnp.float32)
    assert_same_params(loaded, reference)


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


def write_index(folder, weight_map):
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../w.safetensors", "a/../../w.safetensors", "/etc/passwd", "..\\w", "C:\\w", 3, None, ["a"]],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    folder = tmp_path / "model"
    write_checkpoint(folder, random_weights(), shards=3)
    save_file(random_weights(), tmp_path / "w.safetensors")
    write_index(folder, {"extra": shard})
    with pytest.raises(ValueError, match="weight_map: expected a file of this folder for 'extra'"):
        models.load(folder)


def rename(weights, change):
    return {change(key): value for key, value in weights.items()}


def text_only(weights):
    start = "language_model."
    return {key.removeprefix(start): weights[key] for key in weights if key.startswith(start)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: rename(w, lambda key: f"base_model.model.{key}.lora_A"), "a LoRA adapter"),
        (
            lambda w: rename(w, lambda key: f"module.{key}"),
            "weights of a wrapped module",
        ),
        (lambda w: rename(w, lambda key: f"{key}.qweight"), "quantized weights"),
        (
            lambda w: rename(
                w, lambda key: key.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
            ),
            "the original LLaVA layout",
        ),
        (text_only, "a text-only model"),
        (lambda w: text_only(w) | {"visual.merger.ln_q.weight": np.ones(3)}, "a Qwen-VL or GLM-V"),
        (lambda w: w | {"image_newline": np.ones(3)}, "a LLaVA-NeXT or"),
    ],
)
def test_a_foreign_checkpoint_is_told_in_one_line(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"; this looks like {message}") as e:
        models.load(write_checkpoint(tmp_path, make(random_weights())))
    assert len(str(e.value)) < 400
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        (["config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        (["params.json", "consolidated.safetensors"], "only in Mistral's or Meta's own layout"),
        (["model-q4.gguf"], "only as GGUF"),
        (["config.json", "a.pth", "b.pth", "c.pth"], "only as a.pth, b.pth and 1 more"),
    ],
)
def test_a_folder_of_another_kind_is_told_in_one_line(tmp_path, files, message):
    for file in files:
        (tmp_path / file).write_text(json.dumps(config_json()))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        models.load(tmp_path)


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


def recursive_config(folder):
    (folder / "config.json").write_text('{"a":' * 200_000)


def deep_setting(folder):
    (folder / "config.json").write_text('{"model_type": ' + "[" * 1400 + "]" * 1400 + "}")


def twice_in_config(folder):
    (folder / "config.json").write_text('{"b": {"a": 1, "a": 1}}')


def latin_config(folder):
    (folder / "config.json").write_bytes(b'{"a": "\xe4"}')


def long_number(folder):
    (folder / "config.json").write_text('{"a": %s}' % ("1" * 10_000))


def pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (folder / "model-00002-of-00003.safetensors").write_text(text)


def wrong_stop(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": {"a": 2}}')


def list_generation(folder):
    (folder / "generation_config.json").write_text("[2]")


def no_shards(folder):
    write_index(folder, {})


def invalid_config(folder):
    write_config(folder, config_json(text={"hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove_shard, FileNotFoundError, "missing: model-00002-of-00003.safetensors"),
        (truncate_shard, ValueError, "model-00002-of-00003.safetensors is truncated"),
        (truncate_header, ValueError, "model-00002-of-00003.safetensors is truncated"),
        (remove_index, FileNotFoundError, "index.json is missing beside model-00001-of-00003"),
        (empty_index, ValueError, "index.json: weight_map is missing: expected an obj"),
        (only_pickles, ValueError, "only as pytorch_model.bin"),
        (no_weights, FileNotFoundError, "has neither model.safetensors nor"),
        (remove_config, FileNotFoundError, r"config\.json is missing"),
        (break_config, ValueError, r"config\.json is not valid JSON"),
        (list_config, ValueError, r"config\.json should hold a JSON object, got a list"),
        (recursive_config, ValueError, r"config\.json is not valid JSON: it is nested too deep"),
        (deep_setting, NotImplementedError, r"config\.json: model_type=\[\["),
        (twice_in_config, ValueError, r"config\.json is not valid JSON: 'a' is given twice"),
        (latin_config, ValueError, r"config\.json is not valid JSON: it is not UTF-8 at byte 7"),
        (long_number, ValueError, r"config\.json is not valid JSON: "),
        (invalid_config, ValueError, r"config\.json: text_config\.hidden_size: expected an int"),
        (pointer, ValueError, "00002-of-00003.safetensors is only a pointer .* `git lfs pull`"),
        (wrong_stop, ValueError, r"generation_config\.json: eos_token_id: expected an integer"),
        (list_generation, ValueError, r"generation_config\.json should hold a JSON object"),
        (no_shards, ValueError, r"index\.json: weight_map is empty"),
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
        ({"model_type": "kosmos-2"}, "model_type='kosmos-2'; supported families: .*llava"),
        ({}, "model_type=None; supported families: .*llava"),
        ({"model_type": "llava_llama"}, "this is the original LLaVA layout: take its `-hf`"),
        (config_json(text={"model_type": "gpt2"}), "text_config.model_type='gpt2'"),
        (config_json(vision={"model_type": "nonsense"}), "vision_config.model_type='nonsense'"),
    ],
)
def test_other_architectures_are_refused_by_name(tmp_path, config, message):
    write_checkpoint(tmp_path, random_weights(), config=config or {"a": 1})
    with pytest.raises(NotImplementedError, match=message) as error:
        models.load(tmp_path)
    assert len(str(error.value)) < 400


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
