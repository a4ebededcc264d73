"""How SmolVLM's clips become arrays: each frame a tile, behind the time that it shows."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from models.checkpoints.hf_fields import Count
from models.families.idefics3.config import Idefics3Config
from models.inputs.clip_processing import (
    ClipProcessing,
    frame_pixels,
    minutes_and_seconds,
    resized_frame,
)
from models.inputs.clip_settings import ClipSettings, Scale
from models.inputs.clips import ReadClip
from vkq_jax.messages import show

__all__ = ["SmolVLMClipProcessing", "marks"]

_LARGEST_SIDE = 4096
_SKIPPED = 1  # seconds at both ends of a long clip

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmolVLMClipSettings(ClipSettings):
    """Frames are resized to a longest side first, and then to squares of `max_image_size`."""

    resample: int = int(Image.Resampling.LANCZOS)
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[Scale, ...] = (0.5, 0.5, 0.5)
    num_frames: Count | None = None
    max_image_size: dict[str, Any] | None = None
    default_size: ClassVar[Mapping[str, int]] = {"longest_edge": 4 * 364}

    @classmethod
    def of_file(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `ClipSettings.of_file`: older files keep some of it in `video_sampling`."""
        older = content.get("video_sampling")
        if not isinstance(older, dict):
            return content
        return {
            "size": older.get("video_size"),
            **content,
            "num_frames": older.get("max_frames"),
            "fps": older.get("fps"),
        }

    @property
    def side(self) -> int:
        """Pixels of a side of a frame."""
        side = (self.max_image_size or {"longest_edge": 364}).get("longest_edge")
        if type(side) is not int or not 0 < side <= _LARGEST_SIDE:
            raise ValueError(
                f"max_image_size: expected longest_edge from 1 to {_LARGEST_SIDE}, got "
                f"{show(self.max_image_size)}"
            )
        return side

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """See `ClipSettings.resized`, before the squares."""
        size = self.edges("size")
        if "longest_edge" not in size:
            return super().resized(frames, height, width)
        longest = min(size["longest_edge"], _LARGEST_SIDE)
        short = int(longest / (max(height, width) / min(height, width)))
        short = max(short + short % 2, 1)
        return (short, longest) if width >= height else (longest, short)

    def sample(self, total: int, fps: float | None) -> list[int]:
        """See `ClipSettings.sample`: `fps` in a second, at most `num_frames`, ends left out."""
        if not self.do_sample_frames:
            return list(range(total))
        if self.fps is None:
            return super().sample(total, fps)
        rate, most = self.rate(fps), self.num_frames or total
        seconds = total / rate
        count = max(min(round(self.fps * seconds), most), 1)
        first, last = 0, total - 1
        if seconds - 2 * _SKIPPED > most * self.fps:
            first = int(_SKIPPED * rate)
            last = min(int(total - _SKIPPED * rate), last)
        if first >= last:
            first, last = 0, total - 1
        return np.unique(np.linspace(first, last, count, dtype=int)).tolist()


class SmolVLMClipProcessing(ClipProcessing):
    """Each frame a tile of its own, without a cut."""

    # The files' own knows no clips; this is transformers'.
    chat_template = (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'] is string %}{{': ' + message['content']}}{% else %}"
        "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}"
        "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}{% endif %}"
        "<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    settings = SmolVLMClipSettings

    def placeholder(self, config: Idefics3Config, tokenizer: Any) -> str:
        """See `ClipProcessing.placeholder`; frames have the tokens of pictures."""
        return getattr(tokenizer, "video_token", self.mark)

    def check(self, config: Idefics3Config, settings: SmolVLMClipSettings) -> None:
        """See `ClipProcessing.check`: frames are whole squares of features."""
        config.tile_tokens(settings.side)

    def preprocess(
        self,
        config: Idefics3Config,
        settings: SmolVLMClipSettings,
        clips: Sequence[ReadClip],
        placeholder: str,
        tokenizer: Any,
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """See `ClipProcessing.preprocess`."""
        pixels = np.concatenate([_squares(settings, clip) for clip in clips])
        around, whole = marks(tokenizer)
        run = tokenizer.convert_ids_to_tokens(config.image_token_id)
        run *= config.tile_tokens(pixels.shape[-1])
        return {"pixel_values": pixels}, [
            _text(clip, f"{around}{whole}{run}{around}") for clip in clips
        ]


def marks(tokenizer: Any) -> tuple[str, str]:
    """The tokens around a picture, and before the tile that shows it as a whole."""
    return (
        getattr(tokenizer, "fake_image_token", "<fake_token_around_image>"),
        getattr(tokenizer, "global_image_token", "<global-img>"),
    )


def _squares(settings: SmolVLMClipSettings, clip: ReadClip) -> np.ndarray:
    """Tiles [frames, 3, size, size]."""
    squares = {"height": settings.side, "width": settings.side}
    settings = dataclasses.replace(settings, size=squares)
    frames = [resized_frame(settings, frame, len(clip.frames)) for frame in clip.frames]
    return frame_pixels(settings, frames)


def _text(clip: ReadClip, tile: str) -> str:
    """The text that a clip's placeholder becomes; `tile` is the text of a frame."""
    seconds = [index / clip.assumed_fps for index in clip.indices]
    whole = timedelta(seconds=int(seconds[-1] if clip.fps is None else clip.total / clip.fps))
    frames = "".join(f"\nFrame from {minutes_and_seconds(second)}:{tile}" for second in seconds)
    return (
        f"You are provided the following series of {_in_words(len(seconds))} frames from a {whole} "
        f"[H:MM:SS] video.\n{frames}\n\n"
    )


def _in_words(number: int) -> str:
    """A number of frames as the training data spells it.

    Raises:
        ValueError: it is above 999.
    """
    if number > 999:
        raise ValueError(f"video: expected at most 999 frames, got {number}: give num_frames")
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    words = _ONES[rest] if rest < 20 else "-".join([_TENS[tens - 2], *[_ONES[ones]] * bool(ones)])
    if not hundreds:
        return words
    return f"{_ONES[hundreds]} hundred{f' and {words}' * bool(rest)}"
