"""Generation: prefill, then decoding from a cache whose visual tokens are coded."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from models.decode import DecodeState, decode
from models.inputs import Inputs
from models.model import Model
from models.prefill import prefill
from models.sampling import Sampling
from models.split import split_after_images
from vkq_jax.array_types import Array, Int32
from vkq_jax.cache import KVCache
from vkq_jax.config import KVQuantConfig
from vkq_jax.presets import resolve
from vkq_jax.pytree import frozen_pytree

__all__ = ["Generation", "QuantizeAt", "generate", "stream"]

QuantizeAt = Literal["prompt", "image"]


@frozen_pytree
class Generation:
    """What was generated, and the cache to go on from.

    Attributes:
        tokens: emitted tokens, stop token included, 0 behind the last one.
        lengths: emitted tokens of each sequence.
        cache: holds the prompt and every emitted token: pass it to the next turn.
    """

    tokens: Int32[Array, "B max_new_tokens"]
    lengths: Int32[Array, "B"]
    cache: KVCache


def generate(
    model: Model,
    inputs: Inputs,
    *,
    quant: str | KVQuantConfig | None = None,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    stop_tokens: tuple[int, ...] | None = None,
    quantize_at: QuantizeAt = "prompt",
    cache: KVCache | None = None,
    cache_length: int | None = None,
    implementation: str | None = None,
) -> Generation:
    """Answers prompts: jit-compiled prefill and decode loop, pure, fit for `jax.vmap`.

    Args:
        model: from `models.load`.
        inputs: from `models.prepare`.
        quant: preset name or settings of the visual cache; "vkq-1bit" by default, or the given
            cache's own.
        max_new_tokens: most tokens to emit, the stop token counted.
        sampling: how tokens are drawn; greedy by default.
        key: PRNG key, needed unless greedy.
        stop_tokens: token ids that end a sequence; the checkpoint's own by default, () for none.
        quantize_at: "prompt" reads the whole prompt in full precision and codes the visual tokens
            then; "image" codes them once the last image is in, and the rest of the prompt already
            reads the codes (one image, many questions).
        cache: of earlier turns (`Generation.cache`); `inputs` then holds the new turn only.
        cache_length: text tokens a sequence can hold, prompt and new tokens of all turns; by
            default as many as needed.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.

    Raises:
        ValueError: an argument is out of range, or the prompt does not fit `cache_length`.
    """
    quant, cache_length, stop_tokens = _settle(
        model, inputs, quant, max_new_tokens, sampling, key, stop_tokens, cache, cache_length
    )
    state = _start(model, inputs, cache, key, quant, quantize_at, cache_length, implementation)
    tokens, lengths, state = decode(
        model,
        state,
        steps=max_new_tokens,
        sampling=sampling,
        stop_tokens=stop_tokens,
        implementation=implementation,
    )
    return Generation(tokens, lengths, state.cache)


def stream(
    model: Model,
    inputs: Inputs,
    *,
    quant: str | KVQuantConfig | None = None,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    stop_tokens: tuple[int, ...] | None = None,
    quantize_at: QuantizeAt = "prompt",
    cache: KVCache | None = None,
    cache_length: int | None = None,
    implementation: str | None = None,
    chunk: int = 4,
) -> Iterator[Generation]:
    """`generate` for people who watch: yields the answer so far after every `chunk` tokens.

    The last one yielded is what `generate` returns. Not for use inside jit.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    quant, cache_length, stop_tokens = _settle(
        model, inputs, quant, max_new_tokens, sampling, key, stop_tokens, cache, cache_length
    )
    state = _start(model, inputs, cache, key, quant, quantize_at, cache_length, implementation)
    batch = inputs.input_ids.shape[0]
    tokens, lengths = np.zeros((batch, max_new_tokens), np.int32), np.zeros(batch, np.int32)
    for start in range(0, max_new_tokens, chunk):
        steps = min(chunk, max_new_tokens - start)
        new, count, state = decode(
            model,
            state,
            steps=steps,
            sampling=sampling,
            stop_tokens=stop_tokens,
            implementation=implementation,
        )
        tokens[:, start : start + steps] = new
        lengths += np.asarray(count)
        yield Generation(jnp.asarray(tokens), jnp.asarray(lengths), state.cache)
        if bool(state.done.all()):
            return


def _start(
    model: Model,
    inputs: Inputs,
    cache: KVCache | None,
    key: jax.Array | None,
    quant: KVQuantConfig,
    quantize_at: QuantizeAt,
    cache_length: int,
    implementation: str | None,
) -> DecodeState:
    """Prefill in one piece or, to code the images before the question is read, in two."""
    run = partial(prefill, quant=quant, cache_length=cache_length, implementation=implementation)
    if quantize_at == "prompt" or not inputs.shape.visual:
        logits, cache = run(model, inputs, cache)
    elif quantize_at == "image":
        images, question = split_after_images(inputs)
        logits, cache = run(model, images, cache)
        if inputs.shape.suffix:
            after, cache = run(model, question, cache)
            # A prompt that ends with its image has nothing in the second piece.
            logits = jnp.where(question.mask.any(-1)[:, None], after, logits)
    else:
        raise ValueError(f'quantize_at must be "prompt" or "image", got {quantize_at!r}')
    return DecodeState(logits, cache, jnp.zeros(logits.shape[0], bool), key)


def _settle(
    model: Model,
    inputs: Inputs,
    quant: str | KVQuantConfig | None,
    max_new_tokens: int,
    sampling: Sampling,
    key: jax.Array | None,
    stop_tokens: tuple[int, ...] | None,
    cache: KVCache | None,
    cache_length: int | None,
) -> tuple[KVQuantConfig, int, tuple[int, ...]]:
    """Checks what can be checked outside the compiled functions and fills in the defaults."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not sampling.greedy and key is None:
        raise ValueError("sampling with a temperature needs a PRNG key: key=jax.random.key(seed)")
    if quant is None:
        quant = "vkq-1bit" if cache is None else cache.quant
    settings = resolve(quant)
    if cache is not None and cache.quant != settings:
        raise ValueError(
            f"the cache's visual tokens are coded as {cache.quant}; a conversation keeps its codes: "
            f"leave quant out, got {settings}"
        )
    needed = _filled_text(cache) + inputs.shape.text + max_new_tokens
    if cache_length is None:
        cache_length = max(needed, 0 if cache is None else cache.text.cache_length)
    elif cache_length < needed:
        raise ValueError(
            f"the prompt does not fit the cache: {inputs.shape.text} text tokens and "
            f"{max_new_tokens} new ones behind {_filled_text(cache)} need cache_length={needed}, "
            f"got {cache_length}"
        )
    stops = model.config.stop_tokens if stop_tokens is None else tuple(stop_tokens)
    return settings, cache_length, stops


def _filled_text(cache: KVCache | None) -> int:
    """Text tokens of the longest sequence; the whole capacity where lengths are traced."""
    if cache is None:
        return 0
    if isinstance(cache.text.length, jax.core.Tracer):
        return cache.text.cache_length
    return int(cache.text.length.max())
