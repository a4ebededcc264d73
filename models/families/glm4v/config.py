"""Settings of a GLM-4.1V, GLM-4.5V, GLM-4.6V or GLM-OCR model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, TokenId
from models.families.qwen_vl.config import QwenVLConfig
from models.families.settings import FamilySettings
from models.layers.activations import Activation
from models.text.registry import read_text_settings
from models.vision.glm_settings import Glm4vVisionSettings, GlmOcrVisionSettings

__all__ = ["Glm4vConfig", "Glm4vMoeSettings", "Glm4vSettings", "Glm46vSettings", "GlmOcrSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["glm4v", "glm46v"]
    texts: ClassVar[tuple[str, ...]] = ("glm4v_text",)
    tower: ClassVar[type[Glm4vVisionSettings]] = Glm4vVisionSettings
    image_token_id: TokenId = 151343
    video_token_id: TokenId = 151344
    image_start_token_id: TokenId = 151339
    image_end_token_id: TokenId = 151340
    video_start_token_id: TokenId = 151341
    video_end_token_id: TokenId = 151342
    ignored = NO_EFFECT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm46vSettings(Glm4vSettings):
    """The same of GLM-4.6V, which has other tokens around a clip, and either decoder."""

    video_start_token_id: TokenId = 151361
    video_end_token_id: TokenId = 151362
    texts = ("glm4v_text", "glm4v_moe_text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vMoeSettings(Glm4vSettings):
    """The same of GLM-4.5V, whose decoder has experts."""

    model_type: Literal["glm4v_moe"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_id: TokenId = 151363
    video_token_id: TokenId = 151364
    texts = ("glm4v_moe_text",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlmOcrSettings(Glm4vSettings):
    """The same of GLM-OCR, whose tower differs, too."""

    model_type: Literal["glm_ocr"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_id: TokenId = 59280
    video_token_id: TokenId = 59281
    image_start_token_id: TokenId = 59256
    image_end_token_id: TokenId = 59257
    video_start_token_id: TokenId = 59258
    video_end_token_id: TokenId = 59259
    texts = ("glm_ocr_text",)
    tower = GlmOcrVisionSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glm4vConfig(QwenVLConfig):
    """Fields of `QwenVLConfig`, and GLM's projector and tokens.

    Attributes:
        merger_width: hidden channels of the projector's MLP. merger_act: its activation.
        video_start_token_id, video_end_token_id: tokens around a clip, whose frames have image
            tokens.
    """

    merger_width: int
    merger_act: Activation
    video_start_token_id: int
    video_end_token_id: int

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        others = {
            "glm46v": Glm46vSettings,
            "glm4v_moe": Glm4vMoeSettings,
            "glm_ocr": GlmOcrSettings,
        }
        hf = others.get(str(content.get("model_type")), Glm4vSettings).read(content)
        tower = hf.tower.read(hf.vision_config or {}, "vision_config")
        text = read_text_settings(hf.text_config or {}, supported=hf.texts, default=hf.texts[0])
        if tower.output_width != text.hidden_size:
            raise ValueError(
                f"vision_config: expected features of text_config.hidden_size={text.hidden_size} "
                f"channels, got {tower.output_width}"
            )
        return cls(
            model_type=hf.model_type,
            vision=tower.to_config(),
            text=hf.decoder(text),
            image_token_id=hf.image_token_id,
            video_token_id=hf.video_token_id,
            vision_start_token_id=hf.image_start_token_id,
            vision_end_token_id=hf.image_end_token_id,
            video_start_token_id=hf.video_start_token_id,
            video_end_token_id=hf.video_end_token_id,
            frames_apart=True,
            merger_width=tower.merger_width,
            merger_act=tower.hidden_act,
            eos_token_ids=hf.eos_token_ids(text),
        )
