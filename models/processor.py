"""A checkpoint's own processor: its tokenizer and image preprocessing."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from models.llava.config import VisionConfig
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
        lengths: how many tokens of each sequence count; all by default.

    Returns:
        One string for each sequence.
    """
    rows = np.atleast_2d(np.asarray(tokens))
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {rows.dtype} {rows.shape}")
    counts = np.full(len(rows), rows.shape[1]) if lengths is None else np.atleast_1d(lengths)
    if counts.shape != (len(rows),):
        raise ValueError(f"lengths: expected shape ({len(rows)},), got {counts.shape}")
    kept = [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]
    return processor_of(model).tokenizer.batch_decode(kept, skip_special_tokens=True)


def processor_of(model: Model) -> Any:
    """transformers' processor for a loaded model; made once for each folder.

    Raises:
        FileNotFoundError: the folder lacks the processor's files.
        ValueError: the model comes from no folder, or the files are broken.
    """
    if model.source is None:
        raise ValueError("the model was not loaded from a folder, so it has no processor")
    return _load(Path(model.source), model.config.vision)


@functools.lru_cache(maxsize=8)
def _load(folder: Path, vision: VisionConfig) -> Any:
    # Here and not above, because this import takes seconds.
    from transformers import LlavaProcessor

    missing = [
        " or ".join(names)
        for names in _NEEDED
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise FileNotFoundError(f"processor files missing in {folder}: {', '.join(missing)}")
    try:
        # PIL in every environment: with torchvision installed pictures would come out differently.
        processor = LlavaProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    # transformers and tokenizers fail with exceptions of many types.
    except Exception as error:
        raise ValueError(f"cannot read the processor in {folder}: {error}") from error
    # How many tokens an image takes is the model's to say. Processors saved by transformers 4 know
    # nothing of it, or not of the class token.
    processor.patch_size = vision.patch_size
    processor.num_additional_image_tokens = 1
    processor.vision_feature_select_strategy = "full" if vision.keep_class_token else "default"
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        # Any token will do: the mask hides it.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return processor
