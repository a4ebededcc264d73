"""A checkpoint's own processor: its tokenizer and image preprocessing."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from models.checkpoints.foreign_errors import named
from models.families.llava.config import LlavaConfig
from models.inputs.image_settings import check_image_settings
from models.messages import show, show_path
from models.model import Model

__all__ = ["decode", "processor_of"]

_NEEDED = (
    ("tokenizer.json", "tokenizer.model"),
    ("preprocessor_config.json", "processor_config.json"),
)


def decode(model: Model, tokens: ArrayLike, lengths: ArrayLike | None = None) -> list[str]:
    """Text of generated tokens, special tokens left out.

    Args:
        model: from `models.load`.
        tokens: integers [B, T], or [T] of one sequence.
        lengths: how many tokens of each sequence count, [B]; all by default.

    Returns:
        One string for each sequence.

    Raises:
        ValueError: a wrong shape or dtype, tokens outside the vocabulary, or lengths outside
            [0, T].
    """
    rows = np.atleast_2d(np.asarray(tokens))
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {rows.dtype} {rows.shape}")
    width = rows.shape[1]
    counts = np.full(len(rows), width) if lengths is None else np.atleast_1d(np.asarray(lengths))
    if counts.shape != (len(rows),):
        raise ValueError(f"lengths: expected shape ({len(rows)},), got {counts.shape}")
    if not np.issubdtype(counts.dtype, np.integer) or ((counts < 0) | (counts > width)).any():
        raise ValueError(f"lengths: expected integers in [0, {width}], got {show(counts.tolist())}")
    vocabulary = max(model.config.text.vocab_size, model.config.image_token_id + 1)
    outside = rows[(rows < 0) | (rows >= vocabulary)]
    if outside.size:
        raise ValueError(f"tokens: expected ids in [0, {vocabulary}), got {outside[0]}")
    kept = [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]
    tokenizer = processor_of(model).tokenizer
    with named("cannot decode tokens"):
        return tokenizer.batch_decode(kept, skip_special_tokens=True)


def processor_of(model: Model) -> Any:
    """transformers' processor for a loaded model; made once for each folder.

    Raises:
        FileNotFoundError: the folder lacks the processor's files.
        ValueError: the model comes from no folder, the files are broken, or do not fit the model.
    """
    if model.source is None:
        raise ValueError("the model was not loaded from a folder, so it has no processor")
    return _load(Path(model.source), model.config)


@functools.lru_cache(maxsize=8)
def _load(folder: Path, config: LlavaConfig) -> Any:
    missing = [
        " or ".join(names)
        for names in _NEEDED
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise FileNotFoundError(
            f"processor files missing in {show_path(folder)}: {', '.join(missing)}"
        )
    with named(f"cannot read the processor in {show_path(folder)}"):
        # Here and not above, because this import takes seconds.
        from transformers import LlavaProcessor

        # PIL in every environment: with torchvision installed pictures would come out differently.
        # A checkpoint's own code is refused: asked nothing, transformers asks the terminal.
        processor = LlavaProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
        check_image_settings(processor.image_processor, config.vision.image_size)
        _check_image_token(processor, config)
        # How many tokens an image takes is the model's to say. Processors saved by transformers 4
        # know nothing of it, or not of the class token.
        processor.patch_size = config.vision.patch_size
        processor.num_additional_image_tokens = 1
        keep = config.vision.keep_class_token
        processor.vision_feature_select_strategy = "full" if keep else "default"
    return processor


def _check_image_token(processor: Any, config: LlavaConfig) -> None:
    token = processor.image_token
    found = processor.tokenizer.convert_tokens_to_ids(token)
    if found != config.image_token_id:
        raise ValueError(
            f"the image token {show(token)} is {show(found)} in the tokenizer, and "
            f"{config.image_token_id} in config.json"
        )
