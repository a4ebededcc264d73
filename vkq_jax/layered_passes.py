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
from vkq_jax.layered import LayeredCache, at_layer, place_of
from vkq_jax.prefill_pass import Prefill
from vkq_jax.pytree import frozen_pytree, static_field

__all__ = ["LayeredDecode", "LayeredPrefill"]

type Layers = tuple[tuple[int, ...], ...]


@frozen_pytree
class LayeredPrefill:
    """A `Prefill` of each group of layers. Attributes: see there, and `LayeredCache`."""

    parts: tuple[Prefill, ...]
    layers: Layers = static_field()

    @property
    def positions(self) -> Int32[Array, "B T *axes"]:
        """What RoPE turns queries and keys by."""
        return self.parts[0].positions

    @property
    def order(self) -> Int32[Array, "B T"]:
        """Number of each token in its whole sequence."""
        return self.parts[0].order

    @property
    def unfinished(self) -> LayeredCache:
        """The cache with the text of the layers so far."""
        return LayeredCache(tuple(part.unfinished for part in self.parts), self.layers)

    def attend(
        self,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        **options: Any,
    ) -> tuple[Float[Array, "B T N H"], LayeredPrefill]:
        """One layer of the model, see `Prefill.attend`."""
        number, place = place_of(self.unfinished, layer)
        if isinstance(number, int):
            output, after = self.parts[number].attend(place, query, key, value, **options)
            return output, _replaced(self, number, after)

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

    def finish(self) -> LayeredCache:
        """The cache with this prompt in it, see `Prefill.finish`."""
        _check_all_done(self)
        return LayeredCache(tuple(part.finish() for part in self.parts), self.layers)


@frozen_pytree
class LayeredDecode:
    """A `Decode` of each group of layers. Attributes: see there, and `LayeredCache`."""

    parts: tuple[Decode, ...]
    layers: Layers = static_field()

    @property
    def positions(self) -> Int32[Array, "B T"]:
        """What RoPE turns queries and keys by."""
        return self.parts[0].positions

    @property
    def order(self) -> Int32[Array, "B T"]:
        """Number of each token in its whole sequence."""
        return self.parts[0].order

    @property
    def valid(self) -> Bool[Array, "B T"]:
        """Tokens that are written."""
        return self.parts[0].valid

    @property
    def unfinished(self) -> LayeredCache:
        """The cache with the new text of the layers so far."""
        return LayeredCache(tuple(part.unfinished for part in self.parts), self.layers)

    def attend(
        self,
        layer: Int32[Array, ""] | int,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        **options: Any,
    ) -> tuple[Float[Array, "B T N H"], LayeredDecode]:
        """One layer of the model, see `Decode.attend`."""
        number, place = place_of(self.unfinished, layer)
        if isinstance(number, int):
            output, after = self.parts[number].attend(place, query, key, value, **options)
            return output, _replaced(self, number, after)
        parts = [
            part.written(place, None, key, value, own=number == n)
            for n, part in enumerate(self.parts)
        ]
        written = dataclasses.replace(self, parts=tuple(parts))
        first = parts[0]

        def compute(part, place):
            one = dataclasses.replace(first, unfinished=part)
            return one.compute(place, query, **options)

        output, skipped = at_layer(written.unfinished, layer, compute)
        counted = [part.counted(jnp.where(number == n, skipped, 0)) for n, part in enumerate(parts)]
        output = checks.spoil(output, first.fits).astype(query.dtype)
        return output, dataclasses.replace(self, parts=tuple(counted))

    def finish(self) -> LayeredCache:
        """The cache with the new tokens in it, see `Decode.finish`."""
        _check_all_done(self)
        return LayeredCache(tuple(part.finish() for part in self.parts), self.layers)


def _check_all_done(passing: LayeredPrefill | LayeredDecode) -> None:
    """Raises ValueError with the model's numbers of layers that are known not to have attended."""
    done = np.ones(sum(map(len, passing.layers)), bool)
    for part, layers in zip(passing.parts, passing.layers, strict=True):
        if not isinstance(part.done, Tracer):
            done[list(layers)] = np.asarray(part.done)
    checks.check_all_done(done)


def _replaced[P: (LayeredPrefill, LayeredDecode)](passing: P, number: int, after: Any) -> P:
    parts = list(passing.parts)
    parts[number] = after
    return dataclasses.replace(passing, parts=tuple(parts))
