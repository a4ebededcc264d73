"""Prompts and pictures to `Inputs`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from models.checkpoints.foreign_errors import named
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.batch import Inputs, to_numpy
from models.inputs.images import Picture, Pictures, group_by_prompt, read_picture
from models.inputs.processor import Processor, processor_of
from models.inputs.tokenizing import pad_row, stack_rows, tokenize
from models.messages import show, some
from models.model import Model

__all__ = ["prepare", "prepare_questions"]

# Outputs of transformers' processors that say nothing which the ids do not say, unless the family
# asks for them.
_REDUNDANT_OUTPUT = ("token_type_ids", "mm_token_type_ids", "special_tokens_mask")


def prepare(
    model: Model,
    *,
    prompts: str | Sequence[str] | None = None,
    images: Pictures = None,
    later_turn: bool = False,
    **processor_output: Any,
) -> Inputs:
    """A batch of inputs from prompts and pictures, or from what a processor made of them.

    The ids are those of Hugging Face's processor: special tokens (BOS) are added to a prompt unless
    it is written with one. A prompt that goes on from a cache needs none in its middle, and
    `generate(..., cache=...)` leaves out a BOS that starts it.

    Args:
        model: from `models.load`; its folder holds the processor.
        prompts: one prompt or several, as the model wants them, with one `<image>`, or the
            checkpoint's own placeholder, for each picture.
        images: a path, PIL image or uint8 array; one such entry, or a list of them, or None, for
            each prompt. With one prompt, the list of its pictures.
        later_turn: the prompts follow finished answers, as `chat_prompt(..., later_turn=True)`
            writes them: tokens are those of the text alone, as they are behind an answer.
        **processor_output: instead of the above, `input_ids`, `attention_mask`, `pixel_values` and
            whatever else the family's own processor gives, NumPy or PyTorch; the one image token
            of a legacy processor becomes as many as an image has features. `token_type_ids`,
            `mm_token_type_ids` and `special_tokens_mask` are accepted where they say nothing new.
            The ids are taken as they are: those of a later turn should not start with BOS.

    Raises:
        FileNotFoundError: an image file, or the processor's files, do not exist.
        ValueError: an unreadable image, or one that would be resized to more than 64 million
            pixels; pictures that do not match the prompts' image tokens; an empty prompt; broken
            processor files; or arrays that `Inputs.from_arrays` refuses.
    """
    if processor_output:
        if prompts is not None or images is not None or later_turn:
            raise ValueError("give prompts and images, or a processor's output, not both")
        return _from_processor_output(model.config, processor_output)
    if prompts is None:
        raise ValueError("prepare needs prompts, or a processor's output")
    return _process(model, prompts, images, later_turn)


def prepare_questions(
    model: Model, *, prompts: str | Sequence[str], images: Picture | Sequence[Picture]
) -> Inputs:
    """A batch of questions about pictures that a cache of `prefill_image` holds.

    Args:
        model: from `models.load`.
        prompts: whole prompts, as `prepare` takes them, each with an image token for every picture;
            up to its last image token each is the one that `prefill_image` read.
        images: the picture of all prompts, or the list of their pictures. They are not read by the
            model again: the processor tells from them what it writes around image tokens.

    Returns:
        The tokens behind the last image token of each prompt, without pictures, for
        `generate(..., cache=prefill_image(...))`.

    Raises:
        FileNotFoundError: an image file, or the processor's files, do not exist.
        ValueError: what `prepare` refuses, or a prompt with nothing behind its last picture.
    """
    texts, group = _texts(prompts), group_by_prompt(images, [""], single=True)[0]
    if not group:
        raise ValueError(f"images: expected a picture or several, got {show(images)}")
    processor = processor_of(model)
    texts = [_with_placeholders(processor, text, row, len(group)) for row, text in enumerate(texts)]
    pictures, rows = _read(processor, group), []
    with named("the checkpoint's processor fails on the prompts or their pictures"):
        _, inserted = _preprocess(model, processor, pictures)
        for row, text in enumerate(texts):
            ids = tokenize(processor, text, inserted)
            last = np.flatnonzero(np.isin(ids, model.config.visual_token_ids))[-1]
            rows.append(ids[last + 1 :])
            if not rows[-1].size:
                raise ValueError(f"prompt {row} has nothing behind its last image token")
    return Inputs.from_arrays(model.config, *stack_rows(model.config, processor.tokenizer, rows))


def _from_processor_output(config: ModelConfig, output: dict[str, Any]) -> Inputs:
    family = family_of(config.model_type)
    taken = ("input_ids", "attention_mask", *family.array_names)
    unknown = sorted(set(output) - {*taken, *family.unused_names, *_REDUNDANT_OUTPUT})
    if unknown:
        raise ValueError(
            f"processor output: expected {', '.join(taken)}, got also {some(unknown)}, "
            "which this model does not take"
        )
    if "input_ids" not in output:
        raise ValueError(f"processor output: expected input_ids, got {some(sorted(output))}")
    arrays = {name: to_numpy(name, output[name]) for name in taken if output.get(name) is not None}
    arrays: dict[str, Any] = _expand(config, arrays)
    return Inputs.from_arrays(config, **arrays)


def _process(
    model: Model, prompts: str | Sequence[str], images: Pictures, later_turn: bool
) -> Inputs:
    texts = _texts(prompts)
    groups = group_by_prompt(images, texts, single=isinstance(prompts, str))
    processor = processor_of(model)
    texts = [
        _with_placeholders(processor, text, row, len(group))
        for row, (text, group) in enumerate(zip(texts, groups, strict=True))
    ]
    tokenizer = processor.tokenizer
    rows, visual = [], []
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        pictures = _read(processor, group)
        with named(f"the checkpoint's processor fails on prompt {row} or its pictures"):
            inserted = None
            if pictures:
                arrays, inserted = _preprocess(model, processor, pictures)
                visual.append(arrays)
            rows.append(tokenize(processor, text, inserted, later_turn=later_turn))
    ids, mask = stack_rows(model.config, tokenizer, rows)
    return Inputs.from_arrays(
        model.config,
        ids,
        mask,
        bos_token_id=None if later_turn else tokenizer.bos_token_id,
        **processor.processing.token_arrays(ids),
        **(processor.processing.join(visual) if visual else {}),
    )


def _texts(prompts: Any) -> list[str]:
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    texts: list[Any] = list(prompts) if several else [prompts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"empty prompt: expected text, got {show(prompts)}")
    return texts


def _with_placeholders(processor: Processor, text: str, row: int, images: int) -> str:
    text = processor.with_placeholders(text)
    marks = text.count(processor.placeholder)
    if marks != images:
        raise ValueError(
            f"prompt {row} has {images} images and {marks} image tokens "
            f"({processor.placeholder}): {_describe(marks, images)}"
        )
    return text


def _read(processor: Processor, pictures: Sequence[Picture]) -> list[Image.Image]:
    read = [read_picture(picture) for picture in pictures]
    for picture in read:
        processor.processing.check_picture(processor.image_processor, picture)
    return read


def _preprocess(
    model: Model, processor: Processor, pictures: Sequence[Image.Image]
) -> tuple[dict[str, np.ndarray], list[str]]:
    return processor.processing.preprocess(
        model.config,
        processor.image_processor,
        pictures,
        processor.placeholder,
        processor.tokenizer,
    )


def _describe(marks: int, images: int) -> str:
    if images == 0:
        return "image tokens without an image"
    if marks == 0:
        return "no image token for an image"
    return "more images than tokens" if images > marks else "more tokens than images"


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
    # Rows grow by different amounts; what is short is padded at the front, where generation
    # expects it, or at the back, if that is where this processor pads.
    at_back = bool((mask[:, 0] == 1).all() and not mask.all())
    rows = [
        tuple(pad_row(np.repeat(row, times), width, at_back) for row in pair)
        for *pair, times in zip(ids, mask, repeats, strict=True)
    ]
    ids, mask = (np.stack([row[i] for row in rows]) for i in (0, 1))
    return arrays | {"input_ids": ids, "attention_mask": mask}
