"""What config.json says of a LLaVA-1.5 model: fields, ranges, and transformers' defaults."""

import dataclasses
from typing import Annotated, Any, Literal

from models.checkpoints.hf_fields import (
    NO_EFFECT,
    ActivationName,
    Count,
    Epsilon,
    Length,
    Side,
    Theta,
    TokenId,
    TokenIds,
    Width,
)
from models.checkpoints.hf_settings import Between, Settings
from models.layers.norms import Activation
from models.messages import show, some

__all__ = [
    "TEXT_TOWERS",
    "LlavaSettings",
    "TextSettings",
    "VisionSettings",
    "layer_window",
    "square",
    "text_settings",
    "vision_settings",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSettings(Settings):
    """`vision_config` of a CLIP tower."""

    model_type: Literal["clip_vision_model"] = "clip_vision_model"
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    num_channels: Literal[3] = 3
    image_size: Side | tuple[Side, ...] = 224
    patch_size: Side | tuple[Side, ...] = 32
    hidden_act: ActivationName = Activation.QUICK_GELU
    layer_norm_eps: Epsilon = 1e-5
    ignored = NO_EFFECT | {"vocab_size"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """`text_config` of a LLaMA, Mistral or Ministral tower: what they have in common."""

    vocab_size: Width = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = None
    hidden_act: ActivationName = Activation.SILU
    max_position_embeddings: Length = 4096 * 32
    original_max_position_embeddings: Length | None = None
    partial_rotary_factor: float | None = None
    rope_theta: Theta = 10000.0
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: Epsilon = 1e-6
    sliding_window: Length | None = 4096
    layer_types: tuple[str, ...] | None = None
    attention_chunk_size: None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    eos_token_id: TokenIds | None = 2
    ignored = NO_EFFECT | {"model_type"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaSettings(TextSettings):
    """A tower without a sliding window."""

    intermediate_size: Width = 11008
    num_key_value_heads: Count | None = None
    max_position_embeddings: Length = 2048
    sliding_window: None = None
    layer_types: None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralSettings(TextSettings):
    """A tower with a sliding window in all layers."""

    layer_types: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinistralSettings(TextSettings):
    """A tower with a sliding window in those layers that are called so."""

    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaSettings(Settings):
    """The whole file; its towers are read by `vision_settings` and `text_settings`."""

    model_type: Literal["llava"]
    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    image_token_index: TokenId = 32000
    image_token_id: TokenId | None = None  # another name of image_token_index, which it overrides
    projector_hidden_act: ActivationName = Activation.GELU
    multimodal_projector_bias: bool = True
    vision_feature_layer: (
        Annotated[int, Between(-4097, 4096)] | tuple[Annotated[int, Between(-4097, 4096)], ...]
    ) = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tie_word_embeddings: bool = False
    quantization_config: None = None
    eos_token_id: TokenIds | None = None
    # How long an image is follows from the vision tower.
    ignored = NO_EFFECT | {"ignore_index", "image_seq_length"}


TEXT_TOWERS: dict[str, type[TextSettings]] = {
    "llama": LlamaSettings,
    "mistral": MistralSettings,
    "ministral": MinistralSettings,
}
"""By model_type, transformers' default first."""

# The tower of a file that says nothing of it.
_LLAVA_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def vision_settings(llava: LlavaSettings) -> VisionSettings:
    """The vision tower's fields.

    Raises:
        NotImplementedError: another tower, or a setting that is not supported.
        ValueError: a field of a wrong type or out of range.
    """
    content = _LLAVA_VISION if llava.vision_config is None else llava.vision_config
    return VisionSettings.read(content, "vision_config")


def text_settings(llava: LlavaSettings) -> TextSettings:
    """The text tower's fields. Raises as `vision_settings` does."""
    content = llava.text_config or {}
    family = _Family.read(content, "text_config").model_type
    return TEXT_TOWERS[family].read(content, "text_config")


@dataclasses.dataclass(frozen=True)
class _Family(Settings):
    model_type: Literal["llama", "mistral", "ministral"] = "llama"


def square(size: int | tuple[int, ...], setting: str) -> int:
    """The side of a square given as one number or two equal ones."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or (isinstance(size, tuple) and len(size) != 2):
        raise NotImplementedError(f"{setting}={show(size)}; this port supports squares")
    return sides.pop()


def layer_window(text: TextSettings) -> tuple[int | None, tuple[int, ...]]:
    """Width of a text tower's sliding window, None without one, and the layers it leaves alone.

    Raises:
        NotImplementedError: another type of layer.
        ValueError: types of too many or too few layers, or a window without a width.
    """
    kinds = text.layer_types
    if kinds is None:
        return text.sliding_window, ()
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise NotImplementedError(f"text_config.layer_types has {some(unknown)}")
    if len(kinds) != text.num_hidden_layers:
        raise ValueError(
            f"text_config.layer_types: expected one for each of the {text.num_hidden_layers} "
            f"layers, got {len(kinds)}"
        )
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if len(full) == len(kinds):
        return None, ()
    if text.sliding_window is None:
        raise ValueError("text_config.layer_types has sliding_attention, sliding_window is None")
    return text.sliding_window, full
