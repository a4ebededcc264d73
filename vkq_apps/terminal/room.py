"""Whether a prompt and its answer fit the model's context and the device's memory."""

import jax.numpy as jnp

from models.families.base import ModelConfig
from models.generation.context import context_length
from models.generation.room import check_text_fits
from vkq_jax.cache.text_bank import TextBits

__all__ = ["check_room"]


def check_room(
    config: ModelConfig,
    *,
    visual: int,
    text: int,
    max_new_tokens: int,
    text_bits: TextBits = None,
) -> None:
    """Checks one prompt and the answer to it.

    Args:
        config: of the model.
        visual, text: tokens of the prompt, as far as they are known.
        max_new_tokens: of the answer; 0 for none.
        text_bits: of text keys and values, as `models.generate` takes them.

    Raises:
        ValueError: the context or the memory is too small.
    """
    prompt, longest = visual + text, context_length(config)
    if prompt + min(max_new_tokens, 1) > longest:
        raise ValueError(
            f"the prompt is too long: {visual} visual and {text} text tokens, and the model's "
            f"context holds {longest} tokens; give fewer or smaller images, or less text"
        )
    if prompt + max_new_tokens > longest:
        raise ValueError(
            f"--max-new-tokens: expected at most {longest - prompt}, since the model's context "
            f"holds {longest} tokens, {prompt} of them for the prompt; got {max_new_tokens}"
        )
    check_text_fits(
        config,
        batch=1,
        filled=text,
        tokens=prompt,
        max_new_tokens=max_new_tokens,
        dtype=jnp.bfloat16,  # of `load_model`
        text_bits=text_bits,
        name="--max-new-tokens",
    )
