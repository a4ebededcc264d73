"""Settings of an Aya Vision model."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from models.checkpoints.hf_fields import Count, Epsilon, TokenId, Width
from models.checkpoints.hf_settings import Between
from models.families.llava.config import LlavaConfig, LlavaSettings
from models.vision.vit import VitConfig
from vkq_jax.messages import show

__all__ = ["AyaVisionConfig", "AyaVisionSettings", "check_projector"]

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 14,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AyaVisionSettings(LlavaSettings):
    """The whole config.json."""

    model_type: Literal["aya_vision"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_index: TokenId = 255036
    # The projector has the width of one layer.
    vision_feature_layer: Annotated[int, Between(-4097, 4096)] = -1  # pyright: ignore[reportIncompatibleVariableOverride]
    vision_feature_select_strategy: Literal["full"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]
    downsample_factor: Count = 2
    adapter_layer_norm_eps: Epsilon = 1e-6
    alignment_intermediate_size: Width | None = None
    tie_word_embeddings: bool = True
    default_vision: ClassVar[Mapping[str, Any]] = _VISION
    default_text: ClassVar[str] = "cohere2"
    decoder_ties: ClassVar[bool] = False


def check_projector(vision: VitConfig, merge: int, inner: int | None) -> None:
    """Checks that squares of `merge` x `merge` features fill a tile; `inner` channels halve.

    Raises:
        NotImplementedError, ValueError: they do not, with the field's name.
    """
    if vision.class_token or vision.side % merge:
        raise NotImplementedError(
            f"downsample_factor={merge}; supported: a divisor of the "
            f"{vision.side} patches of a tile's side, in a tower without a class token"
        )
    if inner is not None and inner % 2:
        raise ValueError(f"alignment_intermediate_size: expected an even number, got {show(inner)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AyaVisionConfig(LlavaConfig):
    """An Aya Vision model: fields of `LlavaConfig` and its projector; a tile is an image.

    Attributes:
        merge: features of a side of the square that becomes one visual token.
        adapter_layer_norm_eps: of the projector's norm.
        alignment_intermediate_size: channels inside the projector, the gate's half included.
    """

    model_type: str = "aya_vision"
    merge: int
    adapter_layer_norm_eps: float
    alignment_intermediate_size: int | None
    settings: ClassVar[type[LlavaSettings]] = AyaVisionSettings

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one tile."""
        return self.vision.num_features // self.merge**2

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """See `LlavaConfig.more`."""
        inner = hf.alignment_intermediate_size
        check_projector(vision, hf.downsample_factor, inner)
        return {
            "merge": hf.downsample_factor,
            "adapter_layer_norm_eps": hf.adapter_layer_norm_eps,
            "alignment_intermediate_size": inner,
        }
