"""Settings of a VipLLaVA model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from models.checkpoints.hf_fields import Epsilon
from models.families.llava.config import FeatureLayers, LlavaConfig, LlavaSettings
from models.vision.vit import VitConfig

__all__ = ["VipLlavaConfig", "VipLlavaSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VipLlavaSettings(LlavaSettings):
    """The whole config.json; the fields of LLaVA that transformers' VipLLaVA lacks are fixed."""

    model_type: Literal["vipllava"]  # pyright: ignore[reportIncompatibleVariableOverride]
    vision_feature_layer: FeatureLayers = (-2, -5, -8, -11, 6)
    projector_layernorm_eps: Epsilon = 1e-5
    multimodal_projector_bias: Literal[True] = True
    vision_feature_select_strategy: Literal["default"] = "default"
    # Files before transformers 5.18 have the other name.
    aliases: ClassVar[Mapping[str, str]] = {
        **LlavaSettings.aliases,
        "vision_feature_layers": "vision_feature_layer",
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class VipLlavaConfig(LlavaConfig):
    """A VipLLaVA model: fields of `LlavaConfig` and the epsilon of its projector's norm."""

    model_type: str = "vipllava"
    projector_layernorm_eps: float
    settings: ClassVar[type[LlavaSettings]] = VipLlavaSettings

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """See `LlavaConfig.more`."""
        return {"projector_layernorm_eps": hf.projector_layernorm_eps}
