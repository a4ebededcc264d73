"""Passes over a `LayeredCache`: one pass for each group of layers, which take turns."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vkq_jax import pass_checks as checks
from vkq_jax.array_types import Array, Bool, Float, Int32
from vkq_jax.decode_pass import Decode
from vkq_jax.layered import LayeredCache, place_of
from vkq_jax.prefill_pass import Prefill
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["LayeredDecode", "LayeredPrefill"]

type Layers = tuple[tuple[int, ...], ...]


@frozen_pytree
class _LayeredPass[P: (Prefill, Decode)]:
    """A pass of each group of layers.

    Attributes:
        parts: the passes of the groups, which have the same tokens.
        layers: see `LayeredCache`.
    """

    parts: tuple[P, ...]
    layers: Layers = static_field()

    @property
    def positions(self) -> Int32[Array, "B T *axes"]:
        """The positions by which RoPE turns queries and keys."""
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
        return LayeredCache(tuple(part.unfinished for part in self.parts), self.layers)

    def attend[Own: _LayeredPass](
        self: Own,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        **options: Any,
    ) -> tuple[Float[Array, "B T N H"], Own]:
        """One layer of the model, see `Prefill.attend` and `Decode.attend`."""
        number, place = place_of(self.unfinished, layer)
        if not isinstance(number, int):
            return self._attend_traced(number, place, query, key, value, **options)
        output, after = self.parts[number].attend(place, query, key, value, **options)
        parts = (after if n == number else part for n, part in enumerate(self.parts))
        return output, dataclasses.replace(self, parts=tuple(parts))

    def _attend_traced[Own: _LayeredPass](
        self: Own,
        number: Array,
        place: Array,
        query: Array,
        key: Array,
        value: Array,
        **options: Any,
    ) -> tuple[Array, Own]:
        """`attend` of the layer at a place of a group, both traced."""
        raise NotImplementedError

    def finish(self) -> LayeredCache:
        """The cache with this pass's tokens in it, see `Prefill.finish` and `Decode.finish`."""
        done = np.ones(sum(map(len, self.layers)), bool)
        for part, layers in zip(self.parts, self.layers, strict=True):
            if not isinstance(part.done, Tracer):
                done[list(layers)] = np.asarray(part.done)
        checks.check_all_done(done)
        return LayeredCache(tuple(part.finish() for part in self.parts), self.layers)


@frozen_pytree
class LayeredPrefill(_LayeredPass[Prefill]):
    """A `Prefill` of each group of layers. Attributes: see there, and `LayeredCache`."""

    def _attend_traced(
        self, number: Array, place: Array, query: Array, key: Array, value: Array, **options: Any
    ) -> tuple[Array, LayeredPrefill]:
        def branch(number: int):
            output, skipped, coded = self.parts[number].compute(place, query, key, value, **options)
            nothing = [
                jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), part.coded)
                for part in self.parts
            ]
            nothing[number] = jax.tree.map(
                lambda x, like: x.astype(like.dtype), coded, nothing[number]
            )
            return output, skipped, nothing

        # Nothing that a branch hands through: XLA would copy it. What other groups would write is
        # what they hold already.
        branches = [functools.partial(branch, n) for n in range(len(self.parts))]
        output, skipped, coded = jax.lax.switch(number, branches)
        after = []
        for n, part in enumerate(self.parts):
            own = number == n
            added = jnp.where(own, skipped, 0)
            after.append(part.written(place, None, key, value, coded[n], added, own=own))
        output = checks.spoil(output, self.parts[0].fits)
        return output, dataclasses.replace(self, parts=tuple(after))


@frozen_pytree
class LayeredDecode(_LayeredPass[Decode]):
    """A `Decode` of each group of layers. Attributes: see there, and `LayeredCache`."""

    def _attend_traced(
        self, number: Array, place: Array, query: Array, key: Array, value: Array, **options: Any
    ) -> tuple[Array, LayeredDecode]:
        parts = [
            part.written(place, None, key, value, own=number == n)
            for n, part in enumerate(self.parts)
        ]
        first = parts[0]

        def compute(part, place):
            one = dataclasses.replace(first, unfinished=part)
            return one.compute(place, query, **options)

        branches = [functools.partial(compute, part.unfinished) for part in parts]
        output, skipped = jax.lax.switch(number, branches, place)
        counted = [part.counted(jnp.where(number == n, skipped, 0)) for n, part in enumerate(parts)]
        output = checks.spoil(output, first.fits).astype(query.dtype)
        return output, dataclasses.replace(self, parts=tuple(counted))
