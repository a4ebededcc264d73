"""Settings of a LLaVA-OneVision model."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from models.checkpoints.hf_fields import TokenId
from models.families.llava.config import FeatureLayers, LlavaSettings
from models.families.llava_next.config import LlavaNextConfig, LlavaNextSettings
from models.vision.vit import VitConfig
from vkq_jax.messages import show

__all__ = ["LlavaOnevisionConfig", "LlavaOnevisionSettings"]

_SIDES = tuple(range(384, 2304 + 1, 384))

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionSettings(LlavaNextSettings):
    """The whole config.json."""

    model_type: Literal["llava_onevision"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_index: TokenId = 151646
    video_token_index: TokenId = 151647
    vision_feature_layer: FeatureLayers = -1
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    vision_aspect_ratio: str = "anyres_max_9"
    aliases: ClassVar[Mapping[str, str]] = {
        **LlavaNextSettings.aliases,
        "video_token_id": "video_token_index",
    }
    default_vision: ClassVar[Mapping[str, Any]] = _VISION
    default_text: ClassVar[str] = "qwen2"
    default_pinpoints: ClassVar[tuple[tuple[int, int], ...]] = tuple(
        (height, width) for height in _SIDES for width in _SIDES
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaOnevisionConfig(LlavaNextConfig):
    """A LLaVA-OneVision model: fields of `LlavaNextConfig`, some always set."""

    model_type: str = "llava_onevision"
    settings: ClassVar[type[LlavaSettings]] = LlavaOnevisionSettings

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """See `LlavaConfig.more`."""
        found = re.fullmatch("anyres_max_([1-9][0-9]{0,5})", hf.vision_aspect_ratio)
        if found is None:
            raise NotImplementedError(
                f"vision_aspect_ratio={show(hf.vision_aspect_ratio)}; supported: 'anyres_max_N'"
            )
        return super().more(hf, vision) | {
            "max_tiles": int(found[1]),
            "video_token_id": hf.video_token_index,
        }
