"""Generation: prefill, then decoding from a cache whose visual tokens are coded."""

import os
from collections.abc import Iterator
from typing import Unpack

import jax
import numpy as np
from jax.core import Tracer

from models.generation import argument_checks as checks
from models.generation.finite_check import refuse_non_finite
from models.generation.options import GenerateOptions, QuantizeAt
from models.generation.start import begin, buffer_size
from models.inputs.batch import Inputs
from models.model import Model
from models.sampling import Sampling
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.pytree import frozen_pytree
from vkq_jax.settings.calibrated import CalibratedCodes
from vkq_jax.settings.layer_settings import AnyQuant
from vkq_jax.settings.score_maps import ScoreMap
from vkq_jax.validation import check_untraced

__all__ = ["Generation", "generate", "stream"]


@frozen_pytree
class Generation:
    """Generated tokens, and the cache to go on from.

    Attributes:
        tokens: emitted tokens, stop token included, 0 after the last one.
        lengths: emitted tokens of each sequence.
        cache: holds the prompt and every emitted token: pass it to the next turn.
        finite: sequences all of whose tokens were chosen from finite logits. Outside jit and vmap
            they all are, or `generate` raises an error.
    """

    tokens: Int32[Array, "B max_new_tokens"]
    lengths: Int32[Array, "B"]
    cache: AnyCache
    finite: Bool[Array, "B"]


def generate(
    model: Model,
    inputs: Inputs,
    *,
    max_new_tokens: int,
    quant: AnyQuant | None = None,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    stop_tokens: tuple[int, ...] | None = None,
    quantize_at: QuantizeAt = "prompt",
    cache: AnyCache | None = None,
    cache_length: int | None = None,
    implementation: str | None = None,
    score_map: ScoreMap | None = None,
    tables: CalibratedCodes | str | os.PathLike[str] | None = None,
    text_bits: TextBits = None,
    bucketing: bool = True,
) -> Generation:
    """Answers prompts: jit-compiled prefill and decode loop, pure, fit for `jax.vmap`.

    Args:
        model: from `models.load`.
        inputs: from `models.prepare`.
        max_new_tokens: most tokens to emit, the stop token counted.
        quant: preset name or settings of the visual cache, or those of `vkq_jax.per_layer`
            and `vkq_jax.per_head`; "vkq-1bit" by default, or the given cache's own.
        sampling: how tokens are chosen; what it leaves open is the checkpoint's own, from its
            generation_config.json (`model.config.sampling`), as in transformers. Where neither
            says otherwise decoding is greedy: `Sampling(temperature=0.0)` always is. The tokens
            that a penalty looks back at are those of this call, not those of earlier turns.
        key: PRNG key for random draws. Needed where `sampling` asks for them; where only the
            checkpoint does, a call without a key is greedy, with a warning.
        stop_tokens: token ids that end a sequence; the checkpoint's own by default, () for none.
        quantize_at: "prompt" reads the whole prompt in full precision and codes the visual tokens
            then; "image" codes them once the last image is in, and the rest of the prompt already
            reads the codes (one image, many questions).
        cache: of earlier turns (`Generation.cache`); `inputs` then holds the new turn only, and a
            BOS token that `prepare` put at its start is left out. All prompts of a batch may go on
            from a cache of one sequence: they share its visual banks, see `prefill_image`.
        cache_length: text tokens a sequence can hold, prompts and new tokens of all turns; by
            default as many as needed.
        implementation: of attention over the cache, see `pallas_kernels.IMPLEMENTATIONS`.
        score_map: static calibration of visual scores [L, N], from `calibrate_scores`; takes the
            place of the one that `quant` finds at every step, and takes the same codes as it was
            calibrated with. By default the given cache's own.
        tables: presets calibrated for this model, from `calibrate_codes` or a file that
            `vkq calibrate` wrote; by default those found beside the checkpoint.
        text_bits: 8 keeps keys and values of text as 8-bit integers, with a scale for each token
            and head: about half the bytes of a long answer in bfloat16. By default the given
            cache's own, or the model's dtype. A prompt is read in full precision either way.
        bucketing: rounds text tokens of the prompt, of the cache and of the answer up to few
            sizes (multiples of 64, above 512 four between two powers of two; visual tokens too
            where their number depends on the picture), so that calls of similar lengths share
            compiled programs. False takes the exact sizes and compiles for each. Answers are the
            same up to the rounding of sums over more terms. What `cache_length` says counts either
            way: a conversation that gives it compiles its decode loop once.

    Warns:
        UserWarning: prompt and answer may go past the model's context, where answers make no sense.

    Raises:
        ValueError: an argument is of a wrong type or out of range, the prompt does not fit
            `cache_length`, the cache or the score map does not fit the model, or the logits are
            not finite; the error names the first layer with a non-finite value. Inside jit or vmap
            nothing is raised for logits: see `Generation.finite`.
    """
    max_new_tokens = checks.check_count("max_new_tokens", max_new_tokens)
    options = GenerateOptions(
        quant=quant,
        sampling=sampling,
        key=key,
        stop_tokens=stop_tokens,
        quantize_at=quantize_at,
        cache=cache,
        cache_length=cache_length,
        implementation=implementation,
        score_map=score_map,
        tables=tables,
        text_bits=text_bits,
        bucketing=bucketing,
    )
    state, emit = begin(model, inputs, max_new_tokens, options)
    # Nobody else holds the state that prefill left. `stream` shows its states, and keeps them.
    steps = buffer_size(max_new_tokens, bucketing)
    tokens, lengths, state = emit(state, max_new_tokens, steps=steps, consume=True)
    tokens = _first_columns(tokens, max_new_tokens)
    generation = Generation(tokens, lengths, state.cache, state.finite)
    refuse_non_finite(model, inputs, cache, tokens, lengths, generation.finite)
    return generation


def stream(
    model: Model,
    inputs: Inputs,
    *,
    max_new_tokens: int,
    chunk: int = 4,
    **options: Unpack[GenerateOptions],
) -> Iterator[Generation]:
    """`generate` that yields the answer so far after every few tokens. Not for use inside jit.

    The last one yielded is what `generate` returns for the same arguments.

    Args:
        model, inputs, max_new_tokens, options: as for `generate`.
        chunk: tokens between two yields.

    Raises:
        ValueError: as `generate`, when the first answer is asked for, or `chunk` below 1.
    """
    unknown = sorted(options.keys() - GenerateOptions.__optional_keys__)
    if unknown:
        raise TypeError(f"stream: expected options of `generate`, got {', '.join(unknown)}")
    check_untraced("stream", (model, inputs, options.get("cache")))
    chunk = checks.check_count("chunk", chunk)
    max_new_tokens = checks.check_count("max_new_tokens", max_new_tokens)
    chunk = min(chunk, max_new_tokens)
    state, emit = begin(model, inputs, max_new_tokens, options)
    batch = inputs.input_ids.shape[0]
    tokens, lengths = np.zeros((batch, max_new_tokens), np.int32), np.zeros(batch, np.int32)
    for start in range(0, max_new_tokens, chunk):
        room = min(chunk, max_new_tokens - start)
        new, count, state = emit(state, room, steps=chunk)
        tokens[:, start : start + room] = new[:, :room]
        lengths += np.asarray(count)
        so_far = jax.device_put(tokens.copy()), jax.device_put(lengths.copy())
        refuse_non_finite(model, inputs, options.get("cache"), *so_far, state.finite)
        yield Generation(*so_far, state.cache, state.finite)
        if bool(state.done.all()):
            return


def _first_columns(tokens: Int32[Array, "B S"], count: int) -> Int32[Array, "B T"]:
    if isinstance(tokens, Tracer) or len(tokens.devices()) > 1:
        return tokens[:, :count]
    # NumPy compiles nothing, JAX would for each count.
    return jax.device_put(np.asarray(tokens)[:, :count])
