"""Settings of a checkpoint's clips: what transformers' video processors read from its files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from PIL import Image

from models.checkpoints.hf_fields import Count
from models.checkpoints.hf_settings import Between, Settings, errors_of, read_json
from models.inputs.image_settings import MEANS, SCALES
from vkq_jax.messages import show

__all__ = ["ClipSettings", "Rate", "Scale", "read_clip_settings"]

_LARGEST = 2**28
"""Pixels of all resized frames of a clip: 3 GB of floats."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Rate = Annotated[float, Between(1e-6, 1e6)]
Scale = Annotated[float, SCALES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSettings(Settings):
    """The steps that all video processors share; names and defaults are transformers'.

    Attributes:
        default_size, default_crop: the family's sizes, where files do not say them.
    """

    do_sample_frames: bool = False
    num_frames: Count | None = None
    fps: Rate | None = None
    do_resize: bool = True
    size: dict[str, Any] | None = None  # None: `default_size`
    resample: Annotated[int, Between(0, 5)] = int(Image.Resampling.BICUBIC)
    do_center_crop: bool | None = None
    crop_size: dict[str, Any] | None = None  # None: `default_crop`
    do_rescale: bool = True
    rescale_factor: Scale = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[Annotated[float, MEANS], ...] = _CLIP_MEAN
    image_std: tuple[Scale, ...] = _CLIP_STD
    default_size: ClassVar[Mapping[str, int]] = {}
    default_crop: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        """Checks what the fields' types do not say."""
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: expected 3 numbers, got {show(getattr(self, name))}")
        for name in ("size", "crop_size"):
            for edge, value in self.edges(name).items():
                if type(value) is not int or not 0 < value <= 2**31:
                    raise ValueError(f"{name}.{edge}: expected pixels above 0, got {show(value)}")

    @classmethod
    def of_file(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The content of a file under the field names of transformers 5."""
        return content

    def edges(self, name: str) -> dict[str, Any]:
        """The sizes that are set under `name`."""
        default = self.default_size if name == "size" else self.default_crop
        found = getattr(self, name) or default
        return {edge: value for edge, value in found.items() if value is not None}

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width that the frames of a clip are resized to.

        Raises:
            ValueError: `size` says neither height and width nor shortest_edge.
        """
        size = self.edges("size")
        if {"height", "width"} <= set(size):
            return size["height"], size["width"]
        if "shortest_edge" not in size:
            raise ValueError(f"size: expected height and width, or shortest_edge, got {show(size)}")
        short = size["shortest_edge"]
        long = int(short * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)

    def sample(self, total: int, fps: float | None) -> list[int]:
        """The frames that a model is shown, of `total` frames with `fps` in a second.

        Raises:
            ValueError: fewer frames than are asked for, or a rate is asked for and `fps` is None.
        """
        count = self.count(total, fps)
        return list(range(total)) if count is None else self.spread(total, count)

    def spread(self, total: int, count: int) -> list[int]:
        """The numbers of `count` of `total` frames."""
        return [i * total // count for i in range(count)]

    def count(self, total: int, fps: float | None) -> int | None:
        """How many frames `sample` takes; None: all."""
        if not self.do_sample_frames:
            return None
        if self.num_frames is None and self.fps is not None:
            return min(max(1, int(total / self.rate(fps) * self.fps)), total)
        return None if self.num_frames is None else self.enough(total)

    def enough(self, total: int) -> int:
        """`num_frames`, checked against a clip of `total` frames.

        Raises:
            ValueError: the clip has fewer frames.
        """
        assert self.num_frames is not None
        if self.num_frames > total:
            raise ValueError(
                f"video: expected at least num_frames={self.num_frames} frames, got {total}: ask "
                "for fewer"
            )
        return self.num_frames

    def rate(self, fps: float | None) -> float:
        """`fps`, which has to be known here.

        Raises:
            ValueError: `fps` is None.
        """
        if fps is None:
            raise ValueError(
                f"video: {show(self.fps)} frames per second are to be taken from a clip that does "
                "not say its own rate: give Clip(frames, fps=...), or num_frames"
            )
        return fps

    def check_frames(self, frames: int, height: int, width: int) -> None:
        """Raises ValueError for a clip of more than 2**28 pixels after resizing."""
        pixels = frames * math.prod(
            self.resized(frames, height, width) if self.do_resize else (height, width)
        )
        if pixels > _LARGEST:
            raise ValueError(
                f"video: {frames} frames of {width} x {height} make {pixels / 1e6:.0f} million "
                f"pixels, of at most {_LARGEST / 1e6:.0f} million; give num_frames, or smaller "
                "frames"
            )


def read_clip_settings[S: ClipSettings](
    folder: Path, kind: type[S], num_frames: int | None = None
) -> S:
    """The settings of clips in a checkpoint's folder, found where transformers looks for them.

    That is `video_processor` in processor_config.json, else video_preprocessor_config.json, else
    the settings of pictures; what they do not say has the family's defaults.

    Args:
        folder: of the checkpoint.
        kind: of the settings.
        num_frames: frames to take of each clip, in place of what the files say.

    Raises:
        NotImplementedError, ValueError: a setting that is not supported, or cannot be, named.
    """
    file, content = _find(folder)
    asked = {"num_frames": num_frames, "fps": None, "do_sample_frames": True}
    with errors_of(file):
        return kind.read({**kind.of_file(content), **({} if num_frames is None else asked)})


def _find(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    file = folder / "processor_config.json"
    nested = read_json(file).get("video_processor") if file.is_file() else None
    if isinstance(nested, dict):
        return file, nested
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            return folder / name, read_json(folder / name)
    return file, {}
