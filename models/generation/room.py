"""Whether the text bank of a cache fits the memory that is free, before it is allocated."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from models.checkpoints.memory import free_memory, own_devices
from models.families.base import ModelConfig
from models.generation.context import context_length
from models.generation.prefill import cache_for
from models.inputs.batch import Inputs
from models.model import Model
from models.text.config import TextConfig
from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.accounting import cache_nbytes
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.layer_groups import Quant
from vkq_jax.settings.presets import presets

__all__ = ["check_answer_fits", "check_text_fits"]


def check_answer_fits(
    model: Model,
    inputs: Inputs,
    max_new_tokens: int,
    *,
    quant: Quant = presets["none"],
    text_bits: TextBits = None,
    past_text: int = 0,
    past_tokens: int = 0,
    cache_length: int | None = None,
    rounded: Callable[[int], int] = lambda count: count,
) -> None:
    """Raises ValueError where prompts and their answers take more memory than is free.

    Args:
        model, inputs: the model and the prompts that it answers.
        max_new_tokens: most tokens of an answer.
        quant, text_bits: of the cache.
        past_text, past_tokens: of a sequence in earlier turns: text tokens, and all tokens.
        cache_length: text tokens that the caller wants room for; None: as many as are needed.
        rounded: what the number of needed text tokens is rounded up to.
    """
    largest = max(jax.tree.leaves(model.params), key=lambda leaf: leaf.size)
    shape, asked = inputs.prompt_shape, cache_length is not None
    check_text_fits(
        model.config,
        batch=inputs.input_ids.shape[0],
        filled=0 if asked else past_text + shape.text,
        tokens=past_tokens + shape.visual + (0 if asked else shape.text),
        max_new_tokens=cache_length if cache_length is not None else max_new_tokens,
        dtype=largest.dtype,  # the weights have the dtype of keys and values
        quant=quant,
        text_bits=text_bits,
        rounded=(lambda count: count) if asked else rounded,
        mesh=model.mesh,
        name="cache_length" if asked else "max_new_tokens",
    )


def check_text_fits(
    config: ModelConfig,
    *,
    batch: int,
    filled: int,
    tokens: int,
    max_new_tokens: int,
    dtype: DTypeLike,
    quant: Quant = presets["none"],
    text_bits: TextBits = None,
    rounded: Callable[[int], int] = lambda count: count,
    mesh: Mesh | None = None,
    name: str = "max_new_tokens",
) -> None:
    """Raises ValueError where prompt and answer take more memory than is free, or could be.

    Args:
        config: of the model.
        batch: sequences.
        filled: text tokens of a sequence before the answer, those of earlier turns too.
        tokens: all of its tokens before the answer, visual ones too.
        max_new_tokens: most tokens of the answer.
        dtype: that the model computes in.
        quant, text_bits: of the cache.
        rounded: what a number of text tokens is rounded up to.
        mesh: devices that the cache is split over.
        name: what the caller calls `max_new_tokens`.
    """
    devices = None
    share = 1.0
    if mesh is not None:
        devices = own_devices(mesh)
        share = len(devices) / mesh.size
    free = free_memory(devices)
    each = share * _token_nbytes(config.text, batch, quant, dtype, text_bits)
    count = rounded(filled + max_new_tokens)
    if free is None or each * count <= free:
        return
    most = int(free // each) - filled
    while most > 0 and each * rounded(filled + most) > free:
        most = most * 4 // 5
    expected = "fewer sequences or a shorter prompt"
    if most > 0:
        left = context_length(config) - tokens
        expected = f"at most {min(most, left) if left > 0 else most}"
    raise ValueError(
        f"{name}: expected {expected}, since {count} text tokens of {batch} "
        f"sequence{'' if batch == 1 else 's'} take {human_bytes(int(each * count))} of cache and "
        f"{human_bytes(free)} are free; got {max_new_tokens}"
    )


@functools.lru_cache(maxsize=64)
def _token_nbytes(
    text: TextConfig, batch: int, quant: Quant, dtype: DTypeLike, text_bits: TextBits
) -> int:
    """Bytes that one more text token of each sequence adds to a cache."""

    def nbytes(length: int) -> int:
        cache = jax.eval_shape(
            lambda: cache_for(
                text,
                batch,
                quant=quant,
                cache_length=length,
                dtype=dtype,
                text_bits=text_bits,
            )
        )
        return cache_nbytes(cache).text

    return nbytes(2) - nbytes(1)
