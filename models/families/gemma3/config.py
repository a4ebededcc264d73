"""Settings of a Gemma 3 model with pictures."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from models.checkpoints.hf_fields import NO_EFFECT, Count, TokenId
from models.families.fixed_grid import FixedGridConfig
from models.families.settings import FamilySettings
from models.text.registry import read_text_settings
from models.vision.settings import read_vision_settings

__all__ = ["Gemma3Config", "Gemma3ModelSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3ModelSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["gemma3"]
    mm_tokens_per_image: Count = 256
    boi_token_index: TokenId = 255999
    eoi_token_index: TokenId = 256000
    image_token_index: TokenId = 262144
    tie_word_embeddings: bool = True
    ignored = NO_EFFECT
    aliases: ClassVar[Mapping[str, str]] = {
        "image_token_id": "image_token_index",
        "boi_token_id": "boi_token_index",
        "eoi_token_id": "eoi_token_index",
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(FixedGridConfig):
    """A Gemma 3 model.

    Attributes:
        pool: features of a side of the square whose mean becomes one visual token.
        begin_image_id, end_image_id: tokens around a picture's own.
    """

    model_type: str = "gemma3"
    pool: int
    begin_image_id: int
    end_image_id: int

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one picture."""
        return (self.vision.side // self.pool) ** 2

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = Gemma3ModelSettings.read(content)
        tower = read_vision_settings(
            hf.vision_config or {}, ("siglip_vision_model",), default="siglip_vision_model"
        )
        vision = tower.to_config(-1, post_norm=True)
        text = read_text_settings(
            hf.text_config or {}, supported=("gemma3_text",), default="gemma3_text"
        )
        return cls(
            vision=vision,
            text=hf.decoder(text),
            pool=_pool(vision.side, hf.mm_tokens_per_image),
            begin_image_id=hf.boi_token_index,
            end_image_id=hf.eoi_token_index,
            image_token_id=hf.image_token_index,
            eos_token_ids=hf.eos_token_ids(text),
        )


def _pool(side: int, tokens: int) -> int:
    """Side, in patches, of the squares that make `tokens` tokens of `side` x `side` patches."""
    pool = side // math.isqrt(tokens)
    # A rim that does not fill a square is left out, as in transformers.
    if not pool or (side // pool) ** 2 != tokens:
        raise ValueError(
            f"mm_tokens_per_image: expected a square number that pooling gives of {side} x {side} "
            f"patches, got {tokens}"
        )
    return pool
