"""A cache whose layers or heads are coded in different ways: one `KVCache` for each group of them.

Layers of equal settings stay stacked: a loop over layers compiles each group once, whatever the
number and the places of its layers, and picks the group that its layer is in, or the groups that
its heads are in.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.head_groups import (
    places_of,
    take_bias,
    take_cells,
    take_score_map,
)
from vkq_jax.cache.kv_cache import FixedParts, KVCache, LayerCache
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.cache.visual_bank import VisualBank
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.layer_groups import Cells, LayerGroups, Quant, num_heads
from vkq_jax.validation import static_layer

__all__ = [
    "AnyCache",
    "LayeredCache",
    "split_layers",
]


@frozen_pytree
class LayeredCache:
    """The cache of a model whose layers or heads are coded in different ways, or of two kinds.

    Layers of two kinds may be cross-attention and others, have a state or keys, or differ in the
    number and the channels of their heads (`sizes_differ`). Each kind has groups of its own.

    Attributes:
        parts: caches of the groups, each stacked over the layers of its group. Lengths, positions
            and numbers of tokens are the same in all; each has its own layers' and heads' text.
        cells: layers of the model that each group has, and which heads of them.
        cross: all groups but the first are cross-attention layers. Their parts hold visual banks
            and no text (a text bank of one slot that stays empty), the first one text alone; its
            settings, which code nothing, are those of the second.
        recurrent: states of the layers that have neither text nor visual tokens.
        given: the settings of all layers of a model with several kinds, those without codes too,
            where they differ.
    """

    parts: tuple[KVCache, ...]
    cells: tuple[Cells, ...] = static_field()
    cross: bool = static_field(default=False)
    recurrent: RecurrentState | None = None
    given: LayerGroups | None = static_field(default=None)

    def check_shapes(self) -> None:
        """Raises ValueError for parts of several caches, by shapes alone."""
        if not self.parts or len(self.parts) != len(self.cells):
            raise ValueError(
                f"cells: expected one entry for each part, got {len(self.cells)} for "
                f"{len(self.parts)} parts"
            )
        layers = [len(cells.layers) for cells in self.cells]
        held = [part.num_layers for part in self.parts]
        if layers != held:
            raise ValueError(f"cells: expected those of {show(held)} layers, got {show(layers)}")
        batches = [part.position.shape[0] for part in self.parts]
        if len(set(batches)) > 1:
            raise ValueError(f"parts: expected one number of sequences, got {show(batches)}")
        if self.recurrent is None:
            return
        expected = (len(self.recurrent.layers), batches[0])
        if any(x.shape[:2] != expected for x in self.recurrent.values):
            raise ValueError(
                f"recurrent: expected arrays {[*expected, '...']}, got "
                f"{show([list(x.shape) for x in self.recurrent.values])}"
            )

    @property
    def text_parts(self) -> tuple[KVCache, ...]:
        """The parts that hold text: all but those of cross-attention layers."""
        return self.parts[:1] if self.cross else self.parts

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Numbers of the cross-attention layers."""
        groups = self.cells[1:] if self.cross else ()
        return tuple(sorted({layer for cells in groups for layer in cells.layers}))

    @property
    def cross_cache(self) -> LayeredCache:
        """The parts of cross-attention layers."""
        assert self.cross
        return LayeredCache(self.parts[1:], self.cells[1:])

    @property
    def quant(self) -> Quant:
        """Settings of the groups; plain ones where several kinds of layers have the same."""
        if self.given is not None:
            return self.given
        if self.cross or self.recurrent is not None or self.sizes_differ:
            return self.parts[0].quant
        quants = (part.quant for part in self.parts)
        return LayerGroups(tuple(zip(self.cells, quants, strict=True)))

    @property
    def sizes_differ(self) -> bool:
        """Whether layers differ in the number or the channels of their heads.

        Each part then has layers of one size.
        """
        return len(set(self.sizes)) > 1

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """K and H of the layers of each part; K counts all heads of a layer."""
        return tuple(
            (
                part.num_kv_heads if cells.heads is None else self.num_kv_heads,
                part.text.key.shape[4],
            )
            for part, cells in zip(self.parts, self.cells, strict=True)
        )

    @property
    def num_layers(self) -> int:
        """L, layers of all groups, and those with a recurrent state."""
        recurrent = 0 if self.recurrent is None else len(self.recurrent.layers)
        return len({layer for cells in self.cells for layer in cells.layers}) + recurrent

    @property
    def num_kv_heads(self) -> int:
        """K, KV heads of each layer; of those of the first part where layers differ in it."""
        return num_heads(self.cells) or self.parts[0].num_kv_heads

    @property
    def cache_length(self) -> int:
        """Text tokens that a sequence can hold."""
        return self.parts[0].cache_length

    @property
    def text_bits(self) -> TextBits:
        """Bits of a text key's or value's channel; None: they are in the model's dtype."""
        return self.parts[0].text_bits

    @property
    def text_length(self) -> Int32[Array, "B"]:
        """Text tokens of each sequence."""
        return self.parts[0].text_length

    @property
    def visual_lengths(self) -> tuple[Int32[Array, "_"], ...]:
        """Visual tokens of each sequence in each bank."""
        return self.parts[-1].visual_lengths

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
        return dataclasses.replace(self, parts=tuple(map(KVCache.without_fixed, self.parts)))

    def parts_of(self, key: Float[Array, "B T K H"]) -> tuple[int, ...]:
        """Numbers of the parts that hold text of layers with keys of these sizes.

        All of them where all layers are alike.

        Raises:
            ValueError: layers differ, and none has keys of these sizes.
        """
        if not self.sizes_differ:
            return tuple(range(len(self.text_parts)))
        found = tuple(n for n, own in enumerate(self.sizes) if own == key.shape[2:])
        if not found:
            known = sorted(set(self.sizes))
            raise ValueError(
                f"key: expected [B, T, K, H] with K and H of {show(known)}, got {show(key)}"
            )
        return found

    def of_sizes(self, key: Float[Array, "B T K H"]) -> LayeredCache:
        """The parts that `parts_of` names; layers keep their numbers."""
        numbers = self.parts_of(key)
        return LayeredCache(
            tuple(self.parts[n] for n in numbers), tuple(self.cells[n] for n in numbers)
        )

    def layer(self, index: Any) -> LayerCache:
        """The view of one layer.

        Raises:
            ValueError: `index` is traced, or out of range: layers of different groups have
                different types. `at_layer` runs a function on a traced one.
            NotImplementedError: heads of the layer have settings of their own: `heads_of_layer`
                gives a view for each group of them.
        """
        number = static_layer(index, self.num_layers)
        if number is None:
            raise ValueError("layer: expected a plain integer for layers that differ, got a tracer")
        views = self.views(number)
        if not views:
            raise ValueError(f"layer: expected a layer with keys, layer {number} has a state")
        (_, view), *others = views
        if others:
            raise NotImplementedError(
                f"layer: heads of layer {number} have settings of their own, which one LayerCache "
                "cannot hold: vkq_jax.heads_of_layer(cache, layer) gives one for each group of them"
            )
        return view

    def views(self, number: int) -> tuple[tuple[tuple[int, ...], LayerCache], ...]:
        """Views of a layer's heads, see `vkq_jax.heads_of_layer`; none where it has a state."""
        views = []
        for part, place in places_of(self.cells, number):
            heads = self.cells[part].heads
            every = range(self.parts[part].num_kv_heads)
            own = tuple(every) if heads is None else heads[place]
            views.append((own, self.parts[part].layer(place)))
        return tuple(views)


type AnyCache = KVCache | LayeredCache


def split_layers(cache: KVCache, groups: LayerGroups) -> LayeredCache:
    """A cache of one setting with its layers and heads in groups, each still coded as it was."""

    def part(cells: Cells) -> KVCache:
        def bank(one: VisualBank) -> VisualBank:
            key, value, class_map = take_cells((one.key, one.value, one.class_map), cells, axis=2)
            return dataclasses.replace(one, key=key, value=value, class_map=class_map)

        static, count = cache.score_map, cache.num_kv_heads
        return dataclasses.replace(
            cache,
            visual=tuple(map(bank, cache.visual)),
            text=cache.text.map_arrays(lambda x: take_cells(x, cells, axis=2)),
            score_map=None if static is None else take_score_map(static, cells, count, cache.quant),
            tables=take_cells(cache.tables, cells),
            key_bias=take_bias(cache.key_bias, cells),
        )

    cells = tuple(cells for cells, _ in groups.groups)
    return LayeredCache(tuple(map(part, cells)), cells)
