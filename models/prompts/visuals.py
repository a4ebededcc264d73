"""The pictures and clips of one prompt, on their way to arrays."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.clip_processing import resized_frame
from models.inputs.clip_settings import ClipSettings, read_clip_settings
from models.inputs.clips import Clip, ReadClip, read_clip
from models.inputs.images import Picture, read_picture
from models.model import Model
from models.prompts.processor import Processor
from models.prompts.tokenizing import placeholder_pattern
from vkq_jax.messages import show
from vkq_jax.validation import whole_number

__all__ = ["Visuals", "check_takes_clips", "clip_settings", "takes_clips", "with_placeholders"]


def takes_clips(config: ModelConfig) -> bool:
    """Whether a model takes clips beside pictures."""
    return family_of(config.model_type).processing().clips(config) is not None


def check_takes_clips(config: ModelConfig) -> None:
    """Raises NotImplementedError for a model that takes pictures alone."""
    if not takes_clips(config):
        raise NotImplementedError(
            f"videos: {config.model_type} models take pictures alone; give frames as pictures, one "
            "<image> in the prompt for each"
        )


def clip_settings(model: Model, processor: Processor, num_frames: int | None) -> ClipSettings:
    """The settings of clips in the checkpoint's files.

    Args:
        model: from `models.load`.
        processor: its own.
        num_frames: see `models.prepare`.

    Raises:
        NotImplementedError: the model takes no clips, or a setting is not supported.
        ValueError: an impossible setting, or one that does not fit the model.
    """
    check_takes_clips(model.config)
    if num_frames is not None:
        count = whole_number(num_frames)
        if count is None or count < 1:
            raise ValueError(f"num_frames: expected a whole number above 0, got {show(num_frames)}")
        num_frames = count
    assert processor.clips is not None
    settings = read_clip_settings(Path(model.source or ""), processor.clips.settings, num_frames)
    processor.clips.check(model.config, settings)
    return settings


def with_placeholders(
    processor: Processor, text: str, row: int, images: int, videos: int = 0
) -> str:
    """A prompt with the placeholders of its pictures and clips.

    Raises:
        ValueError: more or fewer placeholders than pictures or clips.
    """
    text = processor.with_placeholders(text)
    kinds = [("image", processor.placeholder, images)]
    if processor.clips is not None:
        kinds.append(("video", processor.clip_placeholder, videos))
    for kind, placeholder, given in kinds:
        marks = text.count(placeholder)
        if marks != given:
            raise ValueError(
                f"prompt {row} has {_count(given, kind)} and {_count(marks, f'{kind} token')} "
                f"({placeholder}): "
                f"{_describe(kind, marks, given)}"
            )
    return text


def _describe(kind: str, marks: int, given: int) -> str:
    a = "an image" if kind == "image" else f"a {kind}"
    if given == 0:
        return f"{kind} tokens without {a}; give {kind}s=, or num_{kind}s=0 to chat_prompt"
    if marks == 0:
        return f"no {kind} token for {a}; models.chat_prompt puts them before a question"
    more = f"more {kind}s than tokens" if given > marks else f"more tokens than {kind}s"
    return f"{more}; models.chat_prompt(..., num_{kind}s={given}) writes as many tokens"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class Visuals:
    """Pictures and clips of one prompt, read, one at least."""

    def __init__(
        self,
        model: Model,
        processor: Processor,
        pictures: Sequence[Picture],
        clips: Sequence[Clip] = (),
        settings: ClipSettings | None = None,
    ):
        """Reads the pictures and clips.

        Args:
            model: from `models.load`.
            processor: its own.
            pictures, clips: of one prompt.
            settings: of clips, where there are any.

        Raises:
            FileNotFoundError, ValueError: what cannot be read or processed.
        """
        self._model, self._processor, self._settings = model, processor, settings
        self._pictures = [read_picture(picture) for picture in pictures]
        for picture in self._pictures:
            processor.processing.check_picture(processor.image_processor, picture)
        self._clips: list[ReadClip] = []
        if settings is not None:
            shrink = partial(resized_frame, settings)
            self._clips = [read_clip(clip, settings.sample, shrink) for clip in clips]

    def preprocess(self, text: str) -> tuple[dict[str, np.ndarray], list[str]]:
        """The arrays that the model takes, and the text that replaces each placeholder."""
        processing = self._processor.processing
        found = placeholder_pattern(self._processor).finditer(text)
        order = [match["clip"] is not None for match in found]
        pictures, clips = iter(self._pictures), iter(self._clips)
        arrays: list[dict[str, np.ndarray]] = []
        texts: dict[bool, list[str]] = {False: [], True: []}
        # Where clips have arrays of their own, all pictures of a prompt are processed together.
        for is_clip, run in itertools.groupby(order if processing.shares_pixels else sorted(order)):
            visuals = list(itertools.islice(clips if is_clip else pictures, len(list(run))))
            made, inserted = self._run(is_clip, visuals)
            arrays.append(made)
            texts[is_clip] += inserted
        rest: dict[bool, Iterator[str]] = {kind: iter(each) for kind, each in texts.items()}
        return processing.join(arrays), [next(rest[is_clip]) for is_clip in order]

    def _run(
        self, is_clip: bool, visuals: Sequence[Any]
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        processor, config = self._processor, self._model.config
        if is_clip:
            assert processor.clips is not None
            return processor.clips.preprocess(
                config, self._settings, visuals, processor.clip_placeholder, processor.tokenizer
            )
        return processor.processing.preprocess(
            config, processor.image_processor, visuals, processor.placeholder, processor.tokenizer
        )
