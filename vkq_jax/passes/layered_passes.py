"""Passes over a `LayeredCache`: one for each group of layers and heads.

Groups of layers take turns; the groups that a layer's heads are in attend beside each other.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax.arguments import checked
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.cache.head_groups import heads_at, join_heads, place_in, places_of, routes, take_heads
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import LayeredCache
from vkq_jax.cache.recurrent import RecurrentState
from vkq_jax.passes import pass_checks as checks
from vkq_jax.passes.cross_pass import CrossPass
from vkq_jax.passes.decode_pass import Decode
from vkq_jax.passes.layer_step import LayerStep, Made
from vkq_jax.passes.prefill_pass import Prefill
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.layer_groups import Cells, LayerGroups
from vkq_jax.validation import static_layer

__all__ = ["LayeredDecode", "LayeredPrefill", "attend_in_groups"]


@frozen_pytree
class _LayeredPass[P: (Prefill, Decode)]:
    """A pass of each group of layers and heads.

    Attributes:
        parts: the passes of the groups that hold text, which have the same tokens.
        cross: the passes of the groups of cross-attention layers, if there are any.
        recurrent: states of layers that have one, if there are any.
        moved: which of them have a new one.
        cells, given: see `LayeredCache`.
    """

    parts: tuple[P, ...]
    cross: tuple[CrossPass, ...] = ()
    recurrent: RecurrentState | None = None
    moved: Bool[Array, "l"] | Bool[np.ndarray, "l"] | None = None
    cells: tuple[Cells, ...] = static_field(kw_only=True)
    given: LayerGroups | None = static_field(kw_only=True)

    @property
    def positions(self) -> Int32[Array, "B T *axes"]:
        """The positions of RoPE of queries and keys."""
        return self.parts[0].positions

    @property
    def order(self) -> Int32[Array, "B T"]:
        """Number of each token in its whole sequence."""
        return self.parts[0].order

    @property
    def valid(self) -> Bool[Array, "B T"]:
        """Tokens that are no padding."""
        return self.parts[0].valid

    @property
    def unfinished(self) -> LayeredCache:
        """The cache with the text of the layers so far."""
        return self._cache(
            tuple(part.unfinished for part in self.parts),
            tuple(own.unfinished for own in self.cross),
        )

    @checked
    def attend[Own: _LayeredPass](
        self: Own,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        **options: Any,
    ) -> tuple[Float[Array, "B T N H"], Own]:
        """One layer of the model, see `Prefill.attend` and `Decode.attend`."""
        whole, parts = self.unfinished, list(self.parts)
        numbers = whole.parts_of(key)
        count, _ = whole.sizes[numbers[0]]
        tokens, first = self.valid.shape[1], parts[numbers[0]].unfinished
        checks.check_heads(query, key, value, first, tokens, count)
        static_layer(layer, whole.num_layers)
        cells, own = zip(*((self.cells[n], parts[n]) for n in numbers), strict=True)
        output, after = attend_in_groups(own, cells, count, layer, (query, key, value), options)
        for number, new in zip(numbers, after, strict=True):
            parts[number] = new
        if len(after) > 1 and isinstance(layer, Tracer):
            output = checks.spoil(output, parts[0].fits).astype(query.dtype)
        return output, dataclasses.replace(self, parts=tuple(parts))

    @checked
    def attend_cross[Own: _LayeredPass](
        self: Own,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B V K H"] | None = None,
        value: Float[Array, "B V K H"] | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "B T N H"], Own]:
        """One cross-attention layer of the model, by its number in it, see `CrossPass.attend`."""
        if not self.cross:
            raise ValueError("attend_cross: the cache has no cross-attention layers")
        count, cells = self.unfinished.num_kv_heads, self.cells[1:]
        output, cross = attend_in_groups(
            self.cross, cells, count, layer, (query, key, value), options
        )
        return output, dataclasses.replace(self, cross=cross)

    def state(self, layer: Int32[Array, ""] | int) -> tuple[Float[Array, "B ..."], ...]:
        """The recurrent state of a layer before this pass's tokens, see `RecurrentState`."""
        return self._states().of_layer(layer)

    def with_state[Own: _LayeredPass](
        self: Own, layer: Int32[Array, ""] | int, values: tuple[Float[Array, "B ..."], ...]
    ) -> Own:
        """The pass with a layer's state after the tokens; sequences without a token keep theirs.

        `valid` tells padding, which must leave the state as it is.
        """
        states = self._states()
        place = place_in(Cells(states.layers), layer)
        number = static_layer(place, len(states.layers))
        moved = checks.mark_done(self.moved, place, number)  # type: ignore[arg-type]
        return dataclasses.replace(self, recurrent=states.with_layer(layer, values), moved=moved)

    def _states(self) -> RecurrentState:
        if self.recurrent is None:
            raise ValueError("state: the cache has no layers with a recurrent state")
        return self.recurrent

    def finish(self) -> LayeredCache:
        """The cache with this pass's tokens in it, see `Prefill.finish` and `Decode.finish`."""
        done = np.ones(self.unfinished.num_layers, bool)
        for part, cells in zip(self.parts, self.cells, strict=False):
            if not isinstance(part.done, Tracer):
                done[list(cells.layers)] &= np.asarray(part.done)
        if self.recurrent is not None and not isinstance(self.moved, Tracer):
            done[list(self.recurrent.layers)] = np.asarray(self.moved)
        checks.check_all_done(done)
        parts = tuple(part.finish() for part in self.parts)
        cross = tuple(own.finish(parts[0].position, self.valid) for own in self.cross)
        return self._cache(parts, cross)

    def _cache(self, parts: tuple[KVCache, ...], cross: tuple[KVCache, ...]) -> LayeredCache:
        return LayeredCache(
            parts + cross,
            self.cells,
            cross=bool(cross),
            recurrent=self.recurrent,
            given=self.given,
        )


@frozen_pytree
class LayeredPrefill(_LayeredPass[Prefill]):
    """A `Prefill` of each group of layers and heads. Attributes: see there, and `LayeredCache`."""


@frozen_pytree
class LayeredDecode(_LayeredPass[Decode]):
    """A `Decode` of each group of layers and heads. Attributes: see there, and `LayeredCache`."""


type OnePass = Prefill | Decode | CrossPass


def attend_in_groups[P: OnePass](
    parts: tuple[P, ...],
    cells: tuple[Cells, ...],
    num_kv_heads: int,
    layer: Int32[Array, ""] | int,
    arrays: tuple[Array, Array | None, Array | None],
    options: dict[str, Any],
) -> tuple[Array, tuple[P, ...]]:
    """One layer of those that are in these groups, and the passes of all groups after it."""
    query, key, value = arrays

    def own_heads(group: int, place: Any, *arrays: Array | None) -> tuple[Any, list[Any]]:
        heads = heads_at(cells[group], place)
        return heads, [
            x if x is None else take_heads(x, heads, num_kv_heads, axis=2) for x in arrays
        ]

    if isinstance(layer, Tracer) and len(parts) > 1:
        return _attend_traced(parts, cells, layer, arrays, own_heads, options)
    if len(parts) == 1:
        groups = ((0, place_in(cells[0], layer)),)
    else:
        groups = places_of(cells, operator.index(layer))  # type: ignore[arg-type]
    if not groups:
        raise ValueError(f"layer: expected one of those that attend here, got {layer}")
    outputs: list[Any] = []
    after: list[Any] = list(parts)
    for group, place in groups:
        heads, own = own_heads(group, place, query, key, value)
        output, after[group] = parts[group].attend(place, *own, **options)
        outputs.append((heads, output))
    return join_heads(outputs, axis=2), tuple(after)


def _attend_traced[P: OnePass](
    parts: tuple[P, ...],
    cells: tuple[Cells, ...],
    layer: Array,
    arrays: tuple[Array, Array | None, Array | None],
    own_heads: Callable[..., tuple[Any, list[Any]]],
    options: dict[str, Any],
) -> tuple[Array, tuple[P, ...]]:
    """`attend_in_groups` of a traced layer."""
    query, *key_value = arrays
    way = routes(cells)
    places, member = jnp.asarray(way.place)[layer], jnp.asarray(way.member)[layer]
    steps, before = [], []
    for group, part in enumerate(parts):
        _, text = own_heads(group, places[group], *key_value)
        steps.append(LayerStep(places[group], None, *text, own=member[group]))
        before.append(part.before(steps[group]))

    def branch(groups: tuple[int, ...]) -> tuple[Array, list[Made]]:
        outputs, made = [], [part.nothing_made() for part in before]
        for group in groups:
            heads, (own,) = own_heads(group, places[group], query)
            output, new = before[group].compute(steps[group], own, **options)
            made[group] = jax.tree.map(lambda x, y: x.astype(y.dtype), new, made[group])
            outputs.append((heads, output))
        return join_heads(outputs, axis=2), made

    # Branches return no array that they only pass on: XLA would copy it. Other groups write
    # again what they hold.
    branches = [functools.partial(branch, groups) for groups in way.patterns]
    output, made = jax.lax.switch(jnp.asarray(way.pattern)[layer], branches)
    after = (part.after(*own) for part, *own in zip(before, steps, made, strict=True))
    return output.astype(query.dtype), tuple(after)
