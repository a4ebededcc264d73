"""How Gemma 4's clips become arrays and text: frames in patches, each behind the time it shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.checkpoints.hf_fields import Count, Side
from models.families.gemma4.config import Gemma4Config
from models.inputs.clip_processing import (
    ClipProcessing,
    check_tower,
    frame_pixels,
    minutes_and_seconds,
)
from models.inputs.clip_settings import ClipSettings, Scale
from models.inputs.clips import ReadClip

__all__ = ["Gemma4ClipProcessing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gemma4ClipSettings(ClipSettings):
    """Settings of clips: a frame becomes at most `max_soft_tokens` visual tokens."""

    do_sample_frames: bool = True
    num_frames: Count | None = 32
    image_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    image_std: tuple[Scale, ...] = (1.0, 1.0, 1.0)
    patch_size: Side = 16
    max_soft_tokens: Count = 70
    pooling_kernel_size: Count = 3
    default_size: ClassVar[Mapping[str, int]] = {}

    @property
    def most_patches(self) -> int:
        """Patches of a frame at most."""
        return self.max_soft_tokens * self.pooling_kernel_size**2

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """See `ClipSettings.resized`: about `most_patches`, in whole blocks, of the same shape."""
        factor = self.pooling_kernel_size * self.patch_size
        scale = math.sqrt(self.most_patches * self.patch_size**2 / (height * width))
        sides = [math.floor(scale * side / factor) * factor for side in (height, width)]
        if not any(sides):
            raise ValueError(
                f"max_soft_tokens: expected at least one for a frame of {width} x {height}, got "
                f"{self.max_soft_tokens}"
            )
        if not all(sides):  # a long and narrow frame is one block wide
            longer = max(height, width) // min(height, width)
            long = min(longer, self.max_soft_tokens) * factor
            return (factor, long) if height < width else (long, factor)
        return sides[0], sides[1]


class Gemma4ClipProcessing(ClipProcessing):
    """Frames as the processor of pictures has them, and the minute and second of each."""

    settings = _Gemma4ClipSettings

    def check(self, config: Gemma4Config, settings: _Gemma4ClipSettings) -> None:
        """See `ClipProcessing.check`: patches and blocks are those of the tower."""
        tower = {"patch_size": config.vision.patch_size, "pooling_kernel_size": config.pooling}
        check_tower(settings, tower)

    def preprocess(
        self,
        config: Gemma4Config,
        settings: _Gemma4ClipSettings,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        begin, end = tokenizer.convert_ids_to_tokens([config.begin_image_id, config.end_image_id])
        found, texts = [], []
        for clip in clips:
            patches, places = _patches(settings, frame_pixels(settings, clip.frames))
            found.append((patches, places))
            count = int((places[0, :, 0] >= 0).sum()) // settings.pooling_kernel_size**2
            frame = f"{begin}{placeholder * count}{end}"
            times = (index / clip.assumed_fps for index in clip.indices)
            texts.append(" ".join(f"{minutes_and_seconds(time)} {frame}" for time in times))
        pixels, places = (np.concatenate(each) for each in zip(*found, strict=True))
        return {
            "pixel_values_videos": pixels,
            "video_position_ids": places,
            "num_frames_per_video": np.array([len(clip.frames) for clip in clips]),
        }, texts


def _patches(settings: _Gemma4ClipSettings, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches [frames, most_patches, width] and column and row of each, -1 behind the last."""
    patch, factor = settings.patch_size, settings.patch_size * settings.pooling_kernel_size
    frames, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    if height % factor or width % factor or rows * columns > settings.most_patches:
        raise ValueError(
            f"video: frames of {width} x {height} are not resized (do_resize is false); expected "
            f"sides that are multiples of {factor}, and at most {settings.most_patches} patches"
        )
    blocks = pixels.reshape(frames, 3, rows, patch, columns, patch).transpose(0, 2, 4, 3, 5, 1)
    behind = settings.most_patches - rows * columns
    grid = np.indices((rows, columns))[::-1].reshape(2, -1).T
    return (
        np.pad(blocks.reshape(frames, rows * columns, -1), ((0, 0), (0, behind), (0, 0))),
        np.tile(np.pad(grid, ((0, behind), (0, 0)), constant_values=-1), (frames, 1, 1)),
    )
