"""Updates of a whole `KVCache`; each returns a new cache and leaves the given one as it is."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Float, Shaped
from vkq_jax.cache.any_cache import check_cache_type, map_parts, map_recurrent
from vkq_jax.cache.head_groups import take_cells
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.sharing import is_shared
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.messages import show
from vkq_jax.validation import from_host, whole_number

__all__ = ["append", "grow", "take_sequences"]


@checked
def append[C: KVCache | LayeredCache](
    cache: C,
    key: Float[Array, "L B T K H"],
    value: Float[Array, "L B T K H"],
    valid: Bool[Array, "B T"] | None = None,
) -> C:
    """Appends T text tokens of all layers.

    Args:
        cache: with room for them.
        key, value: of the new tokens, keys after RoPE; cast to the dtype of the text.
        valid: which of them are tokens; others take no slot. None: all.

    Returns:
        A new cache, T tokens longer.

    Raises:
        ValueError: shapes of another cache; or the tokens have no room and the lengths are known
            (outside jit): inside jit what has no room is dropped, so `grow` the cache beforehand.
    """
    check_cache_type(cache)
    if isinstance(cache, LayeredCache):
        if cache.cross or cache.recurrent is not None or cache.sizes_differ:
            raise NotImplementedError("append: a model with several kinds of layers is not covered")
        _check_tokens(cache, key, value, valid)
        parts = []
        for part, cells in zip(cache.parts, cache.cells, strict=True):
            own_key, own_value = take_cells((key, value), cells, axis=3)
            parts.append(append(part, own_key, own_value, valid))
        return dataclasses.replace(cache, parts=tuple(parts))
    _check_tokens(cache, key, value, valid)
    if valid is None:
        valid = jnp.ones(key.shape[1:3], bool)
    text = cache.text
    longest = jnp.max(text.length + valid.sum(-1, dtype=jnp.int32))
    if not isinstance(longest, Tracer) and longest > text.cache_length:
        raise ValueError(
            f"the cache holds {text.cache_length} text tokens a sequence, {longest} are needed: "
            "grow(cache, cache_length) first"
        )
    for layer in range(key.shape[0]):
        text = text.write(layer, key[layer], value[layer], valid)
    order = cache.num_tokens[:, None] + jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
    text = text.advance(valid, order)
    moved = cache.position + valid.sum(-1, dtype=jnp.int32)
    return dataclasses.replace(cache, text=text, position=moved)


def _check_tokens(
    cache: KVCache | LayeredCache, key: Array, value: Array, valid: Array | None
) -> None:
    """Raises ValueError unless the tokens are of this cache's layers, sequences and heads."""
    part = cache if isinstance(cache, KVCache) else cache.parts[0]
    batch, num_tokens, head_dim = part.position.shape[0], key.shape[2], part.text.key.shape[-1]
    expected = (cache.num_layers, batch, num_tokens, cache.num_kv_heads, head_dim)
    for name, x in (("key", key), ("value", value)):
        if x.shape != expected:
            raise ValueError(
                f"{name} must be [L, B, T, K, H] = {list(expected)} for this cache, got {show(x)}"
            )
    if valid is not None and valid.shape != (batch, num_tokens):
        raise ValueError(
            f"valid must be [B, T] = {[batch, num_tokens]}, as the tokens, got {show(valid)}"
        )


def grow[C: KVCache | LayeredCache](cache: C, cache_length: int) -> C:
    """The same cache with room for at least `cache_length` text tokens a sequence.

    Args:
        cache: of any sequences; visual banks stay as they are.
        cache_length: text tokens, those that the cache holds included. A smaller number than the
            cache has room for changes nothing.

    Raises:
        ValueError: no cache, or `cache_length` is no integer below 2**31.
    """
    check_cache_type(cache)
    length = whole_number(cache_length)
    if length is None or length >= 2**31:
        raise ValueError(
            f"cache_length: expected a number of tokens below 2**31, got {show(cache_length)}"
        )
    if isinstance(cache, KVCache):
        return _grow(cache, length)
    grown = tuple(_grow(part, length) for part in cache.text_parts)
    return dataclasses.replace(cache, parts=grown + cache.parts[len(grown) :])


def _grow(cache: KVCache, cache_length: int) -> KVCache:
    extra = cache_length - cache.text.cache_length
    if extra <= 0:
        return cache

    def pad(x, axis):
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    text = cache.text
    index = jax.tree.map(lambda x: pad(x, 1), text.index)
    text = text.map_arrays(lambda x: pad(x, 3), index=index)
    return dataclasses.replace(cache, text=text)


def take_sequences[C: KVCache | LayeredCache](cache: C, indices: ArrayLike | Sequence[int]) -> C:
    """The sequences `indices` of the batch, in that order: beam reorder, slice, repeat.

    Args:
        cache: of B sequences.
        indices: integers in [0, B), or B booleans, which keep the sequences where they are true.
            Inside jit they are integers, and those out of range are clamped as JAX does.

    Raises:
        ValueError: neither integers nor booleans, not one axis, or none taken; integers out of
            range (outside jit); not B booleans, or booleans inside jit.

    Visual banks that all sequences share (see `share_visual`) stay as they are.
    """
    check_cache_type(cache)
    cache = from_host(cache)
    indices = _checked_indices(indices, cache.position.shape[0])
    taken = map_parts(cache, lambda part: _take_sequences(part, indices))
    return map_recurrent(taken, lambda x: _take(x, indices, axis=1))


def _take_sequences(cache: KVCache, indices: Shaped[Array, "b"]) -> KVCache:
    batch, text = cache.position.shape[0], cache.text

    def stacked(tree):  # [L, B, ...]
        return jax.tree.map(lambda x: _take(x, indices, axis=1), tree)

    def per_sequence(tree):  # [B, ...]
        return jax.tree.map(lambda x: _take(x, indices, axis=0), tree)

    def taken(bank: VisualBank) -> VisualBank:
        if is_shared(bank, batch):
            return bank
        return dataclasses.replace(
            bank,
            length=per_sequence(bank.length),
            index=per_sequence(bank.index),
            key=stacked(bank.key),
            value=stacked(bank.value),
            class_map=stacked(bank.class_map),
            position=per_sequence(bank.position),
        )

    return dataclasses.replace(
        cache,
        visual=tuple(map(taken, cache.visual)),
        text=text.map_arrays(
            stacked, length=per_sequence(text.length), index=per_sequence(text.index)
        ),
        position=per_sequence(cache.position),
        calibration_skipped=per_sequence(cache.calibration_skipped),
    )


def _take(x: Shaped[Array, "..."], indices: Shaped[Array, "b"], axis: int) -> Array:
    """Some sequences of an array; they stay split over devices as they are, if that divides."""
    sharding = None if isinstance(x, Tracer) else x.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return jnp.take(x, indices, axis=axis, mode="clip")
    parts = x.shape[axis] // max(sharding.shard_shape(x.shape)[axis], 1)
    if len(indices) % parts:
        spec = [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
        spec[axis] = None
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return _take_from_shards(x, indices, axis, sharding)


@partial(jax.jit, static_argnums=(2, 3))
def _take_from_shards(
    x: Shaped[Array, "..."], indices: Shaped[Array, "b"], axis: int, sharding: NamedSharding
) -> Array:
    taken = jnp.take(x, indices, axis=axis, mode="clip")
    return jax.lax.with_sharding_constraint(taken, sharding)


def _checked_indices(indices: ArrayLike | Sequence[int], batch: int) -> Shaped[Array, "b"]:
    got = indices if isinstance(indices, Tracer) else _as_numpy(indices)
    if got is None or got.ndim != 1 or got.dtype.kind not in "biu" or not got.size:
        raise ValueError(
            f"sequences must be a list of integers in [0, {batch}) or of {batch} booleans, with at "
            f"least one, got {show(indices)}"
        )
    if isinstance(got, Tracer):
        if got.dtype == bool:
            raise ValueError("inside jit sequences are taken by integers, got booleans")
        return got
    if got.dtype == bool:
        if got.size != batch or not got.any():
            raise ValueError(
                f"a mask of sequences must be {batch} booleans, one of them true, got "
                f"{show(got.tolist())}"
            )
        got = np.flatnonzero(got)
    if got.min() < 0 or got.max() >= batch:
        raise ValueError(f"sequence indices must lie in [0, {batch}), got {show(got.tolist())}")
    return jnp.asarray(got, jnp.int32)


def _as_numpy(indices: ArrayLike | Sequence[int]) -> np.ndarray | None:
    """None where there is no array of one kind: NumPy takes a True among integers for a 1."""
    try:
        array = np.asarray(indices)
    except ValueError:
        return None
    mixed = isinstance(indices, list | tuple) and len({isinstance(i, bool) for i in indices}) > 1
    return None if mixed else array
