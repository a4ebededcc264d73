"""Prompts and pictures to `Inputs`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.images import Pictures, group_by_prompt, read_picture
from models.inputs import Inputs
from models.llava.config import LlavaConfig
from models.model import Model
from models.processor import processor_of

__all__ = ["prepare"]

_PROCESSOR_OUTPUT = ("input_ids", "attention_mask", "pixel_values")


def prepare(
    model: Model,
    *,
    prompts: str | Sequence[str] | None = None,
    images: Pictures = None,
    **processor_output: Any,
) -> Inputs:
    """A batch of inputs from prompts and pictures, or from what a processor made of them.

    Args:
        model: from `models.load`; its folder holds the processor.
        prompts: one prompt or several, as the model wants them, with one `<image>` for each
            picture.
        images: a path, PIL image or uint8 array; one such entry, or a list of them, or None, for
            each prompt. With one prompt, the list of its pictures.
        **processor_output: instead of the above, `input_ids`, `attention_mask` and
            `pixel_values` of any processor, NumPy or PyTorch; the one image token of a legacy
            processor becomes as many as an image has features.

    Raises:
        FileNotFoundError: an image file, or the processor's files, do not exist.
        ValueError: an unreadable image, pictures that do not match the prompts' image tokens, an
            empty prompt, or arrays that `Inputs.from_arrays` refuses.
    """
    if processor_output:
        if prompts is not None or images is not None:
            raise ValueError("give prompts and images, or a processor's output, not both")
    elif prompts is None:
        raise ValueError("prepare needs prompts, or a processor's output")
    else:
        processor_output = _process(model, prompts, images)
    unknown = sorted(set(processor_output) - set(_PROCESSOR_OUTPUT))
    if unknown or "input_ids" not in processor_output:
        raise ValueError(
            f"processor output: expected input_ids and perhaps attention_mask and pixel_values, "
            f"got {sorted(processor_output)}"
        )
    return Inputs.from_arrays(model.config, *_expand(model.config, **processor_output))


def _process(model: Model, prompts: str | Sequence[str], images: Pictures) -> dict[str, Any]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"empty prompt: expected text, got {prompts!r}")
    groups = group_by_prompt(images, texts, single=isinstance(prompts, str))
    processor = processor_of(model)
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        marks = text.count(processor.image_token)
        if marks != len(group):
            raise ValueError(
                f"prompt {row} has {len(group)} images and {marks} image tokens "
                f"({processor.image_token}): {_describe(marks, len(group))}"
            )
    pictures = [read_picture(picture) for group in groups for picture in group]
    output = processor(text=texts, images=pictures or None, padding=True, return_tensors="np")
    return {name: output[name] for name in _PROCESSOR_OUTPUT if name in output}


def _describe(marks: int, images: int) -> str:
    if images == 0:
        return "image tokens without an image"
    if marks == 0:
        return "no image token for an image"
    return "more images than tokens" if images > marks else "more tokens than images"


def _expand(
    config: LlavaConfig, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None
) -> tuple[Any, Any, Any]:
    """Repeats image tokens where a processor left one for each image."""
    ids = np.asarray(input_ids)
    images = 0 if pixel_values is None else len(pixel_values)
    visual = ids == config.image_token_id
    if ids.ndim != 2 or images == 0 or visual.sum() != images:
        return input_ids, attention_mask, pixel_values
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    repeats = np.where(visual, config.vision.num_features, 1)
    length = repeats.sum(-1).max()
    # Rows grow by different amounts; what is short is padded at the front, where generation
    # expects it, or at the back, if that is where this processor pads.
    at_back = bool((mask[:, 0] == 1).all() and not mask.all())
    rows = [
        tuple(_pad(np.repeat(row, times), length, at_back) for row in pair)
        for *pair, times in zip(ids, mask, repeats, strict=True)
    ]
    return np.stack([row for row, _ in rows]), np.stack([row for _, row in rows]), pixel_values


def _pad(row: np.ndarray, length: int, at_back: bool) -> np.ndarray:
    missing = length - len(row)
    return np.pad(row, (0, missing) if at_back else (missing, 0))
