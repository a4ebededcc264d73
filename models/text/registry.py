"""Which settings read the text decoder of a `model_type`."""

from collections.abc import Collection, Mapping
from typing import Any

from models.messages import show
from models.text.gemma_settings import Gemma2Settings, Gemma3Settings, GemmaSettings
from models.text.phi3_settings import Phi3Settings
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
    "gemma": GemmaSettings,
    "gemma2": Gemma2Settings,
    "gemma3_text": Gemma3Settings,
    "granite": GraniteSettings,
    "llama": LlamaSettings,
    "mistral": MistralSettings,
    "ministral": MinistralSettings,
    "phi3": Phi3Settings,
    "qwen2": Qwen2Settings,
    "qwen3": Qwen3Settings,
    "qwen2_vl_text": Qwen2VLTextSettings,
    "qwen2_5_vl_text": Qwen2VLTextSettings,
    "qwen3_vl_text": Qwen3VLTextSettings,
    "qwen3_vl_moe_text": Qwen3VLMoeTextSettings,
}
"""By model_type."""

ONE_AXIS = tuple(name for name in TEXT_SETTINGS if not name.endswith(("_vl_text", "_moe_text")))
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
        NotImplementedError: another decoder, or a setting that is not supported.
        ValueError: a field of a wrong type or out of range.
    """
    name = content.get("model_type", default)
    if not isinstance(name, str):
        raise ValueError(f"{where}.model_type: expected text, got {show(name)}")
    if name not in supported:
        words = ", ".join(map(repr, supported))
        raise NotImplementedError(f"{where}.model_type={show(name)}; supported: {words}")
    return TEXT_SETTINGS[name].read(content, where)
