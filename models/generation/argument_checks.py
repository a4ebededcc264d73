"""Checks of the arguments that `generate`, `stream` and `calibrate_scores` share."""

import dataclasses
import warnings
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

import vkq_jax.cache.text_bank
from models.generation.prefill import new_cache
from models.inputs.batch import Inputs
from models.model import Model
from models.sampling import Sampling, is_integer
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.messages import show
from vkq_jax.validation import as_items, check_alive, check_type

__all__ = [
    "check_cache",
    "check_choice",
    "check_count",
    "check_key",
    "check_quantize_at",
    "check_stop_tokens",
    "check_text_bits",
    "settle_sampling",
]


def check_count(name: str, value: Any) -> int:
    """The value as a plain integer of at least 1."""
    if not is_integer(value):
        raise ValueError(f"{name} must be an integer of at least 1, got {show(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {show(value)}")
    return int(value)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises ValueError unless `value` is one of a Literal's strings."""
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{name} must be {' or '.join(f'"{choice}"' for choice in known)}, got {show(value)}"
        )


def check_stop_tokens(model: Model, value: Any) -> tuple[int, ...]:
    """The given token ids, or the checkpoint's own for None."""
    if value is None:
        return model.config.eos_token_ids
    vocab = model.config.text.vocab_size
    expected = f"stop_tokens: expected token ids in [0, {vocab}), () for none, None for the model's"
    tokens = as_items(value)
    if tokens is None:
        raise ValueError(f"{expected}, got {show(value)}")
    for token in tokens:
        if not is_integer(token) or not 0 <= token < vocab:
            raise ValueError(f"{expected}, got {show(token)} among them")
    return tuple(int(token) for token in tokens)


def check_key(key: Any) -> jax.Array | None:
    """One PRNG key, typed where it came raw, or None; raises ValueError for anything else."""
    if key is None:
        return None
    hint = "expected one PRNG key, jax.random.key(seed)"
    if not isinstance(key, jax.Array | np.ndarray):
        raise ValueError(f"key: {hint}, got {show(key)}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (key.dtype != jnp.uint32 or key.ndim == 0):
        raise ValueError(f"key: {hint}, got {show(key)}")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"key: {hint}, got keys of shape {list(key.shape)}; use jax.vmap for many")
    if typed:
        assert isinstance(key, jax.Array)
        return key
    try:
        return jax.random.wrap_key_data(jnp.asarray(key))
    except TypeError as error:
        raise ValueError(f"key: {hint}, got {show(key)}") from error


def check_quantize_at(model: Model, quantize_at: str) -> None:
    """Raises NotImplementedError for coding pictures before a question that they depend on."""
    if quantize_at == "image" and model.visual_depends_on_question:
        raise NotImplementedError(
            f"a picture cannot be coded before its question: in {model.config.model_type} models "
            "visual tokens attend to the question, so their keys and values are not known before "
            'it; use generate(..., quantize_at="prompt")'
        )


def check_cache(model: Model, inputs: Inputs, cache: Any) -> None:
    """Raises ValueError unless `model` could have filled `cache` for a batch like `inputs`.

    A cache of one sequence fits every batch, whose prompts then share what it holds.
    """
    if cache is None:
        return
    hint = "Generation.cache of an earlier turn, or vkq_jax.load_cache"
    if not isinstance(cache, KVCache | LayeredCache):
        check_type("cache", cache, KVCache, hint=hint)
    check_alive("cache", cache)
    batch, layers = inputs.input_ids.shape[0], model.config.text.num_own_layers
    if cache.num_layers != layers:
        raise ValueError(
            f"cache: it is not one of this model: it has {cache.num_layers} layers, the model has "
            f"{layers}"
        )
    found = cache.cross_layers if isinstance(cache, LayeredCache) else ()
    if found != model.config.text.cross_layers:
        raise ValueError(
            "cache: it is not one of this model: it has pictures in the cross-attention layers "
            f"{_numbers(found)}, the model in {_numbers(model.config.text.cross_layers)}"
        )
    linear = model.config.text.linear
    states = cache.recurrent if isinstance(cache, LayeredCache) else None
    found = () if states is None else states.layers
    if found != (() if linear is None else linear.layers):
        raise ValueError(
            f"cache: it is not one of this model: it has recurrent states in layers "
            f"{_numbers(found)}, the model in {_numbers(() if linear is None else linear.layers)}"
        )
    if cache.position.shape[0] not in (1, batch):
        raise ValueError(
            f"cache: it holds {cache.position.shape[0]} sequences, inputs {batch}; "
            "vkq_jax.take_sequences(cache, indices) selects or repeats them"
        )
    expected = jax.eval_shape(
        lambda model: new_cache(
            model, batch, quant=cache.quant, cache_length=1, text_bits=cache.text_bits
        ),
        model,
    )
    if isinstance(cache, LayeredCache) and isinstance(expected, LayeredCache):
        _check_states(cache, expected)
    for part, like in zip(cache.parts, expected.parts, strict=True):
        wanted = _sizes(like.text.key.shape)
        for name, bank in (("keys", part.text.key), ("values", part.text.value)):
            got = _sizes(bank.shape)
            dtype = bank.dtype if part.text_bits is None else part.text.dtype
            if _fixed(got) != _fixed(wanted) or dtype != like.text.dtype:
                raise ValueError(
                    f"cache: it is not one of this model: its {name} have {_list(_fixed(got))} in "
                    f"{dtype}, the model's have {_list(_fixed(wanted))} in "
                    f"{like.text.dtype}"
                )


def _check_states(cache: LayeredCache, expected: LayeredCache) -> None:
    """Raises ValueError for recurrent states of other sizes or dtypes than the model's."""
    found, wanted = (
        [] if each.recurrent is None else [(x.shape[2:], x.dtype) for x in each.recurrent.values]
        for each in (cache, expected)
    )
    if found != wanted:
        got, own = (
            ", ".join(f"{dtype} {list(shape)}" for shape, dtype in each) for each in (found, wanted)
        )
        raise ValueError(
            f"cache: it is not one of this model: its recurrent states are {got}, the model's {own}"
        )


def check_text_bits(text_bits: Any, cache: AnyCache | None) -> TextBits:
    """The bits of a new cache's text, those of a given cache for None.

    Raises:
        ValueError: other bits than 8, or a cache whose text is dense, which stays so.
    """
    bits = vkq_jax.cache.text_bank.check_text_bits(text_bits)
    if cache is None or bits == cache.text_bits:
        return bits
    if bits is None:
        return cache.text_bits
    raise ValueError(
        f"text_bits: expected None for a cache whose text is in {cache.parts[0].text.dtype}, got "
        f"{bits}: earlier turns keep what they were stored in, a new conversation takes it"
    )


def settle_sampling(model: Model, sampling: Sampling, key: jax.Array | None) -> Sampling:
    """The given settings over the checkpoint's own.

    Raises:
        ValueError: no `Sampling`, a token that the model does not have, settings that greedy
            decoding would ignore, or no key for draws that the call itself asks for.
    """
    check_type("sampling", sampling, Sampling, hint="models.Sampling(temperature=...)")
    settled = sampling.over(model.config.sampling)
    settled.check_vocabulary(model.config.text.vocab_size)
    own = sampling.narrows
    if settled.greedy and own:
        raise ValueError(f"{', '.join(own)} need a temperature above 0: greedy ignores them")
    if settled.greedy or key is not None:
        return settled
    if own or not sampling.greedy:
        raise ValueError("sampling with a temperature needs a PRNG key: key=jax.random.key(seed)")
    warnings.warn(
        f"the checkpoint's generation_config.json asks for sampling at a temperature of "
        f"{settled.temperature:g}, which needs key=jax.random.key(seed); without one decoding is "
        "greedy, as with sampling=Sampling(temperature=0.0)",
        stacklevel=4,
    )
    return dataclasses.replace(settled, temperature=0.0)


def _numbers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes by axis of a text bank's keys or values [L, B, K, S, H]."""
    axes = ("layers", "sequences", "KV heads", "length", "head_dim")
    return dict(zip(axes, shape, strict=True))


def _fixed(sizes: dict[str, int]) -> dict[str, int]:
    """The sizes that a model prescribes."""
    return {name: sizes[name] for name in ("layers", "KV heads", "head_dim")}


def _list(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} {name}" for name, size in sizes.items())
