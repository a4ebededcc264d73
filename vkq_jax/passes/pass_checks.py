"""Checks that `begin_prefill` and `begin_decode` and their passes share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.cache.visibility import Starts, window_starts
from vkq_jax.messages import show

__all__ = [
    "check_all_done",
    "check_fits",
    "check_heads",
    "check_mask",
    "if_own",
    "mark_done",
    "nothing_done",
    "nothing_moved",
    "settle_starts",
    "spoil",
]

type Done = Bool[Array, "L"] | Bool[np.ndarray, "L"]


def check_mask(name: str, mask: Any, cache: KVCache, tokens: int | None = None) -> Array:
    """The mask as an array; raises ValueError unless it is booleans [B, T] for the cache."""
    mask = jnp.asarray(mask)
    batch = cache.position.shape[0]
    expected = f"[B={batch}, T{'' if tokens is None else f'={tokens}'}]"
    fits = mask.ndim == 2 and mask.shape[0] == batch and tokens in (None, mask.shape[-1])
    fits &= mask.shape[-1:] != (0,)
    if mask.dtype != bool or not fits:
        raise ValueError(f"{name} must be booleans {expected}, got {show(mask)}")
    return mask


def check_fits(fits: Bool[Array, "B"], problem: str) -> None:
    """Raises ValueError where a sequence does not fit and that is known, so outside jit."""
    if not isinstance(fits, Tracer) and not bool(fits.all()):
        raise ValueError(f"sequence {int(jnp.argmin(fits))}: {problem}")


def spoil(output: Float[Array, "B T N H"], fits: Bool[Array, "B"]) -> Float[Array, "B T N H"]:
    """NaN in sequences that do not fit, where jit keeps `check_fits` from raising an error."""
    return jnp.where(fits[:, None, None, None], output, jnp.asarray(jnp.nan, output.dtype))


def check_heads(
    query: Array,
    key: Array,
    value: Array,
    cache: KVCache,
    tokens: int,
    num_kv_heads: int | None = None,
    *,
    places: int | None = None,
) -> None:
    """Raises ValueError unless a layer's tensors are of these tokens and of the cache's heads.

    `num_kv_heads` is for a cache that holds only some heads of its layers. Keys and values of
    pictures have `places` instead of the tokens of the queries.
    """
    _, batch, own_heads, _, head_dim = cache.text.key.shape
    num_kv_heads = num_kv_heads or own_heads
    axis, size = ("T", tokens) if places is None else ("V", places)
    for name, x in (("key", key), ("value", value)):
        if x.shape != (batch, size, num_kv_heads, head_dim):
            raise ValueError(
                f"{name} must be [B, {axis}, K, H] = {[batch, size, num_kv_heads, head_dim]} for "
                f"this cache, got {show(x)}"
            )
    shape = query.shape
    fits = len(shape) == 4 and (*shape[:2], shape[3]) == (batch, tokens, head_dim)
    if not fits or shape[2] % num_kv_heads:
        raise ValueError(
            f"query must be [B={batch}, T={tokens}, N=multiple of {num_kv_heads}, H={head_dim}], "
            f"got {show(query)}"
        )


def nothing_done(cache: KVCache) -> np.ndarray:
    """No layer has attended yet. NumPy's, so that a Python loop inside jit knows its values."""
    return np.zeros(cache.num_layers, bool)


def nothing_moved(states: RecurrentState | None) -> np.ndarray | None:
    """No recurrent layer has a new state yet."""
    return None if states is None else np.zeros(len(states.layers), bool)


def mark_done(done: Done, layer: Any, number: int | None, own: Any = None) -> Done:
    """`done` with one more layer, if it is `own`; `number` as from `validation.static_layer`.

    Raises:
        ValueError: the layer is known to be done, so that its first keys would be lost.
    """
    if number is None or not isinstance(done, np.ndarray):
        done = jnp.asarray(done)
        return done.at[layer].set(True if own is None else done[layer] | own)
    if done[number] and own is None:
        raise ValueError(
            f"layer {number} had its turn in this pass: expected each layer once, since the cache "
            "has one place for its keys and values; kv_shared=True reads them again"
        )
    done = done.copy()
    done[number] = True
    return done


def if_own(valid: Bool[Array, "B T"], own: Bool[Array, ""] | None) -> Bool[Array, "B T"]:
    """The tokens that a pass writes in a layer: none where the layer is not its own."""
    return valid if own is None else jnp.logical_and(valid, own[None, None])


def settle_starts(
    cache: KVCache, order: Int32[Array, "B T"], window: int | None, starts: Starts | None
) -> Starts | None:
    """The starts of a window, or the given ones; raises ValueError for both."""
    if window is None:
        return starts
    if starts is not None:
        raise ValueError("window: expected either a window or starts, got both")
    return window_starts(cache, order, window)


def check_all_done(done: Done) -> None:
    """Raises ValueError if some layers are known not to have attended."""
    if not isinstance(done, Tracer) and not np.asarray(done).all():
        missing = np.flatnonzero(~np.asarray(done)).tolist()
        raise ValueError(
            f"finish() needs attend() of all {len(done)} layers before it, got none of layers "
            f"{show(missing)}; keep the pass that each attend() returns"
        )
