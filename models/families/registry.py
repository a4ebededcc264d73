"""Which module holds the family of a `model_type`; families are imported on demand."""

import importlib

from models.families.base import Family

__all__ = ["FAMILY_NAMES", "MODEL_TYPES", "family_folder", "family_of"]

_MODULES = {
    "aya_vision": "models.families.aya_vision.family",
    "cohere2_vision": "models.families.aya_vision.cohere2_vision",
    "deepseek_vl": "models.families.deepseek_vl.family",
    "gemma3": "models.families.gemma3.family",
    "gemma4": "models.families.gemma4.family",
    "gemma4_unified": "models.families.gemma4.unified",
    "glm4v": "models.families.glm4v.family",
    "glm46v": "models.families.glm4v.family",
    "glm4v_moe": "models.families.glm4v.family",
    "glm_ocr": "models.families.glm4v.family",
    "idefics3": "models.families.idefics3.family",
    "internvl": "models.families.internvl.family",
    "lighton_ocr": "models.families.lighton_ocr.family",
    "llava": "models.families.llava.family",
    "llava_next": "models.families.llava_next.family",
    "llava_next_video": "models.families.llava_next_video.family",
    "llava_onevision": "models.families.llava_onevision.family",
    "mistral3": "models.families.mistral3.family",
    "mllama": "models.families.mllama.family",
    "paddleocr_vl": "models.families.paddleocr_vl.family",
    "paligemma": "models.families.paligemma.family",
    "qianfan_ocr": "models.families.internvl.qianfan_ocr",
    "qwen2_vl": "models.families.qwen_vl.family",
    "qwen2_5_vl": "models.families.qwen_vl.family",
    "qwen3_5": "models.families.qwen_vl.family",
    "qwen3_5_moe": "models.families.qwen_vl.family",
    "qwen3_vl": "models.families.qwen_vl.family",
    "qwen3_vl_moe": "models.families.qwen_vl.family",
    "smolvlm": "models.families.idefics3.family",
    "vipllava": "models.families.vipllava.family",
}

# Families of files that share their model_type with another family, by names of our own.
_VARIANTS = {"llava_pixtral": "models.families.mistral3.family"}

MODEL_TYPES = tuple(_MODULES)
"""Every `model_type` of config.json that loads."""


def family_folder(model_type: str) -> str:
    """The folder under models/families of one of `MODEL_TYPES`; some hold several."""
    return _MODULES[model_type].split(".")[2]


FAMILY_NAMES = tuple(sorted(set(map(family_folder, MODEL_TYPES))))
"""All these folders."""


def family_of(model_type: str) -> Family:
    """The family of one of `MODEL_TYPES`, or of the `model_type` of a `ModelConfig`."""
    return importlib.import_module((_MODULES | _VARIANTS)[model_type]).FAMILY
