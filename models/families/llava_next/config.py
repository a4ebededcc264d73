"""Settings of a LLaVA-NeXT model."""

import dataclasses
from typing import Any, ClassVar, Literal

from models.checkpoints.hf_fields import Side
from models.families.llava.config import LlavaConfig, LlavaSettings
from models.vision.vit import VitConfig
from vkq_jax.messages import show

__all__ = ["LlavaNextConfig", "LlavaNextSettings"]

_LARGEST = 2**26
"""Pixels of a picture before it is cut into tiles: 1 GB while transformers works on it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextSettings(LlavaSettings):
    """The whole config.json."""

    model_type: Literal["llava_next"]  # pyright: ignore[reportIncompatibleVariableOverride]
    image_grid_pinpoints: tuple[tuple[Side, ...], ...] | None = None
    default_pinpoints: ClassVar[tuple[tuple[int, int], ...]] = (
        (336, 672),
        (672, 336),
        (672, 672),
        (1008, 336),
        (336, 1008),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """A LLaVA-NeXT model: fields of `LlavaConfig` and the sizes that pictures are tiled at.

    Attributes:
        image_grid_pinpoints: heights and widths, multiples of the tower's.
        max_tiles: features of larger pictures are shrunk to about those of so many tiles; None:
            never.
    """

    model_type: str = "llava_next"
    image_grid_pinpoints: tuple[tuple[int, int], ...]
    max_tiles: int | None = None
    settings: ClassVar[type[LlavaSettings]] = LlavaNextSettings

    @classmethod
    def more(cls, hf: Any, vision: VitConfig) -> dict[str, Any]:
        """See `LlavaConfig.more`."""
        if vision.num_features != vision.num_patches:
            raise NotImplementedError(
                f"vision_feature_select_strategy={hf.vision_feature_select_strategy!r}; supported "
                f"with this vision tower: {'default' if vision.class_token else 'full'!r}"
            )
        sizes = hf.image_grid_pinpoints
        sizes = hf.default_pinpoints if sizes is None else sizes
        tile = vision.image_size
        for i, size in enumerate(sizes):
            tiled = len(size) == 2 and not (size[0] % tile or size[1] % tile)
            if not tiled or size[0] * size[1] > _LARGEST:
                raise ValueError(
                    f"image_grid_pinpoints[{i}]: expected a height and a width, multiples of the "
                    f"{tile} pixels that the vision tower takes, of at most {_LARGEST} pixels "
                    f"together, got {show(list(size))}"
                )
        if not sizes:
            raise ValueError("image_grid_pinpoints: expected a size or more, got none")
        return {"image_grid_pinpoints": sizes}
