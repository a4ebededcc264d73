"""Bytes of a coded visual cache, keys and values apart."""

import dataclasses

from vkq_jax.cache.accounting import cache_nbytes, tensor_nbytes
from vkq_jax.cache.layered import AnyCache

__all__ = ["CacheSize", "cache_size"]


@dataclasses.dataclass(frozen=True)
class CacheSize:
    """Sizes for one sequence of a batch; arguments of `Record`."""

    key_bytes: float
    value_bytes: float
    elements: int
    full_bytes: int


def cache_size(cache: AnyCache, full: AnyCache) -> CacheSize:
    """Counts the buffers of the visual banks: codes, and every table that belongs to a sequence.

    Args:
        cache: the coded one.
        full: the same prompts in full precision, all of whose elements count.
    """
    batch = cache.position.shape[0]
    banks = [bank for part in cache.parts for bank in part.visual]
    key = sum(tensor_nbytes(bank.key) for bank in banks)
    value = sum(tensor_nbytes(bank.value) for bank in banks)
    # Parts that belong to neither are shared: an order of the tokens, a window's positions.
    shared = (cache_nbytes(cache).visual - key - value) / 2
    return CacheSize(
        key_bytes=(key + shared) / batch,
        value_bytes=(value + shared) / batch,
        elements=sum(bank.key.num_elements() for part in full.parts for bank in part.visual)
        // batch,
        full_bytes=cache_nbytes(full).visual // batch,
    )
