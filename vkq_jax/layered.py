"""A cache whose layers are coded in different ways: one `KVCache` for each group of layers.

Layers of equal settings stay stacked: a loop over layers compiles each group once, whatever the
number and the places of its layers, and picks the group that its layer is in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Int32
from vkq_jax.cache import FixedParts, KVCache, LayerCache, VisualBank
from vkq_jax.layer_settings import LayerGroups
from vkq_jax.pass_checks import static_layer
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = [
    "AnyCache",
    "LayeredCache",
    "at_layer",
    "map_groups",
    "map_parts",
    "place_of",
    "split_layers",
    "take_layers",
]


@frozen_pytree
class LayeredCache:
    """The cache of a model whose layers are coded in different ways.

    Attributes:
        parts: caches of the groups, each stacked over the layers of its group. Lengths, positions
            and numbers of tokens are the same in all; each has its own layers' text.
        layers: numbers of each group's layers in the model, ascending.
    """

    parts: tuple[KVCache, ...]
    layers: tuple[tuple[int, ...], ...] = static_field()

    @property
    def quant(self) -> LayerGroups:
        """Settings of the groups."""
        quants = (part.quant for part in self.parts)
        return LayerGroups(tuple(zip(self.layers, quants, strict=True)))

    @property
    def num_layers(self) -> int:
        """L, layers of all groups."""
        return sum(map(len, self.layers))

    @property
    def cache_length(self) -> int:
        """Text tokens that a sequence can hold."""
        return self.parts[0].cache_length

    @property
    def text_length(self) -> Int32[Array, "B"]:
        """Text tokens of each sequence."""
        return self.parts[0].text_length

    @property
    def visual_lengths(self) -> tuple[Int32[Array, "_"], ...]:
        """Visual tokens of each sequence in each bank."""
        return self.parts[0].visual_lengths

    @property
    def position(self) -> Int32[Array, "B"]:
        """RoPE position of the next token of each sequence."""
        return self.parts[0].position

    @property
    def num_tokens(self) -> Int32[Array, "B"]:
        """Tokens of each sequence, visual and text."""
        return self.parts[0].num_tokens

    @property
    def keeps_indices(self) -> bool:
        """Whether the banks know the numbers of their tokens in the sequence."""
        return self.parts[0].keeps_indices

    @property
    def calibration_skipped(self) -> Int32[Array, "B"]:
        """How often the guard left a head's scores uncalibrated, over all layers."""
        return functools.reduce(jnp.add, (part.calibration_skipped for part in self.parts))

    def fixed(self) -> tuple[FixedParts, ...]:
        """The parts that decoding leaves as they are."""
        return tuple(part.fixed() for part in self.parts)

    def with_fixed(self, fixed: tuple[FixedParts, ...]) -> LayeredCache:
        """The same cache with other parts of those that decoding leaves as they are."""
        parts = (part.with_fixed(f) for part, f in zip(self.parts, fixed, strict=True))
        return dataclasses.replace(self, parts=tuple(parts))

    def without_fixed(self) -> LayeredCache:
        """The same cache without the parts that decoding leaves as they are."""
        return map_parts(self, KVCache.without_fixed)

    def layer(self, index: Any) -> LayerCache:
        """The view of one layer.

        Raises:
            ValueError: `index` is traced, or out of range: layers of unlike groups have unlike
                types. `at_layer` runs a function on a traced one.
        """
        number = static_layer(index, self.num_layers)
        if number is None:
            raise ValueError("layer: expected a plain integer for unlike layers, got a tracer")
        part, place = place_of(self, number)
        return self.parts[part].layer(place)


type AnyCache = KVCache | LayeredCache


def map_parts[C: KVCache | LayeredCache](cache: C, function: Callable[[KVCache], KVCache]) -> C:
    """The cache with `function` of each of its parts."""
    return map_groups(cache, lambda part, layers: function(part))


def map_groups[C: KVCache | LayeredCache](
    cache: C, function: Callable[[KVCache, tuple[int, ...]], KVCache]
) -> C:
    """The cache with `function` of each of its parts and the numbers of the part's layers."""
    if isinstance(cache, KVCache):
        return function(cache, tuple(range(cache.num_layers)))  # type: ignore[return-value]
    parts = (function(part, layers) for part, layers in zip(cache.parts, cache.layers, strict=True))
    return dataclasses.replace(cache, parts=tuple(parts))


def take_layers[T](stacked: T, layers: tuple[int, ...]) -> T:
    """The given layers of a pytree of arrays [L, ...]; itself where those are all."""
    leaves = jax.tree.leaves(stacked)
    if not leaves or layers == tuple(range(leaves[0].shape[0])):
        return stacked
    return jax.tree.map(lambda x: x[jnp.asarray(layers)], stacked)


def place_of(cache: LayeredCache, layer: Any) -> tuple[Any, Any]:
    """The part that a layer is in, and its number there; traced for a traced layer."""
    places = {
        number: (part, place)
        for part, layers in enumerate(cache.layers)
        for place, number in enumerate(layers)
    }
    if static_layer(layer, len(places)) is not None:
        return places[int(layer)]
    table = jnp.asarray([places[number] for number in range(len(places))], jnp.int32)
    return table[layer, 0], table[layer, 1]


def at_layer[T](cache: AnyCache, layer: Any, function: Callable[[KVCache, Any], T]) -> T:
    """`function(part, place)` of the part that holds a layer, and the layer's place there.

    For a traced layer the function is traced once for each part, and gives results of the same
    shapes and dtypes.
    """
    if isinstance(cache, KVCache):
        return function(cache, layer)
    number, place = place_of(cache, layer)
    if isinstance(number, int):
        return function(cache.parts[number], place)
    return jax.lax.switch(
        number, [functools.partial(function, part) for part in cache.parts], place
    )


def split_layers(cache: KVCache, groups: LayerGroups) -> LayeredCache:
    """A cache of one setting with its layers in groups, each still coded as it was."""

    def part(layers: tuple[int, ...]) -> KVCache:
        def bank(one: VisualBank) -> VisualBank:
            key, value, class_map = take_layers((one.key, one.value, one.class_map), layers)
            return dataclasses.replace(one, key=key, value=value, class_map=class_map)

        key, value = take_layers((cache.text.key, cache.text.value), layers)
        bias = cache.key_bias
        return dataclasses.replace(
            cache,
            visual=tuple(map(bank, cache.visual)),
            text=dataclasses.replace(cache.text, key=key, value=value),
            score_map=take_layers(cache.score_map, layers),
            tables=take_layers(cache.tables, layers),
            key_bias=None if bias is None else bias.of_layers(layers),
        )

    layers = tuple(layers for layers, _ in groups.groups)
    return LayeredCache(tuple(map(part, layers)), layers)
