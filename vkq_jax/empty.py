"""An empty cache, from sizes and the name of a preset."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from vkq_jax.cache import KVCache
from vkq_jax.layer_settings import AnyQuant, LayerGroups, PerLayer
from vkq_jax.layered import AnyCache, LayeredCache
from vkq_jax.presets import resolve

__all__ = ["empty_cache"]


def empty_cache(
    *,
    num_layers: int,
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    cache_length: int,
    quant: AnyQuant = "vkq-1bit",
    dtype: DTypeLike = jnp.bfloat16,
    keep_indices: bool = False,
) -> AnyCache:
    """A cache without tokens, for `begin_prefill`.

    Args:
        num_layers, num_kv_heads, head_dim: L, K and H of the model.
        batch: sequences.
        cache_length: text tokens that a sequence can hold, prompts and answers of all turns;
            `grow` makes room for more. Visual tokens do not count.
        quant: how visual tokens are coded: the name of a preset, settings, or those of `per_layer`
            and `per_head`.
        dtype: of text keys and values, and of visual ones that are not coded.
        keep_indices: keep the number of each token, 4 bytes, which a sliding window needs.

    Raises:
        ValueError: a size below 1, an unknown preset, or settings of layers or heads that are
            not there.
    """
    sizes: dict[str, Any] = {
        "num_layers": num_layers,
        "batch": batch,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "cache_length": cache_length,
    }
    if isinstance(quant, PerLayer | LayerGroups):
        quant = quant.settle(num_layers, num_kv_heads)
    if not isinstance(quant, LayerGroups):
        return KVCache.init(**sizes, quant=resolve(quant), dtype=dtype, keep_indices=keep_indices)
    parts = []
    for cells, own in quant.groups:
        own_sizes = sizes | {"num_layers": len(cells.layers)}
        if cells.heads is not None:
            own_sizes["num_kv_heads"] = len(cells.heads[0])
        parts.append(KVCache.init(**own_sizes, quant=own, dtype=dtype, keep_indices=keep_indices))
    return LayeredCache(tuple(parts), tuple(cells for cells, _ in quant.groups))
