"""Functions of a cache of any kind: one `KVCache`, or several in a `LayeredCache`."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.head_groups import heads_at, join_heads, places_of, routes, take_heads
from vkq_jax.cache.kv_cache import KVCache, LayerCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.settings.layer_groups import Cells
from vkq_jax.structure import check_structure
from vkq_jax.validation import check_type, static_layer

__all__ = [
    "at_layer",
    "cells_of",
    "check_cache_type",
    "heads_of_layer",
    "map_groups",
    "map_parts",
    "map_recurrent",
]


@checked
def heads_of_layer(cache: AnyCache, layer: int) -> tuple[tuple[tuple[int, ...], LayerCache], ...]:
    """Views of one layer's heads: numbers of KV heads with equal settings, and their cache.

    One of all heads where the layer has one setting; none where it has a recurrent state.
    `attention_weights` and `decode_attention` take each view with the queries of its heads.

    Args:
        cache: of all layers.
        layer: its number in [0, L), not traced.

    Raises:
        ValueError: the cache has no such layer.
    """
    number = static_layer(layer, cache.num_layers)
    assert number is not None, "a plain integer"
    if isinstance(cache, KVCache):
        return ((tuple(range(cache.num_kv_heads)), cache.layer(number)),)
    return cache.views(number)


def check_cache_type(cache: Any, *, deleted: bool = False) -> None:
    """Raises ValueError for anything but a whole cache; its arrays may be `deleted` if so said."""
    kinds = (KVCache, LayeredCache)
    if not (deleted and isinstance(cache, kinds)):
        check_type("cache", cache, kinds, hint="Generation.cache, or empty_cache")
    check_structure("cache", cache, abstract=deleted)


def map_parts[C: KVCache | LayeredCache](cache: C, function: Callable[[KVCache], KVCache]) -> C:
    """The cache with `function` of each of its parts."""
    return map_groups(cache, lambda part, cells: function(part))


def map_recurrent[C: KVCache | LayeredCache](cache: C, function: Callable[[Array], Array]) -> C:
    """The cache with `function` of each array of its recurrent states, if it has any."""
    if isinstance(cache, KVCache) or cache.recurrent is None:
        return cache
    return dataclasses.replace(cache, recurrent=jax.tree.map(function, cache.recurrent))


def map_groups[C: KVCache | LayeredCache](
    cache: C, function: Callable[[KVCache, Cells], KVCache]
) -> C:
    """The cache with `function` of each of its parts and the part's layers and heads."""
    pairs = zip(cache.parts, cells_of(cache), strict=True)
    parts = tuple(function(part, cells) for part, cells in pairs)
    if isinstance(cache, KVCache):
        return parts[0]  # type: ignore[return-value]
    return dataclasses.replace(cache, parts=parts)


def cells_of(cache: AnyCache) -> tuple[Cells, ...]:
    """Layers and heads of each of a cache's parts."""
    return (Cells(tuple(range(cache.num_layers))),) if isinstance(cache, KVCache) else cache.cells


def at_layer[T](
    cache: AnyCache,
    layer: Int32[Array, ""] | int,
    query: Float[Array, "B T N H"],
    function: Callable[[KVCache, Any, Float[Array, "B T n H"]], T],
    *,
    axis: int = 1,
) -> T:
    """The results of `function(part, place, query)` for all heads of a layer, traced or not.

    Args:
        cache: of all layers.
        layer: its number.
        query: of all heads.
        function: is called for each group of heads of the layer, with the part of the cache that
            holds them, the layer's number there and the heads' own queries. It gives a pytree of
            arrays [B, n, ...], of the same shapes and dtypes for all groups, n apart.
        axis: of the n heads in these arrays.
    """
    if isinstance(cache, KVCache):
        return function(cache, layer, query)
    count = cache.num_kv_heads

    def joined(groups: tuple[int, ...], places: Mapping[int, int] | Array) -> T:
        found = []
        for group in groups:
            heads = heads_at(cache.cells[group], places[group])
            own = take_heads(query, heads, count, axis=2)
            found.append((heads, function(cache.parts[group], places[group], own)))
        trees = [tree for _, tree in found]
        return jax.tree.map(
            lambda *xs: join_heads([(h, x) for (h, _), x in zip(found, xs, strict=True)], axis),
            *trees,
        )

    if not isinstance(layer, Tracer):
        places = dict(places_of(cache.cells, operator.index(layer)))
        if not places:
            raise ValueError(f"layer: expected one that the cache holds keys of, got {layer}")
        return joined(tuple(places), places)
    way = routes(cache.cells)
    places = jnp.asarray(way.place)[layer]
    branches = [functools.partial(joined, groups) for groups in way.patterns]
    return jax.lax.switch(jnp.asarray(way.pattern)[layer], branches, places)
