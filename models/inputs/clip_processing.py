"""How a family's clips become arrays: the part of a video processor that differs.

transformers' video processors need torch and torchvision. The steps are the same here, on PIL and
NumPy: resized frames differ from theirs by one or two of 255 levels at some pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.inputs.clip_settings import ClipSettings
from models.inputs.clips import ReadClip
from vkq_jax.array_types import Float
from vkq_jax.messages import show

__all__ = [
    "ClipProcessing",
    "check_tower",
    "frame_pixels",
    "minutes_and_seconds",
    "resized_frame",
]


class ClipProcessing:
    """Base of the families' processing of clips; a family overrides where it differs.

    Attributes:
        mark: the text that stands for one clip in a prompt, in this library and for all families.
        chat_template: of prompts with clips, in place of the checkpoint's; None: the latter.
        settings: what the files say of clips.
    """

    mark = "<video>"
    chat_template: ClassVar[str | None] = None
    settings: ClassVar[type[ClipSettings]] = ClipSettings

    def placeholder(self, config: Any, tokenizer: Any) -> str:
        """The text that the checkpoint's own templates write for one clip: its video token."""
        return tokenizer.convert_ids_to_tokens(config.video_token_id)

    def clip_text(self, config: Any, tokenizer: Any) -> str:
        """The text that `mark` becomes: the placeholder and the tokens around it."""
        return self.placeholder(config, tokenizer)

    def check(self, config: Any, settings: Any) -> None:
        """Raises ValueError for settings that do not fit the model.

        Frames are squares of the vision tower's size, unless a family says otherwise.
        """
        name = "crop_size" if settings.do_center_crop else "size"
        side = config.vision.image_size
        found = settings.edges(name)
        if found != {"height": side, "width": side}:
            raise ValueError(
                f"clips: {name}: expected height and width {side}, as in the vision tower, got "
                f"{show(found)}"
            )

    def preprocess(
        self,
        config: Any,
        settings: Any,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """The clips of one prompt, at least one.

        Returns:
            The arrays that the model takes, and for each clip the text that its placeholder
            becomes.
        """
        raise NotImplementedError


def frame_pixels(
    settings: ClipSettings, frames: Sequence[Image.Image]
) -> Float[np.ndarray, "frames 3 height width"]:
    """Resized frames cropped, rescaled and normalized, as far as `settings` say so."""
    if settings.do_center_crop:
        frames = [_crop(frame, settings.edges("crop_size")) for frame in frames]
    pixels = np.stack([np.asarray(frame) for frame in frames]).transpose(0, 3, 1, 2)
    return _normalized(settings, pixels.astype(np.float32))


def resized_frame(settings: ClipSettings, frame: Image.Image, count: int) -> Image.Image:
    """One of `count` frames of a clip, resized if `settings` say so.

    Raises:
        ValueError: all of them would be too many pixels, see `ClipSettings.check_frames`.
    """
    width, height = frame.size
    settings.check_frames(count, height, width)
    if not settings.do_resize:
        return frame
    height, width = settings.resized(count, height, width)
    return frame.resize((width, height), Image.Resampling(settings.resample))


def _normalized(settings: ClipSettings, pixels: np.ndarray) -> np.ndarray:
    """Float32 levels [..., 3, height, width] from 0 to 255 rescaled and normalized."""
    factor = settings.rescale_factor if settings.do_rescale else 1.0
    if not settings.do_normalize:
        return pixels * np.float32(factor)
    mean, std = (
        (np.asarray(values) / factor).astype(np.float32)[:, None, None]
        for values in (settings.image_mean, settings.image_std)
    )
    return (pixels - mean) / std


def _crop(frame: Image.Image, size: dict[str, int]) -> Image.Image:
    """The middle of a frame; black around it where the frame is smaller."""
    edges = []
    for whole, kept in zip(frame.size, (size["width"], size["height"]), strict=True):
        missing = kept - whole
        edges.append(-(missing // 2) if missing > 0 else -missing // 2)
    left, top = edges
    return frame.crop((left, top, left + size["width"], top + size["height"]))


def check_tower(settings: ClipSettings, tower: Mapping[str, int]) -> None:
    """Raises ValueError where settings of these names are not those of the vision tower."""
    for name, expected in tower.items():
        if getattr(settings, name) != expected:
            raise ValueError(
                f"clips: {name}: expected {expected}, as in the vision tower, got "
                f"{getattr(settings, name)}"
            )


def minutes_and_seconds(seconds: float) -> str:
    """A time of a clip in a prompt, for instance 01:05."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
