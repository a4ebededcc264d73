"""The schemas of config.json files against the configurations of transformers."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import transformers

from models import families
from models.families.aya_vision.cohere2_vision import Cohere2VisionSettings
from models.families.aya_vision.config import AyaVisionSettings
from models.families.deepseek_vl.config import DeepseekVLSettings
from models.families.gemma3.config import Gemma3ModelSettings
from models.families.gemma4.config import (
    Gemma4Settings,
    Gemma4TextSettings,
    Gemma4VisionSettings,
)
from models.families.gemma4.unified_config import (
    Gemma4UnifiedSettings,
    Gemma4UnifiedTextSettings,
    Gemma4UnifiedVisionSettings,
)
from models.families.glm4v.config import (
    Glm4vMoeSettings,
    Glm4vSettings,
    Glm46vSettings,
    GlmOcrSettings,
)
from models.families.idefics3.config import Idefics3Settings, Idefics3VisionSettings
from models.families.internvl.config import InternVisionSettings, InternVLSettings
from models.families.internvl.qianfan_ocr import QianfanOcrSettings, QianfanOcrVisionSettings
from models.families.lighton_ocr.config import LightOnOcrSettings
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
from models.families.paddleocr_vl.config import PaddleOcrVisionSettings, PaddleOcrVLSettings
from models.families.paligemma.config import PaliGemmaSettings
from models.families.qwen_vl.config import Qwen35Settings, QwenVLSettings
from models.families.registry import FAMILY_NAMES, family_of
from models.families.vipllava.config import VipLlavaSettings
from models.text.registry import TEXT_SETTINGS
from models.vision.glm_settings import Glm4vVisionSettings, GlmOcrVisionSettings
from models.vision.grid_settings import GRID_SETTINGS
from models.vision.pixtral_settings import PixtralVisionSettings
from models.vision.settings import ClipVisionSettings, SiglipVisionSettings
from tests.models.hf_files import config_json
from tests.support.qwen_vl import config_json as qwen_config_json

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
    "Gemma4UnifiedTextConfig": Gemma4UnifiedTextSettings,
    "Gemma4UnifiedVisionConfig": Gemma4UnifiedVisionSettings,
    "Gemma4UnifiedConfig": Gemma4UnifiedSettings,
    "Glm4vMoeTextConfig": TEXT_SETTINGS["glm4v_moe_text"],
    "Glm4vMoeVisionConfig": Glm4vVisionSettings,
    "Glm4vMoeConfig": Glm4vMoeSettings,
    "Glm4vTextConfig": TEXT_SETTINGS["glm4v_text"],
    "Glm4vVisionConfig": Glm4vVisionSettings,
    "Glm4vConfig": Glm4vSettings,
    "Glm46VConfig": Glm46vSettings,
    "GlmOcrTextConfig": TEXT_SETTINGS["glm_ocr_text"],
    "GlmOcrVisionConfig": GlmOcrVisionSettings,
    "GlmOcrConfig": GlmOcrSettings,
    "Cohere2VisionConfig": Cohere2VisionSettings,
    "AyaVisionConfig": AyaVisionSettings,
    "DeepseekVLConfig": DeepseekVLSettings,
    "CLIPVisionConfig": ClipVisionSettings,
    "SiglipVisionConfig": SiglipVisionSettings,
    "LlavaConfig": LlavaSettings,
    "LightOnOcrConfig": LightOnOcrSettings,
    "GraniteConfig": TEXT_SETTINGS["granite"],
    "LlavaNextConfig": LlavaNextSettings,
    "LlavaNextVideoConfig": LlavaNextVideoSettings,
    "VipLlavaConfig": VipLlavaSettings,
    "LlavaOnevisionConfig": LlavaOnevisionSettings,
    "InternVLVisionConfig": InternVisionSettings,
    "InternVLConfig": InternVLSettings,
    "QianfanOCRVisionConfig": QianfanOcrVisionSettings,
    "QianfanOCRConfig": QianfanOcrSettings,
    "PaddleOCRTextConfig": TEXT_SETTINGS["paddleocr_vl_text"],
    "PaddleOCRVisionConfig": PaddleOcrVisionSettings,
    "PaddleOCRVLConfig": PaddleOcrVLSettings,
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
def test_other_names_of_fields_are_read(name):
    """transformers takes a field under two names; the heads of a tower would else be a default."""
    theirs = getattr(transformers, name)
    own = {field.name for field in dataclasses.fields(TOWERS[name])}
    others = {a: b for a, b in theirs.attribute_map.items() if a not in own | {"num_classes"}}
    assert TOWERS[name].unread(others) == []
    for alias, meant in others.items():
        if meant in own:
            content = {"model_type": theirs.model_type, meant: 7, alias: 5}
            assert getattr(TOWERS[name].read(content), meant) == 5


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


# Their rotary channels depend on other fields, which every file states.
OWN_ROPES = (
    *("Gemma4TextConfig", "Gemma4UnifiedTextConfig", "Glm4vTextConfig", "Glm4vMoeTextConfig"),
    "GlmOcrTextConfig",
)


@pytest.mark.parametrize(
    "name", [name for name in TOWERS if hasattr(TOWERS[name], "ropes") and name not in OWN_ROPES]
)
def test_the_rope_of_a_file_without_one_is_that_of_transformers(name):
    schema, theirs = TOWERS[name], getattr(transformers, name)()
    needed = {"model_type": theirs.model_type}
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    own, given = (
        (each.ropes(head_dim, ""), each.switches())
        for each in (
            schema.read(needed),
            schema.read(needed | {"rope_parameters": theirs.to_dict()["rope_parameters"]}),
        )
    )
    assert own == given


TOWERS_THAT_TURN = [name for name, each in TOWERS.items() if "Vision" in each.__name__]
TOWERS_THAT_TURN = [n for n in TOWERS_THAT_TURN if "rope_parameters" in dir(TOWERS[n])]


@pytest.mark.parametrize("name", TOWERS_THAT_TURN)
def test_the_rope_of_a_tower_has_its_base_by_the_older_name_too(name):
    content = {"model_type": getattr(transformers, name).model_type}
    schema, axial = TOWERS[name], {"rope_type": "axial", "rope_theta": 50.0}
    arguments = {} if name != "PixtralVisionConfig" else {"chosen": -1, "merge": 1}
    older, newer, neither = (
        schema.read(content | each).to_config(**arguments)
        for each in ({"rope_theta": 50.0}, {"rope_parameters": axial}, {})
    )
    assert older == newer != neither


def test_the_vision_tower_of_a_file_without_one():
    theirs = transformers.LlavaConfig(text_config=config_json()["text_config"]).to_dict()
    without = config_json()
    del without["vision_config"]
    named = without | {"vision_config": theirs["vision_config"]}
    assert LlavaConfig.from_hf(without).vision == LlavaConfig.from_hf(named).vision


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
    ("module", "name", "theirs"),
    [
        ("aya_vision.config", "_VISION", "AyaVisionConfig"),
        ("aya_vision.cohere2_vision", "_VISION", "Cohere2VisionConfig"),
        ("idefics3.config", "_TEXT", "Idefics3Config"),
        ("lighton_ocr.config", "_VISION", "LightOnOcrConfig"),
        ("lighton_ocr.config", "_TEXT", "LightOnOcrConfig"),
        ("llava.config", "_VISION", "LlavaConfig"),
        ("llava_onevision.config", "_VISION", "LlavaOnevisionConfig"),
        ("mistral3.config", "_VISION", "Mistral3Config"),
        ("mistral3.config", "_TEXT", "Mistral3Config"),
        ("paligemma.config", "_VISION", "PaliGemmaConfig"),
        ("paligemma.config", "_TEXT", "PaliGemmaConfig"),
    ],
)
def test_towers_of_a_file_without_them_are_those_of_transformers(module, name, theirs):
    own = dict(getattr(importlib.import_module(f"models.families.{module}"), name))
    expected = getattr(getattr(transformers, theirs)(), f"{name[1:].lower()}_config").to_dict()
    # transformers has the base of RoPE among other settings of it.
    base = own.pop("rope_theta", None)
    assert base in (None, expected.get("rope_parameters", {}).get("rope_theta"))
    assert own
    assert own == {field: expected[field] for field in own}
