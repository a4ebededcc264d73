"""Settings of a LLaVA-NeXT-Video model."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from models.checkpoints.hf_fields import TokenId
from models.checkpoints.hf_settings import Between
from models.families.llava.config import LlavaSettings
from models.families.llava_next.config import LlavaNextConfig, LlavaNextSettings
from models.vision.vit import VitConfig

__all__ = ["LlavaNextVideoConfig", "LlavaNextVideoSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextVideoSettings(LlavaNextSettings):
    """The whole config.json."""

    model_type: Literal["llava_next_video"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_token_index: TokenId = 32001
    video_token_index: TokenId = 32000
    spatial_pool_mode: Literal["average", "max"] = "average"
    spatial_pool_stride: Annotated[int, Between(1, 64)] = 2
    # How long a clip is follows from the vision tower.
    ignored = LlavaNextSettings.ignored | {"video_seq_length"}
    aliases: ClassVar[Mapping[str, str]] = {
        **LlavaNextSettings.aliases,
        "video_token_id": "video_token_index",
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextVideoConfig(LlavaNextConfig):
    """A LLaVA-NeXT-Video model: fields of `LlavaNextConfig` and how frames are pooled.

    Attributes:
        pool_stride: features of a side of the square that becomes one, rims that fill none apart.
        pool_max: whether that is their maximum; else their mean.
    """

    model_type: str = "llava_next_video"
    pool_stride: int
    pool_max: bool
    settings: ClassVar[type[LlavaSettings]] = LlavaNextVideoSettings

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """See `LlavaConfig.more`."""
        if hf.spatial_pool_stride > vision.side:
            raise ValueError(
                f"spatial_pool_stride: expected at most the {vision.side} patches of a side, "
                f"got {hf.spatial_pool_stride}"
            )
        return super().more(hf, vision) | {
            "video_token_id": hf.video_token_index,
            "pool_stride": hf.spatial_pool_stride,
            "pool_max": hf.spatial_pool_mode == "max",
        }
