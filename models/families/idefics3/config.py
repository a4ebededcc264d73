"""Settings of an Idefics3 or SmolVLM model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, Count, Side, TokenId, Width
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.text.registry import read_text_settings
from models.vision.settings import SiglipVisionSettings

__all__ = ["Idefics3Config", "Idefics3Settings", "Idefics3VisionSettings"]

# The decoder of a file that says nothing of it.
_TEXT = {"rms_norm_eps": 1e-5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3VisionSettings(SiglipVisionSettings):
    """`vision_config`: SigLIP; files of transformers 4 name the whole model there."""

    model_type: Literal["idefics3_vision", "smolvlm_vision", "idefics3", "smolvlm"] = (
        "idefics3_vision"
    )
    hidden_size: Width = 1152
    num_attention_heads: Count = 16
    patch_size: Side | tuple[Side, ...] = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3Settings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["idefics3", "smolvlm"]
    image_token_id: TokenId = 128257
    scale_factor: Count = 2
    ignored = NO_EFFECT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3Config(FixedGridConfig):
    """Fields of `FixedGridConfig`; a tile is an image.

    Attributes:
        merge: features of a side of the square that becomes one visual token.
    """

    merge: int

    def tile_tokens(self, size: int) -> int:
        """Visual tokens of a tile of `size` x `size` pixels.

        Raises:
            ValueError: its patches make no whole squares.
        """
        side = size // self.vision.patch_size
        if not side or side % self.merge:
            raise ValueError(
                f"tiles of {size} x {size} pixels: expected sides that are multiples of "
                f"patch_size * scale_factor={self.vision.patch_size * self.merge} pixels"
            )
        return (side // self.merge) ** 2

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = Idefics3Settings.read(content)
        tower = Idefics3VisionSettings.read(hf.vision_config or {}, "vision_config")
        text = read_text_settings(_TEXT if hf.text_config is None else hf.text_config)
        return cls(
            model_type=hf.model_type,
            vision=tower.to_config(-1, post_norm=True),
            text=hf.decoder(text),
            image_token_id=hf.image_token_id,
            merge=hf.scale_factor,
            eos_token_ids=hf.eos_token_ids(text),
        )
