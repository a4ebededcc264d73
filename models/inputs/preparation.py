"""Prompts and pictures to `Inputs`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from models.checkpoints.foreign_errors import named
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.inputs.batch import Inputs, to_numpy
from models.inputs.images import Pictures, group_by_prompt, read_picture
from models.inputs.processor import Processor, processor_of
from models.messages import show, some
from models.model import Model

__all__ = ["prepare"]

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
    texts = [prompts] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else prompts
    texts = list(texts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"empty prompt: expected text, got {show(prompts)}")
    groups = group_by_prompt(images, texts, single=isinstance(prompts, str))
    processor = processor_of(model)
    texts = [processor.with_placeholders(text) for text in texts]
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        marks = text.count(processor.placeholder)
        if marks != len(group):
            raise ValueError(
                f"prompt {row} has {len(group)} images and {marks} image tokens "
                f"({processor.placeholder}): {_describe(marks, len(group))}"
            )
    tokenizer = processor.tokenizer
    rows, visual = [], []
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        pictures = [read_picture(picture) for picture in group]
        for picture in pictures:
            processor.processing.check_picture(processor.image_processor, picture)
        with named(f"the checkpoint's processor fails on prompt {row} or its pictures"):
            bos = "" if later_turn else tokenizer.bos_token or ""
            text = processor.processing.complete(text, processor.placeholder, bos)
            if pictures:
                arrays, inserted = processor.processing.preprocess(
                    model.config,
                    processor.image_processor,
                    pictures,
                    processor.placeholder,
                    tokenizer,
                )
                text = _insert(text, processor.placeholder, inserted)
                visual.append(arrays)
            rows.append(_tokenize(processor, text, later_turn))
    width = max(map(len, rows))
    at_back = tokenizer.padding_side == "right"
    pad = _pad_token(model.config, tokenizer)
    ids = np.stack([_pad(row, width, at_back, pad) for row in rows])
    return Inputs.from_arrays(
        model.config,
        ids,
        np.stack([_pad(np.ones_like(row), width, at_back) for row in rows]),
        bos_token_id=None if later_turn else tokenizer.bos_token_id,
        **processor.processing.token_arrays(ids),
        **(processor.processing.join(visual) if visual else {}),
    )


def _insert(text: str, placeholder: str, inserted: Sequence[str]) -> str:
    """A prompt with the text of each picture in the place of its placeholder."""
    first, *parts = text.split(placeholder)
    return first + "".join(new + part for new, part in zip(inserted, parts, strict=True))


def _tokenize(processor: Processor, text: str, later_turn: bool) -> np.ndarray:
    """Token ids of one prompt, without padding."""
    tokenizer = processor.tokenizer
    bos, eos = tokenizer.bos_token, tokenizer.eos_token if later_turn else None
    # Tokenizers treat a text's beginning in their own way. A later turn lies behind an answer,
    # and so behind the token that ends it.
    written = (eos or "") + text
    has_them = later_turn or (bos and text.startswith(bos))
    add_special_tokens = processor.processing.adds_special_tokens and not has_them
    ids = np.asarray(tokenizer(written, add_special_tokens=add_special_tokens).input_ids, np.int64)
    if eos:
        if ids[:1] != tokenizer.eos_token_id:
            raise ValueError(f"expected the EOS token {show(eos)} to be one token")
        ids = ids[1:]
    if not ids.size:
        raise ValueError("no token comes of the text")
    return ids


def _pad_token(config: ModelConfig, tokenizer: Any) -> int:
    """The tokenizer's own, if the model has it; else any will do, since the mask hides it."""
    own = tokenizer.pad_token_id
    if own is not None and own < config.text.vocab_size and own not in config.visual_token_ids:
        return own
    return min(set(range(len(config.visual_token_ids) + 1)) - set(config.visual_token_ids))


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
        tuple(_pad(np.repeat(row, times), width, at_back) for row in pair)
        for *pair, times in zip(ids, mask, repeats, strict=True)
    ]
    ids, mask = (np.stack([row[i] for row in rows]) for i in (0, 1))
    return arrays | {"input_ids": ids, "attention_mask": mask}


def _pad(row: np.ndarray, width: int, at_back: bool, value: int = 0) -> np.ndarray:
    missing = width - len(row)
    return np.pad(row, (0, missing) if at_back else (missing, 0), constant_values=value)
