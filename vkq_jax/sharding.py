"""Which axes of a cache may be split over devices: sequences and heads, nothing else.

Attention over a cache and the coding of its banks mix neither sequences nor KV heads, so that both
run on each device's own part without a word from another.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import PartitionSpec
from jax.tree_util import GetAttrKey, KeyPath, SequenceKey

from vkq_jax.cache import KVCache
from vkq_jax.decode_pass import Decode
from vkq_jax.prefill_pass import Prefill
from vkq_jax.sharing import is_shared

__all__ = ["CacheAxes", "cache_specs", "pass_specs"]

type MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class CacheAxes:
    """Axes of a mesh that a cache is split over, as `PartitionSpec` takes them.

    Attributes:
        sequences: that banks are split over by sequence, B. kv_heads: by KV head, K.
        heads: that queries are split over by head, N.
        counts: that lengths, positions and numbers of tokens are split over, B.
    """

    sequences: MeshAxes = None
    kv_heads: MeshAxes = None
    heads: MeshAxes = None
    counts: MeshAxes = None

    @property
    def of_layers(self) -> PartitionSpec:
        """The spec of arrays of all layers of a bank [L, B, K, ...]."""
        return PartitionSpec(None, self.sequences, self.kv_heads)


def cache_specs(cache: KVCache, axes: CacheAxes) -> KVCache:
    """The cache with a `PartitionSpec` in the place of each array."""
    shared = _shared_banks(cache)
    return jax.tree_util.tree_map_with_path(lambda path, _: _spec(path, axes, shared), cache)


def pass_specs[Pass: (Prefill, Decode)](passing: Pass, axes: CacheAxes) -> Pass:
    """A pass between two layers with a `PartitionSpec` in the place of each array."""
    shared = _shared_banks(passing.unfinished)

    def spec(path: KeyPath, _: object) -> PartitionSpec:
        match _names(path)[0]:
            case "unfinished":
                return _spec(path[1:], axes, shared)
            case "coded":
                return axes.of_layers
            case "done":
                return PartitionSpec()
        return PartitionSpec(axes.counts)

    return jax.tree_util.tree_map_with_path(spec, passing)


def _shared_banks(cache: KVCache) -> set[int]:
    batch = cache.position.shape[0]
    return {number for number, bank in enumerate(cache.visual) if is_shared(bank, batch)}


def _names(path: KeyPath) -> list[str]:
    return [key.name for key in path if isinstance(key, GetAttrKey)]


def _spec(path: KeyPath, axes: CacheAxes, shared: set[int]) -> PartitionSpec:
    """The spec of the array at a path of a cache; `shared` are numbers of visual banks."""
    if len(path) > 1 and isinstance(path[1], SequenceKey) and path[1].idx in shared:
        axes = dataclasses.replace(axes, sequences=None, counts=None)
    match _names(path):
        case ["visual" | "text", "key" | "value" | "class_map", *_]:
            return axes.of_layers
        case ["tables", *_] | ["key_bias", "bias"]:
            return PartitionSpec(None, axes.kv_heads)
        case ["score_map", *_]:
            return PartitionSpec(None, axes.heads)
        case ["key_bias", *_]:
            return PartitionSpec()
    return PartitionSpec(axes.counts)
