import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from models import families
from models.families.aya_vision.config import AyaVisionSettings
from models.families.gemma3.config import Gemma3ModelSettings
from models.families.gemma4.config import (
    Gemma4Settings,
    Gemma4TextSettings,
    Gemma4VisionSettings,
)
from models.families.glm4v.config import Glm4vMoeSettings, Glm4vSettings, Glm46vSettings
from models.families.idefics3.config import Idefics3Settings, Idefics3VisionSettings
from models.families.internvl.config import InternVisionSettings, InternVLSettings
from models.families.llava.config import LlavaConfig, LlavaSettings
from models.families.llava_next.config import LlavaNextSettings
from models.families.llava_next_video.config import LlavaNextVideoSettings
from models.families.llava_onevision.config import LlavaOnevisionSettings
from models.families.mistral3.config import Mistral3Settings
from models.families.mllama.config import (
    MllamaSettings,
    MllamaTextSettings,
    MllamaVisionSettings,
)
from models.families.paligemma.config import PaliGemmaSettings
from models.families.qwen_vl.config import Qwen35Settings, QwenVLSettings
from models.families.registry import FAMILY_NAMES, family_of
from models.families.vipllava.config import VipLlavaSettings
from models.layers.activations import Activation
from models.layers.rope import RopeKind
from models.text.registry import TEXT_SETTINGS
from models.vision.grid_settings import GRID_SETTINGS, Glm4vVisionSettings
from models.vision.pixtral_settings import PixtralVisionSettings
from models.vision.settings import ClipVisionSettings, SiglipVisionSettings
from tests.models.hf_files import config_json
from tests.support.qwen_vl import config_json as qwen_config_json

MISTRAL = {"model_type": "mistral", "head_dim": 4}
MINISTRAL = MISTRAL | {"model_type": "ministral"}


def read(config):
    return LlavaConfig.from_hf(config)


def test_published_llava_7b_file():
    """The file of llava-hf/llava-1.5-7b-hf leaves most settings to transformers' defaults."""
    got = read(
        {
            "model_type": "llava",
            "image_token_index": 32000,
            "projector_hidden_act": "gelu",
            "text_config": {
                "max_position_embeddings": 4096,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
            "vision_config": {
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "model_type": "clip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
                "vocab_size": 32000,
            },
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }
    )
    assert got.vision.num_features == 576
    assert (got.vision.num_layers, got.vision.encoder.num_hidden_layers) == (23, 24)
    assert got.vision.encoder.hidden_act is Activation.QUICK_GELU
    assert (
        got.text.num_hidden_layers,
        got.text.num_attention_heads,
        got.text.num_key_value_heads,
    ) == (32, 32, 32)
    assert (got.text.head_dim, got.text.hidden_size, got.text.intermediate_size) == (
        128,
        4096,
        11008,
    )
    assert (got.text.rope.theta, got.text.rope.max_length) == (10000.0, 4096)
    assert got.eos_token_ids == (2,)
    assert hash(got) == hash(got)


def test_rope_settings_of_both_generations_read_the_same():
    scaling = {"factor": 4.0}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear"} | scaling}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0} | scaling}
    base = config_json()
    del base["text_config"]["rope_theta"]
    first, second = (read(base | {"text_config": base["text_config"] | s}) for s in (old, new))
    assert first == second
    assert first.text.rope.kind is RopeKind.LINEAR
    assert (first.text.rope.theta, first.text.rope.factor) == (500.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"text": {"sliding_window": 128}}, "text_config.sliding_window=128"),
        ({"text": {"layer_types": ["sliding_attention"] * 2}}, "text_config.layer_types="),
        ({"text": {"hidden_act": "mish"}}, "text_config.hidden_act='mish'"),
        ({"vision": {"hidden_act": "mish"}}, "vision_config.hidden_act='mish'"),
        ({"projector_hidden_act": "mish"}, "projector_hidden_act='mish'"),
        ({"vision": {"num_channels": 4}}, "vision_config.num_channels=4"),
        ({"vision": {"image_size": [28, 42]}}, "vision_config.image_size"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0"),
        ({"text": {"rope_parameters": {"rope_type": "proportional"}}}, "rope_type='proportional'"),
        (
            {
                "text": {
                    "rope_parameters": {
                        "rope_type": "linear",
                        "factor": 2.0,
                        "partial_rotary_factor": 0.5,
                    }
                }
            },
            "partial_rotary_factor=0.5",
        ),
        ({"text": {"model_type": "gpt2"}}, "text_config.model_type='gpt2'"),
        (
            {
                "text": {
                    "model_type": "ministral",
                    "layer_types": ["full_attention", "chunked_attention"],
                }
            },
            "text_config.layer_types has chunked_attention",
        ),
        ({"vision": {"model_type": "dinov2"}}, "vision_config.model_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, setting):
    with pytest.raises(NotImplementedError, match=setting.replace("[", r"\[")):
        read(config_json(**changes))


@pytest.mark.parametrize(
    ("text", "window", "full_layers"),
    [
        (MISTRAL, 4096, ()),
        (MISTRAL | {"sliding_window": 7}, 7, ()),
        (MISTRAL | {"sliding_window": None}, None, ()),
        (MINISTRAL | {"sliding_window": 7}, 7, ()),
        (MINISTRAL | {"layer_types": ["full_attention", "sliding_attention"]}, 4096, (0,)),
        (MINISTRAL | {"layer_types": ["full_attention"] * 2}, None, ()),
        ({"sliding_window": None}, None, ()),
    ],
)
def test_sliding_windows(text, window, full_layers):
    """As transformers' towers have them: in all layers, or in those that are called so."""
    got = read(config_json(text=text)).text
    assert (got.sliding_window, got.full_layers) == (window, full_layers)
    assert (got.head_dim, got.rope.head_dim) == (4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MISTRAL | {"sliding_window": 0},
            "sliding_window: expected an integer from 1 .* got 0",
        ),
        (MISTRAL | {"sliding_window": 2**31}, "got 2147483648"),
        (
            MINISTRAL | {"sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "has sliding_attention, sliding_window is None",
        ),
    ],
)
def test_windows_that_are_none_are_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(text=text))


NAN, INFINITY = float("nan"), float("inf")
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"rms_norm_eps": NAN}}, "text_config.rms_norm_eps: expected a finite number"),
        ({"text": {"rms_norm_eps": -1e-5}}, "text_config.rms_norm_eps: expected a number from"),
        ({"text": {"rms_norm_eps": 10**400}}, "text_config.rms_norm_eps: expected a finite"),
        ({"text": {"rms_norm_eps": "1e-5"}}, "text_config.rms_norm_eps: expected a number"),
        ({"vision": {"layer_norm_eps": INFINITY}}, "vision_config.layer_norm_eps: expected a fin"),
        ({"text": {"rope_theta": 0}}, "text_config.rope_theta: expected a number from"),
        ({"text": {"rope_theta": -1e4}}, "text_config.rope_theta: expected a number from"),
        ({"text": {"rope_theta": True}}, "text_config.rope_theta: expected a number"),
        ({"text": {"hidden_size": None}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"hidden_size": 16.0}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"hidden_size": 2**63}}, "text_config.hidden_size: expected an integer from 1"),
        ({"text": {"num_hidden_layers": 2**31}}, "text_config.num_hidden_layers: .* to 4096, got"),
        ({"text": {"num_hidden_layers": 0}}, "text_config.num_hidden_layers: expected an integer"),
        ({"text": {"num_attention_heads": 6}}, "hidden_size: expected a multiple of .*=6, got 16"),
        ({"text": {"num_key_value_heads": 3}}, "num_key_value_heads: expected a divisor of .*=4"),
        ({"text": {"head_dim": 5}}, "head_dim: expected an even number of at least 2"),
        ({"vision": {"num_attention_heads": 3}}, "vision_config.hidden_size: expected a multiple"),
        (
            {"vision": {"patch_size": 29}},
            "vision_config.patch_size: expected at most .*=28",
        ),
        ({"vision": {"image_size": 0}}, "vision_config.image_size: expected an integer from 1"),
        ({"text_config": 3}, "text_config: expected an object or null, got 3"),
        ({"image_token_index": -1}, "image_token_index: expected an integer from 0"),
        ({"eos_token_id": ["2"]}, r"eos_token_id\[0\]: expected an integer from 0 .* got '2'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'fal"),
        (
            {"text": MINISTRAL | {"layer_types": ["full_attention"]}},
            "layer_types: expected one for each of the 2 layers, got 1",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(**changes))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear", "factor": 0}, "rope_parameters.factor: expected a number from"),
        ({"rope_type": "yarn", "factor": NAN}, "rope_parameters.factor: expected a finite"),
        ({"rope_type": "dynamic"}, "rope_parameters.factor is missing: dynamic needs it"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor: expected less than .*=4.0, got 4.0"),
        (LLAMA3 | {"low_freq_factor": 0.0}, "rope_parameters.low_freq_factor: expected a number"),
        (LONGROPE | {"short_factor": [1.0]}, "short_factor: expected 2 numbers.* got 1"),
        (LONGROPE | {"long_factor": [1.0, 0.0]}, r"long_factor\[1\]: expected a number from"),
        (LONGROPE | {"long_factor": 2.0}, "long_factor: expected a list"),
        ({"rope_type": "default", "rope_theta": 0.0}, "rope_parameters.rope_theta: expected a num"),
        (
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0},
            "beta_fast: expected at least beta_slow=2.0, got 1.0",
        ),
    ],
)
def test_rotary_settings_that_cannot_be_are_refused_by_name(rope, message):
    with pytest.raises(ValueError, match=message):
        read(config_json(text={"rope_parameters": rope}))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "mrope_section": [1, 1]},
        {"full_attention": {"rope_type": "default"}},
    ],
)
def test_rotary_settings_that_are_unknown_are_refused(rope):
    with pytest.raises(NotImplementedError, match=r"rope_parameters has .* is not supported"):
        read(config_json(text={"rope_parameters": rope}))


@pytest.mark.parametrize("layer", [-5, 4, [1, 7], []])
def test_a_feature_layer_outside_the_tower_is_an_error(layer):
    with pytest.raises(ValueError, match="vision_feature_layer"):
        read(config_json(vision_feature_layer=layer))


@given(st.lists(st.integers(-4, 3), min_size=1, max_size=4).filter(lambda x: set(x) - {0, -4}))
def test_feature_layers_index_the_hidden_states(layers):
    vision = read(config_json(vision_feature_layer=layers)).vision
    states = list(range(4))  # after 0, 1, 2, 3 layers
    assert vision.feature_layers == tuple(states[i] for i in layers)
    assert vision.feature_width == vision.encoder.hidden_size * len(layers)


def test_full_strategy_keeps_the_class_token():
    assert read(config_json(vision_feature_select_strategy="full")).vision.num_features == 5


def test_another_name_of_the_image_token():
    assert read(config_json(image_token_id=7)).image_token_id == 7


TOWERS = {
    "GemmaConfig": TEXT_SETTINGS["gemma"],
    "Gemma2Config": TEXT_SETTINGS["gemma2"],
    "Gemma3TextConfig": TEXT_SETTINGS["gemma3_text"],
    "Gemma3Config": Gemma3ModelSettings,
    "PaliGemmaConfig": PaliGemmaSettings,
    "Phi3Config": TEXT_SETTINGS["phi3"],
    "LlamaConfig": TEXT_SETTINGS["llama"],
    "MistralConfig": TEXT_SETTINGS["mistral"],
    "MinistralConfig": TEXT_SETTINGS["ministral"],
    "Qwen2Config": TEXT_SETTINGS["qwen2"],
    "Qwen3Config": TEXT_SETTINGS["qwen3"],
    "Qwen3MoeConfig": TEXT_SETTINGS["qwen3_moe"],
    "Cohere2Config": TEXT_SETTINGS["cohere2"],
    "Gemma4TextConfig": Gemma4TextSettings,
    "Gemma4VisionConfig": Gemma4VisionSettings,
    "Gemma4Config": Gemma4Settings,
    "Glm4vMoeTextConfig": TEXT_SETTINGS["glm4v_moe_text"],
    "Glm4vMoeVisionConfig": Glm4vVisionSettings,
    "Glm4vMoeConfig": Glm4vMoeSettings,
    "Glm4vTextConfig": TEXT_SETTINGS["glm4v_text"],
    "Glm4vVisionConfig": Glm4vVisionSettings,
    "Glm4vConfig": Glm4vSettings,
    "Glm46VConfig": Glm46vSettings,
    "AyaVisionConfig": AyaVisionSettings,
    "CLIPVisionConfig": ClipVisionSettings,
    "SiglipVisionConfig": SiglipVisionSettings,
    "LlavaConfig": LlavaSettings,
    "GraniteConfig": TEXT_SETTINGS["granite"],
    "LlavaNextConfig": LlavaNextSettings,
    "LlavaNextVideoConfig": LlavaNextVideoSettings,
    "VipLlavaConfig": VipLlavaSettings,
    "LlavaOnevisionConfig": LlavaOnevisionSettings,
    "InternVLVisionConfig": InternVisionSettings,
    "InternVLConfig": InternVLSettings,
    "PixtralVisionConfig": PixtralVisionSettings,
    "Mistral3Config": Mistral3Settings,
    "Ministral3Config": TEXT_SETTINGS["ministral3"],
    "Idefics3VisionConfig": Idefics3VisionSettings,
    "Idefics3Config": Idefics3Settings,
    "SmolVLMVisionConfig": Idefics3VisionSettings,
    "SmolVLMConfig": Idefics3Settings,
    "MllamaTextConfig": MllamaTextSettings,
    "MllamaVisionConfig": MllamaVisionSettings,
    "MllamaConfig": MllamaSettings,
    "Qwen2VLTextConfig": TEXT_SETTINGS["qwen2_vl_text"],
    "Qwen2_5_VLTextConfig": TEXT_SETTINGS["qwen2_5_vl_text"],
    "Qwen3VLTextConfig": TEXT_SETTINGS["qwen3_vl_text"],
    "Qwen2VLVisionConfig": GRID_SETTINGS["qwen2_vl"],
    "Qwen2_5_VLVisionConfig": GRID_SETTINGS["qwen2_5_vl"],
    "Qwen3VLMoeTextConfig": TEXT_SETTINGS["qwen3_vl_moe_text"],
    "Qwen3VLMoeVisionConfig": GRID_SETTINGS["qwen3_vl_moe"],
    "Qwen3VLMoeConfig": QwenVLSettings,
    "Qwen3_5TextConfig": TEXT_SETTINGS["qwen3_5_text"],
    "Qwen3_5MoeTextConfig": TEXT_SETTINGS["qwen3_5_moe_text"],
    "Qwen3_5MoeVisionConfig": GRID_SETTINGS["qwen3_5_moe"],
    "Qwen3_5VisionConfig": GRID_SETTINGS["qwen3_5"],
    "Qwen3_5Config": Qwen35Settings,
    "Qwen3_5MoeConfig": Qwen35Settings,
    "Qwen3VLVisionConfig": GRID_SETTINGS["qwen3_vl"],
    "Qwen2VLConfig": QwenVLSettings,
    "Qwen2_5_VLConfig": QwenVLSettings,
    "Qwen3VLConfig": QwenVLSettings,
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_field_of_transformers_is_read_or_known_to_have_no_effect(name):
    """A release of transformers that adds a field to one of these fails here."""
    common = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    theirs = getattr(transformers, name)
    fields = {field.name for field in dataclasses.fields(theirs)} - common
    assert TOWERS[name].unread(dict.fromkeys(fields)) == []


@pytest.mark.parametrize("name", TOWERS)
def test_defaults_are_those_of_transformers(name):
    """Files of the hub leave out what equals transformers' default."""
    schema, theirs = TOWERS[name], getattr(transformers, name)
    fields = {field.name: field.default for field in dataclasses.fields(theirs)}
    written = {
        field.name: fields[field.name]
        for field in dataclasses.fields(schema)
        if fields.get(field.name) is not None
    }
    assert written
    needed = {"model_type": theirs.model_type}
    # As files have them, where tuples are lists.
    written = json.loads(json.dumps(written))
    assert schema.read(written | needed) == schema.read(needed)


def test_the_vision_tower_of_a_file_without_one():
    theirs = transformers.LlavaConfig(text_config=config_json()["text_config"]).to_dict()
    without = config_json()
    del without["vision_config"]
    assert read(without).vision == read(without | {"vision_config": theirs["vision_config"]}).vision


def test_families_are_the_folders_of_models_families():
    folders = {path.name for path in Path(families.__file__).parent.iterdir() if path.is_dir()}
    assert set(FAMILY_NAMES) == folders - {"__pycache__"}


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_files_of_these_families_hold_no_weights_that_are_not_read(model_type):
    config = family_of(model_type).read_config(qwen_config_json(model_type))
    names = family_of(model_type).weights(config)
    assert not names.is_unused("vision.blocks.99.weight")
    assert not names.is_unused("text.layers.0.weight")


@pytest.mark.parametrize(
    ("family", "name", "theirs"),
    [
        ("aya_vision", "_VISION", "AyaVisionConfig"),
        ("idefics3", "_TEXT", "Idefics3Config"),
        ("llava", "_VISION", "LlavaConfig"),
        ("llava_onevision", "_VISION", "LlavaOnevisionConfig"),
        ("mistral3", "_VISION", "Mistral3Config"),
        ("mistral3", "_TEXT", "Mistral3Config"),
        ("paligemma", "_VISION", "PaliGemmaConfig"),
        ("paligemma", "_TEXT", "PaliGemmaConfig"),
    ],
)
def test_towers_of_a_file_without_them_are_those_of_transformers(family, name, theirs):
    own = dict(getattr(importlib.import_module(f"models.families.{family}.config"), name))
    expected = getattr(getattr(transformers, theirs)(), f"{name[1:].lower()}_config").to_dict()
    # transformers has the base of RoPE among other settings of it.
    base = own.pop("rope_theta", None)
    assert base in (None, expected.get("rope_parameters", {}).get("rope_theta"))
    assert own
    assert own == {field: expected[field] for field in own}
