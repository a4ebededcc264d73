"""Texts of prompts to rows of token ids, and rows to a padded batch."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.families.base import ModelConfig
from models.prompts.processor import Processor
from vkq_jax.messages import show

__all__ = ["pad_row", "placeholder_pattern", "stack_rows", "tokenize"]


def tokenize(
    processor: Processor,
    text: str,
    inserted: Sequence[str] | None = None,
    *,
    later_turn: bool = False,
) -> np.ndarray:
    """Token ids [T] of one prompt, without padding.

    Args:
        processor: of the checkpoint.
        text: the prompt, with a placeholder for each picture.
        inserted: the text that replaces each placeholder of a picture or clip, see
            `Processing.preprocess`; None: the prompt has none.
        later_turn: see `models.prepare`.
    """
    tokenizer = processor.tokenizer
    bos = "" if later_turn else tokenizer.bos_token or ""
    text = processor.processing.complete(text, processor.placeholder, bos)
    if inserted is not None:
        rest = iter(inserted)
        text = placeholder_pattern(processor).sub(lambda _: next(rest), text)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token if later_turn else None
    # Tokenizers treat the beginning of a text in a way of their own. A later turn does not begin a
    # text: an answer and the token that ends it come before it.
    written = (eos or "") + text
    has_them = later_turn or (bos and text.startswith(bos))
    add_special_tokens = processor.processing.adds_special_tokens and not has_them
    ids = np.asarray(tokenizer(written, add_special_tokens=add_special_tokens).input_ids, np.int64)
    if eos:
        if ids[:1] != tokenizer.eos_token_id:
            raise ValueError(f"expected the EOS token {show(eos)} to be one token")
        ids = ids[1:]
    if not ids.size:
        raise ValueError("expected a text with tokens, got one without any")
    return ids


def stack_rows(
    config: ModelConfig, tokenizer: Any, rows: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [B, T] of rows of tokens, padded where the tokenizer pads."""
    width = max(map(len, rows))
    at_back = tokenizer.padding_side == "right"
    pad = _pad_token(config, tokenizer)
    return (
        np.stack([pad_row(row, width, at_back, pad) for row in rows]),
        np.stack([pad_row(np.ones_like(row), width, at_back) for row in rows]),
    )


def pad_row(row: np.ndarray, width: int, at_back: bool, value: int = 0) -> np.ndarray:
    """A row in `width` elements, `value` after it or before it."""
    missing = width - len(row)
    return np.pad(row, (0, missing) if at_back else (missing, 0), constant_values=value)


def placeholder_pattern(processor: Processor) -> re.Pattern[str]:
    """Matches the placeholder of a picture, or that of a clip as the group `clip`."""
    picture = re.escape(processor.placeholder)
    if processor.clips is None:
        return re.compile(f"{picture}|(?P<clip>(?!))")
    return re.compile(f"{picture}|(?P<clip>{re.escape(processor.clip_placeholder)})")


def _pad_token(config: ModelConfig, tokenizer: Any) -> int:
    """The tokenizer's pad token if the model has it, else any id: the mask hides padding."""
    own = tokenizer.pad_token_id
    if own is not None and own < config.text.vocab_size and own not in config.visual_token_ids:
        return own
    return min(set(range(len(config.visual_token_ids) + 1)) - set(config.visual_token_ids))
