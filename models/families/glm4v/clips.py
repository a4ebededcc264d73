"""How GLM's clips become arrays and text: frames by a rate, each behind tokens of a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from models.checkpoints.hf_fields import Count, Side
from models.families.glm4v.config import Glm4vConfig
from models.families.qwen_vl.clips import Qwen3ClipProcessing, Qwen3ClipSettings, QwenClipSettings
from models.families.qwen_vl.config import QwenVLConfig
from models.inputs.clip_settings import Scale
from models.inputs.clips import ReadClip

__all__ = ["Glm4vClipProcessing", "Glm46vClipProcessing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Glm4vClipSettings(Qwen3ClipSettings):
    """Settings of GLM-4.1V and GLM-4.5V: `fps` frames of each second, of `max_duration` at most.

    A number of frames counts where no rate is set, as for `models.prepare(num_frames=...)`.
    """

    image_mean: tuple[float, ...] = QwenClipSettings.image_mean
    image_std: tuple[Scale, ...] = QwenClipSettings.image_std
    patch_size: Side = 14
    max_duration: Count = 300
    default_size: ClassVar[Mapping[str, int]] = {
        "shortest_edge": 112**2,
        "longest_edge": 28**2 * 2 * 30000,
    }

    def sample(self, total: int, fps: float | None) -> list[int]:
        """See `ClipSettings.sample`: no frame twice, but the last one to make their number even."""
        if not self.do_sample_frames or self.fps is None:
            return super().sample(total, fps)
        found = list(dict.fromkeys(self.at_rate(total, self.rate(fps))))
        return found + found[-1:] * (len(found) % 2)

    def at_rate(self, total: int, fps: float) -> Iterable[int]:
        """Frames of a clip of `fps` frames a second, some of them several times."""
        assert self.fps is not None
        seconds = total / fps
        if seconds <= self.max_duration:
            count = max(math.floor(seconds * self.fps), 1)
            return [min(total - 1, math.ceil(i * fps / self.fps)) for i in range(count)]
        count = int(self.max_duration * self.fps)
        if count >= total:
            return range(total)
        times = np.linspace(0, seconds, count).tolist()
        return [min(total - 1, math.ceil(time * fps)) for time in times]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Glm46vClipSettings(_Glm4vClipSettings):
    """Settings of GLM-4.6V: the longer a clip, the fewer frames of a second."""

    rates: ClassVar[Mapping[int, float]] = {30: 3, 300: 1, 2400: 0.5}  # up to so many seconds
    most_frames: ClassVar[int] = 640

    def at_rate(self, total: int, fps: float) -> Iterable[int]:
        """See `_Glm4vClipSettings.at_rate`; whatever `fps` of the settings says."""
        seconds = min(total / fps, max(self.rates))
        rate = next(rate for longest, rate in self.rates.items() if seconds <= longest)
        rate *= self.temporal_patch_size
        count = min(int(seconds * rate), self.most_frames)
        found, due = [], 0.0
        for index in range(total if total >= count else 0):
            if index * (1 / fps) >= due:
                found.append(index)
                due += 1 / rate
                if due >= int(total / fps):
                    break
        if len(found) == count:
            return found
        last = found[-1] if found and len(found) < count else total - 1
        return np.linspace(0, last, count, dtype=int).tolist()


class Glm4vClipProcessing(Qwen3ClipProcessing):
    """Each group of frames as a picture, then the time that it shows."""

    settings = _Glm4vClipSettings

    def clip_text(self, config: QwenVLConfig, tokenizer: Any) -> str:
        """See `ClipProcessing.clip_text`."""
        assert isinstance(config, Glm4vConfig)
        ids = [config.video_start_token_id, config.video_end_token_id]
        start, end = tokenizer.convert_ids_to_tokens(ids)
        return f"{start}{self.placeholder(config, tokenizer)}{end}"

    def text_of(
        self,
        config: QwenVLConfig,
        settings: QwenClipSettings,
        clip: ReadClip,
        grid: tuple[int, int, int],
        placeholder: str,
        tokenizer: Any,
    ) -> str:
        """See `QwenClipProcessing.text_of`; frames have image tokens."""
        frames, rows, columns = grid
        ids = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
        start, image, end = tokenizer.convert_ids_to_tokens(ids)
        run = f"{start}{image * (rows * columns // settings.merge_size**2)}{end}"
        # As in transformers: the time of every second frame, whatever temporal_patch_size says.
        shown = list(clip.indices[::2][:frames])
        shown += shown[-1:] * (frames - len(shown))
        return "".join(run + self.written(index / clip.assumed_fps) for index in shown)

    def written(self, seconds: float) -> str:
        """A time in the prompt, in whole seconds."""
        return str(int(seconds))


class Glm46vClipProcessing(Glm4vClipProcessing):
    """The same with times in tenths of a second."""

    settings = _Glm46vClipSettings

    def written(self, seconds: float) -> str:
        """See `Glm4vClipProcessing.written`."""
        return f"{seconds:.1f} seconds"
