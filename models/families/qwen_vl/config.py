"""Settings of a Qwen-VL model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, TokenId
from models.families.base import ModelConfig
from models.families.settings import FamilySettings
from models.text.registry import TEXT_SETTINGS
from models.text.settings import TextSettings
from models.vision.grid_settings import GRID_SETTINGS, Qwen25VisionSettings
from models.vision.grid_tower import GridConfig
from vkq_jax.messages import show

__all__ = [
    "Qwen35Settings",
    "QwenVLConfig",
    "QwenVLSettings",
    "check_part",
    "qwen_text_settings",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
    image_token_id: TokenId = 151655
    video_token_id: TokenId = 151656
    vision_start_token_id: TokenId = 151652
    vision_end_token_id: TokenId = 151653
    text_beside = frozenset({"qwen2_vl", "qwen2_5_vl"})
    ignored = NO_EFFECT | {"vision_token_id"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen35Settings(QwenVLSettings):
    """The same for Qwen3.5, whose tokens have other numbers."""

    model_type: Literal["qwen3_5", "qwen3_5_moe"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_id: TokenId = 248056
    video_token_id: TokenId = 248057
    vision_start_token_id: TokenId = 248053
    vision_end_token_id: TokenId = 248054


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLConfig(ModelConfig):
    """A Qwen-VL model: fields of `ModelConfig`, its vision tower and the tokens around a picture.

    Attributes:
        vision: the tower.
        vision_start_token_id, vision_end_token_id: tokens before and behind those of a picture.
        tokens_per_second: steps of the time axis in a second of a clip; None: one step a frame.
        frames_apart: each frame of a clip has positions of its own, between texts that say when it
            was taken (Qwen3-VL), instead of one time axis for all of them.
    """

    vision: GridConfig
    vision_start_token_id: int
    vision_end_token_id: int
    tokens_per_second: int | None = None
    frames_apart: bool = False

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        newer = str(content.get("model_type")).startswith("qwen3_5")
        hf = (Qwen35Settings if newer else QwenVLSettings).read(content)
        given = hf.vision_config or {}
        check_part("vision_config", given, hf.model_type, f"{hf.model_type}_vision")
        tower = GRID_SETTINGS[hf.model_type].read(given, "vision_config")
        text, where = qwen_text_settings(hf, content)
        if tower.output_width != text.hidden_size:
            raise ValueError(
                f"vision_config: expected features of {where}.hidden_size={text.hidden_size} "
                f"channels, got {tower.output_width}"
            )
        return cls(
            model_type=hf.model_type,
            vision=tower.to_config(),
            text=hf.decoder(text, where),
            image_token_id=hf.image_token_id,
            video_token_id=hf.video_token_id,
            vision_start_token_id=hf.vision_start_token_id,
            vision_end_token_id=hf.vision_end_token_id,
            tokens_per_second=(
                tower.tokens_per_second if isinstance(tower, Qwen25VisionSettings) else None
            ),
            frames_apart=hf.model_type.startswith("qwen3"),
            eos_token_ids=hf.eos_token_ids(text),
        )


def qwen_text_settings(hf: QwenVLSettings, content: Mapping[str, Any]) -> tuple[TextSettings, str]:
    """The decoder's settings and their name; older files have them beside all others."""
    where, given = "text_config", hf.text_config
    if given is None:
        where, given = "config.json", content
    kind = f"{hf.model_type}_text"
    check_part(where, given, hf.model_type, kind)
    return TEXT_SETTINGS[kind].read(given, where), where


def check_part(where: str, given: Mapping[str, Any], *supported: str) -> None:
    """Checks the model_type of a part; older files give it that of the whole model."""
    found = given.get("model_type")
    if found is not None and found not in supported:
        names = ", ".join(map(repr, supported))
        raise NotImplementedError(f"{where}.model_type={show(found)}; supported: {names}")
