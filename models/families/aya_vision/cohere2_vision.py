"""Command A Vision as a family: Aya Vision's parts without a norm, and tiles of its own."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image

from models.checkpoints.hf_fields import NO_EFFECT, Count, TokenId, Width
from models.checkpoints.naming import WeightNames
from models.families.aya_vision.config import check_projector
from models.families.base import Family
from models.families.fixed_grid import (
    FixedGridConfig,
    FixedGridModel,
    FixedGridProcessing,
    bucketed_pixels,
)
from models.families.llava.naming import llava_names
from models.families.settings import FamilySettings
from models.inputs.from_transformers import from_transformers
from models.inputs.image_settings import check_image_settings, check_square, check_tile_counts
from models.layers.linear import Maker
from models.text.registry import read_text_settings
from models.text.sizes import STACKED
from models.vision.projectors import GatedMergingProjector
from models.vision.settings import read_vision_settings

__all__ = ["FAMILY", "Cohere2VisionConfig", "Cohere2VisionSettings"]

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "image_size": 512,
    "num_hidden_layers": 27,
    "num_attention_heads": 12,
}
_START, _END, _BEHIND_TILE = "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"
_IMAGE_DEFAULTS = {
    "size": {"height": 512, "width": 512},
    "crop_to_patches": True,
    "max_patches": 12,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohere2VisionSettings(FamilySettings):
    """The whole config.json."""

    model_type: Literal["cohere2_vision"]
    image_token_id: TokenId = 255036
    downsample_factor: Count = 2
    alignment_intermediate_size: Width = 36864
    tie_word_embeddings: bool = True
    decoder_ties: ClassVar[bool] = False
    ignored = NO_EFFECT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohere2VisionConfig(FixedGridConfig):
    """A Command A Vision model: fields of `FixedGridConfig` and its projector; a tile is an image.

    Attributes:
        merge: features of a side of the square that becomes one visual token.
        alignment_intermediate_size: channels inside the projector, the gate's half included.
    """

    model_type: str = "cohere2_vision"
    merge: int
    alignment_intermediate_size: int

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one tile."""
        return self.vision.num_features // self.merge**2

    @classmethod
    def from_hf(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, written by transformers 4 or 5.

        Raises:
            NotImplementedError: a setting that this port cannot honour, named.
            ValueError: a field of a wrong type, out of range, or contradicting another, named.
        """
        hf = Cohere2VisionSettings.read(content)
        tower = read_vision_settings(
            _VISION if hf.vision_config is None else hf.vision_config,
            default=_VISION["model_type"],
        )
        vision = tower.to_config(-1, post_norm=True)
        check_projector(vision, hf.downsample_factor, hf.alignment_intermediate_size)
        text = read_text_settings(hf.text_config or {}, default="cohere2")
        return cls(
            vision=vision,
            text=hf.decoder(text),
            image_token_id=hf.image_token_id,
            merge=hf.downsample_factor,
            alignment_intermediate_size=hf.alignment_intermediate_size,
            eos_token_ids=hf.eos_token_ids(text),
        )


class _Model(FixedGridModel):
    """The three parts of a Command A Vision model; a tile is an image."""

    def make_projector(self, config: Cohere2VisionConfig, make: Maker) -> GatedMergingProjector:
        """The gated MLP over squares of neighbouring features."""
        return GatedMergingProjector(
            make,
            config.vision.feature_width,
            config.alignment_intermediate_size,
            config.text.hidden_size,
            merge=config.merge,
        )


def _weights(config: Cohere2VisionConfig) -> WeightNames:
    published = (
        (r"text\.lm_head\.", "lm_head."),
        (STACKED, "model.language_model.layers."),
        (r"text\.", "model.language_model."),
        (r"vision\.", "model.vision_tower."),
        (r"projector\.", "model.multi_modal_projector."),
    )
    return llava_names(config, published=published)


def _grid(size: tuple[int, int], side: int, most: int) -> tuple[int, int]:
    """Columns and rows of tiles that enlarge a picture least, or else shrink it least."""
    counts = range(1, most + 1)
    grids = sorted(((w, h) for w in counts for h in counts if w * h <= most), key=math.prod)
    scales = [min(w * side / size[0], h * side / size[1]) for w, h in grids]
    best = min((scale for scale in scales if scale >= 1), default=max(scales))
    return grids[scales.index(best)]


def _cut(picture: Image.Image, side: int, most: int, resample: int | None) -> list[Image.Image]:
    """At most so many tiles of `side` pixels, row by row, and the whole if there are several."""
    columns, rows = _grid(picture.size, side, most)
    kind = Image.Resampling.BILINEAR if resample is None else Image.Resampling(resample)
    whole = picture.resize((columns * side, rows * side), kind)
    corners = [(x * side, y * side) for y in range(rows) for x in range(columns)]
    tiles = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
    return tiles if len(tiles) == 1 else [*tiles, picture.resize((side, side), kind)]


class _Processing(FixedGridProcessing):
    """Each picture cut into tiles, and once more as a whole behind them."""

    def load_image_processor(self, folder: Path, config: Any) -> Any:
        """See `Processing.load_image_processor`; transformers' own needs torchvision."""
        module = "transformers.models.got_ocr2.image_processing_pil_got_ocr2"
        kind = from_transformers("GotOcr2ImageProcessorPil", module)
        found, _ = kind.get_image_processor_dict(folder, local_files_only=True)
        return kind.from_dict(_IMAGE_DEFAULTS | found)

    def check(self, config: FixedGridConfig, image_processor: Any) -> None:
        """See `Processing.check`."""
        check_image_settings(image_processor, config.vision.image_size)
        check_square(image_processor, config.vision.image_size)
        check_tile_counts(image_processor)

    def preprocess(
        self,
        config: Cohere2VisionConfig,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        groups = [[picture] for picture in pictures]
        if image_processor.crop_to_patches:
            side, most = config.vision.image_size, image_processor.max_patches
            groups = [_cut(picture, side, most, image_processor.resample) for picture in pictures]
        tiles = [tile for group in groups for tile in group]
        pixels = self.run(image_processor, tiles, crop_to_patches=False)["pixel_values"]
        run = placeholder * config.image_tokens + _BEHIND_TILE
        return {"pixel_values": pixels}, [f"{_START}{run * len(group)}{_END}" for group in groups]


FAMILY = Family(
    read_config=Cohere2VisionConfig.from_hf,
    build=_Model,
    weights=_weights,
    array_names=("pixel_values",),
    visual_inputs=bucketed_pixels,
    processing=_Processing,
    unused_names=("num_patches",),
)
