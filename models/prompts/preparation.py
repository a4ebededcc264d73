"""Prompts and pictures to `Inputs`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.checkpoints.foreign_errors import named
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.batch import Inputs
from models.inputs.clips import Clip, Video, Videos, group_clips
from models.inputs.images import Picture, Pictures, group_by_prompt
from models.model import Model
from models.prompts.arrays import inputs_from_arrays, mask_of_padding, to_numpy
from models.prompts.processor import processor_of
from models.prompts.tokenizing import pad_row, stack_rows, tokenize
from models.prompts.visuals import Visuals, clip_settings, with_placeholders
from vkq_jax.messages import show, some
from vkq_jax.validation import as_items, check_type

__all__ = ["prepare", "prepare_questions"]

# Outputs of transformers' processors that say nothing which the ids do not say, unless the family
# asks for them.
_REDUNDANT_OUTPUT = ("token_type_ids", "mm_token_type_ids", "special_tokens_mask")


def prepare(
    model: Model,
    *,
    prompts: str | Sequence[str] | None = None,
    images: Pictures = None,
    videos: Videos = None,
    num_frames: int | Sequence[int | None] | None = None,
    later_turn: bool = False,
    **processor_output: Any,
) -> Inputs:
    """A batch of inputs from prompts, pictures and clips, or from what a processor made of them.

    The ids are those of Hugging Face's processor: special tokens (BOS) are added to a prompt unless
    it is written with one. A prompt that goes on from a cache needs none in its middle, and
    `generate(..., cache=...)` leaves out a BOS that starts it.

    Args:
        model: from `models.load`; its folder holds the processor.
        prompts: one prompt or several, as the model wants them, with one `<image>` for each picture
            and one `<video>` for each clip, or the checkpoint's own placeholders.
        images: a path, PIL image or uint8 array [height, width, 1, 3 or 4] of NumPy or JAX; one
            such entry, or a list of them, or None, for each prompt. With one prompt, the list of
            its pictures.
        videos: in families with video, a clip: uint8 [frames, height, width, 3], a list of
            pictures, the path of a video file, of a folder of frames or of an animated GIF, WebP or
            PNG file, or a `models.Clip` of one of these with its frames per second; one such entry,
            or a list of them, or None, for each prompt. With one prompt, the list of its clips.
        num_frames: frames that the model is shown of each clip, or of the clips of each prompt; by
            default, or where it is None, those that the checkpoint's settings ask for, else all.
        later_turn: the prompts follow finished answers, as `chat_prompt(..., later_turn=True)`
            writes them: tokens are those of the text alone, as they are behind an answer.
        **processor_output: instead of the above, `input_ids`, `attention_mask`, `pixel_values` and
            whatever else the family's own processor gives, NumPy or PyTorch; the one image token
            of a legacy processor becomes as many as an image has features. `token_type_ids`,
            `mm_token_type_ids` and `special_tokens_mask` are accepted where they say nothing new.
            The ids are taken as they are: those of a later turn should not start with BOS. Without
            `attention_mask` the checkpoint's `pad_token_id` at the ends of a prompt is padding,
            unless it also ends answers.

    Warns:
        UserWarning: `input_ids` without `attention_mask`, where padding cannot be told from tokens.

    Raises:
        FileNotFoundError: an image or video file, or the processor's files, do not exist.
        ModuleNotFoundError: a video file, without PyAV ("vkq-jax[video]").
        NotImplementedError: clips for a model that takes pictures alone.
        ValueError: an unreadable image or clip, or one that would be resized to more than 64
            million pixels (clips: 268 million); pictures and clips that do not match the prompts'
            tokens; a clip of fewer than `num_frames` frames; an empty prompt; broken processor
            files; or arrays that `inputs_from_arrays` refuses.
    """
    check_type("model", model, Model, hint="models.load")
    check_type("later_turn", later_turn, (bool, np.bool))
    if processor_output:
        _check_names(model.config, processor_output)
        given = (prompts, images, videos, num_frames)
        if later_turn or any(each is not None for each in given):
            raise ValueError(
                f"{some(sorted(processor_output))}: give prompts, images and videos, or a "
                "processor's output, not both"
            )
        return _from_processor_output(model.config, processor_output)
    if prompts is None:
        raise ValueError("prepare needs prompts, or a processor's output")
    texts, single = _texts(prompts), isinstance(prompts, str)
    pictures = group_by_prompt(images, texts, single=single)
    clips = group_clips(videos, texts, single=single)
    return _process(model, texts, pictures, clips, _counts(num_frames, clips), later_turn)


def prepare_questions(
    model: Model,
    *,
    prompts: str | Sequence[str],
    images: Picture | Sequence[Picture] | None = None,
    videos: Video | Sequence[Video] | None = None,
    num_frames: int | None = None,
) -> Inputs:
    """A batch of questions about pictures and clips that a cache of `prefill_image` holds.

    Args:
        model: from `models.load`.
        prompts: whole prompts, as `prepare` takes them, each with a token for every picture and
            clip; up to the last of these each is the one that `prefill_image` read.
        images, videos: the picture or clip of all prompts, or the lists of their pictures and
            clips. They are not read by the model again: the processor tells from them what it
            writes around their tokens.
        num_frames: as it was in `prepare`.

    Returns:
        The tokens behind the last image token of each prompt, without pictures, for
        `generate(..., cache=prefill_image(...))`.

    Raises:
        FileNotFoundError: an image or video file, or the processor's files, do not exist.
        NotImplementedError: clips for a model that takes pictures alone.
        ValueError: what `prepare` refuses, or a prompt with nothing behind its last picture.
    """
    texts = _texts(prompts)
    (group,), (clips,) = (
        group_by_prompt(images, [""], single=True),
        group_clips(videos, [""], single=True),
    )
    if not group and not clips:
        raise ValueError(f"images: expected a picture or several, got {show(images)}")
    processor = processor_of(model)
    settings = clip_settings(model, processor, num_frames) if clips else None
    texts = [
        with_placeholders(processor, text, row, len(group), len(clips))
        for row, text in enumerate(texts)
    ]
    visuals, rows = Visuals(model, processor, group, clips, settings), []
    with named("the checkpoint's processor fails on the prompts or their pictures"):
        _, inserted = visuals.preprocess(texts[0])
        for row, text in enumerate(texts):
            ids = tokenize(processor, text, inserted)
            last = np.flatnonzero(np.isin(ids, model.config.visual_token_ids))[-1]
            rows.append(ids[last + 1 :])
            if not rows[-1].size:
                raise ValueError(f"prompt {row} has nothing behind its last image token")
    return inputs_from_arrays(model.config, *stack_rows(model.config, processor.tokenizer, rows))


def _check_names(config: ModelConfig, output: Mapping[str, Any]) -> None:
    """Raises ValueError for names of which the model's processor has none."""
    family, taken = family_of(config.model_type), _names_taken(config)
    unknown = sorted(set(output) - {*taken, *family.unused_names, *_REDUNDANT_OUTPUT})
    if unknown and "input_ids" in output:
        raise ValueError(
            f"processor output: expected {', '.join(taken)}, got also {some(unknown)}, "
            "which this model does not take"
        )
    if unknown:
        raise ValueError(
            "prepare: expected prompts, images, videos, num_frames and later_turn, or a "
            f"processor's input_ids with what belongs to them, got {some(unknown)}"
        )


def _names_taken(config: ModelConfig) -> tuple[str, ...]:
    return "input_ids", "attention_mask", *family_of(config.model_type).array_names


def _from_processor_output(config: ModelConfig, output: Mapping[str, Any]) -> Inputs:
    taken = _names_taken(config)
    if output.get("input_ids") is None:
        raise ValueError(f"processor output: expected input_ids, got {some(sorted(output))}")
    arrays = {name: to_numpy(name, output[name]) for name in taken if output.get(name) is not None}
    ids = arrays["input_ids"]
    well_formed = ids.ndim == 2 and ids.size and np.issubdtype(ids.dtype, np.integer)
    if "attention_mask" not in arrays and well_formed:
        arrays["attention_mask"] = mask_of_padding(config, ids)
    arrays: dict[str, Any] = _expand(config, arrays)
    return inputs_from_arrays(config, **arrays)


def _process(
    model: Model,
    texts: list[str],
    pictures: list[list[Picture]],
    clips: list[list[Clip]],
    num_frames: Sequence[int | None],
    later_turn: bool,
) -> Inputs:
    processor = processor_of(model)
    settings = [
        clip_settings(model, processor, count) if own else None
        for count, own in zip(num_frames, clips, strict=True)
    ]
    texts = [
        with_placeholders(processor, text, row, len(pictures[row]), len(clips[row]))
        for row, text in enumerate(texts)
    ]
    tokenizer = processor.tokenizer
    rows, arrays = [], []
    for row, text in enumerate(texts):
        visuals = None
        if pictures[row] or clips[row]:
            visuals = Visuals(model, processor, pictures[row], clips[row], settings[row])
        with named(f"the checkpoint's processor fails on prompt {row} or its pictures"):
            inserted = None
            if visuals is not None:
                made, inserted = visuals.preprocess(text)
                arrays.append(made)
            rows.append(tokenize(processor, text, inserted, later_turn=later_turn))
    ids, mask = stack_rows(model.config, tokenizer, rows)
    return inputs_from_arrays(
        model.config,
        ids,
        mask,
        bos_token_id=None if later_turn else tokenizer.bos_token_id,
        **processor.processing.token_arrays(ids),
        **(processor.processing.join(arrays) if arrays else {}),
    )


def _counts(num_frames: Any, clips: Sequence[Sequence[Clip]]) -> list[Any]:
    """The number of frames to take of the clips of each prompt."""
    if not isinstance(num_frames, (list, tuple)):
        if num_frames is not None and not any(clips):
            raise ValueError(f"num_frames={show(num_frames)}: expected videos beside it, got none")
        return [num_frames] * len(clips)
    if len(num_frames) != len(clips):
        raise ValueError(
            f"num_frames: expected one number, or one for each of {len(clips)} prompts, got "
            f"{len(num_frames)}"
        )
    for row, (count, own) in enumerate(zip(num_frames, clips, strict=True)):
        if count is not None and not own:
            raise ValueError(f"num_frames={show(count)}: expected videos of prompt {row}, got none")
    return list(num_frames)


def _texts(prompts: Any) -> list[str]:
    items = as_items(prompts)
    texts: list[Any] = [prompts] if items is None else list(items)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"prompts: expected text, or a list of texts, none of them empty, got {show(prompts)}"
        )
    for row, text in enumerate(texts):
        # Python puts surrogates in place of bytes that are no text in the terminal's encoding.
        if wrong := re.search(r"[\ud800-\udfff]", text):
            raise ValueError(
                f"prompt {row}: expected Unicode text, got the surrogate {show(wrong[0])} at "
                f"character {wrong.start()}; from a terminal, LANG=C.UTF-8 has text read as UTF-8"
            )
    return texts


def _expand(config: ModelConfig, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Repeats image tokens where a processor left one for each image."""
    features = family_of(config.model_type).features_per_image(config)
    ids, pixels = arrays["input_ids"], arrays.get("pixel_values")
    images = len(pixels) if pixels is not None and pixels.ndim else 0
    visual = ids == config.image_token_id
    mask = arrays.get("attention_mask", np.ones_like(ids))
    one_each = images > 0 and visual.sum() == images
    if features is None or ids.ndim != 2 or mask.shape != ids.shape or not one_each:
        return arrays
    repeats = np.where(visual, features, 1)
    width = int(repeats.sum(-1).max())
    # Rows grow by different amounts; short rows are padded at the front, where generation
    # expects it, or at the back, if that is where this processor pads.
    at_back = bool((mask[:, 0] == 1).all() and not mask.all())
    rows = [
        tuple(pad_row(np.repeat(row, times), width, at_back) for row in pair)
        for *pair, times in zip(ids, mask, repeats, strict=True)
    ]
    ids, mask = (np.stack([row[i] for row in rows]) for i in (0, 1))
    return arrays | {"input_ids": ids, "attention_mask": mask}
