"""Settings of a LLaVA-1.5 model, and those that its descendants share."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, ActivationName, TokenId
from models.checkpoints.hf_settings import Between
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.registry import read_text_settings
from models.vision.settings import read_vision_settings
from models.vision.vit import VitConfig

__all__ = ["FeatureLayers", "LlavaConfig", "LlavaSettings"]

_Layer = Annotated[int, Between(-4097, 4096)]
FeatureLayers = _Layer | tuple[_Layer, ...]
"""The layers of the tower, one or several, whose outputs are the features; -1 is the last."""

# The tower where config.json has no vision_config.
_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["llava"]
    image_token_index: TokenId = 32000
    projector_hidden_act: ActivationName = Activation.GELU
    multimodal_projector_bias: bool = True
    vision_feature_layer: FeatureLayers = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    # How long an image is follows from the vision tower.
    ignored = NO_EFFECT | {"ignore_index", "image_seq_length"}
    aliases: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}
    default_vision: ClassVar[Mapping[str, Any]] = _VISION
    default_text: ClassVar[str] = "llama"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaConfig(FixedGridConfig):
    """A LLaVA-1.5 model: fields of `FixedGridConfig` and its projector."""

    model_type: str = "llava"
    projector_hidden_act: Activation = Activation.GELU
    multimodal_projector_bias: bool = True
    settings: ClassVar[type[LlavaSettings]] = LlavaSettings

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = cls.settings.read(content)
        vision = read_vision_settings(
            hf.default_vision if hf.vision_config is None else hf.vision_config,
            default=hf.default_vision["model_type"],
        ).to_config(
            hf.vision_feature_layer,
            keep_class_token=hf.vision_feature_select_strategy == "full",
        )
        if hf.vision_feature_select_strategy == "default" and not vision.class_token:
            # transformers leaves out the first feature, whatever it is.
            vision = dataclasses.replace(vision, drop_first_patch=True)
        text = read_text_settings(hf.text_config or {}, default=hf.default_text)
        return cls(
            vision=vision,
            text=hf.decoder(text),
            image_token_id=hf.image_token_index,
            projector_hidden_act=hf.projector_hidden_act,
            multimodal_projector_bias=hf.multimodal_projector_bias,
            eos_token_ids=hf.eos_token_ids(text),
            **cls.more(hf, vision),
        )

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """Fields that a descendant adds, from its settings; raises as `from_hf`."""
        return {}
