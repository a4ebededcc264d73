"""Codes of many small arrays in few: what a loop over layers writes for each layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from vkq_jax.array_types import Array, Shaped, UInt32
from vkq_jax.bits.packing import as_words
from vkq_jax.pytree import frozen_pytree, nbytes, static_field

__all__ = ["Coded", "JoinedCodes", "codes_of_all_layers"]

_LARGE = 1 / 4  # of a layer's bytes


@dataclasses.dataclass(frozen=True)
class _Form:
    """The tree of a layer's codes, and shapes of its small leaves; None in place of large ones."""

    tree: Any
    leaves: tuple[jax.ShapeDtypeStruct | None, ...]


@frozen_pytree
class JoinedCodes:
    """The codes of a layer's tokens, a pytree of arrays; or those of all layers, stacked.

    Scales, centres, numbers of centroids: codes of several classes of tokens have some thirty
    arrays, and each one that is written into the stack of its layers is a launch on a GPU. Most of
    them are small. So the small ones lie in one array, after each other.

    Attributes:
        large: arrays that take a quarter of a layer's bytes or more, as they are.
        small: words of all others.
        form: tells which are which.
    """

    large: tuple[Shaped[Array, "..."], ...]
    small: UInt32[Array, "*lead W"] | None
    form: _Form = static_field(kw_only=True)

    @classmethod
    def of_layer(cls, codes: Any, lead: tuple[int, int]) -> JoinedCodes:
        """The codes of one layer; arrays that do not begin with the axes `lead` are not joined."""
        leaves, tree = jax.tree.flatten(codes)
        least = _LARGE * nbytes(leaves)
        large, words, form = [], [], []
        for x in leaves:
            if x.shape[:2] != lead or x.dtype == bool or nbytes(x) >= least:
                large.append(x)
                form.append(None)
            else:
                words.append(_words(x))
                form.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
        small = jnp.concatenate(words, axis=-1) if words else None
        return cls(tuple(large), small, form=_Form(tree, tuple(form)))

    def of_all_layers(self) -> Any:
        """The pytree of arrays [L, ...] again, from stacks of all layers."""
        large, start, leaves = iter(self.large), 0, []
        for leaf in self.form.leaves:
            if leaf is None:
                leaves.append(next(large))
                continue
            assert self.small is not None
            stop = start + _num_words(leaf)
            leaves.append(_from_words(self.small[..., start:stop], leaf))
            start = stop
        return jax.tree.unflatten(self.form.tree, leaves)


type Coded = JoinedCodes | tuple[Any, Any, Any]
"""Codes of keys, of values, and their class map; joined, or as they are."""


def codes_of_all_layers(coded: Coded) -> tuple[Any, Any, Any]:
    """Keys, values and class map, from stacks of all layers."""
    return coded.of_all_layers() if isinstance(coded, JoinedCodes) else coded


def _num_words(x: Array | jax.ShapeDtypeStruct) -> int:
    return -(-math.prod(x.shape[2:]) * x.dtype.itemsize // 4)


def _words(x: Shaped[Array, "B K ..."]) -> UInt32[Array, "B K W"]:
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return as_words(jnp.pad(flat, ((0, 0), (0, 0), (0, -flat.shape[-1] % (4 // x.dtype.itemsize)))))


def _from_words(
    words: UInt32[Array, "L B K W"], leaf: jax.ShapeDtypeStruct
) -> Shaped[Array, "L B K ..."]:
    found = jax.lax.bitcast_convert_type(words, leaf.dtype)  # with an axis more where it is small
    flat = found.reshape(*words.shape[:3], words.shape[-1] * 4 // leaf.dtype.itemsize)
    return flat[..., : math.prod(leaf.shape[2:])].reshape(words.shape[0], *leaf.shape)
