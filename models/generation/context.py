"""How many tokens a model is meant for, and a warning where a call goes past them."""

import warnings

from models.families.base import ModelConfig
from models.layers.rope_config import RopeKind

__all__ = ["context_length", "warn_past_context"]


def context_length(config: ModelConfig) -> int:
    """Most tokens of prompt and answer together that a model is meant for."""
    rope = config.text.rope
    # In these two kinds of scaling, the stated length is that before stretching.
    if rope.kind in (RopeKind.LINEAR, RopeKind.DYNAMIC):
        return int(rope.max_length * rope.stretch)
    return rope.max_length


def warn_past_context(
    config: ModelConfig, *, before: int, prompt: int, max_new_tokens: int, stacklevel: int
) -> None:
    """Warns where prompt and answer may have more tokens than the model's context.

    Args:
        config: of the model.
        before: tokens of earlier turns.
        prompt: tokens of the prompt, visual ones too.
        max_new_tokens: most tokens of the answer.
        stacklevel: as that of `warnings.warn`.
    """
    longest = context_length(config)
    if before + prompt + max_new_tokens <= longest:
        return
    earlier = f"{before} tokens of earlier turns, " if before else ""
    warnings.warn(
        f"{earlier}{prompt} of the prompt and max_new_tokens={max_new_tokens} are more than the "
        f"model's context of {longest} tokens (max_position_embeddings): answers beyond it make no "
        "sense; ask for fewer tokens, or give a shorter prompt or smaller images",
        stacklevel=stacklevel + 1,
    )
