"""Aya Vision as a family: its module, its processing, and how the parts join."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.families.aya_vision.config import AyaVisionConfig
from models.families.base import Family
from models.families.fixed_grid import FixedGridModel, bucketed_pixels
from models.families.llava.naming import llava_names
from models.inputs.image_settings import check_image_settings, check_tile_counts
from models.inputs.processing import Processing
from models.layers.linear import Maker
from models.vision.projectors import GatedMergingProjector

__all__ = ["FAMILY"]

_START, _END = "<|START_OF_IMG|>", "<|END_OF_IMG|>"


class _Model(FixedGridModel):
    """The three parts of an Aya Vision model; a tile is an image."""

    def make_projector(self, config: AyaVisionConfig, make: Maker) -> GatedMergingProjector:
        """The gated MLP over squares of neighbouring features."""
        return GatedMergingProjector(
            make,
            config.vision.feature_width,
            config.alignment_intermediate_size or config.text.hidden_size,
            config.text.hidden_size,
            merge=config.merge,
            epsilon=config.adapter_layer_norm_eps,
        )


class _Processing(Processing):
    """Each picture cut into tiles, and once more as a whole behind them."""

    image_token_setting = "img_patch_token"

    def placeholder(self, config: AyaVisionConfig, tokenizer: Any) -> str:
        """As `Processing.placeholder`: templates write a text that is no visual token."""
        return self.image_mark

    def check(self, config: AyaVisionConfig, image_processor: Any) -> None:
        """As `Processing.check`: tiles have the tower's size."""
        check_image_settings(image_processor, config.vision.image_size)
        check_tile_counts(image_processor)

    def preprocess(
        self,
        config: AyaVisionConfig,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """As `Processing.preprocess`."""
        # transformers' processor cuts pictures even if the image processor's file says not to.
        output = self.run(image_processor, pictures, crop_to_patches=True)
        run = tokenizer.convert_ids_to_tokens(config.image_token_id) * config.image_tokens
        texts = []
        for tiles in output["num_patches"].tolist():
            cut = "".join(f"TILE_{number}{run}" for number in range(1, tiles))
            texts.append(f"{_START}{cut}TILE_GLOBAL{run}{_END}")
        return {"pixel_values": output["pixel_values"]}, texts


FAMILY = Family(
    read_config=AyaVisionConfig.from_hf,
    build=_Model,
    weights=llava_names,
    array_names=("pixel_values",),
    visual_inputs=bucketed_pixels,
    processing=_Processing,
    unused_names=("num_patches",),
)
