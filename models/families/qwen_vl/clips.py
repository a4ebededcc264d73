"""How Qwen-VL's clips become arrays: frames sampled, resized, cut into patches in pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from models.checkpoints.hf_fields import Count, Side
from models.families.qwen_vl.config import QwenVLConfig
from models.inputs.clip_processing import ClipProcessing, check_tower, frame_pixels
from models.inputs.clip_settings import ClipSettings, Rate, Scale
from models.inputs.clips import ASSUMED_FPS, ReadClip
from vkq_jax.messages import show

__all__ = ["Qwen3ClipProcessing", "QwenClipProcessing"]

_LONGEST_SHAPE = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenClipSettings(ClipSettings):
    """Settings of Qwen2-VL and Qwen2.5-VL; `size` holds a least and a greatest area of a frame."""

    patch_size: Side = 14
    temporal_patch_size: Count = 2
    merge_size: Count = 2
    min_frames: Count = 4
    max_frames: Count = 768
    cap_pixels_per_frame: bool | None = None
    max_video_tokens: int = 128000
    default_size: ClassVar[Mapping[str, int]] = {
        "shortest_edge": 128 * 28**2,
        "longest_edge": 768 * 28**2,
    }

    @classmethod
    def of_file(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `ClipSettings.of_file`: `min_pixels` and `max_pixels` are part of `size`."""
        names = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
        older = {edge: content[name] for edge, name in names.items() if content.get(name)}
        return {**content, "size": {**(content.get("size") or cls.default_size), **older}}

    @property
    def factor(self) -> int:
        """Sides of frames are multiples of it."""
        return self.patch_size * self.merge_size

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """See `ClipSettings.resized`: each frame has an area in the range of `size`."""
        least, most = self._areas()
        if self.cap_pixels_per_frame:
            shared = int(self.max_video_tokens * self.factor**2 * 0.9) * self.temporal_patch_size
            most = max(min(most, shared // frames), int(least * 1.05))
        return _fit(self.factor, height, width, 1, 1, least, most)

    def _areas(self) -> tuple[int, int]:
        size = self.edges("size")
        if not {"shortest_edge", "longest_edge"} <= set(size):
            raise ValueError(
                f"size: expected shortest_edge and longest_edge, pixels, got {show(size)}"
            )
        return size["shortest_edge"], size["longest_edge"]

    def count(self, total: int, fps: float | None) -> int | None:
        """See `ClipSettings.count`: whole groups of frames that become one."""
        step = self.temporal_patch_size
        if not self.do_sample_frames or (self.num_frames is None and self.fps is None):
            return None
        if self.num_frames is not None:
            count = max(round(self.num_frames / step), 1) * step
        else:
            most = math.floor(min(self.max_frames, total) / step) * step
            wanted = total / self.rate(fps) * (self.fps or 0)
            count = math.floor(min(max(wanted, self.min_frames), most, total) / step) * step
        if not 0 < count <= total:
            raise ValueError(
                f"video: expected at least {max(count, step)} frames, got a clip of {total}"
            )
        return count

    def spread(self, total: int, count: int) -> list[int]:
        """See `ClipSettings.spread`."""
        # Rounding makes one number more of some steps, as in transformers, which fails there.
        spread = np.arange(0, total, total / count)[:count]
        return spread.astype(np.float32).astype(int).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3ClipSettings(QwenClipSettings):
    """Settings of Qwen3-VL; `size` holds a least and a greatest volume of a clip."""

    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Scale, ...] = (0.5, 0.5, 0.5)
    patch_size: Side = 16
    max_video_tokens: int = 768
    do_sample_frames: bool = True
    fps: Rate | None = 2.0
    default_size: ClassVar[Mapping[str, int]] = {
        "shortest_edge": 128 * 32**2,
        "longest_edge": 768 * 32**2,
    }

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """See `ClipSettings.resized`: all frames together have a volume in the range of `size`."""
        least, most = self._areas()
        if frames < self.temporal_patch_size:
            raise ValueError(
                f"video: expected at least {self.temporal_patch_size} frames, got {frames}: give a "
                "single frame as a picture"
            )
        if self.cap_pixels_per_frame:
            cap = min(self.max_video_tokens * self.factor**2, most // frames)
            most = max(cap, int(least * 1.05)) * frames
        if min(height, width) < self.factor:
            scale = max(self.factor / height, self.factor / width)
            height, width = int(height * scale), int(width * scale)
        step = self.temporal_patch_size
        return _fit(self.factor, height, width, frames, round(frames / step) * step, least, most)

    def count(self, total: int, fps: float | None) -> int | None:
        """See `ClipSettings.count`."""
        if not self.do_sample_frames:
            return None
        if self.num_frames is not None:
            return self.enough(total)
        wanted = total
        if self.fps is not None:
            wanted = int(total / (ASSUMED_FPS if fps is None else fps) * self.fps)
            return min(max(wanted, self.min_frames), self.max_frames, total)
        return min(max(wanted, self.min_frames), self.max_frames)

    def spread(self, total: int, count: int) -> list[int]:
        """See `ClipSettings.spread`: from the first frame to the last."""
        return np.linspace(0, total - 1, count).round().astype(int).tolist()


def _fit(
    factor: int, height: int, width: int, frames: int, rounded: int, least: int, most: int
) -> tuple[int, int]:
    """Height and width in multiples of `factor`, for frames of a volume from `least` to `most`."""
    if max(height, width) > _LONGEST_SHAPE * min(height, width):
        raise ValueError(
            f"video: frames of {width} x {height} are too long and narrow: expected a side of at "
            f"most {_LONGEST_SHAPE} times the other; crop them first"
        )
    sides = [round(side / factor) * factor for side in (height, width)]
    volume = frames * height * width
    if rounded * math.prod(sides) > most:
        beta = math.sqrt(volume / most)
        sides = [max(factor, math.floor(side / beta / factor) * factor) for side in (height, width)]
    elif rounded * math.prod(sides) < least:
        beta = math.sqrt(least / volume)
        sides = [math.ceil(side * beta / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


class QwenClipProcessing(ClipProcessing):
    """Frames in groups that become one; as many video tokens as a clip has blocks of patches."""

    settings = QwenClipSettings

    def clip_text(self, config: QwenVLConfig, tokenizer: Any) -> str:
        """See `ClipProcessing.clip_text`."""
        start, end = _around(config, tokenizer)
        return f"{start}{self.placeholder(config, tokenizer)}{end}"

    def check(self, config: QwenVLConfig, settings: QwenClipSettings) -> None:
        """See `ClipProcessing.check`: patches are those of the tower."""
        vision = config.vision
        tower = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.merge,
        }
        check_tower(settings, tower)

    def preprocess(
        self,
        config: QwenVLConfig,
        settings: QwenClipSettings,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        patches, grids = zip(
            *(_patches(settings, frame_pixels(settings, clip.frames)) for clip in clips),
            strict=True,
        )
        arrays = {
            "pixel_values_videos": np.concatenate(patches),
            "video_grid_thw": np.array(grids),
        }
        if config.tokens_per_second is not None:
            seconds = [settings.temporal_patch_size / _shown_fps(clip) for clip in clips]
            arrays["second_per_grid_ts"] = np.array(seconds, np.float32)
        texts = [
            self.text_of(config, settings, clip, grid, placeholder, tokenizer)
            for clip, grid in zip(clips, grids, strict=True)
        ]
        return arrays, texts

    def text_of(
        self,
        config: QwenVLConfig,
        settings: QwenClipSettings,
        clip: ReadClip,
        grid: tuple[int, int, int],
        placeholder: str,
        tokenizer: Any,
    ) -> str:
        """The text that a clip's placeholder becomes."""
        return placeholder * (math.prod(grid) // settings.merge_size**2)


class Qwen3ClipProcessing(QwenClipProcessing):
    """Each group of frames between tokens of its own, behind the time that it shows."""

    settings = Qwen3ClipSettings

    def text_of(
        self,
        config: QwenVLConfig,
        settings: QwenClipSettings,
        clip: ReadClip,
        grid: tuple[int, int, int],
        placeholder: str,
        tokenizer: Any,
    ) -> str:
        """See `QwenClipProcessing.text_of`."""
        start, end = _around(config, tokenizer)
        frames, rows, columns = grid
        run = placeholder * (rows * columns // settings.merge_size**2)
        step = settings.temporal_patch_size
        indices = clip.indices + [clip.indices[-1]] * (-len(clip.indices) % step)
        seconds = [index / clip.assumed_fps for index in indices]
        times = [(seconds[i] + seconds[i + step - 1]) / 2 for i in range(0, len(seconds), step)]
        return "".join(f"<{time:.1f} seconds>{start}{run}{end}" for time in times[:frames])


def _around(config: QwenVLConfig, tokenizer: Any) -> list[str]:
    ids = [config.vision_start_token_id, config.vision_end_token_id]
    return tokenizer.convert_ids_to_tokens(ids)


def _shown_fps(clip: ReadClip) -> float:
    """Frames per second of the frames that are shown."""
    if clip.fps is None:
        return ASSUMED_FPS
    return len(clip.indices) / clip.total * clip.fps


def _patches(
    settings: QwenClipSettings, pixels: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Patches [patches, width] in the order of merged blocks, and frames, rows and columns."""
    step, patch, merge = settings.temporal_patch_size, settings.patch_size, settings.merge_size
    pixels = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % step, axis=0)])
    height, width = pixels.shape[-2:]
    if height % settings.factor or width % settings.factor:
        raise ValueError(
            f"video: frames of {width} x {height} are not resized (do_resize is false); expected "
            f"sides that are multiples of {settings.factor}"
        )
    grid = len(pixels) // step, height // patch, width // patch
    blocks = pixels.reshape(
        grid[0], step, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )
    order = (0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.transpose(order).reshape(math.prod(grid), -1), grid
