"""Folders that are no checkpoint, another kind of one, or damaged: one clear error each."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from tests.models.hf_files import (
    config_json,
    random_weights,
    write_checkpoint,
    write_config,
    write_index,
)
from tests.support import qwen_vl
from tests.support.random_checkpoint import write_random_checkpoint


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
        (lambda w: rename(w, lambda key: f"{key}.modules_to_save.default"), "a LoRA adapter"),
        (
            lambda w: {k: v.astype(ml_dtypes.float8_e4m3fn) for k, v in w.items()},
            "quantized weights",
        ),
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


def test_a_family_is_not_told_from_tensors_that_its_models_take(tmp_path):
    config = qwen_vl.config_json("qwen2_vl")
    write_random_checkpoint(tmp_path, config)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if name.endswith("visual.merger.mlp.0.bias"))]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"missing: [^;]+$"):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        (["config.json", "adapter_model.safetensors"], "is a LoRA adapter"),
        (["params.json", "consolidated.safetensors"], "only in Mistral's or Meta's own layout"),
        (["model-q4.gguf"], "only as GGUF"),
        (["config.json", "a.pth", "b.pth", "c.pth"], "only as a.pth, b.pth and 1 more"),
        (["config.json", "model.onnx"], "only as ONNX"),
        (["config.json", "__0_0.distcp"], "only as parts of a training"),
        (["step-5/config.json"], "the folders inside that have one: step-5"),
    ],
)
def test_a_folder_of_another_kind_is_told_in_one_line(tmp_path, files, message):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(config_json()))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        models.load(tmp_path)


def test_an_adapter_beside_whole_weights_is_not_left_out(tmp_path):
    write_checkpoint(tmp_path, random_weights())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has beside its weights a LoRA adapter: merge"):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq'"),
        ({"compression_config": {}, "quantization": {"bits": 4}}, r"\.json: quantization: "),
        ({"text": {"quantization_config": {"quant_method": "fp8"}}}, "text_config.quantization"),
    ],
)
def test_quantized_weights_are_known_from_the_config(tmp_path, changes, message):
    folder = write_checkpoint(tmp_path, random_weights(), config=config_json(**changes))
    with pytest.raises(NotImplementedError, match=message) as e:
        models.load(folder)
    assert len(str(e.value)) < 400


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
