"""LLaVA-OneVision as a family: pictures and clips against tokens, and how they are made."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.families.base import Family, VisualInputs
from models.families.llava_next.clips import (
    CLIP_LENGTHS,
    LlavaClipProcessing,
    order_of_rows,
    tiles_and_clips,
)
from models.families.llava_next.family import LlavaNextProcessing, llava_next_names
from models.families.llava_next.model import LlavaNextModel
from models.families.llava_next.tiles import (
    clip_rows,
    num_tiles,
    picture_rows,
    tile_layout,
    whole_rows,
)
from models.families.llava_onevision.config import LlavaOnevisionConfig
from models.inputs.clip_processing import ClipProcessing
from models.inputs.clip_settings import ClipSettings
from models.inputs.image_settings import check_resized
from models.inputs.pixels import check_image_sizes, pad_to_bucket
from vkq_jax.messages import show

__all__ = ["FAMILY"]


def _visual_inputs(
    config: LlavaOnevisionConfig,
    ids: np.ndarray,
    mask: np.ndarray,
    arrays: Mapping[str, np.ndarray],
) -> VisualInputs:
    sizes = check_image_sizes(arrays)
    cut = _cut(sizes, arrays.get("batch_num_images"))
    counts = [num_tiles(config, *size) if c else 1 for size, c in zip(sizes, cut, strict=True)]
    tiles, frames = tiles_and_clips(config, arrays, sizes, counts)
    first = (0, *accumulate([*counts, *frames]))
    pictures = [
        picture_rows(config, *size, start) if c else whole_rows(config, start)
        for size, c, start in zip(sizes, cut, first, strict=False)
    ]
    videos = [
        clip_rows(config, count, start)
        for count, start in zip(frames, first[len(sizes) :], strict=False)
    ]
    lengths = ([len(rows) for rows, _ in parts] for parts in (pictures, videos))
    order = order_of_rows(config, ids, *lengths)
    if not tiles:
        return VisualInputs()
    pixels = pad_to_bucket(np.concatenate(tiles))
    rows, weights = (np.concatenate(each)[order] for each in zip(*pictures, *videos, strict=True))
    newline = len(pixels) * config.vision.num_features
    return VisualInputs(pixels, tile_layout(config, [(rows, weights)], newline))


def _cut(sizes: Sequence[tuple[int, int]], images_each: np.ndarray | None) -> list[bool]:
    """Whether each picture is cut into tiles: where it is the only one of its prompt."""
    if images_each is None:
        return [True] * len(sizes)
    integers = np.issubdtype(images_each.dtype, np.integer) and images_each.ndim == 1
    if not integers or (images_each < 0).any() or images_each.sum() != len(sizes):
        raise ValueError(
            f"batch_num_images: expected how many of the {len(sizes)} pictures each prompt has, "
            f"got {images_each.dtype} {show(images_each.tolist())}"
        )
    return [int(each) == 1 for each in images_each for _ in range(int(each))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipSettings(ClipSettings):
    default_size: ClassVar[Mapping[str, int]] = {"height": 384, "width": 384}


class _ClipProcessing(LlavaClipProcessing):
    settings = _ClipSettings

    def tokens(self, config: Any, frames: int) -> int:
        """Frames at half their height and width, and a newline."""
        return frames * math.ceil(config.vision.side / 2) ** 2 + 1


class _Processing(LlavaNextProcessing):
    """The only picture of a prompt cut into tiles, several padded to squares."""

    def clips(self, config: Any) -> ClipProcessing:
        """See `Processing.clips`."""
        return _ClipProcessing()

    def preprocess(
        self,
        config: Any,
        image_processor: Any,
        pictures: Sequence[Image.Image],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `Processing.preprocess`."""
        if len(pictures) == 1:
            arrays, texts = super().preprocess(
                config, image_processor, pictures, placeholder, tokenizer
            )
            return arrays | {"batch_num_images": np.array([1])}, texts
        for picture in pictures:
            check_resized(image_processor, picture)
        output = self.run(image_processor, [list(pictures)], do_pad=True)
        tokens = placeholder * (config.vision.num_features + 1)
        arrays = {
            "pixel_values": output["pixel_values"][:, 0],
            "image_sizes": output["image_sizes"],
            "batch_num_images": np.array([len(pictures)]),
        }
        return arrays, [tokens] * len(pictures)


FAMILY = Family(
    read_config=LlavaOnevisionConfig.from_hf,
    build=LlavaNextModel,
    weights=llava_next_names,
    array_names=(
        "pixel_values",
        "image_sizes",
        "batch_num_images",
        "pixel_values_videos",
        CLIP_LENGTHS,
    ),
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
