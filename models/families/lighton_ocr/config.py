"""Settings of a LightOnOCR model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, Count, TokenId
from models.families.base import ModelConfig
from models.families.settings import FamilySettings
from models.text.registry import read_text_settings
from models.vision.grid_tower import GridConfig
from models.vision.pixtral_settings import PixtralVisionSettings

__all__ = ["LightOnOcrConfig", "LightOnOcrSettings"]

# The parts of a file that says nothing of them.
_VISION = {"patch_size": 14, "hidden_act": "silu"}
_TEXT = {
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "vocab_size": 151936,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightOnOcrSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["lighton_ocr"]
    image_token_id: TokenId = 151655
    spatial_merge_size: Count = 2
    tie_word_embeddings: bool = True
    ignored = NO_EFFECT


@dataclasses.dataclass(frozen=True, kw_only=True)
class LightOnOcrConfig(ModelConfig):
    """Fields of `ModelConfig`, the vision tower and the projector.

    Attributes:
        vision: the tower; its patches lie row by row, since a picture may have a rim of them that
            makes no block.
        merge: patches of the side of a block that becomes one visual token.
    """

    model_type: str = "lighton_ocr"
    vision: GridConfig
    merge: int

    @property
    def block_size(self) -> int:
        """Pixels of the side of a block that becomes one visual token."""
        return self.vision.patch_size * self.merge

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = LightOnOcrSettings.read(content)
        vision = _VISION if hf.vision_config is None else hf.vision_config
        tower = PixtralVisionSettings.read(vision, "vision_config")
        text = _TEXT if hf.text_config is None else hf.text_config
        decoder = read_text_settings(text, default="qwen3")
        return cls(
            vision=tower.to_config(-1, merge=1),
            text=hf.decoder(decoder),
            image_token_id=hf.image_token_id,
            merge=hf.spatial_merge_size,
            eos_token_ids=hf.eos_token_ids(decoder),
        )
