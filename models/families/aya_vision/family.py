"""Aya Vision as a family: its module, its processing, and how the parts join."""

from typing import Any

from models.families.aya_vision.config import AyaVisionConfig
from models.families.base import Family
from models.families.fixed_grid import FixedGridModel, TileProcessing, bucketed_pixels
from models.families.llava.naming import llava_names
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


class _Processing(TileProcessing):
    """Each picture cut into tiles, and once more as a whole behind them."""

    image_token_setting = "img_patch_token"

    def placeholder(self, config: AyaVisionConfig, tokenizer: Any) -> str:
        """See `Processing.placeholder`: templates write a text that is no visual token."""
        return self.image_mark

    def tiles_text(
        self, config: AyaVisionConfig, tiles: int, placeholder: str, tokenizer: Any
    ) -> str:
        """See `TileProcessing.tiles_text`: tiles have numbers, the whole picture comes last."""
        run = tokenizer.convert_ids_to_tokens(config.image_token_id) * config.image_tokens
        cut = "".join(f"TILE_{number}{run}" for number in range(1, tiles))
        return f"{_START}{cut}TILE_GLOBAL{run}{_END}"


FAMILY = Family(
    read_config=AyaVisionConfig.from_hf,
    build=_Model,
    weights=llava_names,
    array_names=("pixel_values",),
    visual_inputs=bucketed_pixels,
    processing=_Processing,
    unused_names=("num_patches",),
)
