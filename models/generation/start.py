"""The start of an answer: arguments checked, the prompt read, the decode loop bound."""

import warnings
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import pallas_kernels
from models.attached_tables import settle_codes
from models.generation import argument_checks as checks
from models.generation.context import warn_past_context
from models.generation.decode_loop import DecodeState, decode_loop
from models.generation.options import GenerateOptions, QuantizeAt
from models.generation.prefill_image import in_buckets, prefill_part
from models.generation.room import check_answer_fits
from models.generation.token_chooser import TokenChooser
from models.generation.token_history import TokenHistory
from models.inputs.batch import Inputs, check_inputs
from models.inputs.on_mesh import check_batch, place_inputs
from models.inputs.padding import text_bucket
from models.inputs.split import split_after_images
from models.model import Model
from models.sampling import Sampling
from models.sharding.placing import place_cache, place_shared, place_tables
from vkq_jax.array_types import Array, Float
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.sharing import share_visual
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.layer_groups import Quant
from vkq_jax.settings.score_maps import ScoreMap
from vkq_jax.sharding.hosts import to_host
from vkq_jax.validation import check_tree, check_type

__all__ = ["begin", "buffer_size"]


def begin(
    model: Model, inputs: Inputs, max_new_tokens: int, options: GenerateOptions
) -> tuple[DecodeState, Callable[..., tuple[Array, Array, DecodeState]]]:
    """Checks the arguments of `generate`, and reads the prompt.

    Returns:
        The state before the first token, and `decode_loop` without its first argument and with all
        that stays the same from call to call.
    """
    check_type("model", model, Model, hint="models.load")
    check_inputs(inputs)
    quantize_at = options.get("quantize_at", "prompt")
    checks.check_choice("quantize_at", quantize_at, QuantizeAt)
    checks.check_quantize_at(model, quantize_at)
    key = checks.check_key(options.get("key"))
    cache = options.get("cache")
    checks.check_cache(model, inputs, cache)
    check_batch(model.mesh, inputs)
    if cache is not None and cache.position.shape[0] < inputs.input_ids.shape[0]:
        cache = share_visual(cache, inputs.input_ids.shape[0])
    stops = checks.check_stop_tokens(model, options.get("stop_tokens"))
    sampling = checks.settle_sampling(model, options.get("sampling", Sampling()), key)
    chooser = TokenChooser.create(sampling, stops)
    if cache is not None:
        _warn_of_earlier_turns(chooser)
    implementation = options.get("implementation")
    pallas_kernels.choose_implementation(implementation)
    settings, tables = settle_codes(model, options.get("quant"), options.get("tables"), cache)
    score_map = _check_score_map(model, options.get("score_map"), settings)
    bucketing = options.get("bucketing", True)
    check_type("bucketing", bucketing, bool)
    text_bits = checks.check_text_bits(options.get("text_bits"), cache)
    cache_length = _settle_cache_length(
        model,
        inputs,
        cache,
        options.get("cache_length"),
        max_new_tokens,
        quant=settings,
        text_bits=text_bits,
        bucketing=bucketing,
    )
    if bucketing:
        inputs = in_buckets(model, inputs)
    inputs = place_inputs(model.mesh, inputs)
    if cache is not None:
        inputs, cache = inputs.continuing(), place_cache(model.mesh, cache)
    read = partial(
        prefill_part,
        model,
        quant=settings,
        cache_length=cache_length,
        implementation=implementation,
        score_map=place_tables(model.mesh, score_map, settings),
        tables=tables,
        text_bits=text_bits,
    )
    logits, filled = _read_prompt(read, inputs, cache, quantize_at)
    history = None
    if chooser.needs_history:
        size = buffer_size(max_new_tokens, bucketing)
        history = TokenHistory.of_prompts(inputs, max_new_tokens, size)
    draws = None if sampling.greedy else place_shared(model.mesh, key)
    emit = partial(
        decode_loop, model, sampling=sampling, stop_tokens=stops, implementation=implementation
    )
    return DecodeState.start(logits, filled, draws, history), emit


def _settle_cache_length(
    model: Model,
    inputs: Inputs,
    cache: AnyCache | None,
    cache_length: int | None,
    max_new_tokens: int,
    *,
    quant: Quant,
    text_bits: TextBits,
    bucketing: bool,
) -> int:
    """Text tokens that the new cache has room for.

    Refuses what fits neither `cache_length` nor memory, and warns past the model's context.
    """
    if cache_length is not None:
        cache_length = checks.check_count("cache_length", cache_length)
    past_text, past_tokens = (0, 0) if cache is None else (_longest_text(cache), _longest(cache))
    needed = _check_length(inputs, past_text, cache_length, max_new_tokens)
    check_answer_fits(
        model,
        inputs,
        max_new_tokens,
        quant=quant,
        text_bits=text_bits,
        past_text=past_text,
        past_tokens=past_tokens,
        cache_length=cache_length,
        rounded=lambda count: buffer_size(count, bucketing),
    )
    warn_past_context(
        model.config,
        before=past_tokens,
        prompt=_prompt_tokens(inputs),
        max_new_tokens=max_new_tokens,
        stacklevel=4,
    )
    own_length = 0 if cache is None else cache.cache_length
    return cache_length or max(buffer_size(needed, bucketing), own_length)


def _read_prompt(
    read: Callable[..., tuple[Array, AnyCache]],
    inputs: Inputs,
    cache: AnyCache | None,
    quantize_at: QuantizeAt,
) -> tuple[Float[Array, "B vocab"], AnyCache]:
    """Logits of the first new token and the cache, from a `prefill_part` with its other arguments.

    Where images are coded before the question, the prompt is read in two pieces.
    """
    if quantize_at == "prompt" or not inputs.prompt_shape.has_pictures:
        return read(inputs, cache)
    images, question = split_after_images(inputs)
    logits, filled = read(images, cache)
    if inputs.prompt_shape.suffix:
        after, filled = read(question, filled)
        # A prompt that ends with its image has nothing in the second piece.
        logits = jnp.where(question.mask.any(-1)[:, None], after, logits)
    return logits, filled


def _warn_of_earlier_turns(chooser: TokenChooser) -> None:
    """Says where penalties look back at tokens that a cache does not hold."""
    if chooser.looks_back:
        warnings.warn(
            f"{', '.join(chooser.looks_back)}: only the tokens of this turn count, since a cache "
            "holds no token ids of earlier ones; to have all count, as in transformers, give the "
            "whole conversation as one prompt, without cache",
            stacklevel=4,
        )


def _check_score_map(model: Model, score_map: ScoreMap | None, quant: Quant) -> ScoreMap | None:
    """The map; raises ValueError for one of another model or other codes, or one that cannot be."""
    if score_map is None:
        return None
    check_type("score_map", score_map, ScoreMap, hint="models.calibrate_scores")
    text = model.config.text
    expected = (text.num_own_layers, text.num_attention_heads)
    for name in ("slope", "shift"):
        shape = getattr(score_map, name).shape
        if shape != expected:
            raise ValueError(
                f"score_map.{name}: expected [layers, query heads] = {list(expected)} for this "
                f"model, got {list(shape)}"
            )
    if not isinstance(score_map.slope, Tracer):
        check_tree(score_map, "score_map")
    score_map.check_codes(quant)
    return score_map


def buffer_size(count: int, bucketing: bool) -> int:
    """The size of a buffer for `count` text tokens: rounded up where sizes are to be few."""
    return text_bucket(count) if bucketing else count


def _check_length(
    inputs: Inputs, past_text: int, cache_length: int | None, max_new_tokens: int
) -> int:
    """The text tokens that a sequence of the cache has to hold; refuses a shorter cache."""
    text = inputs.prompt_shape.text
    needed = past_text + text + max_new_tokens
    if cache_length is not None and cache_length < needed:
        raise ValueError(
            f"the prompt is longer than the cache: {text} text tokens and {max_new_tokens} new "
            f"ones behind {past_text} need cache_length={needed}, got {cache_length}"
        )
    return needed


def _prompt_tokens(inputs: Inputs) -> int:
    """Tokens of the longest prompt; where the mask is traced, the padding counts."""
    if isinstance(inputs.mask, Tracer):
        return inputs.mask.shape[1]
    return int(to_host(inputs.mask).sum(axis=1).max())


def _longest(cache: AnyCache) -> int:
    """Tokens of the longest sequence of a cache; 0 where they are traced, and none are known."""
    if isinstance(cache.text_length, Tracer):
        return 0
    first = cache.parts[0]  # visual tokens of cross-attention layers are none of the sequence
    lengths = map(to_host, (*first.visual_lengths, first.text_length))
    return int(sum(lengths, np.int32(0)).max())


def _longest_text(cache: AnyCache) -> int:
    """Text tokens of the longest sequence; the whole capacity where lengths are traced."""
    if isinstance(cache.text_length, Tracer):
        return cache.cache_length
    return int(to_host(cache.text_length).max())
