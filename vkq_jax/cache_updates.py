"""Updates of a whole `KVCache`; each returns a new cache and leaves the given one as it is."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.core import Tracer

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache import KVCache, TextBank, VisualBank

__all__ = ["append", "grow", "take_sequences"]


def append(
    cache: KVCache,
    key: Float[Array, "L B T K H"],
    value: Float[Array, "L B T K H"],
    valid: Bool[Array, "B T"] | None = None,
) -> KVCache:
    """Appends T text tokens of all layers (keys after RoPE); invalid ones take no slot.

    Raises:
        ValueError: the tokens do not fit and the lengths are known (outside jit); inside jit what
            does not fit is dropped, so `grow` the cache beforehand.
    """
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
    positions = cache.position[:, None] + jnp.cumsum(valid, axis=-1, dtype=jnp.int32) - 1
    text = text.advance(valid, positions)
    moved = cache.position + valid.sum(-1, dtype=jnp.int32)
    return dataclasses.replace(cache, text=text, position=moved)


def grow(cache: KVCache, cache_length: int) -> KVCache:
    """The same cache with room for at least `cache_length` text tokens a sequence."""
    extra = cache_length - cache.text.cache_length
    if extra <= 0:
        return cache

    def pad(x, axis):
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    text = cache.text
    key, value = pad(text.key, 3), pad(text.value, 3)
    position = jax.tree.map(lambda x: pad(x, 1), text.position)
    text = dataclasses.replace(text, key=key, value=value, position=position)
    return dataclasses.replace(cache, text=text)


def take_sequences(cache: KVCache, indices: Int32[Array, "b"]) -> KVCache:
    """The sequences `indices` of the batch, in that order: beam reorder, slice, repeat.

    Outside jit indices are checked; inside, out-of-range ones are clamped as JAX does.
    """
    indices = jnp.asarray(indices, jnp.int32)
    batch = cache.position.shape[0]
    if not isinstance(indices, Tracer) and not bool(jnp.all((indices >= 0) & (indices < batch))):
        raise ValueError(f"sequence indices must lie in [0, {batch}), got {indices.tolist()}")

    def stacked(tree):  # [L, B, ...]
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=1, mode="clip"), tree)

    def per_sequence(tree):  # [B, ...]
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), tree)

    def taken[Bank: (VisualBank, TextBank)](bank: Bank) -> Bank:
        of_layers = {"key": stacked(bank.key), "value": stacked(bank.value)}
        if isinstance(bank, VisualBank):
            of_layers["class_map"] = stacked(bank.class_map)
        return dataclasses.replace(
            bank,
            length=per_sequence(bank.length),
            position=per_sequence(bank.position),
            **of_layers,
        )

    return dataclasses.replace(
        cache,
        visual=tuple(map(taken, cache.visual)),
        text=taken(cache.text),
        position=per_sequence(cache.position),
        guarded=per_sequence(cache.guarded),
    )
