"""Which settings read the text decoder of a `model_type`."""

from collections.abc import Collection, Mapping
from typing import Any

from models.checkpoints.hf_settings import read_by_type
from models.text.cohere2_settings import Cohere2Settings
from models.text.ernie_settings import PaddleOcrTextSettings
from models.text.gemma_settings import Gemma2Settings, Gemma3Settings, GemmaSettings
from models.text.glm4v_settings import Glm4vMoeTextSettings, Glm4vTextSettings, GlmOcrTextSettings
from models.text.ministral3_settings import Ministral3Settings
from models.text.phi3_settings import Phi3Settings
from models.text.qwen35_settings import Qwen35MoeTextSettings, Qwen35TextSettings
from models.text.qwen_moe_settings import Qwen3MoeSettings
from models.text.qwen_vl_settings import (
    Qwen2VLTextSettings,
    Qwen3VLMoeTextSettings,
    Qwen3VLTextSettings,
)
from models.text.settings import (
    GraniteSettings,
    LlamaSettings,
    MinistralSettings,
    MistralSettings,
    Qwen2Settings,
    Qwen3Settings,
    TextSettings,
)

__all__ = ["ONE_AXIS", "TEXT_SETTINGS", "read_text_settings"]

TEXT_SETTINGS: Mapping[str, type[TextSettings]] = {
    "cohere2": Cohere2Settings,
    "gemma": GemmaSettings,
    "gemma2": Gemma2Settings,
    "gemma3_text": Gemma3Settings,
    "glm4v_moe_text": Glm4vMoeTextSettings,
    "glm4v_text": Glm4vTextSettings,
    "glm_ocr_text": GlmOcrTextSettings,
    "granite": GraniteSettings,
    "llama": LlamaSettings,
    "mistral": MistralSettings,
    "ministral": MinistralSettings,
    "ministral3": Ministral3Settings,
    "paddleocr_vl_text": PaddleOcrTextSettings,
    "phi3": Phi3Settings,
    "qwen2": Qwen2Settings,
    "qwen3": Qwen3Settings,
    "qwen3_moe": Qwen3MoeSettings,
    "qwen2_vl_text": Qwen2VLTextSettings,
    "qwen2_5_vl_text": Qwen2VLTextSettings,
    "qwen3_vl_text": Qwen3VLTextSettings,
    "qwen3_vl_moe_text": Qwen3VLMoeTextSettings,
    "qwen3_5_text": Qwen35TextSettings,
    "qwen3_5_moe_text": Qwen35MoeTextSettings,
}
"""By model_type."""

ONE_AXIS = tuple(name for name, settings in TEXT_SETTINGS.items() if settings.mrope is None)
"""Decoders whose positions have one axis: what families without M-RoPE take."""


def read_text_settings(
    content: Mapping[str, Any],
    where: str = "text_config",
    *,
    supported: Collection[str] = ONE_AXIS,
    default: str = "llama",
) -> TextSettings:
    """The fields of a text decoder.

    Args:
        content: the object in config.json.
        where: its name there.
        supported: the decoders that the family takes, by model_type.
        default: the model_type of an object that states none.

    Raises:
        NotImplementedError, ValueError: see `models.checkpoints.hf_settings.read_by_type`.
    """
    return read_by_type(TEXT_SETTINGS, content, where, supported=supported, default=default)
