"""The axes of a cache that may be split over devices: sequences, heads, banks along the sequence.

Attention over a cache and the coding of its banks mix neither sequences nor KV heads, so that both
run on each device's own part without a word from another. Devices that hold parts of the same
sequences and heads (see `vkq_jax.sharding.bank_parts`) merge what each of them attends to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
from jax.tree_util import GetAttrKey, KeyPath, SequenceKey

from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.cache.sharing import is_shared
from vkq_jax.passes.cross_pass import CrossPass
from vkq_jax.passes.decode_pass import Decode
from vkq_jax.passes.layered_passes import LayeredDecode, LayeredPrefill
from vkq_jax.passes.prefill_pass import Prefill

__all__ = ["CacheAxes", "cache_specs", "pass_specs"]

type MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class CacheAxes:
    """Axes of a mesh that a cache is split over, as `PartitionSpec` takes them.

    Attributes:
        sequences: that banks are split over by sequence, B.
        kv_heads: by KV head, K.
        heads: that queries are split over by head, N.
        counts: that lengths, positions and numbers of tokens are split over, B.
        parts: that banks are split over along the sequence.
        num_parts: devices along it.
        states: that recurrent states are split over by head.
    """

    sequences: MeshAxes = None
    kv_heads: MeshAxes = None
    heads: MeshAxes = None
    counts: MeshAxes = None
    parts: MeshAxes = None
    num_parts: int = 1
    states: MeshAxes = None

    @property
    def of_layers(self) -> PartitionSpec:
        """The spec of arrays of all layers of a bank [L, B, K, ...]."""
        return PartitionSpec(None, self.sequences, self.kv_heads)

    @property
    def of_tables(self) -> PartitionSpec:
        """The spec of offline tables and score maps of all layers [L, heads, ...]."""
        return PartitionSpec(None, self.kv_heads)

    @property
    def of_parts(self) -> PartitionSpec:
        """The spec of arrays of all layers of a bank in parts [L, B, K, P, ...]."""
        return PartitionSpec(None, self.sequences, self.kv_heads, self.parts)

    @property
    def of_states(self) -> PartitionSpec:
        """The spec of recurrent states [L, B, heads, ...]."""
        return PartitionSpec(None, self.counts, self.states)

    def splits_text(self, cache_length: int) -> bool:
        """Whether a text bank of so many slots is in parts; else each device has all of it."""
        return self.parts is not None and cache_length % self.num_parts == 0


def cache_specs[C: AnyCache](cache: C, axes: CacheAxes) -> C:
    """The cache with a `PartitionSpec` in the place of each array."""
    if isinstance(cache, LayeredCache):
        return dataclasses.replace(
            cache,
            parts=tuple(cache_specs(part, axes) for part in cache.parts),
            recurrent=jax.tree.map(lambda _: axes.of_states, cache.recurrent),
        )
    spec = _spec_of(cache, axes)
    return jax.tree_util.tree_map_with_path(lambda path, _: spec(path), cache)


def pass_specs[Pass: Prefill | Decode | CrossPass | LayeredPrefill | LayeredDecode](
    passing: Pass, axes: CacheAxes
) -> Pass:
    """A pass between two layers with a `PartitionSpec` in the place of each array.

    A model with several kinds of layers has a pass of one kind here: cross-attention layers and
    recurrent states are left out.
    """
    if isinstance(passing, LayeredPrefill | LayeredDecode):
        assert not passing.cross
        assert passing.moved is None
        parts = tuple(pass_specs(part, axes) for part in passing.parts)
        return dataclasses.replace(passing, parts=parts)
    spec_of_cache = _spec_of(passing.unfinished, axes)

    def spec(path: KeyPath, _: object) -> PartitionSpec:
        match _names(path):
            case ["unfinished", *_]:
                return spec_of_cache(path[1:])
            case ["coded", "parts", *_]:
                return axes.of_parts
            case ["coded", *_]:
                return axes.of_layers
            case ["done"]:
                return PartitionSpec()
        return PartitionSpec(axes.counts)

    return jax.tree_util.tree_map_with_path(spec, passing)


def _spec_of(cache: KVCache, axes: CacheAxes) -> Callable[[KeyPath], PartitionSpec]:
    """The spec of the array at a path of the cache."""
    batch = cache.position.shape[0]
    shared = {number for number, bank in enumerate(cache.visual) if is_shared(bank, batch)}
    text = axes.of_parts if axes.splits_text(cache.cache_length) else axes.of_layers

    def spec(path: KeyPath) -> PartitionSpec:
        own = axes
        if len(path) > 1 and isinstance(path[1], SequenceKey) and path[1].idx in shared:
            own = dataclasses.replace(axes, sequences=None, counts=None)
        match _names(path):
            case ["visual", "key" | "value", "parts", *_]:
                return own.of_parts
            case ["visual", "key" | "value" | "class_map", *_]:
                return own.of_layers
            case ["text", "key" | "value" | "key_scale" | "value_scale"]:
                return text
            case ["tables" | "score_map", *_] | ["key_bias", "bias"]:
                return axes.of_tables
            case ["key_bias", *_]:
                return PartitionSpec()
        return PartitionSpec(own.counts)

    return spec


def _names(path: KeyPath) -> list[str]:
    return [key.name for key in path if isinstance(key, GetAttrKey)]
