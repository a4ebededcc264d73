"""Asks a model one question and measures its cache, for the command line."""

import dataclasses
import time
from collections.abc import Callable
from typing import Unpack

import jax

import models
import pallas_kernels
import vkq_jax
from models import GenerateOptions, Inputs, Model

__all__ = ["Answer", "ask"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and its cache's size.

    Attributes:
        text: the answer, without special tokens.
        num_tokens: emitted tokens, stop token included.
        visual_tokens: image tokens held by the cache.
        nbytes: of the cache, by what they hold.
        tokens_per_second: of the decode loop once it is compiled; None for very short answers.
        slowness: why attention over the cache is slower here than over bfloat16; None: it is not.
    """

    text: str
    num_tokens: int
    visual_tokens: int
    nbytes: vkq_jax.CacheBytes
    tokens_per_second: float | None
    slowness: str | None


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
    for generation in models.stream(
        model, inputs, max_new_tokens=max_new_tokens, chunk=chunk, **options
    ):
        clock.append(time.perf_counter())
        text = models.decode(model, generation.tokens, generation.lengths)[0].strip()
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
        slowness=pallas_kernels.slowness(
            generation.cache,
            options.get("implementation"),
            model.config.text.attn_logit_softcapping,
        ),
    )
