"""One visual bank for many sequences: questions about the same pictures, coded once for all.

A bank of one sequence in a cache of B is attended by all B. Their queries then are B * Q rows of
one sequence: nothing of the bank is repeated.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Shaped
from vkq_jax.cache.any_cache import check_cache_type, map_parts, map_recurrent
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.messages import show
from vkq_jax.validation import whole_number

__all__ = ["is_shared", "join_sequences", "share_visual", "shares_visual", "split_sequences"]


def is_shared(bank: VisualBank, batch: int) -> bool:
    """Whether all of `batch` sequences attend to the bank of one."""
    return bank.length.shape[0] == 1 and batch > 1


def shares_visual(cache: LayerCache | KVCache) -> bool:
    """Whether any visual bank of a cache is shared by its sequences."""
    return any(is_shared(bank, cache.text.length.shape[0]) for bank in cache.visual)


def share_visual[C: KVCache | LayeredCache](cache: C, batch: int) -> C:
    """A cache of one sequence as one of `batch` that go on from it: visual banks stay one.

    Args:
        cache: of one sequence, whose pictures are read (`models.prefill_image`).
        batch: sequences of the new cache.

    Returns:
        A cache with its text repeated, S slots for each sequence; all attend to the same visual
        banks, which are the buffers of `cache` and are not copied.

    Raises:
        ValueError: the cache holds another number of sequences, or `batch` is below 1.
    """
    check_cache_type(cache)
    held, count = cache.position.shape[0], whole_number(batch)
    if held != 1 or count is None or count < 1:
        raise ValueError(
            f"share_visual: expected a cache of 1 sequence and a batch of at least 1, got {held} "
            f"sequences and {show(batch)}; take_sequences(cache, [i]) selects one"
        )
    shared = map_parts(cache, lambda part: _share_visual(part, count))
    return map_recurrent(shared, lambda x: jnp.repeat(x, count, axis=1))


def _share_visual(cache: KVCache, batch: int) -> KVCache:
    def repeat(x, axis):
        return jnp.repeat(x, batch, axis=axis)

    text = cache.text.map_arrays(
        lambda x: repeat(x, 1),
        length=repeat(cache.text.length, 0),
        index=jax.tree.map(lambda x: repeat(x, 0), cache.text.index),
    )
    return dataclasses.replace(
        cache,
        text=text,
        position=repeat(cache.position, 0),
        calibration_skipped=repeat(cache.calibration_skipped, 0),
    )


def join_sequences(x: Shaped[Array, "B K Q C"]) -> Shaped[Array, "1 K R C"]:
    """Rows of B sequences as those of one, R = B * Q."""
    _, heads, _, size = x.shape
    return x.transpose(1, 0, 2, 3).reshape(1, heads, -1, size)


def split_sequences(x: Shaped[Array, "1 K R C"], batch: int) -> Shaped[Array, "B K Q C"]:
    """The inverse of `join_sequences`."""
    _, heads, _, size = x.shape
    return x.reshape(heads, batch, -1, size).transpose(1, 0, 2, 3)
