"""Settings of a DeepSeek-VL model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, TokenId
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.text.registry import read_text_settings
from models.vision.settings import read_vision_settings

__all__ = ["DeepseekVLConfig", "DeepseekVLSettings"]

_TOWER = "siglip_vision_model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekVLSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["deepseek_vl"]
    image_token_id: TokenId = 100015
    tie_word_embeddings: bool = True
    ignored = NO_EFFECT


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepseekVLConfig(FixedGridConfig):
    """A DeepSeek-VL model with one vision tower."""

    model_type: str = "deepseek_vl"

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = DeepseekVLSettings.read(content)
        tower = read_vision_settings(hf.vision_config or {}, (_TOWER,), default=_TOWER)
        text = read_text_settings(hf.text_config or {}, default="llama")
        return cls(
            vision=tower.to_config(-1, post_norm=True),
            text=hf.decoder(text),
            image_token_id=hf.image_token_id,
            eos_token_ids=hf.eos_token_ids(text),
        )
