"""Asks a model one question and measures its cache, for the command line."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import jax

import models
import pallas_kernels
import vkq_jax
from models import GenerateOptions, Generation, Inputs, Model

__all__ = ["Answer", "ask", "stream_texts"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and its cache's size.

    Attributes:
        text: the answer, without special tokens.
        num_tokens: emitted tokens, stop token included.
        visual_tokens: image tokens held by the cache.
        nbytes: of the cache, by what they hold.
        tokens_per_second: of the decode loop once it is compiled; None for very short answers.
        slowdown_reason: why attention over the cache is slower here than over bfloat16; None: it is
            not.
    """

    text: str
    num_tokens: int
    visual_tokens: int
    nbytes: vkq_jax.CacheBytes
    tokens_per_second: float | None
    slowdown_reason: str | None


def stream_texts(model: Model, inputs: Inputs, **options: Any) -> Iterator[tuple[Generation, str]]:
    """`models.stream` of one prompt, with the text of each answer so far."""
    for generation in models.stream(model, inputs, **options):
        yield generation, models.decode(model, generation.tokens, generation.lengths)[0].strip()


def ask(
    model: Model,
    inputs: Inputs,
    *,
    max_new_tokens: int,
    on_text: Callable[[str], None] = lambda text: None,
    chunk: int = 4,
    **options: Unpack[GenerateOptions],
) -> Answer:
    """Answers one prompt; `on_text` gets the answer so far whenever it has grown.

    A checkpoint whose generation_config.json asks for sampling gets its draws from seed 0 where no
    key is given: answers from two caches then differ by the caches alone.
    """
    options = GenerateOptions(key=jax.random.key(0)) | options
    generation, text, clock, first = None, "", [], 0
    for generation, text in stream_texts(
        model, inputs, max_new_tokens=max_new_tokens, chunk=chunk, **options
    ):
        clock.append(time.perf_counter())
        on_text(text)
        first = first or int(generation.lengths.sum())
    assert generation is not None
    num_tokens = int(generation.lengths.sum())
    # The first chunk's time holds prefill and compilation.
    rate = (num_tokens - first) / (clock[-1] - clock[0]) if len(clock) > 1 else None
    return Answer(
        text=text,
        num_tokens=num_tokens,
        visual_tokens=sum(int(length.sum()) for length in generation.cache.visual_lengths),
        nbytes=vkq_jax.cache_nbytes(generation.cache),
        tokens_per_second=rate,
        slowdown_reason=pallas_kernels.slowdown_reason(
            generation.cache,
            options.get("implementation"),
            model.config.text.attn_logit_softcapping,
        ),
    )
