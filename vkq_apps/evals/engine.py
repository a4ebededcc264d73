"""The model's side of an evaluation: compiled functions over one batch of rows.

Several rows may ask about one picture: it is read once, in full precision, for all of them and for
all presets. A preset then codes that cache and reads the question (or, with `quantize_at="prompt"`,
codes the cache once the question is read), and is measured on full precision's own answer.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import Inputs, Model, Sampling
from models.decode_loop import DecodeState, decode_loop, decode_step
from models.generate import QuantizeAt
from models.prefill import prefill
from vkq_apps.evals.coding import FULL_PRECISION, code
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache import KVCache
from vkq_jax.cache_updates import take_sequences
from vkq_jax.config import KVQuantConfig

__all__ = ["Comparison", "Prompted", "Reading", "compare", "continue_greedily", "read", "read_coded", "replay"]


class Prompted(NamedTuple):
    """Prompts that have been read: logits [B, vocab] of the next token, and their cache."""

    logits: Array
    cache: KVCache


class Reading(NamedTuple):
    """A batch read in full precision.

    Attributes:
        pictures: P prompts, up to their last image token. question: what follows, Q rows.
        owner: int32 [Q], which of the P pictures each row asks about.
        prompted: the Q rows, read to their ends.
    """

    pictures: KVCache
    question: Inputs
    owner: Array
    prompted: Prompted


class Comparison(NamedTuple):
    """A preset's next-token distributions along full precision's answers.

    Attributes:
        kl: KL(full precision || preset) summed over each answer's positions, nats.
        first_difference: first position whose most likely token differs; the answer's length where
            there is none.
        log_likelihood: of the answer, nats.
    """

    kl: Float[Array, "B"]
    first_difference: Int32[Array, "B"]
    log_likelihood: Float[Array, "B"]


@partial(jax.jit, static_argnames="cache_length")
def read(
    model: Model, pictures: Inputs, question: Inputs, owner: Int32[Array, "B"], *, cache_length: int
) -> Reading:
    """Reads P pictures and Q questions about them in full precision."""
    _, cache = prefill(model, pictures, quant=FULL_PRECISION, cache_length=cache_length)
    expanded = take_sequences(cache, owner)
    return Reading(cache, question, owner, _read_question(model, question, expanded))


@partial(jax.jit, static_argnames=("quant", "quantize_at"))
def read_coded(
    model: Model, reading: Reading, *, quant: KVQuantConfig, quantize_at: QuantizeAt
) -> Prompted:
    """The rows of `reading` as `quant` has them when the answer begins."""
    if quantize_at == "prompt":
        return Prompted(reading.prompted.logits, code(reading.prompted.cache, quant))
    cache = take_sequences(code(reading.pictures, quant), reading.owner)
    return _read_question(model, reading.question, cache)


def _read_question(model: Model, question: Inputs, cache: KVCache) -> Prompted:
    logits, cache = prefill(
        model, question, cache, quant=cache.quant, cache_length=cache.text.cache_length
    )
    return Prompted(logits, cache)


def continue_greedily(
    model: Model, prompted: Prompted, limit: int, *, steps: int
) -> tuple[Int32[Array, "B steps"], Int32[Array, "B"]]:
    """Greedy answers of at most `limit` tokens, as `models.generate` gives, and their lengths."""
    done = jnp.zeros(prompted.logits.shape[0], bool)
    tokens, lengths, _ = decode_loop(
        model,
        DecodeState(prompted.logits, prompted.cache, done, None),
        limit,
        steps=steps,
        sampling=Sampling(),
        stop_tokens=model.config.eos_token_ids,
    )
    return tokens, lengths


@jax.jit
def replay(
    model: Model,
    prompted: Prompted,
    tokens: Int32[Array, "B steps"],
    lengths: Int32[Array, "B"],
) -> Float[Array, "B steps vocab"]:
    """Log-probabilities of the next token before each token of the given answers.

    Those behind an answer's end mean nothing.
    """
    visual = prompted.cache.visual  # beside the carry: they never change
    batch, steps = tokens.shape
    _, vocab = prompted.logits.shape

    def unfinished(carry):
        return carry[0] < lengths.max()

    def step(carry):
        place, logits, cache, out = carry
        out = out.at[:, place].set(jax.nn.log_softmax(logits.astype(jnp.float32)))
        whole = KVCache(visual, cache.text, cache.position, cache.guarded, cache.quant)
        logits, whole = decode_step(model, tokens[:, place], whole, place < lengths)
        return place + 1, logits, _without_visual(whole), out

    out = jnp.zeros((batch, steps, vocab), jnp.float32)
    cache = _without_visual(prompted.cache)
    return jax.lax.while_loop(unfinished, step, (0, prompted.logits, cache, out))[3]


@jax.jit
def compare(
    exact: Float[Array, "B steps vocab"],
    coded: Float[Array, "B steps vocab"],
    tokens: Int32[Array, "B steps"],
    lengths: Int32[Array, "B"],
) -> Comparison:
    """Compares what `replay` gave for full precision and for a preset."""
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    within = steps[None] < lengths[:, None]
    kl = (jnp.exp(exact) * (exact - coded)).sum(-1)
    differs = (exact.argmax(-1) != coded.argmax(-1)) & within
    first = jnp.where(differs, steps[None], lengths[:, None]).min(-1)
    chosen = jnp.take_along_axis(coded, tokens[..., None], axis=-1)[..., 0]
    return Comparison(
        jnp.where(within, kl, 0.0).sum(-1), first, jnp.where(within, chosen, 0.0).sum(-1)
    )


def _without_visual(cache: KVCache) -> KVCache:
    return KVCache((), cache.text, cache.position, cache.guarded, cache.quant)
