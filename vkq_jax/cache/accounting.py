"""Exact byte counts of a cache: the sum of its live buffers, padding and tables included."""

import dataclasses

from vkq_jax.cache.any_cache import check_cache_type
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.split_tensor import SplitTensor
from vkq_jax.cache.text_bank import TextBank
from vkq_jax.codes.dense import DenseTensor
from vkq_jax.codes.quantized import QuantizedTensor
from vkq_jax.display import table
from vkq_jax.pytree import nbytes

__all__ = ["CacheBytes", "cache_nbytes", "tensor_nbytes", "text_nbytes"]


@dataclasses.dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache by what they hold.

    Attributes:
        visual_codes: packed words (or, uncompressed, the values themselves).
        visual_tables: levels, centres, scales and orders of the visual banks, and token numbers
            and positions where kept.
        text: the text bank, its whole capacity, scales and token numbers where kept.
        visual_full_precision: what the visual banks would take in the model's dtype, with the same
            numbers.
        recurrent: states of layers without keys and values, whatever the number of tokens.
    """

    visual_codes: int
    visual_tables: int
    text: int
    visual_full_precision: int
    recurrent: int = 0

    @property
    def visual(self) -> int:
        """Codes and tables of all visual banks."""
        return self.visual_codes + self.visual_tables

    @property
    def total(self) -> int:
        """All keys, values and states of the cache."""
        return self.visual + self.text + self.recurrent

    @property
    def visual_reduction(self) -> float:
        """Part of the full-precision visual bytes that is saved, 0 without visual tokens."""
        if not self.visual_full_precision:
            return 0.0
        return 1.0 - self.visual / self.visual_full_precision

    def _repr_html_(self) -> str | None:
        return table(self)


def cache_nbytes(cache: AnyCache) -> CacheBytes:
    """Counts the bytes of a cache's buffers, padding included (deleted arrays have shapes, too).

    All that grows with the tokens counts. Not counted are counters per sequence, tables and score
    maps, which all caches of a model share, and the attention that keys keep for codes made later
    (`Dense.keeps_attention`).

    Args:
        cache: of arrays, of shapes alone (`jax.eval_shape`), or traced.

    Returns:
        Bytes of visual codes, their tables, and text, of all layers and sequences.

    Raises:
        ValueError: no cache.
    """
    check_cache_type(cache, deleted=True)
    sizes = [dataclasses.astuple(_part_nbytes(part)) for part in cache.parts]
    total = CacheBytes(*map(sum, zip(*sizes, strict=True)))
    if isinstance(cache, LayeredCache):
        return dataclasses.replace(total, recurrent=nbytes(cache.recurrent))
    return total


def _part_nbytes(cache: KVCache) -> CacheBytes:
    tensors = [tensor for bank in cache.visual for tensor in (bank.key, bank.value)]
    codes = sum(nbytes(_codes(tensor)) for tensor in tensors)
    indices = [(bank.index, bank.position) for bank in cache.visual]
    orders = [bank.class_map for bank in cache.visual]
    itemsize, text = cache.text.dtype.itemsize, cache.text
    return CacheBytes(
        visual_codes=codes,
        visual_tables=sum(map(tensor_nbytes, tensors)) + nbytes((indices, orders)) - codes,
        text=text_nbytes(text),
        visual_full_precision=nbytes(indices)
        + sum(tensor.num_elements() for tensor in tensors) * itemsize,
    )


def text_nbytes(text: TextBank) -> int:
    """Bytes of a text bank, of all layers or of one, without its counter per sequence."""
    return nbytes((text.key, text.value, text.key_scale, text.value_scale, text.index))


def tensor_nbytes(tensor: QuantizedTensor) -> int:
    """Bytes of a bank's keys or values, without the attention that keys may keep."""
    inner = tensor.parts if isinstance(tensor, SplitTensor) else tensor
    return nbytes(tensor) - (nbytes(inner.attention) if isinstance(inner, DenseTensor) else 0)


def _codes(tensor: QuantizedTensor):
    if isinstance(tensor, SplitTensor):
        return _codes(tensor.parts)
    if isinstance(tensor, DenseTensor):
        return tensor.values
    # As stored: a family may keep its words in another layout than `decoding()` shows them in.
    return tensor.packed if hasattr(tensor, "packed") else tensor.decoding().packed  # type: ignore
