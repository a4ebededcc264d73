"""LLaVA-NeXT as a family: tiles of pictures against tokens, and how they are made."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from models.checkpoints.naming import WeightNames
from models.families.base import Family, VisualInputs
from models.families.llava.naming import llava_names
from models.families.llava_next.config import LlavaNextConfig
from models.families.llava_next.model import LlavaNextModel
from models.families.llava_next.pixels import picture_tiles
from models.families.llava_next.tiles import num_tiles, picture_rows, tile_layout
from models.inputs.image_settings import check_image_settings
from models.inputs.pixels import check_image_sizes, check_image_tokens, pad_to_bucket
from models.inputs.processing import Processing
from vkq_jax.messages import show

__all__ = ["FAMILY", "LlavaNextProcessing", "llava_next_names"]


def llava_next_names(config: LlavaNextConfig) -> WeightNames:
    """LLaVA's names and that of the newline."""
    return llava_names(
        config,
        rules=((r"(model\.)?image_newline\Z", "image_newline"),),
        published=((r"image_newline\Z", "image_newline"),),
    )


def _visual_inputs(
    config: LlavaNextConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    sizes = check_image_sizes(arrays)
    counts = [num_tiles(config, *size) for size in sizes]
    tiles = picture_tiles(config, arrays["pixel_values"], sizes, counts) if sizes else None
    first = (0, *accumulate(counts))
    parts = [picture_rows(config, *size, start) for size, start in zip(sizes, first, strict=False)]
    tokens = int((ids == config.image_token_id).sum())
    needed = sum(len(rows) for rows, _ in parts)
    check_image_tokens(config.image_token_id, tokens, len(sizes), needed)
    if tiles is None:
        return VisualInputs()
    pixels = pad_to_bucket(tiles)
    newline = len(pixels) * config.vision.num_features
    return VisualInputs(pixels, tile_layout(config, parts, newline))


class LlavaNextProcessing(Processing):
    """Each picture as a whole and cut into tiles; one run of image tokens a picture."""

    def check(self, config: LlavaNextConfig, image_processor: Any) -> None:
        """See `Processing.check`: tiles have the tower's size, pictures those of config.json."""
        check_image_settings(image_processor, config.vision.image_size)
        found = image_processor.image_grid_pinpoints
        expected = config.image_grid_pinpoints
        if [list(size) for size in found] != [list(size) for size in expected]:
            raise ValueError(
                f"preprocessor_config.json: image_grid_pinpoints={show(found)}, and config.json "
                f"has {show([list(size) for size in expected])}: both must be the same"
            )

    def check_picture(self, image_processor: Any, picture: Image.Image) -> None:
        """Pictures of any size become one of the sizes that config.json lists."""

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`; tiles of all pictures lie one after another."""
        # transformers' processor pads even if the image processor's file says not to.
        output = self.run(image_processor, pictures, do_pad=True)
        sizes = check_image_sizes(output)
        counts = [num_tiles(config, *size) for size in sizes]
        tiles = picture_tiles(config, output["pixel_values"], sizes, counts)
        texts = [placeholder * len(picture_rows(config, *size, 0)[0]) for size in sizes]
        return {"pixel_values": tiles, "image_sizes": output["image_sizes"]}, texts


FAMILY = Family(
    read_config=LlavaNextConfig.from_hf,
    build=LlavaNextModel,
    weights=llava_next_names,
    array_names=("pixel_values", "image_sizes"),
    visual_inputs=_visual_inputs,
    processing=LlavaNextProcessing,
)
