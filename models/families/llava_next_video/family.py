"""LLaVA-NeXT-Video as a family: pictures and clips against tokens."""

import dataclasses
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from models.families.base import Family, VisualInputs
from models.families.llava_next.clips import (
    CLIP_LENGTHS,
    LlavaClipProcessing,
    order_of_rows,
    tiles_and_clips,
)
from models.families.llava_next.family import LlavaNextProcessing, llava_next_names
from models.families.llava_next.tiles import num_tiles, picture_rows
from models.families.llava_next_video.config import LlavaNextVideoConfig
from models.families.llava_next_video.model import LlavaNextVideoModel
from models.inputs.clip_processing import ClipProcessing
from models.inputs.clip_settings import ClipSettings
from models.inputs.pixels import check_image_sizes, pad_to_bucket

__all__ = ["FAMILY"]


def _visual_inputs(
    config: LlavaNextVideoConfig,
    ids: np.ndarray,
    mask: np.ndarray,
    arrays: Mapping[str, np.ndarray],
) -> VisualInputs:
    sizes = check_image_sizes(arrays)
    counts = [num_tiles(config, *size) for size in sizes]
    tiles, frames = tiles_and_clips(config, arrays, sizes, counts)
    first = (0, *accumulate([*counts, *frames]))
    pictures = [_picture(config, *size, at) for size, at in zip(sizes, first, strict=False)]
    videos = [
        _clip(config, count, start)
        for count, start in zip(frames, first[len(sizes) :], strict=False)
    ]
    order = order_of_rows(
        config, ids, *([len(rows) for rows in each] for each in (pictures, videos))
    )
    if not tiles:
        return VisualInputs()
    pixels = pad_to_bucket(np.concatenate(tiles))
    rows = np.concatenate([*pictures, *videos])[order]
    rows = np.where(rows < 0, len(pixels) * config.vision.num_features, rows)
    return VisualInputs(pixels, jnp.asarray(pad_to_bucket(rows), jnp.int32))


def _picture(config: LlavaNextVideoConfig, height: int, width: int, first: int) -> np.ndarray:
    """Numbers of features [tokens, pooled] of a picture, which is not pooled; -1: newline."""
    rows, _ = picture_rows(config, height, width, first)
    return np.repeat(rows[:, :1], config.pool_stride**2, axis=1)


def _clip(config: LlavaNextVideoConfig, frames: int, first: int) -> np.ndarray:
    """Numbers of features [tokens, pooled] of a clip, frame by frame; there is no newline."""
    side, stride = config.vision.side, config.pool_stride
    kept = side // stride * stride
    grid = np.arange(side**2).reshape(side, side)[:kept, :kept]
    squares = grid.reshape(kept // stride, stride, kept // stride, stride).swapaxes(1, 2)
    numbers = (first + np.arange(frames))[:, None, None] * side**2 + squares.reshape(-1, stride**2)
    return numbers.reshape(-1, stride**2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ClipSettings(ClipSettings):
    do_center_crop: bool | None = True
    default_size: ClassVar[Mapping[str, int]] = {"shortest_edge": 224}
    default_crop: ClassVar[Mapping[str, int]] = {"height": 224, "width": 224}


class _ClipProcessing(LlavaClipProcessing):
    settings = _ClipSettings

    def tokens(self, config: LlavaNextVideoConfig, frames: int) -> int:
        """Squares of features that become one; there is no newline."""
        return frames * (config.vision.side // config.pool_stride) ** 2


class _Processing(LlavaNextProcessing):
    """LLaVA-NeXT's, and clips."""

    def clips(self, config: Any) -> ClipProcessing:
        """See `Processing.clips`."""
        return _ClipProcessing()


FAMILY = Family(
    read_config=LlavaNextVideoConfig.from_hf,
    build=LlavaNextVideoModel,
    weights=llava_next_names,
    array_names=("pixel_values", "image_sizes", "pixel_values_videos", CLIP_LENGTHS),
    visual_inputs=_visual_inputs,
    processing=_Processing,
)
